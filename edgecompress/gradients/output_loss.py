"""What a change of a model's outputs costs, and probes that let one backward pass tell it.

For a small change dz of an output z the loss is a quadratic form, ``dz' F dz / 2``:

- ``kl``: Kullback-Leibler divergence of softmax(z + dz) from softmax(z), where F is the Fisher
  matrix ``diag(p) - p p'``. Its first-order term is zero, since z is where it is least.
- ``squared``: squared error relative to z, ``|dz|^2 / |z|^2``.

With random signs u and ``F = B B'``, the probe ``v = B u`` has ``E[(v . dz)^2] = dz' F dz``
(Hutchinson; Schraudolph, "Fast curvature matrix-vector products", 2002). Let v be what is
backpropagated: then ``E[(g . dy)^2] / 2`` is the loss of a change dy of any value inside the
network, where g is what arrives there. One backward pass tells it of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor

from edgecompress.data.calibration import Batch, CalibrationSet
from edgecompress.data.token_mask import position_mask
from edgecompress.model import DEFAULT_DOMAINS, Model

__all__ = ["LossKind", "OutputLoss", "output_losses", "probe"]

LossKind = Literal["kl", "squared"]


@dataclass(frozen=True)
class OutputLoss:
    """Where a loss is taken, and which.

    Attributes:
        value: A graph output, or the input of the softmax that makes it.
        kind: ``kl`` for logits, ``squared`` for anything else.
        axis: Of the classes; only for ``kl``.
    """

    value: str
    kind: LossKind
    axis: int = -1


def output_losses(
    model: Model, data: CalibrationSet, kind: LossKind | None = None
) -> list[OutputLoss]:
    """A loss for each floating-point output.

    Args:
        model: The graph.
        data: Its labels tell classes from other numbers.
        kind: Which for all of them. Default: ``kl`` for what comes from a softmax, is called
            "logits", or where rows are labelled with class numbers below its last dimension;
            ``squared`` for all others.
    """
    classes = _most_classes(data)
    found = []
    for value in model.ir.graph.outputs:
        if value.dtype is not None and not value.dtype.is_floating_point():
            continue
        node = value.producer()
        softmax = node is not None and node.op_type in ("Softmax", "LogSoftmax")
        if node is not None and softmax and node.domain in DEFAULT_DOMAINS and kind != "squared":
            source = node.inputs[0]
            default = -1 if model.opset >= 13 else 1
            attribute = node.attributes.get("axis")
            axis = default if attribute is None else attribute.as_int()
            found.append(OutputLoss("" if source is None else source.name or "", "kl", axis))
            continue
        chosen: LossKind = "kl" if _is_logits(value, classes) else "squared"
        found.append(OutputLoss(value.name or "", kind or chosen))
    return found


def _most_classes(data: CalibrationSet) -> int | None:
    """The least number of classes that integer labels speak of."""
    split: Literal["validation", "calibration"]
    split = "validation" if data.validation_rows else "calibration"
    labels = data.labels(split)
    if labels is None or labels.dtype.kind not in "iu" or labels.size == 0:
        return None
    return int(labels.max()) + 1


def _is_logits(value: ir.Value, classes: int | None) -> bool:
    if "logits" in (value.name or "").lower():
        return True
    size = value.shape[-1] if value.shape is not None and len(value.shape) > 1 else None
    return classes is not None and isinstance(size, int) and size >= max(classes, 2)


def probe(loss: OutputLoss, value: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
    """What to backpropagate from an output: squared and halved, its products are the loss.

    Args:
        loss: Which.
        value: The output, float.
        batch: The rows that it came from. The loss is the sum over rows of the mean over what is
            predicted for each: one row of a classifier, the real positions of a sequence.
        generator: Of the random signs; on the CPU.

    Returns:
        float of the shape of ``value``.
    """
    value = value.detach().float()
    signs = torch.randint(0, 2, value.shape, generator=generator).to(value) * 2 - 1
    real = torch.ones((), dtype=value.dtype, device=value.device)
    if batch.mask is not None:
        mask = position_mask(tuple(value.shape), torch.from_numpy(batch.mask))
        real = real if mask is None else mask.to(value)
    by_row = value.dim() > 0 and value.shape[0] == batch.rows
    rows, share = (value.shape[0], 1) if by_row else (1, batch.rows)
    if loss.kind == "kl" and value.dim() > 0:
        p = torch.softmax(value, loss.axis)
        drawn = p.sqrt() * signs
        drawn = (drawn - p * drawn.sum(loss.axis, keepdim=True)) * real
        real = real.expand(value.shape)
        predicted = real.select(loss.axis, 0).reshape(rows, -1).sum(1)
        scale = (share / predicted.clamp(min=1)).sqrt()
    else:
        drawn = signs * real
        power = (value * real).reshape(rows, -1).square().sum(1)
        scale = torch.where(power > 0, (2 * share / power.clamp(min=1e-30)).sqrt(), 0.0)
    scale = scale.reshape(rows, *[1] * (max(value.dim(), 1) - 1))
    return (drawn * scale).reshape(value.shape)
