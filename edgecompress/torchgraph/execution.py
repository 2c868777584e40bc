"""How the steps of a graph, or of a sub-graph, are run: what is needed, in order, and freed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.torchgraph.registry import Kernel

__all__ = ["HOST_LIMIT", "Observer", "Schedule", "Step", "execute", "placed", "schedule"]

HOST_LIMIT = 4096
"""Elements up to which an integer tensor may live on the host beside a module on a device."""

Observer = Callable[[str, Tensor], None]


class Step(NamedTuple):
    """One node, with its attributes parsed.

    Attributes:
        run: Inputs in, outputs out: one value, or a tuple of several. A value is a tensor; a
            sequence is a list of tensors and an empty optional is None.
        inputs: Value names; "" where an optional input is absent.
        outputs: Value names; "" where nobody wants the output.
        host: Positions of inputs that may stay on the host.
        label: The node as errors name it.
        plain: The same values by fewer inputs, where no gradient is wanted.
    """

    run: Kernel
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    host: frozenset[int]
    label: str
    plain: Step | None = None


class Schedule(NamedTuple):
    """What has to run for a set of wanted values, and what is dead behind each step."""

    steps: tuple[tuple[Step, tuple[str, ...]], ...]
    needed: frozenset[str]


def schedule(
    steps: Sequence[Step],
    wanted: Collection[str],
    watched: Collection[str] = (),
    *,
    gradients: bool,
) -> Schedule:
    """The steps that the wanted and watched values need; watched ones die as the others do."""
    live = {*wanted, *watched}
    kept: list[tuple[Step, tuple[str, ...]]] = []
    still_needed = set(wanted)
    for step in reversed(steps):
        if live.isdisjoint(step.outputs):
            continue
        if step.plain is not None and not gradients:
            step = step.plain
        touched = dict.fromkeys((*step.inputs, *step.outputs))
        kept.append((step, tuple(name for name in touched if name and name not in still_needed)))
        live.update(step.inputs)
        still_needed.update(step.inputs)
    return Schedule(tuple(reversed(kept)), frozenset(live))


def execute(
    steps: Iterable[tuple[Step, tuple[str, ...]]],
    values: dict[str, Any],
    device: torch.device,
    observe: Observer | None = None,
    watched: frozenset[str] = frozenset(),
) -> None:
    """Run the steps of a schedule on ``values``, which gains their outputs and loses the dead.

    Raises:
        ModelError: A node cannot run on these inputs.
    """
    for step, dead in steps:
        _run(step, values, device)
        if observe is not None:
            for name in step.outputs:
                if name in watched:
                    observe(name, values[name])
        for name in dead:
            del values[name]


def placed(value: Any, device: torch.device) -> Any:
    """A tensor, a sequence of tensors or an empty optional on a device."""
    if isinstance(value, Tensor):
        return value.to(device)
    return None if value is None else [placed(item, device) for item in value]


_FROM_TORCH = (RuntimeError, TypeError, ValueError, IndexError)


def _run(step: Step, values: dict[str, Any], device: torch.device) -> None:
    arguments = [values[name] if name else None for name in step.inputs]
    on_host = device.type == "cpu"
    if not on_host:
        _gather_on(device, arguments, step.host)
    try:
        result = step.run(*arguments)
    except torch.OutOfMemoryError:
        raise
    except ModelError as error:
        raise ModelError(error.what, where=error.where or step.label, cure=error.cure) from error
    except _FROM_TORCH as error:
        raise ModelError(
            f"cannot run on ({', '.join(map(_described, arguments))}): "
            f"{(str(error) or repr(error)).splitlines()[0]}",
            where=step.label,
            cure="check the shapes and types of the inputs",
        ) from error
    results = result if isinstance(result, tuple) else (result,)
    for index, name in enumerate(step.outputs):
        if not name:
            continue
        if index >= len(results):
            raise ModelError(f"its output {name!r} has no torch translation", where=step.label)
        value = results[index]
        if not on_host and isinstance(value, Tensor) and value.numel() > HOST_LIMIT:
            value = value.to(device)
        values[name] = value


def _described(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    return f"sequence of {len(value)}"


def _gather_on(device: torch.device, arguments: list[Any], host: frozenset[int]) -> None:
    """Bring the tensors of a step together: on the host only if all of them are there.

    torch takes scalars of the host beside tensors of a device, and inputs that are read as
    numbers are wanted on the host.
    """
    movable = [i for i, t in enumerate(arguments) if isinstance(t, Tensor) and i not in host]
    if all(arguments[i].device.type == "cpu" for i in movable):
        return
    for i in movable:
        if arguments[i].ndim > 0:
            arguments[i] = arguments[i].to(device)
