"""Where calls run that are independent: processes of this machine, a Dask or a Ray cluster.

Each pool takes a function and the arguments of its calls, and yields what they return as soon as it
is there. The function must not raise: an error here is one of the pool. Nothing that the libraries
have to tell is printed.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from edgecompress.errors import BuildError, EdgeCompressError, MissingDependencyError

__all__ = ["on_dask", "on_ray", "on_this_machine"]

T = TypeVar("T")
Calls = Sequence[tuple[Any, ...]]

_CONNECT_SECONDS = 10.0
_WITHOUT_WORKERS_SECONDS = 30.0
_POLL_SECONDS = 1.0
_FETCH_SECONDS = 5.0


def on_this_machine(
    function: Callable[..., T], calls: Calls, jobs: int, address: str
) -> Generator[T, None, None]:
    """Processes of this machine, which end with the work.

    Raises:
        BuildError: One died.
        MissingDependencyError: joblib is not installed.
    """
    joblib = _needed("joblib", "work in several processes", "parallel")
    loky = importlib.import_module("joblib.externals.loky")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    with joblib.parallel_config("loky", inner_max_num_threads=threads):
        pool = joblib.Parallel(
            jobs,
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch="all",
            max_nbytes=None,
        )
    answers = pool(joblib.delayed(function)(*call) for call in calls)
    finished = False
    try:
        for answer in answers:  # noqa: UP028 - it would close them before we can
            yield answer
        finished = True
    except BrokenProcessPool as error:
        raise BuildError(
            "a worker process died before its work was done",
            where=f"{jobs} jobs on this machine",
            cure="the system may have run out of memory: take fewer jobs or smaller batches",
        ) from error
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # joblib's, of calls that are not awaited
            answers.close()
        # joblib would keep idle processes, with torch in them, for minutes.
        loky.get_reusable_executor().shutdown(wait=True, kill_workers=not finished)


def on_dask(
    function: Callable[..., T], calls: Calls, jobs: int, address: str
) -> Generator[T, None, None]:
    """Workers of the Dask scheduler at ``host:port``; it decides how many calls run at once.

    Where a worker dies, the cluster runs its call again elsewhere, a few times.

    Raises:
        BuildError: The cluster cannot be reached, lost its workers, or gave a call up.
        MissingDependencyError: distributed is not installed.
    """
    distributed = _needed("distributed", "an engine dask://", "dask")
    where = f"dask://{address}"
    _check_reachable(address, where, greets=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet("distributed", "asyncio"))
        try:
            client = stack.enter_context(
                distributed.Client(
                    f"tcp://{address}", timeout=_CONNECT_SECONDS, set_as_default=False
                )
            )
            stack.enter_context(client.as_current())  # distributed.wait looks for it
            pending = {client.submit(function, *call, pure=False) for call in calls}
            last_seen, patience = time.monotonic(), _FETCH_SECONDS
            while pending:
                with contextlib.suppress(TimeoutError):
                    distributed.wait(pending, _POLL_SECONDS, return_when="FIRST_COMPLETED")
                for future in [each for each in pending if each.done()]:
                    try:
                        answer = future.result(timeout=patience)
                    except TimeoutError:  # its worker died, and it runs again; or it is very large
                        patience *= 2
                        continue
                    pending.remove(future)
                    yield answer
                last_seen = time.monotonic() if client.ncores() else last_seen
                _check_workers(last_seen, where)
        except EdgeCompressError:
            raise
        except Exception as error:
            raise _broken(where, error) from error


def on_ray(
    function: Callable[..., T], calls: Calls, jobs: int, address: str
) -> Generator[T, None, None]:
    """Workers of the Ray cluster at ``host:port``, or of one that is ``local`` to this call.

    Where a worker dies, the cluster runs its call again elsewhere, a few times.

    Raises:
        BuildError: The cluster cannot be reached, lost its workers, or gave a call up.
        MissingDependencyError: ray is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = _needed("ray", "an engine ray://", "ray")
    where = f"ray://{address}"
    options: dict[str, Any] = {"address": where}
    if address == "local":
        options = {"address": "local", "num_cpus": jobs, "include_dashboard": False}
    else:
        _check_reachable(address, where, greets=False)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_quiet("ray"))
        try:
            if not ray.is_initialized():
                stack.callback(_stop, ray)
                ray.init(**options, log_to_driver=False, configure_logging=False)
            task = ray.remote(function)
            pending = [task.remote(*call) for call in calls]
            last_seen = time.monotonic()
            while pending:
                with _without_stdout():
                    done, pending = ray.wait(pending, timeout=_POLL_SECONDS)
                yield from ray.get(done)
                last_seen = time.monotonic() if ray.cluster_resources().get("CPU") else last_seen
                _check_workers(last_seen, where)
        except EdgeCompressError:
            raise
        except Exception as error:
            raise _broken(where, error) from error


def _stop(ray: Any) -> None:
    with _without_stdout():
        ray.shutdown()


def _needed(package: str, purpose: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise MissingDependencyError(error.name or package, purpose, extra) from error


def _check_reachable(address: str, where: str, *, greets: bool) -> None:
    """Connect once, since the libraries try for very long.

    Args:
        address: ``host:port``.
        where: The engine.
        greets: Whether what listens there speaks first.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS) as tried:
            if greets and not tried.recv(1):
                raise ConnectionError("something else listens there")
    except OSError as error:
        raise _unreachable(where, error) from error


def _check_workers(last_seen: float, where: str) -> None:
    if time.monotonic() - last_seen > _WITHOUT_WORKERS_SECONDS:
        raise BuildError(
            f"the cluster has had no worker for {_WITHOUT_WORKERS_SECONDS:g} s",
            where=where,
            cure="start workers; if they were there and died, look at their logs and memory",
        )


def _unreachable(where: str, error: Exception) -> BuildError:
    return BuildError(
        f"the cluster cannot be reached: {error}",
        where=where,
        cure="check host and port, and that the cluster runs",
    )


def _broken(where: str, error: Exception) -> BuildError:
    said = next(iter(str(error).strip().splitlines()), "")
    return BuildError(
        f"the cluster broke off the work: {type(error).__name__}: {said}".rstrip(": "),
        where=where,
        cure="look at the logs of its workers: they may lack memory, or the same versions of "
        "Python and edgecompress",
    )


@contextlib.contextmanager
def _without_stdout() -> Iterator[None]:
    """What ray itself prints there, of workers that died, would mix with our own result."""
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Keep what these loggers, and those below them, would print to themselves."""
    known = [*names, *logging.root.manager.loggerDict]
    below = tuple(f"{name}." for name in names)
    loggers = [logging.getLogger(n) for n in known if n in names or n.startswith(below)]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(reversed(loggers), reversed(levels), strict=True):
            logger.setLevel(level)
