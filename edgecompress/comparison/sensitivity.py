"""How far a small error at a value reaches the outputs of a model, from one backward pass a batch.

The error e of a value moves the outputs by J e, to first order. Its power |J e|^2 is what
(r . J e)^2 is on average where the numbers of r are +1 or -1 at random (Hutchinson 1990), and
r . J e = (J^T r) . e needs one backward pass for all values at once. Each row has its own r.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from torch import Tensor

from edgecompress.data.calibration import Batch
from edgecompress.data.token_mask import position_mask
from edgecompress.errors import UnsupportedOperatorError
from edgecompress.model import Model
from edgecompress.torchgraph import TorchGraph, as_tensors, to_torch

__all__ = ["Sensitivity"]


class Sensitivity:
    """Gradients of the outputs of a graph with respect to its values, for the batch at hand."""

    def __init__(self, graph: TorchGraph, names: Collection[str], seed: int = 0) -> None:
        """Prepare.

        Args:
            graph: The whole original graph; its parameters get no gradients any more.
            names: Values whose errors will be asked for.
            seed: Of the random signs.
        """
        self._graph = graph.requires_grad_(False)
        self._names = frozenset(names)
        self._generator = torch.Generator().manual_seed(seed)
        self._batch: Batch | None = None
        self._gradients: Mapping[str, Tensor] = {}

    @classmethod
    def of(cls, model: Model, names: Collection[str], device: str) -> Sensitivity | None:
        """Of a model; None where torch cannot run all of it."""
        try:
            return cls(to_torch(model, device=device), names)
        except UnsupportedOperatorError:
            return None

    def reached(self, batch: Batch, name: str, error: Tensor) -> float | None:
        """Power of the error that a value's error makes at the outputs, relative to their signal.

        Args:
            batch: The rows.
            name: Of the value.
            error: Its error.

        Returns:
            Summed over rows; None where no gradient reaches the value, or none that is a number.
        """
        if batch is not self._batch:
            self._gradients = self._backward(batch)
            self._batch = batch
        gradient = self._gradients.get(name)
        if gradient is None:
            return None
        by_row = error.ndim > 1 and len(error) == batch.rows
        rows = batch.rows if by_row else 1
        sums = torch.linalg.vecdot(gradient.reshape(rows, -1), error.reshape(rows, -1))
        power = float(sums.double().square().sum())
        return power if math.isfinite(power) else None

    def _backward(self, batch: Batch) -> Mapping[str, Tensor]:
        seen: dict[str, Tensor] = {}

        def see(name: str, values: Tensor) -> None:
            if isinstance(values, Tensor) and values.is_floating_point():
                seen[name] = values if values.requires_grad else values.requires_grad_()

        with torch.enable_grad():
            outputs = self._graph(as_tensors(batch.inputs), observe=see, watch=self._names)
            ends = [out for out in outputs.values() if out.requires_grad]
            if not ends or not seen:
                return {}
            names = list(seen)
            found = torch.autograd.grad(
                ends,
                [seen[name] for name in names],
                [self._signs(out.detach(), batch) for out in ends],
                allow_unused=True,
            )
        return {n: g for n, g in zip(names, found, strict=True) if g is not None}

    def _signs(self, out: Tensor, batch: Batch) -> Tensor:
        """+1 or -1 over the size of the signal of one row; 0 where there is padding."""
        signs = torch.randint(0, 2, out.shape, generator=self._generator).to(out) * 2 - 1
        mask = None
        if batch.mask is not None:
            mask = position_mask(tuple(out.shape), torch.from_numpy(batch.mask))
        if mask is not None:
            signs = signs * mask.to(out.device)
        signal = (out * signs.abs()).double().square().sum() / batch.rows
        return signs / signal.sqrt().to(signs) if signal > 0 else torch.zeros_like(signs)
