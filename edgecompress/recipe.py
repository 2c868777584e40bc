"""Recipe: what a build does, from a TOML, JSON or YAML file, checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    InstanceOf,
    PrivateAttr,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from edgecompress.data.calibration import DataSpec
from edgecompress.errors import RecipeError
from edgecompress.graph_pass import Pass, make_pass
from edgecompress.metrics import MetricSpec
from edgecompress.recipe_files import read_tables
from edgecompress.recipe_problems import Problem, explain, refuse
from edgecompress.resources import Resources

__all__ = [
    "Recipe",
    "SourceSpec",
    "TargetSpec",
    "BudgetSpec",
    "BuildSpec",
    "SearchSpec",
    "CandidateSpec",
    "CandidateName",
    "load_recipe",
    "make_budget",
]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Steps = Annotated[tuple[Annotated[InstanceOf[Pass], WithJsonSchema({})], ...], Field(alias="pass")]
CandidateName = Literal["static", "equalized", "mixed", "dynamic", "weights8", "weights4", "half"]
"""Candidates that come with the package; what each is made of is in ``search.candidates``."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SourceSpec(_Table):
    """Where the model comes from.

    Attributes:
        model: An ``.onnx`` or ``.pt2`` file, or a Python callable that returns a torch module and
            example inputs: ``file.py:name`` or ``package.module:name``.
        opset: ONNX operator set to export to, where the source is not ONNX already.
        dynamic_batch: Export with a free batch size; false keeps that of the example inputs.
    """

    model: Annotated[str, Field(min_length=1)]
    opset: Annotated[int, Field(ge=13, le=25)] = 20
    dynamic_batch: bool = True


class TargetSpec(_Table):
    """The device that the result must fit; the other keys override its measurement settings.

    Attributes:
        name: A name that ``edgecompress targets`` lists; ``host`` is this machine's CPU.
        threads: Threads that the runtime computes with.
        warmup: Runs before the measured ones.
        runs: Measured runs.
        allow_estimate: Let an estimate pass a budget where nothing can be measured.
    """

    name: Annotated[str, Field(min_length=1)] = "host"
    threads: Annotated[int, Field(ge=1)] | None = None
    warmup: Annotated[int, Field(ge=1)] | None = None
    runs: Annotated[int, Field(ge=1)] | None = None
    allow_estimate: bool = False


class BudgetSpec(_Table):
    """What the result must keep to; a build that does not fails.

    Attributes:
        latency_ms: Median time of one inference in milliseconds.
        latency_ratio: Median time over that of the float model.
        memory_mb: Peak memory of the process in megabytes (1e6 bytes).
        size_mb: Bytes of the delivered model in megabytes (1e6 bytes).
        size_ratio: Size over that of the float model.
        metric_drop: By how much the metric may get worse than the float model's.
    """

    latency_ms: Positive | None = None
    latency_ratio: Positive | None = None
    memory_mb: Positive | None = None
    size_mb: Positive | None = None
    size_ratio: Positive | None = None
    metric_drop: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None

    def limits(self) -> dict[str, float]:
        """The budgets that are set, by name."""
        return {name: value for name, value in self if value is not None}


class _BudgetTable(_Table):
    budget: BudgetSpec


class BuildSpec(_Table):
    """Where the results go, and what the build keeps.

    Attributes:
        output: Folder of the results, relative to the recipe.
        cache: Folder of finished steps, relative to the recipe; false for none.
        seed: Seed of everything random.
        memory: What weights and activations may take, about, while passes look at data: bytes, or
            such as "2GB"; past it, activations go to files. Default: no limit.
        scratch: Folder of temporary files, relative to the recipe. Default: the system's.
        jobs: Processes that share the calibration rows; the results do not depend on it.
        engine: A cluster for them: "dask://host:port", "ray://host:port" or "ray://local".
    """

    output: Annotated[str, Field(min_length=1)] = "out"
    cache: str | Literal[False] = ".edgecompress/cache"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    memory: Annotated[ByteSize, Field(gt=0)] | None = None
    scratch: Annotated[str, Field(min_length=1)] | None = None
    jobs: Annotated[int, Field(ge=1)] = 1
    engine: str | None = None

    @field_validator("cache", mode="before")
    @classmethod
    def _folder_or_false(cls, value: Any) -> Any:
        if value is False or (isinstance(value, str) and value):
            return value
        raise ValueError("expected a folder, or false for no cache")


class CandidateSpec(_Table):
    """A candidate of the user's own: a name for reports, and its passes in order.

    Attributes:
        name: What reports call it.
        passes: Steps in order, as in the recipe's own ``[[pass]]`` tables.
    """

    name: Annotated[str, Field(min_length=1)]
    passes: Steps


