"""TorchGraph: an ONNX graph, or a slice of one, as a differentiable torch module."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import onnx_ir as ir
import torch
from torch import Tensor, nn

from edgecompress.errors import DataError, ModelError, nearest
from edgecompress.model import Model
from edgecompress.torchgraph.execution import Observer, Schedule, execute, placed, schedule
from edgecompress.torchgraph.program import Origin, Program, read
from edgecompress.torchgraph.values import to_numpy

__all__ = ["TorchGraph", "to_torch"]


def to_torch(
    model: Model,
    nodes: Sequence[ir.Node] | None = None,
    *,
    outputs: Sequence[str] | None = None,
    device: str | torch.device = "cpu",
) -> TorchGraph:
    """Turn a graph, or a slice of it, into a torch module that computes the same.

    Float initializers of rank >= 1 become parameters, those of sub-graphs too; those that are only
    running statistics become buffers, and scalars and everything read as a shape, axis or bound
    stay fixed numbers. Parameters own their memory, so training never writes into the model behind
    its back; see :meth:`TorchGraph.write_back`. Model-local functions are inlined. The gradient of
    a quantized value that is dequantized again is the straight-through one.

    Args:
        model: The graph.
        nodes: A slice of the main graph in topological order; None takes all of it. What their
            sub-graphs read of the outer graph is fed like any other input of the slice.
        outputs: Values to compute: nodes that none of them needs are left out, whether they have a
            translation or not. Default: the graph's outputs, or for a slice the values used
            outside of it.
        device: Where parameters and computation live. Shape arithmetic stays on the host.

    Raises:
        UnsupportedOperatorError: Some operators have no translation; it names all of them.
        ModelError: A constant or an attribute cannot be read, or an output does not exist.
    """
    if nodes is None:
        model = model.inlined()
    return TorchGraph(read(model, nodes, outputs)).to(device)


def _subgraph(model: Model, origin: Origin) -> Model:
    """The sub-graph in which an initializer lies, as a model that shares it."""
    graph = model.ir.graph
    for output, attribute in origin[0]:
        node = next((node for node in graph if node.outputs[0].name == output), None)
        if node is None or attribute not in node.attributes:
            raise ModelError(
                f"has no initializer {origin[1]!r} in {attribute} of the node of {output!r}",
                where=str(model.path or "model"),
            )
        graph = node.attributes[attribute].as_graph()
    return Model(ir.Model(graph, ir_version=model.ir.ir_version), path=model.path)


class _Plan(NamedTuple):
    """What has to run for a set of wanted values, and where its inputs lie."""

    schedule: Schedule
    inputs: tuple[str, ...]
    stored: tuple[tuple[str, str], ...]
    host: dict[str, Tensor]


class TorchGraph(nn.Module):
    """Interprets the nodes in order; made by :func:`to_torch`.

    Each value is freed after its last use, so the peak memory is that of the live set. A value is
    a tensor; an ONNX sequence is a list of tensors, and an empty optional is None.
    """

    _anchor: Tensor

    def __init__(self, program: Program) -> None:
        super().__init__()
        self._program = program
        self._plans: dict[tuple[frozenset[str], frozenset[str], bool], _Plan] = {}
        # Names of ONNX values hold characters that torch forbids in names of parameters.
        self._keys: dict[str, str] = {}
        self.register_buffer("_anchor", torch.empty(0), persistent=False)
        constants = program.constants
        for name, tensor in constants.parameters.items():
            self.register_parameter(self._key(name), nn.Parameter(tensor))
        for name, tensor in constants.buffers.items():
            self.register_buffer(self._key(name), tensor, persistent=False)
        constants.parameters.clear()
        constants.buffers.clear()

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
        """Graph outputs, for a slice the values used outside of it, or those asked for."""
        return self._program.outputs

    @property
    def parameters_by_initializer(self) -> dict[str, nn.Parameter]:
        """Initializer name -> parameter; an initializer used twice is one parameter.

        Where a sub-graph's initializer bears a name that is taken, a number follows it.
        """
        found = ((name, self._parameters.get(key)) for name, key in self._keys.items())
        return {name: parameter for name, parameter in found if parameter is not None}

    def forward(
        self,
        feeds: Mapping[str, Any],
        *,
        observe: Observer | None = None,
        watch: Collection[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the outputs, running only the nodes that they and the watched values need.

        Args:
            feeds: Input name -> value; moved to the module's device. Other names are ignored.
            observe: Called with name and value of each watched value as soon as it exists, inputs
                first.
            watch: Names of the values to observe, of the main graph.
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
        device = self._program.place.device = self._anchor.device
        execute(plan.schedule.steps, values, device, observe, watched)
        return {name: values[name] for name in wanted}

    def write_back(self, model: Model) -> list[str]:
        """Write the parameters into the initializers of a model that they came from.

        Args:
            model: The model, or a clone of it; it keeps its element types.

        Returns:
            Names of the parameters whose values changed, as :attr:`parameters_by_initializer` has
            them.

        Raises:
            ModelError: The model has no such initializer, or its shape differs.
        """
        changed = []
        for name, parameter in self.parameters_by_initializer.items():
            origin = self._program.origins.get(name)
            holder = model if origin is None else _subgraph(model, origin)
            initializer = name if origin is None else origin[1]
            old = holder.initializer(initializer)
            new = to_numpy(parameter, old.dtype)
            if old.shape != new.shape or old.tobytes() != new.tobytes():
                holder.set_initializer(initializer, new)
                changed.append(name)
        return changed

    def _start(self, plan: _Plan, feeds: Mapping[str, Any]) -> dict[str, Any]:
        missing = [name for name in plan.inputs if name not in feeds]
        if missing:
            raise DataError(
                f"expected the inputs {', '.join(plan.inputs)}, got {', '.join(feeds) or 'none'}",
                cure=f"feed {', '.join(missing)}",
            )
        device = self._anchor.device
        values: dict[str, Any] = dict(plan.host)
        for name, key in plan.stored:
            values[name] = getattr(self, key)
        for name in plan.inputs:
            values[name] = placed(feeds[name], device)
        return values

    def _plan(self, wanted: frozenset[str], watched: frozenset[str]) -> _Plan:
        key = wanted, watched, torch.is_grad_enabled()
        if key not in self._plans:
            self._check_known(wanted | watched)
            self._plans[key] = self._make_plan(*key)
        return self._plans[key]

    def _check_known(self, names: frozenset[str]) -> None:
        program = self._program
        known = {name for step in program.steps for name in step.outputs}
        known.update(program.inputs, self._keys, program.constants.host)
        for name in sorted(names - known):
            raise ModelError(f"has no value {name!r}", cure=nearest(name, sorted(known)[:200]))

    def _make_plan(self, wanted: frozenset[str], watched: frozenset[str], gradients: bool) -> _Plan:
        program = self._program
        needs = schedule(program.steps, wanted, watched, gradients=gradients)
        live = needs.needed
        return _Plan(
            schedule=needs,
            inputs=tuple(name for name in program.inputs if name in live),
            stored=tuple((name, key) for name, key in self._keys.items() if name in live),
            host={name: held for name, held in program.constants.host.items() if name in live},
        )
