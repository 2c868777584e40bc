"""What the walk costs beside plain forward passes, in time and in memory.

- Statistics of every floating-point value of MobileNet v1 over 400 images, in one sweep; and over
  1, 2 and 4 shards, which must give the same numbers bit for bit.
- The walk with two streams, every block edited, block by block, against one plain forward pass
  over the same rows; and the most activations kept at once, against the widest cut times the rows.

Both run over rows that are preprocessed and in memory, in the same process and in turn.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from _common import Outcome, Verdict, example, in_turn, note, opened, table

if TYPE_CHECKING:
    from edgecompress.data.calibration import Batch, CalibrationSet
    from edgecompress.model import Model
    from edgecompress.walk.walker import Walk

STATISTICS_GOAL, WALK_GOAL = 1.5, 2.3
# Rows with about as much work in each.
_MODELS = {"mobilenet_v1_imagenet": 100, "resnet20_cifar10": 2000}


class InMemory:
    """Calibration rows read and preprocessed beforehand, in the batches that they come in."""

    def __init__(self, data: CalibrationSet) -> None:
        self._batches = list(data.batches("calibration"))
        self.calibration_rows = data.calibration_rows
        self.batch_size = data.batch_size

    def batches(
        self, split: str, batch_size: int | None = None, *, shard: tuple[int, int] = (0, 1)
    ) -> Iterator[Batch]:
        """The batches of a shard."""
        return iter(self._batches[shard[0] :: shard[1]])


def run(*, quick: bool) -> Outcome:
    outcome = Outcome(figures={})
    _statistics(outcome, 32 if quick else 400, 1 if quick else 3)
    _two_streams(outcome, quick, 1 if quick else 5)
    return outcome


def _statistics(outcome: Outcome, rows: int, repeats: int) -> None:
    from edgecompress.sharding import collect_sharded
    from edgecompress.statistics_table import chosen_values

    model, data = opened(example("mobilenet_v1_imagenet", calibration=rows))
    if data.calibration_rows < rows:
        data = _all_images(rows, model)
    ready: Any = InMemory(data)
    names = chosen_values(model)
    note(f"statistics of {len(names)} values over {ready.calibration_rows} rows")
    forward = _forward(model, ready)
    taken = [in_turn(forward, lambda: collect_sharded(model, ready, names)) for _ in range(repeats)]
    ratio = statistics.median(sweep / plain for plain, sweep in taken)
    note("shards")
    found = {jobs: collect_sharded(model, data, names, jobs=jobs) for jobs in (1, 2, 4)}
    same = all(_bits(found[jobs]) == _bits(found[1]) for jobs in found)
    outcome.figures["statistics"] = {
        "rows": ready.calibration_rows,
        "values": len(names),
        "forward_and_sweep_seconds": taken,
        "ratio": ratio,
        "same_with_1_2_4_shards": same,
    }
    plain, sweep = (statistics.median(column) for column in zip(*taken, strict=True))
    outcome.tables.append(
        table(
            f"Statistics of {len(names)} values of MobileNet v1, {ready.calibration_rows} rows",
            ["forward s", "sweep s", "/ forward", "1, 2, 4 shards"],
            [[plain, sweep, ratio, "same bits" if same else "DIFFERENT"]],
        )
    )
    outcome.verdicts += [
        Verdict(
            f"statistics of all values at most {STATISTICS_GOAL} of forward",
            f"{ratio:.2f}",
            ratio <= STATISTICS_GOAL,
        ),
        Verdict("the same numbers with 1, 2 and 4 shards", "bit for bit" if same else "no", same),
    ]


def _all_images(rows: int, model: Model) -> CalibrationSet:
    """The example calibrates on fewer images than there are to validate on: these, then."""
    from edgecompress.data.calibration import CalibrationSet

    recipe = example("mobilenet_v1_imagenet")
    assert recipe.data is not None
    assert recipe.data.validation is not None
    spec = recipe.data.model_copy(
        update={
            "calibration": recipe.data.validation.model_copy(update={"rows": rows}),
            "validation": None,
        }
    )
    return CalibrationSet.open(spec, model.signature, base=recipe.base)


def _bits(found: Any) -> dict[str, Any]:
    return {
        name: (
            seen.low.hex(),
            seen.high.hex(),
            seen.count,
            seen.mean.hex(),
            seen.rms.hex(),
            seen.histogram.exponent,
            seen.histogram.counts.numpy().tobytes(),
        )
        for name, seen in found.tensors.items()
    }


def _two_streams(outcome: Outcome, quick: bool, repeats: int) -> None:
    listed = []
    for name, rows in _MODELS.items():
        rows = rows // 10 if quick else rows
        model, data = opened(example(name, calibration=rows))
        ready: Any = InMemory(data)
        note(f"two streams: {name}")
        walks: list[Walk] = []
        forward, walk = _forward(model, ready), _edited_walk(model, ready, walks)
        in_turn(forward, walk)  # the first run of each is slower
        taken = [in_turn(forward, walk) for _ in range(repeats)]
        ratio = statistics.median(walked / plain for plain, walked in taken)
        cut = max(block.live_bytes for block in walks[-1].blocks[:-1])
        count = ready.calibration_rows
        # One batch more: it lies at both cuts while it passes.
        most = 2 * cut * (count + ready.batch_size)
        peak = walks[-1].budget.peak
        outcome.figures[name] = {
            "rows": count,
            "blocks": len(walks[-1].blocks),
            "forward_and_walk_seconds": taken,
            "ratio": ratio,
            "widest_cut_bytes": cut,
            "kept_bytes": peak,
        }
        plain, walked = (statistics.median(column) for column in zip(*taken, strict=True))
        listed.append(
            [name, count, len(walks[-1].blocks), plain, walked, ratio, most / 1e6, peak / 1e6]
        )
        outcome.verdicts += [
            Verdict(
                f"two streams at most {WALK_GOAL} forward passes, {name}",
                f"{ratio:.2f}",
                ratio <= WALK_GOAL,
            ),
            Verdict(
                f"activations kept: the widest cut times the rows, twice, {name}",
                f"{peak / 1e6:.1f} of {most / 1e6:.1f} MB",
                peak <= most,
            ),
        ]
    head = [
        "model",
        "rows",
        "blocks",
        "forward s",
        "walk s",
        "/ forward",
        "widest cut MB",
        "kept MB",
    ]
    outcome.tables.append(table("The walk with two streams, every block edited", head, listed))


def _forward(model: Model, data: Any) -> Callable[[], None]:
    import torch

    from edgecompress.torchgraph import as_tensors, to_torch

    def run_all() -> None:
        graph = to_torch(model)
        with torch.inference_mode():
            for batch in data.batches("calibration"):
                graph(as_tensors(batch.inputs))

    return run_all


def _edited_walk(model: Model, data: Any, walks: list[Walk]) -> Callable[[], None]:
    from edgecompress.walk.blocks import find_blocks
    from edgecompress.walk.walker import Walk

    def run_all() -> None:
        edited = model.clone("edited")
        walk = Walk(model, data, current=edited, blocks=find_blocks(model))
        walks.append(walk)
        for step in walk:
            for node in step.block.nodes:
                weight = node.inputs[1] if len(node.inputs) > 1 else None
                if node.op_type in ("Conv", "Gemm") and weight is not None:
                    values = edited.initializer(weight.name or "")
                    edited.set_initializer(weight.name or "", values * values.dtype.type(0.99))

    return run_all
