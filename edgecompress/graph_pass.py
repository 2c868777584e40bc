"""What a graph pass is: a frozen dataclass whose fields are its options.

A pass decides first, then edits a clone. It returns :class:`Applied`: what it changed and, for each
candidate that it left alone, the reason. :func:`run_pass` is how the rest of the package runs one:
the machinery, not the author of the pass, checks the result.
"""

from __future__ import annotations

import fnmatch
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from edgecompress import members
from edgecompress.constraints import Constraints
from edgecompress.errors import PassError, RecipeError, nearest
from edgecompress.model import Model
from edgecompress.progress import Progress, silent
from edgecompress.resources import Resources

if TYPE_CHECKING:
    import onnx_ir as ir

    from edgecompress.data.calibration import CalibrationSet

__all__ = [
    "Pass",
    "Applied",
    "Change",
    "Needs",
    "Skip",
    "Context",
    "Scoped",
    "Timer",
    "pass_names",
    "pass_class",
    "make_pass",
    "run_pass",
]

Scoped = Mapping[str, Mapping[str, Any] | Literal[False]]
"""Options by operator type or by node name pattern; ``False`` leaves the node out."""

Needs = Literal["nothing", "optional data", "data"]

Timer = Callable[[Sequence[bytes]], Sequence[float]]
"""Seconds of one run of each of some serialized ONNX models on the target's runtime, measured in
turn; inputs are random, of the models' own fixed shapes."""

_SCOPES = ("ops", "nodes")


@dataclass(frozen=True)
class Context:
    """What a pass may use besides the model.

    Attributes:
        calibration: Rows to compute statistics on, or None where the recipe names no data.
        constraints: What the target demands of the graph.
        device: torch device for all arithmetic.
        seed: Seed for everything random.
        resources: Memory, processes and temporary files.
        progress: Called as work goes on.
        timer: How long small models take on the target; None where it cannot be measured here.
    """

    calibration: CalibrationSet | None = None
    constraints: Constraints = field(default_factory=Constraints)
    device: str = "cpu"
    seed: int = 0
    resources: Resources = field(default_factory=Resources)
    progress: Progress = silent
    timer: Timer | None = None


@dataclass(frozen=True)
class Change:
    """One edit: the node, what became of it, and its weight bytes before and after."""

    node: str
    op: str
    what: str
    bytes_before: int = 0
    bytes_after: int = 0


@dataclass(frozen=True)
class Skip:
    """A candidate that was left alone, and why."""

    node: str
    op: str
    reason: str


@dataclass(frozen=True)
class Applied:
    """Result of a pass.

    Attributes:
        model: The new model; the input model where nothing changed.
        changed: Edits, in graph order.
        skipped: Candidates left alone, with reasons.
        claimed: Output names of the nodes that the pass promises the runtime will fuse or run in
            the new format; the fusion coverage is judged against them.
        notes: Figures and facts worth a line in the report.
    """

    model: Model
    changed: tuple[Change, ...] = ()
    skipped: tuple[Skip, ...] = ()
    claimed: tuple[str, ...] = ()
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Pass(ABC):
    """Base of all passes. Fields are options; the file's name is the recipe's name.

    Attributes:
        ops: Other options for single operator types, e.g. ``{"Gemm": {"method": "minmax"}}``.
        nodes: Other options for nodes whose name or first output matches a pattern,
            e.g. ``{"classifier*": False}``. They win over ``ops``, and the longest pattern wins.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: ClassVar[str]
    needs: ClassVar[Needs] = "nothing"
    """Whether it looks at calibration rows; a pass that merely may does without them, too."""
    must_change: ClassVar[bool] = True
    """Whether finding nothing to do is an error: the recipe asked for it by name."""

    ops: Scoped = field(default_factory=dict)
    nodes: Scoped = field(default_factory=dict)

    @abstractmethod
    def run(self, model: Model, context: Context) -> Applied:
        """Apply the pass to a clone of ``model``."""

    def for_node(self, node: ir.Node) -> Self | None:
        """Options for one node, or None where it is to be left out."""
        chosen: Self = self
        by_op = self.ops.get(node.op_type, {})
        patterns = [p for p in self.nodes if _matches(node, p)]
        by_name = self.nodes[max(patterns, key=_specificity)] if patterns else {}
        if by_name is False or (by_op is False and not patterns):
            return None
        for override in (by_op, by_name):
            if override:
                chosen = replace(chosen, **override)
        return chosen

    def check_scopes(self, nodes: Iterable[ir.Node]) -> None:
        """Refuse scopes that match nothing, since they are misspelt.

        Raises:
            RecipeError: An operator type or pattern matches no node of the graph.
        """
        listed = list(nodes)
        types = {n.op_type for n in listed}
        for op in self.ops:
            if op not in types:
                raise RecipeError(
                    f"no node of type {op!r} in the graph; {nearest(op, types)}",
                    where=f"pass {self.name!r}, ops",
                )
        for pattern in self.nodes:
            if not any(_matches(n, pattern) for n in listed):
                known = [n.name or "" for n in listed]
                close = nearest(pattern, known).split("known:")[0].strip()
                raise RecipeError(
                    f"the pattern {pattern!r} matches no node" + (f"; {close}" if close else ""),
                    where=f"pass {self.name!r}, nodes",
                    cure="`edgecompress inspect MODEL` lists the names",
                )

    def options(self) -> dict[str, Any]:
        """All options with their values, as plain data."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self)}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return value


