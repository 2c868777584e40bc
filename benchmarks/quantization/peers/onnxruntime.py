"""onnxruntime's own quantizers, with the calls of its documentation."""

import tempfile
from contextlib import contextmanager
from functools import partial

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from onnxruntime.quantization.shape_inference import quant_pre_process


class Reader(CalibrationDataReader):
    """Calibration rows as the peer asks for them."""

    def __init__(self, rows):
        self.rows = iter(rows)

    def get_next(self):
        """The next row, or None behind the last."""
        return next(self.rows, None)


@contextmanager
def prepared(source):
    with tempfile.TemporaryDirectory() as folder:
        file = f"{folder}/prepared.onnx"
        try:
            quant_pre_process(source, file)
        except Exception:
            # Its symbolic shape inference gives up on some transformers; the message says to skip.
            quant_pre_process(source, file, skip_symbolic_shape=True)
        yield file


def dynamic(source, rows, output, per_channel=False):
    with prepared(source) as file:
        quantize_dynamic(file, output, per_channel=per_channel)


def static_default(source, rows, output):
    with prepared(source) as file:
        quantize_static(file, output, Reader(rows))


def static(source, rows, output, method):
    with prepared(source) as file:
        quantize_static(
            file,
            output,
            Reader(rows),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
        )


def nbits(source, rows, output, bits):
    config = DefaultWeightOnlyQuantConfig(block_size=32, bits=bits)
    quantizer = MatMulNBitsQuantizer(onnx.load(source), algo_config=config)
    quantizer.process()
    quantizer.model.save_model_to_file(output)


METHODS = {
    "dynamic": dynamic,
    "dynamic per channel": partial(dynamic, per_channel=True),
    "static defaults": static_default,
    "static minmax": partial(static, method="MinMax"),
    "static entropy": partial(static, method="Entropy"),
    "static percentile": partial(static, method="Percentile"),
    "int4": partial(nbits, bits=4),
    "int8": partial(nbits, bits=8),
}
