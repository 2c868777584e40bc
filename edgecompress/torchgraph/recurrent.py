"""LSTM, GRU and RNN: by torch's fused kernels where they compute the same, else step by step.

Shapes: T steps, B sequences, D directions, I inputs, H hidden units, G gates. Layout 1 has the
batch first, outside; everything in here has the time first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.torchgraph.recurrent_cells import (
    Activation,
    Cell,
    activations_of,
    gru_cell,
    lstm_cell,
    rnn_cell,
)
from edgecompress.torchgraph.registry import op

_Names = Sequence[str] | None
_Numbers = Sequence[float]
_DIRECTIONS = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}


class _Inputs(NamedTuple):
    """What all three operators share, time first.

    Attributes:
        x: ``[T, B, I]``.
        w: ``[D, G * H, I]``.
        r: ``[D, G * H, H]``.
        bias: ``[D, 2, G * H]``, of the input and of the state; None stands for zeros.
        lengths: ``[B]``, None where every sequence has T steps.
        states: ``[D, B, H]`` each: the hidden state, and for an LSTM that of the cell.
        backward: For each direction, whether it runs from the end to the front.
    """

    x: Tensor
    w: Tensor
    r: Tensor
    bias: Tensor | None
    lengths: Tensor | None
    states: tuple[Tensor, ...]
    backward: tuple[bool, ...]


def _prepare(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None,
    lengths: Tensor | None,
    states: Sequence[Tensor | None],
    direction: str,
    layout: int,
) -> _Inputs:
    if x.ndim != 3:
        raise ModelError(f"expected X of 3 dimensions, got {list(x.shape)}")
    if layout:
        x = x.transpose(0, 1)
        states = [None if state is None else state.transpose(0, 1) for state in states]
    if lengths is not None:
        whole = lengths.numel() == 0 or int(lengths.min()) == x.shape[0]
        lengths = None if whole else lengths.to(x.device)
    blank = x.new_zeros(len(w), x.shape[1], r.shape[2])
    return _Inputs(
        x,
        w,
        r,
        None if b is None else b.reshape(len(b), 2, -1),
        lengths,
        tuple(blank if state is None else state for state in states),
        _DIRECTIONS[direction.lower()],
    )


def _finish(y: Tensor, states: Sequence[Tensor], layout: int) -> tuple[Tensor, ...]:
    """Outputs of the operator from ``[T, D, B, H]`` and ``[D, B, H]`` each."""
    if not layout:
        return y, *states
    return y.permute(2, 0, 1, 3), *(state.transpose(0, 1) for state in states)


def _unrolled(inputs: _Inputs, cells: Sequence[Cell]) -> tuple[Tensor, list[Tensor]]:
    """All steps in turn: one cell for each direction."""
    outputs, last = [], []
    for i, (cell, backward) in enumerate(zip(cells, inputs.backward, strict=True)):
        projected = inputs.x @ inputs.w[i].T
        if inputs.bias is not None:
            projected = projected + inputs.bias[i, 0]
        y, states = _one_direction(
            cell, projected, tuple(s[i] for s in inputs.states), inputs.lengths, backward=backward
        )
        outputs.append(y)
        last.append(states)
    return torch.stack(outputs, 1), [torch.stack(states) for states in zip(*last, strict=True)]


def _one_direction(
    cell: Cell,
    projected: Tensor,
    states: tuple[Tensor, ...],
    lengths: Tensor | None,
    *,
    backward: bool,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``[T, B, H]`` and the last states. Behind the end of a sequence its states rest, y is 0."""
    steps = len(projected)
    rows: list[Tensor] = []
    for time in range(steps - 1, -1, -1) if backward else range(steps):
        new = cell(projected[time], *states)
        row = new[0]
        if lengths is not None:
            active = (time < lengths)[:, None]
            new = tuple(torch.where(active, n, s) for n, s in zip(new, states, strict=True))
            row = torch.where(active, row, 0)
        states = new
        rows.append(row)
    if not rows:
        return projected.new_zeros(0, *states[0].shape), states
    return torch.stack(rows[::-1] if backward else rows), states


_Fused = Callable[..., tuple[Tensor, ...]]


def _can_fuse(inputs: _Inputs, functions: Sequence[Sequence[Activation]], fused: object) -> bool:
    """Whether a fused kernel of default functions, each sequence of T steps, does the same."""
    return (
        inputs.lengths is None
        and inputs.x.numel() > 0
        and inputs.x.dtype in (torch.float32, torch.float64)
        and all(tuple(given) == fused for given in functions)
    )


