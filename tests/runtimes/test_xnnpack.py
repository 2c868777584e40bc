"""XNNPACK, which PyPI's onnxruntime lacks, from Debian's: another Python environment altogether."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgecompress import target
from edgecompress.measure import measure
from edgecompress.runtimes import Artifact, python_of, runtime_class
from edgecompress.runtimes._remote import WorkerSession
from edgecompress.target import MeasurementSettings, TargetProfile
from tests.devices.debian import unpacked
from tests.devices.int8 import SYMMETRIC, images, quantized
from tests.models import small_cnn

XNNPACK, CPU = "XnnpackExecutionProvider", "CPUExecutionProvider"
QUICK = MeasurementSettings(warmup=2, runs=4, seconds=0.1, blocks=2, timeout_seconds=60)
PACKAGES = ["python3-onnxruntime", "python3-numpy"]


def profile(provider: str) -> TargetProfile:
    changes = {"provider": provider, "measurement": QUICK}
    return target.load(target.host_target()).model_copy(update=changes)


@pytest.fixture(scope="module")
def debian_python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Debian's Python with Debian's onnxruntime, with Debian's C library and none of ours."""
    root = unpacked(PACKAGES)
    library = root / "usr/lib/x86_64-linux-gnu"
    libraries = ":".join(str(library / each) for each in ("", "blas", "lapack"))
    script = tmp_path_factory.mktemp("debian") / "python"
    words = [str(root / "lib64/ld-linux-x86-64.so.2"), "--library-path", libraries]
    words.append(str(root / "usr/bin/python3.13"))
    home = shlex.quote(str(root / "usr"))
    script.write_text(f'#!/bin/sh\nPYTHONHOME={home} exec {shlex.join(words)} "$@"\n')
    script.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGECOMPRESS_PYTHON_ONNXRUNTIME", str(script))
        yield str(script)


def outputs(file: Path, provider: str, feeds: dict[str, np.ndarray]) -> np.ndarray:
    session = WorkerSession(runtime_class("onnxruntime")(), Artifact((file,)), profile(provider))
    try:
        return session.run(feeds)["y"]
    finally:
        session.close()


def test_a_runtime_of_another_environment_counts_as_present(debian_python: str) -> None:
    assert python_of("onnxruntime") == debian_python
    assert runtime_class("onnxruntime")().present(profile(XNNPACK)) == (True, "this machine")


@pytest.mark.parametrize("symmetric", [False, True], ids=["float", "int8"])
def test_xnnpack_computes_the_same_on_its_own_kernels(
    symmetric: bool, debian_python: str, tmp_path: Path
) -> None:
    model = small_cnn()
    if symmetric:
        model = quantized(tmp_path, model, SYMMETRIC)
    file = model.save(tmp_path / "cnn.onnx")[0]
    # One row: with a symbolic batch, XNNPACK in onnxruntime 1.21 answers for the first row only.
    feeds = images(model, rows=1)
    found = measure({"cnn": file}, profile(XNNPACK), feeds)["cnn"]
    assert found.basis == "measured"
    assert found.conditions is not None
    assert found.conditions.runtime_version.startswith("1.21")
    taken = {each.op for each in found.operators if each.provider == XNNPACK}
    assert ("QLinearConv" if symmetric else "Conv") in taken
    expected = outputs(file, CPU, feeds)
    # In float, sums in another order; on integers, one step of the last layer's output.
    within = np.ptp(expected) / 255 if symmetric else 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(outputs(file, XNNPACK, feeds), expected, rtol=0, atol=within)
