"""What a report shows of a factorization, and that it shows nothing where there was none."""

from __future__ import annotations

import json
import math
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from edgecompress.report import factorization_picture as picture
from edgecompress.report import factorization_tables as tables
from edgecompress.report import html_text, summary
from edgecompress.report.curves import Drawing, logarithmic
from edgecompress.report.data import Report
from edgecompress.report.factorization import Factorization, other_notes, read
from tests.reports import sample_report, sample_steps

_HOSTILE = "<script>alert('x')</script>&\"]]>\x1b[31m\u202e"
_LINE = [[0.0, 1.0], [0.5, 0.1], [1.0, 0.001]]


def _layer(name: str = "fc", **changes: Any) -> dict[str, Any]:
    return {
        "layer": name,
        "op": "MatMul",
        "kind": "matrix",
        "shape": [8, 8],
        "rank": [2],
        "error": 0.05,
        "spectrum": _LINE,
    } | changes


def _block(name: str = "block 0", **changes: Any) -> dict[str, Any]:
    told = {
        "block": name,
        "errors": {"anchored": 0.01, "refined": 0.001, "input_agnostic": 0.1},
        "refinement": {
            "before": 0.01,
            "after": 0.001,
            "steps": 200,
            "best": 150,
            "kept": True,
            "reason": "",
        },
    }
    return told | changes


def _notes(layers: list[Any], blocks: list[Any], **changes: Any) -> dict[str, Any]:
    told = {
        "objective": "anchored",
        "keep": 0.5,
        "budget": "parameters",
        "ranks": "uniform",
        "parameters": [1000, 500],
        "macs": [64_000, 32_000],
        "layers": layers,
        "blocks": blocks,
    }
    return {"factorization": told | changes}


def _found(layers: list[Any], blocks: list[Any], **changes: Any) -> Factorization:
    found = read(_notes(layers, blocks, **changes))
    assert found is not None
    return found


def _report(notes: dict[str, Any], **changes: Any) -> Report:
    steps = sample_steps()
    steps[3] |= {"name": "factorize", "notes": notes} | changes
    return sample_report(steps=steps)


def _drawn(markup: str | None) -> ET.Element:
    """The picture beside the figures of its vertical axis."""
    assert markup is not None
    _, drawn = ET.fromstring(markup)
    return drawn


def _circles(markup: str | None, style: str) -> list[tuple[float, float]]:
    return [
        (float(circle.get("cx", "").rstrip("%")), float(circle.get("cy", "")))
        for circle in _drawn(markup).iter("circle")
        if style in circle.get("class", "").split()
    ]


_MANY = _notes(
    [_layer(f"/layer.{i}/{'qkv'[i % 3]}/MatMul", rank=[1 + i % 4]) for i in range(300)],
    [_block(f"block {i}") for i in range(100)],
)
_CASES = {
    "one": _notes([_layer()], [_block()]),
    "layers alone": _notes([_layer()], []),
    "blocks alone": _notes([], [_block()]),
    "many": _MANY,
    "no keys": {"factorization": {"layers": [{}, {"rank": None}], "blocks": [{}, {"errors": {}}]}},
    "of other types": _notes(
        [
            _layer(rank="2", shape="8 x 8", spectrum=[[0], None, ["a", 1]], error="small"),
            _layer(rank=3, shape=[0, 0], spectrum=[[0.0, math.nan], [0.5, 0.2], [1.0, 0.0]]),
            None,
        ],
        [_block(errors={"anchored": "Infinity", "refined": None}), _block(refinement="none"), 7],
        parameters=[0, 0],
        macs="many",
    ),
    "no error": _notes(
        [_layer(spectrum=[[0.0, 0.0], [1.0, 0.0]], error=0.0)], [_block(errors={"anchored": 0.0})]
    ),
    "hostile": _notes(
        [_layer(_HOSTILE * 9, kind=_HOSTILE, op=_HOSTILE, parameters=[64, 32])],
        [
            _block(
                _HOSTILE,
                errors={_HOSTILE: 0.1, "refined": 0.2},
                refinement={"kept": False, "reason": _HOSTILE},
            )
        ],
        objective=_HOSTILE,
    ),
}


@pytest.fixture(params=_CASES.values(), ids=_CASES.keys())
def notes(request: pytest.FixtureRequest) -> dict[str, Any]:
    found: dict[str, Any] = request.param
    return found


