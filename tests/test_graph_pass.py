"""The machinery of passes: options on three levels, and the checks behind every pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
import pytest
from pydantic import Field

from edgecompress import graph_pass
from edgecompress.errors import PassError, RecipeError
from edgecompress.graph_pass import Applied, Change, Context, Pass, make_pass, pass_names, run_pass
from edgecompress.model import Model
from tests.models import small_cnn


@dataclass(frozen=True, kw_only=True)
class Sample(Pass):
    name: ClassVar[str] = "sample"
    needs: ClassVar[Literal["nothing", "data"]] = "nothing"

    method: Literal["fast", "good"] = "fast"
    share: float = Field(default=0.5, ge=0, le=1)
    edit: Any = None

    def run(self, model: Model, context: Context) -> Applied:
        if self.edit is None:
            return Applied(model)
        clone = model.clone(self.name)
        self.edit(clone)
        return Applied(clone, changed=(Change("c1", "Conv", "edited"),))


@dataclass(frozen=True, kw_only=True)
class NeedsData(Sample):
    name: ClassVar[str] = "needs_data"
    needs: ClassVar[Literal["nothing", "data"]] = "data"


@pytest.fixture(autouse=True)
def _known(monkeypatch: pytest.MonkeyPatch) -> None:
    load = graph_pass.pass_class
    own = {"sample": Sample, "needs_data": NeedsData}
    monkeypatch.setattr(graph_pass, "pass_class", lambda name: own.get(name) or load(name))


def node(model: Model, output: str) -> ir.Node:
    return next(n for n in model.ir.graph if n.outputs[0].name == output)


# ---------------------------------------------------------------- options


def test_the_nearest_level_wins() -> None:
    model = small_cnn()
    node(model, "c2").name = "depthwise"
    made = make_pass(
        "sample",
        {
            "share": 0.1,
            "ops": {"Conv": {"share": 0.2, "method": "good"}, "Gemm": False},
            "nodes": {"c?": {"share": 0.3}, "depth*": {"share": 0.4}, "c3": False, "y": {}},
        },
    )
    assert isinstance(made, Sample)
    found = {name: made.for_node(node(model, name)) for name in ("r1", "c1", "c2", "c3", "y")}
    assert found["r1"] is made
    assert found["c1"] is not None
    assert (found["c1"].share, found["c1"].method) == (0.3, "good")
    assert found["c2"] is not None
    assert found["c2"].share == 0.4  # by its name: the longer pattern
    assert found["c3"] is None
    assert found["y"] is not None  # an empty table for the node calls it back
    assert found["y"].share == 0.1


def test_an_operator_type_can_be_left_out() -> None:
    made = make_pass("sample", {"ops": {"Conv": False}})
    assert made.for_node(node(small_cnn(), "c1")) is None
    assert made.for_node(node(small_cnn(), "y")) is made


def test_options_are_plain_data() -> None:
    options = {"share": 0.25, "ops": {"Conv": {"method": "good"}}, "nodes": {"c1": False}}
    assert make_pass("sample", options).options() == {"method": "fast", "edit": None, **options}


def test_values_of_all_levels_are_converted() -> None:
    made = make_pass("sample", {"share": "0.25", "nodes": {"c1": {"share": "0.75"}}})
    chosen = made.for_node(node(small_cnn(), "c1"))
    assert made.options()["share"] == 0.25
    assert isinstance(chosen, Sample)
    assert chosen.share == 0.75


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methd": "good"}, "pass 'sample': unknown option 'methd'; did you mean 'method'"),
        ({"method": "goof"}, "option 'method': expected 'fast' or 'good', got 'goof'"),
        ({"share": 2}, "option 'share': expected a number less than or equal to 1, got 2"),
        ({"share": "half"}, "option 'share': expected a number.*, got 'half'"),
        ({"ops": 3}, "option 'ops': expected a table, got 3"),
        ({"nodes": 3}, "option 'nodes': expected a table, got 3"),
        ({"nodes": ["c1"]}, r"option 'nodes': expected a table, got \['c1'\]"),
        ({"ops": None}, "option 'ops': expected a table, got None"),
        ({"ops": {"Conv": 3}}, "option 'ops.Conv': expected a table of options, or false, got 3"),
        ({"ops": {"Conv": True}}, "option 'ops.Conv': expected a table of options, or false"),
        ({"ops": {"Conv": {"methd": 1}}}, "'ops.Conv': unknown option 'methd'; did you mean 'met"),
        (
            {"nodes": {"c*": {"share": 7}}},
            r"option 'nodes.c\*.share': expected a number less than or equal",
        ),
        ({"nodes": {"c*": {"ops": {}}}}, r"option 'nodes.c\*': unknown option 'ops'"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        make_pass("sample", options)
    assert caught.value.cure == "`edgecompress passes sample` shows all options"


def test_unknown_passes_get_a_hint() -> None:
    with pytest.raises(RecipeError, match="unknown name 'quantise'; did you mean 'quantize'"):
        make_pass("quantise", {})


@pytest.mark.parametrize("name", pass_names())
def test_every_pass_has_defaults_and_a_docstring(name: str) -> None:
    made = make_pass(name, {})
    assert made.name == name
    assert (type(made).__doc__ or "").strip()
    assert make_pass(name, made.options()) == made


# ---------------------------------------------------------------- the machinery


def run_sample(model: Model, **options: Any) -> Applied:
    return run_pass(make_pass("sample", options), model, Context())


def test_a_pass_that_changes_nothing() -> None:
    model = small_cnn()
    assert run_sample(model).model is model


def test_a_sound_edit_is_let_through() -> None:
    def edit(model: Model) -> None:
        model.set_initializer("b1", np.ones(8, np.float32))

    model = small_cnn()
    applied = run_sample(model, edit=edit)
    assert applied.model.steps == ("sample",)
    assert model.steps == ()
    assert (model.initializer("b1") != 1).all()


def rename_input(model: Model) -> None:
    model.ir.graph.inputs[0].name = "image"


def fix_the_batch(model: Model) -> None:
    model.ir.graph.inputs[0].shape = ir.Shape([1, 3, 16, 16])


def change_the_type(model: Model) -> None:
    model.ir.graph.inputs[0].dtype = ir.DataType.FLOAT16


def drop_the_output(model: Model) -> None:
    model.ir.graph.outputs[0] = node(model, "v").outputs[0]


@pytest.mark.parametrize("edit", [rename_input, fix_the_batch, change_the_type, drop_the_output])
def test_a_changed_signature_is_caught(edit: Callable[[Model], None]) -> None:
    model = small_cnn()
    before = model.signature
    with pytest.raises(PassError, match="pass 'sample': changed the model's inputs or outputs"):
        run_sample(model, edit=edit)
    assert model.signature == before


def unknown_operator(model: Model) -> None:
    node(model, "r1").op_type = "Rellu"


def dangling_input(model: Model) -> None:
    node(model, "r1").replace_input_with(0, ir.Value(name="nowhere"))


def wrong_weight_rank(model: Model) -> None:
    value = model.ir.graph.initializers["w1"]
    value.const_value = ir.tensor(np.zeros((8, 3, 3), np.float32), name="w1")
    value.shape = ir.Shape([8, 3, 3])


def wrong_bias_type(model: Model) -> None:
    value = model.ir.graph.initializers["b1"]
    value.const_value = ir.tensor(np.zeros(8, np.int32), name="b1")
    value.dtype = ir.DataType.INT32


def wrong_order(model: Model) -> None:
    graph = model.ir.graph
    first, second = node(model, "c1"), node(model, "r1")
    graph.remove(second)
    graph.insert_before(first, second)


def bad_attribute(model: Model) -> None:
    node(model, "c2").attributes["group"] = ir.AttrString("group", "all")


@pytest.mark.parametrize(
    "edit",
    [
        unknown_operator,
        dangling_input,
        wrong_weight_rank,
        wrong_bias_type,
        wrong_order,
        bad_attribute,
    ],
)
def test_a_broken_graph_is_caught(edit: Callable[[Model], None]) -> None:
    with pytest.raises(PassError, match="pass 'sample': left a broken graph"):
        run_sample(small_cnn(), edit=edit)


def test_a_pass_that_edits_its_input_is_checked_all_the_same() -> None:
    class InPlace(Sample):
        def run(self, model: Model, context: Context) -> Applied:
            rename_input(model)
            return Applied(model, changed=(Change("c1", "Conv", "renamed"),))

    with pytest.raises(PassError, match="changed the model's inputs or outputs"):
        run_pass(InPlace(), small_cnn(), Context())


def test_data_must_be_there_where_they_are_needed() -> None:
    with pytest.raises(
        RecipeError, match="'needs_data': needs calibration data, and none is named"
    ):
        run_pass(make_pass("needs_data", {}), small_cnn(), Context())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ops": {"Con": False}}, "ops: no node of type 'Con' in the graph; did you mean 'Conv'"),
        ({"nodes": {"cc1": False}}, "the pattern 'cc1' matches no node"),
        ({"nodes": {"conv*": {"share": 1}}}, r"the pattern 'conv\*' matches no node"),
    ],
)
def test_scopes_that_match_nothing_are_misspelt(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        run_sample(small_cnn(), **options)


def test_near_names_are_offered() -> None:
    model = small_cnn()
    for each in model.ir.graph:
        each.name = f"features/{each.outputs[0].name}"
    with pytest.raises(
        RecipeError, match=r"'feature/c1' matches no node; did you mean 'features/c1'"
    ):
        run_sample(model, nodes={"feature/c1": False})
