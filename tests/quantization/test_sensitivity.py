"""Sensitivity of layers: signal to noise, and the loss that gradients foretell."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from edgecompress.constraints import Constraints, WeightOnlyFormat
from edgecompress.data.calibration import Batch, CalibrationSet
from edgecompress.errors import DataError
from edgecompress.gradients.output_loss import OutputLoss, output_losses, probe
from edgecompress.graph_pass import Context
from edgecompress.model import Model
from edgecompress.quantization.mixed import Format, MixSettings, in_all_formats
from edgecompress.quantization.sensitivity import Sensitivity, measure_sensitivity
from edgecompress.quantization.variants import candidates
from edgecompress.resources import Resources
from edgecompress.torchgraph import as_tensors, to_torch
from tests.models import from_text, small_cnn
from tests.running import X86, rows_of, run, sqnr_db, with_outputs

F = np.float32
NBITS = replace(X86, weight_only=WeightOnlyFormat("nbits"))


def images(rows: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (rows, 3, 16, 16)).astype(F)


def vectors(rows: int = 32, size: int = 32) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 1, (rows, size)).astype(F)


def perceptron(outputs: int = 8, end: str = "", **weights: np.ndarray) -> Model:
    """MatMul-Add-Relu-MatMul, and what ``end`` makes of z."""
    rng = np.random.default_rng(1)
    given = {
        "w1": rng.normal(0, 0.2, (32, 64)).astype(F),
        "b1": rng.normal(0, 0.1, 64).astype(F),
        "w2": rng.normal(0, 0.2, (64, outputs)).astype(F),
        **weights,
    }
    return from_text(
        f"""
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        mlp (float[N, 32] x, float[32, 64] w1, float[64] b1, float[64, {outputs}] w2)
            => (float[N, {outputs}] y)
        {{
            a = MatMul(x, w1)
            h = Add(a, b1)
            r = Relu(h)
            {end or "y = MatMul(r, w2)"}
        }}
        """,
        **given,
    )


def measured(
    folder: Path,
    model: Model,
    arrays: dict[str, np.ndarray],
    *formats: Format,
    constraints: Constraints = NBITS,
    resources: Resources | None = None,
    rows: int = 64,
    **spec: object,
) -> Sensitivity:
    data = rows_of(folder, model, arrays, **spec)
    context = Context(data, constraints, resources=resources or Resources())
    settings = MixSettings(rows=16)
    variants = in_all_formats(model, context, formats or ("w8a8",), lambda *_: True, settings)
    return measure_sensitivity(model, variants, context, rows=rows)


def one_at_a_time(
    folder: Path, model: Model, arrays: dict[str, np.ndarray], *formats: Format
) -> dict[tuple[str, str], float]:
    """Relative squared error of the outputs with one node in one format, really taken."""
    data = rows_of(folder, model, arrays)
    context = Context(data, NBITS)
    variants = in_all_formats(model, context, formats, lambda *_: True, MixSettings())
    graph, feeds = to_torch(model), as_tensors(arrays)
    found = {}
    with torch.no_grad():
        (reference,) = graph(feeds).values()
        for candidate in candidates(model, variants):
            for format_, part in candidate.parts.items():
                module, values = part.module(), {}

                def see(name: str, value: torch.Tensor) -> None:
                    values[name] = value  # noqa: B023
                    if name == part.stands_for:  # noqa: B023
                        value.copy_(part.run(module, values))  # noqa: B023

                watch = {part.stands_for, *part.inputs}
                (moved,) = graph(feeds, observe=see, watch=watch).values()
                error = (moved - reference).flatten(1).square().sum(1)
                power = reference.flatten(1).square().sum(1)
                found[candidate.node, format_] = float((error / power).mean())
    return found


def batch(rows: int, mask: np.ndarray | None = None) -> Batch:
    return Batch({}, None, rows, np.arange(rows), mask=mask)


def test_probes_of_logits_have_the_fisher_matrix_as_covariance() -> None:
    rows = 20_000
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0]).expand(rows, 4)
    drawn = probe(OutputLoss("z", "kl"), logits, batch(rows), torch.Generator().manual_seed(0))
    p = torch.softmax(logits[0], 0)
    torch.testing.assert_close(
        drawn.T @ drawn / rows, torch.diag(p) - torch.outer(p, p), rtol=0, atol=0.01
    )


def test_half_a_squared_product_with_a_probe_is_the_divergence() -> None:
    rows, change = 20_000, torch.tensor([0.01, -0.02, 0.0, 0.03])
    logits = torch.tensor([0.5, -1.0, 2.0, 0.0]).expand(rows, 4)
    drawn = probe(OutputLoss("z", "kl"), logits, batch(rows), torch.Generator().manual_seed(0))
    told = float((drawn @ change).square().mean() / 2)
    p, q = (torch.log_softmax(z.double(), 0) for z in (logits[0], logits[0] + change))
    assert told == pytest.approx(float((p.exp() * (p - q)).sum()), rel=0.05)


def test_probes_leave_padding_out() -> None:
    mask = np.array([[True, True, False], [True, False, False]])
    generator = torch.Generator().manual_seed(0)
    value = torch.ones(2, 3, 5)
    for loss in (OutputLoss("z", "kl"), OutputLoss("z", "squared")):
        drawn = probe(loss, value, batch(2, mask), generator)
        assert drawn.shape == value.shape
        assert not drawn[0, 2].any()
        assert not drawn[1, 1:].any()
        assert drawn[1, 0].any()


@pytest.mark.parametrize("shape", [(), (3,), (5, 4)])
def test_probes_of_values_without_rows(shape: tuple[int, ...]) -> None:
    value = torch.full(shape, 2.0)
    drawn = probe(OutputLoss("z", "squared"), value, batch(2), torch.Generator().manual_seed(0))
    # Two rows share one value: the loss of both is twice its relative error.
    assert float(drawn.square().sum()) == pytest.approx(2 * 2 * value.numel() / (4 * value.numel()))


@pytest.mark.parametrize(
    ("end", "expected"),
    [
        ("z = MatMul(r, w2) y = Softmax(z)", OutputLoss("z", "kl", -1)),
        ("z = MatMul(r, w2) y = LogSoftmax<axis=1>(z)", OutputLoss("z", "kl", 1)),
        ("y = MatMul(r, w2)", OutputLoss("y", "squared")),
    ],
)
def test_the_loss_suits_the_output(tmp_path: Path, end: str, expected: OutputLoss) -> None:
    model = perceptron(end=end)
    assert output_losses(model, rows_of(tmp_path, model, {"x": vectors()})) == [expected]


def test_class_numbers_tell_logits(tmp_path: Path) -> None:
    model = perceptron()
    arrays = {"x": vectors(), "y": np.arange(32) % 8}
    data = rows_of(tmp_path, model, arrays, labels="y")
    assert output_losses(model, data) == [OutputLoss("y", "kl")]
    assert output_losses(model, data, "squared") == [OutputLoss("y", "squared")]


def test_noise_is_that_of_the_delivered_graph(tmp_path: Path) -> None:
    # The first layer inherits no error: the quantized graph, run by onnxruntime, must agree.
    model, x = small_cnn(), images(8)
    found = measured(tmp_path, model, {"x": x})
    context = Context(rows_of(tmp_path, model, {"x": x}), NBITS)
    variants = in_all_formats(model, context, ["w8a8"], lambda *_: True, MixSettings())
    a, b = (run(with_outputs(m, ["c1"]), {"x": x})["c1"] for m in (model, variants["w8a8"].model))
    first = next(node for node in found.nodes if node.output == "c1")
    assert first.formats["w8a8"].sqnr_db == pytest.approx(sqnr_db(a, b), abs=0.05)


def test_one_output_makes_the_loss_exact(tmp_path: Path) -> None:
    # A probe of a single number is one of two signs, and both tell the same.
    model, arrays = perceptron(outputs=1), {"x": vectors()}
    found = measured(tmp_path, model, arrays)
    truth = one_at_a_time(tmp_path, model, arrays, "w8a8")
    last = next(node for node in found.nodes if node.output == "y")
    assert last.formats["w8a8"].loss == pytest.approx(truth[last.node, "w8a8"], rel=1e-3)


def test_losses_are_those_of_one_layer_at_a_time(tmp_path: Path) -> None:
    model, arrays = small_cnn(), {"x": images(64)}
    found = measured(tmp_path, model, arrays)
    truth = one_at_a_time(tmp_path, model, arrays, "w8a8")
    assert len(found.nodes) >= 4
    for node in found.nodes:
        # 64 rows with one probe each: a standard error of about 18 %.
        told, true = node.formats["w8a8"].loss, truth[node.node, "w8a8"]
        assert 0.5 < told / true < 2, node.node


def test_integer_weights_are_judged_behind_the_bias_that_their_kernel_takes(
    tmp_path: Path,
) -> None:
    model, arrays = perceptron(outputs=32), {"x": vectors()}
    found = measured(tmp_path, model, arrays, "w8", "w4")
    first, last = found.nodes
    assert (first.output, last.output) == ("a", "y")
    assert first.bytes_float == 32 * 64 * 4
    assert first.macs == 32 * 64
    for node in found.nodes:
        four, eight = node.formats["w4"], node.formats["w8"]
        assert four.sqnr_db < eight.sqnr_db - 15
        assert four.bytes < eight.bytes < node.bytes_float
        assert four.loss > 10 * eight.loss > 0
    truth = one_at_a_time(tmp_path, model, arrays, "w4")
    assert first.formats["w4"].loss == pytest.approx(truth["a", "w4"], rel=0.6)


def test_blocks_change_nothing(tmp_path: Path) -> None:
    model, arrays = small_cnn(), {"x": images()}
    whole = measured(tmp_path, model, arrays)
    cut = measured(tmp_path, model, arrays, resources=Resources(memory=4000, scratch=tmp_path))
    for ours, theirs in zip(whole.nodes, cut.nodes, strict=True):
        a, b = ours.formats["w8a8"], theirs.formats["w8a8"]
        assert (ours.node, a.bytes) == (theirs.node, b.bytes)
        assert b.sqnr_db == pytest.approx(a.sqnr_db, abs=1e-3)
        assert b.loss == pytest.approx(a.loss, rel=1e-3)


def test_the_same_twice(tmp_path: Path) -> None:
    model, arrays = small_cnn(), {"x": images()}
    assert measured(tmp_path, model, arrays) == measured(tmp_path, model, arrays)


def test_validation_rows_are_used_where_there_are_any(tmp_path: Path) -> None:
    model = small_cnn()
    found = measured(tmp_path, model, {"x": images(20)}, validation_share=0.4)
    assert (found.rows, found.split) == (8, "validation")
    assert measured(tmp_path, model, {"x": images(20)}, rows=5).rows == 8


def test_one_row_is_enough(tmp_path: Path) -> None:
    found = measured(tmp_path, small_cnn(), {"x": images(1)})
    assert found.rows == 1
    assert all(math.isfinite(node.worst) for node in found.nodes)


def test_weights_of_zero_cost_nothing(tmp_path: Path) -> None:
    model = perceptron(w1=np.zeros((32, 64), F))
    found = measured(tmp_path, model, {"x": vectors()})
    first = next(node for node in found.nodes if node.output == "a")
    assert first.formats["w8a8"].sqnr_db == math.inf
    assert first.worst == 0


def test_constant_channels_are_no_trouble(tmp_path: Path) -> None:
    model = small_cnn()
    for name in ("w1", "w2"):
        weight = np.array(model.initializer(name))
        weight[0] = 0
        weight[1] = 0.25
        model.set_initializer(name, weight)
    found = measured(tmp_path, model, {"x": images()})
    assert all(math.isfinite(node.worst) for node in found.nodes)


def test_gradients_pass_through_an_if_whose_layers_are_no_candidates(tmp_path: Path) -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 32] x, float[32, 64] w1, float[64, 64] w2, float zero) => (float[N, 64] y)
        {
            a = MatMul(x, w1)
            total = ReduceSum<keepdims=0>(a)
            positive = Greater(total, zero)
            y = If(positive) <
                then_branch = then () => (float[N, 64] t) { t = MatMul(a, w2) },
                else_branch = other () => (float[N, 64] e) { e = Neg(a) }
            >
        }
        """,
        w1=np.random.default_rng(1).normal(0, 0.2, (32, 64)).astype(F),
        w2=np.random.default_rng(2).normal(0, 0.2, (64, 64)).astype(F),
        zero=np.array(0, F),
    )
    found = measured(tmp_path, model, {"x": vectors()})
    assert [node.output for node in found.nodes] == ["a"]
    assert found.nodes[0].reached
    assert found.nodes[0].worst > 0


