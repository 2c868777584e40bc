"""How ranks are chosen, and what was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from edgecompress.factorization.parts import Spectrum

__all__ = ["RankPlan", "RankSettings"]


@dataclass(frozen=True)
class RankSettings:
    """How ranks are chosen.

    Attributes:
        keep: Share of the layers' cost that is left, between 0 and 1.
        budget: What the cost is. ``macs`` are those of one row; ``latency`` is measured on the
            target, layer by layer.
        method: ``uniform``: the same share of each layer; ``spectrum``: so that the least power of
            outputs is lost, relative to all of it and weighted by the importance of the block;
            ``loss``: so that the predicted loss at the model's outputs is least; ``zero_sum``: so
            that its predicted changes cancel.
        floor: No layer gets less than this share of its uniform rank; not for ``uniform``.
        multiple: Ranks are multiples of it, or of what is left of it when it is halved until a
            layer's uniform rank is not below. None: what the target's kernels like.
        explicit: Ranks by output of the layer; these layers are outside of the budget.
        never_slower: Refuse factors that take longer on the target than the layer itself, where
            that can be measured. Refused layers are outside of a budget of parameters or MACs.
        rows: Calibration rows for spectra and gradients, about.
    """

    keep: float
    budget: Literal["parameters", "macs", "latency"] = "parameters"
    method: Literal["uniform", "spectrum", "loss", "zero_sum"] = "uniform"
    floor: float = 0.5
    multiple: int | None = None
    explicit: Mapping[str, int] = field(default_factory=dict)
    never_slower: bool = True
    rows: int = 256


@dataclass(frozen=True)
class RankPlan:
    """What was chosen.

    Attributes:
        ranks: Output of a layer -> rank of two factors of the same cost.
        dense: Output of a layer that stays as it is -> the reason.
        spectra: What the choice was made from; empty for ``uniform``.
        seconds: Output of a layer -> times of the layer and of its two factors on the target, each
            alone; also of layers that were refused for it.
    """

    ranks: dict[str, int] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)
    spectra: tuple[Spectrum, ...] = ()
    seconds: dict[str, tuple[float, float]] = field(default_factory=dict)
