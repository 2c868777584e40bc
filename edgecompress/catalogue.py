"""What is installed: targets and passes, described for people who choose among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edgecompress import target
from edgecompress.graph_pass import pass_class
from edgecompress.measure import reachable
from edgecompress.recipe_schema import pass_schema
from edgecompress.target import TargetProfile

__all__ = ["PassDescription", "TargetDescription", "describe_pass", "describe_target"]


@dataclass(frozen=True)
class PassDescription:
    """What the help of a pass says.

    Attributes:
        name: Name of the pass in recipes.
        summary: First paragraph of its docstring.
        needs: ``data`` where it needs calibration rows, ``optional data`` where it uses those that
            there are, else ``nothing``.
        options: JSON Schema of each option, with description and default.
        required: Options without a default.
    """

    name: str
    summary: str
    needs: str
    options: dict[str, dict[str, Any]]
    required: list[str]


@dataclass(frozen=True)
class TargetDescription:
    """A target as seen from this machine.

    Attributes:
        profile: All that its file says.
        measurable: Whether something can be measured on it from here.
        reason: Where it is measured, or why it cannot be.
    """

    profile: TargetProfile
    measurable: bool
    reason: str


def describe_pass(name: str) -> PassDescription:
    """What there is to say about a pass.

    Raises:
        RecipeError: There is no pass of that name.
    """
    cls = pass_class(name)
    step = pass_schema(cls)
    return PassDescription(
        name=name,
        summary=step["description"],
        needs=cls.needs,
        options={k: v for k, v in step["properties"].items() if k != "name"},
        required=[key for key in step["required"] if key != "name"],
    )


def describe_target(name: str) -> TargetDescription:
    """What there is to say about a target; ``host`` is the profile of this machine's CPU.

    Raises:
        TargetError: There is no target of that name.
    """
    profile = target.load(target.host_target() if name == "host" else name)
    measurable, reason = reachable(profile)
    return TargetDescription(profile, measurable, reason)