class TestNotes:
    @pytest.mark.parametrize(
        "notes",
        [{}, {"factorization": {}}, {"factorization": None}, _notes([], []), {"rows": 96}],
        ids=["none", "empty", "null", "no layers", "others"],
    )
    def test_without_layers_and_blocks_there_is_nothing(self, notes: dict[str, Any]) -> None:
        assert read(notes) is None
        report = _report(notes)
        text = html_text(report)
        assert "Factorization" not in text
        assert "--c-anchored" not in text
        assert summary(report) == summary(_report({}))

    def test_a_report_of_other_passes_has_no_trace_of_it(self) -> None:
        assert "factor" not in html_text(sample_report()).lower()

    def test_notes_read_the_same_behind_json(self, notes: dict[str, Any]) -> None:
        behind = json.loads(json.dumps(notes).replace("NaN", '"NaN"'))
        assert read(behind) == read(notes)

    def test_other_notes_stay(self) -> None:
        assert other_notes({"rows": 96, **_MANY}) == {"rows": 96}
        assert (
            "spectrum" not in html_text(_report({"rows": 96, **_MANY})).split("What each pass")[1]
        )

    @pytest.mark.parametrize(
        ("changes", "share"),
        [
            ({}, 0.5),
            ({"kind": "output", "shape": [4, 36], "rank": [3]}, 3 * 40 / 144),
            ({"kind": "spatial"}, None),
            ({"kind": "spatial", "parameters": [64, 48]}, 0.75),
            ({"kind": "tucker", "rank": [2, 3], "parameters": [64, 16]}, 0.25),
            # Two groups of 4 x 8: the shape is that of all, break-even that of one.
            ({"rank": [1], "full_rank": 4, "break_even": 32 / 12}, 12 / 32),
            ({"kind": "dense"}, 1.0),
            ({"rank": []}, 1.0),
        ],
    )
    def test_share_of_the_elements(self, changes: dict[str, Any], share: float | None) -> None:
        [layer] = _found([_layer(**changes)], []).layers
        assert layer.share == (share if share is None else pytest.approx(share))

    def test_the_sums_are_told(self) -> None:
        layers = [_layer(), _layer(rank=[3]), _layer(kind="tucker", rank=[4, 5]), _layer(rank=[])]
        assert tables.facts(_found(layers, [])) == {
            "objective": "anchored",
            "keep": "0.5",
            "budget": "parameters",
            "ranks": "uniform",
            "parameters": "1.00 k -> 500 (0.50x)",
            "MACs": "64.0 k -> 32.0 k (0.50x)",
            "layers": "3 of 4 factorized (2 matrix, 1 tucker)",
            "rank": "2 to 5, median 3",
        }


class TestPage:
    def test_pictures_are_xml_and_need_nothing(self, notes: dict[str, Any]) -> None:
        found = read(notes)
        assert found is not None
        markups = [picture.ranks(found), picture.block_errors(found)]
        markups += [panel.svg for panel in picture.spectra(found)]
        for markup in markups:
            if markup is None:
                continue
            for element in ET.fromstring(markup).iter():
                assert element.tag in _TAGS
                assert not {"href", "style", "onclick"} & set(element.keys())
                assert not any("nan" in value or "inf" in value for value in _numbers(element))

    def test_hostile_names_are_shown_but_never_obeyed(self) -> None:
        text = html_text(_report(_CASES["hostile"]))
        assert "<script>alert" not in text
        assert "&lt;script&gt;alert(" in text
        assert "\x1b" not in text
        assert "\u202e" not in text

    def test_the_page_holds_every_figure_as_a_table(self, notes: dict[str, Any]) -> None:
        text = html_text(_report(notes))
        found = read(notes)
        assert found is not None
        assert text.count("<h2>Factorization") == 1
        for table in (tables.layer_table(found), tables.block_table(found)):
            assert all(len(row) == len(table.headings) for row in table.rows)
        if found.layers:
            assert f'All layers <span class="muted">{len(found.layers)}' in text

    def test_a_step_that_was_rolled_back_is_drawn_and_called_so(self) -> None:
        text = html_text(_report(_MANY, status="rolled back"))
        assert 'Factorization, factorize <span class="tag bad">rolled back</span>' in text

    def test_it_is_the_same_each_time(self) -> None:
        assert html_text(_report(_MANY)) == html_text(_report(_MANY))

    def test_hundreds_of_layers_stay_a_readable_page(self) -> None:
        found = _found(_MANY["factorization"]["layers"], _MANY["factorization"]["blocks"])
        panels = picture.spectra(found)
        assert [(panel.title, panel.detail) for panel in panels] == [
            (f"{role}/MatMul", "8 x 8, 100 layers") for role in "qkv"
        ]
        # The area and the median in place of a hundred curves.
        assert [len(list(_drawn(panel.svg).iter("path"))) for panel in panels] == [2, 2, 2]
        assert len(list(_drawn(picture.ranks(found)).iter("rect"))) == 300
        ticks = [t for t in _drawn(picture.ranks(found)).iter("text") if t.get("class") == "tick"]
        assert 6 <= len(ticks) <= 12
        assert len(html_text(_report(_MANY))) < 600_000


_TAGS = {"div", "svg", "g", "path", "line", "rect", "circle", "text", "title"}


