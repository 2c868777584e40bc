"""What a device demands of a graph, in the words that passes use.

A target profile is translated into :class:`Constraints`; passes see nothing else of the device.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["Constraints", "HalfFormat", "Int8Format", "WeightOnlyFormat"]


@dataclass(frozen=True)
class Int8Format:
    """The 8-bit number formats that the device's integer kernels take.

    Attributes:
        activation: Type of activations. U8S8 is the fast pair on x86 with VNNI, S8S8 on ARM; 16
            bits where a pass was asked for them.
        weight: Type of weights; always symmetric (zero point 0).
        activation_symmetric: Whether the activations' zero point must be the middle of the range.
        per_channel: Whether a scale per output channel is taken for weights.
        weight_bits: 8, or 7 where the kernel's 16-bit partial sums saturate with full-range
            weights (``vpmaddubsw`` on x86 without VNNI).
    """

    activation: Literal["uint8", "int8", "uint16", "int16"] = "uint8"
    weight: Literal["int8"] = "int8"
    activation_symmetric: bool = False
    per_channel: bool = True
    weight_bits: Literal[7, 8] = 8


@dataclass(frozen=True)
class WeightOnlyFormat:
    """How the runtime takes weights that are integers while activations are float.

    Attributes:
        layout: ``nbits`` is onnxruntime's MatMulNBits and GatherBlockQuantized (com.microsoft),
            whose kernels read packed weights; ``qdq`` is a blockwise DequantizeLinear (opset 21).
        bits: Widths that the layout takes, in ascending order.
        block_sizes: Weights that share a scale, in ascending order.
        embedding_bits: Widths of embedding tables that Gather reads; empty where they stay float.
    """

    layout: Literal["nbits", "qdq"] = "qdq"
    bits: tuple[int, ...] = (4, 8)
    block_sizes: tuple[int, ...] = (16, 32, 64, 128, 256)
    embedding_bits: tuple[int, ...] = (4, 8)


@dataclass(frozen=True)
class HalfFormat:
    """16-bit floating point on the device.

    Attributes:
        dtype: Type that the runtime computes in, or only stores.
        native: Whether the kernels compute in it. Where false, weights are stored in it and cast
            when the model is loaded or run: the file is smaller, and nothing is faster.
        float32_ops: Operators that the runtime has no kernel of this type for; they stay float32.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"
    native: bool = False
    float32_ops: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Constraints:
    """What passes must respect so that the target's runtime takes and speeds up the result.

    Attributes:
        int8: Integer formats, or None where the device has no integer kernels.
        int8_ops: Operators that the runtime runs on integers when Q/DQ surround them.
        int8_everywhere: Whether the device wants integers wherever it takes them, as accelerators
            do for which each float node is a change of processor. Else only chains of layers.
        slow_shallow_convs: Whether convolutions with few input channels in a group run slower on
            integers than in float, so that those at the front of a network had better stay float.
        split_residual_norms: Whether a normalization behind a residual Add runs faster than the
            runtime's kernel for both.
        wide_activation: Type of 16-bit activations beside 8-bit weights (W8A16), or None where the
            device has no kernels for them.
        dynamic_int8: Whether the runtime has integer kernels for layers whose activations are
            quantized while the model runs (DynamicQuantizeLinear, MatMulInteger).
        weight_only: How weights alone may be integers, or None where they may not.
        half: 16-bit floating point, or None where the runtime does not take it.
        rank_multiple: Kernels take as long for a width between two multiples of it as for the upper
            one, or longer: so the width between two factors of a weight had better be a multiple.
        opset_min: Lowest ONNX opset that the runtime takes.
        opset_max: Highest ONNX opset that the runtime takes.
    """

    int8: Int8Format | None = Int8Format()
    int8_ops: frozenset[str] = frozenset()
    int8_everywhere: bool = False
    slow_shallow_convs: bool = False
    split_residual_norms: bool = False
    wide_activation: Literal["uint16", "int16"] | None = None
    dynamic_int8: bool = False
    weight_only: WeightOnlyFormat | None = WeightOnlyFormat()
    half: HalfFormat | None = HalfFormat()
    rank_multiple: int = 1
    opset_min: int = 13
    opset_max: int = 23
