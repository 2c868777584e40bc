"""Verbs that measure models on targets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from edgecompress.progress import Progress, silent

if TYPE_CHECKING:
    from edgecompress.report.profile_data import ProfileResult, ProfileTable
    from edgecompress.target import TargetProfile

__all__ = ["profile", "profiles", "save_target"]

StrPath = str | os.PathLike[str]


def profile(
    model: StrPath,
    *,
    target: str = "host",
    device: str | None = None,
    threads: int | None = None,
    batch: int = 1,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    data: StrPath | None = None,
    progress: Progress = silent,
) -> ProfileResult:
    """Measure a model on a target: latency, memory, time of each operator, agreement, placement.

    Args:
        model: An ``.onnx`` file, or any other source of a recipe.
        target: Name of the target.
        device: Address of the device, such as ``ssh://pi@kitchen``; default: the target's own.
        threads: Threads, instead of the target's.
        batch: What a symbolic first dimension of the inputs counts.
        shapes: Shapes of single inputs, by name.
        data: Real rows to run it on, instead of random numbers.
        progress: Told how far the work is.

    Raises:
        InputError: The model or target cannot be used.
        MeasurementError: The runtime cannot run the model.
    """
    each = {name: [shape] for name, shape in (shapes or {}).items()}
    return profiles(
        [model],
        targets=[target],
        device=device,
        threads=threads,
        batch=batch,
        shapes=each,
        data=data,
        progress=progress,
    ).rows[0]


def profiles(
    models: Sequence[StrPath],
    *,
    targets: Sequence[str] = ("host",),
    device: str | None = None,
    threads: int | None = None,
    batch: int = 1,
    shapes: Mapping[str, Sequence[tuple[int, ...]]] | None = None,
    dims: Mapping[str, Sequence[int]] | None = None,
    data: StrPath | None = None,
    page: StrPath | None = None,
    progress: Progress = silent,
) -> ProfileTable:
    """Measure models on targets, a row for each, with each of the shapes.

    Models with the same inputs take turns, and are compared with the first of them. Where there is
    more than one row, what goes wrong in one is kept there and stops no other.

    Args:
        models: ``.onnx`` files, or other sources.
        targets: Names of targets.
        device: Address of the device for all of them; default: each target's own.
        threads: Threads, instead of the targets'.
        batch: What a symbolic first dimension of the inputs counts.
        shapes: Lists of whole shapes, by input.
        dims: Lists of numbers, by symbolic dimension.
        data: Real rows to run them on.
        page: An ``.html`` file for the table with all details.
        progress: Told how far the work is.

    Raises:
        InputError: A model or target cannot be used.
        MeasurementError: There is one row only, and the runtime cannot run the model.
    """
    from edgecompress.evaluation import Evaluator, load_target
    from edgecompress.profile_shapes import shape_list
    from edgecompress.profiling import by_inputs, profile_in_turn
    from edgecompress.report.profile_data import ProfileTable
    from edgecompress.report.profile_page import check_page, write_page
    from edgecompress.sources import load
    from edgecompress.statistics_table import calibration_rows

    place = None if page is None else check_page(page)
    chosen = [load_target(name, threads=threads) for name in targets]
    loaded = {os.fspath(name): load(name) for name in models}
    groups = by_inputs({name: each.model for name, each in loaded.items()})
    rows = []
    for group in groups:
        first = next(iter(group))
        given = shape_list(group[first], batch=batch, shapes=shapes, dims=dims)
        real = None if data is None else calibration_rows(data, {}, loaded[first], batch)
        single = len(chosen) * len(loaded) * len(given) == 1
        for target in chosen:
            with Evaluator(target, data=real, progress=progress, device=device) as evaluator:
                rows += profile_in_turn(group, evaluator, batch=batch, shapes=given, strict=single)
    table = ProfileTable(rows=rows)
    if place is not None:
        write_page(table, place)
    return table


def save_target(path: StrPath, *, progress: Progress = silent) -> TargetProfile:
    """Write a target profile of this machine, with what is measured here in about a minute.

    Args:
        path: The ``.toml`` file; its name is the target's.
        progress: Told how far the work is.

    Raises:
        OutputError: The file cannot be written, or its name is none for a target.
    """
    from edgecompress.saved_target import write_own_profile

    return write_own_profile(path, progress=progress)
