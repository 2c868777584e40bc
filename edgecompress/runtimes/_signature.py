"""What a model's file in another format forgets: names, types and shapes of the ONNX model.

It is written beside that file, and read by engines, so this module needs numpy alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgecompress.model import Model

__all__ = ["Port", "Ports", "example_feeds", "make_folder", "read_ports", "write_ports"]

_FILE = "signature.json"
_STAND_IN = 16  # for a dimension that only has a name, where any number will do


@dataclass(frozen=True)
class Port:
    """Name, numpy type and shape of an input or output; named dimensions are strings or None."""

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True)
class Ports:
    """Inputs and outputs in the order of the ONNX model."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def check(self, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Compare shapes of inputs with the model's.

        Raises:
            ValueError: One differs where the model's has a number, in words for the user.
        """
        for port in self.inputs:
            found = feeds[port.name].shape if port.name in feeds else None
            if found is None or port.shape is None:
                continue
            alike = len(found) == len(port.shape) and all(
                not isinstance(dim, int) or dim == size
                for dim, size in zip(port.shape, found, strict=True)
            )
            if not alike:
                raise ValueError(
                    f"input {port.name!r}: expected {list(port.shape)}, got {list(found)}"
                )

    def as_declared(
        self, port: Port, array: npt.NDArray[Any], feeds: Mapping[str, npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """An output with the type that the model declares, and the shape where that is known."""
        array = array.astype(port.dtype, copy=False)
        if port.shape is None:
            return array
        numbers = self._numbers(feeds)
        shape = [d if isinstance(d, int) else numbers.get(d, -1) for d in port.shape]
        size = 1
        for dim in shape:
            size *= dim
        fits = shape.count(-1) == 1 or (shape.count(-1) == 0 and size == array.size)
        return array.reshape(shape) if fits else array

    def _numbers(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str | None, int]:
        """What named dimensions of the inputs were in a run."""
        return {
            dim: size
            for port in self.inputs
            if port.name in feeds and port.shape is not None
            for dim, size in zip(port.shape, feeds[port.name].shape, strict=True)
            if isinstance(dim, str)
        }


def make_folder(folder: Path) -> None:
    """Make the folder that files are to be written into, where it is not there yet.

    Raises:
        OutputError: It cannot be made.
    """
    from edgecompress.files import refused

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(error, folder) from error


def write_ports(model: Model, folder: Path) -> Path:
    """Write the signature into a folder, beside the files of a runtime."""
    file = folder / _FILE
    file.write_text(json.dumps(model.signature.as_json()), encoding="utf-8")
    return file


def read_ports(model: str) -> Ports:
    """The signature beside a runtime's file."""
    table = json.loads(Path(model).with_name(_FILE).read_text(encoding="utf-8"))
    sides = [
        tuple(
            Port(
                each["name"],
                each["dtype"],
                None if each["shape"] is None else tuple(each["shape"]),
            )
            for each in table[side]
        )
        for side in ("inputs", "outputs")
    ]
    return Ports(*sides)


def example_feeds(ports: Ports) -> dict[str, npt.NDArray[Any]]:
    """Ones of the right shapes: a valid token, mask and position, for a run that is not looked at.

    A named first dimension is the batch, and 1.
    """
    import numpy as np

    return {
        port.name: np.ones(
            [
                d if isinstance(d, int) else (1 if place == 0 else _STAND_IN)
                for place, d in enumerate(port.shape or ())
            ],
            port.dtype,
        )
        for port in ports.inputs
    }
