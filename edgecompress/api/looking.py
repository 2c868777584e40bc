"""Verbs that tell what a model holds, and what is installed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edgecompress.errors import OutputError
from edgecompress.progress import Progress, silent

if TYPE_CHECKING:
    from edgecompress.catalogue import PassDescription, TargetDescription
    from edgecompress.results import (
        Diagnosis,
        Inspection,
        SensitivityResult,
        StatisticsResult,
    )

__all__ = ["inspect", "statistics", "sensitivity", "targets", "passes", "schema", "doctor"]

StrPath = str | os.PathLike[str]


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
    file = _json_file(output)
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


def sensitivity(
    model: StrPath,
    *,
    data: StrPath,
    inputs: Mapping[str, str] | None = None,
    target: str = "host",
    formats: Sequence[Literal["w8a8", "w8", "w4"]] = (),
    rows: int = 64,
    loss: Literal["kl", "squared"] | None = None,
    memory: int | None = None,
    jobs: int | None = None,
    engine: str | None = None,
    scratch: StrPath | None = None,
    output: StrPath | None = None,
    batch_size: int = 4,
    progress: Progress = silent,
) -> SensitivityResult:
    """What each layer, alone in each format of a target, would cost; nothing is built.

    Args:
        model: An ``.onnx`` file, or any other source of a recipe.
        data: Rows, all of them; or a recipe, whose calibration rows give ranges and whose
            validation rows are judged on.
        inputs: Array that feeds an input, where it has another name.
        target: Name of the target.
        formats: ``w8a8``, ``w8``, ``w4``. Default: as the pass ``mixed`` takes them.
        rows: That it is measured on, about.
        loss: ``kl`` of logits, or ``squared`` error. Default: by what the outputs are.
        memory: Bytes that weights and activations may take, about.
        jobs: As for :func:`statistics`, for the ranges.
        engine: As for :func:`statistics`, for the ranges.
        scratch: Folder for temporary files.
        output: A ``.json`` file for the result.
        batch_size: Rows per batch, where neither the model nor a recipe says it.
        progress: Told how far the work is.

    Raises:
        InputError: Something cannot be used.
        PassError: The target takes none of the formats, or the model is quantized already.
    """
    from edgecompress import files
    from edgecompress.evaluation import load_target
    from edgecompress.graph_pass import Context
    from edgecompress.machine.host import host
    from edgecompress.quantization.mixed import (
        MixSettings,
        available_formats,
        in_all_formats,
        suits,
    )
    from edgecompress.quantization.sensitivity import measure_sensitivity
    from edgecompress.report.data import SensitivityReport
    from edgecompress.resources import Resources
    from edgecompress.results import SensitivityResult
    from edgecompress.sources import load
    from edgecompress.statistics_table import calibration_rows

    file = _json_file(output)
    profile = load_target(target)
    loaded = load(model, progress=progress)
    place = None if scratch is None else Path(scratch)
    context = Context(
        calibration=calibration_rows(data, inputs or {}, loaded, batch_size),
        constraints=profile.constraints(host()),
        resources=Resources(memory=memory, jobs=jobs or 1, engine=engine, scratch=place),
        progress=progress,
    )
    graph = loaded.model.inlined()
    chosen = available_formats(graph, context, formats or None)
    allowed = (lambda *_: True) if formats else (lambda node, name: suits(node, name, chosen))
    variants = in_all_formats(graph, context, chosen, allowed, MixSettings())
    found = measure_sensitivity(graph, variants, context, rows=rows, loss=loss)
    result = SensitivityResult(
        model=os.fspath(model),
        data=os.fspath(data),
        target=profile.name,
        sensitivity=SensitivityReport(**found.as_note()),
    )
    if file is not None:
        files.write_text(file, result.model_dump_json(indent=2))
    return result


def _json_file(output: StrPath | None) -> Path | None:
    """Where a result is to be written, too.

    Raises:
        OutputError: The name does not say that it is JSON.
    """
    file = None if output is None else Path(output)
    if file is not None and file.suffix != ".json":
        raise OutputError(f"expected a name that ends in .json, got {file.name!r}", where=str(file))
    return file


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
