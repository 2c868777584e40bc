"""Factors in the graph: a layer becomes two or three nodes of its kind.

::

    x -> MatMul(W) -> y              becomes
    x -> MatMul(R) -> h -> MatMul(L) -> y
    x -> Gemm(W, c) -> y             becomes
    x -> MatMul(R) -> h -> Gemm(L, c) -> y
    x -> Conv(W, b) -> y             becomes
    x -> Conv(V0) -> h0 [-> Conv(V1) -> h1] -> Conv(V2, b) -> y

The last node is the old one: its name, its output and its bias stay, and so do ``alpha``, ``beta``
and ``transB``. Along each spatial axis, strides, pads and dilations go to the first convolution
whose kernel is as long as the old one: for 1x1 the first of the two, which then computes no place
that a stride would drop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.factorization.layers import bias_place
from edgecompress.factorization.parts import Layer, Split
from edgecompress.model import Model
from edgecompress.qdq import QdqWriter
from edgecompress.weights.external_data import read

__all__ = ["Keep", "Written", "write_bias", "write_shared", "write_split"]

Keep = Callable[[ir.TensorProtocol], ir.TensorProtocol]
"""Where a new weight is kept, such as :meth:`~edgecompress.weights.spool.WeightSpool.keep`."""

Array = npt.NDArray[Any]
Attributes = dict[str, int | str | tuple[int, ...]]

_WINDOW = ("kernel_shape", "strides", "dilations", "pads", "auto_pad", "group")


@dataclass(frozen=True)
class Written:
    """What became of a layer.

    Attributes:
        outputs: Of the nodes that stand for it, in their order; the last is the layer's own.
        bytes_before: Of the initializers that are gone or have other values now.
        bytes_after: Of those that came instead.
    """

    outputs: tuple[str, ...]
    bytes_before: int
    bytes_after: int


def write_split(model: Model, layer: Layer, split: Split, keep: Keep | None = None) -> Written:
    """Put factors in the place of a layer's weight, in place.

    Args:
        model: The model, without functions of its own.
        layer: One of its layers, as :func:`~edgecompress.factorization.layers.find_layers` tells;
            nothing else reads its weight.
        split: The factors. Its ``shift`` is added as :func:`write_bias` does.
        keep: Where the factors are kept. Default: in memory.

    Raises:
        ModelError: The model has no such layer.
        OutputError: ``keep`` could not write.
    """
    return write_shared(model, [layer], split, keep)[0]


def write_shared(
    model: Model, layers: Sequence[Layer], split: Split, keep: Keep | None = None
) -> list[Written]:
    """Put factors in the place of the one weight that some layers read, in place.

    Args:
        model: The model, without functions of its own.
        layers: All that read the weight, in the same form; see
            :func:`~edgecompress.factorization.layers.sharing`.
        split: The factors, stored once. Its ``shift`` is added for each layer.
        keep: Where the factors are kept. Default: in memory.

    Returns:
        One for each layer; bytes are counted at the first.

    Raises:
        ModelError: The model has no such layers.
        OutputError: ``keep`` could not write.
    """
    graph = model.ir.graph
    maker = _Maker(graph, keep)
    old = graph.initializers.get(layers[0].weight)
    if old is None or old.dtype is None:
        raise ModelError(f"has no weight {layers[0].weight!r}", where=str(model.path or "model"))
    nodes = [_node(model, layer.output) for layer in layers]
    before = _held(graph)
    factors = [
        maker.initializer(f"{old.name}_lowrank_{i}", array.astype(old.dtype.numpy()))
        for i, array in enumerate(_stored(layers[0], split))
    ]
    outputs = []
    for node, layer in zip(nodes, layers, strict=True):
        outputs.append(_write_chain(maker, node, layer, factors))
        if split.shift is not None:
            _shift_bias(model, maker, layer, split.shift)
    if not old.uses() and not old.is_graph_output():
        del graph.initializers[layers[0].weight]
    after = _held(graph)
    first = Written(outputs[0], _lacking(before, after), _lacking(after, before))
    return [first, *(Written(names, 0, 0) for names in outputs[1:])]


def write_bias(model: Model, layer: Layer, shift: Tensor, keep: Keep | None = None) -> None:
    """Add to the bias of a layer, factorized or not, in place.

    A bias that others read, too, gets a copy of its own. A Gemm or Conv without one gets one.

    Args:
        model: The model, without functions of its own.
        layer: One of its layers.
        shift: [channels] of what weight and input multiply to; ``alpha`` of a Gemm scales it, too.
        keep: Where the new bias is kept. Default: in memory.

    Raises:
        ModelError: The model has no such layer, or the layer has no bias and can have none.
    """
    _shift_bias(model, _Maker(model.ir.graph, keep), layer, shift)


class _Maker(QdqWriter):
    """Names and initializers for one graph."""

    def __init__(self, graph: ir.Graph, keep: Keep | None) -> None:
        self.keep: Keep = keep or (lambda tensor: tensor)
        super().__init__(graph, self.keep)


def _node(model: Model, output: str) -> ir.Node:
    for node in model.ir.graph:
        if node.outputs[0].name == output:
            return node
    raise ModelError(f"no node computes {output!r}", where=str(model.path or "model"))


def _held(graph: ir.Graph) -> dict[int, ir.TensorProtocol]:
    """The tensors of a graph's initializers, by identity."""
    tensors = (value.const_value for value in graph.initializers.values())
    return {id(tensor): tensor for tensor in tensors if tensor is not None}


