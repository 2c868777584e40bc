"""What a device's hardware can do, from the facts in its profile, in bytes and operations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

__all__ = ["Hardware"]

_SHORT = {"float32": "fp32", "float16": "fp16", "int8": "int8"}
_GIGA, _TERA, _KIB = 1e9, 1e12, 1024
_CACHES = ("cache_system", "cache_l3", "cache_l2")


@dataclass(frozen=True)
class Hardware:
    """Figures of a device.

    Attributes:
        processor: What of it computes.
        figures: Values of :data:`edgecompress.target_tables.UNITS`, in their units.
    """

    processor: Literal["cpu", "gpu", "npu"]
    figures: Mapping[str, float | int | str | bool]

    def figure(self, quantity: str) -> float | None:
        """A figure in its unit, or None where the profile does not tell."""
        value = self.figures.get(quantity)
        return None if value is None or isinstance(value, str) else float(value)

    def wanted(self, dtype: str) -> str:
        """Name of the quantity that gives the peak."""
        prefix = "peak" if self.processor == "cpu" else self.processor
        return f"{prefix}_{_SHORT[dtype]}"

    def of_a_core(self, dtype: str) -> str:
        """Name of the quantity that gives the peak of the fastest core of a CPU."""
        return f"core_{_SHORT[dtype]}"

    def peak(self, dtype: Literal["float32", "float16", "int8"], threads: int = 1) -> float | None:
        """Operations per second that can be reached at best; None where no fact tells.

        A multiply-accumulate is two. Of a CPU it is that of as many of its cores as there are
        threads: the fastest one, and others that share the rest. Accelerators are taken whole.
        """
        whole = self._rate(self.wanted(dtype))
        if self.processor != "cpu":
            return whole
        core, cores = self._rate(self.of_a_core(dtype)), self.figure("cores")
        if core is None and whole is not None and cores is not None:
            core = whole / cores
        if core is None:
            return whole if threads > 1 else None
        if cores is None:
            return core * threads if whole is None else min(core * threads, whole)
        slower = core if whole is None or cores < 2 else (whole - core) / (cores - 1)
        return core + (min(threads, cores) - 1) * min(core, slower)

    def _rate(self, quantity: str) -> float | None:
        value = self.figure(quantity)
        scale = _TERA if quantity in ("gpu_int8", "npu_int8", "npu_int4") else _GIGA
        return None if value is None else value * scale

    @property
    def bandwidth(self) -> float | None:
        """Bytes per second from main memory."""
        value = self.figure("bandwidth")
        return None if value is None else value * _GIGA

    @property
    def last_cache_bytes(self) -> float | None:
        """The largest cache in front of main memory, or an accelerator's own memory."""
        names = ("sram",) if self.processor == "npu" else _CACHES
        sizes = [size for name in names if (size := self.figure(name)) is not None]
        return max(sizes) * _KIB if sizes else None
