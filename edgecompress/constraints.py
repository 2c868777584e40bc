"""What a device demands of a graph, in the words that passes use.

A target profile is translated into :class:`Constraints`; passes see nothing else of the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Constraints", "Int8Format"]


@dataclass(frozen=True)
class Int8Format:
    """The 8-bit number formats that the device's integer kernels take.

    Attributes:
        activation: Type of activations. U8S8 is the fast pair on x86 with VNNI, S8S8 on ARM.
        weight: Type of weights; always symmetric (zero point 0).
        activation_symmetric: Whether the activations' zero point must be the middle of the range.
        per_channel: Whether a scale per output channel is taken for weights.
        weight_bits: 8, or 7 where the kernel's 16-bit partial sums saturate with full-range
            weights (``vpmaddubsw`` on x86 without VNNI).
    """

    activation: Literal["uint8", "int8"] = "uint8"
    weight: Literal["int8"] = "int8"
    activation_symmetric: bool = False
    per_channel: bool = True
    weight_bits: Literal[7, 8] = 8


@dataclass(frozen=True)
class Constraints:
    """What passes must respect so that the target's runtime takes and speeds up the result.

    Attributes:
        int8: Integer formats, or None where the device has no integer kernels.
        int8_ops: Operators that the runtime runs on integers when Q/DQ surround them.
        opset_min: Lowest ONNX opset that the runtime takes.
        opset_max: Highest ONNX opset that the runtime takes.
    """

    int8: Int8Format | None = Int8Format()
    int8_ops: frozenset[str] = frozenset()
    opset_min: int = 13
    opset_max: int = 23