def _numbers(element: ET.Element) -> list[str]:
    places = ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height", "d")
    return [element.get(key, "") for key in places]


class TestSpectra:
    def test_curve_mark_and_break_even_stand_where_they_belong(self) -> None:
        [panel] = picture.spectra(_found([_layer(rank=[4])], []))
        drawn = _drawn(panel.svg)
        [curve] = drawn.iter("path")
        # From 1 down to 0.001 over 120 pixels below a margin of 8; 1,000 units along.
        assert curve.get("d") == "M0.0 8L500.0 48L1000.0 128"
        assert _circles(panel.svg, "chosen") == [(50.0, 48.0)]
        [even] = [line for line in drawn.iter("line") if line.get("class") == "limit"]
        assert even.get("x1") == "50.00%"
        assert [t.text for t in ET.fromstring(panel.svg)[0].iter("text")] == [
            "0.001", "0.01", "0.1", "1",
        ]  # fmt: skip

    def test_a_rank_between_two_points_lies_on_the_line(self) -> None:
        [panel] = picture.spectra(_found([_layer(rank=[2])], []))
        assert _circles(panel.svg, "chosen") == [(25.0, 28.0)]

    def test_forms_without_a_place_there_have_no_mark(self) -> None:
        layers = [_layer(kind="spatial"), _layer(kind="tucker", rank=[2, 2]), _layer(rank=[])]
        [panel] = picture.spectra(_found(layers, []))
        assert _circles(panel.svg, "chosen") == []
        assert len(list(_drawn(panel.svg).iter("path"))) == 3

    def test_what_is_only_numbered_is_told_apart_by_its_size(self) -> None:
        layers = [_layer(f"node_MatMul_{i}", shape=[8, 8 * (1 + i % 2)]) for i in range(5)]
        panels = picture.spectra(_found(layers, []))
        assert [(p.title, p.detail) for p in panels] == [
            ("8 x 8", "3 layers"),
            ("8 x 16", "2 layers"),
        ]

    def test_many_roles_end_in_one_panel_of_others(self) -> None:
        layers = [_layer(f"role{'abcdefghijklmnopqrst'[i]}", shape=[8, 8 + i]) for i in range(20)]
        panels = picture.spectra(_found(layers, []))
        assert len(panels) == 12
        assert (panels[-1].title, panels[-1].detail) == ("others", "9 sizes, 9 layers")


class TestRanks:
    def test_a_bar_is_as_high_as_the_share_that_is_kept(self) -> None:
        layers = [_layer(rank=[2]), _layer(kind="dense", rank=[])]
        drawn = _drawn(picture.ranks(_found(layers, [])))
        bars = [(bar.get("class"), bar.get("y"), bar.get("height")) for bar in drawn.iter("rect")]
        # A grid of 130 pixels below a margin of 8.
        assert bars == [("form matrix", "73", "65"), ("form dense", "8", "130")]
        assert [text.text for text in drawn.iter("text")] == ["2", "1", "2"]

    def test_a_layer_that_grew_reaches_over_the_line(self) -> None:
        drawn = _drawn(picture.ranks(_found([_layer(rank=[8])], [])))
        [bar] = drawn.iter("rect")
        limits = [line for line in drawn.iter("line") if line.get("class") == "limit"]
        assert float(bar.get("y", "")) == 8.0
        assert limits[0].get("y1") == "73"


