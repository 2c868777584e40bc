"""One step of an optimizer, as files that were exported for training carry it.

The inputs are the learning rate, the step count, and then equally long lists: the tensors, their
gradients, and one list per kind of state. The outputs are the new tensors and the new states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.torchgraph.registry import op
from edgecompress.torchgraph.values import unsupported

_TRAINING = "ai.onnx.preview.training"


def _lists(tensors: tuple[Tensor, ...], count: int) -> list[tuple[Tensor, ...]]:
    each, rest = divmod(len(tensors), count)
    if rest:
        raise ModelError(f"expected a multiple of {count} tensors, got {len(tensors)}")
    return [tensors[i * each : (i + 1) * each] for i in range(count)]


@op("Adagrad", since=1, domain=_TRAINING)
def adagrad(
    rate: Tensor,
    step: Tensor,
    *tensors: Tensor,
    decay_factor: float = 0.0,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
) -> tuple[Tensor, ...]:
    """Adagrad (Duchi et al., 2011); the state is the sum of squared gradients."""
    rate = rate / (1 + step * decay_factor)
    weights, squares = [], []
    for x, gradient, square in zip(*_lists(tensors, 3), strict=True):
        g = norm_coefficient * x + gradient
        new = square + g * g
        weights.append(x - rate * g / (new.sqrt() + epsilon))
        squares.append(new)
    return (*weights, *squares)


@op("Adam", since=1, domain=_TRAINING)
def adam(
    rate: Tensor,
    step: Tensor,
    *tensors: Tensor,
    alpha: float = 0.9,
    beta: float = 0.999,
    epsilon: float = 1e-6,
    norm_coefficient: float = 0.0,
    norm_coefficient_post: float = 0.0,
) -> tuple[Tensor, ...]:
    """Adam (Kingma and Ba, 2015); the states are the running mean and the running square."""
    taken = torch.where(step > 0, step, torch.ones_like(step))
    adjusted = rate * (1 - beta**taken).sqrt() / (1 - alpha**taken)
    rate = torch.where(step > 0, adjusted, rate)
    weights, means, squares = [], [], []
    for x, gradient, mean, square in zip(*_lists(tensors, 4), strict=True):
        g = norm_coefficient * x + gradient
        means.append(alpha * mean + (1 - alpha) * g)
        squares.append(beta * square + (1 - beta) * g * g)
        moved = x - rate * means[-1] / (squares[-1].sqrt() + epsilon)
        weights.append((1 - norm_coefficient_post) * moved)
    return (*weights, *means, *squares)


@op("Momentum", since=1, domain=_TRAINING)
def momentum(
    rate: Tensor,
    step: Tensor,
    *tensors: Tensor,
    alpha: float,
    beta: float,
    mode: str,
    norm_coefficient: float,
) -> tuple[Tensor, ...]:
    """Gradient descent with momentum, Nesterov's or the standard one; the state is the velocity."""
    if mode not in ("nesterov", "standard"):
        raise unsupported(f"mode={mode!r}")
    weights, velocities = [], []
    for x, gradient, velocity in zip(*_lists(tensors, 3), strict=True):
        g = norm_coefficient * x + gradient
        new = alpha * velocity + torch.where(step > 0, beta, 1.0).to(x.dtype) * g
        weights.append(x - rate * (g + alpha * new if mode == "nesterov" else new))
        velocities.append(new)
    return (*weights, *velocities)