def test_opaque_blocks_get_gradients_from_noise(tmp_path: Path) -> None:
    # torchgraph has no translation of this operator, which onnxruntime runs.
    end = 'c = com.microsoft.CDist<metric="euclidean">(r, r2) y = MatMul(c, w3)'
    assert end
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[N, 32] x, float[32, 64] w1, float[16, 64] r2, float[16, 8] w3) => (float[N, 8] y)
        {
            a = MatMul(x, w1)
            c = com.microsoft.CDist<metric = "euclidean">(a, r2)
            y = MatMul(c, w3)
        }
        """,
        w1=np.random.default_rng(1).normal(0, 0.2, (32, 64)).astype(F),
        r2=np.random.default_rng(2).normal(0, 1, (16, 64)).astype(F),
        w3=np.random.default_rng(3).normal(0, 1, (16, 8)).astype(F),
    )
    found = measured(tmp_path, model, {"x": vectors()})
    assert [node.output for node in found.nodes] == ["a", "y"]
    assert all(node.reached and node.worst > 0 for node in found.nodes)
    assert "no gradients pass" in found.notes[0]


def test_without_a_gradient_the_own_error_stands_for_the_loss(tmp_path: Path) -> None:
    model = from_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[N, 32] x, float[32, 64] w1) => (int64[N, 1] y)
        { a = MatMul(x, w1) y = ArgMax<axis=1>(a) }
        """,
        w1=np.random.default_rng(1).normal(0, 0.2, (32, 64)).astype(F),
    )
    found = measured(tmp_path, model, {"x": vectors()})
    (node,) = found.nodes
    assert not node.reached
    assert node.worst == pytest.approx(10 ** (-node.formats["w8a8"].sqnr_db / 10))
    assert len(found.notes) == 2


def test_overflow_on_validation_rows_is_one_clear_error(tmp_path: Path) -> None:
    model = perceptron()
    data = rows_of(tmp_path, model, {"x": vectors()})
    context = Context(data, NBITS)
    variants = in_all_formats(model, context, ["w8a8"], lambda *_: True, MixSettings())
    huge = model.clone()
    huge.set_initializer("w2", np.full((64, 8), 3e38, F))
    with pytest.raises(DataError, match="NaN or infinite"):
        measure_sensitivity(huge, variants, context)


def test_rows_are_needed() -> None:
    with pytest.raises(DataError, match="none are named"):
        measure_sensitivity(perceptron(), {}, Context())


def test_a_calibration_set_without_rows_to_judge_is_fine(tmp_path: Path) -> None:
    model = perceptron()
    data: CalibrationSet = rows_of(tmp_path, model, {"x": vectors()})
    assert measure_sensitivity(model, {}, Context(data)).nodes == ()