class TestBlocks:
    def test_errors_stand_on_a_logarithmic_axis(self) -> None:
        blocks = [_block(), _block(errors={"anchored": 0.1, "refined": 0.01})]
        markup = picture.block_errors(_found([], blocks))
        # From 0.1 down to 0.001 over 200 pixels below a margin of 8.
        assert _circles(markup, "anchored") == [(25.0, 108.0), (75.0, 8.0)]
        assert _circles(markup, "refined") == [(25.0, 208.0), (75.0, 108.0)]
        curves = {path.get("class"): path.get("d") for path in _drawn(markup).iter("path")}
        assert curves == {
            "curve objective anchored wanted": "M250.0 108L750.0 8",
            "curve objective refined": "M250.0 208L750.0 108",
        }

    def test_a_gap_breaks_the_line(self) -> None:
        errors = [0.1, 0.2, None, 0.1, 0.3]
        blocks = [_block(errors={"anchored": e} if e else {}) for e in errors]
        paths = _drawn(picture.block_errors(_found([], blocks))).iter("path")
        assert [path.get("d", "").count("L") for path in paths] == [1, 1]

    def test_what_was_undone_is_marked_and_explained(self) -> None:
        undone = _block("b1", refinement={"kept": False, "reason": "the held-out error rose"})
        found = _found([], [_block(), undone])
        markup = picture.block_errors(found)
        assert _circles(markup, "hollow") == [(75.0, 208.0)]
        [line] = [x for x in _drawn(markup).iter("line") if x.get("class") == "undone"]
        assert line.get("x1") == "75.00%"
        assert line.findtext("title") == "b1: refinement undone: the held-out error rose"
        assert tables.block_table(found).rows[1][-1].text == "undone: the held-out error rose"

    def test_a_block_that_was_never_refined_is_not_called_undone(self) -> None:
        refinement = {"kept": False, "steps": 0, "reason": "torch cannot run the block"}
        found = _found([], [_block(errors={"anchored": 0.1}, refinement=refinement)])
        assert not found.blocks[0].rolled_back
        assert tables.block_table(found).rows[0][-1].text == "torch cannot run the block"
        assert "undone" not in (picture.block_errors(found) or "")

    def test_the_legend_has_the_order_of_the_lines(self) -> None:
        keys = picture.objective_keys(_found([], [_block()]))
        assert [key.words for key in keys] == [
            "input agnostic (plain SVD)",
            "anchored",
            "after refinement",
        ]

    def test_zero_has_a_place_below_all_others(self) -> None:
        blocks = [_block(errors={"anchored": e}) for e in (0.0, 0.001, 0.1)]
        markup = picture.block_errors(_found([], blocks))
        places = [y for _, y in _circles(markup, "anchored")]
        assert places[0] == 208.0
        assert places[0] > places[1] > places[2] == 8.0
        assert next(text.text for text in ET.fromstring(markup or "")[0].iter("text")) == "0"


class TestAxis:
    @pytest.mark.parametrize(
        ("values", "low", "high", "words"),
        [
            ([], 0.1, 1.0, ["0", "1"]),
            ([0.0], 0.1, 1.0, ["0", "1"]),
            ([0.3], 0.05, 0.5, ["0.05", "0.1", "0.2", "0.5"]),
            ([0.012, 0.3], 0.01, 0.5, ["0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]),
            ([0.0, 0.3], 0.005, 0.5, ["0", "0.05", "0.1", "0.2", "0.5"]),
            ([1e-12, 0.1], 1e-2 / 10, 0.1, ["less", "0.01", "0.02", "0.05", "0.1"]),
            ([1e-7, 1.0], 1e-7, 1.0, ["1e-06", "0.0001", "0.01", "1"]),
            ([math.inf, math.nan, 1.0], 0.1, 1.0, ["0.1", "0.2", "0.5", "1"]),
        ],
    )
    def test_it_has_round_ends_and_few_ticks(
        self, values: list[float], low: float, high: float, words: list[str]
    ) -> None:
        axis = logarithmic(values)
        assert (axis.low, axis.high) == pytest.approx((low, high))
        assert [text for _, text in axis.ticks] == words

    @pytest.mark.parametrize("exponent", range(-12, 6))
    def test_every_value_has_a_place(self, exponent: int) -> None:
        values = [m * 10.0**e for m in (1.0, 1.7, 9.99) for e in (exponent, exponent + 3)]
        axis = logarithmic(values)
        assert axis.low <= min(values) * (1 + 1e-9)
        assert axis.high >= max(values) * (1 - 1e-9)
        places = [axis.at(value) for value in sorted(values)]
        assert places == sorted(places)
        assert 2 <= len(axis.ticks) <= 9

    def test_a_label_is_cleaned(self) -> None:
        drawn = _drawn(Drawing(10, logarithmic([1.0]), _HOSTILE).markup())
        assert "\x1b" not in drawn.get("aria-label", "")


class TestTerminal:
    def test_a_few_lines_tell_it(self) -> None:
        undone = _block("b1", refinement={"kept": False, "reason": "the held-out error rose"})
        text = summary(_report(_notes([_layer(), _layer(rank=[4])], [_block(), undone])))
        assert (
            "factorize\n"
            "  objective anchored, keep 0.5, budget parameters, ranks uniform\n"
            "  layers: 2 of 2 factorized (2 matrix)\n"
            "  rank: 2 to 4, median 2\n"
            "  parameters: 1.00 k -> 500 (0.50x)\n"
            "  MACs: 64.0 k -> 32.0 k (0.50x)\n"
            "  worst block error: 0.010 anchored (block 0); 0.0010 after refinement (block 0)\n"
            "  refinement undone: b1: the held-out error rose\n"
        ) in text

    def test_many_blocks_undone_are_counted(self) -> None:
        undone = [_block(f"b{i}", refinement={"kept": False, "reason": "no"}) for i in range(9)]
        lines = tables.lines(_found([], undone))
        assert sum("refinement undone" in line for line in lines) == 5
        assert lines[-1] == "and of 4 more blocks, in report.html"

    def test_no_control_character_reaches_it(self, notes: dict[str, Any]) -> None:
        assert all(line.isprintable() for line in summary(_report(notes)).split("\n"))
