"""What torch.onnx.export makes of small networks goes through the bridge at another batch size."""

from __future__ import annotations

import warnings

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from edgecompress.model import Model
from edgecompress.torchgraph import to_torch


class Decoder(nn.Module):
    """Group norm, transposed convolution and resizing, as in a small U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.norm = nn.GroupNorm(4, 8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = nn.functional.silu(self.norm(self.down(x)))
        wide = nn.functional.interpolate(low, scale_factor=2.0, mode="bilinear")
        return self.head(torch.cat([self.up(low), wide], 1))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    return layer.eval()


@pytest.mark.parametrize(
    ("module", "shape", "opset"),
    [
        pytest.param(encoder(), (5, 16), 18, marks=pytest.mark.slow),
        (encoder(), (5, 16), 23),
        (Decoder(), (3, 8, 8), 20),
    ],
    ids=["encoder-18", "encoder-23", "decoder-20"],
)
def test_an_export_agrees_with_onnxruntime_and_trains(
    module: nn.Module, shape: tuple[int, ...], opset: int
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(
            module,
            (torch.randn(2, *shape),),
            dynamo=True,
            opset_version=opset,
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    graph = to_torch(Model(ir.from_proto(proto)))
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (expected,) = session.run(None, {graph.input_names[0]: x})
    (got,) = graph({graph.input_names[0]: torch.from_numpy(x)}).values()
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    got.square().sum().backward()
    assert all(p.grad is not None for p in graph.parameters())
    assert len(list(graph.parameters())) >= 8
