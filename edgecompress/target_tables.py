"""Tables of a target profile: the device, how to measure there, number formats, facts, limits."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edgecompress.errors import nearest

__all__ = [
    "Table",
    "Device",
    "MeasurementSettings",
    "Int8Support",
    "WeightOnlySupport",
    "HalfSupport",
    "Fact",
    "Budgets",
    "UNITS",
]

UNITS: dict[str, str] = {
    "peak_fp32": "GFLOP/s",
    "peak_fp16": "GFLOP/s",
    "peak_int8": "GOP/s",
    "core_fp32": "GFLOP/s",
    "core_fp16": "GFLOP/s",
    "core_int8": "GOP/s",
    "gpu_fp32": "GFLOP/s",
    "gpu_fp16": "GFLOP/s",
    "gpu_int8": "TOPS",
    "npu_fp16": "GFLOP/s",
    "npu_int8": "TOPS",
    "npu_int4": "TOPS",
    "bandwidth": "GB/s",
    "sram_bandwidth": "GB/s",
    "flash_bandwidth": "GB/s",
    "link_bandwidth": "GB/s",
    "cache_l1d": "KiB",
    "cache_l2": "KiB",
    "cache_l3": "KiB",
    "cache_system": "KiB",
    "sram": "KiB",
    "ram": "GB",
    "clock": "GHz",
    "cores": "cores",
    "power": "W",
    "isa": "",
}
"""Quantities that a fact can be about, and the one unit of each.

``peak_*`` are operations per second of the processor with the number of ``cores`` (two for a
multiply-accumulate), ``core_*`` of its fastest core alone, ``gpu_*`` and ``npu_*`` of these.
``cache_l2`` and ``cache_l3`` are all that one core reaches, ``cache_system`` is what it shares
with others, ``link_bandwidth`` is what an accelerator is fed by. ``isa`` is a word.
"""


class Table(BaseModel):
    """Unknown keys are errors; values stay as they are."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(Table):
    """What the model runs on.

    Attributes:
        kind: ``host`` is this machine; ``none`` is a device that cannot be reached from here, so
            nothing can be measured on it.
        arch: Processor architecture; ``any`` where the profile does not depend on it.
        processor: What of it computes; peaks of the profile are looked up for it.
        address: Where it is reached, such as ``ssh://pi@kitchen`` (see
            :mod:`edgecompress.devices`); None for this machine.
    """

    kind: Literal["host", "none"]
    arch: Literal["x86_64", "aarch64", "any"] = "any"
    processor: Literal["cpu", "gpu", "npu"] = "cpu"
    address: str | None = None


class MeasurementSettings(Table):
    """How latency is measured.

    Attributes:
        threads: Threads inside an operator.
        warmup: Runs per warm-up round; rounds are repeated until two agree.
        runs: Timed runs per model, at least; more where a run is very short.
        seconds: Time for the timed runs of one model, at most (one run per block is always made).
        blocks: Blocks that the runs are split into; models take turns block by block.
        timeout_seconds: A worker that does not answer for so long is given up.
        memory_limit_mb: Memory that a worker may take where the system can limit it (10^6 bytes).
    """

    threads: int = Field(default=1, ge=1)
    warmup: int = Field(default=5, ge=1)
    runs: int = Field(default=100, ge=1)
    seconds: float = Field(default=3.0, gt=0)
    blocks: int = Field(default=10, ge=1)
    timeout_seconds: float = Field(default=300.0, gt=0)
    memory_limit_mb: float | None = Field(default=None, gt=0)


