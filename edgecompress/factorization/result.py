"""How layers are factorized, and what became of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from edgecompress.factorization.parts import Objective, Split
from edgecompress.factorization.refinement import RefinedBlock, RefineSettings
from edgecompress.graph_pass import Change, Skip
from edgecompress.model import Model

__all__ = ["BlockError", "FactorizeSettings", "Factorized"]


@dataclass(frozen=True)
class FactorizeSettings:
    """How layers are factorized.

    Attributes:
        objective: What the factors are to keep.
        damping: Share of the mean input power with which the weights themselves count, too.
        rows: Calibration rows, about.
        count: What the rank of a layer stands for where its split is of another form.
        refinement: How blocks are refined; None: they are not.
    """

    objective: Objective = "anchored"
    damping: float = 0.01
    rows: int = 256
    count: Literal["parameters", "macs"] = "parameters"
    refinement: RefineSettings | None = None


@dataclass(frozen=True)
class BlockError:
    """What factorization did to the outputs of a block.

    Attributes:
        block: Its name.
        error: Squared error over power, on rows that were held out, before any refinement.
        refined: What became of the refinement; None where there was none.
    """

    block: str
    error: float
    refined: RefinedBlock | None = None


@dataclass
class Factorized:
    """The result.

    Attributes:
        model: The new model.
        objective: What its factors keep.
        splits: By output of the layer; of the weights the shapes alone.
        spectra: By output of the layer: share of the full rank, and the relative error there.
        changed: Edits.
        skipped: Layers that were to be factorized and could not be.
        blocks: In the order of the data; those that hold factors, and all behind them.
    """

    model: Model
    objective: Objective
    splits: dict[str, Split] = field(default_factory=dict)
    spectra: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    changed: list[Change] = field(default_factory=list)
    skipped: list[Skip] = field(default_factory=list)
    blocks: list[BlockError] = field(default_factory=list)
