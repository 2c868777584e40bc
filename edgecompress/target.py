"""Target profiles: a device and the runtime on it, as TOML files with a source for every figure.

A profile says which runtime and provider a model is for, which 8-bit formats its integer kernels
take, and how it is measured. :meth:`TargetProfile.constraints` puts that into the words that passes
use.
"""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from edgecompress.constraints import (
    Constraints,
    HalfFormat,
    Int8Format,
    WeightOnlyFormat,
)
from edgecompress.errors import TargetError, nearest

__all__ = [
    "TargetProfile",
    "Device",
    "MeasurementSettings",
    "Int8Support",
    "WeightOnlySupport",
    "HalfSupport",
    "Fact",
    "Budgets",
    "Host",
    "load",
    "names",
    "host_target",
    "machine_arch",
]

GROUP = "edgecompress.targets"
_VNNI = frozenset({"avx512_vnni", "avx_vnni"})


@dataclass(frozen=True)
class Host:
    """Facts of a machine, as far as they could be read.

    Attributes:
        cpu: Name of the processor.
        arch: ``x86_64``, ``aarch64``, or what the system calls it.
        isa: Names of instruction-set extensions, as Linux writes them in ``/proc/cpuinfo``.
        physical_cores: Cores, or None where unknown.
        logical_cores: Hardware threads.
        ram_bytes: Main memory.
        os: Name and version of the operating system.
    """

    cpu: str
    arch: str
    isa: frozenset[str]
    physical_cores: int | None
    logical_cores: int
    ram_bytes: int
    os: str


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Device(_Table):
    """What the model runs on.

    Attributes:
        kind: ``host`` is this machine; ``none`` is a device that cannot be reached from here, so
            nothing can be measured on it.
        arch: Processor architecture; ``any`` where the profile does not depend on it.
        address: Where it is reached, such as ``ssh://pi@kitchen`` (see :mod:`edgecompress.devices`);
            None for this machine.
    """

    kind: Literal["host", "none"]
    arch: Literal["x86_64", "aarch64", "any"] = "any"
    address: str | None = None


class MeasurementSettings(_Table):
    """How latency is measured.

    Attributes:
        threads: Threads inside an operator.
        warmup: Runs per warm-up round; rounds are repeated until two agree.
        runs: Timed runs per model, at least; more where a run is very short.
        seconds: Time for the timed runs of one model, at most (one run per block is always made).
        blocks: Blocks that the runs are split into; models take turns block by block.
        timeout_seconds: A worker that does not answer for so long is given up.
    """

    threads: int = Field(default=1, ge=1)
    warmup: int = Field(default=5, ge=1)
    runs: int = Field(default=100, ge=1)
    seconds: float = Field(default=3.0, gt=0)
    blocks: int = Field(default=10, ge=1)
    timeout_seconds: float = Field(default=300.0, gt=0)


class Int8Support(_Table):
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


class WeightOnlySupport(_Table):
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


class HalfSupport(_Table):
    """16-bit floating point; see :class:`edgecompress.constraints.HalfFormat`.

    Attributes:
        dtype: The type that is computed in, or only stored.
        native: Whether kernels compute in it.
        float32_ops: Operators without a kernel of this type.
    """

    dtype: Literal["float16", "bfloat16"]
    native: bool
    float32_ops: tuple[str, ...] = ()


class Fact(_Table):
    """A figure about the hardware or the runtime, and who says so.

    Attributes:
        name: What it is about.
        value: The figure, or a word.
        unit: Unit of the figure; empty for words and counts.
        source: Address or document; for own measurements, what ran and when.
        confidence: ``vendor`` is the maker or the project itself, ``measured`` was measured,
            ``computed`` follows from other facts by the rule in ``note``, ``secondary`` was found
            in somebody else's summary.
        note: What else must be known to read it.
    """

    name: str = Field(min_length=1)
    value: float | int | str | bool
    unit: str
    source: str = Field(min_length=1)
    confidence: Literal["vendor", "measured", "computed", "secondary"]
    note: str | None = None


class Budgets(_Table):
    """Limits that a recipe for this target starts from; None is no limit."""

    latency_ms: float | None = Field(default=None, gt=0)
    memory_mb: float | None = Field(default=None, gt=0)
    size_mb: float | None = Field(default=None, gt=0)


