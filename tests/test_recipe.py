from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgecompress import api
from edgecompress.errors import RecipeError
from edgecompress.graph_pass import pass_names
from edgecompress.recipe import Recipe, load_recipe, make_budget
from edgecompress.recipe_schema import attribute_docs
from edgecompress.starter import relative_source, starter_recipe

COMMITTED = Path(__file__).resolve().parents[1] / "schema" / "recipe.schema.json"

FULL: dict[str, Any] = {
    "source": {"model": "net.onnx", "opset": 18},
    "data": {"path": "rows.npz", "labels": "y", "preprocess": {"resize": [8, 8]}},
    "metric": {"name": "top1"},
    "pass": [
        {"name": "cleanup"},
        {
            "name": "quantize",
            "method": "minmax",
            "ops": {"Gemm": {"method": "mse"}},
            "nodes": {"classifier*": False},
        },
    ],
    "target": {"name": "cpu-x86-64", "threads": 2, "runs": 10},
    "budget": {"size_mb": 3, "metric_drop": 0.0},
    "search": {
        "candidates": ["static", "dynamic"],
        "max_minutes": 5,
        "candidate": [{"name": "mine", "pass": [{"name": "quantize", "method": "mse"}]}],
    },
    "build": {"output": "result", "cache": False, "seed": 7},
}
MINIMAL: dict[str, Any] = {"source": {"model": "net.onnx"}}

TOML = """
metric = "top1"
[source]
model = "net.onnx"
opset = 18
[data]
path = "rows.npz"
labels = "y"
preprocess.resize = [8, 8]
[[pass]]
name = "cleanup"
[[pass]]
name = "quantize"
method = "minmax"
[pass.ops.Gemm]
method = "mse"
[pass.nodes]
"classifier*" = false
[target]
name = "cpu-x86-64"
threads = 2
runs = 10
[budget]
size_mb = 3
metric_drop = 0.0
[search]
candidates = ["static", "dynamic"]
max_minutes = 5
[[search.candidate]]
name = "mine"
[[search.candidate.pass]]
name = "quantize"
method = "mse"
[build]
output = "result"
cache = false
seed = 7
"""


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return api.schema()


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def changed(**tables: Any) -> dict[str, Any]:
    return {**FULL, **tables}


def test_toml_json_and_yaml_say_the_same(tmp_path: Path) -> None:
    yaml = pytest.importorskip("yaml")
    recipes = [
        load_recipe(write(tmp_path / "r.toml", TOML)),
        load_recipe(write(tmp_path / "r.json", json.dumps(FULL))),
        load_recipe(write(tmp_path / "r.yaml", yaml.safe_dump(FULL))),
        load_recipe(write(tmp_path / "bom.toml", "\ufeff" + TOML)),
    ]
    assert len({json.dumps(r.as_dict()) for r in recipes}) == 1
    recipe = recipes[0]
    assert [step.name for step in recipe.passes] == ["cleanup", "quantize"]
    assert recipe.passes[1].options()["method"] == "minmax"
    assert recipe.metric is not None
    assert recipe.metric.name == "top1"
    assert recipe.budget.limits() == {"size_mb": 3.0, "metric_drop": 0.0}
    assert recipe.base == tmp_path.resolve()
    assert recipe.output == tmp_path.resolve() / "result"
    assert recipe.cache is None


def test_defaults_are_those_of_the_documentation() -> None:
    recipe = Recipe.from_dict(MINIMAL)
    assert recipe.source.opset == 20
    assert recipe.target.name == "host"
    assert recipe.data is None
    assert recipe.passes == ()
    assert recipe.budget.limits() == {}
    assert recipe.output == Path.cwd() / "out"
    assert recipe.cache == Path.cwd() / ".edgecompress" / "cache"


@pytest.mark.parametrize("tables", [MINIMAL, FULL], ids=["minimal", "full"])
def test_plain_data_make_the_same_recipe_again(tables: dict[str, Any]) -> None:
    recipe = Recipe.from_dict(tables)
    plain = json.loads(json.dumps(recipe.as_dict()))
    assert Recipe.from_dict(plain).as_dict() == recipe.as_dict()


def test_a_recipe_is_not_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe.from_dict(FULL).source.opset = 21  # type: ignore[misc]


