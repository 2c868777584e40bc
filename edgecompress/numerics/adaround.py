"""AdaRound: whether a weight goes up or down, as a variable that gradients can move.

Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, arXiv
2004.10568. A weight is ``scale * clip(floor(w / scale) + h(v))``, where the rectified sigmoid h
goes from 0 to 1. A regulariser, weak at first, drives h to either end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edgecompress.numerics.affine import IntegerRange

__all__ = ["SoftRounding", "Schedule", "indecision", "rectified_sigmoid"]

# The sigmoid is stretched to -0.1 .. 1.1 and cut, so that its ends are reached (equation 23).
_LOW, _HIGH = -0.1, 1.1


def rectified_sigmoid(v: Tensor) -> Tensor:
    """``clip(1.2 sigmoid(v) - 0.1, 0, 1)``."""
    return torch.clamp(torch.sigmoid(v) * (_HIGH - _LOW) + _LOW, 0, 1)


def _inverse(h: Tensor) -> Tensor:
    """The ``v`` whose rectified sigmoid is ``h``."""
    return torch.logit((h - _LOW) / (_HIGH - _LOW))


def indecision(h: Tensor, exponent: float) -> Tensor:
    """Mean of ``1 - |2 h - 1|^exponent``: 0 where all ``h`` are 0 or 1 (equation 24)."""
    return (1 - (2 * h - 1).abs().pow(exponent)).mean()


@dataclass(frozen=True)
class Schedule:
    """How the regulariser's exponent falls, as a cosine from 20 to 2, once it is switched on.

    Attributes:
        steps: Of the whole optimization.
        warm_up: Share of the steps without regulariser.
    """

    steps: int
    warm_up: float = 0.2

    def exponent(self, step: int) -> float | None:
        """The exponent at a step, from 0; None while there is no regulariser."""
        first = int(self.steps * self.warm_up)
        if step < first:
            return None
        done = (step - first) / max(self.steps - 1 - first, 1)
        return 2 + 9 * (1 + math.cos(math.pi * done))


class SoftRounding:
    """A weight between its two neighbours on the grid.

    Attributes:
        v: The variable, of the weight's shape; its gradient is asked for.
    """

    def __init__(self, weight: Tensor, scale: Tensor, integers: IntegerRange) -> None:
        """Start at the float weight, as far as the grid reaches.

        Args:
            weight: float32 of any shape.
            scale: float32, broadcasts against the weight.
            integers: What the integers may be.
        """
        steps = weight / scale
        self._floor = torch.floor(steps)
        self._scale = scale
        self._integers = integers
        self.v = _inverse(steps - self._floor).requires_grad_()

    def share(self) -> Tensor:
        """``h(v)``: 0 is down, 1 is up."""
        return rectified_sigmoid(self.v)

    def soft(self, share: Tensor) -> Tensor:
        """The weight with the given shares of a step above its floor, float32."""
        return self._clip(self._floor + share) * self._scale

    def hard(self) -> Tensor:
        """The integers, as float32, that the variable has decided for."""
        # At exactly one half the float weight lay between the two; nearest is half to even.
        with torch.no_grad():
            return self._clip(torch.where(self.v > 0, self._floor + 1, self._floor))

    def _clip(self, steps: Tensor) -> Tensor:
        return torch.clamp(steps, self._integers.low, self._integers.high)
