"""The half pass: weights stored in 16 bits, and graphs that compute in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress import target
from edgecompress.constraints import Constraints, HalfFormat
from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.quantized_form import quantized_form
from edgecompress.runtimes import runtime_class
from tests.models import from_text, small_cnn
from tests.running import rows_of, run, sqnr_db

F = np.float32
STORED = Constraints(half=HalfFormat())
NATIVE = Constraints(half=HalfFormat(native=True))
BRAIN = Constraints(half=HalfFormat("bfloat16"))
Shared = Callable[[str], Path]


def values(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(F)


def halved(
    model: Model, constraints: Constraints = STORED, data: Any = None, **options: Any
) -> Applied:
    return run_pass(make_pass("half", options), model, Context(data, constraints))


def product(text: str = "y = MatMul(x, w)", **arrays: np.ndarray) -> Model:
    """``x`` and its product with ``w`` of 32 x 32, and more constants."""
    arrays = {"w": values(32, 32) / F(6), **arrays}
    declared = "".join(
        f", float{[*a.shape] if a.ndim else ''} {name}" for name, a in arrays.items()
    )
    return from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 32] x{declared}) => (float[N, A] y) {{ {text} }}""",
        **arrays,
    )


def reasons(applied: Applied) -> dict[str, str]:
    return {skip.node: skip.reason for skip in applied.skipped}


def kinds(model: Model) -> dict[str, ir.DataType | None]:
    return {v.name or "": v.dtype for n in model.ir.graph for v in n.outputs}


# ---------------------------------------------------------------- only stored


@pytest.mark.parametrize(("constraints", "most"), [(STORED, 60), (BRAIN, 40)])
def test_weights_are_stored_in_half(constraints: Constraints, most: float) -> None:
    model = product()
    applied = halved(model, constraints)
    assert constraints.half is not None
    stored = applied.model.ir.graph.initializers[f"w_{constraints.half.dtype}"]
    assert stored.dtype == ir.DataType[constraints.half.dtype.upper()]
    assert "w" not in applied.model.ir.graph.initializers
    assert applied.model.weight_bytes == model.weight_bytes // 2
    assert [(c.bytes_before, c.bytes_after) for c in applied.changed] == [(4096, 2048)]
    x = {"x": values(4, 32, seed=1)}
    assert sqnr_db(run(model, x)["y"], run(applied.model, x, optimize=True)["y"]) > most


def test_the_runtime_folds_the_cast() -> None:
    profile = target.load(target.host_target())
    nodes = runtime_class("onnxruntime")().optimized_nodes(halved(product()).model, profile)
    assert [node.op_type for node in nodes] == ["MatMul"]


@pytest.mark.parametrize(
    ("weight", "said"),
    [
        (values(32, 32) * F(1e6), "its constant 'w' reaches"),
        (values(32, 32) * F(1e-8), "too small for float16"),
    ],
)
def test_weights_out_of_range_stay(weight: np.ndarray, said: str) -> None:
    model = product(w=weight)
    applied = halved(model)
    assert applied.model is model
    assert said in reasons(applied)["y"]
    assert halved(model, BRAIN).changed


def test_what_is_divided_by_keeps_each_number() -> None:
    divisor = np.full((64, 32), 1.0, F)
    divisor[3, 3] = 1e-9
    applied = halved(product("h = MatMul(x, w)  y = Div(h, d)", d=divisor))
    assert [c.node for c in applied.changed] == ["h"]
    assert "holds 1e-09" in reasons(applied)["y"]


def test_a_weight_that_is_an_output_or_an_input_stays() -> None:
    model = product()
    model.ir.graph.outputs.append(model.ir.graph.initializers["w"])
    assert halved(model).model is model
    model = product()
    model.ir.graph.inputs.append(model.ir.graph.initializers["w"])
    assert "overridden by an input" in reasons(halved(model))["y"]


def test_nodes_that_the_recipe_leaves_out_stay() -> None:
    model = product("h = MatMul(x, w)  y = MatMul(h, v)", v=values(32, 32, seed=2))
    applied = halved(model, nodes={"y": False})
    assert [c.node for c in applied.changed] == ["h"]
    assert reasons(applied) == {"y": "left out by the recipe"}


BODIES = """
    h = MatMul(x, w)
    s = ReduceSum<keepdims=0>(x)
    zero = Constant<value_float=0.0>()
    c = Greater(s, zero)
    y = If (c) <
        then_branch = a () => (float[N, 32] p) { p = MatMul(h, w) },
        else_branch = b () => (float[N, 32] n) { k = MatMul(h, v)  n = Relu(k) }
    >
"""


