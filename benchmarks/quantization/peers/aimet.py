"""AIMET's simulation on ONNX, exported as Q/DQ with biases in int32."""

from functools import partial
from pathlib import Path

import aimet_onnx
import onnx
from aimet_onnx.adaround.adaround_weight import Adaround
from aimet_onnx.cross_layer_equalization import equalize_model

ITERATIONS = 10_000
SETTINGS = Path(aimet_onnx.__file__).parent / "common" / "quantsim_config"


def run(source, rows, output, scheme="min_max", equalize=False, adaround=False):
    model = onnx.load(source)
    if equalize:
        equalize_model(model)
    sim = aimet_onnx.QuantizationSimModel(
        model,
        param_type=aimet_onnx.int8,
        activation_type=aimet_onnx.int8,
        quant_scheme=scheme,
        config_file=str(SETTINGS / "default_config_per_channel.json"),
        providers=["CPUExecutionProvider"],
    )
    batches = list(rows)
    if adaround:
        Adaround.apply_adaround(sim, batches, ITERATIONS)
    sim.compute_encodings(batches)
    onnx.save(sim.to_onnx_qdq(export_int32_bias=True, prequantize_constants=True), output)


METHODS = {
    "minmax": run,
    "TF-enhanced": partial(run, scheme="tf_enhanced"),
    "CLE": partial(run, scheme="tf_enhanced", equalize=True),
    "AdaRound": partial(run, scheme="tf_enhanced", adaround=True),
}
