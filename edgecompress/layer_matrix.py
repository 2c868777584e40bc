"""A layer as a product of matrices: what rounding methods work on, whatever the operator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.data.token_mask import position_mask
from edgecompress.numerics.moments import chosen_places, patches
from edgecompress.torchgraph.windows import Window, pad_spatial, window

__all__ = ["LayerMatrix", "layer_matrix"]


@dataclass(frozen=True)
class LayerMatrix:
    """How weight, inputs and outputs of a layer become matrices: one for each group of channels.

    A weight is ``[groups, rows, columns]``, a row for each output channel; inputs are ``[groups,
    places, columns]``, outputs ``[groups, places, rows]``. A place is a token, or a position of a
    convolution's window.

    Attributes:
        shape: Of the weight in the graph.
        groups: Groups of channels.
        transposed: Whether the graph has the weight as ``[columns, rows]``.
        attributes: What a convolution's window is made of; None for Gemm and MatMul.
    """

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False
    attributes: tuple[tuple[str, Any], ...] | None = None

    def weight(self, array: Tensor) -> Tensor:
        """[groups, rows, columns] of a weight as the graph has it."""
        matrix = array.T if self.transposed else array
        return matrix.reshape(self.groups, self.shape[self._axis] // self.groups, -1)

    def as_stored(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`weight`."""
        flat = matrix.reshape(self.shape[self._axis], -1)
        return flat.T.contiguous() if self.transposed else flat.reshape(self.shape)

    def per_row(self, vector: Tensor) -> Tensor:
        """One number for each output channel, or for all of them, as [groups, rows]."""
        return vector.reshape(-1).expand(self.shape[self._axis]).reshape(self.groups, -1)

    def places(
        self,
        x: Tensor,
        mask: npt.NDArray[Any] | None,
        most: int,
        generator: torch.Generator,
    ) -> tuple[Tensor | None, int]:
        """Which places of an input to look at, at most ``most``, and how many they are.

        Args:
            x: The layer's input.
            mask: bool [rows, length]: which positions are no padding; None where all are.
            most: See :func:`~edgecompress.numerics.moments.chosen_places`.
            generator: Of the CPU.
        """
        grid = self._grid(x)
        shape = (grid[0], 1, *grid[1:]) if self.attributes is not None else (*grid, 1)
        real = None if mask is None else position_mask(shape, torch.from_numpy(mask))
        flat = None if real is None else real.expand(shape).reshape(-1)
        count = math.prod(grid)
        chosen = chosen_places(count, most, generator, flat)
        if chosen is None:
            return None, count
        return chosen.to(x.device), len(chosen)

    def columns(self, x: Tensor, places: Tensor | None) -> Tensor:
        """[groups, places, columns] of a layer's input."""
        if self.attributes is None:
            flat = x.reshape(-1, x.shape[-1])
            return (flat if places is None else flat[places])[None]
        win = self._window(x.shape[2:])
        padded = pad_spatial(x, win.before, win.after)
        return patches(padded, win.kernel, win.stride, win.dilation, self.groups, places)

    def outputs(self, y: Tensor, places: Tensor | None) -> Tensor:
        """[groups, places, rows] of a layer's output."""
        last = y if self.attributes is None else y.movedim(1, -1)
        flat = last.reshape(-1, last.shape[-1])
        taken = flat if places is None else flat[places]
        return taken.reshape(len(taken), self.groups, -1).transpose(0, 1)

    @property
    def _axis(self) -> int:
        return 1 if self.transposed else 0

    def _window(self, lengths: Sequence[int]) -> Window:
        return window(lengths, self.shape[2:], **dict(self.attributes or ()))

    def _grid(self, x: Tensor) -> tuple[int, ...]:
        if self.attributes is None:
            return tuple(x.shape[:-1])
        return (len(x), *self._window(x.shape[2:]).outputs(x.shape[2:]))


def layer_matrix(node: ir.Node, shape: Sequence[int]) -> LayerMatrix | None:
    """The matrix form of a Conv, Gemm or MatMul; None for everything else.

    Args:
        node: The layer; its weight is its second input.
        shape: Of the weight.
    """
    given = node.attributes
    if node.op_type == "Conv":
        names = ("strides", "dilations", "pads")
        found = {name: tuple(given[name].as_ints()) if name in given else None for name in names}
        auto = given["auto_pad"].as_string() if "auto_pad" in given else "NOTSET"
        groups = given["group"].as_int() if "group" in given else 1
        return LayerMatrix(tuple(shape), groups, False, (*found.items(), ("auto_pad", auto)))
    if len(shape) != 2 or node.op_type not in ("Gemm", "MatMul"):
        return None
    if "transA" in given and given["transA"].as_int():
        return None
    straight = "transB" in given and bool(given["transB"].as_int())
    return LayerMatrix(tuple(shape), transposed=not straight)
