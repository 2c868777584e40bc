"""Least squares with coefficients that are not negative (Lawson and Hanson, 1974, chapter 23)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

__all__ = ["nonnegative", "left_out"]

_STEPS = 20


def nonnegative(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The ``x >= 0`` with the least ``|a x - b|``; ``a`` is [rows, columns], ``b`` is [rows]."""
    import numpy as np

    size = np.linalg.norm(a, axis=0)
    size[size == 0] = 1.0
    a = a / size
    # The little bit on the diagonal tells columns apart that are alike.
    gram, target = a.T @ a + 1e-12 * np.eye(a.shape[1]), a.T @ b
    x = np.zeros(a.shape[1])
    active = np.zeros(a.shape[1], dtype=bool)
    tolerance = 1e-10 * max(1.0, float(np.abs(target).max(initial=0.0)))
    for _ in range(_STEPS * a.shape[1]):
        gradient = np.where(active, -np.inf, target - gram @ x)
        best = int(gradient.argmax())
        if gradient[best] <= tolerance:
            break
        active[best] = True
        x = _descend(gram, target, x, active)
    found: npt.NDArray[np.float64] = x / size
    return found


def _descend(
    gram: npt.NDArray[np.float64],
    target: npt.NDArray[np.float64],
    x: npt.NDArray[np.float64],
    active: npt.NDArray[np.bool_],
) -> npt.NDArray[np.float64]:
    """The best ``x`` on the active columns; those that would become negative are taken out."""
    import numpy as np

    while True:
        wanted = np.zeros_like(x)
        part = gram[np.ix_(active, active)]
        wanted[active] = np.linalg.solve(part, target[active])
        below = active & (wanted <= 0)
        if not below.any():
            return wanted
        steps = x[below] / np.maximum(x[below] - wanted[below], 1e-300)
        x = x + float(steps.min()) * (wanted - x)
        active &= x > 1e-14
        x = np.where(active, x, 0.0)


def left_out(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], x: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """For each row, what the fit to all the others predicts for it.

    In closed form, from the diagonal of the hat matrix, for the columns that the fit ``x`` to all
    rows makes use of.
    """
    import numpy as np

    used = a[:, x > 0]
    hat = np.einsum("ij,ji->i", used, np.linalg.pinv(used))
    predicted = a @ x
    free = hat < 1 - 1e-6  # a row that alone tells a coefficient is predicted by nothing
    return np.where(free, (predicted - hat * b) / np.where(free, 1 - hat, 1.0), predicted)
