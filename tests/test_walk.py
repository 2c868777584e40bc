"""The walk: two streams through a graph block by block, in bounded memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor

from edgecompress.data.calibration import Batch, CalibrationSet, DataSpec
from edgecompress.errors import OutputError, PassError
from edgecompress.model import Model
from edgecompress.statistics import collect
from edgecompress.torchgraph import as_tensors, to_torch
from edgecompress.walk.blocks import find_blocks
from edgecompress.walk.scratch import Budget
from edgecompress.walk.walker import Walk, Watch
from tests.models import small_cnn
from tests.running import rows_of
from tests.test_blocks import decoder


def cnn_rows(tmp_path: Path, model: Model, rows: int = 10) -> CalibrationSet:
    x = np.random.default_rng(0).normal(0, 1, (rows, 3, 16, 16)).astype(np.float32)
    return rows_of(tmp_path, model, {"x": x}, batch_size=4)


def token_rows(tmp_path: Path, model: Model) -> CalibrationSet:
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 32, (6, 5))
    mask = rng.integers(0, 2, (6, 5)).astype(np.float32)
    return rows_of(tmp_path, model, {"ids": ids, "mask": mask}, batch_size=2)


def plainly(model: Model, data: CalibrationSet, name: str) -> list[Tensor]:
    graph = to_torch(model)
    with torch.no_grad():
        return [
            graph(as_tensors(batch.inputs), outputs=[name])[name]
            for batch in data.batches("calibration")
        ]


class Seen:
    """Values by name, batch after batch."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}

    def __call__(self, batch: Batch, name: str, values: Tensor) -> None:
        self.values.setdefault(name, []).append(values.clone())


MODELS = {"cnn": (small_cnn, cnn_rows, "y"), "decoder": (lambda: decoder(3), token_rows, "logits")}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("kept", [None, 0, 1000])
def test_two_streams_are_the_two_graphs(kind: str, kept: int | None, tmp_path: Path) -> None:
    """Each block is edited when the walk reaches it; both streams stay what the graphs compute."""
    build, rows, output = MODELS[kind]
    original = build()
    edited = original.clone()
    data = rows(tmp_path, original)
    seen, seen_edited = Seen(), Seen()
    walk = Walk(original, data, current=edited, blocks=find_blocks(original))
    walk.budget.limit = kept
    for step in walk:
        before = [(dict(b.original), dict(b.current)) for b in step.batches()]
        assert len(before) == 3
        assert not any(key in b for b, _ in before for key in step.block.outputs)
        if step.number >= 2:
            scale_first_matrix(edited, step.block.nodes)
        step.advance(Watch([output], seen), Watch([output], seen_edited))
    for model, found in ((original, seen), (edited, seen_edited)):
        expected = plainly(model, data, output)
        assert all(map(torch.equal, found.values[output], expected))
    assert not torch.equal(seen.values[output][0], seen_edited.values[output][0])
    assert walk.budget.used == 0
    assert (walk.budget.spilled > 0) == (kept is not None)


def scale_first_matrix(model: Model, nodes: tuple[ir.Node, ...]) -> None:
    names = [
        value.name
        for node in nodes
        for value in node.inputs
        if value is not None and value.is_initializer() and len(value.const_value.shape) > 1
    ]
    model.set_initializer(names[0], model.initializer(names[0]) * np.float32(0.5))


def test_streams_are_one_until_the_first_edit(tmp_path: Path) -> None:
    original = decoder(3)
    edited = original.clone()
    walk = Walk(
        original, token_rows(tmp_path, original), current=edited, blocks=find_blocks(original)
    )
    diverged = []
    for step in walk:
        for batch in step.batches():
            same = batch.original is batch.current
            assert same == (step.number <= 2)
        if step.number == 2:
            scale_first_matrix(edited, step.block.nodes)
        diverged.append(walk.diverged)
    assert diverged == [False, False, False, True, True]


def test_edits_may_change_the_nodes_of_a_block(tmp_path: Path) -> None:
    """One matrix becomes two, as low-rank factorization does it."""
    original = decoder(2)
    edited = original.clone()
    data = token_rows(tmp_path, original)
    seen = Seen()
    for step in Walk(original, data, current=edited, blocks=find_blocks(original)):
        if step.block.name == "l.0":
            factorize(edited, "u0")
            assert len(step.current_nodes) == len(step.block.nodes) + 1
        step.advance(current=Watch(["logits"], seen))
    expected = plainly(edited, data, "logits")
    assert all(map(torch.equal, seen.values["logits"], expected))


def factorize(model: Model, output: str) -> None:
    node = next(n for n in model.ir.graph if n.outputs[0].name == output)
    weight = node.inputs[1].const_value.numpy()
    u, s, v = np.linalg.svd(weight)
    first, second = ((u * s)[:, :3].astype(np.float32), v[:3].astype(np.float32))
    values = [
        ir.Value(name=f"{output}_{i}", const_value=ir.tensor(a))
        for i, a in enumerate((first, second))
    ]
    for value in values:
        model.ir.graph.register_initializer(value)
    down = ir.node("MatMul", [node.inputs[0], values[0]])
    down.outputs[0].name = f"{output}_down"
    model.ir.graph.insert_before(node, down)
    node.replace_input_with(0, down.outputs[0])
    node.replace_input_with(1, values[1])


