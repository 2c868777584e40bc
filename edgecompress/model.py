"""Model: an ONNX graph, its signature, its size and its digest; load and save.

The graph is an ``onnx_ir.Model``. Weights kept as external data stay in their file until somebody
asks for them. Nothing else in the package reads or writes ONNX files.
"""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from edgecompress import files
from edgecompress.errors import ModelError, UnsupportedOperatorError
from edgecompress.soundness import check_sound
from edgecompress.weights import external_data as external
from edgecompress.weights import model_file
from edgecompress.weights.data_file import keep_readable
from edgecompress.weights.digests import tensor_digests

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["Model", "Signature", "TensorSpec", "Dim", "DEFAULT_DOMAINS"]

Dim = int | str | None
"""A dimension: a number, a symbolic name, or unknown."""

DEFAULT_DOMAINS = ("", "ai.onnx")

_LONGEST_REASON = 500  # characters; the ONNX checker quotes names in full
# Protobuf refuses messages of 2 GiB; the graph itself needs some room beside the weights.
_EXTERNAL_DATA_ABOVE_BYTES = 1_800_000_000


@dataclass(frozen=True)
class TensorSpec:
    """Name, numpy dtype name and shape of a graph input or output."""

    name: str
    dtype: str
    shape: tuple[Dim, ...] | None

    def __str__(self) -> str:
        dims = (
            "?"
            if self.shape is None
            else ", ".join("?" if d is None else str(d) for d in self.shape)
        )
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a model, in graph order."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def as_json(self) -> dict[str, list[dict[str, Any]]]:
        """Plain lists and dictionaries, for manifests and reports."""
        return {
            side: [
                {
                    "name": s.name,
                    "dtype": s.dtype,
                    "shape": None if s.shape is None else list(s.shape),
                }
                for s in specs
            ]
            for side, specs in (("inputs", self.inputs), ("outputs", self.outputs))
        }


