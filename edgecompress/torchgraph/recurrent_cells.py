"""One step of an LSTM, a GRU and an RNN, with every option of the specification."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from edgecompress.errors import ModelError
from edgecompress.torchgraph.activation import hard_sigmoid, leaky_relu, softsign, thresholded_relu
from edgecompress.torchgraph.values import unsupported

__all__ = ["Activation", "Cell", "activations_of", "gru_cell", "lstm_cell", "rnn_cell"]

Activation = Callable[[Tensor], Tensor]

Cell = Callable[..., tuple[Tensor, ...]]
"""(``x W^T + b`` as ``[B, G * H]``, states ``[B, H]``) -> new states, the hidden one first."""


def _affine(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return alpha * x + beta


def _scaled_tanh(x: Tensor, *, alpha: float, beta: float) -> Tensor:
    return alpha * torch.tanh(beta * x)


def _elu(x: Tensor, *, alpha: float) -> Tensor:
    return functional.elu(x, alpha)


# Name -> function, and the defaults of what it takes of activation_alpha and activation_beta; None
# where onnxruntime has another one than the specification.
_ACTIVATIONS: dict[str, tuple[Callable[..., Tensor], dict[str, float | None]]] = {
    "relu": (torch.relu, {}),
    "tanh": (torch.tanh, {}),
    "sigmoid": (torch.sigmoid, {}),
    "softsign": (softsign, {}),
    "softplus": (functional.softplus, {}),
    "elu": (_elu, {"alpha": 1.0}),
    "leakyrelu": (leaky_relu, {"alpha": 0.01}),
    "thresholdedrelu": (thresholded_relu, {"alpha": None}),
    "affine": (_affine, {"alpha": None, "beta": None}),
    "scaledtanh": (_scaled_tanh, {"alpha": None, "beta": None}),
    "hardsigmoid": (hard_sigmoid, {"alpha": 0.2, "beta": 0.5}),
}


def activations_of(
    names: Sequence[str], alpha: Sequence[float], beta: Sequence[float], directions: int
) -> list[list[Activation]]:
    """The functions of each direction; alphas and betas are taken in turn by those that have one.

    Raises:
        ModelError: A function is unknown, its numbers are not given where there is no agreed
            default, or their number does not fit the directions.
    """
    left = {"alpha": list(alpha), "beta": list(beta)}
    found: list[Activation] = []
    for name in names:
        if name.lower() not in _ACTIVATIONS:
            raise ModelError(f"unknown activation {name!r}", cure=f"use {', '.join(_ACTIVATIONS)}")
        function, defaults = _ACTIVATIONS[name.lower()]
        given = {key: left[key].pop(0) if left[key] else value for key, value in defaults.items()}
        if None in given.values():
            raise unsupported(f"defaults of {name}, where the specification and onnxruntime differ")
        found.append(partial(function, **given) if given else function)
    each, rest = divmod(len(found), directions)
    if rest or not each:
        raise ModelError(f"{len(found)} activations for {directions} directions")
    return [found[i : i + each] for i in range(0, len(found), each)]


def _clipped(function: Activation, clip: float | None) -> Activation:
    return function if clip is None else lambda x: function(x.clamp(-clip, clip))


def lstm_cell(
    functions: Sequence[Activation],
    r: Tensor,
    bias: Tensor | None,
    peepholes: Tensor | None,
    clip: float | None,
    *,
    forgets_input: bool,
) -> Cell:
    """``i, f = f(..), C' = f C + i g(..), o = f(.. C'), H' = o h(C')``."""
    f, g = (_clipped(function, clip) for function in functions[:2])
    squash = functions[2]
    pi, po, pf = (None, None, None) if peepholes is None else peepholes.chunk(3)

    def peep(gate: Tensor, weight: Tensor | None, cell: Tensor) -> Tensor:
        return gate if weight is None else gate + weight * cell

    def step(projected: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, ...]:
        gates = projected + functional.linear(hidden, r, bias)
        i, o, forget, c = gates.chunk(4, -1)
        taken = f(peep(i, pi, cell))
        kept = 1 - taken if forgets_input else f(peep(forget, pf, cell))
        new = kept * cell + taken * g(c)
        return f(peep(o, po, new)) * squash(new), new

    return step


def gru_cell(
    functions: Sequence[Activation],
    r: Tensor,
    bias: Tensor | None,
    clip: float | None,
    *,
    linear_before_reset: bool,
) -> Cell:
    """``z, r = f(..), n = g(..), H' = (1 - z) n + z H``; the reset gate acts before or behind R."""
    f, g = (_clipped(function, clip) for function in functions)
    size = r.shape[-1]
    r_zr, r_n = torch.split(r, [2 * size, size])
    bias_zr, bias_n = (None, None) if bias is None else torch.split(bias, [2 * size, size])

    def step(projected: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        x_zr, x_n = torch.split(projected, [2 * size, size], -1)
        z, reset = f(x_zr + functional.linear(hidden, r_zr, bias_zr)).chunk(2, -1)
        if linear_before_reset:
            n = g(x_n + reset * functional.linear(hidden, r_n, bias_n))
        else:
            n = g(x_n + functional.linear(reset * hidden, r_n, bias_n))
        return ((1 - z) * n + z * hidden,)

    return step


def rnn_cell(
    functions: Sequence[Activation], r: Tensor, bias: Tensor | None, clip: float | None
) -> Cell:
    """``H' = f(..)``."""
    f = _clipped(functions[0], clip)

    def step(projected: Tensor, hidden: Tensor) -> tuple[Tensor, ...]:
        return (f(projected + functional.linear(hidden, r, bias)),)

    return step