REFUSED = [
    (
        changed(**{"pass": [{"name": "cleanup"}, {"name": "quantize", "metod": "mse"}]}),
        r"\[\[pass\]\] #2 \(quantize\): unknown option 'metod'; did you mean 'method'\? known: ",
    ),
    (
        changed(**{"pass": [{"name": "quantize", "method": "msee"}]}),
        r"\[\[pass\]\] #1 \(quantize\), option 'method': .*'mse'.*, got 'msee'",
    ),
    (
        changed(**{"pass": [{"name": "quantize", "ops": {"Gemm": {"metod": "mse"}}}]}),
        r"#1 \(quantize\), option 'ops.Gemm': unknown option 'metod'; did you mean 'method'",
    ),
    (changed(**{"pass": [{"name": "quantize", "nodes": 3}]}), "'nodes': expected a table, got 3"),
    (changed(**{"pass": [{"name": "quantise"}]}), "unknown name 'quantise'; did you mean 'quantiz"),
    (changed(**{"pass": [{"method": "mse"}]}), "#1: expected a table with the name of a pass"),
    (changed(**{"pass": {"name": "cleanup"}}), "pass: expected a list of tables"),
    (changed(passes=[]), "top level: unknown key 'passes'; did you mean 'pass'"),
    (changed(source={"opset": 20}), "source.model: is missing"),
    ({"pass": []}, "source: is missing"),
    (changed(source={"model": 3}), "source.model: expected a string, got 3"),
    (changed(source={"model": "a", "opset": 5}), "source.opset: .*greater than or equal to 13.*5"),
    (changed(source="net.onnx"), "source: expected a table, got 'net.onnx'"),
    (changed(target={"nmae": "host"}), "target: unknown key 'nmae'; did you mean 'name'"),
    (changed(target={"threads": 0}), "target.threads: .*greater than or equal to 1, got 0"),
    (changed(target={"threads": True}), "target.threads: expected an integer, got True"),
    (changed(target={"allow_estimate": "yes"}), "target.allow_estimate: expected a boolean"),
    (changed(budget={"latency_ms": -1}), "budget.latency_ms: .*greater than 0, got -1"),
    (changed(budget={"size_mb": "3"}), "budget.size_mb: expected a number, got '3'"),
    (changed(budget={"size_mb": float("nan")}), "budget.size_mb: .*finite number"),
    (changed(budget={"metric_drop": -0.1}), "budget.metric_drop: .*or equal to 0, got -0.1"),
    (changed(budget={"size": 3}), "budget: unknown key 'size'; .*known: .*size_mb"),
    (changed(build={"cache": True}), "build.cache: expected a folder, or false for no cache, got"),
    (changed(build={"seed": -1}), "build.seed: .*greater than or equal to 0"),
    (changed(data={"path": "x", "lables": "y"}), "data: unknown key 'lables'; did you .*'labels'"),
    (
        changed(data={"path": "x", "preprocess": {"stdd": 1}}),
        "data.preprocess: unknown key 'stdd'; did you mean 'std'",
    ),
    (changed(data={}), "data: name either one path, or the tables calibration and validation"),
    (changed(search={"candidates": ["statik"]}), r"search.candidates\[0\]: expected 'static'"),
    (changed(search={"max_minuts": 5}), "search: unknown key 'max_minuts'; did you mean 'max_min"),
    (changed(search={"max_minutes": 0}), "search.max_minutes: .*greater than 0, got 0"),
    (changed(search={"objective": "speed"}), "search.objective: expected 'latency' or 'size'"),
    (changed(search={"candidate": {"name": "a"}}), "search.candidate: expected a list of tables"),
    (changed(search={"candidate": [{"name": "a"}]}), r"search.candidate\[0\].pass: is missing"),
    (
        changed(search={"candidate": [{"name": "a", "pass": [{"name": "quantise"}]}]}),
        r"\[\[search.candidate\]\] #1, \[\[pass\]\] #1 \(quantise\): unknown name 'quantise'",
    ),
    (
        changed(search={"candidate": [{"name": "half", "pass": [{"name": "cleanup"}]}]}),
        "search: expected names of their own for candidates, got 'half' again",
    ),
    (changed(metric={"nam": "top1"}), "metric: unknown key 'nam'; did you mean 'name'"),
]


