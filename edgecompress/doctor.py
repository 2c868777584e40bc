"""Is this installation whole: what ``edgecompress doctor`` looks at, check by check."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from edgecompress.results import Check, Diagnosis

__all__ = ["diagnose"]

_REINSTALL = "pip install --upgrade edgecompress"
_OLDEST_PYTHON = (3, 11)
# Extras for work on edgecompress itself.
_INTERNAL_EXTRAS = frozenset({"dev"})


def diagnose(cache: Path | None = None) -> Diagnosis:
    """Check the installation; nothing is changed, and nothing is sent anywhere.

    Args:
        cache: The cache folder to check; default: that of a recipe in the current folder.
    """
    checks = [
        _python(),
        *_dependencies(),
        _torch(),
        *_onnxruntime(),
        _processor(),
        *_targets(),
        _writable("cache folder", cache or Path(".edgecompress", "cache")),
        _writable("temporary folder", Path(tempfile.gettempdir())),
        _self_check(),
        *_extras(),
    ]
    return Diagnosis(healthy=all(check.status != "problem" for check in checks), checks=checks)


def _python() -> Check:
    version = sys.version.split()[0]
    if sys.version_info >= _OLDEST_PYTHON:
        return Check(name="python", status="ok", detail=version)
    wanted = ".".join(map(str, _OLDEST_PYTHON))
    return Check(
        name="python",
        status="problem",
        detail=f"{version}, expected {wanted} or newer",
        cure=f"install Python {wanted}",
    )


def _requirements() -> dict[str, list[tuple[str, str]]]:
    """Declared packages with their lowest versions, by extra; the core's under ``""``."""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in metadata.requires("edgecompress") or []:
        requirement, _, marker = line.partition(";")
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", marker)
        name = re.match(r"[\w.-]+", requirement.strip())
        lowest = re.search(r">=\s*([\w.]+)", requirement)
        if name is not None:
            pair = (name[0], lowest[1] if lowest else "0")
            found.setdefault(extra[1] if extra else "", []).append(pair)
    return found


def _numbers(version: str) -> tuple[int, ...]:
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()


def _dependencies() -> Iterator[Check]:
    try:
        required = _requirements()[""]
    except (metadata.PackageNotFoundError, KeyError):
        yield Check(
            name="edgecompress",
            status="problem",
            detail="runs from a folder and is not installed, so its dependencies are not known",
            cure="pip install -e . in that folder",
        )
        return
    for name, lowest in required:
        yield _dependency(name, lowest)


def _dependency(name: str, lowest: str) -> Check:
    version = _version(name)
    if version is None:
        detail = f"not installed, expected {lowest} or newer"
    elif _numbers(version) < _numbers(lowest):
        detail = f"{version}, expected {lowest} or newer"
    else:
        return Check(name=name, status="ok", detail=version)
    return Check(name=name, status="problem", detail=detail, cure=f'pip install "{name}>={lowest}"')