def _lacking(these: dict[int, ir.TensorProtocol], those: dict[int, ir.TensorProtocol]) -> int:
    """Bytes of these tensors that are not among those."""
    return sum(these[key].nbytes for key in these.keys() - those.keys())


def _stored(layer: Layer, split: Split) -> list[Array]:
    """The factors as the nodes read them, in the order of the data."""
    arrays = [weight.detach().cpu().numpy() for weight in split.weights]
    if split.kind != "matrix":
        return arrays
    right, left = arrays
    if layer.op != "Conv":
        return [_whole(right[0].T), _whole(left[0].T if layer.form.transposed else left[0])]
    rank, ones = right.shape[1], [1] * len(layer.kernel)
    depth = layer.form.shape[1:]
    return [right.reshape(-1, *depth), left.reshape(-1, rank, *ones)]


def _whole(array: Array) -> Array:
    return np.ascontiguousarray(array)


def _write_chain(
    maker: _Maker, last: ir.Node, layer: Layer, factors: Sequence[ir.Value]
) -> tuple[str, ...]:
    """Put new nodes before a layer's, and let it read them; gives the names of all outputs."""
    graph, y = last.graph, last.outputs[0]
    assert isinstance(graph, ir.Graph)
    windows = _windows(layer, factors)
    op = "Conv" if layer.op == "Conv" else "MatMul"
    flow, outputs = last.inputs[0], []
    for i, factor in enumerate(factors[:-1]):
        value = ir.Value(
            name=maker.unique(f"{y.name}_lowrank_{i}"),
            type=None if factor.dtype is None else ir.TensorType(factor.dtype),
            shape=_shape(layer, last, factors, i),
        )
        name = maker.unique(f"{last.name or y.name}_lowrank_{i}")
        node = ir.node(op, [flow, factor], windows[i], outputs=[value], name=name)
        graph.insert_before(last, node)
        flow = value
        outputs.append(value.name or "")
    last.replace_input_with(0, flow)
    last.replace_input_with(1, factors[-1])
    if layer.op == "Conv":
        for key in _WINDOW:
            last.attributes.pop(key, None)
        for attribute in ir.convenience.convert_attributes(windows[-1]):
            last.attributes.add(attribute)
    return (*outputs, layer.output)


def _sizes(factors: Sequence[ir.Value]) -> list[tuple[int, ...]]:
    return [tuple(f.const_value.shape.numpy()) for f in factors if f.const_value is not None]