@pytest.mark.parametrize("constraints", [STORED, NATIVE])
@pytest.mark.parametrize("sign", [1, -1])
def test_bodies(constraints: Constraints, sign: int) -> None:
    model = product(BODIES, v=values(32, 32, seed=3))
    applied = halved(model, constraints)
    x = {"x": np.abs(values(4, 32, seed=1)) * F(sign)}
    assert sqnr_db(run(model, x)["y"], run(applied.model, x, optimize=True)["y"]) > 50
    assert applied.model.weight_bytes < 0.51 * model.weight_bytes + 16


def test_scales_of_integers_stay() -> None:
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 4] x, int8[4, 2048] q, float[2048] s) => (float[N, 2048] y)
        { d = DequantizeLinear<axis=1>(q, s)  y = MatMul(x, d) }""",
        q=np.ones((4, 2048), np.int8),
        s=np.ones(2048, F),
    )
    assert halved(model).model is model


# ---------------------------------------------------------------- computed in


def test_the_whole_graph_computes_in_half_and_keeps_its_signature() -> None:
    model = small_cnn()
    applied = halved(model, NATIVE)
    assert applied.model.signature == model.signature
    types = Counter(kinds(applied.model).values())
    assert types[ir.DataType.FLOAT16] > types[ir.DataType.FLOAT]
    x = {"x": values(2, 3, 16, 16)}
    assert sqnr_db(run(model, x)["y"], run(applied.model, x, optimize=True)["y"]) > 45
    assert applied.notes["ranges"] == "not measured: without data"
    assert "m" in reasons(applied)  # the mean


def test_a_value_is_cast_once() -> None:
    text = "h = Relu(x)  a = MatMul(h, w)  b = MatMul(h, v)  y = Add(a, b)"
    applied = halved(product(text, v=values(32, 32, seed=2)), NATIVE)
    assert Counter(n.op_type for n in applied.model.ir.graph)["Cast"] == 2


def test_numbers_made_of_integers_stay_exact() -> None:
    """Positions past 2,048 are not exact in float16; their sine is small again."""
    model = from_text(
        """<ir_version: 10, opset_import: ["" : 20]>
        g (int64[N] p, float[32] f, float[32, 32] w, int64[1] axis) => (float[N, 32] y)
        {
            c = Cast<to=1>(p)
            u = Unsqueeze(c, axis)
            a = Mul(u, f)
            s = Sin(a)
            y = MatMul(s, w)
        }""",
        f=(1 / 10000 ** (np.arange(32) / 32)).astype(F),
        w=values(32, 32),
        axis=np.array([1]),
    )
    applied = halved(model, NATIVE)
    p = {"p": np.array([3, 2049, 4097, 8193])}
    assert sqnr_db(run(model, p)["y"], run(applied.model, p)["y"]) > 50
    assert {"c", "u", "a", "s"} <= reasons(applied).keys()
    assert [c.node for c in applied.changed] == ["y"]


MASKED = """
    h = MatMul(x, w)
    m = Where(keep, zero, low)
    s = Add(h, m)
    p = Softmax(s)
    y = MatMul(p, v)
"""


@pytest.mark.parametrize("low", [-np.finfo(F).max, -1e9, -np.inf])
def test_masks_are_cut_and_mask_as_before(low: float) -> None:
    keep = np.arange(32) < 20
    model = from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        g (float[N, 32] x, float[32, 32] w, float[32, 32] v, bool[32] keep, float zero, float low)
          => (float[N, 32] y) {{ {MASKED} }}""",
        w=values(32, 32),
        v=values(32, 32, seed=4),
        keep=keep,
        zero=np.array(0, F),
        low=np.array(low, F),
    )
    applied = halved(model, NATIVE)
    assert kinds(applied.model)["p"] == ir.DataType.FLOAT16
    x = {"x": values(4, 32, seed=1)}
    reference, found = run(model, x)["y"], run(applied.model, x)["y"]
    assert np.isfinite(found).all()
    assert sqnr_db(reference, found) > 45


@pytest.mark.parametrize(
    ("text", "arrays", "node", "said"),
    [
        ("h = MatMul(x, w)  y = Mul(h, c)", {"c": np.array(1e6, F)}, "y", "reaches 1e+06"),
        ("h = MatMul(x, w)  y = Add(h, c)", {"c": np.array(1e-12, F)}, "y", "holds 1e-12"),
        ("h = MatMul(x, w)  y = Exp(h)", {}, "y", "Exp may overflow"),
        ("h = MatMul(x, w)  y = Mul(h, h)", {}, "y", "Mul may overflow"),
        (
            "h = MatMul(x, w)  b = Mul(h, c)  y = MatMul(b, w)",
            {"c": np.array(1e6, F)},
            "y",
            "its input may lie outside the range",
        ),
    ],
)
def test_what_stays_float32(text: str, arrays: dict[str, np.ndarray], node: str, said: str) -> None:
    model = product(text, **arrays)
    applied = halved(model, NATIVE)
    assert said in reasons(applied)[node]
    x = {"x": values(4, 32, seed=1)}
    assert sqnr_db(run(model, x)["y"], run(applied.model, x)["y"]) > 45


