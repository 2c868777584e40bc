from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgecompress.runtimes._onnx_file import SourceGraph, SourceNode, named_copy
from edgecompress.runtimes._profile import arena_bytes, operator_rows
from tests.models import small_cnn


def event(name: str, ts: int, dur: int, op: str | None = None, index: int = 0) -> dict[str, Any]:
    if op is None:
        return {"cat": "Session", "name": name, "ts": ts, "dur": dur, "args": {}}
    args = {"op_name": op, "provider": "CPUExecutionProvider", "node_index": str(index)}
    return {"cat": "Node", "name": f"{name}_kernel_time", "ts": ts, "dur": dur, "args": args}


def test_operator_times_leave_out_warm_up_and_nested_nodes(tmp_path: Path) -> None:
    events = [
        *(event("model_run", 0, 99), event("big_token_3", 0, 90, "Conv", 1)),
        *(event("model_run", 100, 60), event("big_token_3", 101, 40, "Conv", 1)),
        *(event("branch", 141, 10, "If", 2), event("inner", 142, 8, "Add", 0)),
        *(event("model_run", 200, 60), event("big_token_3", 201, 20, "Conv", 1)),
        *(event("branch", 221, 0, "If", 2), event("last", 221, 4, "Add", 3)),
    ]
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(events))
    big, branch = SourceNode("Conv", (), ("c1",)), SourceNode("If", (), ("i",))
    rows = operator_rows(file, 2, SourceGraph({"big": big, "branch": branch}))
    assert [(r.name, r.mean_us, r.calls, r.output_names) for r in rows] == [
        ("big_token_3", 30.0, 1.0, ("c1",)),
        ("branch", 5.0, 1.0, ("i",)),
        ("last", 2.0, 0.5, ()),
    ]


def test_the_arenas_figures_are_its_largest(tmp_path: Path) -> None:
    events = [event("model_run", 0, 99), event("a", 0, 1, "Conv"), event("b", 2, 1, "Conv")]
    events[1]["args"] |= {"mem_arena_held": "300", "mem_in_use_peak": "100"}
    events[2]["args"] |= {"mem_arena_held": "200", "mem_in_use_peak": "150"}
    file = tmp_path / "trace.json"
    file.write_text(json.dumps(events))
    assert arena_bytes(file) == {"held": 300, "in_use_peak": 150}
    file.write_text(json.dumps(events[:1]))
    assert arena_bytes(file) == {}


def test_kernels_with_blocked_layout_are_named_by_values(tmp_path: Path) -> None:
    _, graph = named_copy(small_cnn().save(tmp_path / "cnn.onnx")[0], tmp_path)
    assert graph.stands_for("r1_nchwc", "Conv", {"r1"}) == ("c1", "r1")
    assert graph.stands_for("s_nchwc", "Conv", {"r1", "s"}) == ("c3", "s")
    assert graph.stands_for("Gemm:y_token_1", "QGemm", set()) == ("y",)
    assert graph.stands_for("ReorderOutput", "ReorderOutput", set()) == ()
