"""Scales and zero points, and rounding that equals onnxruntime's bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from edgecompress.numerics.affine import (
    Affine,
    IntegerRange,
    fake_quantize,
    quantize,
    suit_biases,
    weight_scales,
)
from tests.models import from_text
from tests.running import run

ends = st.floats(-(2.0**100), 2.0**100, width=32) | st.floats(-10, 10, width=32)
RANGES = [
    IntegerRange(0, 255),
    IntegerRange(-128, 127),
    IntegerRange(0, 127),
    IntegerRange(-64, 63),
    IntegerRange(0, 65535),
    IntegerRange(-32768, 32767),
]
SYMMETRIC = [IntegerRange(0, 255), IntegerRange(-127, 127), IntegerRange(-63, 63)]
integer_ranges = st.sampled_from(RANGES)


@pytest.mark.parametrize(
    ("dtype", "bits", "symmetric", "expected"),
    [
        ("uint8", 8, False, (0, 255)),
        ("uint8", 7, False, (0, 127)),
        ("uint8", 8, True, (0, 255)),
        ("int8", 8, False, (-128, 127)),
        ("int8", 8, True, (-127, 127)),
        ("int8", 7, True, (-63, 63)),
        ("int8", None, True, (-127, 127)),
        ("uint16", None, False, (0, 65535)),
        ("int16", None, False, (-32768, 32767)),
        ("int16", None, True, (-32767, 32767)),
        ("uint4", None, False, (0, 15)),
        ("int4", None, True, (-7, 7)),
    ],
)
def test_integer_ranges(
    dtype: str, bits: int | None, symmetric: bool, expected: tuple[int, int]
) -> None:
    assert IntegerRange.of(dtype, bits, symmetric=symmetric) == IntegerRange(*expected)


def tensor(values: object) -> torch.Tensor:
    return torch.as_tensor(values, dtype=torch.float32)


def there_and_back(x: object, affine: Affine, integers: IntegerRange) -> torch.Tensor:
    return fake_quantize(tensor(x), tensor(affine.scale), affine.zero_point, integers)


@given(ends, ends, integer_ranges)
def test_zero_is_exact_and_the_zero_point_an_integer_of_the_type(
    a: float, b: float, integers: IntegerRange
) -> None:
    affine = Affine.from_range(min(a, b), max(a, b), integers)
    assert float(there_and_back(0.0, affine, integers)) == 0.0
    assert integers.low <= affine.zero_point <= integers.high
    assert 0 < affine.scale == float(np.float32(affine.scale)) < np.inf


@given(ends, ends, integer_ranges, st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_inside_the_range_the_error_is_at_most_half_a_step(
    a: float, b: float, integers: IntegerRange, shares: list[float]
) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    affine = Affine.from_range(low, high, integers)
    x = tensor([low + (high - low) * share for share in shares])
    error = (there_and_back(x, affine, integers) - x).abs().max()
    # A few float32 roundings beside the step itself, as large as the values they happen to.
    slack = 4 * np.finfo(np.float32).eps * max(-low, high)
    assert float(error) <= affine.scale / 2 + slack


@given(st.floats(0, 2.0**100, width=32), integer_ranges)
def test_one_sided_ranges_end_before_the_far_end(reach: float, integers: IntegerRange) -> None:
    steps = np.float32(integers.high - integers.low)
    above = Affine.from_range(0.0, reach, integers)
    below = Affine.from_range(-reach, 0.0, integers)
    assert above.zero_point == integers.low
    if above.scale != 1.0:
        assert below == Affine(above.scale, integers.high)
        assert np.float32(above.scale) * steps <= np.float32(reach)
        # and the range is not given away: one float more would pass the end
        assert np.nextafter(np.float32(above.scale), np.float32(np.inf)) * steps >= np.float32(
            reach
        ) * np.float32(1 - 1e-6)


@given(ends, ends, st.sampled_from(SYMMETRIC))
def test_symmetric_ranges_cover_both_ends(a: float, b: float, integers: IntegerRange) -> None:
    low, high = min(a, b, 0.0), max(a, b, 0.0)
    affine = Affine.from_range(low, high, integers, symmetric=True)
    assert affine.zero_point == (128 if integers.low == 0 else 0)
    reach = max(-low, high)
    if affine.scale != 1.0:
        assert affine.scale * (integers.high - affine.zero_point) == pytest.approx(reach, rel=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("reach", [0.0, 1e-45, 1e-38, 1e-40])
def test_ranges_too_narrow_for_a_scale(reach: float, symmetric: bool) -> None:
    for low, high in ((0.0, reach), (-reach, 0.0), (-reach, reach)):
        affine = Affine.from_range(low, high, IntegerRange(0, 255), symmetric=symmetric)
        assert affine.scale == 1.0
        assert float(there_and_back(0.0, affine, IntegerRange(0, 255))) == 0.0


def test_a_range_beside_zero_is_stretched_to_it() -> None:
    integers = IntegerRange(0, 255)
    assert Affine.from_range(2.0, 5.1, integers) == Affine.from_range(0.0, 5.1, integers)
    assert Affine.from_range(-5.1, -2.0, integers) == Affine.from_range(-5.1, 0.0, integers)


QUANTIZER = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[N] x, float s, {dtype} z) => ({dtype}[N] y) {{ y = QuantizeLinear(x, s, z) }}"""


