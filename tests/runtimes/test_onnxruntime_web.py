from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgecompress.errors import MeasurementError
from edgecompress.model import Model
from edgecompress.runtimes import Artifact, onnxruntime_web, runtime_class
from edgecompress.runtimes._browser import HeadlessBrowser
from edgecompress.runtimes._browser_peer import BrowserPeer
from edgecompress.runtimes.onnxruntime import OnnxRuntimeSession
from tests.browsers import need_browser, web_profile
from tests.models import from_text, small_cnn

RUNTIME = runtime_class("onnxruntime_web")()
NATIVE = runtime_class("onnxruntime")()
PROFILE = web_profile()
TYPES = ("float", "double", "float16", "bool", "int64", "uint64", "int8", "uint8", "int16")
UNKNOWN_OPERATOR = """<ir_version: 10, opset_import: ["" : 20, "other" : 1]>
    g (float[2] x) => (float[2] y) { y = other.Twice(x) }"""


@pytest.fixture(scope="module")
def browser() -> Iterator[HeadlessBrowser]:
    need_browser()
    with HeadlessBrowser() as started:
        yield started


def peer(browser: HeadlessBrowser, model: Model, folder: Path, **feeds: np.ndarray) -> BrowserPeer:
    artifact = RUNTIME.prepare(model, folder, PROFILE)
    return browser.start(artifact, PROFILE, feeds, where="a model")


def native(artifact: Artifact, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return NATIVE.session(artifact, PROFILE).run(feeds)


def test_importing_it_loads_little() -> None:
    heavy = "numpy onnx onnx_ir onnxruntime torch pydantic http.server"
    code = f"""import sys, edgecompress.runtimes.onnxruntime_web
print(*set({heavy.split()}) & set(sys.modules))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.parametrize(
    ("variable", "said"),
    [("EDGECOMPRESS_ORT_WEB", "npm install"), ("EDGECOMPRESS_CHROMIUM", "apt-get install")],
)
def test_what_is_missing_is_said(
    variable: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "ort.wasm.min.mjs").touch()
    monkeypatch.setenv("EDGECOMPRESS_ORT_WEB", str(tmp_path))
    monkeypatch.setenv(variable, str(tmp_path / "nowhere"))
    present, why = RUNTIME.present(PROFILE)
    assert not present
    assert said in why
    assert variable in why
    artifact = RUNTIME.prepare(small_cnn(), tmp_path, PROFILE)
    assert isinstance(RUNTIME.session(artifact, PROFILE), OnnxRuntimeSession)


def test_node_modules_are_found_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecompress.runtimes._browser import ort_web_folder

    dist = tmp_path / "node_modules" / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    (tmp_path / "app" / "src").mkdir(parents=True)
    monkeypatch.delenv("EDGECOMPRESS_ORT_WEB", raising=False)
    monkeypatch.chdir(tmp_path / "app" / "src")
    assert ort_web_folder() != dist
    (dist / "ort.wasm.min.mjs").touch()
    assert ort_web_folder() == dist


def test_operators_without_kernels_are_named() -> None:
    (refused,) = RUNTIME.unsupported(from_text(UNKNOWN_OPERATOR), PROFILE)
    assert refused.op == "Twice"


def test_a_model_larger_than_all_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime_web, "_WASM_BYTES", 1000)
    with pytest.raises(MeasurementError, match="WebAssembly holds"):
        RUNTIME.prepare(small_cnn(), tmp_path, PROFILE)


def test_fusion_is_that_of_the_cpu_provider() -> None:
    coverage = RUNTIME.coverage(small_cnn(), ["y"], PROFILE)
    assert coverage is not None
    assert coverage.fused == 0
    assert "CPUExecutionProvider stood in" in (coverage.note or "")


def test_a_session_takes_inputs_of_any_batch(tmp_path: Path) -> None:
    need_browser()
    artifact = RUNTIME.prepare(small_cnn(), tmp_path, PROFILE)
    session = RUNTIME.session(artifact, PROFILE)
    try:
        for batch in (1, 3):
            shape = (batch, 3, 16, 16)
            feeds = {"x": np.random.default_rng(batch).random(shape).astype(np.float32)}
            found = session.run(feeds)
            np.testing.assert_allclose(found["y"], native(artifact, feeds)["y"], atol=1e-5)
    finally:
        session.close()


def test_all_types_of_tensors_come_back_as_they_went(
    browser: HeadlessBrowser, tmp_path: Path
) -> None:
    inputs = ", ".join(f"{each}[2, 3] {each}_in" for each in TYPES)
    outputs = ", ".join(f"{each}[2, 3] {each}_out" for each in TYPES)
    nodes = "\n".join(f"{each}_out = Identity({each}_in)" for each in TYPES)
    model = from_text(
        f"""<ir_version: 10, opset_import: ["" : 20]> g ({inputs}) => ({outputs}) {{ {nodes} }}"""
    )
    numpy_names = {"float": "float32", "double": "float64"}
    values = np.array([[0, 1, 2], [3, 100, 127]])
    feeds = {f"{each}_in": values.astype(numpy_names.get(each, each)) for each in TYPES}
    feeds["int64_in"][0, 0] = -(2**62)
    with peer(browser, model, tmp_path, **feeds) as loaded:
        found = loaded.outputs()
    assert list(found) == [f"{each}_out" for each in TYPES]
    for name, array in found.items():
        given = feeds[name.replace("_out", "_in")]
        assert array.dtype == given.dtype
        np.testing.assert_array_equal(array, given)


def test_weights_in_a_file_of_their_own_are_loaded(
    browser: HeadlessBrowser, tmp_path: Path
) -> None:
    artifact = Artifact(tuple(small_cnn().save(tmp_path / "model.onnx", external_data=True)))
    feeds = {"x": np.random.default_rng(0).random((1, 3, 16, 16)).astype(np.float32)}
    with browser.start(artifact, PROFILE, feeds, where="a model") as loaded:
        found = loaded.outputs()
    assert len(artifact.files) == 2
    np.testing.assert_allclose(found["y"], native(artifact, feeds)["y"], atol=1e-5)


def test_what_it_refuses_is_said_in_its_words(browser: HeadlessBrowser, tmp_path: Path) -> None:
    with pytest.raises(MeasurementError, match=r"could not load it: .*Twice") as refused:
        peer(browser, from_text(UNKNOWN_OPERATOR), tmp_path, x=np.zeros(2, np.float32))
    assert refused.value.where == "a model"
    assert refused.value.cure


def test_inputs_that_do_not_fit_are_refused(browser: HeadlessBrowser, tmp_path: Path) -> None:
    misfit = np.zeros((1, 4, 16, 16), np.float32)
    with peer(browser, small_cnn(), tmp_path, x=misfit) as loaded:
        with pytest.raises(MeasurementError, match="could not run it"):
            loaded.ask("run", count=1)
        with pytest.raises(MeasurementError, match="takes no complex64"):
            loaded.feed({"x": misfit.astype(np.complex64)})