@pytest.mark.parametrize(("tables", "message"), REFUSED, ids=[text for _, text in REFUSED])
def test_refuses(tables: Mapping[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        Recipe.from_dict(tables, where="net.toml")
    assert caught.value.where is not None
    assert caught.value.where.startswith("net.toml")
    assert caught.value.exit_code == 2


def test_names_all_problems_at_once() -> None:
    bad = {
        "source": {"model": "net.onnx"},
        "target": {"threads": 0, "nmae": "x"},
        "pass": [{"name": "quantize", "metod": "mse"}, {"name": "nothing-like-it"}],
    }
    with pytest.raises(RecipeError) as caught:
        Recipe.from_dict(bad, where="net.toml")
    text = str(caught.value)
    assert "net.toml: 4 problems" in text
    for part in ("target.threads", "'nmae'", "'metod'", "'nothing-like-it'"):
        assert part in text


SYNTAX = [
    ("r.toml", "[source]\nmodel = \n", r"not valid TOML: .*line 2, column \d+"),
    ("r.json", '{"source":\n  {"model" "x"}}', r"not valid JSON: .*line 2, column \d+"),
    ("r.yaml", "source:\n  model: [1\n", r"not valid YAML: .*line \d+, column \d+"),
    ("r.json", "[]", "expected tables, got list"),
    ("r.yaml", "", "expected tables, got NoneType"),
    ("r.onnx", "", r"expected a recipe \(\.toml.*got the suffix '\.onnx'"),
]


@pytest.mark.parametrize(("name", "text", "message"), SYNTAX)
def test_refuses_broken_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(write(tmp_path / name, text))
    assert caught.value.where == str(tmp_path / name)


def test_refuses_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such file"):
        load_recipe(tmp_path / "none.toml")
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# \xe9\n")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe(latin)


def test_recipe_from_options_equals_one_from_tables() -> None:
    made = Recipe.from_options(
        "net.onnx",
        [("cleanup", {}), ("quantize", {"method": "minmax"})],
        output="o",
        data={"path": "rows.npz"},
        metric="top1",
        target="cpu-arm64",
        budgets={"size_mb": 3},
        use_cache=False,
    )
    tables = {
        "source": {"model": "net.onnx"},
        "data": {"path": "rows.npz"},
        "metric": "top1",
        "pass": [{"name": "cleanup"}, {"name": "quantize", "method": "minmax"}],
        "target": {"name": "cpu-arm64"},
        "budget": {"size_mb": 3.0},
        "build": {"output": "o", "cache": False},
    }
    assert made.as_dict() == Recipe.from_dict(tables).as_dict()


def test_budgets_by_name() -> None:
    assert make_budget({"size_mb": 3}).limits() == {"size_mb": 3.0}
    with pytest.raises(RecipeError, match="unknown key 'sise_mb'; did you mean 'size_mb'"):
        make_budget({"sise_mb": 3})


def test_the_committed_schema_is_the_present_one(schema: dict[str, Any]) -> None:
    committed = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert committed == json.loads(json.dumps(schema)), (
        "run: edgecompress schema > schema/recipe.schema.json"
    )


def test_the_schema_is_a_schema_with_all_passes_described(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    steps = schema["properties"]["pass"]["items"]["oneOf"]
    assert [step["$ref"] for step in steps] == [f"#/$defs/pass_{name}" for name in pass_names()]
    for name in pass_names():
        step = schema["$defs"][f"pass_{name}"]
        undocumented = [
            option
            for option, definition in step["properties"].items()
            if option != "name" and "description" not in definition
        ]
        assert step["description"]
        assert undocumented == []


@pytest.mark.parametrize(
    "tables",
    [MINIMAL, FULL, changed(metric="top1"), Recipe.from_dict(FULL).as_dict()],
    ids=["minimal", "full", "metric by name", "defaults written out"],
)
def test_the_schema_takes_what_the_program_takes(
    tables: dict[str, Any], schema: dict[str, Any]
) -> None:
    jsonschema.validate(tables, schema)


# A list without a name, and keys that only Python code compares, are beyond a schema's means.
BEYOND_SCHEMA = ("finite number", "name either one path", "names of their own")


@pytest.mark.parametrize(
    "tables", [t for t, message in REFUSED if not any(m in message for m in BEYOND_SCHEMA)]
)
def test_the_schema_refuses_what_the_program_refuses(
    tables: dict[str, Any], schema: dict[str, Any]
) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tables, schema)


def test_attribute_docs() -> None:
    summary, docs = attribute_docs(
        """Summary over
        two lines.

        More.

        Attributes:
            first: One
                and a half.
            second (int): Two.

        Raises:
            third: Not an attribute.
        """
    )
    assert summary == "Summary over two lines."
    assert docs == {"first": "One and a half.", "second": "Two."}


@pytest.mark.parametrize("data", [None, 'odd "name" \\ of\tdata.npz'])
def test_the_starter_is_a_valid_recipe(tmp_path: Path, data: str | None) -> None:
    text = starter_recipe(model="net.onnx", target="cpu-arm64", data=data)
    recipe = load_recipe(write(tmp_path / "r.toml", text))
    assert recipe.source.model == "net.onnx"
    assert recipe.target.name == "cpu-arm64"
    assert (recipe.data.path if recipe.data else None) == data
    assert [s.name for s in recipe.passes] == ["cleanup"]
    assert (recipe.search is None) is (data is None)


def test_the_starter_s_comments_are_valid_too(tmp_path: Path) -> None:
    lines = starter_recipe(model="net.onnx", data=None).splitlines()
    keys = [line.removeprefix("# ") for line in lines]
    kept = [
        line.removeprefix("# ") if line.startswith("# # ") else line
        for line in keys
        if line.startswith(("[", "# ")) or " = " in line
    ]
    recipe = load_recipe(write(tmp_path / "r.toml", "\n".join(kept)))
    assert set(recipe.budget.limits()) == set(type(recipe.budget).model_fields)
    assert recipe.data is not None


def test_sources_are_written_as_the_recipe_s_folder_sees_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "net.py", "")
    folder = tmp_path / "recipes"
    assert relative_source("net.py", folder, RecipeError) == "../net.py"
    assert relative_source("net.py:make", folder, RecipeError) == "../net.py:make"
    assert relative_source("package.net:make", folder, RecipeError) == "package.net:make"
    with pytest.raises(RecipeError, match="no such file"):
        relative_source("other.py:make", folder, RecipeError)
