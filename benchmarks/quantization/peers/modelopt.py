"""ModelOpt's ONNX quantizer on the CPU; what is not int8 stays float32 instead of float16."""

from functools import partial

from modelopt.onnx.quantization import quantize
from onnxruntime.quantization import CalibrationDataReader


class Reader(CalibrationDataReader):
    """Calibration rows as the peer asks for them."""

    def __init__(self, rows):
        self.all = rows
        self.rewind()

    def get_next(self):
        """The next row, or None behind the last."""
        return next(self.rows, None)

    def get_first(self):
        """The first row, without taking it."""
        return next(iter(self.all))

    def rewind(self):
        """Start again."""
        self.rows = iter(self.all)


def run(source, rows, output, mode, method, **options):
    quantize(
        source,
        quantize_mode=mode,
        calibration_method=method,
        calibration_data_reader=Reader(rows),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=output,
        **options,
    )


METHODS = {
    "int8 max": partial(run, mode="int8", method="max"),
    "int8 entropy": partial(run, mode="int8", method="entropy"),
    "int4 RTN": partial(run, mode="int4", method="rtn_dq", block_size=32),
    "int4 AWQ": partial(run, mode="int4", method="awq_clip", block_size=32),
}
