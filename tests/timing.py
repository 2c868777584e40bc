"""Measurements that are made up, so that no test depends on how fast a machine is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from edgecompress.measure import Latency, Measurement, OperatorTime
from edgecompress.model import Model
from edgecompress.runtimes import Artifact

__all__ = ["in_float", "is_quantized", "measured", "timed"]


def is_quantized(model: Model) -> bool:
    """Whether the graph has a QuantizeLinear."""
    return any(node.op_type == "QuantizeLinear" for node in model.ir.graph)


def in_float(model: Model, op: str) -> bool:
    """Whether the nodes of a type read their weights as float."""
    return all(
        node.inputs[1] is not None and node.inputs[1].producer() is None
        for node in model.ir.graph
        if node.op_type == op
    )


def measured(
    milliseconds: float,
    *,
    ratio: float | None = None,
    size: int = 1000,
    kernels: Mapping[str, float] | None = None,
) -> Measurement:
    """A measurement; ``kernels`` are microseconds by the output of a node."""
    whole = sum((kernels or {}).values()) or 1.0
    return Measurement(
        basis="measured",
        latency_ms=Latency(
            p50=milliseconds,
            p90=milliseconds,
            p99=milliseconds,
            min=milliseconds,
            mean=milliseconds,
            runs=1,
            warmup=1,
            cpu_min_ms=milliseconds,
        ),
        latency_ratio=ratio,
        cpu_ratio=ratio,
        size_bytes=size,
        operators=tuple(
            OperatorTime(
                name=name,
                op="Kernel",
                provider="made up",
                mean_us=time,
                share=time / whole,
                calls=1,
                output_names=(name,),
            )
            for name, time in (kernels or {}).items()
        ),
    )


def timed(
    speed: Callable[[Model], float],
    kernels: Callable[[Model], Mapping[str, float]] | None = None,
    calls: list[int] | None = None,
) -> Callable[..., dict[str, Measurement]]:
    """What stands in for ``measure``: milliseconds, and kernels, by the model.

    ``calls`` gets the number of models of each call.
    """

    def measure(
        artifacts: Mapping[str, Artifact],
        profile: Any,
        feeds: Any,
        *,
        device: str | None = None,
        reference: str | None = None,
        progress: Callable[[str, int, int], None] | None = None,
    ) -> dict[str, Measurement]:
        models = {label: Model.load(each.path) for label, each in artifacts.items()}
        if calls is not None:
            calls.append(len(models))
        if profile.device.kind == "none":
            return {
                label: Measurement(
                    basis="unknown",
                    reason="it cannot be reached",
                    size_bytes=artifacts[label].size_bytes,
                )
                for label in models
            }
        times = {label: speed(model) for label, model in models.items()}
        base = None if reference is None else times[reference]
        return {
            label: measured(
                times[label],
                ratio=None if base is None or label == reference else times[label] / base,
                size=artifacts[label].size_bytes,
                kernels=None if kernels is None else kernels(model),
            )
            for label, model in models.items()
        }

    return measure
