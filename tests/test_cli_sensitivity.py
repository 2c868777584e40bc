"""``edgecompress sensitivity``, and what reports show of the same figures."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from click.testing import CliRunner, Result

from edgecompress import api
from edgecompress.cli import main
from edgecompress.report import html_text, read_json, summary, write_json
from edgecompress.report import sensitivity as shown
from edgecompress.report.data import Report, SensitivityReport
from edgecompress.results import SensitivityResult
from tests.models import small_cnn
from tests.reports import sample_report

NODES: list[dict[str, Any]] = [
    {
        "node": "conv_1",
        "op": "Conv",
        "formats": {"w8a8": {"sqnr_db": 31.25, "loss": 3.14e-4}},
        "chosen": "w8a8",
    },
    {
        "node": "<b>head</b>",
        "op": "Gemm",
        "formats": {
            "w8a8": {"sqnr_db": 12.0, "loss": 0.0271},
            "w4": {"sqnr_db": 4.0, "loss": 0.2},
        },
        "chosen": "float",
    },
    {
        "node": "exact",
        "op": "Add",
        "formats": {"w8a8": {"sqnr_db": math.inf, "loss": 0.0}},
        "chosen": "w8a8",
    },
]


def found(**changes: Any) -> SensitivityReport:
    table = {"unit": "KL divergence, nats", "rows": 64, "split": "validation", "nodes": NODES}
    return SensitivityReport(**{**table, **changes})


def report(**changes: Any) -> Report:
    sample = sample_report()
    steps = [*sample.steps[:-1], sample.steps[-1].model_copy(update={"sensitivity": found()})]
    return sample.model_copy(update={"steps": steps, **changes})


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["sensitivity", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("sensitivity")
    small_cnn().save(place / "cnn.onnx")
    x = np.random.default_rng(0).normal(0, 1, (8, 3, 16, 16)).astype(np.float32)
    np.savez(place / "rows.npz", x=x)
    return place


def test_the_table_is_worst_first(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "sensitivity.json"
    arguments = [folder / "cnn.onnx", "--data", folder / "rows.npz", "--target", "cpu-x86-64"]
    result = invoke(*arguments, "--format", "w8a8", "-o", output)
    assert result.exit_code == 0, result.output
    read = SensitivityResult.model_validate_json(output.read_text())
    assert (read.target, read.sensitivity.rows) == ("cpu-x86-64", 8)
    assert read.sensitivity.split == "calibration"
    ordered = shown.worst_first(read.sensitivity)
    losses = [node.formats["w8a8"].loss for node in ordered]
    assert losses == sorted(losses, reverse=True)
    places = [result.stdout.index(f"\n{node.node} ") for node in ordered]
    assert places == sorted(places)
    assert "expected loss: relative squared error" in result.stdout
    assert "chosen" not in result.stdout


def test_json_is_what_python_gives(folder: Path) -> None:
    arguments = [folder / "cnn.onnx", "--data", folder / "rows.npz", "--loss", "kl", "--json"]
    result = invoke(*arguments, "--format", "w8a8")
    same = api.sensitivity(
        folder / "cnn.onnx", data=folder / "rows.npz", loss="kl", formats=["w8a8"]
    )
    assert json.loads(result.stdout) == same.model_dump(mode="json")
    assert same.sensitivity.unit == "KL divergence, nats"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--format", "int3"], "int3"),
        (["-o", "out.txt"], "ends in .json"),
        (["--target", "nowhere"], "nowhere"),
        (["--rows", "0"], "0"),
    ],
)
def test_bad_options_are_one_clear_error(folder: Path, options: list[str], message: str) -> None:
    result = invoke(folder / "cnn.onnx", "--data", folder / "rows.npz", *options)
    assert result.exit_code == 2
    assert message in result.output


def test_tables_put_the_most_sensitive_first() -> None:
    headings, rows = shown.columns(found())
    assert headings == [
        *("node", "op", "w8a8 loss", "w8a8 SQNR", "w4 loss", "w4 SQNR", "chosen"),
    ]
    assert rows == [
        ["<b>head</b>", "Gemm", "0.027", "12.0 dB", "0.2", "4.0 dB", "float"],
        ["conv_1", "Conv", "0.00031", "31.2 dB", "-", "-", "w8a8"],
        ["exact", "Add", "0", "exact", "-", "-", "w8a8"],
    ]


def test_the_page_draws_every_node_and_escapes_names() -> None:
    page = html_text(report())
    assert "<h2>Sensitivity</h2>" in page
    assert "<b>head</b>" not in page
    assert "&lt;b&gt;head&lt;/b&gt;" in page
    for text in ("0.027 w8a8", "0.2 w4", "31.2 dB w8a8", "exact w8a8", "KL divergence, nats"):
        assert text in page


def test_bars_are_as_long_as_their_losses_and_chosen_ones_stand_out() -> None:
    rows = shown.chart(found()).rows
    assert [row.name for row in rows] == ["<b>head</b>", "conv_1", "exact"]
    bars = list(ET.fromstring(str(rows[0].cells[0])).iter("rect"))
    widths = [float(bar.get("width", "").rstrip("%")) for bar in bars]
    assert widths[1] / widths[0] == pytest.approx(0.2 / 0.0271, rel=0.01)
    assert {bar.get("class") for bar in bars} == {"before"}
    (bar,) = ET.fromstring(str(rows[1].cells[0])).iter("rect")
    assert bar.get("class") == "after"


def test_the_summary_shows_the_worst() -> None:
    text = summary(report())
    assert "expected loss: KL divergence, nats" in text
    assert text.index("<b>head</b>") < text.index("conv_1 ")


def test_many_nodes_are_cut_short_in_the_picture_only() -> None:
    many = [{**NODES[0], "node": f"n{i}"} for i in range(60)]
    crowd = found(nodes=many)
    assert len(shown.chart(crowd).rows) == 40
    assert len(shown.columns(crowd)[1]) == 60


def test_reports_without_it_show_nothing() -> None:
    page = html_text(sample_report())
    assert "Sensitivity" not in page
    assert "expected loss" not in summary(sample_report())


def test_reports_are_read_back(tmp_path: Path) -> None:
    write_json(report(), tmp_path / "report.json")
    assert read_json(tmp_path / "report.json") == report()
