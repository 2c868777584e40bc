"""Static int8 quantization with QDQ pairs, placed so that the runtime fuses them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from pydantic import Field

from edgecompress.bias_correction import CorrectedLayer, output_shifts
from edgecompress.constraints import Int8Format
from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Change, Context, Pass
from edgecompress.model import Model
from edgecompress.numerics.affine import (
    Affine,
    IntegerRange,
    quantize,
    suit_biases,
    weight_scales,
)
from edgecompress.numerics.ranges import RangeMethod, choose_range
from edgecompress.qdq import QdqWriter
from edgecompress.qdq_plan import Layer, Placement, label, place
from edgecompress.quantized_form import quantized_form
from edgecompress.sharding import collect_sharded
from edgecompress.statistics import Statistics

__all__ = ["Quantize"]


@dataclass(frozen=True, kw_only=True)
class Quantize(Pass):
    """Static int8: weights per channel and symmetric, activations per tensor.

    ::

        x -> Conv -> Relu -> y
        x -> Q -> DQ -> Conv(DQ(int8 weight), DQ(int32 bias)) -> Relu -> Q -> DQ -> y

    Number formats come from the target (U8S8 on x86, S8S8 on ARM). Ranges of activations are
    computed in torch on the calibration rows, in constant memory.

    Attributes:
        method: How activation ranges are chosen: ``minmax``, ``percentile``, ``entropy`` (least
            KL divergence) or ``mse`` (least squared error of clipping and rounding).
        percentile: Share of the values that ``percentile`` keeps, in percent.
        weight_method: How weight scales are chosen: ``mse`` or ``minmax``.
        per_channel: A weight scale for each output channel; default: what the target takes.
        bias_correction: Shift biases so that each layer's mean output stays that of the float
            model.
        bias_rows: Calibration rows that the shift is measured on, about.
    """

    name: ClassVar[str] = "quantize"
    needs: ClassVar[Literal["nothing", "data"]] = "data"
    compresses: ClassVar[frozenset[str]] = frozenset({"Conv", "Gemm", "MatMul"})

    method: RangeMethod = "mse"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.999
    weight_method: Literal["mse", "minmax"] = "mse"
    per_channel: bool | None = None
    bias_correction: bool = True
    bias_rows: Annotated[int, Field(ge=1)] = 64

    def run(self, model: Model, context: Context) -> Applied:
        """Quantize every linear layer and join that the target runs on integers.

        Raises:
            PassError: The target has no integer kernels, the opset is too old, or the model is
                quantized already.
        """
        int8 = context.constraints.int8
        if int8 is None:
            raise PassError(
                "the target has no int8 kernels for ONNX Q/DQ graphs",
                where="pass 'quantize'",
                cure="`edgecompress targets` shows which targets take int8; leave the pass out",
            )
        if model.opset < 13:
            raise PassError(
                f"needs opset 13 or newer for per-channel scales, the model has {model.opset}",
                where="pass 'quantize'",
                cure="put the pass 'cleanup' in front: it converts old opsets",
            )
        placement = place(
            model,
            self.for_node,
            context.constraints.int8_ops,
            drop_activations=not int8.activation_symmetric,
        )
        if not placement.layers:
            _refuse_quantized(model)
            return Applied(model=model, skipped=tuple(placement.skipped))
        assert context.calibration is not None  # run_pass has seen to it
        resources = context.resources
        statistics = collect_sharded(
            model,
            context.calibration,
            placement.measured,
            jobs=resources.jobs,
            engine=resources.engine,
            memory=resources.memory,
            scratch=resources.scratch,
            progress=context.progress,
        )
        affines = self._activation_parameters(placement, statistics, int8)
        quantized = self._edit(model.clone(self.name), placement, affines, int8)
        self._correct_biases(model, quantized, context)
        return Applied(
            model=quantized.model,
            changed=tuple(quantized.changed),
            skipped=tuple(placement.skipped),
            claimed=tuple(layer.output for layer in quantized.layers),
            notes=self._notes(placement, int8),
        )

    def _activation_parameters(
        self, placement: Placement, statistics: Statistics, int8: Int8Format
    ) -> dict[str, Affine]:
        integers = IntegerRange.of(int8.activation, symmetric=int8.activation_symmetric)
        affines = {}
        for name in placement.measured:
            seen, options = statistics[name], placement.options[name]
            assert isinstance(options, Quantize)
            low, high = choose_range(
                options.method,
                seen.histogram,
                seen.low,
                seen.high,
                integers,
                percentile=options.percentile,
                symmetric=int8.activation_symmetric,
            )
            affines[name] = Affine.from_range(
                low, high, integers, symmetric=int8.activation_symmetric
            )
        for name, source in placement.shared.items():
            affines[name] = affines[source]
        return affines

    def _edit(
        self,
        model: Model,
        placement: Placement,
        affines: Mapping[str, Affine],
        int8: Int8Format,
    ) -> _Quantized:
        graph = model.ir.graph
        nodes = {n.outputs[0].name: n for n in graph}
        order = {label(n): position for position, n in enumerate(graph)}
        writer = QdqWriter(graph)
        result = _Quantized(model)
        for same_weight in _by_weight(placement.layers):
            users = [(nodes[layer.output], layer) for layer in same_weight]
            self._quantize_weight(writer, users, affines, int8, result)
        values = {v.name: v for v in (*graph.inputs, *(o for n in graph for o in n.outputs))}
        for name in (*placement.measured, *placement.shared):
            writer.activation(values[name], affines[name], int8.activation)
        writer.pads_on_integers()
        for layer in result.layers:
            layer.output = nodes[layer.source].outputs[0].name or ""
        for join in placement.joins:
            result.changed.append(Change(join.node, join.op, f"{int8.activation} in and out"))
        result.changed.sort(key=lambda change: order[change.node])
        return result

    def _correct_biases(self, model: Model, quantized: _Quantized, context: Context) -> None:
        layers = {layer.source: layer for layer in quantized.layers if layer.correct}
        if not layers:
            return
        assert context.calibration is not None  # run_pass has seen to it
        shifts = output_shifts(
            model,
            quantized.model,
            [CorrectedLayer(n, layer.output, layer.channel_dim) for n, layer in layers.items()],
            context.calibration,
            rows=self.bias_rows,
            device=context.device,
            memory=context.resources.memory,
            scratch=context.resources.scratch,
            progress=context.progress,
        )
        for name, shift in shifts.items():
            layer = layers[name]
            bias = torch.from_numpy(np.array(quantized.model.initializer(layer.bias)))
            moved = bias.double() + shift.cpu() / layer.bias_steps.double()
            moved = torch.round(moved).clamp(-(2**31), 2**31 - 1)
            quantized.model.set_initializer(layer.bias, moved.to(torch.int32).numpy())

    def _notes(self, placement: Placement, int8: Int8Format) -> dict[str, Any]:
        return {
            "format": f"{int8.activation} activations, {int8.weight} weights"
            + (" per channel" if self._per_channel(int8) else " per tensor"),
            "layers": len(placement.layers),
            "activations": len(placement.measured),
        }

    def _per_channel(self, int8: Int8Format) -> bool:
        return int8.per_channel if self.per_channel is None else self.per_channel

    def _quantize_weight(
        self,
        writer: QdqWriter,
        users: list[tuple[ir.Node, Layer]],
        affines: Mapping[str, Affine],
        int8: Int8Format,
        result: _Quantized,
    ) -> None:
        """Store one weight, and the biases of all layers that use it, as integers."""
        node, layer = users[0]
        options = self.for_node(node)
        assert options is not None  # the placement holds no others
        weight = node.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        array = torch.from_numpy(np.array(weight.const_value.numpy()))
        per_channel = options._per_channel(int8)
        rows = array.movedim(layer.channel_axis, 0).flatten(1)
        integers = IntegerRange.of("int8", int8.weight_bits, symmetric=True)
        scales = weight_scales(
            rows if per_channel else rows.reshape(1, -1), integers, method=options.weight_method
        )
        biases = [(_bias(user), affines[of.input].scale) for user, of in users]
        scales = suit_biases(scales, rows.abs().amax(1), biases)
        shape = [1] * array.dim()
        shape[layer.channel_axis] = -1 if per_channel else 1
        whole = quantize(array, scales.reshape(shape), 0, integers).to(torch.int8).numpy()
        axis = layer.channel_axis if per_channel else None
        bytes_before = weight.const_value.nbytes
        writer.weight(weight, [(n, 1) for n, _ in users], whole, _stored(scales, axis), axis)
        for user, of in users:
            wishes = self.for_node(user)
            correct = wishes is not None and wishes.bias_correction and of.op != "MatMul"
            if correct:
                _ensure_bias(writer, user, len(rows))
            stored = _QuantizedLayer(of.output, 1 if of.op == "Conv" else -1, correct)
            before, after = _quantize_bias(writer, user, scales, affines[of.input], axis, stored)
            what = f"{int8.activation} x int8, {options.method}"
            after += whole.nbytes + scales.numel() * 4
            result.layers.append(stored)
            result.changed.append(Change(of.node, of.op, what, bytes_before + before, after))
            bytes_before = 0  # a shared weight is counted once


@dataclass
class _QuantizedLayer:
    """A layer of the quantized graph, and where its bias lies."""

    source: str
    channel_dim: int
    correct: bool
    output: str = ""
    bias: str = ""
    bias_steps: torch.Tensor = field(default_factory=lambda: torch.ones(()))


@dataclass
class _Quantized:
    model: Model
    layers: list[_QuantizedLayer] = field(default_factory=list)
    changed: list[Change] = field(default_factory=list)


def _by_weight(layers: list[Layer]) -> list[list[Layer]]:
    """Layers grouped by the weight, and the reading of it, that they share."""
    groups: dict[tuple[str, int], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((layer.weight, layer.channel_axis), []).append(layer)
    return list(groups.values())


def _bias(node: ir.Node) -> torch.Tensor | None:
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.const_value is None:
        return None
    return torch.from_numpy(np.array(bias.const_value.numpy()))


def _stored(scales: torch.Tensor, axis: int | None) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = scales.numpy()
    return array if axis is not None else array.reshape(())


def _ensure_bias(writer: QdqWriter, node: ir.Node, channels: int) -> None:
    """Give a layer without bias one of zeros, so that there is something to correct."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        return
    zeros = writer.initializer(f"{node.outputs[0].name}_bias", np.zeros(channels, np.float32))
    node.resize_inputs(3)
    node.replace_input_with(2, zeros)


def _quantize_bias(
    writer: QdqWriter,
    node: ir.Node,
    scales: torch.Tensor,
    activation: Affine,
    axis: int | None,
    layer: _QuantizedLayer,
) -> tuple[int, int]:
    """Store the bias in steps of input scale x weight scale; returns bytes before and after."""
    bias, value = _bias(node), node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or value is None:
        return 0, 0
    steps = (scales.double() * activation.scale).float()
    whole = torch.round(bias.double() / steps.double()).to(torch.int32).numpy()
    bias_axis = None if axis is None else 0
    layer.bias = writer.weight(value, [(node, 2)], whole, _stored(steps, axis), bias_axis)
    layer.bias_steps = steps
    return bias.numel() * 4, whole.nbytes + steps.numel() * 4


def _refuse_quantized(model: Model) -> None:
    """Say so where there is nothing to do since it was done before."""
    form = quantized_form(model)
    if form is not None and form.kinds:
        raise PassError(
            f"the model is quantized already: {form}",
            where="pass 'quantize'",
            cure="start from the float model, or leave the pass out",
        )
