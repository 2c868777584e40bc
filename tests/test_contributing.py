"""The example pass of CONTRIBUTING.md works as it is printed there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from edgecompress import members
from edgecompress.graph_pass import Context, make_pass, run_pass
from tests.models import small_cnn

TEXT = (Path(__file__).resolve().parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")


@pytest.fixture
def threshold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The example as a module of another package, found by an entry point."""
    code = next(b for b in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "(Pass)" in b)
    (tmp_path / "contributed_threshold.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    point = SimpleNamespace(name="threshold", module="contributed_threshold")
    monkeypatch.setattr(members, "entry_points", lambda group: [point])
    return "threshold"


def test_the_example_pass_runs(threshold: str) -> None:
    model = small_cnn()
    step = make_pass(threshold, {"share": 0.2, "nodes": {"y": False}})
    applied = run_pass(step, model, Context())
    before, after = model.initializer("w1"), applied.model.initializer("w1")
    small = np.abs(before) <= 0.2 * np.abs(before).max()
    np.testing.assert_array_equal(after, np.where(small, 0, before))
    assert [change.op for change in applied.changed] == ["Conv", "Conv", "Conv"]
    assert [skip.reason for skip in applied.skipped] == ["left out by the recipe"]
    np.testing.assert_array_equal(model.initializer("w4"), applied.model.initializer("w4"))
