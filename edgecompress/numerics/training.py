"""AdamW for a few hundred steps: gradients from outside, masters in single precision.

Loshchilov and Hutter, "Decoupled Weight Decay Regularization", ICLR 2019, arXiv 1711.05101. Rates
are shares of each tensor's own size, as in Adafactor (Shazeer and Stern, ICML 2018, arXiv
1804.04235): weights of 0.01 and norm scales of 1 then learn at one pace, whatever the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["RateSchedule", "Training"]

_HALVES = (torch.float16, torch.bfloat16)
_BETAS = (0.9, 0.99)
_TINY = 1e-12  # in place of Adam's 1e-8: gradients may be small themselves
_SMALLEST = 1e-3  # what a tensor's size counts as at least: biases may start from 0


@dataclass(frozen=True)
class RateSchedule:
    """Linear warm-up, then half a cosine.

    Attributes:
        steps: In all.
        peak: Rate after the warm-up.
        warm_up: Share of the steps.
        final: Share of the peak at the last step.
    """

    steps: int
    peak: float
    warm_up: float = 0.1
    final: float = 0.1

    def rate(self, step: int) -> float:
        """Of a step, from 0."""
        warm = int(self.steps * self.warm_up)
        if step < warm:
            return self.peak * (step + 1) / (warm + 1)
        done = (step - warm) / max(self.steps - 1 - warm, 1)
        return self.peak * (self.final + (1 - self.final) * (1 + math.cos(math.pi * done)) / 2)


class Training:
    """Parameters on their way; whoever computes the gradients decides what is learned."""

    def __init__(
        self,
        parameters: Sequence[Tensor],
        schedule: RateSchedule,
        *,
        weight_decay: float = 0.01,
        clip: float = 1.0,
    ) -> None:
        """Prepare; nothing is changed yet.

        Args:
            parameters: Changed in place. Those in half precision get masters in single precision.
            schedule: Rates, as shares of the root mean square of each tensor.
            weight_decay: As in AdamW, by the same rates.
            clip: The gradient's norm over all tensors is cut to this.
        """
        self._parameters = list(parameters)
        self._schedule = schedule
        self._clip = clip
        self._masters = [
            p.detach().float() if p.dtype in _HALVES else p.detach() for p in self._parameters
        ]
        self._sizes = [max(float(m.square().mean().sqrt()), _SMALLEST) for m in self._masters]
        self._done = 0
        # AdamW multiplies decay and rate, and here the rate goes by the size of the tensor.
        groups = [
            {"params": [master], "weight_decay": weight_decay / size}
            for master, size in zip(self._masters, self._sizes, strict=True)
        ]
        self._optimizer = torch.optim.AdamW(groups, betas=_BETAS, eps=_TINY, fused=True)

    def step(self, gradients: Sequence[Tensor]) -> bool:
        """Take one step.

        Args:
            gradients: Of the parameters, in their order, in at least single precision.

        Returns:
            Whether it was taken: it is not where a gradient is not finite.
        """
        norm = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
        if not math.isfinite(norm):
            return False
        share = self._clip / norm if norm > self._clip else 1.0
        rate = self._schedule.rate(self._done)
        for group, size in zip(self._optimizer.param_groups, self._sizes, strict=True):
            group["lr"] = rate * size
        for master, gradient in zip(self._masters, gradients, strict=True):
            master.grad = gradient.to(master.dtype) * share
        self._optimizer.step()
        self._done += 1
        self._show()
        return True

    def values(self) -> list[Tensor]:
        """A copy of the masters."""
        return [master.clone() for master in self._masters]

    def load(self, values: Sequence[Tensor]) -> None:
        """Set the parameters to a copy that :meth:`values` made."""
        for master, value in zip(self._masters, values, strict=True):
            master.copy_(value)
        self._show()

    def _show(self) -> None:
        for parameter, master in zip(self._parameters, self._masters, strict=True):
            if parameter.dtype != master.dtype:
                parameter.detach().copy_(master)
