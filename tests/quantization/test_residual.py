"""Factors that make up for rounding: the best of their rank, stored small, in both layouts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from edgecompress.constraints import WeightOnlyFormat
from edgecompress.errors import PassError
from edgecompress.numerics.blockwise import BlockGrid, quantize_blocks
from edgecompress.quantization.residual import residual
from edgecompress.quantization.residual_cost import (
    Corrected,
    residual_notes,
    time_corrections,
)
from edgecompress.quantization.weight_plan import Matrix, Use

ROWS, COLUMNS = 40, 48


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def correlated(columns: int = COLUMNS, places: int = 400) -> Tensor:
    """Inputs of a few strong directions: [places, columns]."""
    strengths = torch.logspace(0, -2, columns)
    return drawn(places, columns, seed=1) * strengths @ drawn(columns, columns, seed=2)


def case() -> tuple[Tensor, Tensor, Tensor]:
    weight = drawn(ROWS, COLUMNS)
    rounded = quantize_blocks(weight, BlockGrid(4, 16)).dequantized()
    return weight, rounded, correlated()


@pytest.mark.parametrize("rank", [1, 6, ROWS])
def test_the_error_is_what_it_says(rank: int) -> None:
    weight, rounded, x = case()
    found = residual(weight, rounded, rank, x.double().T @ x.double())
    assert found is not None
    wanted = x @ weight.T
    for output, error in (
        (x @ rounded.T, found.before),
        (x @ (rounded + found.left.float() @ found.right.float()).T, found.after),
    ):
        measured = (wanted - output).square().sum() / wanted.square().sum()
        assert float(measured) == pytest.approx(error, rel=1e-3, abs=1e-7)
    assert found.left.dtype == found.right.dtype == torch.float16
    assert (found.rank, found.bytes) == (rank, 2 * rank * (ROWS + COLUMNS))


def test_it_is_the_truncated_svd_of_the_whitened_error() -> None:
    weight, rounded, x = case()
    found = residual(weight, rounded, 6, x.double().T @ x.double(), half=False)
    assert found is not None
    error = (weight - rounded).double()
    sigma = torch.linalg.svdvals(error @ x.double().T)
    power = (x.double() @ weight.double().T).square().sum()
    assert found.after == pytest.approx(float(sigma[6:].square().sum() / power), rel=1e-4)
    plain = residual(weight, rounded, 6, None, half=False)
    assert plain is not None
    sigma = torch.linalg.svdvals(error)
    assert plain.after == pytest.approx(
        float(sigma[6:].square().sum() / weight.square().sum()), rel=1e-4
    )
    output = x @ (error.float() - plain.left @ plain.right).T
    assert float(output.square().sum() / power) > 1.5 * found.after


def test_no_error_no_correction() -> None:
    weight, _, x = case()
    moments = x.double().T @ x.double()
    assert residual(weight, weight, 4, moments) is None
    assert residual(weight, weight, 4, None) is None
    assert residual(weight, torch.zeros_like(weight), 4, torch.zeros_like(moments)) is None


def test_dead_and_few_inputs() -> None:
    """Fewer places than columns, and columns that are always zero, leave finite factors."""
    weight, rounded, x = case()
    x = x[:5].clone()
    x[:, 7:20] = 0
    found = residual(weight, rounded, 8, x.double().T @ x.double())
    assert found is not None
    assert bool(torch.isfinite(found.left).all() and torch.isfinite(found.right).all())
    assert found.after < found.before / 100


def test_infinite_moments_are_refused() -> None:
    weight, rounded, x = case()
    moments = x.double().T @ x.double()
    moments[3, 3] = torch.inf
    with pytest.raises(PassError, match="not finite"):
        residual(weight, rounded, 4, moments)


def test_weights_beyond_float16_keep_float32() -> None:
    weight, rounded, _ = case()
    found = residual(weight * 1e12, rounded * 1e12, 4, None)
    assert found is not None
    assert found.left.dtype == torch.float32
    assert found.after < found.before


def corrected(node: str, rank: int = 4, *, half: bool = False) -> Corrected:
    use = Use(node, "MatMul", node, "x", rank)
    matrix = Matrix("w", True, ROWS, COLUMNS, BlockGrid(4, 16, half=half), "gptq", (use,))
    return Corrected(use, matrix, rank, 0.02, 0.01, 8 * (ROWS + COLUMNS), 7, True)


@pytest.mark.parametrize("layout", ["nbits", "qdq"])
def test_layers_of_one_form_are_timed_once(layout: str) -> None:
    import onnx
    import onnxruntime as ort

    asked: list[bytes] = []

    def timer(models: list[bytes]) -> list[float]:
        asked.extend(models)
        return [1.0 + number for number in range(len(models))]

    form = WeightOnlyFormat(layout="nbits" if layout == "nbits" else "qdq")
    layers = [corrected("a"), corrected("b"), corrected("c", 2), corrected("d", half=True)]
    done = time_corrections(layers, form, timer)
    assert [each.seconds for each in done] == [(1.0, 2.0), (1.0, 2.0), (3.0, 4.0), (5.0, 6.0)]
    counts = [
        sum(node.op_type == "MatMul" for node in onnx.load_from_string(model).graph.node)
        for model in asked
    ]
    alone = 0 if layout == "nbits" else 1
    assert counts == [alone, alone + 2] * 3
    options = ort.SessionOptions()
    options.log_severity_level = 4
    for model in asked:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        (x,) = session.get_inputs()
        (y,) = session.run(None, {x.name: np.ones((1, 7, COLUMNS), np.float32)})
        assert (x.shape, y.shape) == ([1, 7, COLUMNS], (1, 7, ROWS))


def test_notes() -> None:
    assert residual_notes([]) == {}
    told = residual_notes([corrected("a"), corrected("b")])["residual"]
    assert told["seconds"] == "not measured"
    assert (told["bytes"], told["macs"], told["tokens"]) == (16 * 88, 8 * 88, 7)
    assert told["layers"][0] == {
        "layer": "a",
        "rank": 4,
        "bytes": 8 * 88,
        "macs": 4 * 88,
        "error": [0.02, 0.01],
    }
