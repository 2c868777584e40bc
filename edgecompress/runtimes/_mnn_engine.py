"""The side of MNN that lives in a worker: its converter, and its interpreter."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.runtimes import Engine
from edgecompress.runtimes._rows import mean_rows

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["MnnEngine"]

# The converter's extension module alone; the package around it must not be imported.
_CONVERTER = "import sys, _tools; _tools.mnnconvert(['mnnconvert', *sys.argv[1:]])"
_REFUSED = re.compile(r"These Op Not Support:\s*(.*)")
_SUCCESS = "Converted Success!"


class MnnEngine(Engine):
    """A model in a session of MNN's interpreter."""

    def __init__(self) -> None:
        self.interpreter: Any = None
        self.session: Any = None
        self.ports: Any = None
        self.feeds: Mapping[str, Any] = {}
        self.traced = False
        self.runs = 0
        self.begun = 0
        self.times: dict[tuple[str, str], list[float]] = {}

    def start(self) -> str:
        """Import MNN."""
        import MNN

        return str(MNN.version())

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Open a session; shapes are settled when inputs are bound."""
        import MNN

        from edgecompress.runtimes._signature import read_ports

        self.traced = options.get("trace") is not None
        self.ports = read_ports(path)
        self.interpreter = MNN.Interpreter(path)
        precision = options.get("precision", "high")
        self.session = self.interpreter.createSession(
            {"backend": "CPU", "numThread": options["threads"], "precision": precision}
        )
        return {"providers": ["CPU"]}

    def bind(self, feeds: dict[str, npt.NDArray[Any]]) -> Callable[[], object]:
        """A run that copies the inputs in first, as applications do."""
        self.feeds = feeds
        inputs = self.interpreter.getSessionInputAll(self.session)
        for name in feeds:
            if name not in inputs:
                known = ", ".join(inputs)
                raise ValueError(f"the model has no input {name!r}; it has {known}")
        self.ports.check(feeds)
        for name, array in feeds.items():
            self.interpreter.resizeTensor(inputs[name], tuple(array.shape))
        self.interpreter.resizeSession(self.session)
        pairs = [(inputs[name], _host_tensor(array)) for name, array in feeds.items()]
        execute = self._traced if self.traced else self._plain

        def step() -> object:
            for tensor, host in pairs:
                tensor.copyFrom(host)
            return execute()

        return step

    def _plain(self) -> object:
        return self.interpreter.runSession(self.session)

    def _traced(self) -> object:
        self.runs += 1
        return self.interpreter.runSessionWithCallBackInfo(self.session, self._begin, self._end)

    def _begin(self, tensors: Any, info: Any) -> bool:
        self.begun = time.perf_counter_ns()
        return True

    def _end(self, tensors: Any, info: Any) -> bool:
        taken = (time.perf_counter_ns() - self.begun) / 1e3
        self.times.setdefault((info.getName(), info.getType().strip()), []).append(taken)
        return True

    def collect(self, value: Any) -> dict[str, npt.NDArray[Any]]:
        """Outputs with the names, types and shapes of the ONNX model."""
        import numpy as np

        found = {}
        for port in self.ports.outputs:
            tensor = self.interpreter.getSessionOutput(self.session, port.name)
            shape = tuple(tensor.getShape())
            kind = np.int32 if np.dtype(port.dtype).kind in "iub" else np.float32
            host = _host_tensor(np.zeros(shape, kind))
            tensor.copyToHostTensor(host)
            array = np.array(host.getNumpyData(), copy=True).reshape(shape)
            found[port.name] = self.ports.as_declared(port, array, self.feeds)
        return found

    def memory(self) -> Mapping[str, Any]:
        """What the session holds."""
        if self.session is None:
            return {}
        return {"session": int(self.interpreter.getSessionInfo(self.session, 0) * 2**20)}

    def end_profiling(self) -> Mapping[str, Any]:
        """Mean times of all operators, taken around each."""
        return mean_rows(self.times, self.runs, "CPU")

    def convert(self, source: str, folder: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Make ``model.mnn``, or answer the ``question`` in the options."""
        question = options.get("question")
        if question == "executed":
            return {"rows": self._run_once(source, options)}
        target = Path(folder) / "model.mnn"
        said = _convert(source, target, options)
        refused = _REFUSED.search(said)
        if question == "unsupported":
            operators = re.findall(r"::(\w+)", refused.group(1)) if refused else []
            return {"refused": operators, "said": "" if target.exists() else _last_line(said)}
        if _SUCCESS not in said or not target.exists():
            raise RuntimeError(f"MNN's converter failed: {_last_line(said)}")
        return {"files": [str(target)]}

    def _run_once(self, source: str, options: Mapping[str, Any]) -> list[tuple[str, str]]:
        from edgecompress.runtimes._signature import example_feeds

        self.start()
        self.load(source, {**options, "trace": ""})
        self.bind(example_feeds(self.ports))()
        return list(self.times)


def _convert(source: str, target: Path, options: Mapping[str, Any]) -> str:
    """Run the converter, which aborts its process on some models; what it printed."""
    command = ["-f", "ONNX", "--modelFile", source, "--MNNModel", str(target), "--bizCode", "none"]
    if options.get("parameters"):
        command += ["--compressionParamsFile", options["parameters"]]
    if options.get("weight_bits"):
        command += ["--weightQuantBits", str(options["weight_bits"])]
    done = subprocess.run(
        [sys.executable, "-P", "-c", _CONVERTER, *command],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=target.parent,
    )
    return done.stdout + done.stderr


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    failed = [
        line for line in lines if re.search("not support|error|fail|abort|terminate", line, re.I)
    ]
    return (failed or lines or ["it said nothing"])[0][:200]


def _host_tensor(array: npt.NDArray[Any]) -> Any:
    """A tensor of MNN with the array's numbers; 64-bit integers and truth values become int32."""
    import MNN
    import numpy as np

    whole = array.dtype.kind in "iub" and array.dtype != np.uint8
    array = np.ascontiguousarray(array, np.int32 if whole else None)
    kinds = {
        "float32": MNN.Halide_Type_Float,
        "int32": MNN.Halide_Type_Int,
        "uint8": MNN.Halide_Type_Uint8,
    }
    if array.dtype.name not in kinds:
        raise TypeError(f"MNN takes no {array.dtype} inputs")
    shape = tuple(array.shape)
    return MNN.Tensor(shape, kinds[array.dtype.name], array, MNN.Tensor_DimensionType_Caffe)
