"""TorchGraph: an ONNX graph, or a slice of one, as a differentiable torch module."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgecompress.errors import DataError, ModelError, nearest
from edgecompress.model import Model
from edgecompress.torchgraph.program import HOST_LIMIT, Program, Step, read
from edgecompress.torchgraph.values import to_numpy

__all__ = ["TorchGraph", "to_torch"]

Observer = Callable[[str, Tensor], None]


def to_torch(
    model: Model,
    nodes: Sequence[ir.Node] | None = None,
    *,
    device: str | torch.device = "cpu",
) -> TorchGraph:
    """Turn a graph, or a slice of it, into a torch module that computes the same.

    Float initializers of rank >= 1 become parameters, those that are only running statistics
    become buffers, and scalars and everything read as a shape, axis or bound stay fixed numbers.
    Parameters own their memory, so training never writes into the model behind its back; see
    :meth:`TorchGraph.write_back`. Model-local functions are inlined.

    Args:
        model: The graph.
        nodes: A slice of the main graph in topological order; None takes all of it.
        device: Where parameters and computation live. Shape arithmetic stays on the host.

    Raises:
        UnsupportedOperatorError: Some operators have no translation; it names all of them.
        ModelError: A constant or an attribute cannot be read.
    """
    if nodes is None and model.ir.functions:
        model = _inlined(model)
    return TorchGraph(read(model, nodes)).to(device)


def _inlined(model: Model) -> Model:
    from onnx_ir.passes.common import InlinePass

    clone = model.clone()
    InlinePass()(clone.ir)
    return clone


class _Plan(NamedTuple):
    """What has to run for a set of wanted values, and what is dead behind each step."""

    steps: list[tuple[Step, tuple[str, ...]]]
    inputs: tuple[str, ...]
    stored: tuple[tuple[str, str], ...]
    host: dict[str, Tensor]


class TorchGraph(nn.Module):
    """Interprets the nodes in order; made by :func:`to_torch`.

    Each value is freed after its last use, so the peak memory is that of the live set.
    """

    _anchor: Tensor

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program
        self._plans: dict[tuple[frozenset[str], frozenset[str]], _Plan] = {}
        # Names of ONNX values hold characters that torch forbids in names of parameters.
        self._keys: dict[str, str] = {}
        self.register_buffer("_anchor", torch.empty(0), persistent=False)
        for name, tensor in program.parameters.items():
            self.register_parameter(self._key(name), nn.Parameter(tensor))
        for name, tensor in program.buffers.items():
            self.register_buffer(self._key(name), tensor, persistent=False)
        program.parameters = {}
        program.buffers = {}

    def _key(self, name: str) -> str:
        key = name.replace(".", "/")
        while hasattr(self, key) or key in self._keys.values():
            key += "_"
        self._keys[name] = key
        return key

    @property
    def input_names(self) -> tuple[str, ...]:
        """Values that must be fed."""
        return self._program.inputs

    @property
    def output_names(self) -> tuple[str, ...]:
        """Graph outputs, or for a slice the values used outside of it."""
        return self._program.outputs

    @property
    def parameters_by_initializer(self) -> dict[str, nn.Parameter]:
        """Initializer name -> parameter; an initializer used twice is one parameter."""
        found = ((name, self._parameters.get(key)) for name, key in self._keys.items())
        return {name: parameter for name, parameter in found if parameter is not None}

    def forward(
        self,
        feeds: Mapping[str, Tensor],
        *,
        observe: Observer | None = None,
        watch: Collection[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the outputs, running only the nodes that they and the watched values need.

        Args:
            feeds: Input name -> tensor; moved to the module's device. Other names are ignored.
            observe: Called with name and value of each watched value as soon as it exists, inputs
                first.
            watch: Names of the values to observe.
            outputs: Names of the values to return. Default: :attr:`output_names`.

        Raises:
            DataError: A needed input is not fed.
            ModelError: A wanted value does not exist, or a node cannot run on these inputs.
        """
        wanted = self.output_names if outputs is None else tuple(outputs)
        watched = frozenset(watch or ()) if observe is not None else frozenset()
        plan = self._plan(frozenset(wanted), watched)
        values = self._start(plan, feeds)
        if observe is not None:
            for name, value in values.items():
                if name in watched:
                    observe(name, value)
        device = self._anchor.device
        for step, dead in plan.steps:
            _run(step, values, device)
            if observe is not None:
                for name in step.outputs:
                    if name in watched:
                        observe(name, values[name])
            for name in dead:
                del values[name]
        return {name: values[name] for name in wanted}

    def write_back(self, model: Model) -> list[str]:
        """Write the parameters into the initializers of a model that they came from.

        Args:
            model: The model, or a clone of it; it keeps its element types.

        Returns:
            Names of the initializers whose values changed.

        Raises:
            ModelError: The model has no such initializer, or its shape differs.
        """
        changed = []
        for name, parameter in self.parameters_by_initializer.items():
            old = model.initializer(name)
            new = to_numpy(parameter, old.dtype)
            if old.shape != new.shape or old.tobytes() != new.tobytes():
                model.set_initializer(name, new)
                changed.append(name)
        return changed

    def _start(self, plan: _Plan, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        missing = [name for name in plan.inputs if name not in feeds]
        if missing:
            raise DataError(
                f"expected the inputs {', '.join(plan.inputs)}, got {', '.join(feeds) or 'none'}",
                cure=f"feed {', '.join(missing)}",
            )
        device = self._anchor.device
        values = dict(plan.host)
        for name, key in plan.stored:
            values[name] = getattr(self, key)
        for name in plan.inputs:
            values[name] = feeds[name].to(device)
        return values

    def _plan(self, wanted: frozenset[str], watched: frozenset[str]) -> _Plan:
        key = wanted, watched
        if key not in self._plans:
            self._check_known(wanted | watched)
            self._plans[key] = self._make_plan(wanted, watched)
        return self._plans[key]

    def _check_known(self, names: frozenset[str]) -> None:
        program = self._program
        known = {name for step in program.steps for name in step.outputs}
        known.update(program.inputs, self._keys, program.host)
        for name in sorted(names - known):
            raise ModelError(f"has no value {name!r}", cure=nearest(name, sorted(known)[:200]))

    def _make_plan(self, wanted: frozenset[str], watched: frozenset[str]) -> _Plan:
        live = set(wanted | watched)
        steps: list[tuple[Step, tuple[str, ...]]] = []
        still_needed = set(wanted)
        for step in reversed(self._program.steps):
            if live.isdisjoint(step.outputs):
                continue
            touched = dict.fromkeys((*step.inputs, *step.outputs))
            dead = tuple(name for name in touched if name and name not in still_needed)
            steps.append((step, dead))
            live.update(step.inputs)
            still_needed.update(step.inputs)
        steps.reverse()
        program = self._program
        return _Plan(
            steps=steps,
            inputs=tuple(name for name in program.inputs if name in live),
            stored=tuple((name, key) for name, key in self._keys.items() if name in live),
            host={name: tensor for name, tensor in program.host.items() if name in live},
        )


_FROM_TORCH = (RuntimeError, TypeError, ValueError, IndexError)


def _run(step: Step, values: dict[str, Tensor], device: torch.device) -> None:
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
        shapes = ", ".join(
            "-" if t is None else f"{str(t.dtype).removeprefix('torch.')}{list(t.shape)}"
            for t in arguments
        )
        raise ModelError(
            f"cannot run on ({shapes}): {(str(error) or repr(error)).splitlines()[0]}",
            where=step.label,
            cure="check the shapes and types of the inputs",
        ) from error
    results = (result,) if isinstance(result, Tensor) else result
    for index, name in enumerate(step.outputs):
        if not name:
            continue
        if index >= len(results):
            raise ModelError(f"its output {name!r} has no torch translation", where=step.label)
        tensor = results[index]
        large_on_host = not on_host and tensor.numel() > HOST_LIMIT
        values[name] = tensor.to(device) if large_on_host else tensor


def _gather_on(device: torch.device, arguments: list[Tensor | None], host: frozenset[int]) -> None:
    """Bring the tensors of a step together: on the host only if all of them are there.

    torch takes scalars of the host beside tensors of a device, and inputs that are read as
    numbers are wanted on the host.
    """
    movable = [i for i, t in enumerate(arguments) if t is not None and i not in host]
    if all(arguments[i].device.type == "cpu" for i in movable):  # type: ignore[union-attr]
        return
    for i in movable:
        tensor = arguments[i]
        if tensor is not None and tensor.ndim > 0:
            arguments[i] = tensor.to(device)
