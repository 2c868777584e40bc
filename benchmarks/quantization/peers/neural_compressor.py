"""onnx-neural-compressor: static, dynamic, and weights alone in 4 bits."""

import onnx
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import (
    QuantFormat,
    algorithm_entry,
    config,
    quantize,
)


class Reader(data_reader.CalibrationDataReader):
    """Calibration rows as the peer asks for them."""

    def __init__(self, rows):
        self.all = rows
        self.rewind()

    def get_next(self):
        """The next row, or None behind the last."""
        return next(self.rows, None)

    def rewind(self):
        """Start again."""
        self.rows = iter(self.all)


def static(source, rows, output):
    options = config.StaticQuantConfig(
        calibration_data_reader=Reader(rows),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibration_sampling_size=len(rows),
    )
    quantize(source, output, options)


def dynamic(source, rows, output):
    quantize(source, output, config.DynamicQuantConfig(per_channel=True))


def round_to_nearest(source, rows, output):
    options = config.RTNConfig(weight_bits=4, weight_group_size=32)
    save(algorithm_entry.rtn_quantize_entry(source, options), output)


def gptq(source, rows, output):
    options = config.GPTQConfig(weight_bits=4, weight_group_size=32)
    save(algorithm_entry.gptq_quantize_entry(source, options, Reader(rows)), output)


def save(model, output):
    onnx.save(model, output)


METHODS = {
    "static": static,
    "dynamic": dynamic,
    "int4 RTN": round_to_nearest,
    "int4 GPTQ": gptq,
}
