"""Verbs that make something: a recipe, an ONNX file, a compressed model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.errors import DataError, ModelError, OutputError
from edgecompress.progress import Progress, silent

if TYPE_CHECKING:
    import torch

    from edgecompress.recipe import Recipe
    from edgecompress.report.data import Report
    from edgecompress.results import (
        ExportResult,
        Plan,
    )
    from edgecompress.sources import ExampleInputs

__all__ = ["init", "export", "build", "compress"]

StrPath = str | os.PathLike[str]


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
    passes: Sequence[tuple[str, Mapping[str, Any]]] | None = None,
    *,
    output: StrPath,
    search: Mapping[str, Any] | None = None,
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
        passes: Names and options of the passes, in order. Without, candidates for the target are
            built, judged and measured, and the best that keeps the budgets is delivered.
        output: Folder of the results.
        search: Keys of ``[search]``; together with ``passes``, these run in front of it.
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
        search=search,
        data=table,
        metric=metric,
        target=target,
        budgets=budgets,
        use_cache=use_cache,
    )
    recipe = recipe.using(memory=memory, jobs=jobs, engine=engine, scratch=scratch)
    return pipeline.build(recipe, use_cache=use_cache, progress=progress)
