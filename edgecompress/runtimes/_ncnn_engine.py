"""The side of ncnn that lives in a worker: pnnx, which converts, and the network."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.runtimes import Engine

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["NcnnEngine"]

_BATCH = re.compile(r"\b(in\d+|out\d+)\.numpy\((?:\))?[^\n]*?batch_index=(\d+)")
_BATCHES = "batches.json"
_CAST = "Tensor.to"


class NcnnEngine(Engine):
    """A network of ncnn."""

    def __init__(self) -> None:
        self.net: Any = None
        self.ports: Any = None
        self.batches: dict[str, int] = {}
        self.feeds: Mapping[str, Any] = {}
        self.layers: list[tuple[str, str, str]] = []
        self.traced = False
        self.runs = 0
        self.times: dict[tuple[str, str], float] = {}

    def start(self) -> str:
        """Import ncnn."""
        import ncnn

        return str(ncnn.__version__)

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Load the network, with 32-bit floats throughout unless ``fp16`` is asked for."""
        import ncnn

        from edgecompress.runtimes._signature import read_ports

        self.traced = options.get("trace") is not None
        self.ports = read_ports(path)
        self.batches = json.loads(Path(path).with_name(_BATCHES).read_text(encoding="utf-8"))
        self.layers = [(kind, name, tops[0]) for kind, name, tops in _layers(path) if tops]
        self.net = ncnn.Net()
        settings = self.net.opt
        settings.num_threads = options["threads"]
        settings.use_vulkan_compute = False
        for each in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(settings, each, bool(options.get("fp16", False)))
        settings.use_bf16_storage = False
        if self.net.load_param(path) != 0 or self.net.load_model(_weights(path)) != 0:
            raise RuntimeError("ncnn could not load the network: a layer is unknown to it")
        return {"providers": ["CPU"]}

    def bind(self, feeds: dict[str, npt.NDArray[Any]]) -> Callable[[], object]:
        """A run of all layers that the outputs depend on."""
        self.feeds = feeds
        names = [port.name for port in self.ports.inputs]
        for name in feeds:
            if name not in names:
                raise ValueError(f"the model has no input {name!r}; it has {', '.join(names)}")
        self.ports.check(feeds)
        mats = [(f"in{names.index(name)}", array) for name, array in feeds.items()]
        inputs = [(name, self._mat(name, array)) for name, array in mats]
        outputs = [f"out{place}" for place in range(len(self.ports.outputs))]
        wanted = [top for *_, top in self.layers] if self.traced else outputs

        def step() -> object:
            extractor = self.net.create_extractor()
            for name, mat in inputs:
                extractor.input(name, mat)
            return self._timed(extractor) if self.traced else _extract(extractor, wanted)

        return step

    def _mat(self, name: str, array: npt.NDArray[Any]) -> Any:
        import ncnn
        import numpy as np

        array = array.astype(np.int32) if array.dtype.kind in "iub" else array.astype(np.float32)
        if name in self.batches:
            if array.shape[self.batches[name]] != 1:
                raise ValueError(f"ncnn runs one row at a time, got inputs of shape {array.shape}")
            array = array.squeeze(self.batches[name])
        return ncnn.Mat(np.ascontiguousarray(array)).clone()

    def _timed(self, extractor: Any) -> object:
        """Ask for layer after layer: each asking runs what was not run before."""
        self.runs += 1
        extractor.set_light_mode(False)
        for kind, name, top in self.layers:
            start = time.perf_counter_ns()
            extractor.extract(top)
            taken = (time.perf_counter_ns() - start) / 1e3
            self.times[name, kind] = self.times.get((name, kind), 0.0) + taken
        return None

    def collect(self, value: Any) -> dict[str, npt.NDArray[Any]]:
        """Outputs with the names, types and shapes of the ONNX model."""
        import numpy as np

        return {
            port.name: self.ports.as_declared(port, np.array(mat), self.feeds)
            for port, mat in zip(self.ports.outputs, value, strict=True)
        }

    def end_profiling(self) -> Mapping[str, Any]:
        """Mean times of all layers; each holds the unpacking of its output, too."""
        runs = max(1, self.runs)
        return {
            "rows": [
                {
                    "name": name,
                    "op": kind,
                    "provider": "CPU",
                    "mean_us": taken / runs,
                    "calls": 1.0,
                }
                for (name, kind), taken in self.times.items()
            ]
        }

    def convert(self, source: str, folder: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Make the network's two files, or tell what pnnx left over."""
        import ncnn

        made = Path(source).parent / "model.ncnn.param"
        said = _pnnx(source, options)
        if options["casts_are_idle"] and made.exists():
            text = made.read_text(encoding="utf-8")
            made.write_text(re.sub(rf"^{re.escape(_CAST)} ", "Noop ", text, flags=re.M))
        left = [
            (kind, name)
            for kind, name, _ in (_layers(str(made)) if made.exists() else ())
            if ncnn.layer_to_index(kind) < 0
        ]
        if options.get("question") == "unsupported":
            return {"left": left, "said": "" if made.exists() else _last_line(said)}
        if not made.exists():
            raise RuntimeError(f"pnnx failed: {_last_line(said)}")
        if left:
            kinds = ", ".join(sorted({kind for kind, _ in left}))
            raise RuntimeError(f"ncnn has no layers for what pnnx left over: {kinds}")
        script = made.with_name("model_ncnn.py").read_text(encoding="utf-8")
        batches = {name: int(place) for name, place in _BATCH.findall(script)}
        files = [Path(folder) / each.name for each in (made, Path(_weights(str(made))))]
        for file in files:
            shutil.move(made.with_name(file.name), file)
        note = Path(folder) / _BATCHES
        note.write_text(json.dumps(batches), encoding="utf-8")
        return {"files": [*map(str, files), str(note)]}


def _pnnx(source: str, options: Mapping[str, Any]) -> str:
    """Run the converter, which is a program of its own; what it printed."""
    found = importlib.util.find_spec("pnnx")
    places = [] if found is None else list(found.submodule_search_locations or ())
    program = shutil.which("pnnx", path=places[0]) if places else None
    if program is None:
        raise RuntimeError("the package pnnx holds no program for this system")
    command = [program, source, f"inputshape={options['shapes']}"]
    if options.get("other_shapes"):
        command.append(f"inputshape2={options['other_shapes']}")
    command.append(f"fp16={int(bool(options.get('fp16', False)))}")
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        cwd=Path(source).parent,
    )
    return done.stdout + done.stderr


def _layers(path: str) -> Iterator[tuple[str, str, list[str]]]:
    """Type, name and outputs of the layers in a ``.param`` file; its first two lines are counts."""
    for line in Path(path).read_text(encoding="utf-8").splitlines()[2:]:
        kind, name, bottoms, tops, *blobs = line.split()
        yield kind, name, blobs[int(bottoms) : int(bottoms) + int(tops)]


def _weights(path: str) -> str:
    return path.removesuffix(".param") + ".bin"


def _extract(extractor: Any, names: Sequence[str]) -> list[Any]:
    found = []
    for name in names:
        code, mat = extractor.extract(name)
        if code != 0:
            raise RuntimeError(f"ncnn could not compute {name} (code {code})")
        found.append(mat)
    return found


def _last_line(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if re.search("fail|error|not support", line, re.IGNORECASE)]
    return (telling or lines or ["it said nothing"])[-1][:300]
