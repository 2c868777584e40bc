"""NNCF on ONNX files, for post-training quantization and for weights alone."""

import tempfile
from functools import partial

import nncf
import onnx
from onnxruntime.quantization.shape_inference import quant_pre_process


def quantize(source, rows, output, **options):
    dataset = nncf.Dataset(list(rows))
    model = nncf.quantize(onnx.load(source), dataset, subset_size=len(rows), **options)
    onnx.save(model, output)


def weights(source, rows, output, **options):
    # NNCF refuses a weight that is computed from an initializer, as tied embeddings are: fold it.
    with tempfile.TemporaryDirectory() as folder:
        folded = f"{folder}/folded.onnx"
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        model = onnx.load(folded)
    onnx.save(nncf.compress_weights(model, **options), output)


METHODS = {
    "default": quantize,
    "mixed preset": partial(quantize, preset=nncf.QuantizationPreset.MIXED),
    "full bias correction": partial(quantize, fast_bias_correction=False),
    "transformer": partial(quantize, model_type=nncf.ModelType.TRANSFORMER),
    "weights int8": partial(weights, mode=nncf.CompressWeightsMode.INT8_ASYM),
    "weights int4": partial(
        weights, mode=nncf.CompressWeightsMode.INT4_SYM, group_size=32, ratio=1.0
    ),
}