class TargetProfile(_Table):
    """A device, the runtime on it, and how to measure there.

    Attributes:
        name: Name of the profile; that of its file.
        description: One sentence for people who choose a target.
        runtime: Name of a member of ``edgecompress.runtimes``.
        provider: The runtime's name for the hardware back end.
        options: What else the runtime is told, in its own words.
        device: What the model runs on.
        measurement: How latency is measured.
        int8: Integer formats, or None where the runtime has no integer kernels for Q/DQ graphs.
        int8_note: Why ``int8`` is absent, or what to expect of it.
        wide_activation: Type of 16-bit activations beside 8-bit weights, or None.
        dynamic_int8: Whether layers whose activations are quantized at run time gain from it.
        weight_only: How weights alone may be integers, or None where they may not.
        half: 16-bit floating point, or None where the runtime takes none.
        split_residual_norms: Whether LayerNormalization behind a residual Add runs faster than the
            runtime's kernel for both.
        rank_multiple: What the width between two factors of a weight is a multiple of where kernels
            work in steps; see :class:`edgecompress.constraints.Constraints`.
        opset_min: Lowest ONNX opset taken.
        opset_max: Highest ONNX opset taken.
        facts: Figures with their sources.
        budgets: Limits to start from.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")
    description: str
    runtime: str
    provider: str
    options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    device: Device
    measurement: MeasurementSettings = MeasurementSettings()
    int8: Int8Support | None = None
    int8_note: str | None = None
    wide_activation: Literal["uint16", "int16"] | None = None
    dynamic_int8: bool = False
    weight_only: WeightOnlySupport | None = None
    half: HalfSupport | None = None
    split_residual_norms: bool = False
    rank_multiple: int = Field(default=1, ge=1)
    opset_min: int = Field(default=13, ge=1)
    opset_max: int = Field(default=23, ge=1)
    facts: tuple[Fact, ...] = ()
    budgets: Budgets = Budgets()

    def constraints(self, host: Host) -> Constraints:
        """What passes must respect.

        Args:
            host: The machine at hand; ``weight_bits = "auto"`` depends on its instruction set (see
                :class:`Int8Support`).
        """
        return Constraints(
            int8=self._int8_format(host),
            int8_ops=frozenset(self.int8.ops if self.int8 else ()),
            int8_everywhere=self.int8 is not None and self.int8.everywhere,
            slow_shallow_convs=self.int8 is not None and self.int8.slow_shallow_convs,
            split_residual_norms=self.split_residual_norms,
            wide_activation=self.wide_activation,
            dynamic_int8=self.dynamic_int8,
            weight_only=self._weight_only_format(),
            half=self._half_format(),
            rank_multiple=self.rank_multiple,
            opset_min=self.opset_min,
            opset_max=self.opset_max,
        )

    def _int8_format(self, host: Host) -> Int8Format | None:
        if self.int8 is None:
            return None
        bits = self.int8.weight_bits
        return Int8Format(
            activation=self.int8.activation,
            activation_symmetric=self.int8.activation_symmetric,
            per_channel=self.int8.per_channel,
            weight_bits=(8 if host.isa & _VNNI else 7) if bits == "auto" else bits,
        )

    def _weight_only_format(self) -> WeightOnlyFormat | None:
        return None if self.weight_only is None else WeightOnlyFormat(**dict(self.weight_only))

    def _half_format(self) -> HalfFormat | None:
        if self.half is None:
            return None
        return HalfFormat(self.half.dtype, self.half.native, frozenset(self.half.float32_ops))


def machine_arch() -> str:
    """Architecture of this machine, in the words of :class:`Device`."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


def host_target() -> str:
    """Name of the CPU profile for the machine at hand.

    Raises:
        TargetError: There is no profile for its architecture.
    """
    arch = machine_arch()
    known = {"x86_64": "cpu-x86-64", "aarch64": "cpu-arm64"}
    if arch not in known:
        raise TargetError(
            f"no CPU profile for the architecture {arch!r}; known: {', '.join(known)}",
            cure="write a profile for it and give its path",
        )
    return known[arch]


def _own_folder() -> Path:
    package = Path(__file__).resolve().parent
    return next(f for f in (package / "targets", package.parent / "targets") if f.is_dir())


def _files() -> Iterator[Path]:
    """All profile files: our own, then those of installed packages."""
    yield from sorted(_own_folder().glob("*.toml"))
    for point in entry_points(group=GROUP):
        place = Path(point.load())
        yield from sorted(place.glob("*.toml")) if place.is_dir() else [place]


def names() -> list[str]:
    """Names of all installed profiles, sorted."""
    return sorted({file.stem for file in _files()})


def load(name_or_path: str | Path) -> TargetProfile:
    """The profile of that name, or in that TOML file.

    Raises:
        TargetError: There is no such profile, or its file is broken.
    """
    text = str(name_or_path)
    if text.endswith(".toml"):
        return _read(Path(text))
    for file in _files():
        if file.stem == text:
            return _read(file)
    raise TargetError(
        f"unknown target {text!r}; {nearest(text, names())}",
        cure="choose one of these, or give the path of a .toml file",
    )


def _read(file: Path) -> TargetProfile:
    try:
        table = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(
            f"cannot be read: {error.strerror}", where=str(file), cure="check the path"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError(f"is not valid TOML: {error}", where=str(file)) from error
    try:
        profile = TargetProfile.model_validate(table)
    except ValidationError as error:
        raise _refusal(error, file) from error
    if profile.name != file.stem:
        raise TargetError(
            f"the name {profile.name!r} differs from the file's name",
            where=str(file),
            cure=f'set name = "{file.stem}", or rename the file',
        )
    return profile


def _refusal(error: ValidationError, file: Path) -> TargetError:
    first: Any = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        what = f"unknown key; {nearest(str(first['loc'][-1]), known)}"
    elif first["type"] == "missing":
        what = "the key is missing"
    else:
        what = f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
    return TargetError(what, where=f"{file}, key {place!r}")


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    tables: dict[str, type[_Table]] = {
        "device": Device,
        "measurement": MeasurementSettings,
        "int8": Int8Support,
        "weight_only": WeightOnlySupport,
        "half": HalfSupport,
        "facts": Fact,
        "budgets": Budgets,
    }
    table = tables[str(location[0])] if location else TargetProfile
    return list(table.model_fields)
