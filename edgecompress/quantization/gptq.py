"""GPTQ: each rounding error is made up for by the weights that are still free.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers",
ICLR 2023, arXiv 2210.17323. Scales stay what they are, one for each output channel, so columns may
come in any order: those whose inputs have the most power first (act-order).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edgecompress.numerics.moments import SecondMoments
from edgecompress.numerics.obs import obs_round
from edgecompress.numerics.one_thread import alone
from edgecompress.parallel.threads import in_order
from edgecompress.quantization.candidate import Candidate
from edgecompress.quantization.layer_inputs import input_key, input_moments
from edgecompress.quantization.rounded_layer import LayerRounding, RoundingRun
from edgecompress.walk.step import WalkStep

__all__ = ["round_by_gptq"]


def round_by_gptq(
    step: WalkStep, candidates: Sequence[Candidate], run: RoundingRun
) -> list[LayerRounding]:
    """Round weights none of which feeds another, on what the layers see in the quantized graph.

    Each output channel keeps its nearest integers where they fit the rows better.

    Raises:
        PassError: Activations are not finite.
    """
    moments = input_moments(step, candidates, run)
    found = []

    def rounding(item: Candidate) -> tuple[Tensor, float, float]:
        return _round(item, [moments[input_key(item, user)] for user in item.users])

    for item, (integers, nearest, error) in in_order(rounding, candidates, run.threads, alone):
        means = [moments[input_key(item, user)].mean().float() for user in item.users]
        item.store(run.model, integers, means)
        moved = item.moved(integers)
        for user in item.users:
            layer = user.layer
            found.append(LayerRounding(layer.output, layer.op, "gptq", nearest, error, moved))
    return found


def _round(item: Candidate, moments: Sequence[SecondMoments]) -> tuple[Tensor, float, float]:
    """The integers, and the relative squared errors of the nearest ones and of these."""
    parts = [
        seen.total(centred=user.stored_bias is not None)
        for user, seen in zip(item.users, moments, strict=True)
    ]
    hessian = torch.stack(parts).sum(0) if len(parts) > 1 else parts[0]
    scale = item.scale[..., None]
    integers = torch.stack(
        [_round_group(item, group, hessian[group]) for group in range(item.form.groups)]
    )
    before = _errors(item.nearest * scale - item.weight, hessian)
    after = _errors(integers * scale - item.weight, hessian)
    better = after < before
    chosen = torch.where(better[..., None], integers, item.nearest)
    power = float(_errors(item.weight, hessian).sum()) or 1.0
    error = torch.where(better, after, before)
    return chosen, float(before.sum()) / power, float(error.sum()) / power


def _round_group(item: Candidate, group: int, hessian: Tensor) -> Tensor:
    scale = item.scale[group]
    integers = item.integers

    def quantize_column(column: Tensor, index: int) -> Tensor:
        return torch.clamp(torch.round(column / scale), integers.low, integers.high) * scale

    order = hessian.diagonal().argsort(descending=True, stable=True)
    rounded = obs_round(item.weight[group], hessian, quantize_column, order=order)
    return torch.round(rounded / scale[:, None])


def _errors(difference: Tensor, hessian: Tensor) -> Tensor:
    """``d H d^T`` of each row: [groups, rows]."""
    wide = difference.double()
    return ((wide @ hessian) * wide).sum(-1)
