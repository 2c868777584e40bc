"""Counts from shapes, held against counts by hand."""

from __future__ import annotations

import pytest

from edgecompress.estimate.kernels import Kernel, Tensor
from edgecompress.estimate.op_costs import CALL, FAR, far_part, work_of


def kernel(op: str, *shapes: tuple[int, ...], to: tuple[int, ...], name: str = "n") -> Kernel:
    dtype = "uint8" if op.startswith("QLinear") else "float"
    return Kernel(name, op, tuple(Tensor(dtype, s) for s in shapes), (Tensor(dtype, to),))


@pytest.mark.parametrize(
    ("node", "kind", "macs"),
    [
        (
            kernel("Conv", (1, 16, 8, 8), (32, 16, 3, 3), to=(1, 32, 8, 8), name="c_nchwc"),
            "dense convolution",
            32 * 64 * 144,
        ),
        (
            kernel("Conv", (1, 16, 8, 8), (32, 16, 1, 1), to=(1, 32, 8, 8), name="c_nchwc"),
            "pointwise convolution",
            32 * 64 * 16,
        ),
        (
            kernel("Conv", (1, 16, 8, 8), (16, 1, 3, 3), to=(1, 16, 8, 8), name="c_nchwc"),
            "depthwise convolution",
            16 * 64 * 9,
        ),
        (
            kernel("Conv", (1, 3, 8, 8), (16, 3, 3, 3), to=(1, 16, 8, 8), name="c_nchwc"),
            "shallow convolution",
            16 * 64 * 27,
        ),
        (
            kernel("FusedConv", (1, 16, 8), (32, 16, 3), to=(1, 32, 8)),
            "convolution by columns",
            32 * 8 * 48,
        ),
        (
            kernel("QLinearConv", (1, 8, 8, 16), (), (), (32, 16, 1, 1), to=(1, 8, 8, 32)),
            "integer pointwise convolution",
            32 * 64 * 16,
        ),
        (kernel("MatMul", (1, 32, 64), (64, 48), to=(1, 32, 48)), "matrix product", 32 * 64 * 48),
        (kernel("Gemm", (1, 64), (48, 64), to=(1, 48)), "matrix times vector", 64 * 48),
        (
            kernel("MatMul", (2, 8, 4, 6), (2, 8, 6, 5), to=(2, 8, 4, 5)),
            "products of activations",
            16 * 4 * 6 * 5,
        ),
        (
            kernel("QLinearMatMul", (4, 8), (), (), (8, 6), to=(4, 6)),
            "integer matrix product",
            4 * 8 * 6,
        ),
        (
            kernel("LSTM", (5, 1, 8), (1, 16, 8), (1, 16, 4), to=(5, 1, 1, 4)),
            "LSTM",
            5 * (16 * 8 + 16 * 4),
        ),
        (
            kernel("GRU", (5, 1, 8), (1, 12, 8), (1, 12, 4), to=(5, 1, 1, 4)),
            "GRU",
            5 * (12 * 8 + 12 * 4),
        ),
    ],
)
def test_layers_are_counted_in_multiply_accumulates(node: Kernel, kind: str, macs: int) -> None:
    work = work_of(node, 1e6, 0.0)
    assert work.kind == kind
    assert work.operations == 2 * macs
    assert work.integer is node.op.startswith("QLinear")
    assert work.counts[CALL] == 1


@pytest.mark.parametrize(
    ("node", "kind", "elements"),
    [
        (kernel("Add", (4, 8), (8,), to=(4, 8)), "binary", 32),
        (kernel("ReduceMean", (4, 8), to=(4, 1)), "reduce rows", 32),
        (kernel("ReduceMax", (4, 8), to=(1, 8)), "reduce columns", 32),
        (kernel("Gather", (1000, 8), (3,), to=(3, 8)), "lookup", 24),
        (kernel("GatherBlockQuantized", (1000, 8), (3,), (1000, 1), to=(3, 8)), "lookup", 24),
        (kernel("Transpose", (4, 8, 2), to=(8, 4, 2)), "transpose rows", 64),
        (kernel("Transpose", (4, 8), to=(8, 4)), "transpose", 32),
        (kernel("Softmax", (4, 8), to=(4, 8)), "Softmax", 32),
        (kernel("NeverHeardOf", (4, 8), to=(4, 8)), "other", 32),
    ],
)
def test_others_are_counted_in_elements(node: Kernel, kind: str, elements: int) -> None:
    work = work_of(node, 1e6, 0.0)
    assert work.kind == kind
    assert work.operations == elements
    assert work.counts[f"{kind}: elements"] == elements


@pytest.mark.parametrize("op", ["Reshape", "Squeeze", "Shape", "If"])
def test_views_and_branches_cost_a_call(op: str) -> None:
    work = work_of(kernel(op, (4, 8), to=(8, 4)), 1e6, 0.0)
    assert not any(name.endswith("elements") for name in work.counts)


def test_bytes_beyond_the_cache() -> None:
    node = kernel("Add", (1000,), (1000,), to=(1000,))
    assert node.bytes == 12_000
    assert work_of(node, 24_000, 0.0).counts[FAR] == 0
    assert work_of(node, 12_000, 0.0).counts[FAR] == 12_000
    assert work_of(node, 16_000, 0.0).counts[FAR] == pytest.approx(6_000)
    assert (far_part(0, 10), far_part(5, 10), far_part(100, 10)) == (0, 0, 1)


def test_narrow_integers_take_fewer_bytes() -> None:
    sizes = {"float": 40, "float16": 20, "int8": 10, "int64": 80, "uint4": 5, "bool": 10}
    assert {dtype: Tensor(dtype, (10,)).bytes for dtype in sizes} == sizes
