"""The Python API: one function for each verb of the command line, of the same name.

Importing this module loads neither torch nor onnx: each function imports what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import DataError, ModelError, OutputError, RecipeError
from edgecompress.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from edgecompress.catalogue import PassDescription, TargetDescription
    from edgecompress.recipe import Recipe
    from edgecompress.report.data import Report
    from edgecompress.results import (
        Comparison,
        Diagnosis,
        ExportResult,
        Inspection,
        Plan,
        ProfileResult,
        StatisticsResult,
        ValidationResult,
    )
    from edgecompress.sources import ExampleInputs

__all__ = [
    "init",
    "inspect",
    "export",
    "build",
    "compress",
    "profile",
    "validate",
    "compare",
    "statistics",
    "targets",
    "passes",
    "schema",
    "doctor",
]

StrPath = str | os.PathLike[str]

_AGAINST_REFERENCE = ("latency_ratio", "size_ratio", "metric_drop")


def init(
    model: StrPath,
    *,
    output: StrPath = "recipe.toml",
    target: str = "host",
    data: StrPath | None = None,
    force: bool = False,
) -> Path:
    """Write a commented recipe to start from.

    Args:
        model: The model, as ``[source] model`` takes it.
        output: The recipe to write.
        target: Name of a target.
        data: Rows to calibrate on, as ``[data] path`` takes them.
        force: Replace a file that is there.

    Returns:
        The recipe's path.

    Raises:
        ModelError: There is no such model file.
        DataError: There are no such data.
        TargetError: There is no such target.
        OutputError: The file exists or is no ``.toml``, or the folder cannot be written.
    """
    from edgecompress import files
    from edgecompress.starter import relative_source, starter_recipe
    from edgecompress.target import load

    file = Path(output)
    if file.suffix != ".toml":
        raise OutputError(f"expected a name that ends in .toml, got {file.name!r}", where=str(file))
    if file.exists() and not force:
        raise OutputError("exists already", where=str(file), cure="use --force to replace it")
    if target != "host":
        load(target)
    text = starter_recipe(
        model=relative_source(os.fspath(model), file.parent, ModelError),
        target=target,
        data=None if data is None else relative_source(os.fspath(data), file.parent, DataError),
    )
    files.write_text(file, text)
    return file


def inspect(model: StrPath) -> Inspection:
    """What a model holds, and which passes could compress it.

    Args:
        model: An ``.onnx`` file, or any other source of a recipe.

    Raises:
        InputError: The model cannot be read or exported.
    """
    from edgecompress.inspection import inspect_model
    from edgecompress.sources import load

    return inspect_model(load(model).model)


def export(
    source: StrPath | torch.nn.Module,
    output: StrPath,
    *,
    opset: int = 20,
    static_batch: bool = False,
    example_inputs: ExampleInputs | None = None,
    progress: Progress = silent,
) -> ExportResult:
    """Turn a source into an ONNX file, checked against torch.

    Args:
        source: A path or reference as a recipe takes it, or a torch module.
        output: The ``.onnx`` file to write.
        opset: ONNX operator set; an ONNX file keeps its own.
        static_batch: Keep the batch size of the example inputs.
        example_inputs: For a torch module: a tuple of tensors, or a dictionary by parameter name.
        progress: Called as work goes on.

    Raises:
        InputError: The source cannot be read or exported, or the file cannot be written.
        ExportMismatchError: The exported graph computes something else than torch.
    """
    from edgecompress.results import ExportResult
    from edgecompress.sources import load

    file = Path(output)
    if file.suffix != ".onnx":
        raise OutputError(f"expected a name that ends in .onnx, got {file.name!r}", where=str(file))
    loaded = load(
        source,
        opset=opset,
        example_inputs=example_inputs,
        dynamic_batch=not static_batch,
        progress=progress,
    )
    written = loaded.model.save(file)
    return ExportResult(
        path=str(file),
        files=[str(each) for each in written],
        kind=loaded.kind,
        opset=loaded.model.opset,
        size_bytes=sum(each.stat().st_size for each in written),
        export_error=loaded.export_error,
        signature=loaded.model.signature.as_json(),
    )


def build(
    recipe: StrPath | Recipe,
    *,
    output: StrPath | None = None,
    dry_run: bool = False,
    use_cache: bool = True,
    memory: int | None = None,
    jobs: int | None = None,
    engine: str | None = None,
    scratch: StrPath | None = None,
    progress: Progress = silent,
) -> Report | Plan:
    """Build what a recipe says: compress, measure, judge the budgets, write the output folder.

    Args:
        recipe: A recipe file, or a recipe.
        output: Folder of the results; default: the recipe's.
        dry_run: Check everything and tell the steps, but run none.
        use_cache: Whether to take steps from the cache and to keep them there.
        memory: Bytes that weights and activations may take, about; default: the recipe's.
        jobs: Processes that share the calibration rows; default: the recipe's.
        engine: A cluster for them; default: the recipe's.
        scratch: Folder for temporary files; default: the recipe's.
        progress: Told how far the work is.

    Returns:
        The report; or with ``dry_run`` the plan.

    Raises:
        InputError: Something that the recipe names cannot be used. Nothing was written.
        BuildError: A step failed; the output folder holds the report, and no model.
    """
    from edgecompress import pipeline
    from edgecompress.recipe import Recipe, load_recipe

    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
    loaded = loaded.using(memory=memory, jobs=jobs, engine=engine, scratch=scratch)
    folder = None if output is None else Path(output)
    if dry_run:
        return pipeline.plan(loaded, output=folder, use_cache=use_cache)
    return pipeline.build(loaded, output=folder, use_cache=use_cache, progress=progress)


def compress(
    model: StrPath,
    passes: Sequence[tuple[str, Mapping[str, Any]]],
    *,
    output: StrPath,
    data: StrPath | None = None,
    validation: StrPath | None = None,
    labels: str | None = None,
    metric: str | None = None,
    target: str = "host",
    budgets: Mapping[str, float] | None = None,
    preprocess: Mapping[str, Any] | None = None,
    text: Mapping[str, Any] | None = None,
    use_cache: bool = True,
    memory: int | None = None,
    jobs: int | None = None,
    engine: str | None = None,
    scratch: StrPath | None = None,
    progress: Progress = silent,
) -> Report:
    """Compress a model without a recipe file.

    Args:
        model: The model, as ``[source] model`` takes it.
        passes: Names and options of the passes, in order.
        output: Folder of the results.
        data: Rows to calibrate on, and to validate on where ``validation`` names none; or a
            recipe, whose ``[data]`` table is taken.
        validation: Rows to validate on.
        labels: Name of the array of labels.
        metric: Name of the metric.
        target: Name of the target.
        budgets: Limits by name.
        preprocess: Keys of ``[data.preprocess]``.
        text: Keys of ``[data]`` for text, such as ``{"texts": "6,7", "max_length": 128}``.
        use_cache: Whether to take steps from the cache and to keep them there.
        memory: Bytes that weights and activations may take, about.
        jobs: Processes that share the calibration rows.
        engine: A cluster for them, as ``dask://host:port``.
        scratch: Folder for temporary files.
        progress: Told how far the work is.

    Raises:
        InputError: Something cannot be used. Nothing was written.
        BuildError: A step failed; the output folder holds the report, and no model.
    """
    from edgecompress import pipeline
    from edgecompress.data_options import data_table
    from edgecompress.recipe import Recipe

    table = data_table(data, validation, labels, preprocess, text)
    recipe = Recipe.from_options(
        os.fspath(model),
        passes,
        output=output,
        data=table,
        metric=metric,
        target=target,
        budgets=budgets,
        use_cache=use_cache,
    )
    recipe = recipe.using(memory=memory, jobs=jobs, engine=engine, scratch=scratch)
    return pipeline.build(recipe, use_cache=use_cache, progress=progress)


def profile(
    model: StrPath,
    *,
    target: str = "host",
    threads: int | None = None,
    batch: int = 1,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    progress: Progress = silent,
) -> ProfileResult:
    """Measure latency, memory and the time of each operator on a target.

    Args:
        model: An ``.onnx`` file, or any other source of a recipe.
        target: Name of the target.
        threads: Threads, instead of the target's.
        batch: What a symbolic first dimension of the inputs counts.
        shapes: Shapes of single inputs, by name.
        progress: Told how far the work is.

    Raises:
        InputError: The model or target cannot be used.
        MeasurementError: The runtime cannot run the model.
    """
    from edgecompress.evaluation import Evaluator, load_target
    from edgecompress.report.data import SkipReport
    from edgecompress.results import ProfileResult
    from edgecompress.sources import load

    loaded = load(model).model
    with Evaluator(load_target(target, threads=threads), progress=progress) as evaluator:
        refused = evaluator.runtime.unsupported(loaded)
        if not refused:
            feeds = evaluator.feeds(loaded, batch, shapes)
        measurement = (
            evaluator.not_run(loaded, "the runtime does not support all operators")
            if refused
            else evaluator.measure({"model": loaded}, feeds=feeds)["model"]
        )
        return ProfileResult(
            model=os.fspath(model),
            target=evaluator.profile.name,
            measurement=measurement,
            unsupported=[SkipReport(node=u.node, op=u.op, reason=u.reason) for u in refused],
        )


def validate(
    model: StrPath,
    *,
    budgets: Mapping[str, float],
    target: str = "host",
    reference: StrPath | None = None,
    data: StrPath | None = None,
    labels: str | None = None,
    metric: str | None = None,
    text: Mapping[str, Any] | None = None,
    progress: Progress = silent,
) -> ValidationResult:
    """Judge a model against budgets.

    Args:
        model: An ``.onnx`` file, or any other source of a recipe.
        budgets: Limits by name.
        target: Name of the target.
        reference: The float model, for ratios and drops.
        data: Rows to validate on, or a recipe whose ``[data]`` table is taken.
        labels: Name or number of the labels.
        metric: Name of the metric; default: the recipe's, else what suits the labels.
        text: Keys of ``[data]`` for text; as for :func:`compress`.
        progress: Told how far the work is.

    Raises:
        InputError: Something cannot be used, or is missing for one of the budgets.
        MeasurementError: The runtime cannot run the model.
    """
    from edgecompress.data_options import validation_rows
    from edgecompress.evaluation import Evaluator, check_alike, load_target
    from edgecompress.qdq import quantized_layers
    from edgecompress.recipe import make_budget
    from edgecompress.results import ValidationResult
    from edgecompress.sources import load
    from edgecompress.verdicts import Found, judge_budgets

    limits = make_budget(budgets).limits()
    _check_comparable(limits, reference, data)
    source = load(model)
    judged = source.model
    origin = source if reference is None else load(reference)
    against = None if reference is None else origin.model
    if against is not None:
        check_alike(against, judged)
    rows, judge = validation_rows(
        data,
        metric,
        judged,
        labels=labels,
        text=text,
        folder=source.folder or origin.folder,
        preprocess=source.preprocess or origin.preprocess,
    )
    with Evaluator(load_target(target), rows, judge, progress) as evaluator:
        evaluator.check(judged)
        models = {"model": judged} if against is None else {"reference": against, "model": judged}
        measured = evaluator.measure(models, reference=None if against is None else "reference")
        base = judged if against is None else against
        figure = None
        if judge is not None and not (judge.needs_reference and against is None):
            figure = evaluator.judge(judged, base)
        before = None
        if figure is not None and against is not None:
            before = evaluator.judge(against, against)
        verdicts = judge_budgets(
            limits,
            Found(
                measurement=measured["model"],
                size_bytes=measured["model"].size_bytes,
                reference_bytes=None if against is None else measured["reference"].size_bytes,
                metric_drop=evaluator.drop(before, figure),
            ),
        )
        return ValidationResult(
            model=os.fspath(model),
            reference=None if reference is None else os.fspath(reference),
            target=evaluator.profile.name,
            passed=all(v.passed for v in verdicts),
            metric=None if judge is None else judge.name,
            metric_value=None if figure is None else figure.value,
            reference_metric=None if before is None else before.value,
            measurement=measured["model"],
            coverage=evaluator.coverage(judged, quantized_layers(judged)),
            budgets=verdicts,
        )


def _check_comparable(
    limits: Mapping[str, float], reference: StrPath | None, data: StrPath | None
) -> None:
    """Refuse budgets that say how far to depart from the float model, where it is not named."""
    for name in _AGAINST_REFERENCE:
        lacking = ["--reference FLOAT.onnx"] if reference is None else []
        lacking += ["--data"] if name == "metric_drop" and data is None else []
        if name in limits and lacking:
            raise RecipeError(
                "compares with the float model, which is not named"
                if reference is None
                else "compares with the float model, and no rows are named to do it on",
                where=f"budget {name!r}",
                cure=f"add {' and '.join(lacking)}, or leave the budget out",
            )


def compare(
    a: StrPath,
    b: StrPath,
    *,
    data: StrPath,
    labels: str | None = None,
    metric: str | None = None,
    text: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    progress: Progress = silent,
) -> Comparison:
    """Where a compressed model departs from its original: the metric, and each node's SQNR.

    Args:
        a: The original.
        b: The compressed model.
        data: Rows to compare on, or a recipe whose ``[data]`` table is taken.
        labels: Name or number of the labels.
        metric: Name of the metric; default: the recipe's, else what suits the labels.
        text: Keys of ``[data]`` for text; as for :func:`compress`.
        batch_size: Rows per batch of the metric.
        progress: Told how far the work is.

    Raises:
        InputError: Something cannot be used, or the models' inputs or outputs differ.
        MeasurementError: The runtime cannot run one of the models.
    """
    from edgecompress.comparison import compare_nodes
    from edgecompress.data_options import validation_rows
    from edgecompress.evaluation import Evaluator, check_alike, load_target
    from edgecompress.results import Comparison, NodeSqnr
    from edgecompress.sources import load

    source = load(a)
    first, second = source.model, load(b).model
    check_alike(first, second)
    rows, judge = validation_rows(
        data,
        metric,
        first,
        batch_size,
        labels=labels,
        text=text,
        folder=source.folder,
        preprocess=source.preprocess,
    )
    if rows is None or judge is None:
        raise DataError("names no rows to compare on", where=os.fspath(data))
    with Evaluator(load_target("host"), rows, judge, progress) as evaluator:
        figures = [evaluator.judge(model, first) for model in (first, second)]
    nodes, unmatched = compare_nodes(first, second, rows, progress=progress)
    listed = [NodeSqnr(node=e.node, op=e.op, sqnr_db=e.sqnr_db) for e in nodes]
    ends = {spec.name for spec in first.signature.outputs}
    return Comparison(
        a=os.fspath(a),
        b=os.fspath(b),
        rows=rows.validation_rows,
        metric=judge.name,
        metric_a=figures[0].value,
        metric_b=figures[1].value,
        size_bytes_a=first.size_bytes,
        size_bytes_b=second.size_bytes,
        outputs=[n for n, e in zip(listed, nodes, strict=True) if e.value in ends],
        nodes=listed,
        unmatched=unmatched,
    )


def statistics(
    model: StrPath,
    *,
    data: StrPath,
    inputs: Mapping[str, str] | None = None,
    names: Sequence[str] = (),
    memory: int | None = None,
    jobs: int | None = None,
    engine: str | None = None,
    scratch: StrPath | None = None,
    output: StrPath | None = None,
    batch_size: int = 4,
    progress: Progress = silent,
) -> StatisticsResult:
    """Ranges and means of a model's values over calibration rows.

    The numbers do not depend on ``jobs``, ``engine`` and ``memory``.

    Args:
        model: An ``.onnx`` file, or any other source of a recipe.
        data: Rows, all of them; or a recipe, whose calibration rows are taken.
        inputs: Array that feeds an input, where it has another name.
        names: Only values of such names; with ``*`` and ``?``.
        memory: Bytes that weights and activations may take, about: of all processes on this
            machine together, on a cluster of each.
        jobs: Shards of the rows, each in a process with one thread; default: none but this one.
        engine: ``dask://host:port``, ``ray://host:port`` or ``ray://local``: where the shards run.
        scratch: Folder for temporary files; on a cluster one that all machines share.
        output: A ``.json`` file for the result.
        batch_size: Rows per batch, where neither the model nor a recipe says it.
        progress: Told how far the work is.

    Raises:
        InputError: Something cannot be used.
        BuildError: A worker failed or died, or the cluster cannot be reached.
    """
    from edgecompress import files
    from edgecompress.parallel.engine import check_engine
    from edgecompress.sharding import collect_sharded
    from edgecompress.sources import load
    from edgecompress.statistics_table import calibration_rows, chosen_values, tabulate

    check_engine(engine)
    file = None if output is None else Path(output)
    if file is not None and file.suffix != ".json":
        raise OutputError(f"expected a name that ends in .json, got {file.name!r}", where=str(file))
    loaded = load(model, progress=progress)
    found = collect_sharded(
        loaded.model,
        calibration_rows(data, inputs or {}, loaded, batch_size),
        chosen_values(loaded.model, names),
        jobs=jobs or 1,
        engine=engine,
        memory=memory,
        scratch=None if scratch is None else Path(scratch),
        file=loaded.model.path if loaded.kind == "onnx" else None,
        progress=progress,
    )
    result = tabulate(loaded.model, found, source=os.fspath(model), data=os.fspath(data))
    if file is not None:
        files.write_text(file, result.model_dump_json(indent=2))
    return result


def targets(name: str | None = None) -> list[TargetDescription]:
    """Installed targets, and whether something can be measured on them from here.

    Args:
        name: Only this one: a name, or the path of a ``.toml`` file.

    Raises:
        TargetError: There is no such target.
    """
    from edgecompress.catalogue import describe_target
    from edgecompress.target import names

    return [describe_target(each) for each in ([name] if name else names())]


def passes(name: str | None = None) -> list[PassDescription]:
    """Installed passes with their options.

    Args:
        name: Only this one.

    Raises:
        RecipeError: There is no such pass.
    """
    from edgecompress.catalogue import describe_pass
    from edgecompress.graph_pass import pass_names

    return [describe_pass(each) for each in ([name] if name else pass_names())]


def schema() -> dict[str, Any]:
    """JSON Schema of recipes, with the options of all installed passes."""
    from edgecompress.recipe_schema import schema as recipe_schema

    return recipe_schema()


def doctor() -> Diagnosis:
    """Check the installation; changes nothing."""
    from edgecompress.doctor import diagnose

    return diagnose()
