"""ONNX Runtime's own file format: converting to it, and giving its files the same bytes each time.

onnxruntime writes one part of the file, the table of which arguments decide on a kernel's types, in
an order that changes from process to process. That table is written anew here, sorted; all else
stays byte for byte.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.runtimes._session import CPU, INT8_ON_X86, OnnxRuntimeEngine, session_options

__all__ = ["OrtFormatEngine", "OPERATORS_FILE", "stable_bytes"]

OPERATORS_FILE = "required_operators_and_types.config"
"""What a build of onnxruntime for these files alone must have (``--include_ops_by_config``)."""

_IDENTIFIER = b"ORTM"
_ALIGNMENT = 16
_VTABLE_OFFSET = struct.Struct("<i")


class OrtFormatEngine(OnnxRuntimeEngine):
    """onnxruntime with files of its own format."""

    def convert(self, source: str, folder: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Optimize the graph for good and write it as ``model.ort``.

        The blocked convolutions of x86 are left out: their weights are laid out for the width of
        this processor's registers, and one with another width computes wrong results from them
        without a word. Providers other than the CPU's look for Q/DQ pairs, so for these only
        what no kernel is needed for is done.
        """
        import onnxruntime as ort

        target = Path(folder) / "model.ort"
        config = {"session.save_model_format": "ORT"}
        if options["arch"] == "aarch64":
            config |= INT8_ON_X86
        settings = session_options(threads=options["threads"], config=config, optimized=target)
        if options["provider"] != CPU:
            settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        ort.InferenceSession(
            source, settings, providers=[CPU], disabled_optimizers=["NchwcTransformer"]
        )
        _write_operators(target)
        target.write_bytes(stable_bytes(target.read_bytes()))
        return {"files": [str(target)]}


def _write_operators(model: Path) -> None:
    from onnxruntime.tools.ort_format_model import create_config_from_models

    file = model.parent / OPERATORS_FILE
    create_config_from_models([model], file, True)
    lines = file.read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if not line.startswith("#")]  # these name folders of ours
    head = f"# Operators and types of {model.name}"
    file.write_text("\n".join([head, *kept]) + "\n", encoding="utf-8")


def stable_bytes(data: bytes) -> bytes:
    """The same model as ``data``, a file in ORT format, with bytes that depend on it alone.

    The format is a FlatBuffer, which is written from its end to its beginning: first the graph,
    then the table with the changing order, then the root. Offsets point towards the end only, so
    the graph can be kept as it is and the rest be written before it.
    """
    import flatbuffers
    import onnxruntime.tools.ort_format_model  # noqa: F401 - puts the schema on the path
    from ort_flatbuffers_py import fbs

    root = fbs.InferenceSession.InferenceSession.GetRootAs(data)
    place = root.Model()._tab.Pos
    # The layout of a table lies just before it, unless an earlier table has the same one.
    layout = place - _VTABLE_OFFSET.unpack_from(data, place)[0]
    graph = memoryview(data)[min(place, layout) :]
    builder = flatbuffers.Builder(len(graph) + 4096)
    builder.head -= len(graph)
    builder.Bytes[builder.head :] = graph
    builder.minalign = _ALIGNMENT
    version = builder.CreateString(root.OrtVersion())
    resolver = _Resolver(builder, fbs).write(root.KernelTypeStrResolver())
    session = fbs.InferenceSession
    session.Start(builder)
    session.AddOrtVersion(builder, version)
    session.AddModel(builder, len(data) - place)
    session.AddKernelTypeStrResolver(builder, resolver)
    builder.Finish(session.End(builder), file_identifier=_IDENTIFIER)
    return bytes(builder.Output())


@dataclass(frozen=True)
class _Resolver:
    """Writes the table of kernels' type arguments anew; each method returns where its part lies."""

    builder: Any
    fbs: Any

    def write(self, table: Any) -> int:
        schema = self.fbs.KernelTypeStrResolver
        found = map(table.OpKernelTypeStrArgs, range(table.OpKernelTypeStrArgsLength()))
        # Here as below, entries are looked up by halving: they must be in the order of their names.
        parts = [self._operator(each) for each in sorted(found, key=lambda each: each.OpId())]
        content = self._vector(schema.StartOpKernelTypeStrArgsVector, parts)
        schema.Start(self.builder)
        schema.AddOpKernelTypeStrArgs(self.builder, content)
        return int(schema.End(self.builder))

    def _operator(self, entry: Any) -> int:
        schema = self.fbs.OpIdKernelTypeStrArgsEntry
        found = map(entry.KernelTypeStrArgs, range(entry.KernelTypeStrArgsLength()))
        parts = [self._kind(each) for each in sorted(found, key=lambda each: each.KernelTypeStr())]
        name = self.builder.CreateString(entry.OpId())
        content = self._vector(schema.StartKernelTypeStrArgsVector, parts)
        schema.Start(self.builder)
        schema.AddOpId(self.builder, name)
        schema.AddKernelTypeStrArgs(self.builder, content)
        return int(schema.End(self.builder))

    def _kind(self, entry: Any) -> int:
        schema = self.fbs.KernelTypeStrArgsEntry
        parts = [self._argument(each) for each in map(entry.Args, range(entry.ArgsLength()))]
        name = self.builder.CreateString(entry.KernelTypeStr())
        content = self._vector(schema.StartArgsVector, parts)
        schema.Start(self.builder)
        schema.AddKernelTypeStr(self.builder, name)
        schema.AddArgs(self.builder, content)
        return int(schema.End(self.builder))

    def _argument(self, entry: Any) -> int:
        schema = self.fbs.ArgTypeAndIndex
        schema.Start(self.builder)
        schema.AddArgType(self.builder, entry.ArgType())
        schema.AddIndex(self.builder, entry.Index())
        return int(schema.End(self.builder))

    def _vector(self, start: Callable[[Any, int], object], parts: Sequence[int]) -> int:
        start(self.builder, len(parts))
        for offset in reversed(parts):
            self.builder.PrependUOffsetTRelative(offset)
        return int(self.builder.EndVector())
