"""The best file of a search that is under way, in the cache: a search that is killed leaves it."""

from __future__ import annotations

import json

from edgecompress import files
from edgecompress.errors import OutputError
from edgecompress.search.trials import Trial
from edgecompress.workbench import Workbench

__all__ = ["keep_best"]

_MODEL = "model.onnx"
_FACTS = "manifest.json"  # moves in last: see files


def keep_best(bench: Workbench, trial: Trial) -> None:
    """Write a trial's model and figures to ``best-<digest of the float model>`` in the cache.

    Where it cannot be written, the cache says so and the search goes on.
    """
    if bench.folder is None or trial.model is None:
        return
    place = bench.folder / f"best-{bench.source.digest[:12]}"
    try:
        with files.folder_aside(place, owned=(_MODEL, f"{_MODEL}.data")) as aside:
            trial.model.save(aside / _MODEL)
            best = trial.report().model_dump(mode="json", exclude={"status", "reason"})
            files.write_text(aside / _FACTS, json.dumps(best, indent=2) + "\n")
    except OutputError as error:
        bench.cache.trouble = bench.cache.trouble or f"the best so far is not kept: {error.what}"
