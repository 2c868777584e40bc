"""Arm Ethos-U, microcontroller NPUs: compiled and estimated by Arm's own compiler, Vela.

No such device is at hand, and Vela has no simulator: the figures are its estimate. Outputs come
from LiteRT's own kernels on the same file, which the NPU is made to agree with.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.runtimes import (
    Artifact,
    Break,
    PlacedNode,
    Placement,
    Runtime,
    Unsupported,
)
from edgecompress.runtimes.litert import LiteRt, LiteRtEngine, written

if TYPE_CHECKING:
    from edgecompress.litert_writer import Written
    from edgecompress.model import Model
    from edgecompress.target import TargetProfile

__all__ = ["EthosU", "EthosUEngine"]

_ESTIMATE = "estimate.json"
_PLAIN = "model.tflite"
_LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
_INTEGER_CODES = frozenset({"CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "BATCH_MATMUL"})
_TAIL_LINES = 5


class EthosU(Runtime):
    """An Ethos-U; the profile's provider is Vela's name of the accelerator: ``ethos-u55-256``.

    The profile's options ``system_config`` and ``memory_mode`` name sections of Vela's own
    configuration file (``config`` another file), ``optimise`` is ``Performance`` or ``Size``, and
    ``shapes`` is that of :class:`edgecompress.runtimes.litert.LiteRt`.
    """

    name: ClassVar[str] = "ethos_u"
    engine: ClassVar[str] = "edgecompress.runtimes.ethos_u:EthosUEngine"
    packages: ClassVar[tuple[str, ...]] = ("ethosu", "ai_edge_litert", "flatbuffers")
    fixed_shapes: ClassVar[bool] = True
    install: ClassVar[str] = 'pip install "edgecompress[ethos-u]"'
    timed: ClassVar[bool] = False
    untimed_reason: ClassVar[str] = (
        "an Ethos-U cannot be reached from here; Vela only estimates its time"
    )

    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """What no TFLite file can hold, and a float model as a whole.

        Operators that Vela leaves to the processor beside the NPU are no refusals; they are breaks
        of :meth:`placement`.
        """
        made = written(model, profile)
        if made.refused:
            return [Unsupported(r.node, r.op, r.reason) for r in made.refused]
        return _float_model(model, made)

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write Vela's ``model_vela.tflite``, its estimate, and ``model.tflite`` for outputs."""
        from edgecompress.errors import MeasurementError
        from edgecompress.runtimes._remote import convert

        refused = _float_model(model, written(model, profile))
        if refused:
            raise MeasurementError(
                refused[0].reason,
                where=str(model.path or "model"),
                cure='add the pass "quantize" for this target',
            )
        plain = LiteRt().prepare(model, folder, profile)
        made = convert(self, plain.path, folder, profile)
        # What the device holds is the first file; the others stay beside it.
        return Artifact((made.path,), (*plain.notes, *made.notes))

    def estimate(self, model: Model, profile: TargetProfile) -> dict[str, Any]:
        """Vela's estimate of one inference.

        Returns:
            ``latency_ms``, ``memory_mb`` (SRAM and DRAM), ``cycles``, ``cycles_npu``,
            ``clock_mhz``, ``macs``; bytes by memory:
            ``sram_bytes``, ``dram_bytes``, ``on_chip_flash_bytes``, ``off_chip_flash_bytes``;
            ``npu_operators`` and ``cpu_operators``: counts; ``operators``: a list of ``{name, op,
            target, cycles, macs, utilization}``; ``accelerator``, ``system_config``,
            ``memory_mode``, ``source``, ``basis`` (``"estimated"``) and ``notes``.

        Raises:
            MeasurementError: The model is refused, or Vela fails.
        """
        from edgecompress.files import ScratchFolder

        with ScratchFolder() as folder:
            artifact = self.prepare(model, folder, profile)
            found: dict[str, Any] = json.loads((folder / _ESTIMATE).read_text(encoding="utf-8"))
        found["notes"] = list(artifact.notes)
        found["memory_mb"] = (found["sram_bytes"] + found["dram_bytes"]) / 1e6
        return found

    def placement(self, model: Model, profile: TargetProfile) -> Placement:
        """Which nodes Vela put on the NPU; what it left is a break, with Vela's reason."""
        made = written(model, profile)
        found = self.estimate(model, profile)
        targets = _targets(made, found["operators"])
        nodes, breaks = [], []
        piece, before = -1, ""
        for node in model.ir.graph:
            output = str(node.outputs[0].name)
            row = targets.get(made.absorbed.get(output, output))
            if row is None:
                continue
            if row["target"] == "NPU" != before:
                piece += 1
            before = row["target"]
            name = node.name or output
            on_npu = row["target"] == "NPU"
            where = profile.provider if on_npu else "CPU"
            part = piece if on_npu else None
            nodes.append(PlacedNode(name, node.op_type, where, row["op"], on_npu, part))
            if not on_npu and output not in made.absorbed:
                reason = row["reason"] or "Vela leaves it to the processor"
                breaks.append(Break(name, node.op_type, reason))
        return Placement(
            tuple(nodes), profile.provider, piece + 1, tuple(breaks), found["source"], None
        )


def _float_model(model: Model, made: Written) -> list[Unsupported]:
    """The first layer of a model none of whose layers is on integers."""
    if any(each.integer and each.code in _INTEGER_CODES for each in made.operators):
        return []
    first = next((node for node in model.ir.graph if node.op_type in _LAYERS), None)
    first = first if first is not None else next(iter(model.ir.graph))
    reason = (
        "Ethos-U computes on 8-bit integers only, and no layer of this model does; quantize it, "
        "activations and weights to int8"
    )
    return [Unsupported(first.name or str(first.outputs[0].name), first.op_type, reason)]


