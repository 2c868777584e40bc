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
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from edgecompress.constraints import (
    Constraints,
    HalfFormat,
    Int8Format,
    WeightOnlyFormat,
)
from edgecompress.errors import TargetError, nearest
from edgecompress.hardware import Hardware
from edgecompress.target_tables import (
    Budgets,
    Device,
    Fact,
    HalfSupport,
    Int8Support,
    MeasurementSettings,
    Table,
    WeightOnlySupport,
)

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


class TargetProfile(Table):
    """A device, the runtime on it, and how to measure there.

    Attributes:
        name: Name of the profile; that of its file.
        extends: Name of a profile that gives what this one does not say, or path of its file.
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
    extends: str | None = None
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

    @cached_property
    def hardware(self) -> Hardware:
        """The facts that programs read."""
        figures = {
            fact.quantity: fact.value for fact in reversed(self.facts) if fact.quantity is not None
        }
        return Hardware(self.device.processor, figures)

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
        TargetError: There is no such profile, or its file or one that it extends is broken.
    """
    return _read(_file(str(name_or_path)), ())


def _file(text: str, where: str | None = None, folder: Path | None = None) -> Path:
    """File of a profile; paths in a profile are relative to its ``folder``."""
    if text.endswith(".toml"):
        return Path(text) if folder is None else folder / text
    for file in _files():
        if file.stem == text:
            return file
    raise TargetError(
        f"unknown target {text!r}; {nearest(text, names())}",
        where=where,
        cure="choose one of these, or give the path of a .toml file",
    )


def _read(file: Path, behind: tuple[Path, ...]) -> TargetProfile:
    """The profile in a file, which the profiles in the files ``behind`` extend."""
    table = _with_parent(_toml(file), file, behind)
    try:
        profile = TargetProfile.model_validate(table)
    except ValidationError as error:
        raise _refusal(error, file, table) from error
    if profile.name != file.stem:
        raise TargetError(
            f"the name {profile.name!r} differs from the file's name",
            where=str(file),
            cure=f'set name = "{file.stem}", or rename the file',
        )
    return profile


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise TargetError(
            f"cannot be read: {error.strerror}", where=str(file), cure="check the path"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise TargetError(f"is not valid TOML: {error}", where=str(file)) from error


def _with_parent(table: dict[str, Any], file: Path, behind: tuple[Path, ...]) -> dict[str, Any]:
    """A profile's table with what it takes from the one that it extends."""
    name = table.get("extends")
    if not isinstance(name, str):
        return table
    chain = (*behind, file.resolve())
    above = _file(name, f"{file}, key 'extends'", file.parent)
    if above.resolve() in chain:
        names = " -> ".join(each.stem for each in (*chain, above))
        raise TargetError(f"extends itself: {names}", where=f"{file}, key 'extends'")
    parent = _read(above, chain).model_dump(exclude_unset=True)
    merged = {key: parent[key] for key in parent if key not in _OWN}
    for key, value in table.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = {**merged[key], **value}
        else:
            merged[key] = value
    merged["facts"] = _all_facts(table.get("facts", []), parent.get("facts", ()))
    return merged


_OWN = frozenset({"name", "extends", "description", "facts"})


def _all_facts(own: list[Any], inherited: tuple[Any, ...]) -> list[Any]:
    """A profile's own facts, then inherited ones that it does not give itself."""
    tables = [fact for fact in own if isinstance(fact, dict)]
    told = {fact.get(key) for fact in tables for key in ("name", "quantity")} - {None}
    return [
        *own,
        *(f for f in inherited if f["name"] not in told and f.get("quantity") not in told),
    ]


def _refusal(error: ValidationError, file: Path, table: dict[str, Any]) -> TargetError:
    first: Any = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    where = f"{file}, key {place!r}"
    if first["loc"][:1] == ("facts",) and len(first["loc"]) > 1:
        fact = table["facts"][first["loc"][1]]
        where += f", fact {fact['name']!r}" if isinstance(fact, dict) and "name" in fact else ""
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        what = f"unknown key; {nearest(str(first['loc'][-1]), known)}"
    elif first["type"] == "missing":
        what = "the key is missing"
    elif first["type"] == "value_error":
        what = str(first["ctx"]["error"])
    else:
        what = f"{first['msg'][0].lower()}{first['msg'][1:]}, got {first['input']!r}"
    return TargetError(what, where=where)


def _fields_at(location: tuple[int | str, ...]) -> list[str]:
    tables: dict[str, type[Table]] = {
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
