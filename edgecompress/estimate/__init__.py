"""Estimates of latency and memory where no device is at hand: a roofline per kernel.

A kernel takes ``max(operations / (efficiency * peak), bytes / bandwidth)`` and the cost of a call.
The efficiency depends on the kind of kernel, its number type and its shapes; it is learned on this
machine from small models (:mod:`edgecompress.estimate.calibration`), and carried over to a device
relative to its peak. So the error is known for this machine alone; for a device it is a guess from
how much efficiencies differ, and is called so. For GPUs and NPUs, whose kernels are others, there
is no estimate.
"""

from __future__ import annotations

from edgecompress.estimate.calibration import Calibration, calibrated
from edgecompress.estimate.roofline import Estimate, KernelEstimate, estimate

__all__ = ["Calibration", "Estimate", "KernelEstimate", "calibrated", "estimate"]
