"""What a build holds while it runs: its inputs, and the steps taken so far."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from edgecompress.evaluation import Evaluator, MetricFigure
from edgecompress.graph_pass import Applied
from edgecompress.model import Model
from edgecompress.progress import Progress
from edgecompress.recipe import Recipe
from edgecompress.search.loop import Search
from edgecompress.step_cache import StepCache
from edgecompress.workbench import Workbench

__all__ = ["BuildState", "Step", "SOURCE"]

SOURCE: Literal["source"] = "source"


@dataclass
class Step:
    """A step that was taken, and the model after it.

    Attributes:
        name: Name of the pass, or :data:`SOURCE` for the float model before any pass.
        model: The model after it.
        status: As in a report's step.
        options: Options of the pass.
        applied: What the pass did.
        figure: The metric after it.
        reason: Why it was not kept.
        cached: The pass did not run, its result was in the cache.
        seconds: Time that it took.
        candidate: It belongs to the candidate that a search chose.
    """

    name: str
    model: Model
    status: Literal["source", "kept", "unchanged", "rolled back"]
    options: Mapping[str, Any] = field(default_factory=dict)
    applied: Applied | None = None
    figure: MetricFigure | None = None
    reason: str | None = None
    cached: bool = False
    seconds: float = 0.0
    candidate: bool = False

    def roll_back(self, reason: str) -> None:
        """Let the model before it go on."""
        self.status, self.reason = "rolled back", reason


@dataclass
class BuildState:
    """All that the steps of one build share.

    Attributes:
        recipe: What to do.
        output: Folder of the results.
        source: The float model.
        bench: Runs passes, and judges models on the target.
        progress: Told how far the work is.
        started: When the build started, on the monotonic clock.
        steps: Steps taken so far, the source first.
        notes: Lines for the report that must not be missed.
        search: What the search did, where the recipe asks for one.
    """

    recipe: Recipe
    output: Path
    source: Model
    bench: Workbench
    progress: Progress
    started: float = field(default_factory=time.monotonic)
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    search: Search | None = None

    @property
    def evaluator(self) -> Evaluator:
        """What judges models on the target."""
        return self.bench.evaluator

    @property
    def cache(self) -> StepCache:
        """Finished steps."""
        return self.bench.cache

    @property
    def kept(self) -> list[Step]:
        """Steps whose model went on."""
        return [step for step in self.steps if step.status in (SOURCE, "kept")]

    @property
    def current(self) -> Step:
        """The step whose model is the best so far."""
        return self.kept[-1]