class Int8Support(Table):
    """Integer formats of the device's kernels, and the operators that have such kernels.

    Attributes:
        activation: Type of activations.
        activation_symmetric: Whether activations must have their zero point in mid-range.
        per_channel: Whether weights may have a scale per output channel.
        weight_bits: Range of weights. ``auto`` is for x86: U8S8 products are summed in pairs by
            ``vpmaddubsw``, whose 16-bit sums saturate with full-range weights, unless the CPU has
            VNNI. So ``auto`` is 8 on a host with ``avx512_vnni`` or ``avx_vnni``, else 7.
        ops: Operators that run on integers between QuantizeLinear and DequantizeLinear.
        everywhere: Whether the device wants integers wherever it takes them, as accelerators do.
        slow_shallow_convs: Whether convolutions with at most 4 input channels in a group (the first
            ones of a network, depthwise ones) run slower on integers than in float.
    """

    activation: Literal["uint8", "int8"]
    activation_symmetric: bool
    per_channel: bool
    weight_bits: Literal["auto", 7, 8]
    ops: tuple[str, ...] = Field(min_length=1)
    everywhere: bool = False
    slow_shallow_convs: bool = False


class WeightOnlySupport(Table):
    """How weights alone may be integers; see :class:`edgecompress.constraints.WeightOnlyFormat`.

    Attributes:
        layout: ``nbits`` (MatMulNBits, GatherBlockQuantized) or ``qdq`` (DequantizeLinear).
        bits: Widths of weights, ascending.
        block_sizes: Weights that share a scale, ascending.
        embedding_bits: Widths of tables that are looked up, ascending; empty where they stay float.
    """

    layout: Literal["nbits", "qdq"]
    bits: tuple[Literal[2, 4, 8], ...] = Field(min_length=1)
    block_sizes: tuple[int, ...] = Field(min_length=1)
    embedding_bits: tuple[Literal[2, 4, 8], ...] = ()

    @field_validator("bits", "block_sizes", "embedding_bits")
    @classmethod
    def _ascending(cls, numbers: tuple[int, ...]) -> tuple[int, ...]:
        if list(numbers) != sorted(set(numbers)) or any(n < 1 for n in numbers):
            raise ValueError("expected positive numbers in ascending order")
        return numbers


class HalfSupport(Table):
    """16-bit floating point; see :class:`edgecompress.constraints.HalfFormat`.

    Attributes:
        dtype: The type that is computed in, or only stored.
        native: Whether kernels compute in it.
        float32_ops: Operators without a kernel of this type.
    """

    dtype: Literal["float16", "bfloat16"]
    native: bool
    float32_ops: tuple[str, ...] = ()


class Fact(Table):
    """A figure about the hardware or the runtime, and who says so.

    Attributes:
        name: What it is about.
        quantity: Which of :data:`UNITS` it gives, for programs; None for what only people read.
        value: The figure, or a word.
        unit: Unit of the figure; empty for words and counts.
        source: Address or document; for own measurements, what ran and when.
        confidence: ``vendor`` is the maker or the project itself, ``measured`` was measured,
            ``computed`` follows from other facts by the rule in ``note``, ``secondary`` was found
            in somebody else's summary.
        note: What else must be known to read it.
    """

    name: str = Field(min_length=1)
    quantity: str | None = None
    value: float | int | str | bool
    unit: str
    source: str = Field(min_length=1)
    confidence: Literal["vendor", "measured", "computed", "secondary"]
    note: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _check_quantity(cls, table: Any) -> Any:
        quantity = table.get("quantity") if isinstance(table, dict) else None
        if quantity is None:
            return table
        if quantity not in UNITS:
            raise ValueError(f"unknown quantity {quantity!r}; {nearest(str(quantity), UNITS)}")
        expected, value = UNITS[quantity], table.get("value")
        if "unit" not in table:
            raise ValueError(f"the unit is missing: {quantity} is given in {expected or repr('')}")
        if table["unit"] != expected:
            raise ValueError(
                f"expected the unit {expected!r} for {quantity}, got {table['unit']!r}"
            )
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if quantity != "isa" and not (number and 0 < value < float("inf")):
            raise ValueError(
                f"expected a positive number of {expected} for {quantity}, got {value!r}"
            )
        return table


class Budgets(Table):
    """Limits that a recipe for this target starts from; None is no limit."""

    latency_ms: float | None = Field(default=None, gt=0)
    memory_mb: float | None = Field(default=None, gt=0)
    size_mb: float | None = Field(default=None, gt=0)
