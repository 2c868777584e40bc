"""What a low rank is to approximate: one problem for all wishes."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

from edgecompress.numerics.gram import Gram

__all__ = ["Kind", "Problem", "inner", "objective"]

Kind = Literal["input_agnostic", "input_aware", "shift_aware", "anchored", "mixed"]


class Problem(NamedTuple):
    """What :class:`LowRank` is made of: ``LowRank(*problem)``.

    Attributes:
        target: float64 [groups, m, n], T; None where it is ``weight S``.
        gram: S.
        power: float64 [groups], p; None: of what W' can reach, so that full rank has no error.
        weight: float64 [groups, m, n] of which outputs are wanted, where target is None.
    """

    target: Tensor | None
    gram: Gram
    power: Tensor | None
    weight: Tensor | None = None


def objective(
    weight: Tensor,
    gram: Tensor | Gram,
    *,
    kind: Kind,
    cross: Tensor | None = None,
    target: Tensor | None = None,
    power: Tensor | None = None,
    mix: float = 1.0,
    damping: float = 0.0,
) -> Problem:
    """What is to be approximated.

    What the gram is damped by, and what its eigenvalues are lifted by, counts at the weight
    itself: it adds ``|(W - W') D|^2`` to the error, so that factors stay near the weight where no
    input was seen.

    Args:
        weight: float [groups, m, n].
        gram: [groups, n, n], mean of ``b b^T``; for ``input_aware`` of the original inputs, else
            of the inputs behind what was compressed; not read for ``input_agnostic``. As
            :class:`Gram` where layers share an input, and then with its own damping.
        kind: See ``edgecompress.factorization.parts.Objective``; ``input_aware`` and
            ``shift_aware`` differ in the gram alone.
        cross: [groups, n, n], mean of ``a b^T``, a the input in the original graph; for
            ``anchored`` and ``mixed``, where ``target`` is not given.
        target: [groups, m, n], mean of ``y b^T``, y the output in the original graph.
        power: [groups] or [groups, m], mean of ``y^2`` for ``anchored`` and ``mixed``; without it
            errors leave out what no W' can reach.
        mix: Share of the original outputs, for ``mixed``: 1 is ``anchored``, 0 ``shift_aware``.
        damping: See :class:`Gram`, where ``gram`` is a tensor.

    Raises:
        ValueError: There is neither ``target`` nor ``cross``, and the kind needs one.
    """
    weight = weight.double()
    if kind == "input_agnostic":
        groups, _, columns = weight.shape
        return Problem(None, Gram.identity(groups, columns, weight.device), None, weight)
    gram = gram if isinstance(gram, Gram) else Gram(gram, damping=damping)
    share = {"anchored": 1.0, "mixed": mix}.get(kind, 0.0)
    if share == 0:
        return Problem(None, gram, None, weight)
    if target is None:
        if cross is None:
            raise ValueError(f"expected target or cross for {kind}, got neither")
        target = weight @ cross.double()
    target = target.double()
    wanted = gram.lifted(weight)
    if power is not None:
        power = share**2 * power.double().reshape(len(weight), -1).sum(1) + inner(wanted, weight)
    if share < 1:
        own = gram.product(weight)
        if power is not None:
            power += 2 * share * (1 - share) * inner(target, weight)
            power += (1 - share) ** 2 * inner(own, weight)
        wanted.add_(own, alpha=1 - share)
    return Problem(wanted.add_(target, alpha=share), gram, power)


def inner(first: Tensor, second: Tensor) -> Tensor:
    """Sums of elementwise products, [groups]."""
    return (first * second).sum((1, 2))
