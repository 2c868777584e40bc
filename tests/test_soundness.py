"""What the ONNX checker lets pass: refused by name when a file is loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from onnx import ModelProto, TensorProto, helper

from edgecompress.errors import ModelError
from edgecompress.soundness import check_sound
from tests.models import small_cnn

Spoil = Callable[[ModelProto], object]


def weight(model: ModelProto) -> TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == "b1")


def shorten(model: ModelProto) -> None:
    weight(model).raw_data = weight(model).raw_data[:-4]


def reshape(model: ModelProto) -> None:
    weight(model).dims[:] = [7]


def negative(model: ModelProto) -> None:
    weight(model).dims[:] = [-8]


def untyped_weight(model: ModelProto) -> None:
    weight(model).data_type = TensorProto.UNDEFINED


def untyped_output(model: ModelProto) -> None:
    model.graph.output[0].type.tensor_type.elem_type = TensorProto.UNDEFINED


def external_strings(model: ModelProto) -> None:
    tensor = weight(model)
    tensor.data_type = TensorProto.STRING
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "strings"


def empty_constant(model: ModelProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["nothing"]))


def nested(model: ModelProto) -> None:
    nodes = [helper.make_node("Identity", ["x"], ["deep"])]
    for level in range(21):
        graph = helper.make_graph(nodes, "g", [], [])
        nodes = [helper.make_node("If", ["x"], [f"d{level}"], then_branch=graph)]
    model.graph.node.extend(nodes)


def call(model: ModelProto, calls: str, inputs: int = 1, outputs: int = 1) -> None:
    opsets = [helper.make_opsetid("own", 1), helper.make_opsetid("", 20)]
    domain = "" if calls == "Relu" else "own"
    body = helper.make_node(calls, ["a"], ["b"], domain=domain)
    model.functions.append(helper.make_function("own", "F", ["a"], ["b"], [body], opsets))
    model.opset_import.append(opsets[0])
    results = [f"called{number}" for number in range(outputs)]
    model.graph.node.append(helper.make_node("F", ["x"] * inputs, results, "c", domain="own"))


CASES: dict[str, tuple[Spoil, str]] = {
    "too few bytes": (shorten, r"tensor 'b1': its values do not fill float\[8\]"),
    "another shape": (reshape, r"tensor 'b1': its values do not fill float\[7\]"),
    "negative": (negative, r"tensor 'b1': expected dimensions of 0 or more, got \[-8\]"),
    "no type": (untyped_weight, "tensor 'b1': the type of its values is not told"),
    "output without type": (untyped_output, "output 'y': the type of its values is not told"),
    "external strings": (external_strings, "tensor 'b1': its strings lie in external data"),
    "constant of nothing": (empty_constant, "Constant 'nothing': expected one attribute.* got 0"),
    "deep": (nested, "node If 'd0': nests subgraphs deeper than 20 levels"),
    "recursion": (lambda model: call(model, "F"), "own::F: the function calls itself"),
    "inputs": (
        lambda model: call(model, "Relu", inputs=3),
        "node F 'c': expected at most 1 inputs of the function, got 3",
    ),
    "outputs": (
        lambda model: call(model, "Relu", outputs=2),
        "node F 'c': expected at most 1 outputs of the function, got 2",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), CASES.values(), ids=CASES)
def test_refused(spoil: Spoil, message: str) -> None:
    proto = onnx.load_from_string(small_cnn().to_bytes())
    spoil(proto)
    with pytest.raises(ModelError, match=message) as caught:
        check_sound(ir.from_proto(proto), Path("net.onnx"))
    assert str(caught.value).startswith("net.onnx: ")
    assert caught.value.cure


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    content = small_cnn().to_bytes().replace(b"\x22\x06Relu", b"\x22\x06Re\xffu")
    content = content.replace(b"ReduceMean", b"Reduce\xffean")
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(ModelError, match=r"a name in the graph: expected text in UTF-8"):
        check_sound(ir.load(tmp_path / "net.onnx"), Path("net.onnx"))


def test_a_sound_model_passes() -> None:
    model = onnx.load_from_string(small_cnn().to_bytes())
    call(model, "Relu")
    check_sound(ir.from_proto(model), Path("net.onnx"))
