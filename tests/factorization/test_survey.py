"""Spectra against closed forms, importance of blocks, and losses against those measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgecompress.data.calibration import Batch, CalibrationSet
from edgecompress.errors import PassError
from edgecompress.factorization.layers import find_layers
from edgecompress.factorization.parts import Layer, Spectrum, held_out
from edgecompress.factorization.survey import _Moments, survey
from edgecompress.graph_pass import Context
from edgecompress.model import Model
from edgecompress.resources import Resources
from edgecompress.torchgraph import as_tensors, to_torch
from edgecompress.walk.blocks import find_blocks
from tests.factorization.factor_runs import chain, rows, tokens
from tests.models import small_cnn
from tests.running import rows_of
from tests.test_blocks import decoder


def surveyed(
    model: Model, data: CalibrationSet, *, gradients: bool = False, **context: Any
) -> dict[str, Spectrum]:
    layers, _ = find_layers(model, lambda node: True)
    given = Context(calibration=data, **context)
    found = survey(model, layers, given, rows=64, gradients=gradients)
    assert [each.layer for each in found] == layers
    return {each.layer.output: each for each in found}


def outputs(model: Model, data: CalibrationSet, names: list[str], size: int) -> dict[str, Tensor]:
    """Values of all batches that are not held out."""
    graph, found = to_torch(model), []
    with torch.no_grad():
        for batch in data.batches("calibration", size):
            if not held_out(batch.number):
                found.append(graph(as_tensors(batch.inputs), outputs=names))
    return {name: torch.cat([each[name] for each in found]).double() for name in names}


def images(folder: Path, model: Model) -> CalibrationSet:
    x = np.random.default_rng(0).normal(0, 1, (64, 3, 16, 16)).astype(np.float32)
    return rows_of(folder, model, {"x": x})


def case(name: str, folder: Path) -> tuple[Model, CalibrationSet]:
    if name == "chain":
        return chain(), rows(folder, chain(), tokens())
    return small_cnn(channels=16), images(folder, small_cnn(channels=16))


@pytest.mark.parametrize("name", ["chain", "cnn"])
def test_energies_are_the_power_of_outputs(name: str, tmp_path: Path) -> None:
    """What is left behind rank k is the error of the best projection of the outputs."""
    model, data = case(name, tmp_path)
    found = surveyed(model, data)
    values = outputs(model, data, list(found), 8)
    for output, spectrum in found.items():
        layer, y = spectrum.layer, values[output]
        y = (y.movedim(1, -1) if layer.op == "Conv" else y).reshape(-1, layer.rows)
        y = y - y.mean(0) if layer.bias else y
        expected = torch.linalg.svdvals(y).square() / len(y)
        full = min(layer.rows, layer.columns)
        torch.testing.assert_close(
            spectrum.energies, expected[:full], rtol=1e-3, atol=1e-5 * float(expected[0])
        )
        assert spectrum.power == pytest.approx(float(y.square().sum() / len(y)), rel=1e-4)
        assert spectrum.loss_change is None


def test_importance_is_how_far_a_block_turns_its_input(tmp_path: Path) -> None:
    model = decoder(3)
    rng = np.random.default_rng(0)
    arrays = {"ids": rng.integers(0, 32, (64, 5)), "mask": np.ones((64, 5), np.float32)}
    data = rows_of(tmp_path, model, arrays)
    found = surveyed(model, data)
    values = outputs(model, data, ["x0", "x1", "x2", "x3"], 8)
    blocks = find_blocks(model)
    seen = set()
    for i in range(3):
        inside = next(b for b in blocks if any(n.outputs[0].name == f"q{i}" for n in b.nodes))
        if inside.inputs == (f"x{i}",) and inside.outputs == (f"x{i + 1}",):
            cosines = torch.cosine_similarity(values[f"x{i}"], values[f"x{i + 1}"], dim=-1)
            assert found[f"q{i}"].importance == pytest.approx(1 - float(cosines.mean()), abs=1e-5)
            assert found[f"d{i}"].importance == found[f"q{i}"].importance > 0
            seen.add(i)
    assert seen
    assert found["logits"].importance == 0


@pytest.mark.parametrize("output", ["m2", "h2"])
def test_changes_of_the_loss_are_those_measured(output: str, tmp_path: Path) -> None:
    """Of the last components that make the outputs about as wrong as noise of some percent."""
    model = chain()
    data = rows(tmp_path, model, tokens(rows=64))
    spectrum = surveyed(model, data, gradients=True)[output]
    assert spectrum.loss_change is not None
    assert len(spectrum.loss_change) == len(spectrum.energies)
    values = outputs(model, data, [output, "y"], 4)
    layer, flat = spectrum.layer, values[output].reshape(-1, spectrum.layer.rows)
    weight = torch.from_numpy(np.array(model.initializer(layer.weight))).double().T
    _, basis = torch.linalg.eigh(flat.T @ flat)
    for rank in (8, 10, 12):
        kept = basis[:, -rank:]
        cut = model.clone()
        cut.set_initializer(layer.weight, (kept @ kept.T @ weight).T.float().numpy())
        wrong = outputs(cut, data, ["y"], 4)["y"]
        errors = (wrong - values["y"]).square().sum((1, 2))
        loss = float((errors / values["y"].square().sum((1, 2))).sum())
        assert float(spectrum.loss_change[rank:].sum()) == pytest.approx(loss, rel=0.5)


def test_threads_and_memory_change_nothing(tmp_path: Path) -> None:
    model = chain()
    data = rows(tmp_path, model, tokens())
    before = torch.get_num_threads()
    found = []
    try:
        for threads, memory in ((1, None), (3, None), (1, 2**14)):
            torch.set_num_threads(threads)
            resources = Resources(memory=memory, scratch=tmp_path)
            found.append(surveyed(model, data, gradients=True, resources=resources))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        for name, spectrum in found[0].items():
            assert torch.equal(spectrum.energies, other[name].energies)
            assert spectrum.importance == other[name].importance
            assert spectrum.loss_change is not None
            assert other[name].loss_change is not None
            assert torch.equal(spectrum.loss_change, other[name].loss_change)  # type: ignore[arg-type]


@pytest.mark.parametrize("of_output", [True, False])
def test_padding_does_not_count(of_output: bool) -> None:
    (layer, *_), _ = find_layers(chain(), lambda node: True)
    mask = np.arange(5) < np.array([[5], [2], [3]])
    values = np.random.default_rng(0).normal(0, 1, (3, 5, 32 if of_output else 16))
    found = []
    for padding in (0.0, 1e6):
        padded = torch.from_numpy(np.where(mask[..., None], values, padding)).float()
        moments = _Moments(layer, of_output)
        batch = Batch({}, None, 3, np.arange(3), mask=mask)
        moments.add(batch, padded, 100, torch.Generator())
        found.append(moments.of(layer, centred=True))
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(
        found[0][1][0], torch.from_numpy(values[mask].mean(0)), rtol=1e-5, atol=1e-6
    )


def nothing_real(layer: Layer) -> _Moments:
    moments = _Moments(layer, False)
    batch = Batch({}, None, 2, np.arange(2), mask=np.zeros((2, 5), bool))
    moments.add(batch, torch.zeros(2, 5, 16), 100, torch.Generator())
    return moments


def test_nothing_but_padding_is_named() -> None:
    (layer, *_), _ = find_layers(chain(), lambda node: True)
    for moments in (nothing_real(layer), _Moments(layer, True)):
        with pytest.raises(PassError, match="nothing but padding"):
            moments.of(layer, centred=False)


def test_activations_that_are_not_finite_are_named(tmp_path: Path) -> None:
    model = chain()
    weight = np.array(model.initializer("a2"))
    weight[0, 0] = np.inf
    model.set_initializer("a2", weight)
    with pytest.raises(PassError, match=r"the layer 'm1'.*finite activations"):
        surveyed(model, rows(tmp_path, model, tokens()))
