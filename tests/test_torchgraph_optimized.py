"""Graphs as onnxruntime's optimizers leave them run in the bridge with the same result."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from edgecompress.model import Model
from edgecompress.torchgraph import as_tensors, to_torch

Feeds = dict[str, np.ndarray]
_IDS = np.random.default_rng(0).integers(0, 50, (3, 6))
_MASK = np.ones_like(_IDS)
_MASK[0, 4:] = 0
_FEEDS = {"input_ids": _IDS, "attention_mask": _MASK, "token_type_ids": _IDS % 2}


class Encoder(nn.Module):
    """A BERT with random weights, its inputs by position."""

    def __init__(self) -> None:
        super().__init__()
        transformers = pytest.importorskip("transformers")
        torch.manual_seed(0)
        self.bert = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=50,
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                max_position_embeddings=40,
                attn_implementation="eager",
            )
        ).eval()

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, kinds: torch.Tensor) -> torch.Tensor:
        return self.bert(ids, mask, kinds).last_hidden_state


@pytest.fixture(scope="module")
def quiet() -> Iterator[None]:
    """Exporter and optimizer warn of their own deprecations and log at length."""
    logging.disable(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, quiet: None) -> Path:
    path = tmp_path_factory.mktemp("encoder") / "encoder.onnx"
    ids, mask, kinds = (torch.from_numpy(a) for a in _FEEDS.values())
    torch.onnx.export(
        Encoder(),
        (ids, mask, kinds),
        str(path),
        dynamo=False,
        opset_version=17,
        input_names=list(_FEEDS),
        output_names=["y"],
        dynamic_axes={name: {0: "batch", 1: "length"} for name in _FEEDS},
    )
    return path


def rewritten(path: Path) -> Path:
    """The graph that onnxruntime makes of a file before it runs it."""
    out = path.with_suffix(".optimized.onnx")
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(out)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return out


def assert_runs(path: Path, feeds: Feeds, operators: set[str], tolerance: float) -> None:
    """The operators are there, and no result is further away than a part of the largest one."""
    assert operators <= {node.op_type for node in onnx.load(path).graph.node}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    runtime = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        results = to_torch(Model(ir.load(path)))(as_tensors(feeds))
    for got, expected in zip(results.values(), runtime.run(None, feeds), strict=True):
        limit = tolerance * np.abs(expected).max()
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=limit)


def test_an_encoder_that_the_session_optimized(encoder: Path) -> None:
    assert_runs(rewritten(encoder), _FEEDS, {"FusedMatMul", "BiasGelu"}, 1e-5)


@pytest.fixture(scope="module")
def fused(encoder: Path) -> Path:
    from onnxruntime.transformers.optimizer import optimize_model

    model = optimize_model(str(encoder), model_type="bert", num_heads=4, hidden_size=32)
    path = encoder.with_name("fused.onnx")
    model.save_model_to_file(str(path))
    return path


def test_an_encoder_that_the_offline_optimizer_fused(fused: Path) -> None:
    assert_runs(
        fused,
        _FEEDS,
        {"Attention", "EmbedLayerNormalization", "SkipLayerNormalization", "BiasGelu"},
        1e-5,
    )


def test_every_weight_of_a_fused_encoder_has_a_gradient(fused: Path) -> None:
    graph = to_torch(Model(ir.load(fused)))
    (y,) = graph(as_tensors(_FEEDS)).values()
    y[:, 0].square().sum().backward()
    weights = graph.parameters_by_initializer
    assert len(weights) >= 16  # equal biases have become one
    assert [name for name, w in weights.items() if w.grad is None or not w.grad.any()] == []


def test_a_dynamically_quantized_encoder(fused: Path) -> None:
    """A rounding of an activation may fall to the other side, which moves it by a step in 255."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = fused.with_name("dynamic.onnx")
    options = {"DefaultTensorType": onnx.TensorProto.FLOAT}
    quantize_dynamic(fused, path, weight_type=QuantType.QInt8, extra_options=options)
    assert_runs(rewritten(path), _FEEDS, {"QAttention", "DynamicQuantizeMatMul"}, 0.02)


@pytest.mark.parametrize(
    ("file", "size", "form", "operators"),
    [
        ("resnet20_cifar10.onnx", 32, "QOperator", {"QLinearConv", "QLinearAdd"}),
        ("mobilenet_v1_075_224.onnx", 224, "QDQ", {"QLinearConv"}),
    ],
)
def test_a_network_of_integer_operators(
    shared: Callable[[str], Path],
    tmp_path: Path,
    quiet: None,
    file: str,
    size: int,
    form: str,
    operators: set[str],
) -> None:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

    source = shared(file)
    name = onnx.load(source).graph.input[0].name
    x = np.random.default_rng(0).normal(size=(2, 3, size, size)).astype(np.float32)

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{name: x}])

        def get_next(self) -> Feeds | None:
            return next(self.rows, None)

    path = tmp_path / "integers.onnx"
    quantize_static(source, path, Rows(), quant_format=QuantFormat[form], per_channel=True)
    assert_runs(rewritten(path), {name: x}, operators, 1e-5)


def test_a_float_network_with_fused_activations(
    shared: Callable[[str], Path], tmp_path: Path
) -> None:
    path = tmp_path / "resnet.onnx"
    path.write_bytes(shared("resnet20_cifar10.onnx").read_bytes())
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    name = onnx.load(path).graph.input[0].name
    assert_runs(rewritten(path), {name: x}, {"FusedConv"}, 1e-5)
