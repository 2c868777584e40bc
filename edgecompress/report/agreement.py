"""Agreement of outputs in words."""

from __future__ import annotations

from collections.abc import Iterator

from edgecompress.agreement import Agreement
from edgecompress.report import format as fmt

__all__ = ["departure_lines"]


def departure_lines(found: Agreement) -> Iterator[str]:
    """How far the outputs are from the reference, and where it begins; nothing where they agree."""
    if found.passed:
        return
    worst = found.worst
    yield (
        f"output {worst.name} departs from {found.reference}: relative error "
        f"{fmt.number(worst.relative_error, 3)}, cosine {fmt.number(worst.cosine, 3)}; "
        f"allowed are {fmt.brief(fmt.number(found.allowed, 2))} ({found.basis})"
    )
    if found.divergence is not None:
        at = found.divergence
        yield f"first at {at.op} {at.node}: {at.detail}"