def _targets(made: Written, operators: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """For each node's first output, what Vela made of it; on the CPU where a part of it is."""
    by_tensor: dict[str, dict[str, Any]] = {}
    for row in operators:
        held = by_tensor.get(row["name"])
        if held is None or (row["target"] == "CPU" and held["target"] != "CPU"):
            by_tensor[row["name"]] = row
    found: dict[str, dict[str, Any]] = {}
    for each in made.operators:
        for row in (by_tensor[name] for name in each.outputs if name in by_tensor):
            if each.origin not in found or row["target"] == "CPU":
                found[each.origin] = row
    return found


class EthosUEngine(LiteRtEngine):
    """Runs Vela, and LiteRT in place of the device."""

    def start(self) -> str:
        """Import LiteRT; the versions of both."""
        return f"{super().start()}, Vela {_vela_version()}"

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Open what Vela compiled in LiteRT's own kernels, for the NPU's numbers."""
        plain = Path(path).with_name(_PLAIN)
        super().load(str(plain), {**options, "provider": "builtin"})
        return {"providers": [options["provider"], "LiteRT's own kernels in its place"]}

    def convert(self, source: str, folder: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Compile a TFLite file, and write Vela's estimate beside it."""
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            said = _vela(source, scratch, options)
            compiled = next(Path(scratch).glob("*_vela.tflite"), None)
            summary = next(Path(scratch).glob("*_summary_*.csv"), None)
            rows = next(Path(scratch).glob("*_per-layer.csv"), None)
            if compiled is None or summary is None or rows is None:
                raise RuntimeError(f"Vela wrote no file: {_tail(said)}")
            file = Path(folder) / "model_vela.tflite"
            file.write_bytes(compiled.read_bytes())
            found = _figures(_table(summary)[0], _operators(_table(rows), _reasons(said)))
        found["source"] = f"Arm Vela {_vela_version()}"
        estimate = Path(folder) / _ESTIMATE
        estimate.write_text(json.dumps(found, indent=1), encoding="utf-8")
        return {"files": [str(file), str(estimate)], "notes": _notes(found, options)}


def _vela_version() -> str:
    from importlib.metadata import version

    return version("ethos-u-vela")


def _vela(source: str, folder: str, options: Mapping[str, Any]) -> str:
    """Run the compiler; what it printed.

    Raises:
        RuntimeError: It failed.
    """
    command = [sys.executable, "-m", "ethosu.vela", source, "--output-dir", folder]
    command += ["--accelerator-config", str(options["provider"])]
    command += ["--verbose-performance", "--show-cpu-operations"]
    for option in ("system_config", "memory_mode", "config", "optimise"):
        if option in options:
            command += [f"--{option.replace('_', '-')}", str(options[option])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"Vela refused it: {_tail(done.stderr + done.stdout)}")
    return done.stdout + done.stderr


def _tail(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    told = [line for line in lines if "error:" in line.lower()]
    return " ".join(told[-1:] or lines[-_TAIL_LINES:])


def _table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def _reasons(said: str) -> dict[str, str]:
    """Why Vela left operators alone, by the name of the tensor that they make."""
    found, name = {}, None
    for line in said.splitlines():
        if line.startswith("Warning (") and "ofm: '" in line:
            name = line.rpartition("ofm: '")[2].rstrip().removesuffix("'")
        elif name is not None and line.startswith("Reason:"):
            found[name] = line.removeprefix("Reason:").strip()
            name = None
    return found


def _operators(rows: list[dict[str, str]], reasons: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": row["Name"],
            "op": row["Original Operator"],
            "target": row["Target"],
            "cycles": float(row["Op Cycles"]),
            "macs": int(float(row["MAC Count"])),
            "utilization": float(row["Util% (MAC)"]) / 100,
            "reason": reasons.get(row["Name"], "") if row["Target"] == "CPU" else "",
        }
        for row in rows
    ]


def _figures(summary: Mapping[str, str], operators: list[dict[str, Any]]) -> dict[str, Any]:
    """The estimate in our words and units; Vela tells memory in KiB and time in seconds."""
    memories = ("sram", "dram", "on_chip_flash", "off_chip_flash")
    used = {
        f"{name}_bytes": round(float(summary[f"{name}_memory_used"]) * 1024) for name in memories
    }
    return {
        "basis": "estimated",
        "accelerator": summary["accelerator_configuration"],
        "system_config": summary["system_config"],
        "memory_mode": summary["memory_mode"],
        "clock_mhz": float(summary["core_clock"]) / 1e6,
        "latency_ms": float(summary["inference_time"]) * 1e3,
        "cycles": float(summary["cycles_total"]),
        "cycles_npu": float(summary["cycles_npu"]),
        "macs": int(float(summary["nn_macs"])),
        **used,
        "npu_operators": sum(row["target"] == "NPU" for row in operators),
        "cpu_operators": sum(row["target"] == "CPU" for row in operators),
        "operators": operators,
    }


def _notes(found: Mapping[str, Any], options: Mapping[str, Any]) -> list[str]:
    notes = [
        "latency is Vela's estimate, not a measurement",
        "outputs are those of LiteRT's own kernels, in place of the NPU",
    ]
    if found["cpu_operators"]:
        count = found["cpu_operators"]
        notes.append(f"{count} operators stay on the processor; the estimate leaves out their time")
    if not {"system_config", "memory_mode"} <= options.keys():
        system, memory = found["system_config"], found["memory_mode"]
        notes.append(f"Vela's own system {system} and memory mode {memory} were taken")
    return notes
