"""What work on data may use: memory, a scratch folder, processes, a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Resources"]


@dataclass(frozen=True)
class Resources:
    """Results do not depend on them, but time and memory do.

    Attributes:
        memory: Bytes that weights and activations may take, about; None for no limit.
        scratch: Folder for temporary files; None for the system's.
        jobs: Shards of the rows, each in a process of its own.
        engine: A cluster for the shards: ``dask://host:port``, ``ray://host:port``,
            ``ray://local``; None for this machine.
    """

    memory: int | None = None
    scratch: Path | None = None
    jobs: int = 1
    engine: str | None = None
