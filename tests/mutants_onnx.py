"""What is done to the structure of an ONNX model to see how its readers take it."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import onnx
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, helper

Mutator = Callable[[Random, ModelProto], bytes | None]

MUTATORS: dict[str, Mutator] = {}

NUMBERS = (0, 1, -1, 2, 7, -7, 65_537, 2**31 - 1, -(2**31), 2**40, 2**62, -(2**63), 2**63 - 1)
FLOATS = (0.0, -1.0, 1e-45, 3e38, float("nan"), float("inf"), float("-inf"))
WORDS = ("", " ", "x", "none", "\x00", "größe", "😀", "a" * 5000, "../x", "y\ny", "{0}", "%s")
OPERATORS = ("", "Add", "Conv", "MatMul", "Gemm", "If", "Loop", "Scan", "LSTM", "Reshape", "Concat",
             "Split", "Constant", "Cast", "QuantizeLinear", "DequantizeLinear", "Softmax", "Resize",
             "SequenceEmpty", "Optional", "StringNormalizer", "Identity", "Odd", "😀")  # fmt: skip
DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "my.own", "ai.onnx.training", "😀", " ")


def mutator(function: Mutator) -> Mutator:
    MUTATORS[function.__name__] = function
    return function


def nodes(model: ModelProto) -> list[NodeProto]:
    """All nodes, those of subgraphs and functions included."""
    found: list[NodeProto] = []

    def visit(those: list[NodeProto]) -> None:
        for node in those:
            found.append(node)
            for attribute in node.attribute:
                for graph in (attribute.g, *attribute.graphs):
                    visit(list(graph.node))

    visit(list(model.graph.node))
    for function in model.functions:
        visit(list(function.node))
    return found


def a_node(rng: Random, model: ModelProto) -> NodeProto:
    return rng.choice(nodes(model) or [model.graph.node.add()])


def an_initializer(rng: Random, model: ModelProto) -> TensorProto:
    return rng.choice(list(model.graph.initializer) or [model.graph.initializer.add()])


def an_attribute(rng: Random, model: ModelProto) -> AttributeProto:
    having = [attribute for node in nodes(model) for attribute in node.attribute]
    return rng.choice(having or [a_node(rng, model).attribute.add()])


def names(model: ModelProto) -> list[str]:
    graph = model.graph
    own = [name for node in nodes(model) for name in (*node.input, *node.output)]
    return [*own, *(t.name for t in graph.initializer), *(v.name for v in graph.input), "nobody"]


def put(rng: Random, those: object, value: object) -> None:
    """Replace one of several, or add the first."""
    if len(those):  # type: ignore[arg-type]
        those[rng.randrange(len(those))] = value  # type: ignore[arg-type, index]
    else:
        those.append(value)  # type: ignore[attr-defined]


def reorder(rng: Random, those: object, change: Callable[[list[object]], None]) -> None:
    """Change a repeated field of messages as if it were a list."""
    copies = [type(each).FromString(each.SerializeToString()) for each in those]  # type: ignore[attr-defined]
    change(copies)
    del those[:]  # type: ignore[attr-defined]
    those.extend(copies)  # type: ignore[attr-defined]


@mutator
def drop_node(rng: Random, model: ModelProto) -> None:
    if model.graph.node:
        del model.graph.node[rng.randrange(len(model.graph.node))]


@mutator
def drop_all_nodes(rng: Random, model: ModelProto) -> None:
    del model.graph.node[:]


@mutator
def duplicate_node(rng: Random, model: ModelProto) -> None:
    model.graph.node.append(a_node(rng, model))


@mutator
def shuffle_nodes(rng: Random, model: ModelProto) -> None:
    reorder(rng, model.graph.node, rng.shuffle)


@mutator
def dangling_input(rng: Random, model: ModelProto) -> None:
    put(rng, a_node(rng, model).input, "nobody")


@mutator
def other_input(rng: Random, model: ModelProto) -> None:
    put(rng, a_node(rng, model).input, rng.choice(names(model)))


@mutator
def cycle(rng: Random, model: ModelProto) -> None:
    node = a_node(rng, model)
    put(rng, node.input, rng.choice(list(node.output) or ["nobody"]))


@mutator
def empty_input(rng: Random, model: ModelProto) -> None:
    put(rng, a_node(rng, model).input, "")


@mutator
def drop_input_of_node(rng: Random, model: ModelProto) -> None:
    node = a_node(rng, model)
    if node.input:
        del node.input[rng.randrange(len(node.input))]


@mutator
def many_inputs(rng: Random, model: ModelProto) -> None:
    a_node(rng, model).input.extend(rng.choices(names(model), k=rng.choice((1, 3, 300))))


@mutator
def same_output(rng: Random, model: ModelProto) -> None:
    put(rng, a_node(rng, model).output, rng.choice(names(model)))


@mutator
def odd_output(rng: Random, model: ModelProto) -> None:
    put(rng, a_node(rng, model).output, rng.choice(WORDS))


@mutator
def drop_output_of_node(rng: Random, model: ModelProto) -> None:
    node = a_node(rng, model)
    if node.output:
        del node.output[rng.randrange(len(node.output))]


@mutator
def operator(rng: Random, model: ModelProto) -> None:
    a_node(rng, model).op_type = rng.choice(OPERATORS)


@mutator
def domain(rng: Random, model: ModelProto) -> None:
    a_node(rng, model).domain = name = rng.choice(DOMAINS)
    if rng.random() < 0.5:
        model.opset_import.append(helper.make_opsetid(name, rng.choice((0, 1, 3))))


@mutator
def same_node_names(rng: Random, model: ModelProto) -> None:
    for node in nodes(model):
        node.name = "same"


@mutator
def no_node_names(rng: Random, model: ModelProto) -> None:
    for node in nodes(model):
        node.name = ""


@mutator
def initializer_type(rng: Random, model: ModelProto) -> None:
    an_initializer(rng, model).data_type = rng.choice((*range(26), -1, 99, 2**31 - 1))


@mutator
def initializer_dims(rng: Random, model: ModelProto) -> None:
    tensor = an_initializer(rng, model)
    if rng.random() < 0.3:
        tensor.dims.append(rng.choice(NUMBERS))
    else:
        put(rng, tensor.dims, rng.choice(NUMBERS))


@mutator
def initializer_shape(rng: Random, model: ModelProto) -> None:
    """Another shape of as many elements, or none at all."""
    tensor = an_initializer(rng, model)
    dims = list(tensor.dims)
    change = rng.randrange(4)
    del tensor.dims[:]
    if change == 0:
        tensor.dims.extend(reversed(dims))
    elif change == 1:
        tensor.dims.extend([1, *dims])
    elif change == 2:
        tensor.dims.extend(dims + [1] * rng.choice((3, 70)))


@mutator
def raw_data(rng: Random, model: ModelProto) -> None:
    tensor = an_initializer(rng, model)
    raw = tensor.raw_data
    cut = rng.randrange(len(raw) + 1)
    tensor.raw_data = rng.choice((b"", raw[:cut], raw + b"\x00", raw + raw, raw[:-1]))


@mutator
def typed_data(rng: Random, model: ModelProto) -> None:
    """Values in a second field, beside or in place of the raw ones."""
    tensor = an_initializer(rng, model)
    if rng.random() < 0.5:
        tensor.ClearField("raw_data")
    rng.choice((tensor.float_data, tensor.double_data)).extend(FLOATS)
    rng.choice((tensor.int32_data, tensor.int64_data)).extend([0, 1, -1])


@mutator
def weights_not_finite(rng: Random, model: ModelProto) -> None:
    import numpy as np

    tensor = an_initializer(rng, model)
    if tensor.data_type == TensorProto.FLOAT and tensor.raw_data:
        values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 4 * 4], "<f4").copy()
        values[:: rng.choice((1, 7))] = rng.choice(FLOATS)
        tensor.raw_data = values.tobytes()


@mutator
def integer_values(rng: Random, model: ModelProto) -> None:
    """Shapes, axes and the like; not scalars, since one may tell how often a loop runs."""
    import numpy as np

    having = [
        t
        for t in model.graph.initializer
        if t.data_type == TensorProto.INT64 and t.dims and len(t.raw_data) >= 8
    ]
    for tensor in having[: rng.randrange(1, 3)]:
        values = np.frombuffer(tensor.raw_data[: len(tensor.raw_data) // 8 * 8], "<i8").copy()
        values[rng.randrange(len(values))] = rng.choice(NUMBERS)
        tensor.raw_data = values.tobytes()


@mutator
def string_tensor(rng: Random, model: ModelProto) -> None:
    tensor = an_initializer(rng, model)
    tensor.ClearField("raw_data")
    tensor.data_type = TensorProto.STRING
    tensor.string_data.extend([b"a", b"\xff", b""][: rng.randrange(4)])


@mutator
def drop_initializer(rng: Random, model: ModelProto) -> None:
    if model.graph.initializer:
        del model.graph.initializer[rng.randrange(len(model.graph.initializer))]


@mutator
def duplicate_initializer(rng: Random, model: ModelProto) -> None:
    model.graph.initializer.append(an_initializer(rng, model))


@mutator
def rename_initializer(rng: Random, model: ModelProto) -> None:
    an_initializer(rng, model).name = rng.choice((*WORDS, *names(model)))


@mutator
def initializer_as_input(rng: Random, model: ModelProto) -> None:
    tensor = an_initializer(rng, model)
    kind = rng.choice((tensor.data_type, TensorProto.FLOAT, TensorProto.STRING))
    model.graph.input.append(helper.make_tensor_value_info(tensor.name, kind, None))


@mutator
def sparse_initializer(rng: Random, model: ModelProto) -> None:
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(an_initializer(rng, model))
    sparse.dims.extend([rng.choice(NUMBERS)])


@mutator
def drop_graph_output(rng: Random, model: ModelProto) -> None:
    del model.graph.output[rng.randrange(len(model.graph.output) or 1) :]


@mutator
def add_graph_output(rng: Random, model: ModelProto) -> None:
    name = rng.choice(names(model))
    model.graph.output.append(helper.make_tensor_value_info(name, rng.randrange(17), ["N"]))


@mutator
def untyped_output(rng: Random, model: ModelProto) -> None:
    for value in model.graph.output:
        value.ClearField("type")


@mutator
def drop_graph_input(rng: Random, model: ModelProto) -> None:
    del model.graph.input[rng.randrange(len(model.graph.input) or 1) :]


@mutator
def input_type(rng: Random, model: ModelProto) -> None:
    for value in [*model.graph.input, *model.graph.output][: rng.randrange(1, 3)]:
        value.type.tensor_type.elem_type = rng.choice((*range(26), 99, -1))


@mutator
def input_dims(rng: Random, model: ModelProto) -> None:
    for value in rng.choice(
        ([*model.graph.input], [*model.graph.output], [*model.graph.value_info])
    ):
        shape = value.type.tensor_type.shape
        if shape.dim and rng.random() < 0.7:
            dim = rng.choice(list(shape.dim))
            if rng.random() < 0.3:
                dim.dim_param = rng.choice(WORDS)
            else:
                dim.dim_value = rng.choice(NUMBERS)
        else:
            shape.dim.add().dim_value = rng.choice(NUMBERS)


@mutator
def input_without_shape(rng: Random, model: ModelProto) -> None:
    for value in model.graph.input:
        value.type.tensor_type.ClearField("shape")


@mutator
def input_of_other_kind(rng: Random, model: ModelProto) -> None:
    """A sequence, an optional, a sparse tensor, or nothing."""
    for value in list(model.graph.input)[:1]:
        old = onnx.TypeProto()
        old.CopyFrom(value.type)
        value.ClearField("type")
        choice = rng.randrange(4)
        if choice == 0:
            value.type.sequence_type.elem_type.CopyFrom(old)
        elif choice == 1:
            value.type.optional_type.elem_type.CopyFrom(old)
        elif choice == 2:
            value.type.sparse_tensor_type.elem_type = 1


@mutator
def opset(rng: Random, model: ModelProto) -> None:
    change = rng.randrange(3)
    if change == 0:
        del model.opset_import[:]
    elif change == 1:
        model.opset_import.append(helper.make_opsetid(rng.choice(DOMAINS), rng.choice((0, 5))))
    for each in model.opset_import:
        each.version = rng.choice((0, 1, 5, 7, 11, 13, 17, 23, 26, 27, 999, -1, 2**62))


@mutator
def ir_version(rng: Random, model: ModelProto) -> None:
    model.ir_version = rng.choice((0, 1, 3, 8, 99, -1, 2**62))


@mutator
def attribute_drop(rng: Random, model: ModelProto) -> None:
    node = rng.choice([n for n in nodes(model) if n.attribute] or [a_node(rng, model)])
    if node.attribute:
        del node.attribute[rng.randrange(len(node.attribute))]


@mutator
def attribute_kind(rng: Random, model: ModelProto) -> None:
    an_attribute(rng, model).type = rng.randrange(15)  # type: ignore[assignment]


@mutator
def attribute_name(rng: Random, model: ModelProto) -> None:
    an_attribute(rng, model).name = rng.choice((*WORDS, "axis", "perm", "body", "to", "pads"))


@mutator
def attribute_value(rng: Random, model: ModelProto) -> None:
    attribute = an_attribute(rng, model)
    if attribute.type == AttributeProto.INTS:
        if rng.random() < 0.3:
            del attribute.ints[:]
        put(rng, attribute.ints, rng.choice(NUMBERS))
    elif attribute.type == AttributeProto.INT:
        attribute.i = rng.choice(NUMBERS)
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = rng.choice(FLOATS)
    elif attribute.type == AttributeProto.STRING:
        attribute.s = rng.choice(WORDS).encode() + rng.choice((b"", b"\xff"))
    elif attribute.type == AttributeProto.TENSOR:
        attribute.t.dims.append(rng.choice(NUMBERS))


@mutator
def attribute_twice(rng: Random, model: ModelProto) -> None:
    a_node(rng, model).attribute.append(an_attribute(rng, model))


@mutator
def attribute_reference(rng: Random, model: ModelProto) -> None:
    an_attribute(rng, model).ref_attr_name = "nobody"


@mutator
def external_data(rng: Random, model: ModelProto) -> None:
    tensor = an_initializer(rng, model)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    entries = {
        "location": rng.choice(
            ("none", "/etc/passwd", "../rows.npz", "rows.npz", "", "\x00", "a/b")
        ),
        "offset": rng.choice(("0", "-1", "x", str(2**70), "99999")),
        "length": rng.choice(("0", "4", "-4", "x", str(2**62))),
    }
    for key in rng.sample(sorted(entries), rng.randrange(1, 4)):
        entry = tensor.external_data.add()
        entry.key, entry.value = key, entries[key]


@mutator
def subgraph_garbage(rng: Random, model: ModelProto) -> None:
    whole = model.graph.SerializeToString()
    attribute = (node := a_node(rng, model)).attribute.add()
    attribute.name = rng.choice(("body", "then_branch", "else_branch", "x"))
    attribute.type = AttributeProto.GRAPH
    if rng.random() < 0.7:
        attribute.g.ParseFromString(whole)
    if rng.random() < 0.5:
        node.op_type = rng.choice(("If", "Loop", "Scan"))


@mutator
def subgraph_of_control_flow(rng: Random, model: ModelProto) -> None:
    graphs = [a.g for n in nodes(model) for a in n.attribute if a.HasField("g")]
    for graph in graphs[:1]:
        change = rng.randrange(4)
        if change == 0:
            del graph.node[:]
        elif change == 1:
            del graph.output[:]
        elif change == 2:
            graph.input.extend(graph.output)
        else:
            graph.name = ""


@mutator
def deep_nesting(rng: Random, model: ModelProto) -> bytes:
    """Ifs within Ifs, deeper than protobuf itself would write: as bytes behind the model."""

    def field(number: int, content: bytes) -> bytes:
        size, digits = len(content), b""
        while size > 127:
            digits, size = digits + bytes([size % 128 + 128]), size // 128
        return bytes([number * 8 + 2]) + digits + bytes([size]) + content

    graph = field(2, b"g")
    for level in range(rng.choice((5, 25, 90, 600, 3000))):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"
        node = field(2, b"d%d" % level) + field(4, b"If") + field(5, attribute)
        graph = field(1, node)
    return field(7, graph)


@mutator
def long_chain(rng: Random, model: ModelProto) -> None:
    last = next(iter(names(model)))
    for number in range(rng.choice((50, 600))):
        model.graph.node.append(helper.make_node("Relu", [last], [last := f"long{number}"]))


@mutator
def recursive_function(rng: Random, model: ModelProto) -> None:
    function = helper.make_function(
        "own",
        "F",
        ["a"],
        ["b"],
        [helper.make_node(rng.choice(("F", "G")), ["a"], ["b"], domain="own")],
        [helper.make_opsetid("own", 1)],
    )
    other = helper.make_function(
        "own",
        "G",
        ["a"],
        ["b"],
        [helper.make_node(rng.choice(("F", "Relu")), ["a"], ["b"], domain="own")],
        [helper.make_opsetid("own", 1)],
    )
    model.functions.extend([function, other])
    model.opset_import.append(helper.make_opsetid("own", 1))
    node = a_node(rng, model)
    node.op_type, node.domain = "F", "own"


@mutator
def odd_graph_name(rng: Random, model: ModelProto) -> None:
    model.graph.name = rng.choice(WORDS)
    model.producer_name = rng.choice(WORDS)
    entry = model.metadata_props.add()
    entry.key, entry.value = rng.choice(WORDS), rng.choice(WORDS)


@mutator
def rename_everything(rng: Random, model: ModelProto) -> None:
    """All values bear one odd name or a few of them."""
    new = {name: rng.choice(WORDS) for name in names(model)}
    for node in nodes(model):
        node.input[:] = [new.get(n, n) for n in node.input]
        node.output[:] = [new.get(n, n) for n in node.output]


@mutator
def value_info(rng: Random, model: ModelProto) -> None:
    """A wrong word on what a value is."""
    kind = rng.choice((0, 1, 7, 8, 99))
    info = helper.make_tensor_value_info(rng.choice(names(model)), 1, [rng.choice(NUMBERS), "q"])
    info.type.tensor_type.elem_type = kind
    model.graph.value_info.append(info)


@mutator
def quantization_annotation(rng: Random, model: ModelProto) -> None:
    annotation = model.graph.quantization_annotation.add()
    annotation.tensor_name = rng.choice(names(model))
    annotation.quant_parameter_tensor_names.add().key = "SCALE_TENSOR"


@mutator
def trainings(rng: Random, model: ModelProto) -> None:
    info = model.training_info.add()
    info.algorithm.CopyFrom(model.graph)
