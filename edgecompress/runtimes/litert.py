"""LiteRT, which was TensorFlow Lite: its interpreter, with XNNPACK behind it.

There is no sound converter from ONNX, so the file is written by :mod:`edgecompress.litert_writer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from edgecompress.runtimes import (
    Artifact,
    Engine,
    FusionCoverage,
    Placement,
    Runtime,
    Unsupported,
)

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgecompress.litert_writer import Written
    from edgecompress.model import Model
    from edgecompress.runtimes._executed import Executed
    from edgecompress.target import TargetProfile

__all__ = ["LiteRt", "LiteRtEngine", "written"]

_XNNPACK = "XNNPACK"
_BUILTIN = "builtin"
_SIGNATURE = "serving_default"
_MOST_NAMED = 5


def written(model: Model, profile: TargetProfile) -> Written:
    """The model as a TFLite file, with the shapes of the profile's options.

    Raises:
        MissingDependencyError: The TFLite schema is not installed.
        TargetError: The option ``shapes`` cannot be read.
    """
    from edgecompress.litert_writer import read_shapes, translate

    shapes = read_shapes(str(profile.options.get("shapes", "")))
    return translate(model, shapes, dynamic=bool(profile.options.get("dynamic", False)))


class LiteRt(Runtime):
    """LiteRT on the CPU (``provider = "XNNPACK"``, or ``"builtin"`` for its own kernels alone).

    TFLite files have fixed shapes. A free first dimension becomes 1, and batches are run row by
    row; the profile's option ``shapes`` gives numbers to others: ``"batch=1, sequence=128"``.

    Matrix products between a DequantizeLinear and no QuantizeLinear have no integer kernel and
    compute in float, as the graph says; with the option ``dynamic`` they quantize their inputs
    while they run, which is several times faster and gives other numbers.
    """

    name: ClassVar[str] = "litert"
    engine: ClassVar[str] = "edgecompress.runtimes.litert:LiteRtEngine"
    packages: ClassVar[tuple[str, ...]] = ("ai_edge_litert", "flatbuffers")
    fixed_shapes: ClassVar[bool] = True
    install: ClassVar[str] = 'pip install "edgecompress[litert]"'

    def present(self, profile: TargetProfile) -> tuple[bool, str]:
        """Whether LiteRT is installed, and the provider is one of its two."""
        if profile.provider not in (_XNNPACK, _BUILTIN):
            return False, (
                f"LiteRT has the providers {_XNNPACK} and {_BUILTIN}, not {profile.provider!r}"
            )
        return super().present(profile)

    def unsupported(self, model: Model, profile: TargetProfile) -> list[Unsupported]:
        """Nodes that cannot be written, and inputs without a fixed shape."""
        return [Unsupported(r.node, r.op, r.reason) for r in written(model, profile).refused]

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write ``model.tflite``."""
        from edgecompress.errors import MeasurementError
        from edgecompress.files import write_aside

        made = written(model, profile)
        if made.refused:
            named = [f"{r.node} ({r.op}): {r.reason}" for r in made.refused[:_MOST_NAMED]]
            more = len(made.refused) - len(named)
            rest = [f"and {more} more"] if more else []
            raise MeasurementError(
                "cannot be written as a TFLite file: " + "; ".join([*named, *rest]),
                where=str(model.path or "model"),
                cure="change these nodes, or choose another runtime",
            )
        file = folder / "model.tflite"
        with write_aside(file) as temporary:
            temporary.write_bytes(made.data)
        return Artifact((file,), made.notes)

    def coverage(
        self, model: Model, claimed: Sequence[str], profile: TargetProfile
    ) -> FusionCoverage:
        """Which of the nodes with the outputs ``claimed`` run on integers."""
        from edgecompress.runtimes._executed import coverage_of

        kernels, _ = self._executed(model, profile)
        return coverage_of(model, claimed, kernels)

    def placement(self, model: Model, profile: TargetProfile) -> Placement:
        """Which nodes XNNPACK took, in how many pieces, as the interpreter tells."""
        from edgecompress.runtimes._litert_plan import placement_of

        kernels, version = self._executed(model, profile)
        source = f"execution plan of LiteRT {version}"
        return placement_of(model, kernels, profile.provider, source)

    def _executed(self, model: Model, profile: TargetProfile) -> tuple[list[Executed], str]:
        """The kernels of the file, and the runtime's version."""
        from edgecompress.files import ScratchFolder
        from edgecompress.runtimes._asking import ask_engine
        from edgecompress.runtimes._litert_plan import kernels_of

        made = written(model, profile)
        with ScratchFolder() as folder:
            file = folder / "model.tflite"
            file.write_bytes(made.data)
            answer = ask_engine(self, file, profile, "placement")
        return kernels_of(model, made, answer["operators"]), str(answer["version"])


