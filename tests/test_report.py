"""The four faces of a report: what they show, and that nothing gets through unescaped."""

from __future__ import annotations

import base64
import hashlib
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgecompress import report as reports_package
from edgecompress.errors import InputError
from edgecompress.report import charts, figures, html_text, junit_text, picture, summary, table
from edgecompress.report import format as fmt
from edgecompress.report.data import Report, SkipReport
from edgecompress.report.html import by_reason
from tests.reports import sample_layers, sample_measurement, sample_report, sample_steps

_HOSTILE = "<script>alert('x')</script>&\"]]>\x1b[31m\u202e"
_ERROR = {
    "error": "MeasurementError",
    "what": "the runtime could not load the file",
    "where": "pass 'quantize'",
    "cure": "choose another target",
    "exit_code": 1,
}


class _Page(HTMLParser):
    """Tags, attributes and text of a page; fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def _without_measurements() -> list[dict[str, object]]:
    return [s | {"measurement": sample_measurement(None, None)} for s in sample_steps()]


def _hostile() -> Report:
    """A report in which every text that comes from outside is an attack."""
    layers = [layer | {"node": f"{_HOSTILE}{i}"} for i, layer in enumerate(sample_layers())]
    steps = sample_steps()
    steps[3]["skipped"] = [{"node": _HOSTILE, "op": _HOSTILE, "reason": _HOSTILE}]
    steps[3]["changed"] = []
    steps[3] |= {"reason": _HOSTILE, "options": {_HOSTILE: _HOSTILE}, "notes": {"n": [_HOSTILE]}}
    return sample_report(
        status="failed",
        target=_HOSTILE,
        layers=layers,
        steps=steps,
        coverage={"claimed": 2, "fused": 1, "unfused": {_HOSTILE: _HOSTILE}},
        error=dict.fromkeys(_ERROR, _HOSTILE),
        notes=[_HOSTILE],
        versions={_HOSTILE: _HOSTILE},
        budgets=[
            {
                "name": _HOSTILE,
                "limit": 1.0,
                "value": 2.0,
                "unit": _HOSTILE,
                "basis": "measured",
                "passed": False,
            }
        ],
    )


_REPORTS = {
    "passed": sample_report(),
    "hostile": _hostile(),
    "unmeasured": sample_report(status="failed", steps=_without_measurements()),
    "broken at once": sample_report(
        status="error",
        error=_ERROR,
        source=None,
        data=None,
        metric=None,
        steps=[],
        layers=[],
        coverage=None,
        budgets=[],
        files=[],
        notes=[],
    ),
    "many layers": sample_report(layers=sample_layers() * 3),
}


@pytest.fixture(params=_REPORTS.values(), ids=_REPORTS.keys())
def report(request: pytest.FixtureRequest) -> Report:
    found: Report = request.param
    return found


class TestFiles:
    def test_json_comes_back_as_it_went(self, report: Report, tmp_path: Path) -> None:
        reports_package.write_json(report, tmp_path / "report.json")
        assert reports_package.read_json(tmp_path / "report.json") == report

    @pytest.mark.parametrize(
        ("content", "what"),
        [(None, "cannot be read"), ("{}", "tool: Field required"), ("[", "Invalid JSON")],
    )
    def test_a_file_that_is_no_report_is_refused(
        self, tmp_path: Path, content: str | None, what: str
    ) -> None:
        path = tmp_path / "report.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(InputError, match=what) as refused:
            reports_package.read_json(path)
        assert refused.value.where == str(path)
        assert refused.value.cure

    def test_only_the_named_files_are_left(self, tmp_path: Path) -> None:
        reports_package.write_json(sample_report(), tmp_path / "report.json")
        reports_package.write_html(sample_report(), tmp_path / "report.html")
        reports_package.write_junit(sample_report(), tmp_path / "junit.xml")
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {"report.json", "report.html", "junit.xml"}

    def test_importing_the_report_loads_nothing_heavy(self) -> None:
        heavy = "{'torch', 'onnx', 'onnxruntime', 'jinja2'}"
        code = f"import sys, edgecompress.report; print({heavy} & set(sys.modules))"
        loaded = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert loaded.stdout.strip() == "set()"


class TestPage:
    def test_is_well_formed_and_needs_nothing_from_outside(self, report: Report) -> None:
        text = html_text(report)
        page = _Page(text)
        tags = [tag for tag, _ in page.tags]
        assert tags.count("script") == 1
        assert not {"link", "img", "iframe", "object", "base", "form"} & set(tags)
        for _, attributes in page.tags:
            assert not {"src", "href", "xlink:href"} & set(attributes)
            assert not [name for name in attributes if name.startswith("on")]
        assert "@import" not in text
        assert "url(" not in text

    def test_hostile_names_are_shown_but_never_obeyed(self) -> None:
        text = html_text(_hostile())
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(" in text
        assert "\x1b" not in text
        assert "\u202e" not in text

    def test_the_policy_names_the_only_script(self) -> None:
        text = html_text(sample_report())
        script = re.search(r"<script>(.*)</script>", text, re.DOTALL)
        assert script is not None
        digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
        policy = next(a["content"] for _, a in _Page(text).tags if a.get("http-equiv") is not None)
        assert policy == (
            f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
        )

    def test_the_headline_tells_before_and_after(self) -> None:
        text = _Page(html_text(sample_report())).text
        for words in (
            "mobilenet_v1_075_224.onnx PASSED",
            "File size 2.80 MB before 10.4 MB 0.27x",
            "top1 0.8500 before 0.8489 +0.0011",
            "Latency, p50 3.79 ms before 7.91 ms 0.48x",
            "Peak memory 44.8 MB before 61.3 MB 0.73x",
            "52 of 52",
            "top1 fell by 0.0144, the budget allows 0.005",
            "the target's runtime has no integer kernel for ReduceMean",
            "1b7e" * 16,
            "100 rows of imagenet/calib",
        ):
            assert words in text

    def test_an_unknown_is_a_word_with_its_reason(self) -> None:
        unmeasured = sample_report(steps=_without_measurements(), budgets=[], layers=[])
        page = _Page(html_text(unmeasured))
        assert "Latency, p50 unknown before unknown" in page.text
        assert "Peak memory unknown before unknown" in page.text
        reasons = {a["title"] for _, a in page.tags if a.get("class") == "unknown" and "title" in a}
        assert "the target is another device and none is attached" in reasons
        assert re.search(r"\d ms\b", page.text) is None

    def test_an_estimate_is_called_one(self) -> None:
        steps = sample_steps()
        steps[3]["measurement"] = sample_measurement(
            3.79, 0.48, basis="estimated", reason="roofline of the target"
        )
        estimated = sample_report(steps=steps)
        assert "3.79 ms estimated" in _Page(html_text(estimated)).text
        assert "~3.79 ms" in summary(estimated)

    def test_an_error_stands_first(self) -> None:
        text = _Page(html_text(_REPORTS["broken at once"])).text
        words = ["MeasurementError", "pass 'quantize'", "could not load", "choose another target"]
        places = [text.index(word) for word in [*words, "edgecompress build report"]]
        assert places == sorted(places)

    def test_a_build_that_broke_off_at_the_source_has_no_after(self) -> None:
        broken = sample_report(status="error", error=_ERROR, steps=sample_steps()[:1])
        assert "File size unknown before 10.4 MB" in _Page(html_text(broken)).text

    def test_an_infinite_metric_is_drawn_nowhere(self) -> None:
        steps = sample_steps()
        steps[0]["metric"] = math.inf
        infinite = sample_report(
            steps=steps, metric={"name": "sqnr", "higher_is_better": True, "rows": 400}
        )
        text = html_text(infinite)
        assert "sqnr 0.8500 before infinite" in _Page(text).text
        assert 'inf%"' not in text
        assert 'nan%"' not in text

    def test_layers_stand_worst_sqnr_first_and_unknown_last(self) -> None:
        layers = sample_layers()
        layers[0]["sqnr_db"] = None
        layers[9]["sqnr_db"] = -3.0
        layers[4]["sqnr_db"] = math.inf
        order = [
            place for place, _ in figures.worst_sqnr_first(sample_report(layers=layers).layers)
        ]
        assert order[0] == 10
        assert order[-2:] == [5, 1]

    def test_skips_are_grouped_by_reason(self) -> None:
        skips = [SkipReport(node=n, op="Add", reason=r) for n, r in ("ax", "by", "cx")]
        assert [(r, [s.node for s in g]) for r, g in by_reason(skips)] == [
            ("x", ["a", "c"]),
            ("y", ["b"]),
        ]


class TestPicture:
    def test_many_layers_end_in_one_row_with_their_sum(self) -> None:
        layers = [layer | {"node": f"n{i}"} for i, layer in enumerate(sample_layers() * 3)]
        drawn = picture.layers(sample_report(layers=layers))
        shown = {row.name for row in drawn.rows[:-1]}
        rest = sum(layer["bytes_before"] for layer in layers if layer["node"] not in shown)
        assert len(drawn.rows) == 30
        assert drawn.rows[-1].name == "55 other layers"
        assert f"before {fmt.size(rest)};" in drawn.rows[-1].cells[0]

    def test_a_sum_with_an_unknown_part_is_unknown(self) -> None:
        layers = sample_layers() * 2
        for layer in layers:
            layer["time_after_us"] = None
        last = picture.layers(sample_report(layers=layers)).rows[-1]
        assert "the runtime timed 0 of these 27 layers" in last.cells[1]
        assert "after unknown" in last.cells[1]

    def test_operator_times_are_summed_by_type(self) -> None:
        source = figures.before(sample_report())
        times = figures.operator_times(source)
        convolutions = sum(layer["time_before_us"] for layer in sample_layers())
        assert next(iter(times)) == "Conv"
        assert times["Conv"] == pytest.approx(convolutions)

    def test_a_bar_is_as_long_as_its_share_of_the_axis(self) -> None:
        along = charts.scale([0.0, 40.0], fmt.ms)
        marks = [charts.Mark("m", figures.Figure("10 ms", 10.0), "after")]
        rect = ET.fromstring(charts.bars(along, marks)).find("rect")
        assert rect is not None
        assert rect.get("width") == f"{along.x(40.0) / 4:.2f}%"

    @given(st.lists(st.one_of(st.none(), st.floats(-1e12, 1e12)), max_size=6), st.booleans())
    def test_every_axis_holds_its_values_and_few_ticks(
        self, values: list[float | None], from_zero: bool
    ) -> None:
        along = charts.scale(values, fmt.number, from_zero=from_zero)
        known = [value for value in values if value is not None]
        assert all(-1e-6 <= along.x(value) <= 70 + 1e-6 for value in known)
        assert len(along.ticks) <= 6
        assert bool(known) == bool(along.ticks) or not from_zero
        ET.fromstring(charts.axis(along))


class TestJUnit:
    def test_is_xml_whose_counts_add_up(self, report: Report) -> None:
        root = ET.fromstring(junit_text(report))
        suite = root.find("testsuite")
        assert suite is not None
        assert root.tag == "testsuites"
        assert suite.get("name") == "edgecompress"
        for key, found in (
            ("tests", "testcase"),
            ("failures", "testcase/failure"),
            ("errors", "testcase/error"),
            ("skipped", "testcase/skipped"),
        ):
            assert suite.get(key) == root.get(key) == str(len(suite.findall(found)))
        assert float(suite.get("time", "")) == report.seconds
        assert {case.get("classname") for case in suite.iter("testcase")} == {
            fmt.clean(report.target)
        }

    def test_a_good_build_has_no_failure(self) -> None:
        suite = ET.fromstring(junit_text(sample_report())).find("testsuite")
        assert suite is not None
        assert (suite.get("tests"), suite.get("failures")) == ("10", "0")
        rolled_back = suite.find("testcase[@name='step equalize']/skipped")
        assert rolled_back is not None
        assert rolled_back.get("message") == (
            "rolled back: top1 fell by 0.0144, the budget allows 0.005"
        )
        values = {p.get("name"): p.get("value") for p in suite.iter("property")}
        assert values["size_after"] == "2.80 MB"
        assert values["latency_ratio"] == "0.48x"

    def test_failures_say_what_was_found(self) -> None:
        budget = sample_report().budgets[0].model_dump()
        failed = sample_report(
            status="failed",
            budgets=[
                budget | {"passed": False, "value": 5.5},
                budget | {"name": "memory_mb", "passed": False, "value": None, "basis": "unknown"},
            ],
            coverage={"claimed": 52, "fused": 51, "unfused": {"c1": "stays Conv"}},
        )
        messages = [f.get("message") for f in ET.fromstring(junit_text(failed)).iter("failure")]
        assert messages == [
            "limit 4 MB, found 5.50 MB (measured)",
            "limit 4 MB, found unknown",
            "fusion coverage: 51 of 52 claimed nodes run fused",
        ]

    def test_a_broken_build_is_an_error(self) -> None:
        error = ET.fromstring(junit_text(_REPORTS["broken at once"])).find(".//error")
        assert error is not None
        assert error.get("type") == "MeasurementError"
        assert error.get("message") == "the runtime could not load the file"
        assert "choose another target" in (error.text or "")


class TestTerminal:
    def test_columns_stand_in_line(self) -> None:
        text = table(["name", "size"], [["a", "2.80 MB"], ["long one", "512 B"]], align="lr")
        assert text.splitlines() == [
            "name         size",
            "--------  -------",
            "a         2.80 MB",
            "long one    512 B",
        ]

    @pytest.mark.parametrize("columns", [20, 40, 80])
    def test_only_the_first_column_is_cut(
        self, monkeypatch: pytest.MonkeyPatch, columns: int
    ) -> None:
        monkeypatch.setenv("COLUMNS", str(columns))
        name = "/model/layers.0/self_attn/q_proj/MatMul_quantized_by_us"
        lines = table(["node", "size"], [[name, "123.45"]], align="lr").splitlines()
        assert all(len(line) <= columns for line in lines)
        assert lines[-1].startswith("/mo")
        assert lines[-1].endswith("us  123.45")
        assert ("…" in lines[-1]) == (columns < 80)

    @pytest.mark.parametrize(("rows", "align"), [([["a"]], "lr"), ([["a", "b"]], "l")])
    def test_rows_of_another_width_are_refused(self, rows: list[list[str]], align: str) -> None:
        with pytest.raises(ValueError, match="expected 2 columns"):
            table(["one", "two"], rows, align=align)

    def test_the_summary_tells_steps_budgets_coverage_and_verdict(self) -> None:
        lines = summary(sample_report()).splitlines()
        headers = ["step", "size", "top1", "p50", "ratio", "memory", "took", "status"]
        assert lines[0].split() == headers
        assert lines[2].split()[:3] == ["source", "10.4", "MB"]
        assert "fusion coverage: 52 of 52 claimed nodes run fused" in lines
        assert lines[-1] == (
            "PASSED: mobilenet_v1_075_224.onnx for linux-x86-vnni, 5 of 5 budgets met (52.6 s)"
        )

    def test_the_summary_names_the_budgets_that_were_missed(self) -> None:
        budget = sample_report().budgets[0].model_dump() | {"value": 5.5, "passed": False}
        last = summary(sample_report(status="failed", budgets=[budget])).splitlines()[-1]
        assert "budgets not met: size_mb" in last

    def test_no_control_character_reaches_the_terminal(self, report: Report) -> None:
        assert all(line.isprintable() for line in summary(report).split("\n"))


class TestFormat:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            (fmt.size(512), "512 B"),
            (fmt.size(999_999), "1.00 MB"),
            (fmt.size(2_801_664), "2.80 MB"),
            (fmt.size(None), "unknown"),
            (fmt.size(0), "0 B"),
            (fmt.megabytes(1_250.0), "1.25 GB"),
            (fmt.count(640), "640"),
            (fmt.count(2_586_472), "2.59 M"),
            (fmt.ms(3.7912), "3.79 ms"),
            (fmt.ms(99.96), "100 ms"),
            (fmt.ms(1234.5), "1,230 ms"),
            (fmt.us(79.0), "79.0 µs"),
            (fmt.us(1234.0), "1.23 ms"),
            (fmt.seconds(0.424), "0.42 s"),
            (fmt.seconds(184.2), "3 min 04 s"),
            (fmt.ratio(0.487), "0.49x"),
            (fmt.percent(0.1237), "12.4 %"),
            (fmt.decibels(31.42), "31.4 dB"),
            (fmt.decibels(math.inf), "exact"),
            (fmt.number(0.84891), "0.8489"),
            (fmt.number(math.nan), "unknown"),
            (fmt.change(84.89, 85.0), "+0.11"),
            (fmt.change(0.8489, 0.84), "-0.0089"),
            (fmt.change(1.0, 1.0), "±0"),
            (fmt.change(0.0, 0.0), "±0"),
            (fmt.change(math.inf, 38.0), ""),
            (fmt.brief("2.50 MB"), "2.5 MB"),
            (fmt.brief("4.00 MB"), "4 MB"),
            (fmt.brief("1,000 ms"), "1,000 ms"),
            (fmt.quantity(4.0, "MB"), "4.00 MB"),
            (fmt.quantity(0.5, ""), "0.5"),
            (fmt.quantity(None, "ms"), "unknown"),
            (fmt.plain({"a": [1, True, None], "b": 0.25}), "a = 1, yes, none, b = 0.25"),
            (fmt.shorten("abcdefghij", 7), "abc…hij"),
        ],
    )
    def test_figures_read(self, text: str, expected: str) -> None:
        assert text == expected

    @given(st.text(), st.integers(1, 30))
    def test_what_is_cut_fits(self, text: str, width: int) -> None:
        assert len(fmt.shorten(text, width)) <= width

    @given(st.text())
    def test_what_is_cleaned_is_xml(self, text: str) -> None:
        element = ET.Element("x", a=fmt.clean(text))
        ET.fromstring(ET.tostring(element))

    @given(st.floats(1e-5, 1e9))
    def test_a_number_keeps_three_digits(self, value: float) -> None:
        shown = float(fmt.number(value).replace(",", ""))
        assert shown == pytest.approx(value, rel=5.1e-4)
