"""JUnit XML: each budget, each step and the fusion coverage as a test case of a CI server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

from edgecompress import files
from edgecompress.report import figures
from edgecompress.report import format as fmt
from edgecompress.report.data import BudgetVerdict, Report, StepReport

__all__ = ["junit_text", "write_junit"]


def write_junit(report: Report, path: Path) -> None:
    """Write the JUnit file, whole or not at all.

    Raises:
        OutputError: The folder cannot be written, or the disk is full.
    """
    files.write_text(path, junit_text(report))


def junit_text(report: Report) -> str:
    """The report as JUnit XML.

    A missed budget and a claimed node that does not run fused are failures; a step that was rolled
    back is skipped, since the build went on without it; an error of the build is an error.
    """
    suite = ET.Element("testsuite", name="edgecompress")
    suite.append(_properties(report))
    suite.extend(_cases(report))
    counts = {
        "tests": len(suite.findall("testcase")),
        "failures": len(suite.findall("testcase/failure")),
        "errors": len(suite.findall("testcase/error")),
        "skipped": len(suite.findall("testcase/skipped")),
    }
    root = ET.Element("testsuites", name="edgecompress")
    for element in (suite, root):
        for key, value in counts.items():
            element.set(key, str(value))
        element.set("time", f"{report.seconds:.3f}")
    root.append(suite)
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _cases(report: Report) -> Iterator[ET.Element]:
    for budget in report.budgets:
        yield _budget(report, budget)
    for step in report.steps:
        yield _step(report, step)
    if report.coverage is not None:
        yield _coverage(report)
    if report.error is not None or report.status == "error":
        yield _error(report)


def _error(report: Report) -> ET.Element:
    case = _case(report, "build", report.seconds)
    error = report.error or {}
    kind = str(error.get("error", "error"))
    _result(case, "error", str(error.get("what", kind)), figures.error_text(report))
    case[-1].set("type", fmt.clean(kind))
    return case


def _case(report: Report, name: str, seconds: float = 0.0) -> ET.Element:
    return ET.Element(
        "testcase",
        classname=fmt.clean(report.target),
        name=fmt.clean(name),
        time=f"{seconds:.3f}",
    )


def _result(case: ET.Element, kind: str, message: str, detail: str = "") -> None:
    result = ET.SubElement(case, kind, message=fmt.clean(message))
    result.text = fmt.clean(detail) or None


def _budget(report: Report, budget: BudgetVerdict) -> ET.Element:
    case = _case(report, f"budget {budget.name}")
    if not budget.passed:
        found = fmt.quantity(budget.value, budget.unit)
        basis = "" if budget.value is None else f" ({budget.basis})"
        limit = fmt.brief(fmt.quantity(budget.limit, budget.unit))
        _result(case, "failure", f"limit {limit}, found {found}{basis}")
    return case


def _step(report: Report, step: StepReport) -> ET.Element:
    case = _case(report, f"step {step.name}", step.seconds)
    if step.status == "rolled back":
        _result(case, "skipped", f"rolled back: {step.reason or 'no reason was given'}")
    return case


def _coverage(report: Report) -> ET.Element:
    case = _case(report, "fusion coverage")
    coverage = report.coverage
    if coverage is not None and coverage.fused < coverage.claimed:
        detail = "\n".join(f"{node}: {what}" for node, what in coverage.unfused.items())
        _result(case, "failure", figures.coverage_line(report), detail)
    return case


def _properties(report: Report) -> ET.Element:
    latency = figures.latency_pair(report)
    values = {
        "model": figures.model_name(report),
        "target": report.target,
        "status": report.status,
        "tool": report.tool,
        "size_before": figures.size_pair(report).before.text,
        "size_after": figures.size_pair(report).after.text,
        "metric": report.metric.name if report.metric else fmt.UNKNOWN,
        "metric_before": figures.metric_pair(report).before.text,
        "metric_after": figures.metric_pair(report).after.text,
        "latency_p50_before": latency.before.text,
        "latency_p50_after": latency.after.text,
        "latency_ratio": fmt.ratio(latency.ratio),
        "peak_memory_after": figures.memory_pair(report).after.text,
        **{f"version.{name}": version for name, version in report.versions.items()},
        **{f"sha256.{file.name}": file.sha256 for file in report.files},
    }
    properties = ET.Element("properties")
    for name, value in values.items():
        ET.SubElement(properties, "property", name=fmt.clean(name), value=fmt.clean(value))
    return properties
