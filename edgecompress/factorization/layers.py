"""Which layers of a graph have a weight that could be factorized, and why others have not.

Candidates are MatMul, Gemm and Conv of the main graph. A layer is taken where its weight is a
constant that nothing but such layers reads, so that it is gone once they are factorized.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from edgecompress.factorization.parts import Layer
from edgecompress.graph_pass import Skip
from edgecompress.layer_matrix import layer_matrix
from edgecompress.model import DEFAULT_DOMAINS, Model
from edgecompress.qdq_rules import label, name_of
from edgecompress.rewrite import quiet

__all__ = ["bias_place", "find_layers", "sharing"]

_OPS = ("MatMul", "Gemm", "Conv")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)

Shapes = dict[str, ir.Shape | None]


def find_layers(model: Model, wanted: Callable[[ir.Node], bool]) -> tuple[list[Layer], list[Skip]]:
    """The layers whose weights could be factorized, and the candidates that have to stay.

    Multiply-accumulates of a layer are those of one row of the model's inputs: rows times columns
    of its matrix, for each place of its output. Lengths that are free count as 1, so that they are
    those of one token of a language model.

    Args:
        model: The float model, without functions of its own; it is not changed.
        wanted: Whether the recipe wants a node factorized.

    Returns:
        Both in graph order; candidates inside bodies of ``If`` and loops come last.
    """
    graph = model.ir.graph
    found: dict[ir.Node, Layer] = {}
    refused: dict[ir.Node, str] = {}
    candidates = [node for node in graph if _is_candidate(node)]
    shapes = _shapes(model, candidates)
    rows = _rows(graph)
    for node in candidates:
        reason = _why_not(node) if wanted(node) else "left out by the recipe"
        layer = None if reason else _layer(node, shapes, rows)
        if layer is None:
            refused[node] = reason
        elif layer.groups * (layer.rows + layer.columns) >= layer.parameters:
            refused[node] = (
                f"its weight of {layer.parameters:,} numbers is so small that factors of rank 1 "
                "would save nothing"
            )
        else:
            found[node] = layer
    for node in list(found):
        if reason := _why_read_elsewhere(node, found):
            refused[node] = reason
    skipped = [Skip(label(n), n.op_type, refused[n]) for n in candidates if n in refused]
    layers = [layer for node, layer in found.items() if node not in refused]
    return layers, [*skipped, *_in_bodies(graph)]


def sharing(layers: Iterable[Layer]) -> dict[str, list[Layer]]:
    """Weights that several of some layers read, with those layers in their order."""
    users: dict[str, list[Layer]] = {}
    for layer in layers:
        users.setdefault(layer.weight, []).append(layer)
    return {weight: several for weight, several in users.items() if len(several) > 1}


def bias_place(node: ir.Node, channels: int) -> tuple[ir.Node, int] | None:
    """Where the constant bias of a layer comes in; None where there is none.

    Args:
        node: A MatMul, Gemm or Conv.
        channels: Of its output.

    Returns:
        The node that reads the bias, which is an Add for a MatMul, and the input's position.
    """
    if node.op_type == "MatMul":
        place = _add_behind(node.outputs[0])
    else:
        unused = node.op_type == "Gemm" and node.attributes.get_float("beta", 1.0) == 0.0
        place = (node, 2) if len(node.inputs) > 2 and not unused else None
    value = None if place is None else place[0].inputs[place[1]]
    if value is None or not _is_constant(value) or value.const_value is None:
        return None
    *others, last = (1, *value.const_value.shape.numpy())
    one = node.op_type == "Gemm" and last == 1
    return place if math.prod(others) == 1 and (last == channels or one) else None


def _add_behind(value: ir.Value) -> tuple[ir.Node, int] | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    add = uses[0].node
    producer = value.producer()
    beside = producer is not None and add.graph is producer.graph
    if add.op_type != "Add" or add.domain not in DEFAULT_DOMAINS or not beside:
        return None
    return add, 1 - uses[0].idx


def _is_candidate(node: ir.Node) -> bool:
    return node.op_type in _OPS and node.domain in DEFAULT_DOMAINS


def _is_constant(value: ir.Value) -> bool:
    return ir.convenience.get_const_tensor(value) is not None and not value.is_graph_input()


def _layer(node: ir.Node, shapes: Shapes, rows: int) -> Layer:
    x, weight, y = node.inputs[0], node.inputs[1], node.outputs[0]
    assert weight is not None  # _why_not has seen to it
    assert weight.const_value is not None
    form = layer_matrix(node, tuple(int(n) for n in weight.const_value.shape.numpy()))
    assert form is not None
    channels = form.shape[1 if form.transposed else 0]
    before, after = (_dims(shapes.get(name_of(value))) for value in (x, y))
    axis = 1 if node.op_type == "Conv" else len(after) - 1
    places = math.prod(n or 1 for at, n in enumerate(after) if at != axis) / rows
    lengths = _known(before[2:]), _known(after[2:])
    windowed = node.op_type == "Conv" and lengths[0] and lengths[1]
    return Layer(
        output=name_of(y),
        node=label(node),
        op=node.op_type,
        input=name_of(x),
        weight=name_of(weight),
        form=form,
        bias=bias_place(node, channels) is not None,
        macs=math.prod(form.shape) * places,
        lengths=lengths if windowed else ((), ()),
    )


def _dims(shape: ir.Shape | None) -> list[int | None]:
    return [] if shape is None else [n if isinstance(n, int) else None for n in shape]


def _known(dims: Iterable[int | None]) -> tuple[int, ...]:
    """The dimensions where all are numbers, else ()."""
    listed = list(dims)
    known = tuple(n for n in listed if n is not None)
    return known if len(known) == len(listed) else ()


def _rows(graph: ir.Graph) -> int:
    """Rows of one run, where their number is fixed: the first dimension of the first input."""
    first = next((v for v in graph.inputs if not v.is_initializer()), None)
    dims = _dims(None if first is None else first.shape)
    return (dims[0] or 1) if len(dims) > 1 else 1


def _shapes(model: Model, candidates: Iterable[ir.Node]) -> Shapes:
    """Shapes of what candidates read and compute, from a copy where the graph does not know."""
    values = {
        name_of(value): value
        for node in candidates
        for value in (node.inputs[0], node.outputs[0])
        if value is not None
    }
    if any(value.shape is None for value in values.values()):
        copy = model.clone().ir
        with quiet():
            ShapeInferencePass(check_type=False, strict_mode=False)(copy)
        everywhere = {name_of(v): v for node in copy.graph for v in node.outputs}
        values = {name: everywhere.get(name, value) for name, value in values.items()}
    return {name: value.shape for name, value in values.items()}


def _why_not(node: ir.Node) -> str:
    """Why a node cannot be factorized, whoever else reads its weight; empty where it can."""
    x, weight = node.inputs[0], node.inputs[1]
    if x is None or weight is None:
        return "an input is missing"
    if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0:
        return "it has transA: its input comes transposed"
    if node.op_type == "Gemm" and node.attributes.get_float("alpha", 1.0) == 0.0:
        return "its alpha is 0: it uses nothing of its weight"
    if node.op_type == "MatMul" and _is_constant(x) and not _is_constant(weight):
        return "its weight comes first (W @ x); only weights behind the activation are factorized"
    return _why_not_weight(node, x, weight) or _why_not_form(node, weight)


def _why_not_weight(node: ir.Node, x: ir.Value, weight: ir.Value) -> str:
    producer = weight.producer()
    if producer is not None:
        return _why_not_made(producer)
    if weight.is_graph_input():
        given = weight.is_initializer()
        return (
            "its weight is an input of the model, too; put the pass 'cleanup' in front"
            if given
            else "its second input is an input of the model, not a constant weight"
        )
    if weight.const_value is None:
        return "its second input is computed outside of its graph"
    if _is_constant(x):
        return "its input is constant; put the pass 'cleanup' in front"
    if weight.is_graph_output():
        return "its weight is an output of the model, too"
    return ""


def _why_not_made(producer: ir.Node) -> str:
    """Why a weight that a node gives is not taken."""
    op, first = producer.op_type, producer.inputs[0] if producer.inputs else None
    constant = first is not None and first.const_value is not None
    if op == "DequantizeLinear":
        return "its weight is quantized already"
    if op == "Constant":
        return "its weight is a Constant node; put the pass 'cleanup' in front"
    if op == "Transpose" and constant and first is not None:
        if any(use.node.op_type == "Gather" for use in first.uses()):
            return _tied(name_of(first))
        return "its weight comes through a Transpose; put the pass 'cleanup' in front"
    return f"its second input is computed by {op}, not a constant weight"


def _tied(table: str) -> str:
    return f"its weight is the table {table!r}, which is looked up, too: it has to stay whole"


def _why_not_form(node: ir.Node, weight: ir.Value) -> str:
    assert weight.const_value is not None  # _why_not_weight has seen to it
    kind, shape = weight.const_value.dtype, weight.const_value.shape.numpy()
    if kind not in _FLOATS:
        return f"its weight is {kind.name.lower()}; factors are float32, float16 or double"
    if node.op_type != "Conv":
        return "" if len(shape) == 2 else f"its weight has {len(shape)} axes; expected a matrix"
    if node.attributes.get_int("group", 1) > 1 and shape[1] == 1:
        return "one input channel in a group: nothing to factorize"
    return ""


def _why_read_elsewhere(node: ir.Node, found: dict[ir.Node, Layer]) -> str:
    """Why a weight would have to stay for its other readers; empty where it would not."""
    weight = node.inputs[1]
    assert weight is not None
    for use in weight.uses():
        other = found.get(use.node)
        reader = f"{label(use.node)!r} ({use.node.op_type})"
        if use.node.op_type == "Gather":
            return _tied(name_of(weight))
        if other is None or use.idx != 1:
            return f"its weight is read by {reader}, too, which stays as it is"
        if other.form != found[node].form:
            return f"its weight is read by {reader}, too, in another form"
    return ""


def _in_bodies(graph: ir.Graph) -> Iterator[Skip]:
    for body in graph.subgraphs():
        for node in body:
            weight = node.inputs[1] if _is_candidate(node) else None
            if weight is not None and _is_constant(weight):
                reason = "it lies inside the body of an If or a loop"
                yield Skip(label(node), node.op_type, reason)
