"""A torch module as a source: ``edgecompress build examples/torch_module.py:build``.

The callable returns the module, with its weights, and example inputs. A real one would read its
weights by ``edgecompress.sources.load_checkpoint("weights.pth")``, which runs no code of the file.
"""

from __future__ import annotations

import torch
from torch import nn


class Residual(nn.Module):
    """Two depthwise-separable convolutions with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU6(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return ``x + body(x)``, ``[N, C, H, W]``."""
        out: torch.Tensor = x + self.body(x)
        return out


class SmallNet(nn.Module):
    """A classifier of 32 x 32 images: stem, two residual blocks, mean over space, linear head."""

    def __init__(self, channels: int = 16, classes: int = 10) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, channels, 3, stride=2, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            Residual(channels),
            Residual(channels),
        )
        self.head = nn.Linear(channels, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return the logits, ``[N, classes]``, of images ``[N, 3, 32, 32]``."""
        logits: torch.Tensor = self.head(self.features(image).mean(dim=(2, 3)))
        return logits


def build() -> tuple[nn.Module, tuple[torch.Tensor, ...]]:
    """Make the module and one example image."""
    generator = torch.Generator().manual_seed(0)
    module = SmallNet()
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
            values = torch.randn(parameter.shape, generator=generator) / fan_in**0.5
            parameter.copy_(values if parameter.dim() > 1 else 1 + 0.1 * values)
    return module, (torch.rand(1, 3, 32, 32, generator=generator),)