@given(
    arrays(
        np.float32, array_shapes(max_dims=1, max_side=60), elements=st.floats(-300, 300, width=32)
    ),
    st.floats(2.0**-10, 8, width=32),
    st.sampled_from(["uint8", "int8"]),
    st.data(),
)
def test_rounding_is_that_of_onnxruntime(
    x: np.ndarray, scale: float, dtype: str, data: st.DataObject
) -> None:
    info = np.iinfo(dtype)
    zero_point = data.draw(st.integers(info.min, info.max))
    halves = np.float32(scale) * (np.arange(-5, 5, dtype=np.float32) + np.float32(0.5))
    x = np.concatenate([x, halves])
    model = from_text(
        QUANTIZER.format(dtype=dtype), s=np.float32(scale), z=np.array(zero_point, dtype)
    )
    found = quantize(
        torch.from_numpy(x), tensor(scale), zero_point, IntegerRange(info.min, info.max)
    )
    np.testing.assert_array_equal(found.numpy().astype(dtype), run(model, {"x": x})["y"])


@pytest.mark.parametrize(
    ("value", "expected"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (999, 127)]
)
def test_half_goes_to_even_and_the_rest_is_clipped(value: float, expected: int) -> None:
    assert int(quantize(tensor(value), tensor(1.0), 0, IntegerRange(-128, 127))) == expected


weights = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-100, 100, width=32),
)


def squared_error(weight: torch.Tensor, scales: torch.Tensor, integers: IntegerRange) -> np.ndarray:
    error = fake_quantize(weight, scales[:, None], 0, integers) - weight
    return error.square().sum(1).numpy()


@given(weights, st.sampled_from([7, 8]))
def test_weight_scales(weight: np.ndarray, bits: int) -> None:
    integers = IntegerRange.of("int8", bits, symmetric=True)
    w = torch.from_numpy(weight)
    full = weight_scales(w, integers, method="minmax")
    best = weight_scales(w, integers, method="mse")
    largest = np.abs(weight).max(1)
    tiny = largest / integers.high < np.finfo(np.float32).tiny
    expected = np.where(tiny, np.float32(1), largest / np.float32(integers.high))
    np.testing.assert_array_equal(full, expected)
    assert (squared_error(w, best, integers) <= squared_error(w, full, integers)).all()
    assert (best <= full).all()
    assert (best > 0).all()


def test_clipping_pays_for_heavy_tails() -> None:
    generator = torch.Generator().manual_seed(0)
    w = torch.randn(1, 4000, generator=generator)
    w[0, 0] = 8.0
    integers = IntegerRange(-7, 7)
    full, best = (weight_scales(w, integers, method=m) for m in ("minmax", "mse"))
    assert float(best) < 0.75 * float(full)


def test_rows_of_zeros_have_the_scale_one() -> None:
    w = torch.tensor([[0.0, 0.0], [1.0, -2.0], [1e-40, 0.0]])
    for method in ("minmax", "mse"):
        assert weight_scales(w, IntegerRange(-127, 127), method=method)[[0, 2]].tolist() == [1, 1]


@given(st.floats(2.0**-100, 2.0**100, width=32))
def test_scaling_the_range_scales_the_step(reach: float) -> None:
    assume(reach / 255 >= np.finfo(np.float32).tiny)
    affine = Affine.from_range(-reach, reach, IntegerRange(0, 255))
    assert affine.scale == pytest.approx(2 * reach / 255, rel=1e-6)
    assert affine.zero_point in (127, 128)


channels = st.integers(1, 6)
positive = st.floats(2.0**-120, 2.0**20, width=32)


@given(st.data(), channels, positive, positive)
def test_biases_fit_and_keep_their_precision(
    data: st.DataObject, n: int, first: float, second: float
) -> None:
    def draw(elements: st.SearchStrategy[float]) -> torch.Tensor:
        return tensor(data.draw(st.lists(elements, min_size=n, max_size=n)))

    largest = draw(st.just(0.0) | positive)
    biases = [(draw(st.floats(-1000, 1000, width=32)), first), (None, 1.0)]
    biases.append((draw(st.floats(-1000, 1000, width=32)), second))
    full = weight_scales(largest[:, None], IntegerRange(-127, 127), method="minmax")
    scales = suit_biases(full, largest, biases)
    assert scales.dtype == torch.float32
    dead = torch.round(largest / full) == 0
    assert (scales[~dead] >= full[~dead]).all()
    for bias, input_scale in biases:
        if bias is None:
            continue
        steps = scales.double() * input_scale
        assert (steps >= np.finfo(np.float32).tiny * (1 - 1e-6)).all()
        whole = torch.round(bias.double() / steps)
        assert (whole.abs() <= 2**30 * (1 + 1e-6)).all()
    # A channel without weights resolves the bias that reaches furthest to a millionth.
    reach = torch.stack([b.double().abs() / s for b, s in biases if b is not None]).amax(0)
    least = np.finfo(np.float32).tiny / min(first, second)
    wanted = (reach * 1e-6).clamp(min=least) * (1 + 1e-6)
    assert (scales.double() <= wanted)[dead & (reach > 0)].all()


def test_one_scale_for_the_whole_weight_suits_the_largest_bias() -> None:
    scale = suit_biases(tensor([1e-12]), tensor([1e-10, 1e-11]), [(tensor([0.5, -2.0]), 0.1)])
    assert scale.shape == (1,)
    assert float(scale) == pytest.approx(2.0 / 0.1 / 2**30)
    plain = tensor([0.01])
    assert torch.equal(suit_biases(plain, tensor([1.0, 0.0]), [(tensor([0.5, 2.0]), 0.1)]), plain)
