"""Which operators the bridge to torch knows, and how it does in ONNX's own node tests.

Usage: ``python benchmarks/conformance.py`` prints the counts; ``--write docs/operators.md`` writes
the table of operators; ``--check docs/operators.md`` takes no time: it fails where the operators in
that file are not those that the bridge knows.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

import edgecompress  # noqa: F401  (turns the runtime's telemetry off before it is loaded)
from edgecompress.torchgraph import supported_operators

REPOSITORY = Path(__file__).resolve().parents[1]
Key = tuple[str, str]

_COMMAND = "python benchmarks/conformance.py --write docs/operators.md"
_REASONS = (
    ("operator without a translation", ("::",)),
    ("element type that torch lacks", ("no torch counterpart", "not implemented for")),
    ("random numbers", ("random",)),
    ("specification and onnxruntime differ", ("the specification and onnxruntime differ",)),
)


def domain_name(domain: str) -> str:
    return domain or "ai.onnx"


def rows(tallies: Mapping[Key, Counter[str]] | None = None) -> Iterator[str]:
    """Lines of the table; without tallies only the columns that need no run."""
    for (domain, name), versions in supported_operators().items():
        since = ", ".join(map(str, versions))
        start = f"| {domain_name(domain)} | {name} | {since} |"
        if tallies is None:
            yield start
        else:
            count = tallies.get((domain, name), Counter())
            passed, others = count["passed"], count.total() - count["passed"]
            yield f"{start} {passed or '-'} | {others or '-'} |"


def problems(text: str) -> list[str]:
    """Operators that stand in the file and are not known, or are known and do not stand there."""
    lines = text.splitlines()
    listed = {"|".join(line.split("|")[:4]) + "|" for line in lines if _is_row(line)}
    known = set(rows())
    return [f"missing: {row}" for row in sorted(known - listed)] + [
        f"out of date: {row}" for row in sorted(listed - known)
    ]


def _is_row(line: str) -> bool:
    return line.count("|") == 6 and not line.startswith(("| domain ", "| ---"))


def _reason(kind: str, text: str) -> str:
    if kind == "strings":
        return "strings"
    return next(
        (name for name, signs in _REASONS if any(sign in text for sign in signs)), "other form"
    )


def page() -> str:
    """The whole of the file, from a run of all node tests."""
    import onnx

    sys.path.insert(0, str(REPOSITORY))
    from tests.onnx_node_tests import outcomes

    kinds = Counter(outcome.kind for outcome in outcomes())
    reasons = Counter(
        _reason(outcome.kind, outcome.reason)
        for outcome in outcomes()
        if outcome.kind not in ("passed", "wrong")
    )
    tallies: defaultdict[Key, Counter[str]] = defaultdict(Counter)
    missing: Counter[str] = Counter()
    for outcome in outcomes():
        for key in outcome.operators:
            tallies[key][outcome.kind] += 1
        if outcome.kind == "missing":
            missing.update({text.split(" (")[0] for text in outcome.reason.split(", ")})
    refused = kinds.total() - kinds["passed"] - kinds["wrong"]
    summary = (
        f"ONNX's own backend node tests, onnx {onnx.__version__}: {kinds.total()} cases, "
        f"{kinds['passed']} passed, {refused} refused with an error, {kinds['wrong']} wrong."
    )
    why = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    without = ", ".join(f"{name} ({count})" for name, count in sorted(missing.items()))
    return "\n".join(
        [
            "# Operators that the bridge to torch knows",
            "",
            f"Written by `{_COMMAND}`; a test compares the list with the code.",
            "",
            summary,
            f"Reasons of the refusals: {why}.",
            "",
            f"Operators that were missing or had another form: {without}.",
            "",
            "The third column holds the versions of the operator set since which a translation of",
            "its own holds; each holds until the next. The last two count the cases with the",
            "operator in their main graph. Operators of `com.microsoft` have no such tests: they",
            "are compared with onnxruntime in `tests/test_torchgraph_contrib.py` and, in whole",
            "optimized graphs, in `tests/test_torchgraph_optimized.py`.",
            "",
            "| domain | operator | since opset | node tests passed | refused |",
            "| --- | --- | --- | --- | --- |",
            *rows(tallies),
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Operators of the bridge against ONNX's tests.")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table")
    parser.add_argument("--check", type=Path, metavar="FILE", help="compare the list with the code")
    arguments = parser.parse_args()
    if arguments.check:
        found = problems(arguments.check.read_text())
        print("\n".join(found) or "up to date")
        if found:
            print(f"run: {_COMMAND}")
        return 1 if found else 0
    text = page()
    if arguments.write:
        arguments.write.write_text(text)
    print("\n".join(line for line in text.splitlines() if not line.startswith("|")))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
