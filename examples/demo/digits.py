"""A small CNN for scikit-learn's handwritten digits: 1,797 real scans of 8 x 8 pixels.

``python digits.py`` trains it in seconds and saves weights and data; ``digits.py:model`` in a
recipe names the function that builds it again from the saved weights.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from edgecompress.sources import load_checkpoint

OUTPUT = Path(__file__).resolve().parents[2] / "demo-output"
SEED = 0
EPOCHS = 5


def network() -> nn.Module:
    """Four convolutions with batch normalization, mean over space, one linear layer."""
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, 32, 1), (32, 64, 1), (64, 128, 2), (128, 128, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10))


def model() -> tuple[nn.Module, tuple[Tensor, ...]]:
    """The trained network and an example input: what a recipe's ``[source]`` asks for."""
    net = network()
    net.load_state_dict(load_checkpoint(OUTPUT / "digits.pt"))
    return net.eval(), (torch.zeros(2, 1, 8, 8),)


def scans() -> tuple[Tensor, Tensor]:
    """Images in 0..1, [1797, 1, 8, 8], and their digits, shuffled."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.target))
    images = torch.from_numpy(digits.images[order]).float().unsqueeze(1) / 16
    return images, torch.from_numpy(digits.target[order])


def train() -> None:
    """Train on 1,297 scans; keep 500 that the network never saw for validation."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)  # so small a network gains nothing from more
    images, labels = scans()
    seen = len(images) - 500
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1e-2, total_steps=EPOCHS * -(-seen // 64)
    )
    net.train()
    for _ in range(EPOCHS):
        for rows in torch.split(torch.randperm(seen), 64):
            loss = nn.functional.cross_entropy(net(images[rows]), labels[rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
    net.eval()
    with torch.inference_mode():
        correct = (net(images[seen:]).argmax(1) == labels[seen:]).float().mean()
    OUTPUT.mkdir(exist_ok=True)
    torch.save(net.state_dict(), OUTPUT / "digits.pt")
    np.savez(OUTPUT / "train.npz", images=images[:seen].numpy(), digits=labels[:seen].numpy())
    np.savez(OUTPUT / "unseen.npz", images=images[seen:].numpy(), digits=labels[seen:].numpy())
    print(f"trained on {seen} scans; {correct:.1%} of the 500 unseen ones are right")


if __name__ == "__main__":
    train()