class SearchSpec(_Table):
    """Candidates that are built, judged and measured; the best that keeps the budgets is delivered.

    All start from the model behind the recipe's ``[[pass]]`` tables, which is the float candidate.

    Attributes:
        candidates: static, equalized, mixed, dynamic, weights8, weights4, half. Default: all that
            the target takes; an empty list for own ones only.
        own: Further candidates.
        objective: What is the best: the least time per inference (files within 3 % count as equally
            fast, and the smallest of them wins), or the least bytes.
        max_minutes: When this time is over, the best file so far is delivered.
        give_back: Let nodes that got slower, or lost too much, go back to float.
    """

    candidates: Annotated[tuple[CandidateName, ...] | None, Field(strict=False)] = None
    own: Annotated[tuple[CandidateSpec, ...], Field(alias="candidate")] = ()
    objective: Literal["latency", "size"] = "latency"
    max_minutes: Positive | None = None
    give_back: bool = True

    @model_validator(mode="after")
    def _distinct_names(self) -> Self:
        taken = ["float", *get_args(CandidateName), *(each.name for each in self.own)]
        twice = sorted({name for name in taken if taken.count(name) > 1})
        if twice:
            raise ValueError(f"expected names of their own for candidates, got {twice[0]!r} again")
        return self


class Recipe(_Table):
    """A whole recipe. Paths in it are relative to its folder.

    Attributes:
        source: Where the model comes from.
        data: Rows to calibrate and validate on.
        metric: What "still good" means; its name alone will do.
        passes: Steps in order.
        search: Candidates behind these steps, the best of which is delivered.
        target: The device that the result must fit.
        budget: What the result must keep to.
        build: Where the results go.
    """

    source: SourceSpec
    data: DataSpec | None = None
    metric: MetricSpec | None = None
    passes: Steps = ()
    search: SearchSpec | None = None
    target: TargetSpec = TargetSpec()
    budget: BudgetSpec = BudgetSpec()
    build: BuildSpec = BuildSpec()

    _base: Path = PrivateAttr(default_factory=Path.cwd)

    @model_validator(mode="before")
    @classmethod
    def _metric_by_name(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and isinstance(data.get("metric"), str):
            return {**data, "metric": {"name": data["metric"]}}
        return data

    @classmethod
    def from_dict(
        cls, data: Mapping[str, Any], *, base: Path | None = None, where: str | None = None
    ) -> Self:
        """A recipe from plain data, with all its problems reported at once.

        Args:
            data: The tables of the recipe, as TOML or JSON gives them.
            base: Folder that relative paths start from; default: the current one.
            where: What to call the recipe in errors.

        Raises:
            RecipeError: An unknown key or pass, or a value of the wrong type or range.
        """
        tables = dict(data)
        problems: list[Problem] = []
        tables["pass"] = _make_passes(tables.pop("pass", []), problems, "[[pass]]")
        if isinstance(tables.get("search"), Mapping):
            tables["search"] = _make_candidates(tables["search"], problems)
        try:
            recipe = cls.model_validate(tables)
        except ValidationError as error:
            raise refuse([*explain(error, cls, tables), *problems], where) from error
        if problems:
            raise refuse(problems, where)
        recipe._base = Path.cwd() if base is None else base
        return recipe

    @classmethod
    def from_options(
        cls,
        model: str,
        passes: Sequence[tuple[str, Mapping[str, Any]]] | None,
        *,
        output: str | os.PathLike[str],
        search: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
        metric: str | None = None,
        target: str = "host",
        budgets: Mapping[str, float] | None = None,
        use_cache: bool = True,
    ) -> Self:
        """A recipe from the values of ``edgecompress compress``; paths start at the current folder.

        Args:
            model: As ``[source] model``.
            passes: Names and options of the passes, in order; None for a search that starts with
                the pass ``cleanup``.
            output: Folder of the results.
            search: Keys of the ``[search]`` table; with ``passes``, these run in front of it.
            data: Keys of the ``[data]`` table, or None for no data.
            metric: Name of the metric.
            target: Name of the target.
            budgets: Limits by name.
            use_cache: Whether to keep finished steps.

        Raises:
            RecipeError: As :meth:`from_dict`.
        """
        if passes is None:
            passes, search = [("cleanup", {})], search or {}
        tables: dict[str, Any] = {
            "source": {"model": model},
            "pass": [{"name": name, **options} for name, options in passes],
            "target": {"name": target},
            "budget": dict(budgets or {}),
            "build": {"output": os.fspath(output)},
        }
        if search is not None:
            tables["search"] = dict(search)
        if not use_cache:
            tables["build"]["cache"] = False
        if data is not None:
            tables["data"] = dict(data)
        if metric is not None:
            tables["metric"] = metric
        return cls.from_dict(tables)

    @property
    def base(self) -> Path:
        """Folder that relative paths start from: the recipe's own."""
        return self._base

    @property
    def output(self) -> Path:
        """Folder of the results."""
        return self.base / Path(self.build.output).expanduser()

    @property
    def cache(self) -> Path | None:
        """Folder of finished steps, or None where nothing is to be kept."""
        if self.build.cache is False:
            return None
        return self.base / Path(self.build.cache).expanduser()

    @property
    def resources(self) -> Resources:
        """What passes that look at data may use."""
        build = self.build
        scratch = None if build.scratch is None else self.base / Path(build.scratch).expanduser()
        return Resources(build.memory, scratch, build.jobs, build.engine)

    def using(
        self,
        *,
        memory: int | None = None,
        jobs: int | None = None,
        engine: str | None = None,
        scratch: str | os.PathLike[str] | None = None,
    ) -> Self:
        """The recipe with other resources; None keeps its own.

        Args:
            memory: As in ``[build]``, in bytes.
            jobs: As in ``[build]``.
            engine: As in ``[build]``.
            scratch: A folder, relative to the current one.
        """
        place = None if scratch is None else os.fspath(Path(scratch).absolute())
        given = {"memory": memory, "jobs": jobs, "engine": engine, "scratch": place}
        chosen = {name: value for name, value in given.items() if value is not None}
        return self.model_copy(update={"build": self.build.model_copy(update=chosen)})

    def as_dict(self) -> dict[str, Any]:
        """Plain data with all defaults written out; :meth:`from_dict` takes it back."""
        tables = self.model_dump(mode="json", exclude={"passes", "search"}, exclude_none=True)
        tables["pass"] = _plain(self.passes)
        if self.search is not None:
            tables["search"] = {
                **self.search.model_dump(mode="json", exclude={"own"}, exclude_none=True),
                "candidate": [
                    {"name": each.name, "pass": _plain(each.passes)} for each in self.search.own
                ],
            }
        return tables


def _plain(passes: Sequence[Pass]) -> list[dict[str, Any]]:
    return [{"name": step.name, **step.options()} for step in passes]


def _make_candidates(search: Mapping[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """The table ``[search]`` with the passes of each own candidate made."""
    tables = search.get("candidate", ())
    if not isinstance(tables, list | tuple):
        cure = "write [[search.candidate]] with two brackets, once for each candidate"
        what = f"expected a list of tables, got {tables!r:.60}"
        problems.append(Problem("search.candidate", what, cure))
        tables = ()
    made = []
    for number, table in enumerate(tables, start=1):
        if isinstance(table, Mapping) and "pass" in table:
            place = f"[[search.candidate]] #{number}, [[pass]]"
            table = {**table, "pass": _make_passes(table["pass"], problems, place)}
        made.append(table)
    return {**search, "candidate": tuple(made)}


def _make_passes(tables: Any, problems: list[Problem], title: str) -> tuple[Pass, ...]:
    if not isinstance(tables, list | tuple):
        cure = "write [[pass]] with two brackets, once for each pass"
        problems.append(Problem("pass", f"expected a list of tables, got {tables!r:.60}", cure))
        return ()
    made = []
    for number, table in enumerate(tables, start=1):
        place = f"{title} #{number}"
        name = table.get("name") if isinstance(table, Mapping) else None
        if not isinstance(name, str):
            what = f"expected a table with the name of a pass, got {table!r:.60}"
            problems.append(Problem(place, what, 'write name = "quantize", for example'))
            continue
        options = {key: value for key, value in table.items() if key != "name"}
        for level in ("ops", "nodes"):
            if not isinstance(options.get(level, {}), Mapping):
                what = f"expected a table, got {options.pop(level)!r:.60}"
                problems.append(Problem(f"{place} ({name}), option {level!r}", what))
        try:
            made.append(make_pass(name, options))
        except RecipeError as error:
            inner = (error.where or "").removeprefix(f"pass {name!r}")
            inner = inner if inner.startswith(", option") else ""
            problems.append(Problem(f"{place} ({name}){inner}", error.what, error.cure))
    return tuple(made)


def make_budget(limits: Mapping[str, float]) -> BudgetSpec:
    """Budgets by name, checked.

    Raises:
        RecipeError: An unknown name, or a limit that is no positive number.
    """
    tables = {"budget": dict(limits)}  # as in a recipe, so that errors name the table
    try:
        return _BudgetTable.model_validate(tables).budget
    except ValidationError as error:
        raise refuse(explain(error, _BudgetTable, tables), None) from error


def load_recipe(path: str | os.PathLike[str]) -> Recipe:
    """Read a recipe; the suffix tells the language: ``.toml``, ``.json``, ``.yaml``, ``.yml``.

    Raises:
        RecipeError: The file is missing, has a syntax error, or holds no valid recipe.
        MissingDependencyError: It is YAML, and PyYAML is not installed.
    """
    file = Path(path)
    return Recipe.from_dict(read_tables(file), base=file.resolve().parent, where=str(file))
