"""A report with the figures of MobileNet v1 0.75: 28 convolutions, brought to int8."""

from __future__ import annotations

from typing import Any

from edgecompress.measure import Measurement
from edgecompress.report.data import Report

# Channels and strides of the 13 depthwise-separable blocks after the first convolution.
_BLOCKS = (
    [(24, 48, 1), (48, 96, 2), (96, 96, 1), (96, 192, 2), (192, 192, 1), (192, 384, 2)]
    + [(384, 384, 1)] * 5
    + [(384, 768, 2), (768, 768, 1)]
)
_MEASURED_RATES = {"dense": 47e3, "depthwise": 15e3, "int8": 2.4}


def _shapes() -> list[tuple[int, int, int]]:
    """Parameters, MACs and whether the convolution is depthwise (1), layer by layer."""
    side = 112
    shapes = [(3 * 24 * 9, 3 * 24 * 9 * side * side, 0)]
    for channels, wider, stride in _BLOCKS:
        side //= stride
        shapes.append((channels * 9, channels * 9 * side * side, 1))
        shapes.append((channels * wider, channels * wider * side * side, 0))
    return [*shapes, (768 * 1000, 768 * 1000, 0)]


def sample_layers() -> list[dict[str, Any]]:
    """The 28 convolutions with their bytes, SQNR and times before and after."""
    layers = []
    for i, (parameters, macs, depthwise) in enumerate(_shapes()):
        rate = _MEASURED_RATES["depthwise" if depthwise else "dense"]
        time = 9.0 + macs / rate
        layers.append(
            {
                "node": f"node_Conv_{558 + 2 * i}",
                "op": "Conv",
                "parameters": parameters,
                "macs": macs,
                "bytes_before": 4 * parameters,
                "bytes_after": parameters + 4 * (parameters // 96),
                "format": "int8 per channel",
                "sqnr_db": round(41.0 - 0.35 * i - (9.0 if depthwise else 0.0) + (i * 7 % 5), 1),
                "time_before_us": round(time, 1),
                "time_after_us": round(time / _MEASURED_RATES["int8"], 1),
            }
        )
    return layers


def sample_measurement(p50: float | None, ratio: float | None, **changes: Any) -> Measurement:
    """A measurement; with ``p50`` None one that says why there is no latency."""
    layers = sample_layers()
    is_float = ratio is None or ratio > 0.9
    key = "time_before_us" if is_float else "time_after_us"
    conv = "Conv" if is_float else "QLinearConv"
    times = [(layer["node"], conv, layer[key]) for layer in layers]
    if is_float:
        times += [(f"node_Clip_{i}", "Clip", 21.0 + i) for i in range(27)]
    else:
        times += [("input_quantize", "QuantizeLinear", 61.0), ("out", "DequantizeLinear", 3.1)]
    times += [("mean", "ReduceMean", 17.0), ("reshape", "Reshape", 2.2)]
    total = sum(time for _, _, time in times)
    values: dict[str, Any] = {
        "basis": "measured",
        "reason": None,
        "latency_ms": {
            "p50": p50,
            "p90": (p50 or 0.0) * 1.08,
            "p99": (p50 or 0.0) * 1.31,
            "min": (p50 or 0.0) * 0.97,
            "mean": (p50 or 0.0) * 1.02,
            "runs": 200,
            "warmup": 20,
            "cpu_min_ms": (p50 or 0.0) * 0.96,
        },
        "latency_ratio": ratio,
        "cpu_ratio": ratio,
        "load_ms": 21.4,
        "first_run_ms": 11.9,
        "peak_memory_mb": 61.3 if is_float else 44.8,
        "memory_over_runner_mb": 24.1 if is_float else 8.7,
        "size_bytes": 10_380_412,
        "operators": [
            {
                "name": name,
                "op": op,
                "provider": "CPUExecutionProvider",
                "mean_us": time,
                "share": time / total,
                "calls": 1,
            }
            for name, op, time in times
        ],
        "conditions": {
            "cpu": "Xeon with AVX-512 VNNI, 2 cores",
            "os": "Linux 6.1 x86_64",
            "runtime": "onnxruntime",
            "runtime_version": "1.31.1",
            "provider": "CPUExecutionProvider",
            "threads": 1,
            "inputs": {"x": [1, 3, 224, 224]},
            "quiet": False,
            "noise_note": "other programs used 34% of the processor",
        },
    }
    if p50 is None:
        values |= {
            "basis": "unknown",
            "reason": "the target is another device and none is attached",
            "latency_ms": None,
            "latency_ratio": None,
            "cpu_ratio": None,
            "load_ms": None,
            "first_run_ms": None,
            "peak_memory_mb": None,
            "memory_over_runner_mb": None,
            "operators": [],
            "conditions": None,
        }
    return Measurement.model_validate(values | changes)


def _step(name: str, status: str, **values: Any) -> dict[str, Any]:
    return {
        "name": name,
        "options": {},
        "status": status,
        "cached": False,
        "seconds": 1.0,
        "metric": None,
        "measurement": None,
        "changed": [],
        "skipped": [],
        "notes": {},
    } | values


def sample_steps() -> list[dict[str, Any]]:
    """Float model, clean-up, equalization (rolled back) and quantization."""
    layers = sample_layers()
    return [
        _step(
            "source",
            "source",
            seconds=6.21,
            size_bytes=10_380_412,
            metric=0.8489,
            measurement=sample_measurement(7.91, None),
        ),
        _step(
            "cleanup",
            "unchanged",
            reason="no batch normalization, dead code or foldable constant was found",
            cached=True,
            seconds=0.31,
            size_bytes=10_380_412,
            metric=0.8489,
            measurement=sample_measurement(7.93, 1.0),
            notes={"nodes": 57},
        ),
        _step(
            "equalize",
            "rolled back",
            reason="top1 fell by 0.0144, the budget allows 0.005",
            options={"method": "cross-layer", "iterations": 20},
            seconds=9.4,
            size_bytes=10_380_420,
            metric=0.8345,
            measurement=sample_measurement(7.88, 0.99),
            changed=[
                {
                    "node": layer["node"],
                    "op": "Conv",
                    "what": "ranges balanced with the next convolution",
                    "bytes_before": layer["bytes_before"],
                    "bytes_after": layer["bytes_before"],
                }
                for layer in layers[:12]
            ],
        ),
        _step(
            "quantize",
            "kept",
            options={
                "method": "mse",
                "rounding": "nearest",
                "bias_correction": True,
                "nodes": {"classifier*": False},
            },
            seconds=31.8,
            size_bytes=2_801_664,
            metric=0.85,
            measurement=sample_measurement(3.79, 0.48),
            changed=[
                {
                    "node": layer["node"],
                    "op": "Conv",
                    "what": "int8 weights per channel, uint8 activations",
                    "bytes_before": layer["bytes_before"],
                    "bytes_after": layer["bytes_after"],
                }
                for layer in layers
            ],
            skipped=[
                {
                    "node": "node_ReduceMean_614",
                    "op": "ReduceMean",
                    "reason": "the target's runtime has no integer kernel for ReduceMean",
                },
                {
                    "node": "node_Reshape_615",
                    "op": "Reshape",
                    "reason": "its input is float: the node before it was left alone",
                },
            ],
            notes={"predicted_sqnr_db": 27.4, "activations_observed": 56, "rows": 100},
        ),
    ]


def sample_report(**changes: Any) -> Report:
    """The report of a build that passed; ``changes`` replace its fields."""
    values: dict[str, Any] = {
        "tool": "edgecompress 0.1.0",
        "versions": {"python": "3.11.7", "onnxruntime": "1.31.1", "torch": "2.13.0"},
        "status": "passed",
        "source": {
            "path": "models/mobilenet_v1_075_224.onnx",
            "digest": "9f2c" * 16,
            "opset": 20,
            "size_bytes": 10_380_412,
            "parameters": 2_586_472,
            "macs": 325_441_024,
            "signature": {
                "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3, 224, 224]}],
                "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 1000]}],
            },
        },
        "target": "linux-x86-vnni",
        "data": {
            "calibration_source": "imagenet/calib",
            "calibration_rows": 100,
            "validation_source": "imagenet/eval",
            "validation_rows": 400,
            "digest": "77ab" * 16,
        },
        "metric": {"name": "top1", "higher_is_better": True, "rows": 400},
        "steps": sample_steps(),
        "layers": sample_layers(),
        "coverage": {"claimed": 52, "fused": 52, "unfused": {}},
        "budgets": [
            _budget("size_mb", 4.0, 2.801664, "MB"),
            _budget("metric_drop", 0.005, -0.0011, ""),
            _budget("latency_ms", 5.0, 3.79, "ms"),
            _budget("latency_ratio", 0.5, 0.48, "ratio"),
            _budget("memory_mb", 64.0, 44.8, "MB"),
        ],
        "files": [
            {"name": "model.onnx", "bytes": 2_801_664, "sha256": "1b7e" * 16},
            {"name": "manifest.json", "bytes": 4_120, "sha256": "c0de" * 16},
        ],
        "notes": ["the host was busy: trust the ratio, not the milliseconds"],
        "seconds": 52.6,
    }
    return Report.model_validate(values | changes)


def _budget(name: str, limit: float, value: float, unit: str) -> dict[str, Any]:
    return {
        "name": name,
        "limit": limit,
        "value": value,
        "unit": unit,
        "basis": "measured",
        "passed": True,
    }
