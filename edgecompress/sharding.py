"""Statistics over shards of the rows: in processes of this machine, or on a cluster.

The numbers are those of one sweep, bit for bit, whatever the shards and the engine: batches are cut
before they are shared out, and statistics merge exactly. One thing more could tell the runs apart:
torch sums matrix products in an order that depends on the number of threads. So each batch is
computed on one thread: in a worker process one batch after the other, in this process several at
once. Processors of another kind round differently; a cluster of mixed machines may differ from one
machine in the last bits.

Workers read the model and the rows themselves. On a cluster both, and the scratch folder, lie in
folders that all its machines see under the same paths.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from edgecompress.data.calibration import CalibrationSet
from edgecompress.errors import ModelError
from edgecompress.files import ScratchFolder
from edgecompress.model import Model
from edgecompress.numerics.one_thread import one_thread
from edgecompress.parallel import engine as engines
from edgecompress.progress import Progress, silent
from edgecompress.statistics import Statistics, collect

__all__ = ["collect_sharded"]


def collect_sharded(
    model: Model,
    calibration: CalibrationSet,
    names: Collection[str],
    *,
    jobs: int = 1,
    engine: str | None = None,
    memory: int | None = None,
    scratch: Path | None = None,
    file: Path | None = None,
    progress: Progress = silent,
) -> Statistics:
    """Run the calibration rows through the model, in shards, and keep statistics of values.

    Args:
        model: The graph.
        calibration: Rows.
        names: Values to watch.
        jobs: How many shards; without an engine as many processes of this machine.
        engine: As :func:`edgecompress.parallel.engine.run` takes it.
        memory: Bytes that weights and activations may take, about: on this machine over all
            processes, on a cluster in each of them.
        scratch: Folder for activations past the limit, and for the model that the workers read.
        file: An ONNX file of exactly this model, for the workers to read. Default: it is saved to
            the scratch folder.
        progress: Told the rows done.

    Raises:
        InputError: As :func:`edgecompress.statistics.collect`, or the engine cannot be used.
        BuildError: A worker failed or died, or the cluster cannot be reached.
    """
    engines.check_engine(engine)
    shards = min(jobs, -(-calibration.calibration_rows // calibration.batch_size))
    if engine is None and shards <= 1:
        with one_thread() as threads:
            whole = collect(
                model,
                calibration,
                names,
                threads=threads,
                memory=memory,
                scratch=scratch,
                progress=progress,
            )
        return _in_order(whole, names)
    if memory is not None and engine is None:
        memory //= shards
    total = calibration.calibration_rows
    place = None if scratch is None else scratch.absolute()
    with _readable(model, file, scratch) as path:
        work = _Shard(path, model.digest, calibration, tuple(names), (0, shards), memory, place)
        found = engines.run(
            _collect_shard,
            [replace(work, shard=(number, shards)) for number in range(shards)],
            jobs=shards,
            engine=engine,
            label="shard",
            progress=lambda _, done, of: progress("calibrate", total * done // of, total),
        )
    return _in_order(functools.reduce(Statistics.merge, found), names)


@dataclass(frozen=True)
class _Shard:
    """What a worker has to know."""

    path: Path
    digest: str
    calibration: CalibrationSet
    names: tuple[str, ...]
    shard: tuple[int, int]
    memory: int | None
    scratch: Path | None


def _collect_shard(work: _Shard) -> Statistics:
    if not work.path.is_file():
        raise ModelError(
            "a worker finds no such file",
            where=str(work.path),
            cure="on a cluster, put model, data and scratch folder where all machines see them",
        )
    model = Model.load(work.path)
    if model.digest != work.digest:
        raise ModelError(
            f"a worker finds another model here: expected {work.digest[:12]}, "
            f"got {model.digest[:12]}",
            where=str(work.path),
            cure="leave the file alone while the work runs; on a cluster, share one folder",
        )
    with one_thread():
        return collect(
            model,
            work.calibration,
            work.names,
            shard=work.shard,
            memory=work.memory,
            scratch=work.scratch,
        )


@contextlib.contextmanager
def _readable(model: Model, file: Path | None, scratch: Path | None) -> Iterator[Path]:
    """A file that workers can read the model from."""
    if file is not None:
        yield file.absolute()
        return
    with ScratchFolder(scratch) as folder:
        model.save(folder / "model.onnx", external_data=True)
        yield (folder / "model.onnx").absolute()


def _in_order(found: Statistics, names: Collection[str]) -> Statistics:
    return replace(found, tensors={name: found.tensors[name] for name in names})
