"""16-bit floating point: half the size anywhere, and faster where the kernels compute in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from edgecompress.constraints import HalfFormat
from edgecompress.errors import PassError
from edgecompress.graph_pass import Applied, Context, Needs, Pass
from edgecompress.model import Model
from edgecompress.quantization.half import compute_half
from edgecompress.quantization.half_plan import plan_half, watchable
from edgecompress.quantization.half_weights import store_half
from edgecompress.rewrite import infer_shapes, lift_constants
from edgecompress.sharding import collect_sharded
from edgecompress.statistics import TensorStatistics

__all__ = ["HalfPrecision"]


@dataclass(frozen=True, kw_only=True)
class HalfPrecision(Pass):
    """float16 or bfloat16, with what needs float32 kept so.

    Where the target computes in it (GPUs), activations are 16-bit, too; inputs and outputs of the
    model keep their types. Where it does not (CPUs), weights are stored in it, with a Cast behind
    them that the runtime folds when it loads the model: half the file, the speed of float32.

    ::

        x -> Cast -> Conv(w in float16) -> Cast -> y        where the target computes in float16
        x -> Conv(Cast(w in float16)) -> y                  elsewhere

    Float32 stays what the type cannot hold: large or tiny constants, numbers made of integers,
    sums and squares; with calibration data what really leaves the range, without data what may.
    It is a last pass: others want float32 weights.

    Attributes:
        dtype: ``float16`` or ``bfloat16``; default: what the target takes.
        compute: Whether activations are 16-bit; default: where the target computes in it.
    """

    name: ClassVar[str] = "half"
    needs: ClassVar[Needs] = "optional data"
    compresses: ClassVar[frozenset[str]] = frozenset({"Conv", "Gemm", "MatMul", "Gather", "LSTM"})

    dtype: Literal["float16", "bfloat16"] | None = None
    compute: bool | None = None

    def run(self, model: Model, context: Context) -> Applied:
        """Convert weights, or the whole graph.

        Raises:
            PassError: The target takes no 16-bit floating point, or does not compute in it though
                ``compute`` says so; the opset is too old; or inputs may override weights.
        """
        half = self._format(model, context)
        edited = model.inlined().clone(self.name)
        lift_constants(edited)
        if half.native:
            infer_shapes(edited)
            plan = plan_half(edited, half, self._wanted, _measured(edited, half, context))
            made = compute_half(edited, plan, half.dtype)
        else:
            made = store_half(edited, half.dtype, self._wanted)
        if not made.changed:
            return Applied(model=model, skipped=tuple(made.skipped))
        return Applied(
            model=edited,
            changed=tuple(made.changed),
            skipped=tuple(made.skipped),
            notes=_notes(half, made.saved, context),
        )

    def _wanted(self, node: Any) -> bool:
        return self.for_node(node) is not None

    def _format(self, model: Model, context: Context) -> HalfFormat:
        half = context.constraints.half
        if half is None:
            raise PassError(
                "the target takes no 16-bit floating point",
                where="pass 'half'",
                cure="`edgecompress targets` shows which targets do; leave the pass out",
            )
        dtype = self.dtype or half.dtype
        native = (half.native and dtype == half.dtype) if self.compute is None else self.compute
        if native and dtype == "bfloat16" and not (half.native and half.dtype == dtype):
            # Runtimes put Casts around float16 where they have no kernel, but not around bfloat16.
            raise PassError(
                "the target does not compute in bfloat16",
                where="pass 'half', option 'compute'",
                cure="leave the option out: weights are then stored in it",
            )
        overridden = {v.name for v in model.ir.graph.inputs} & model.ir.graph.initializers.keys()
        if (native or dtype == "bfloat16") and (model.opset < 13 or overridden):
            why = "inputs may override weights" if overridden else f"the model has {model.opset}"
            raise PassError(
                f"needs opset 13 or newer and fixed weights; {why}",
                where="pass 'half'",
                cure="put the pass 'cleanup' in front: it sees to both",
            )
        return replace(half, dtype=dtype, native=native)


def _measured(
    model: Model, half: HalfFormat, context: Context
) -> dict[str, TensorStatistics] | None:
    """Ranges of activations, where there are data."""
    if context.calibration is None:
        return None
    resources = context.resources
    found = collect_sharded(
        model,
        context.calibration,
        watchable(model, half),
        jobs=resources.jobs,
        engine=resources.engine,
        memory=resources.memory,
        scratch=resources.scratch,
        progress=context.progress,
    )
    return found.tensors


def _notes(half: HalfFormat, saved: int, context: Context) -> dict[str, Any]:
    notes: dict[str, Any] = {
        "format": f"{half.dtype} {'weights and activations' if half.native else 'weights'}",
        "bytes saved": saved,
    }
    if half.native:
        data = context.calibration is not None
        notes["ranges"] = "measured" if data else "not measured: without data"
    return notes
