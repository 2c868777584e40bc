"""Models larger than memory: what reads their weights, how often, and how much memory it takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from benchmarks._llama import Llama, write
from edgecompress.api import inspect
from edgecompress.graph_pass import Context, make_pass, run_pass
from edgecompress.model import Model
from edgecompress.weights.data_file import DataFile
from edgecompress.weights.external_data import FileTensor
from tests.running import run

SMALL = Llama(width=64, layers=3, heads=8, kv_heads=2, mlp=160, vocabulary=500)
SIXTY_MB = Llama(width=512, layers=4, heads=8, kv_heads=4, mlp=2048, vocabulary=1500)

FEEDS = {
    "input_ids": np.random.default_rng(0).integers(0, 500, (2, 9)),
    "attention_mask": np.array([[1] * 9, [0] * 4 + [1] * 5]),
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "llama.onnx"
    write(SMALL, path)
    return path


def test_the_generated_model_is_a_sound_llama(llama: Path, tmp_path: Path) -> None:
    assert 1e9 < Llama().parameters < 1.2e9
    model = Model.load(llama)
    model.check()
    assert model.weight_bytes == pytest.approx(4 * SMALL.parameters, rel=0.01)
    logits = run(model, FEEDS)["logits"]
    assert logits.shape == (2, 9, 500)
    assert np.isfinite(logits).all()
    assert 0.1 < logits.std() < 10
    # Causal: what comes later changes nothing before; the mask hides what it covers.
    later = {**FEEDS, "input_ids": FEEDS["input_ids"].copy()}
    later["input_ids"][0, 6:] = 1
    later["input_ids"][1, :4] = 2
    again = run(model, later)["logits"]
    np.testing.assert_allclose(again[0, :6], logits[0, :6], atol=1e-5)
    np.testing.assert_allclose(again[1, 4:], logits[1, 4:], atol=1e-5)
    assert not np.allclose(again[0, 6:], logits[0, 6:])
    write(SMALL, tmp_path / "llama.onnx")
    assert Model.load(tmp_path / "llama.onnx").digest == model.digest


def test_cleanup_reads_almost_nothing(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model.load(llama)
    expected = run(model, FEEDS)["logits"]
    sizes: list[int] = []
    fill = DataFile.fill

    def counted(self: DataFile, start: int, buffer: memoryview) -> None:
        sizes.append(len(buffer))
        fill(self, start, buffer)

    monkeypatch.setattr(DataFile, "fill", counted)
    applied = run_pass(make_pass("cleanup", {}), model, Context())
    assert applied.changed
    assert max(sizes) <= 4096  # the first bytes of weights of the same shape
    monkeypatch.undo()
    np.testing.assert_allclose(run(applied.model, FEEDS)["logits"], expected, atol=1e-5)
    kept = [v.const_value for v in applied.model.ir.graph.initializers.values()]
    assert (
        sum(isinstance(tensor, FileTensor) for tensor in kept) == 2 + 5 * SMALL.layers
    )  # keys and values are small


def test_inspect_shows_each_layer_as_one_block(llama: Path) -> None:
    found = inspect(llama)
    groups = [block.group for block in found.blocks]
    (repeated,) = {group for group in groups if group is not None and groups.count(group) > 1}
    alike = [block for block in found.blocks if block.group == repeated]
    assert len(alike) == SMALL.layers
    assert {block.layers for block in alike} == {7}
    layer = (SMALL.parameters - 2 * 500 * 64 - 64) // 3
    assert all(block.parameters == pytest.approx(layer, rel=0.01) for block in alike)
    assert sum(block.parameters for block in found.blocks) == pytest.approx(
        SMALL.parameters, rel=0.01
    )
    assert not any(block.opaque for block in found.blocks)
    assert all(len(block.inputs) == 1 for block in found.blocks[1:])


def test_inspect_prints_a_line_for_blocks_in_a_row(llama: Path) -> None:
    from click.testing import CliRunner

    from edgecompress.cli import main

    text = CliRunner().invoke(main, ["inspect", os.fspath(llama)]).output
    (line,) = [line for line in text.splitlines() if " x block of " in line]
    assert line.startswith(f"{SMALL.layers} x block of ")
    data = json.loads(CliRunner().invoke(main, ["inspect", os.fspath(llama), "--json"]).stdout)
    assert len(data["blocks"]) > SMALL.layers


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for its peak")
def test_memory_does_not_grow_with_the_weights(tmp_path: Path) -> None:
    """Load, check, digest, clean and save take far less memory than the weights."""
    size = write(SIXTY_MB, tmp_path / "m.onnx")
    assert size > 60e6
    program = textwrap.dedent(
        """
        import json, sys
        from pathlib import Path
        from edgecompress.graph_pass import Context, make_pass, run_pass
        from edgecompress.model import Model
        import onnxscript.optimizer, edgecompress.fusions

        def peak():
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(1024 * int(line.split()[1]) for line in lines if "VmHWM" in line)

        folder = Path(sys.argv[1])
        before = peak()
        model = Model.load(folder / "m.onnx")
        clean = run_pass(make_pass("cleanup", {}), model, Context()).model
        digest = clean.digest
        clean.save(folder / "one.onnx")
        clean.save(folder / "two.onnx", external_data=True)
        assert Model.load(folder / "two.onnx").digest == digest
        print(json.dumps([before, peak()]))
        """
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.fspath(tmp_path)],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    before, after = json.loads(done.stdout.splitlines()[-1])
    assert after - before < size, f"{before / 1e6:.0f} -> {after / 1e6:.0f} MB"
    assert Model.load(tmp_path / "one.onnx").digest == Model.load(tmp_path / "two.onnx").digest
