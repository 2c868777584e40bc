"""A slice of a graph that torch cannot run, run by onnxruntime.

It has the face of :class:`~edgecompress.torchgraph.TorchGraph`, but no gradients pass and nothing
in it can be edited while data flow.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.errors import ModelError
from edgecompress.model import Model
from edgecompress.walk.liveness import reads
from edgecompress.weights.external_data import read

__all__ = ["OpaqueGraph"]


class OpaqueGraph:
    """Nodes of a main graph, behind an onnxruntime session that is opened with the first batch."""

    def __init__(self, model: Model, nodes: Sequence[ir.Node]) -> None:
        self._model = model
        self._nodes = list(nodes)
        made = {value for node in self._nodes for value in node.outputs}
        read_values = dict.fromkeys(v for n in self._nodes for v in reads(n) if v not in made)
        self._constants = [v for v in read_values if v.const_value is not None]
        self.input_names = tuple(v.name or "" for v in read_values if v.const_value is None)
        self._made = {value.name: value for value in made if value.name}
        self._sessions: dict[tuple[str, ...], Any] = {}

    def __call__(
        self,
        feeds: Mapping[str, Tensor],
        *,
        observe: Callable[[str, Tensor], None] | None = None,
        watch: Collection[str] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> dict[str, Tensor]:
        """As :meth:`TorchGraph.forward`, on the CPU.

        Raises:
            ModelError: onnxruntime cannot load or run the slice.
        """
        asked = tuple(outputs or ())
        watched = [] if observe is None else [name for name in watch or () if name in self._made]
        wanted = tuple(dict.fromkeys((*asked, *watched)))
        arrays = {name: _array(feeds[name]) for name in self.input_names}
        found: dict[str, Tensor] = {name: feeds[name] for name in wanted if name in feeds}
        computed = tuple(name for name in wanted if name not in found)
        if computed:
            found.update(zip(computed, self._run(computed, arrays), strict=True))
        if observe is not None:
            for name in self.input_names:
                if name in (watch or ()):
                    observe(name, feeds[name])
            for name in watched:
                observe(name, found[name])
        return {name: found[name] for name in asked}

    def _run(self, wanted: tuple[str, ...], arrays: dict[str, Any]) -> list[Tensor]:
        where = f"onnxruntime, for {self._nodes[0].op_type} node {self._nodes[0].name!r}"
        try:
            session = self._session(wanted, arrays)
            got = session.run(list(wanted), arrays)
        except ModelError:
            raise
        except Exception as error:
            raise ModelError(
                f"cannot run a part of the graph: {str(error).splitlines()[0]}",
                where=where,
                cure="check the shapes and types of the inputs, and the operator's domain",
            ) from error
        return [_tensor(array, name, where) for array, name in zip(got, wanted, strict=True)]

    def _session(self, wanted: tuple[str, ...], arrays: Mapping[str, Any]) -> Any:
        if wanted not in self._sessions:
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4
            options.intra_op_num_threads = 1  # sums depend on how many share them
            self._sessions[wanted] = onnxruntime.InferenceSession(
                self._proto(wanted, arrays).SerializeToString(),
                options,
                providers=["CPUExecutionProvider"],
            )
        return self._sessions[wanted]

    def _proto(self, wanted: tuple[str, ...], arrays: Mapping[str, Any]) -> onnx.ModelProto:
        helper = onnx.helper
        graph = helper.make_graph(
            nodes=[ir.to_proto(node) for node in self._nodes],
            name="part",
            inputs=[
                helper.make_tensor_value_info(
                    name, helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
                )
                for name, array in arrays.items()
            ],
            outputs=[_output(self._made[name]) for name in wanted],
            initializer=[_initializer(value) for value in self._constants],
        )
        model = self._model.ir
        imports = [helper.make_opsetid(d, v) for d, v in model.opset_imports.items()]
        return helper.make_model(graph, opset_imports=imports, ir_version=model.ir_version)


def _output(value: ir.Value) -> onnx.ValueInfoProto:
    """Name and type; onnxruntime finds the shape itself."""
    info = onnx.ValueInfoProto(name=value.name)
    if value.dtype is not None:
        info.type.tensor_type.elem_type = int(value.dtype)
    return info


def _initializer(value: ir.Value) -> onnx.TensorProto:
    tensor = value.const_value
    assert tensor is not None
    proto: onnx.TensorProto = ir.to_proto(
        ir.Tensor(read(tensor), dtype=tensor.dtype, shape=tensor.shape, name=value.name)
        if isinstance(tensor, ir.ExternalTensor)
        else tensor
    )
    proto.name = value.name or ""
    return proto


def _array(values: Tensor) -> np.ndarray:
    host = values.detach().to("cpu")
    if host.dtype == torch.bfloat16:
        return host.view(torch.int16).numpy().view(ir.DataType.BFLOAT16.numpy())
    return host.numpy()


def _tensor(array: Any, name: str, where: str) -> Tensor:
    try:
        return torch.from_numpy(np.array(array))
    except TypeError as error:
        raise ModelError(
            f"the value {name!r} of type {getattr(array, 'dtype', type(array).__name__)} "
            "cannot pass between blocks",
            where=where,
            cure="only tensors of numbers can",
        ) from error