class LiteRtEngine(Engine):
    """The interpreter of ``ai_edge_litert``."""

    def __init__(self) -> None:
        self.interpreter: Any = None
        self.inputs: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, int] = {}

    def start(self) -> str:
        """Import the interpreter."""
        import ai_edge_litert
        from ai_edge_litert import interpreter  # noqa: F401 - what it costs is not the model's

        return str(ai_edge_litert.__version__)

    def load(self, path: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Open the file; ``provider`` ``builtin`` leaves XNNPACK out."""
        from ai_edge_litert.interpreter import Interpreter, OpResolverType

        plain = options["provider"] == _BUILTIN
        resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES if plain else None
        self.interpreter = Interpreter(
            model_path=path,
            num_threads=options["threads"],
            **({"experimental_op_resolver_type": resolver} if plain else {}),
        )
        self.interpreter.allocate_tensors()
        details = {each["index"]: each for each in self.interpreter.get_input_details()}
        signature = self.interpreter._get_full_signature_list()[_SIGNATURE]
        self.inputs = {name: details[index] for name, index in signature["inputs"].items()}
        order = [each["index"] for each in self.interpreter.get_output_details()]
        named = sorted(signature["outputs"].items(), key=lambda item: order.index(item[1]))
        self.outputs = dict(named)
        pieces = {each["piece"] for each in self._operators()}
        runs = [_XNNPACK] if pieces - {None} else []
        return {"providers": [*runs, *([_BUILTIN] if None in pieces else [])]}

    def bind(self, feeds: dict[str, npt.NDArray[Any]]) -> Callable[[], object]:
        """A run with inputs and outputs copied, as applications do it.

        Where more rows are given than the file was written for, there is a run for each part.
        """
        rows = self._rows(feeds)
        if rows == 1:
            return lambda: self._run(feeds)
        parts = [
            {
                name: array[i * self._first(name) : (i + 1) * self._first(name)]
                for name, array in feeds.items()
            }
            for i in range(rows)
        ]
        return lambda: _stacked([self._run(part) for part in parts])

    def _run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        interpreter = self.interpreter
        for name, details in self.inputs.items():
            interpreter.set_tensor(details["index"], feeds[name])
        interpreter.invoke()
        return {name: interpreter.get_tensor(index) for name, index in self.outputs.items()}

    def _first(self, name: str) -> int:
        return int(self.inputs[name]["shape"][0])

    def _rows(self, feeds: Mapping[str, npt.NDArray[Any]]) -> int:
        """How many runs the inputs are for.

        Raises:
            ValueError: They are of other shapes than the file.
        """
        counts = set()
        for name, details in self.inputs.items():
            shape, given = tuple(map(int, details["shape"])), tuple(feeds[name].shape)
            if shape == given:
                counts.add(1)
                continue
            fits = len(shape) == len(given) > 0 and shape[1:] == given[1:]
            if not fits or given[0] == 0 or given[0] % shape[0]:
                raise ValueError(
                    f"input {name!r}: the file was written for {list(shape)}, got {list(given)}; "
                    "give such rows, or other numbers in the target's option shapes"
                )
            counts.add(given[0] // shape[0])
        if len(counts) > 1:
            raise ValueError(f"inputs hold different numbers of rows: {sorted(counts)}")
        return counts.pop() if counts else 1

    def collect(self, value: Any) -> dict[str, npt.NDArray[Any]]:
        """Outputs by name."""
        return dict(value)

    def convert(self, source: str, folder: str, options: Mapping[str, Any]) -> Mapping[str, Any]:
        """Where the operators of a file run: whether on integers, and in which piece."""
        version = self.start()
        self.load(source, options)
        return {"operators": self._operators(), "version": version}

    def _operators(self) -> list[dict[str, Any]]:
        """The file's operators in order; ``piece`` is None where no delegate took one."""
        every = self.interpreter._get_ops_details()
        own = [each for each in every if each["op_name"] != "DELEGATE"]
        pieces = _pieces(own, [each for each in every if each["op_name"] == "DELEGATE"])
        return [
            {
                "op": each["op_name"],
                "piece": pieces.get(each["index"]),
                "integer": all(kind.__name__ == "int8" for kind in each["result_types"]),
            }
            for each in own
        ]


def _pieces(
    operators: Sequence[Mapping[str, Any]], delegates: Sequence[Mapping[str, Any]]
) -> dict[int, int]:
    """Which delegate took each operator: those between its outputs and its inputs."""
    makers = {int(out): each for each in operators for out in each["outputs"]}
    found = {}
    for piece, delegate in enumerate(delegates):
        given = {int(tensor) for tensor in delegate["inputs"]}
        wanted = [int(tensor) for tensor in delegate["outputs"]]
        while wanted:
            tensor = wanted.pop()
            maker = makers.get(tensor)
            if tensor in given or maker is None or maker["index"] in found:
                continue
            found[maker["index"]] = piece
            wanted.extend(int(each) for each in maker["inputs"])
    return found


def _stacked(parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    import numpy as np

    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