@dataclass
class Model:
    """An ONNX graph with what the rest of the package wants to know of it.

    Attributes:
        ir: The graph. Passes that change it work on :meth:`clone`.
        path: The file it was loaded from, if any.
        steps: Names of the passes that made it, in order.
        data_files: The files of weights beside ``path``.
    """

    ir: ir.Model
    path: Path | None = None
    steps: tuple[str, ...] = field(default=())
    data_files: tuple[Path, ...] = field(default=())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Model:
        """Read an ONNX file and check it.

        Raises:
            ModelError: The file is missing, is not ONNX, is truncated, fails the ONNX checker, or
                its external data are missing, too short or outside the model's folder.
            UnsupportedOperatorError: It uses operators that ONNX does not define.
        """
        file = Path(path)
        if not file.is_file():
            what = "is a folder, expected an ONNX file" if file.is_dir() else "no such file"
            raise ModelError(what, where=str(file), cure="check the path")
        try:
            model = ir.load(file.absolute())  # weights are found after a change of folder, too
        except Exception as error:
            raise ModelError(
                "is not an ONNX file, or it is truncated "
                f"({file.stat().st_size:,} bytes: {_first_line(error)})",
                where=str(file),
                cure="export or copy the model again; check its size against the original",
            ) from error
        if not model.opset_imports or not list(model.graph):
            raise ModelError("holds no ONNX graph", where=str(file), cure="export the model again")
        loaded = cls(model, path=file)
        check_sound(model, file)
        external.check_locations(model, file)
        loaded._check_operators(file)
        loaded._check_onnx(file)
        loaded.data_files = tuple(external.attach_files(model))
        return loaded

    def _check_operators(self, file: Path) -> None:
        import onnx.defs

        local = {(f.domain, f.name) for f in self.ir.functions.values()}
        known = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
        unknown = {
            node.op_type
            for node in self.ir.graph.all_nodes()
            if node.domain in DEFAULT_DOMAINS
            and node.op_type not in known
            and (node.domain, node.op_type) not in local
        }
        if unknown:
            raise UnsupportedOperatorError(
                "uses operators that ONNX does not define",
                unknown,
                where=str(file),
                cure="export with standard operators, or put custom ones in a domain of their own",
            )

    def _check_onnx(self, file: Path) -> None:
        import onnx.checker

        try:
            onnx.checker.check_model(os.fspath(file))
        except onnx.checker.ValidationError as error:
            raise ModelError(
                f"fails the ONNX checker: {_first_line(error)}",
                where=str(file),
                cure="export the model again, or report the exporter's bug to its authors",
            ) from error

    def check(self) -> None:
        """Run the ONNX checker and strict shape inference on the graph in memory.

        The values of large weights are not looked at, so it takes little memory for any model.

        Raises:
            ModelError: The graph is not valid ONNX.
        """
        import onnx.checker
        import onnx.shape_inference

        proto = ir.to_proto(model_file.without_weights(self.ir))
        try:
            onnx.checker.check_model(proto)
            onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True)
        except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
            raise ModelError(f"the graph is not valid ONNX: {_first_line(error)}") from error

    def clone(self, step: str | None = None) -> Model:
        """A copy of the graph that shares the weights, with ``step`` added to its history.

        Weight tensors are never changed, only replaced; their names follow their initializers when
        the graph is written. Types can be changed in place, so each copy has its own.
        """
        steps = self.steps if step is None else (*self.steps, step)
        graph = self.ir.clone()
        for value in _values(graph):
            value.type = copy.copy(value.type)
        return Model(graph, path=self.path, steps=steps, data_files=self.data_files)

    def inlined(self) -> Model:
        """This model where it has no functions of its own, else a copy with their nodes instead."""
        if not self.ir.functions:
            return self
        from onnx_ir.passes.common import InlinePass

        model = self.clone()
        InlinePass()(model.ir)
        return model

    @property
    def opset(self) -> int:
        """Version of the standard operator set that the graph imports."""
        for domain in DEFAULT_DOMAINS:
            if domain in self.ir.opset_imports:
                return self.ir.opset_imports[domain]
        raise ModelError("imports no standard operator set", where=str(self.path or "model"))

    @property
    def signature(self) -> Signature:
        """Inputs that are not initializers, and outputs."""
        graph = self.ir.graph
        return Signature(
            inputs=tuple(_spec(v) for v in graph.inputs if v.name not in graph.initializers),
            outputs=tuple(_spec(v) for v in graph.outputs),
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all initializers, wherever they lie."""
        return sum(
            external.tensor_bytes(value.const_value)
            for graph in (self.ir.graph, *self.ir.graph.subgraphs())
            for value in graph.initializers.values()
            if value.const_value is not None
        )

    @property
    def size_bytes(self) -> int:
        """Bytes of the model as one protobuf, even where that is more than one may hold."""
        return model_file.protobuf_bytes(self.ir)

    def to_bytes(self) -> bytes:
        """The model as one protobuf, weights inside; the same bytes for the same graph.

        Raises:
            ModelError: It is larger than a protobuf may be.
        """
        self._check_fits()
        return b"".join(map(bytes, model_file.pieces(self.ir)))

    @property
    def digest(self) -> str:
        """SHA-256 over nodes, signature and weights; independent of where they are stored.

        Each weight is read once, see :mod:`edgecompress.weights.digests`.
        """
        sha = hashlib.sha256()
        for domain, version in sorted(self.ir.opset_imports.items()):
            sha.update(f"{domain}:{version};".encode())
        weights = [
            (name, value.const_value)
            for graph in (self.ir.graph, *self.ir.graph.subgraphs())
            for name, value in sorted(graph.initializers.items())
            if value.const_value is not None
        ]
        contents = tensor_digests(tensor for _, tensor in weights)
        for (name, tensor), content in zip(weights, contents, strict=True):
            sha.update(f"{name}:{tensor.dtype}:{tensor.shape}:{content};".encode())
        skeleton = model_file.without_weights(self.ir, keep=0)
        main = self.ir.graph
        for part in (*skeleton.graph, *skeleton.functions.values(), *main.inputs, *main.outputs):
            sha.update(ir.to_proto(part).SerializeToString(deterministic=True))
        return sha.hexdigest()

    def save(
        self, path: str | os.PathLike[str], *, external_data: bool | None = None
    ) -> list[Path]:
        """Write the model, whole or not at all, and return the files written.

        Args:
            path: The ``.onnx`` file.
            external_data: Put the weights in ``<path>.data``. Default: only where one protobuf
                cannot hold them.

        Raises:
            OutputError: The folder cannot be written, or the disk is full.
            ModelError: It is larger than a protobuf may be and ``external_data`` is False, or a
                data file that it was loaded with is gone or cut short.
        """
        file = Path(path)
        if external_data is None:
            external_data = self.weight_bytes > _EXTERNAL_DATA_ABOVE_BYTES
        if not external_data:
            self._check_fits()
            with files.write_aside(file) as temporary, temporary.open("wb") as whole:
                whole.writelines(model_file.pieces(self.ir))
            return [file]
        data = file.with_name(file.name + ".data")
        keep_readable(data)
        with files.folder_aside(file.parent) as aside:
            graph = model_file.with_data_file(self.ir, aside, data.name)
            (aside / file.name).write_bytes(
                ir.to_proto(graph).SerializeToString(deterministic=True)
            )
        return [file, data]

    def _check_fits(self) -> None:
        if self.weight_bytes > _EXTERNAL_DATA_ABOVE_BYTES:
            raise ModelError(
                f"is too large for one protobuf ({self.weight_bytes / 1e9:.1f} GB)",
                cure="save it with external data: weights then go to a file beside it",
            )

    def initializer(self, name: str) -> npt.NDArray[np.generic]:
        """Values of an initializer of the main graph; not to be changed in place.

        Raises:
            ModelError: There is no initializer of that name.
        """
        value = self.ir.graph.initializers.get(name)
        if value is None or value.const_value is None:
            raise ModelError(f"has no initializer {name!r}", where=str(self.path or "model"))
        return external.read(value.const_value)

    def set_initializer(self, name: str, array: npt.NDArray[np.generic]) -> None:
        """Replace the values of an initializer in place; shape and dtype must stay.

        Raises:
            ModelError: There is no such initializer, or its shape or dtype differs.
        """
        old = self.initializer(name)
        if old.shape != array.shape or old.dtype != array.dtype:
            raise ModelError(
                f"initializer {name!r}: expected {old.dtype}{list(old.shape)}, "
                f"got {array.dtype}{list(array.shape)}"
            )
        self.ir.graph.initializers[name].const_value = ir.tensor(array, name=name)


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in (model.graph, *model.graph.subgraphs()):
        yield from graph.inputs
        yield from graph.initializers.values()
        for node in graph:
            yield from node.outputs


def _spec(value: ir.Value) -> TensorSpec:
    shape: tuple[Dim, ...] | None = None
    if value.shape is not None:
        shape = tuple(
            d if isinstance(d, int) else (None if d.value is None else str(d.value))
            for d in value.shape
        )
    dtype = "unknown" if value.dtype is None else value.dtype.numpy().name
    return TensorSpec(name=value.name or "", dtype=dtype, shape=shape)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    first = lines[0] if lines else type(error).__name__
    return first if len(first) <= _LONGEST_REASON else f"{first[:_LONGEST_REASON]} ..."