def _matches(node: ir.Node, pattern: str) -> bool:
    names = [node.name, *(o.name for o in node.outputs)]
    return any(name and fnmatch.fnmatchcase(name, pattern) for name in names)


def _specificity(pattern: str) -> int:
    return sum(c not in "*?[]" for c in pattern)


def _options_of_nodes(cls: type[Pass]) -> list[str]:
    return [f.name for f in fields(cls) if f.name not in _SCOPES]


def pass_names() -> list[str]:
    """Names of all installed passes, sorted."""
    return members.names("edgecompress.passes")


def pass_class(name: str) -> type[Pass]:
    """The class of a pass.

    Raises:
        RecipeError: There is no pass of that name.
    """
    return members.load(
        "edgecompress.passes",
        name,
        Pass,  # type: ignore[type-abstract]
        lambda message: RecipeError(message, where="pass"),
    )


def make_pass(name: str, options: Mapping[str, Any]) -> Pass:
    """A pass with its options checked, at all three levels.

    Raises:
        RecipeError: Unknown pass, unknown option, or a value of the wrong type or range.
    """
    cls = pass_class(name)
    scopes: dict[str, dict[str, dict[str, Any] | Literal[False]]] = {}
    for level in _SCOPES:
        table = options.get(level, {})
        if not isinstance(table, Mapping):
            raise _refused(cls, level, f"expected a table, got {table!r}")
        scopes[level] = {key: _scope(cls, f"{level}.{key}", table[key]) for key in table}
    return _validated(cls, "", {**options, **scopes})


def _scope(cls: type[Pass], place: str, override: Any) -> dict[str, Any] | Literal[False]:
    if override is False:
        return False
    if not isinstance(override, Mapping):
        raise _refused(cls, place, f"expected a table of options, or false, got {override!r}")
    made = _validated(cls, f"{place}.", override, known=_options_of_nodes(cls))
    return {key: getattr(made, key) for key in override}


def _validated(
    cls: type[Pass], prefix: str, options: Mapping[str, Any], known: Iterable[str] = ()
) -> Pass:
    from pydantic import TypeAdapter, ValidationError

    known = list(known) or [f.name for f in fields(cls)]
    for key in options:
        if key not in known:
            raise _refused(cls, prefix[:-1], f"unknown option {key!r}; {nearest(key, known)}")
    adapter: TypeAdapter[Pass] = TypeAdapter(cls)
    try:
        return adapter.validate_python(dict(options))
    except ValidationError as error:
        first = error.errors()[0]
        place = prefix + ".".join(str(part) for part in first["loc"])
        message = re.sub("Input should be (?=greater|less)", "expected a number ", first["msg"])
        message = message.replace("Input should be", "expected").replace("a valid ", "a ")
        what = f"{message[0].lower()}{message[1:]}, got {first['input']!r}"
        raise _refused(cls, place, what) from error


def _refused(cls: type[Pass], place: str, what: str) -> RecipeError:
    return RecipeError(
        what,
        where=f"pass {cls.name!r}, option {place!r}" if place else f"pass {cls.name!r}",
        cure=f"`edgecompress passes {cls.name}` shows all options",
    )


def run_pass(step: Pass, model: Model, context: Context) -> Applied:
    """Run a pass and check what it returns.

    Raises:
        RecipeError: The pass needs data and the recipe names none, or a scope matches no node.
        PassError: The result is not valid ONNX, or its inputs or outputs changed.
    """
    if step.needs == "data" and context.calibration is None:
        raise RecipeError(
            "needs calibration data, and none is named",
            where=f"pass {step.name!r}",
            cure="add a [data] table to the recipe, or --data on the command line",
        )
    step.check_scopes(model.ir.graph)
    signature = model.signature
    applied = step.run(model, context)
    if applied.model is model and not applied.changed:
        return applied
    if applied.model.signature != signature:
        raise PassError(
            f"changed the model's inputs or outputs: expected {signature}, "
            f"got {applied.model.signature}",
            where=f"pass {step.name!r}",
            cure="this is a bug of the pass; please report it with the recipe",
        )
    try:
        applied.model.check()
    except Exception as error:
        raise PassError(
            f"left a broken graph: {error}",
            where=f"pass {step.name!r}",
            cure="this is a bug of the pass; please report it with the recipe",
        ) from error
    return applied