def _fused(kernel: _Fused, inputs: _Inputs, order: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """A kernel of torch: one layer in one or two directions.

    Args:
        kernel: ``torch.lstm`` or one like it.
        inputs: Of the operator.
        order: The gates as torch has them, by their number in ONNX.
    """
    directions = len(inputs.w)
    turned = inputs.backward == (True,)

    def gates(weight: Tensor) -> Tensor:
        parts = weight.chunk(len(order))
        return weight if len(order) == 1 else torch.cat([parts[i] for i in order])

    weights: list[Tensor] = []
    for i in range(directions):
        weights += [gates(inputs.w[i]), gates(inputs.r[i])]
        if inputs.bias is not None:
            weights += [gates(inputs.bias[i, 0]), gates(inputs.bias[i, 1])]
    states = tuple(state.contiguous() for state in inputs.states)
    y, *last = kernel(
        inputs.x.flip(0) if turned else inputs.x,
        states if len(states) > 1 else states[0],
        weights,
        inputs.bias is not None,
        1,
        0.0,
        torch.is_grad_enabled(),
        directions == 2,
        False,
    )
    y = y.flip(0) if turned else y
    return y.reshape(*y.shape[:2], directions, -1).transpose(1, 2), last


@op("LSTM", since=7, host=(4,))
def lstm(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    p: Tensor | None = None,
    *,
    activation_alpha: _Numbers = (),
    activation_beta: _Numbers = (),
    activations: _Names = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int = 0,
    input_forget: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Y, last hidden state, last cell state; gates in the order i, o, f, c; peepholes i, o, f."""
    inputs = _prepare(x, w, r, b, sequence_lens, (initial_h, initial_c), direction, layout)
    names = activations or ("Sigmoid", "Tanh", "Tanh") * len(w)
    functions = activations_of(names, activation_alpha, activation_beta, len(w))
    plain = clip is None and not input_forget and p is None
    if plain and _can_fuse(inputs, functions, (torch.sigmoid, torch.tanh, torch.tanh)):
        return _finish(*_fused(torch.lstm, inputs, (0, 2, 3, 1)), layout)
    cells = [
        lstm_cell(
            functions[i],
            r[i],
            None if inputs.bias is None else inputs.bias[i, 1],
            None if p is None else p[i],
            clip,
            forgets_input=bool(input_forget),
        )
        for i in range(len(w))
    ]
    return _finish(*_unrolled(inputs, cells), layout)


@op("GRU", since=7, host=(4,))
def gru(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: _Numbers = (),
    activation_beta: _Numbers = (),
    activations: _Names = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> tuple[Tensor, ...]:
    """Y and the last hidden state; gates in the order z, r, h."""
    inputs = _prepare(x, w, r, b, sequence_lens, (initial_h,), direction, layout)
    names = activations or ("Sigmoid", "Tanh") * len(w)
    functions = activations_of(names, activation_alpha, activation_beta, len(w))
    plain = clip is None and bool(linear_before_reset)
    if plain and _can_fuse(inputs, functions, (torch.sigmoid, torch.tanh)):
        return _finish(*_fused(torch.gru, inputs, (1, 0, 2)), layout)
    cells = [
        gru_cell(
            functions[i],
            r[i],
            None if inputs.bias is None else inputs.bias[i, 1],
            clip,
            linear_before_reset=bool(linear_before_reset),
        )
        for i in range(len(w))
    ]
    return _finish(*_unrolled(inputs, cells), layout)


@op("RNN", since=7, host=(4,))
def rnn(
    x: Tensor,
    w: Tensor,
    r: Tensor,
    b: Tensor | None = None,
    sequence_lens: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: _Numbers = (),
    activation_beta: _Numbers = (),
    activations: _Names = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int = 0,
    layout: int = 0,
) -> tuple[Tensor, ...]:
    """Y and the last hidden state."""
    inputs = _prepare(x, w, r, b, sequence_lens, (initial_h,), direction, layout)
    names = activations or ("Tanh",) * len(w)
    functions = activations_of(names, activation_alpha, activation_beta, len(w))
    for function, kernel in ((torch.tanh, torch.rnn_tanh), (torch.relu, torch.rnn_relu)):
        if clip is None and _can_fuse(inputs, functions, (function,)):
            return _finish(*_fused(kernel, inputs, (0,)), layout)
    biases = [None if inputs.bias is None else inputs.bias[i, 1] for i in range(len(w))]
    cells = [rnn_cell(functions[i], r[i], biases[i], clip) for i in range(len(w))]
    return _finish(*_unrolled(inputs, cells), layout)
