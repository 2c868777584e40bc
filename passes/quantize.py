"""Static int8 quantization with QDQ pairs, placed so that the runtime fuses them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from edgecompress.graph_pass import Applied, Context, Pass
from edgecompress.model import Model
from edgecompress.quantization.activation_ranges import ActivationMethod
from edgecompress.quantization.rounding import RoundingMethod
from edgecompress.quantization.static import quantize_static
from edgecompress.quantization.static_tables import EmbeddingBits

__all__ = ["Quantize"]


@dataclass(frozen=True, kw_only=True)
class Quantize(Pass):
    """Static int8: weights per channel and symmetric, activations per tensor.

    ::

        x -> Conv -> Relu -> y
        x -> Q -> DQ -> Conv(DQ(int8 weight), DQ(int32 bias)) -> Relu -> Q -> DQ -> y

    Number formats come from the target (U8S8 on x86, S8S8 on ARM). Ranges of activations are
    computed in torch on the calibration rows, in constant memory.

    Attributes:
        activation_bits: 16 for W8A16, on targets that have kernels for it; for the whole graph.
        method: How activation ranges are chosen: ``minmax``, ``moving_average``, ``percentile``,
            ``entropy`` (least KL divergence), ``mse`` (least squared error of clipping and
            rounding), or ``auto``: for each activation the one of these with the least error
            behind the layers that read it.
        percentile: Share of the values that ``percentile`` keeps, in percent.
        weight_method: How weight scales are chosen: ``mse`` or ``minmax``.
        per_channel: A weight scale for each output channel; default: what the target takes.
        rounding: How weights are rounded: to the ``nearest`` integer, by ``gptq`` (each rounding
            error is made up for by the weights still free), ``adaround`` (up or down, trained for
            each layer) or ``learned`` (up or down, trained for whole blocks against the block of
            the float model).
        rounding_rows: Calibration rows that rounding looks at, about.
        rounding_iterations: Steps of ``adaround`` for each layer, of ``learned`` for each block.
        bias_correction: Shift biases so that each layer's mean output stays that of the float
            model.
        bias_rows: Calibration rows that the shift is measured on, about.
        embedding_bits: Of tables that Gather looks up in: 4, 8, 16 (float16), or false to leave
            them float. Default: 8, where the target takes that.
    """

    name: ClassVar[str] = "quantize"
    needs: ClassVar[Literal["nothing", "data"]] = "data"
    compresses: ClassVar[frozenset[str]] = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})

    activation_bits: Literal[8, 16] = 8
    method: ActivationMethod = "mse"
    percentile: Annotated[float, Field(gt=50, le=100)] = 99.999
    weight_method: Literal["mse", "minmax"] = "mse"
    per_channel: bool | None = None
    rounding: RoundingMethod = "nearest"
    rounding_rows: Annotated[int, Field(ge=1)] = 64
    rounding_iterations: Annotated[int, Field(ge=1)] | None = None
    bias_correction: bool = True
    bias_rows: Annotated[int, Field(ge=1)] = 64
    embedding_bits: EmbeddingBits = None

    def run(self, model: Model, context: Context) -> Applied:
        """Quantize every linear layer and join that the target runs on integers.

        Raises:
            PassError: The target has no integer kernels, the opset is too old, or the model is
                quantized already.
        """
        return quantize_static(model, context, self.for_node, activation_bits=self.activation_bits)
