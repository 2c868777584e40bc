"""onnxruntime with files in its own format, which builds without an ONNX parser load (mobile)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgecompress.errors import MeasurementError
from edgecompress.files import ScratchFolder
from edgecompress.runtimes import Artifact
from edgecompress.runtimes._ort_convert import OPERATORS_FILE
from edgecompress.runtimes._remote import convert
from edgecompress.runtimes.onnxruntime import OnnxRuntime

if TYPE_CHECKING:
    from edgecompress.model import Model
    from edgecompress.target import TargetProfile

__all__ = ["OrtFormat"]

_MOST_BYTES = 2**31 - 2**20
"""Offsets in the format have 31 bits; some room is left for what is not weights."""


class OrtFormat(OnnxRuntime):
    """onnxruntime with one execution provider, given ``model.ort`` instead of ONNX.

    The graph in the file is optimized already, for the architecture of the target; signed 8-bit
    activations are fused for ARM only, since x86 has no fast kernels for them. The same model gives
    the same bytes.
    """

    name: ClassVar[str] = "ort_format"
    engine: ClassVar[str] = "edgecompress.runtimes._ort_convert:OrtFormatEngine"

    def prepare(self, model: Model, folder: Path, profile: TargetProfile) -> Artifact:
        """Write ``model.ort``, and beside it the list of operators that it needs.

        Raises:
            OutputError: The folder cannot be written.
            MeasurementError: The model is too large for the format, or onnxruntime refuses it.
        """
        with ScratchFolder() as scratch:
            source, *data = model.save(scratch / "model.onnx")
            size = sum(file.stat().st_size for file in (source, *data))
            if size > _MOST_BYTES:
                raise MeasurementError(
                    f"the ORT format holds at most 2 GiB, the model has {size / 2**30:.2f} GiB",
                    where="ort_format",
                    cure="make it smaller first, or choose the runtime onnxruntime",
                )
            artifact = convert(self, source, folder, profile, arch=profile.device.arch)
        return Artifact(artifact.files, tuple(_notes(profile)))


def _notes(profile: TargetProfile) -> list[str]:
    notes = [
        f"{OPERATORS_FILE}, beside it, is for a build of onnxruntime with no operators but its own"
    ]
    if profile.device.arch != "aarch64":
        notes.append(
            "convolutions are not in x86's blocked layout, which would be for one kind of processor"
        )
    if profile.provider != "CPUExecutionProvider":
        notes.append(f"Q/DQ pairs were left as they are, for {profile.provider} to take")
    return notes
