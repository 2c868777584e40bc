"""The search itself: try all candidates, give nodes back to float, and choose the best."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from edgecompress.errors import EdgeCompressError
from edgecompress.evaluation import MetricFigure
from edgecompress.model import Model
from edgecompress.recipe import SearchSpec
from edgecompress.report.data import GiveBackReport, SearchReport
from edgecompress.search.best_so_far import keep_best
from edgecompress.search.candidates import FLOAT, Candidate, candidates, refusal
from edgecompress.search.choice import NOISE, choose, settle, speed_of
from edgecompress.search.give_back import changes_of, for_accuracy, for_time, without
from edgecompress.search.noisy_nodes import noisy_nodes
from edgecompress.search.slow_nodes import Loss, slow_nodes
from edgecompress.search.trials import TakenPass, Trial
from edgecompress.verdicts import Found, judge_budgets
from edgecompress.workbench import TimeOverError, Workbench

__all__ = ["Limits", "Search"]

_HOPEFUL = 2
"""Of how many candidates nodes are given back, for time and for accuracy each."""
_ACCURACY_ROUNDS = 8
_TIME_ROUNDS = 3
# What the profiler promises must be worth a round, and what is measured must be worth the nodes.
_WORTH = 0.01


@dataclass(frozen=True)
class Limits:
    """What a candidate must keep to.

    Attributes:
        drop: By how much the metric may get worse.
        is_default: Whether the recipe names no such budget.
        budgets: All budgets of the recipe.
        allow_estimate: Whether an estimate passes a budget.
    """

    drop: float
    is_default: bool
    budgets: dict[str, float]
    allow_estimate: bool = False


@dataclass
class Search:
    """A search while it runs.

    Attributes:
        bench: Runs passes, judges and measures.
        spec: What the recipe says.
        limits: What a candidate must keep to.
        reference: The float model's metric.
        trials: What was tried so far, float first.
        complete: Whether the time sufficed.
    """

    bench: Workbench
    spec: SearchSpec
    limits: Limits
    reference: MetricFigure
    trials: list[Trial] = field(default_factory=list)
    complete: bool = True
    _base: Model = field(init=False)
    _best: Trial = field(init=False)

    def run(self, base: Model, figure: MetricFigure | None) -> Trial:
        """Try all candidates behind ``base``, and choose.

        Args:
            base: The model behind the recipe's own passes.
            figure: Its metric.

        Returns:
            The chosen trial; all of them have their status.
        """
        evaluator = self.bench.evaluator
        rows = 0 if evaluator.data is None else evaluator.data.calibration_rows
        plain = Trial(Candidate(FLOAT), model=base, figure=figure, size_bytes=base.size_bytes)
        plain.drop = evaluator.drop(self.reference, figure)
        waiting = [Trial(candidate) for candidate in candidates(self.spec)]
        self.trials, self._best, self._base = [plain, *waiting], plain, base
        for trial in waiting:
            reason = refusal(trial.candidate, evaluator.constraints, rows)
            if reason is not None:
                trial.end("refused", reason)
        minutes = self.spec.max_minutes
        deadline = None if minutes is None else time.monotonic() + 60 * minutes
        try:
            with self.bench.until(deadline):
                self._try_all(plain, [t for t in waiting if t.status is None])
        except TimeOverError:
            self.complete = False
            for trial in waiting:
                if trial.status is None and trial.model is None:
                    trial.end("not tried", f"the time of {minutes:g} min was over")
        chosen = choose(self.trials, self.spec.objective)
        settle(self.trials, chosen, self.spec.objective)
        return chosen

    def revoke(self, why: str) -> None:
        """Put float in the place of the trial that was chosen."""
        for trial in self.trials:
            if trial.status == "chosen":
                trial.end("slower than float", why)
        self.trials[0].end("chosen", "no candidate is better")

    def report(self) -> SearchReport:
        """What the report says of the search."""
        return SearchReport(
            objective=self.spec.objective,
            allowed_drop=self.limits.drop,
            allowed_by="default" if self.limits.is_default else "budget",
            complete=self.complete,
            candidates=[trial.report() for trial in self.trials],
        )

    def _try_all(self, plain: Trial, waiting: Sequence[Trial]) -> None:
        if not waiting:
            return
        self._measure_float(plain)
        for trial in waiting:
            self._try(trial)
        if self.spec.give_back:
            self._give_back(self._hopeful_but_wrong(), self._less_error)
            if self.spec.objective == "latency":
                self._give_back(self._hopeful_but_slow(plain), lambda t: self._less_time(t, plain))

    def _measure_float(self, plain: Trial) -> None:
        """Time the float model, and take the source in place of one that passes made slower."""
        source = self.bench.source
        self.bench.progress("candidate float", 0, 1)
        found = self.bench.measure([] if self._base.digest == source.digest else [self._base])
        own = found[0]
        if own.basis == "measured":
            own = own.model_copy(update={"latency_ratio": 1.0, "cpu_ratio": 1.0})
        plain.measurement = found[-1] if len(found) > 1 else own
        if speed_of(plain) > 1 + NOISE:
            plain.model, plain.measurement, plain.drop = source, own, 0.0
            plain.figure, plain.size_bytes = self.reference, source.size_bytes
        plain.missed = self._missed(plain, found[0].size_bytes)

    def _try(self, trial: Trial, *, beside: Trial | None = None) -> None:
        """Build, judge and measure a candidate; one that breaks costs the search no more than it.

        Args:
            trial: The candidate.
            beside: Another trial to measure it in turn with.
        """
        self.bench.progress(f"candidate {trial.name}", 0, 1)
        with self._timed(trial):
            try:
                self._build(trial)
                if trial.status is None:
                    self._judge(trial)
                if trial.status is None or (trial.status == "loses too much" and not trial.parent):
                    self._measure(trial, beside)
            except TimeOverError:
                if trial.status is None:
                    trial.end("not tried", "the time was over while it was tried")
                raise
            except Exception as error:  # whatever a candidate meets, the report says it
                trial.end("failed", _in_words(error))
        self._note_best()

    @contextmanager
    def _timed(self, trial: Trial) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            trial.seconds += time.monotonic() - started

    def _build(self, trial: Trial) -> None:
        model, skipped = self._base, ""
        for step in trial.candidate.passes:
            started = time.monotonic()
            applied, cached = self.bench.run(step, model)
            if applied.model is model or not applied.changed:
                skipped = applied.skipped[0].reason if applied.skipped else "nothing to do"
                continue
            model = applied.model
            trial.taken.append(TakenPass(step, applied, cached, time.monotonic() - started))
        if not trial.taken:
            trial.end("unchanged", f"its passes changed nothing: {skipped}")
            return
        for other in self.trials:
            if other.model is not None and other.model.digest == model.digest:
                trial.end("unchanged", f"it makes the same file as {other.name}")
                return
        trial.model, trial.size_bytes = model, model.size_bytes

    def _judge(self, trial: Trial) -> None:
        assert trial.model is not None  # it was built
        trial.figure = self.bench.judge(trial.model)
        trial.drop = self.bench.evaluator.drop(self.reference, trial.figure)
        if trial.drop is None or not trial.drop <= self.limits.drop:  # nan is no metric to keep
            lost = "unknown" if trial.drop is None else f"{trial.drop:.4g}"
            allowed = f"{self.limits.drop:.4g}"
            trial.end("loses too much", f"the metric drops by {lost}, {allowed} is allowed")

    def _measure(self, trial: Trial, beside: Trial | None) -> None:
        assert trial.model is not None  # it was built
        rivals = [] if beside is None or beside.model is None else [beside.model]
        source, *others, measured = self.bench.measure([*rivals, trial.model])
        trial.measurement, trial.size_bytes = measured, measured.size_bytes
        if beside is not None and others:
            beside.measurement = others[0]
        trial.missed = self._missed(trial, source.size_bytes)
        self.bench.evaluator.forget(trial.model)

    def _missed(self, trial: Trial, reference_bytes: int) -> tuple[str, ...]:
        found = Found(trial.measurement, trial.size_bytes or 0, reference_bytes, trial.drop)
        verdicts = judge_budgets(
            self.limits.budgets, found, allow_estimate=self.limits.allow_estimate
        )
        return tuple(verdict.name for verdict in verdicts if not verdict.passed)

    def _note_best(self) -> None:
        """Lay the best so far aside, so that a search that is killed loses nothing."""
        best = choose([t for t in self.trials if t.model is not None], self.spec.objective)
        if best is self._best:
            return
        self._best = best
        if not best.is_float:
            keep_best(self.bench, best)

    def _give_back(self, hopeful: Sequence[Trial], work: Callable[[Trial], None]) -> None:
        for trial in hopeful[:_HOPEFUL]:
            try:
                work(trial)
            except EdgeCompressError as error:  # the candidate stays as it is
                trial.reason = f"{trial.reason}; nothing was given back: {_in_words(error)}"

    def _hopeful_but_wrong(self) -> list[Trial]:
        """Candidates that would be the best if they did not lose too much, the best first."""
        lost = [t for t in self.trials if t.status == "loses too much" and t.model is not None]
        best = self._best
        if self.spec.objective == "size":
            better = [t for t in lost if (t.size_bytes or 0) < (best.size_bytes or 0)]
            return sorted(better, key=lambda t: t.size_bytes or 0)
        if all(t.speed is None for t in lost):
            return lost if best.is_float else []
        better = [t for t in lost if speed_of(t) < speed_of(best) * (1 - NOISE)]
        return sorted(better, key=speed_of)

    def _less_error(self, trial: Trial) -> None:
        """Leave as few nodes in float as will do: doubling, then halving the number."""
        data = self.bench.evaluator.data
        assert data is not None  # a search has validation rows
        assert trial.model is not None  # the hopeful have one
        noises = noisy_nodes(
            self._base,
            trial.model,
            changes_of(trial),
            data,
            self.bench.resources,
            progress=self.bench.progress,
        )
        most = len(noises) // 2
        too_few, enough, number = 0, most + 1, 1
        for _ in range(_ACCURACY_ROUNDS):
            if not 0 < number <= most:
                return
            child = self._vary(trial, for_accuracy(noises[:number]))
            if child.status is None:
                enough = number
            elif child.status == "loses too much":
                too_few = number
            else:
                return
            if enough - too_few <= 1:
                return
            number = min(2 * number, most) if enough > most else (too_few + enough) // 2

    def _hopeful_but_slow(self, plain: Trial) -> list[Trial]:
        """Candidates that would be the best without the time that some of their nodes lose."""
        best = self._best
        promising = [
            (speed, trial)
            for trial in self.trials
            if trial.status is None and not trial.is_float and trial.speed is not None
            if (speed := self._promised(trial, self._losses(trial, plain), plain))
            < speed_of(best) * (1 - _WORTH)
        ]
        return [trial for _, trial in sorted(promising, key=lambda pair: pair[0])]

    def _losses(self, trial: Trial, plain: Trial) -> list[Loss]:
        before, after = plain.measurement, trial.measurement
        if trial.model is None or plain.model is None or before is None or after is None:
            return []
        return slow_nodes(plain.model, before, trial.model, after, changes_of(trial))

    def _promised(self, trial: Trial, losses: Sequence[Loss], plain: Trial) -> float:
        """The ratio that a trial would have without these losses."""
        kernels = () if plain.measurement is None else plain.measurement.operators
        whole = sum(kernel.mean_us for kernel in kernels)
        saved = sum(loss.lost_us for loss in losses) / whole if whole else 0.0
        return speed_of(trial) - saved * speed_of(plain)

    def _less_time(self, trial: Trial, plain: Trial) -> None:
        """Give back what loses time, as long as the whole gets faster by it."""
        for _ in range(_TIME_ROUNDS):
            losses = self._losses(trial, plain)
            if self._promised(trial, losses, plain) > speed_of(trial) - _WORTH:
                return
            child = self._vary(trial, for_time(losses), beside=trial)
            if child.status is not None:
                return
            if speed_of(child) > speed_of(trial) * (1 - _WORTH):
                won = f"{child.speed:.3f} after, {trial.speed:.3f} before"
                child.end("outdone", f"giving back won no time: {won}")
                return
            trial = child

    def _vary(
        self,
        parent: Trial,
        given: Sequence[GiveBackReport],
        *,
        beside: Trial | None = None,
    ) -> Trial:
        child = without(parent, given)
        self.trials.append(child)
        self._try(child, beside=beside)
        if child.status is not None:
            child.model = None  # memory: nothing is made of it
        return child


def _in_words(error: Exception) -> str:
    if isinstance(error, EdgeCompressError):
        return f"{error.where}: {error.what}" if error.where else error.what
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")
