"""The closed form: what it predicts is what is measured, and nothing is better."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from edgecompress.numerics.gram import Form, Shape
from edgecompress.numerics.joint_moments import JointMoments, joint_products
from edgecompress.numerics.low_rank import (
    Balance,
    Gram,
    Kind,
    LowRank,
    Problem,
    Side,
    best_mix,
    bias_shift,
    objective,
    squared_error,
)

ON_DATA: list[Kind] = ["shift_aware", "anchored", "mixed"]
KINDS: list[Kind] = ["input_agnostic", *ON_DATA]
SIDES: list[Side] = ["input", "output"]


def drawn(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@dataclass
class Case:
    """A layer and both of its streams, in float64."""

    weight: Tensor
    a: Tensor
    b: Tensor

    @property
    def y(self) -> Tensor:
        return self.a @ self.weight.mT

    def moments(self) -> dict[str, Tensor]:
        places = self.b.shape[1]
        return {
            "gram": self.b.mT @ self.b / places,
            "target": self.y.mT @ self.b / places,
            "power": self.y.square().sum((1, 2)) / places,
        }

    def wanted(self, kind: Kind, mix: float) -> Tensor:
        share = {"anchored": 1.0, "mixed": mix}.get(kind, 0.0)
        return share * self.y + (1 - share) * self.b @ self.weight.mT

    def error(self, product: Tensor, kind: Kind, mix: float = 1.0) -> float:
        """Measured on the data, per place."""
        if kind == "input_agnostic":
            return float((self.weight - product).square().sum())
        left = self.wanted(kind, mix) - self.b @ product.mT
        return float(left.square().sum() / self.b.shape[1])


def case(groups: int = 1, rows: int = 6, columns: int = 8, places: int = 50, seed: int = 0) -> Case:
    mixing = drawn(groups, columns, columns, seed=seed)
    a = drawn(groups, places, columns, seed=seed + 1) @ mixing
    b = a + 0.5 * drawn(groups, places, columns, seed=seed + 2)
    return Case(drawn(groups, rows, columns, seed=seed + 3), a, b)


def problem(of: Case, kind: Kind, mix: float = 1.0, **options: Any) -> Problem:
    moments = of.moments()
    return objective(
        of.weight,
        Gram(moments["gram"], **options),
        kind=kind,
        target=moments["target"],
        power=moments["power"],
        mix=mix,
    )


def product(factors: tuple[Tensor, Tensor]) -> Tensor:
    return factors[0].double() @ factors[1].double()


cases = st.builds(
    case,
    groups=st.integers(1, 3),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    places=st.integers(1, 40),
    seed=st.integers(0, 1000),
)


@given(
    of=cases,
    kind=st.sampled_from(KINDS),
    mix=st.sampled_from([0.0, 0.3, 1.0]),
    damping=st.sampled_from([0.0, 0.01, 1.0]),
    shape=st.sampled_from(["identity", "diagonal"]),
    form=st.sampled_from(["auto", "cholesky", "eigen"]),
    side=st.sampled_from(["auto", *SIDES]),
    share=st.floats(0, 1),
)
def test_the_predicted_minimum_is_the_measured_error(
    of: Case,
    kind: Kind,
    mix: float,
    damping: float,
    shape: Shape,
    form: Form,
    side: Side,
    share: float,
) -> None:
    found = problem(of, kind, mix, damping=damping, shape=shape, form=form)
    low = LowRank(*found, side=side)
    rank = 1 + int(share * (min(of.weight.shape[1:]) - 1))
    instead = product(low.factors(rank))
    missing = of.weight - instead
    penalty = (
        0.0 if kind == "input_agnostic" else float((found.gram.lifted(missing) * missing).sum())
    )
    measured = of.error(instead, kind, mix) + penalty
    # Factors are float32, and the floor is not counted where no L is needed: 1e-6 of the power.
    assert low.error(rank) == pytest.approx(measured, rel=1e-4, abs=1e-5 * low.power)
    assert low.power == pytest.approx(
        of.error(torch.zeros_like(missing), kind, mix)
        + (
            0.0
            if kind == "input_agnostic"
            else float((found.gram.lifted(of.weight) * of.weight).sum())
        ),
        rel=1e-4,
    )


@given(of=cases, kind=st.sampled_from(KINDS))
def test_errors_fall_with_the_rank_and_are_never_below_zero(of: Case, kind: Kind) -> None:
    low = LowRank(*problem(of, kind))
    least = min(of.weight.shape[1:])
    errors = [low.error(rank) for rank in range(least + 1)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] >= 0
    assert errors[0] == low.power
    assert low.energies.shape == (len(of.weight), least)
    assert bool((low.energies.diff(dim=1) <= 0).all())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (9, 6), (7, 7)])
def test_all_forms_agree(kind: Kind, rows: int, columns: int) -> None:
    of = case(2, rows, columns, 60)
    found = [
        LowRank(*problem(of, kind, 0.4, form=form), side=side)
        for form in ("cholesky", "eigen")
        for side in SIDES
    ]
    for low in found[1:]:
        torch.testing.assert_close(low.energies, found[0].energies, rtol=1e-9, atol=1e-9)
        for rank in (1, 4, 6):
            expected = product(found[0].factors(rank))
            torch.testing.assert_close(product(low.factors(rank)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("places", [5, 60])
def test_no_competitor_is_better(kind: Kind, places: int) -> None:
    of = case(1, 6, 8, places)
    low = LowRank(*problem(of, kind, 0.4))
    left, right = low.factors(3)
    best = of.error(product((left, right)), kind, 0.4)
    others = [LowRank(*problem(of, other)).factors(3) for other in KINDS if other != kind]
    for seed in range(200):
        size = 10.0 ** -(seed % 5)
        others.append(
            (
                left + size * drawn(*left.shape, seed=seed).float(),
                right + size * drawn(*right.shape, seed=1000 + seed).float(),
            )
        )
    slack = 1e-5 * low.power
    assert min(of.error(product(other), kind, 0.4) for other in others) >= best - slack


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (200, 300)])
def test_input_agnostic_is_the_truncated_svd(shape: tuple[int, int]) -> None:
    weight = drawn(1, *shape)
    low = LowRank(*objective(weight, torch.zeros(1), kind="input_agnostic"))
    u, s, v = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(low.energies, s.square())
    expected = u[..., :5] * s[:, None, :5] @ v[:, :5]
    torch.testing.assert_close(product(low.factors(5)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(150, 250), (250, 150)])
def test_a_larger_one_is_that_of_the_whole_svd(shape: tuple[int, int]) -> None:
    of = case(1, *shape, places=600)
    moments = of.moments()
    low = LowRank(*problem(of, "anchored"))
    lower = torch.linalg.cholesky(moments["gram"])
    whitened = torch.linalg.solve_triangular(lower.mT, moments["target"], upper=True, left=False)
    u, s, v = torch.linalg.svd(whitened, full_matrices=False)
    torch.testing.assert_close(low.energies, s.square())
    kept = u[..., :40] * s[:, None, :40] @ v[:, :40]
    expected = torch.linalg.solve_triangular(lower, kept, upper=False, left=False)
    torch.testing.assert_close(product(low.factors(40)), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (9, 6)])
def test_full_rank_is_least_squares(rows: int, columns: int) -> None:
    of = case(2, rows, columns, 60)
    expected = torch.linalg.lstsq(of.b, of.y).solution.mT
    if rows < columns:
        found = product(LowRank(*problem(of, "anchored")).factors(rows))
    else:
        found = product(LowRank(*problem(of, "anchored")).factors(columns))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_mix_is_that_of_two_squared_errors() -> None:
    """Of |own|^2 + a |anchored|^2 with share a / (1 + a): SAES-SVD."""
    of, alpha = case(1, 6, 8, 60), 0.7
    low = LowRank(*problem(of, "mixed", alpha / (1 + alpha)))
    left, right = low.factors(3)

    def both(factors: tuple[Tensor, Tensor]) -> float:
        instead = product(factors)
        return of.error(instead, "shift_aware") + alpha * of.error(instead, "anchored")

    best = both((left, right))
    for seed in range(100):
        size = 10.0 ** -(seed % 4)
        other = left + size * drawn(*left.shape, seed=seed).float(), right
        assert both(other) >= best * (1 - 1e-5)


@pytest.mark.parametrize("rank", [1, 3, 5])
@pytest.mark.parametrize(("rows", "columns"), [(6, 9), (9, 6)])
def test_the_best_mix_keeps_the_largest_share(rank: int, rows: int, columns: int) -> None:
    of = case(2, rows, columns, 60)
    # Of the original stream, parts are wanted that the other one has lost.
    of.b[..., : columns // 2] += 3 * drawn(2, 60, columns // 2, seed=9)
    moments = of.moments()
    found = best_mix(of.weight, moments["gram"], rank, target=moments["target"], span=(0, 1))
    shares = {}
    for mix in (0.0, 0.25, 0.5, 0.75, 1.0):
        energies = LowRank(*problem(of, "mixed", mix)).energies
        shares[mix] = float(energies[:, :rank].sum() / energies.sum())
    assert found == max(shares, key=lambda mix: shares[mix])
    guarded = best_mix(of.weight, Gram(moments["gram"]), rank, target=moments["target"])
    assert guarded in (0.25, 0.375, 0.5, 0.625, 0.75)


def test_the_best_mix_of_the_same_streams_is_the_middle() -> None:
    of = case()
    of.a = of.b
    moments = of.moments()
    assert best_mix(of.weight, moments["gram"], 3, target=moments["target"]) == 0.5
    cross = moments["gram"]
    assert best_mix(of.weight, moments["gram"], 3, cross=cross, span=(0.0, 0.5)) == 0.25
    nothing = torch.zeros_like(of.weight)
    assert best_mix(nothing, moments["gram"], 3, target=nothing) == 0.5


def test_cross_moments_say_the_same_as_targets() -> None:
    of = case(2)
    moments = of.moments()
    cross = of.a.mT @ of.b / of.b.shape[1]
    found = objective(of.weight, moments["gram"], kind="anchored", cross=cross)
    expected = problem(of, "anchored")
    torch.testing.assert_close(found.target, expected.target)
    low = LowRank(*found)
    assert low.error(6) == pytest.approx(0.0, abs=1e-12 * low.power)
    reached = LowRank(*expected)
    assert reached.error(3) == pytest.approx(low.error(3) + reached.error(6), rel=1e-9)


@pytest.mark.parametrize("kind", ON_DATA)
@pytest.mark.parametrize("form", ["auto", "cholesky", "eigen"])
@pytest.mark.parametrize("damping", [0.0, 1e-3])
@pytest.mark.parametrize("rows", [5, 20])
def test_unseen_directions_keep_the_weight(
    kind: Kind, form: Form, damping: float, rows: int
) -> None:
    of = case(1, rows, 12, places=4)
    of.a = of.b.clone()
    low = LowRank(*problem(of, kind, 0.5, damping=damping, form=form))
    found = product(low.factors(min(rows, 12)))
    torch.testing.assert_close(found, of.weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ON_DATA)
@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("rows", [5, 12])
def test_all_zero_moments_are_input_agnostic(kind: Kind, damping: float, rows: int) -> None:
    of = case(2, rows, 8)
    of.a, of.b = torch.zeros_like(of.a), torch.zeros_like(of.b)
    found = product(LowRank(*problem(of, kind, damping=damping)).factors(3))
    expected = product(LowRank(*problem(of, "input_agnostic")).factors(3))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [5, 12])
def test_a_group_without_inputs_leaves_the_others_alone(rows: int) -> None:
    of = case(3, rows, 8)
    of.a[1], of.b[1] = 0, 0
    found = product(LowRank(*problem(of, "anchored")).factors(3))
    for group, kind in ((0, "anchored"), (1, "input_agnostic"), (2, "anchored")):
        part = slice(group, group + 1)
        alone = Case(of.weight[part], of.a[part], of.b[part])
        expected = product(LowRank(*problem(alone, kind)).factors(3))  # type: ignore[arg-type]
        torch.testing.assert_close(found[part], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ON_DATA)
@pytest.mark.parametrize("form", ["auto", "cholesky", "eigen"])
@pytest.mark.parametrize(("rows", "columns"), [(10, 16), (16, 10)])
def test_moments_of_condition_1e12(kind: Kind, form: Form, rows: int, columns: int) -> None:
    of = case(1, rows, columns, 60)
    u, _, v = torch.linalg.svd(drawn(1, 60, columns), full_matrices=False)
    of.b = u * torch.logspace(0, -6, columns, dtype=torch.float64) @ v
    of.a = of.b + 1e-2 * of.b.roll(1, dims=1)
    low = LowRank(*problem(of, kind, 0.5, form=form))
    basis = torch.linalg.qr(of.b)[0]
    wanted = of.wanted(kind, 0.5)
    reached = torch.linalg.svdvals(basis.mT @ wanted)
    best = (wanted.square().sum() - reached[:, :4].square().sum()) / 60
    measured = of.error(product(low.factors(4)), kind, 0.5)
    assert measured == pytest.approx(float(best), rel=1e-3, abs=1e-4 * low.power)
    assert low.error(4) == pytest.approx(measured, rel=1e-3, abs=1e-4 * low.power)


@pytest.mark.parametrize("damping", [0.0, 1e-3])
def test_sums_in_float32_of_few_places_do_no_harm(damping: float) -> None:
    """Where S is singular, what rounding left in T must not be blown up."""
    of = case(1, 48, 64, places=40)
    of.a, of.b = of.a + 5, of.b + 5
    found = JointMoments()
    for start in range(0, 40, 10):
        part = slice(start, start + 10)
        found.add(joint_products(of.b[:, part], of.y[:, part]))
    gram = Gram(found.gram(), damping=damping)
    low = LowRank(
        *objective(of.weight, gram, kind="anchored", target=found.cross(), power=found.power())
    )
    for rank in (8, 40, 48):
        instead = product(low.factors(rank))
        # Whatever is interpolated, it is not far larger than the weight.
        assert float(instead.norm()) < 3 * float(of.weight.norm())
        assert of.error(instead, "anchored") < 1.05 * low.error(rank) + 1e-3 * low.power


@given(of=cases.filter(lambda of: of.b.shape[1] > 12), kind=st.sampled_from(ON_DATA))
def test_centred_with_a_shifted_bias_is_the_best_affine_map(of: Case, kind: Kind) -> None:
    of.a, of.b = of.a + 3, of.b - 2
    wanted, mean_b = of.wanted(kind, 0.5), of.b.mean(1)
    mean_y = wanted.mean(1)
    centred = Case(of.weight, of.a - of.a.mean(1, True), of.b - mean_b[:, None])
    low = LowRank(*problem(centred, kind, 0.5))
    left, right = low.factors(1)
    shift = bias_shift(left, right, mean_y, mean_b).double().reshape(mean_y.shape)

    def error(left: Tensor, right: Tensor, bias: Tensor) -> float:
        found = of.b @ product((left, right)).mT + bias[:, None]
        return float((wanted - found).square().sum() / of.b.shape[1])

    best = error(left, right, shift)
    slack = 1e-4 * (low.power + float(mean_y.square().sum()))
    assert best == pytest.approx(low.error(1), abs=slack)
    plain = LowRank(*problem(of, kind, 0.5))
    assert best <= plain.error(1) + slack
    for seed in range(20):
        size = 10.0 ** -(seed % 4)
        other = (tensor + size * drawn(*tensor.shape, seed=seed) for tensor in (left, right, shift))
        assert error(*other) >= best - slack


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", KINDS)
def test_balances_are_of_one_product(side: Side, kind: Kind) -> None:
    of = case(2, 7, 7)
    low = LowRank(*problem(of, kind, 0.5), side=side)
    names: list[Balance] = ["sqrt", "even", "left", "right"]
    found = {balance: low.factors(3, balance=balance) for balance in names}
    for factors in found.values():
        assert {factor.dtype for factor in factors} == {torch.float32}
        expected = product(found["sqrt"])
        torch.testing.assert_close(product(factors), expected, rtol=1e-4, atol=1e-4)
    close: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-4}
    left, right = found["even"]
    torch.testing.assert_close(left.norm(dim=1), right.norm(dim=2), **close)
    eye = torch.eye(3).expand(2, -1, -1)
    left, right = found["right"]
    torch.testing.assert_close(left.mT @ left, eye, **close)
    right = found["left"][1].double()
    gram = None if kind == "input_agnostic" else of.moments()["gram"]
    inner = right @ right.mT if gram is None else right @ gram @ right.mT
    torch.testing.assert_close(inner.float(), eye, **close)
    left = found["sqrt"][0]
    torch.testing.assert_close(
        (left.mT @ left).diagonal(0, 1, 2).square().double(), low.energies[:, :3], **close
    )


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("balance", ["sqrt", "even", "left", "right"])
def test_components_of_no_energy_stay_finite(side: Side, balance: Balance) -> None:
    weight = torch.zeros(2, 6, 5, dtype=torch.float64)
    weight[0, 0, 0] = 3
    gram = Gram(torch.eye(5).expand(2, -1, -1))
    low = LowRank(*objective(weight, gram, kind="shift_aware"), side=side)
    factors = low.factors(4, balance=balance)
    torch.testing.assert_close(product(factors), weight)
    assert max(float(factor.abs().max()) for factor in factors) < 10
    assert low.error(1) == pytest.approx(0.0, abs=1e-12)


@given(of=cases, rank=st.integers(1, 4))
def test_squared_error_is_that_of_any_factors(of: Case, rank: int) -> None:
    groups, rows, columns = of.weight.shape
    left, right = drawn(groups, rows, rank), drawn(groups, rank, columns, seed=1)
    found = squared_error(left, right, **of.moments())
    assert found.shape == (groups,)
    assert float(found.sum()) == pytest.approx(of.error(left @ right, "anchored"), rel=1e-9)


def test_energies_alone_are_the_same() -> None:
    found = problem(case(2), "anchored")
    low = LowRank(*found, vectors=False)
    torch.testing.assert_close(low.energies, LowRank(*found).energies)
    with pytest.raises(ValueError, match="vectors=True"):
        low.factors(2)


@pytest.mark.parametrize("side", SIDES)
def test_the_same_bits_and_signs_again(side: Side) -> None:
    of = case(2)
    first, second = (LowRank(*problem(of, "anchored"), side=side).factors(3) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    if side == "output":
        peaks = first[0].gather(1, first[0].abs().argmax(1, keepdim=True))
        assert bool((peaks > 0).all())


def test_a_layers_own_outputs_need_no_factor_where_they_are_fewer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = problem(case(1, 6, 8, places=3), "shift_aware")
    monkeypatch.delattr(torch.linalg, "cholesky_ex")
    low = LowRank(*found)
    assert product(low.factors(3)).isfinite().all()
    assert low.error(3) == pytest.approx(0.0, abs=1e-9)


def test_errors_name_what_was_expected() -> None:
    of = case()
    found = problem(of, "anchored")
    for rank in (0, 7):
        with pytest.raises(ValueError, match=f"1 to 6, got {rank}"):
            LowRank(*found).factors(rank)
    for kind in ("anchored", "mixed"):
        with pytest.raises(ValueError, match="expected target or cross"):
            objective(of.weight, of.moments()["gram"], kind=kind, mix=0.5)
    with pytest.raises(ValueError, match="either a target or a weight"):
        LowRank(None, found.gram, None)
    with pytest.raises(ValueError, match="either a target or a weight"):
        LowRank(found.target, found.gram, None, of.weight)