def _version(name: str) -> str | None:
    """Version of a package, also where another distribution brings it (onnxruntime-gpu)."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        for other in metadata.packages_distributions().get(name.replace("-", "_"), []):
            return metadata.version(other)
    return None


def _failed(name: str, error: BaseException, cure: str) -> Check:
    text = (str(error).strip().splitlines() or [""])[0]
    detail = f"cannot be used: {type(error).__name__}: {text}"
    return Check(name=name, status="problem", detail=detail, cure=cure)


def _torch() -> Check:
    try:
        import torch

        cuda = torch.version.cuda
        if cuda is None:
            detail = "CPU build"
        elif torch.cuda.is_available():
            detail = f"CUDA {cuda} build, {torch.cuda.get_device_name(0)}"
        else:
            detail = f"CUDA {cuda} build, no usable GPU: passes compute on the CPU"
    except (ImportError, OSError, RuntimeError) as error:
        return _failed("torch build", error, _REINSTALL)
    return Check(name="torch build", status="ok", detail=detail)


def _onnxruntime() -> Iterator[Check]:
    off = os.environ.get("ORT_DISABLE_TELEMETRY") == "1"
    yield Check(
        name="onnxruntime telemetry",
        status="ok" if off else "problem",
        detail="switched off" if off else "not switched off by ORT_DISABLE_TELEMETRY",
        cure=None if off else "export ORT_DISABLE_TELEMETRY=1",
    )
    try:
        import onnxruntime

        providers = ", ".join(onnxruntime.get_available_providers())
    except (ImportError, OSError) as error:
        yield _failed("onnxruntime providers", error, _REINSTALL)
        return
    yield Check(name="onnxruntime providers", status="ok", detail=providers)


def _processor() -> Check:
    from edgecompress.machine.host import host

    facts = host()
    if facts.arch == "x86_64":
        fast = facts.isa & {"avx512_vnni", "avx_vnni"}
        word = "VNNI: int8 kernels take full-range weights"
        detail = word if fast else "no VNNI: weights get 7 bits, int8 gains less"
    else:
        fast = facts.isa & {"asimddp", "i8mm"}
        detail = "int8 dot products" if fast else "no int8 dot products known"
    return Check(name="processor", status="ok", detail=f"{facts.cpu} ({facts.arch}), {detail}")


def _targets() -> Iterator[Check]:
    from edgecompress import members, target
    from edgecompress.measure import reachable

    runtimes = members.names("edgecompress.runtimes")
    yield Check(
        name="runtimes",
        status="ok" if runtimes else "problem",
        detail=", ".join(runtimes) or "none",
        cure=None if runtimes else _REINSTALL,
    )
    profiles = [target.load(name) for name in target.names()]
    here = [profile.name for profile in profiles if reachable(profile)[0]]
    yield Check(
        name="targets measurable here",
        status="ok" if here else "problem",
        detail=", ".join(here) or "none",
        cure=None if here else "`edgecompress targets` gives the reasons",
    )


def _writable(name: str, folder: Path) -> Check:
    existing = folder.absolute()
    while not existing.is_dir() and existing != existing.parent:
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            return Check(name=name, status="ok", detail=f"{folder} can be written")
    except OSError as error:
        return Check(
            name=name,
            status="problem",
            detail=f"{existing} cannot be written: {error.strerror}",
            cure="change its permissions, or work in another folder",
        )


def _self_check() -> Check:
    """Run a model of three nodes through onnx and onnxruntime and compare with numpy."""
    name = "self check"
    try:
        import numpy as np
        import onnx.parser
        import onnxruntime

        model = onnx.parser.parse_model(
            """
            <ir_version: 8, opset_import: ["" : 17]>
            check (float[2, 2] x) => (float[2, 2] y)
            <float[2, 2] w = {1.0, -2.0, 3.0, -4.0}, float[2] b = {0.5, 0.5}>
            { m = MatMul(x, w)
              a = Add(m, b)
              y = Relu(a) }
            """
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        x = np.array([[1, 2], [-3, 4]], np.float32)
        (got,) = session.run(None, {"x": x})
        w = np.array([[1, -2], [3, -4]], np.float32)
        expected = np.maximum(x @ w + np.float32(0.5), 0)
    except Exception as error:  # whatever fails here is what the user wants to know
        return _failed(name, error, _REINSTALL)
    if not np.array_equal(got, expected):
        return Check(
            name=name,
            status="problem",
            detail=f"onnxruntime computed {got.tolist()}, expected {expected.tolist()}",
            cure="pip install --force-reinstall onnxruntime",
        )
    return Check(name=name, status="ok", detail="three nodes through onnxruntime, exact")


def _extras() -> Iterator[Check]:
    try:
        extras = _requirements()
    except metadata.PackageNotFoundError:
        return
    for extra, packages in sorted(extras.items()):
        if not extra or extra in _INTERNAL_EXTRAS:
            continue
        old = [
            f"{name}>={lowest}"
            for name, lowest in packages
            if _numbers(_version(name) or "") < _numbers(lowest)
        ]
        names = ", ".join(f"{name} {_version(name)}" for name, _ in packages)
        yield Check(
            name=f"extra {extra}",
            status="missing" if old else "ok",
            detail=f"needs {', '.join(old)}" if old else names,
            cure=f'pip install "edgecompress[{extra}]"' if old else None,
        )
