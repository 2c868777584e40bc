"""What ``edgecompress profile`` answers: typed, and the same thing as ``--json``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from edgecompress.agreement import Agreement
from edgecompress.measure import Measurement
from edgecompress.report.data import SkipReport
from edgecompress.report.placement import PlacementInfo

__all__ = ["ProfileResult", "ProfileTable"]


class _Result(BaseModel):
    # A relative error is infinite where an output is missing; JSON has no number for that.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="strings")


class ProfileResult(_Result):
    """What is known of one model on one target with one shape of its inputs.

    Attributes:
        model: As the user named it.
        target: Name of the target.
        device: Address of the device that was asked.
        shapes: Of the inputs.
        measurement: Latency, memory, size; measured, estimated or unknown.
        agreement: Whether the target computes what the file says; None where that was not asked or
            the target is the reference itself.
        placement: Where each node runs, as far as the runtime tells.
        unsupported: Nodes that the runtime does not take.
        notes: What was done to the model on the way.
        error: What went wrong, as ``--json`` gives errors; None where nothing did.
    """

    model: str
    target: str
    device: str = "local"
    shapes: dict[str, list[int]] = {}
    measurement: Measurement
    agreement: Agreement | None = None
    placement: PlacementInfo | None = None
    unsupported: list[SkipReport]
    notes: list[str] = []
    error: dict[str, Any] | None = None

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong: no error, nothing unsupported, outputs as they should be."""
        wrong = self.agreement is not None and not self.agreement.passed
        return self.error is None and not self.unsupported and not wrong


class ProfileTable(_Result):
    """Models on targets, a row each."""

    rows: list[ProfileResult]

    @property
    def passed(self) -> bool:
        """Whether nothing went wrong in any row."""
        return all(row.passed for row in self.rows)
