"""Small models that are timed to learn what kernels cost on this machine.

Each is a few layers of one kind, at several sizes, so that the kernels are those that a whole
network gets, with conversions of memory layout between them; some are whole blocks of transformers,
for kernels that only fusion makes, and some whole networks. All have one float32 input of a fixed
shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from edgecompress.estimate import layer_probes as layers
from edgecompress.estimate import other_probes as others
from edgecompress.estimate import whole_probes as whole
from edgecompress.estimate.networks import Probe

__all__ = ["Probe", "probes"]

_WHOLE_WEIGHT = 2.0  # they are few, and what estimates are made for


def probes() -> list[Probe]:
    """All of them."""
    makers: tuple[Callable[[], Iterator[Probe]], ...] = (
        layers.convolutions,
        layers.products,
        others.elementwise,
        others.moving,
        others.control_flow,
        others.detection,
        layers.recurrent,
        layers.transformers,
    )
    found = [probe for maker in makers for probe in maker()]
    return [*found, *(replace(probe, weight=_WHOLE_WEIGHT) for probe in whole.networks())]
