"""Networks of many kinds that the probes of the estimate know nothing of, with random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

__all__ = ["HELD_OUT"]


class _Residual(nn.Module):
    """What a part makes, added to its input."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return x + self.part(x)


def _conv(
    before: int, after: int, taps: int = 3, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    layer = nn.Conv2d(before, after, taps, stride, taps // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(after))


class UNet(nn.Module):
    """Three levels, with what the way down saw handed to the way up."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        down = ((3, width), (width, 2 * width), (2 * width, 4 * width))
        self.down = nn.ModuleList([self._block(*each) for each in down])
        up = ((6 * width, 2 * width), (3 * width, width))
        self.up = nn.ModuleList([self._block(*each) for each in up])
        self.last = nn.Conv2d(width, 2, 1)

    @staticmethod
    def _block(before: int, after: int) -> nn.Sequential:
        return nn.Sequential(_conv(before, after), nn.ReLU(), _conv(after, after), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        first = self.down[0](x)
        second = self.down[1](nn.functional.max_pool2d(first, 2))
        y = self.down[2](nn.functional.max_pool2d(second, 2))
        for block, seen in zip(self.up, (second, first), strict=True):
            larger = nn.functional.interpolate(y, scale_factor=2.0, mode="nearest")
            y = block(torch.cat([larger, seen], dim=1))
        return self.last(y)


class SqueezeExcite(nn.Module):
    """Channels weighed by what a small net makes of their means (Hu et al., 2018)."""

    def __init__(self, channels: int, narrow: int, gate: nn.Module) -> None:
        super().__init__()
        self.weigh = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, narrow, 1),
            nn.ReLU(),
            nn.Conv2d(narrow, channels, 1),
            gate,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x)


def _inverted(
    before: int, wide: int, after: int, taps: int, stride: int, *, act: nn.Module, gate: nn.Module
) -> nn.Module:
    """An inverted residual with squeeze and excitation."""
    part = nn.Sequential(
        *(_conv(before, wide, 1), act, _conv(wide, wide, taps, stride, groups=wide), act),
        *(SqueezeExcite(wide, max(8, wide // 4), gate), _conv(wide, after, 1)),
    )
    return _Residual(part) if stride == 1 and before == after else part


def _mobile(act: nn.Module, gate: nn.Module, stages: tuple[tuple[int, ...], ...]) -> nn.Module:
    first = stages[0][0]
    parts: list[nn.Module] = [_conv(3, first, stride=2), act]
    parts += [_inverted(*stage, act=act, gate=gate) for stage in stages]
    last = stages[-1][2]
    head = (_conv(last, 4 * last, 1), act, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*parts, *head, nn.Linear(4 * last, 1000))


def _mobilenet_v3() -> nn.Module:
    stages = (
        *((16, 64, 24, 3, 2), (24, 72, 24, 3, 1), (24, 72, 40, 5, 2), (40, 120, 40, 5, 1)),
        *((40, 240, 80, 3, 2), (80, 200, 80, 3, 1), (80, 480, 112, 3, 1), (112, 672, 160, 5, 2)),
        (160, 960, 160, 5, 1),
    )
    return _mobile(nn.Hardswish(), nn.Hardsigmoid(), stages)


def _efficientnet() -> nn.Module:
    stages = (
        *((32, 32, 16, 3, 1), (16, 96, 24, 3, 2), (24, 144, 24, 3, 1), (24, 144, 40, 5, 2)),
        *((40, 240, 80, 3, 2), (80, 480, 80, 3, 1), (80, 480, 112, 5, 1), (112, 672, 192, 5, 2)),
        (192, 1152, 192, 5, 1),
    )
    return _mobile(nn.SiLU(), nn.Sigmoid(), stages)


def _speech() -> nn.Module:
    """Convolutions over time, one of every three with a stride, as keyword spotters have them."""
    parts: list[nn.Module] = [nn.Conv1d(40, 128, 5, 2, 2), nn.ReLU()]
    for _ in range(5):
        deep = nn.Conv1d(128, 128, 9, padding=4, groups=128)
        wide = (nn.Conv1d(128, 128, 1), nn.BatchNorm1d(128), nn.ReLU())
        parts.append(_Residual(nn.Sequential(deep, *wide)))
    parts += [nn.Conv1d(128, 192, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(192, 12))


class Recurrent(nn.Module):
    """Two layers of a recurrent net, and a layer on every step."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.steps = kind(64, 96, num_layers=2, batch_first=True)
        self.last = nn.Linear(96, 32)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.steps(x)[0])


class Decoder(nn.Module):
    """Layers of a decoder with causal attention (norm first, SwiGLU), 512 wide."""

    def __init__(self, width: int = 512, heads: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([_DecoderLayer(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


class _DecoderLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.gate, self.up = nn.Linear(width, 3 * width), nn.Linear(width, 3 * width)
        self.down = nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, length, width = x.shape
        split = self.qkv(self.before(x)).view(rows, length, 3, self.heads, -1)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        seen = scores.masked_fill(hidden, -1e4).softmax(-1) @ v
        x = x + self.out(seen.transpose(1, 2).reshape(rows, length, width))
        y = self.between(x)
        return x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))


class Mixer(nn.Module):
    """Patches mixed along places and along channels in turn (Tolstikhin et al., 2021)."""

    def __init__(self, places: int = 196, width: int = 128, blocks: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * blocks)])
        self.along = nn.ModuleList([self._two(places, 64) for _ in range(blocks)])
        self.across = nn.ModuleList([self._two(width, 512) for _ in range(blocks)])
        self.last = nn.Linear(width, 1000)

    @staticmethod
    def _two(size: int, hidden: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x).flatten(2).transpose(1, 2)
        for block, (along, across) in enumerate(zip(self.along, self.across, strict=True)):
            first, second = self.norms[2 * block], self.norms[2 * block + 1]
            y = y + along(first(y).transpose(1, 2)).transpose(1, 2)
            y = y + across(second(y))
        return self.last(y.mean(1))


def _recommender() -> nn.Module:
    """Wide layers on sixteen candidates."""
    wide = (nn.Linear(768, 1024), nn.ReLU(), nn.Linear(1024, 512), nn.ReLU())
    return nn.Sequential(*wide, nn.Linear(512, 128), nn.ReLU(), nn.Linear(128, 1), nn.Sigmoid())


HELD_OUT: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "U-Net 96": (UNet, (1, 3, 96, 96)),
    "MobileNetV3-like 160": (_mobilenet_v3, (1, 3, 160, 160)),
    "EfficientNet-like 160": (_efficientnet, (1, 3, 160, 160)),
    "1-D speech": (_speech, (1, 40, 200)),
    "LSTM, 2 layers": (lambda: Recurrent(nn.LSTM), (1, 50, 64)),
    "GRU, 2 layers": (lambda: Recurrent(nn.GRU), (1, 50, 64)),
    "decoder 512, 64 tokens": (Decoder, (1, 64, 512)),
    "MLP-Mixer": (Mixer, (1, 3, 224, 224)),
    "recommender": (_recommender, (16, 768)),
}
"""What builds each, and the shape of its one float32 input."""