def _owners(layer: Layer, sizes: Sequence[Sequence[int]]) -> list[int]:
    """For each spatial axis: the convolution that moves a window along it."""
    axes = enumerate(layer.kernel, start=2)
    return [next(i for i, s in enumerate(sizes) if s[axis] == length) for axis, length in axes]


def _windows(layer: Layer, factors: Sequence[ir.Value]) -> list[Attributes]:
    """Attributes of each convolution; none for products of matrices."""
    sizes = _sizes(factors)
    given = dict(layer.form.attributes or ())
    if layer.op != "Conv":
        return [{} for _ in sizes]
    owners, ones = _owners(layer, sizes), (1,) * len(layer.kernel)
    strides, dilations = given["strides"] or ones, given["dilations"] or ones
    pads = given["pads"] or (0,) * (2 * len(ones))
    channels = layer.groups * layer.form.shape[1]
    made = []
    for i, size in enumerate(sizes):
        own = [owner == i for owner in owners]
        window: Attributes = {
            "kernel_shape": size[2:],
            "strides": _along(own, strides, 1),
            "dilations": _along(own, dilations, 1),
            "group": channels // size[1],
        }
        if given["auto_pad"] == "NOTSET":
            window["pads"] = _along(own * 2, pads, 0)
        else:  # a kernel of 1 with a stride of 1 is never padded
            window["auto_pad"] = given["auto_pad"]
        made.append(window)
        channels = size[0]
    return made


def _along(own: Sequence[bool], values: Sequence[int], otherwise: int) -> tuple[int, ...]:
    return tuple(v if mine else otherwise for mine, v in zip(own, values, strict=True))


def _shape(layer: Layer, last: ir.Node, factors: Sequence[ir.Value], i: int) -> ir.Shape | None:
    """Of the output of the i-th node, as far as those of the layer's input and output tell."""
    x, y = last.inputs[0], last.outputs[0]
    sizes = _sizes(factors)
    if y.shape is None:
        return None
    if layer.op != "Conv":
        return ir.Shape([*list(y.shape)[:-1], sizes[i][1]])
    if x is None or x.shape is None:
        return None
    spatial = [
        y.shape[axis] if owner <= i else x.shape[axis]
        for axis, owner in enumerate(_owners(layer, sizes), start=2)
    ]
    return ir.Shape([y.shape[0], sizes[i][0], *spatial])


def _shift_bias(model: Model, maker: _Maker, layer: Layer, shift: Tensor) -> None:
    node = _node(model, layer.output)
    added = shift.detach().cpu().numpy().astype(np.float64).reshape(-1)
    if node.op_type == "Gemm":
        added = added * node.attributes.get_float("alpha", 1.0)
    place = bias_place(node, len(added))
    if place is None:
        _new_bias(model, maker, node, layer, added)
        return
    reader, position = place
    bias = reader.inputs[position]
    assert bias is not None  # bias_place has seen to it
    assert bias.const_value is not None
    if node.op_type == "Gemm":
        added = added / node.attributes.get_float("beta", 1.0)
    old = read(bias.const_value)
    array = (old.astype(np.float64) + added).astype(old.dtype)
    if len(bias.uses()) == 1 and not bias.is_graph_output():
        bias.const_value = maker.keep(ir.tensor(array, name=bias.name))
        bias.shape = ir.Shape(array.shape)
    else:
        reader.replace_input_with(position, maker.initializer(f"{layer.weight}_bias", array))


def _new_bias(model: Model, maker: _Maker, node: ir.Node, layer: Layer, added: Array) -> None:
    """Give a layer a bias that has none."""
    weight, held = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    ignored = node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) == 0.0
    if node.op_type == "MatMul" or (held is not None and not ignored):
        raise ModelError(
            f"{node.name or layer.output!r} ({node.op_type}) has no constant bias to add to",
            where=str(model.path or "model"),
        )
    assert weight is not None  # it is the last factor
    assert weight.dtype is not None
    node.resize_inputs(3)
    array = added.astype(weight.dtype.numpy())
    node.replace_input_with(2, maker.initializer(f"{layer.weight}_bias", array))
    node.attributes.pop("beta", None)
