"""Candidates: named lists of passes, and which of them a target takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgecompress.constraints import Constraints
from edgecompress.graph_pass import Pass, make_pass, pass_names
from edgecompress.recipe import CandidateName, SearchSpec

__all__ = ["FLOAT", "Candidate", "candidates", "refusal"]

FLOAT = "float"
"""Name of the candidate that no pass of the search has touched."""

# The one that is the fastest on most targets is the first: where nothing can be measured, or time
# is short, what was tried first is taken.
_MADE_OF: dict[CandidateName, tuple[tuple[str, Mapping[str, Any]], ...]] = {
    "static": (("quantize", {}),),
    "equalized": (("equalize", {}), ("quantize", {})),
    "mixed": (("mixed", {}),),
    "dynamic": (("quantize_dynamic", {}),),
    "weights8": (("quantize_weights", {"bits": 8}),),
    "weights4": (("quantize_weights", {"bits": 4}),),
    "half": (("half", {}),),
}


@dataclass(frozen=True)
class Candidate:
    """A way to compress.

    Attributes:
        name: What reports call it.
        passes: Passes in order; none for float.
        own: Whether the recipe names its passes, which then say themselves what a target lacks.
    """

    name: str
    passes: tuple[Pass, ...] = ()
    own: bool = False

    @property
    def needs_data(self) -> bool:
        """Whether a pass looks at calibration rows."""
        return any(step.needs == "data" for step in self.passes)


def candidates(spec: SearchSpec) -> list[Candidate]:
    """The candidates of a search in the order in which they are tried: own ones first.

    Raises:
        RecipeError: A candidate that the recipe names needs a pass that is not installed.
    """
    installed = set(pass_names())
    chosen = [
        name
        for name, steps in _MADE_OF.items()
        if (installed.issuperset(step for step, _ in steps) if spec.candidates is None else True)
        and (spec.candidates is None or name in spec.candidates)
    ]
    made = [
        Candidate(name, tuple(make_pass(step, options) for step, options in _MADE_OF[name]))
        for name in chosen
    ]
    return [*(Candidate(each.name, each.passes, own=True) for each in spec.own), *made]


def refusal(candidate: Candidate, constraints: Constraints, calibration_rows: int) -> str | None:
    """Why a target, or the rows at hand, rule a candidate out before it is built."""
    if candidate.needs_data and not calibration_rows:
        return "it needs calibration rows, and none are named"
    if candidate.own:
        return None
    int8 = None if constraints.int8 else "no int8 kernels for ONNX Q/DQ graphs"
    missing = {
        "static": int8,
        "equalized": int8,
        "mixed": int8,
        "dynamic": None if constraints.dynamic_int8 else "no kernels that quantize as they run",
        "weights8": _weights(constraints, 8),
        "weights4": _weights(constraints, 4),
        "half": None if constraints.half else "no 16-bit floating point",
    }[candidate.name]
    return None if missing is None else f"the target has {missing}"


def _weights(constraints: Constraints, bits: int) -> str | None:
    weight_only = constraints.weight_only
    if weight_only is None:
        return "no kernels for integer weights beside float activations"
    return None if bits in weight_only.bits else f"no {bits}-bit weights beside float activations"