def test_removing_a_value_at_a_cut_is_an_error_of_the_pass(tmp_path: Path) -> None:
    original = decoder(2)
    edited = original.clone()
    walk = Walk(
        original, token_rows(tmp_path, original), current=edited, blocks=find_blocks(original)
    )
    steps = iter(walk)
    next(steps)
    next(v for n in edited.ir.graph for v in n.outputs if v.name == "x1").name = "other"
    with pytest.raises(PassError, match="an edit removed one of the values x1"):
        list(steps)


def test_cuts_that_the_second_graph_lacks_are_joined(tmp_path: Path) -> None:
    original = decoder(2)
    edited = original.clone()
    next(v for n in edited.ir.graph for v in n.outputs if v.name == "x1").name = "other"
    data, seen = token_rows(tmp_path, original), Seen()
    walk = Walk(original, data, current=edited, blocks=find_blocks(original))
    assert [block.layers for block in walk.blocks] == [1, 12, 1]
    for step in walk:
        step.advance(current=Watch(["logits"], seen))
    assert torch.equal(seen.values["logits"][0], plainly(original, data, "logits")[0])


def test_activations_kept_are_the_widest_cut_times_the_rows(tmp_path: Path) -> None:
    """However deep the graph is; one batch is in both stores while it passes."""
    rows, batch, cut = 6, 2, 5 * 8 * 4
    peaks = []
    for layers in (2, 6):
        original = decoder(layers)
        walk = Walk(original, token_rows(tmp_path, original), blocks=find_blocks(original))
        for _ in walk:
            pass
        peaks.append(walk.budget.peak)
    assert peaks == [(rows + batch) * cut] * 2


@pytest.mark.parametrize("memory", [100_000_000, 1000])
def test_statistics_do_not_depend_on_the_memory(
    memory: int, tmp_path: Path, shared: Callable[[str], Path]
) -> None:
    model = Model.load(shared("resnet20_cifar10.onnx"))
    pixels = np.load(shared("cifar10.npz"))["eval_x"][:20]
    np.savez(tmp_path / "rows.npz", input=pixels)
    spec = DataSpec.model_validate(
        {"path": "rows.npz", "validation_share": 0, "preprocess": {"scale": 1 / 255}}
    )
    data = CalibrationSet.open(spec, model.signature, base=tmp_path)
    names = [v.name for n in model.ir.graph for v in n.outputs if v.dtype == ir.DataType.FLOAT]
    free, bounded = collect(model, data, names), collect(model, data, names, memory=memory)
    assert free.rows == bounded.rows == 20
    for name in names:
        ours, theirs = free[name], bounded[name]
        assert (ours.low, ours.high, ours.count) == (theirs.low, theirs.high, theirs.count), name
        assert (ours.mean, ours.rms) == (theirs.mean, theirs.rms), name
        assert torch.equal(ours.histogram.counts, theirs.histogram.counts), name


def test_weights_of_a_block_go_when_it_is_through(tmp_path: Path) -> None:
    original = decoder(2)
    alive = []
    for step in Walk(original, token_rows(tmp_path, original), blocks=find_blocks(original)):
        graph = step.original
        alive.append(weakref.ref(graph))
        del graph
        step.advance()
        gc.collect()
        assert alive[-1]() is None


def test_what_torch_cannot_run_is_walked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "edgecompress.walk.blocks.is_supported", lambda node, opsets: node.op_type != "Clip"
    )
    model = small_cnn()
    data, seen = cnn_rows(tmp_path, model), Seen()
    walk = Walk(model, data, blocks=find_blocks(model))
    assert any(block.opaque for block in walk.blocks)
    for step in walk:
        step.advance(Watch(["r2", "y"], seen))
    for name in ("r2", "y"):
        for found, expected in zip(seen.values[name], plainly(model, data, name), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_each_value_is_shown_once(tmp_path: Path) -> None:
    """Context is computed again in each block, cuts are read by the next one."""
    model = decoder(2)
    data, seen = token_rows(tmp_path, model), Seen()
    for step in Walk(model, data, blocks=find_blocks(model)):
        step.advance(Watch(["mask", "bias", "x1", "logits", "no such value"], seen))
    assert {name: len(found) for name, found in seen.values.items()} == dict.fromkeys(
        ("mask", "bias", "x1", "logits"), 3
    )


def test_rows_limit_and_progress(tmp_path: Path) -> None:
    model = small_cnn()
    told: list[tuple[str, int, int]] = []
    data, seen = cnn_rows(tmp_path, model), Seen()
    walk = Walk(model, data, rows=5, progress=lambda *at: told.append(at), label="look")
    for step in walk:
        step.advance(Watch(["y"], seen))
    assert [len(values) for values in seen.values["y"]] == [4, 4]
    assert told == [("look", 4, 5), ("look", 5, 5)]


def test_lost_scratch_folder_is_one_clear_error(tmp_path: Path) -> None:
    model = decoder(2)
    walk = Walk(
        model,
        token_rows(tmp_path, model),
        blocks=find_blocks(model),
        memory=0,
        scratch=tmp_path / "gone",
    )
    with pytest.raises(OutputError, match="scratch folder cannot be written"):
        for _ in walk:
            pass
    assert walk.budget == Budget(0, tmp_path / "gone")