def test_limits_past_the_range_do_not_keep_a_clip() -> None:
    model = product(
        "h = MatMul(x, w)  y = Clip(h, lo, hi)",
        lo=np.array(0, F),
        hi=np.array(np.finfo(F).max, F),
    )
    applied = halved(model, NATIVE)
    assert kinds(applied.model)["y_float16"] == ir.DataType.FLOAT16
    assert applied.skipped == ()


def test_data_tell_what_leaves_the_range(tmp_path: Path) -> None:
    text = "h = MatMul(x, w)  e = Exp(h)  y = MatMul(e, v)"
    model = product(text, v=values(32, 32, seed=2))
    small, large = values(64, 32, seed=1), values(64, 32, seed=1) * F(20)
    fits = halved(model, NATIVE, rows_of(tmp_path, model, {"x": small}))
    assert kinds(fits.model)["e"] == ir.DataType.FLOAT16
    assert fits.notes["ranges"] == "measured"
    leaves = halved(model, NATIVE, rows_of(tmp_path, model, {"x": large}))
    assert kinds(leaves.model)["e"] == ir.DataType.FLOAT
    assert "'e' reaches" in reasons(leaves)["e"]
    for applied, x in ((fits, small), (leaves, large)):
        reference = run(model, {"x": x})["y"]
        assert sqnr_db(reference, run(applied.model, {"x": x})["y"]) > 30


def test_operators_without_kernels_stay() -> None:
    model = product("h = MatMul(x, w)  y = Softmax(h)")
    constraints = Constraints(half=HalfFormat(native=True, float32_ops=frozenset({"Softmax"})))
    assert reasons(halved(model, constraints)) == {
        "y": "the target has no float16 kernel for Softmax: float32"
    }


@pytest.mark.parametrize(
    ("constraints", "options", "said"),
    [
        (Constraints(half=None), {}, "takes no 16-bit floating point"),
        (STORED, {"dtype": "bfloat16", "compute": True}, "does not compute in bfloat16"),
    ],
)
def test_targets_that_cannot_refuse(
    constraints: Constraints, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(PassError, match=said):
        halved(product(), constraints, **options)


def test_old_operator_sets_and_loose_weights_are_refused() -> None:
    model = product()
    model.ir.opset_imports[""] = 9
    with pytest.raises(PassError, match="the model has 9"):
        halved(model, NATIVE)
    model = product()
    model.ir.graph.inputs.append(model.ir.graph.initializers["w"])
    with pytest.raises(PassError, match="inputs may override weights"):
        halved(model, NATIVE)


@pytest.mark.parametrize(("dtype", "native"), [("float16", True), ("bfloat16", False)])
def test_the_type_asked_for_wins(dtype: str, native: bool) -> None:
    applied = halved(product(), NATIVE, dtype=dtype)
    text = "half precision" if native else "weight-only"
    assert str(quantized_form(applied.model)) == f"{text} ({dtype}): 1 of 1 MatMul"


def test_the_model_is_left_alone_and_results_repeat() -> None:
    model = small_cnn()
    before = model.to_bytes()
    for constraints in (STORED, NATIVE):
        first = halved(model, constraints, ops={}).model
        assert first.to_bytes() == halved(model, constraints).model.to_bytes()
    assert model.to_bytes() == before


@pytest.mark.parametrize("constraints", [STORED, NATIVE], ids=["stored", "native"])
@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet20_cifar10.onnx", None),
        ("silero_vad.onnx", {"input": (1, 512), "state": (2, 1, 128)}),
    ],
)
def test_real_models(
    shared: Shared, constraints: Constraints, name: str, shapes: dict[str, Any] | None
) -> None:
    model = Model.load(shared(name))
    if shapes is None:
        spec = model.signature.inputs[0]
        dims = [d if isinstance(d, int) else 2 for d in spec.shape or ()]
        feeds = {spec.name: values(*dims)}
    else:
        feeds = {key: values(*shape) / 10 for key, shape in shapes.items()}
        feeds["sr"] = np.array(16000)
    applied = halved(model, constraints)
    reference, found = run(model, feeds), run(applied.model, feeds, optimize=True)
    assert min(sqnr_db(reference[key], found[key]) for key in reference) > 45
    assert applied.model.size_bytes < 0.57 * model.size_bytes
