"""The side of the agent that asks."""

from __future__ import annotations

import contextlib
import math
import shlex
import tempfile
from pathlib import Path
from subprocess import TimeoutExpired
from types import TracebackType
from typing import TYPE_CHECKING, Any

from edgecompress.errors import MeasurementError
from edgecompress.runtimes._faults import death
from edgecompress.runtimes._peer import PipePeer

if TYPE_CHECKING:
    import numpy.typing as npt

    from edgecompress.devices import Arrays
    from edgecompress.devices._agent_host import AgentHost

__all__ = ["AgentPeer", "PROGRAM"]

PROGRAM = "agent"
"""Name of the agent in the scratch folder."""

_FAREWELL_S = 2.0
_SHELL = 128  # what a shell adds to the number of the signal that ended its command


class AgentPeer(PipePeer):
    """A running agent, with one model loaded; made by :meth:`AgentHost.start`.

    Attributes:
        folder: On the device, for its files.
    """

    def __init__(
        self,
        host: AgentHost,
        name: str,
        *,
        where: str,
        timeout_seconds: float,
        trace: Path | None,
    ) -> None:
        self._host, self._link, self._trace = host, host.link, trace
        self.folder = f"{host.link.folder}/{name}"
        made = f"mkdir -p {shlex.quote(self.folder)}"
        super().__init__(
            self._link.command(f"{made} && {self._link.program(f'./{PROGRAM}')}"),
            where=where,
            who=f"onnxruntime on {self._link.address}",
            timeout_seconds=timeout_seconds,
        )

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # a login script may say something first
                self._answers.put(line)
        self._answers.put(None)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """See :meth:`Peer.ask`; the file of a profile is fetched from the device."""
        try:
            answer = super().ask(do, **arguments)
        except MeasurementError as error:
            code = self.process.poll()
            said = self.stderr_tail()
            # By itself the agent ends only when its input does.
            if code == 0 or (code is not None and self._link.lost(code, said)):
                raise self._link.refusal(said) from error
            if code is not None and code > _SHELL:
                raise death(do, _SHELL - code, said, self.where) from None
            raise
        if do == "end_profiling" and self._trace is not None:
            file = self._trace.with_name(f"{self._trace.name}.json")
            self._link.pull(answer["profile"], file)
            return {"profile": str(file)}
        return answer

    def feed(self, feeds: Arrays) -> None:
        """Take other inputs from now on.

        Raises:
            MeasurementError: As for :meth:`ask`.
        """
        self.ask("feed", inputs=self._host.place_inputs(feeds))

    def outputs(self) -> dict[str, npt.NDArray[Any]]:
        """See :meth:`Peer.outputs`."""
        import numpy as np

        found: dict[str, npt.NDArray[Any]] = {}
        with tempfile.TemporaryDirectory() as folder:
            for place, row in enumerate(self.ask("outputs", folder=self.folder)["outputs"]):
                file = Path(folder) / str(place)
                self._link.pull(row["file"], file)
                flat = np.fromfile(file, _numpy_type(row["dtype"]))
                if flat.size != math.prod(row["shape"]):
                    raise self._link.refusal("an output came in part only")
                found[row["name"]] = flat.reshape(row["shape"])
        return found

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The agent ends with its input; killing this end first could leave it to find that out.
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(TimeoutExpired):
            self.process.wait(_FAREWELL_S)
        super().__exit__(kind, error, trace)


def _numpy_type(name: str) -> Any:
    import numpy as np

    if name == "bfloat16":
        import onnx

        return onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16)
    return np.dtype(name)
