"""What an installation holds, weighs and loads."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edgecompress
from edgecompress.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = {"edgecompress": ROOT / "edgecompress", "edgecompress.passes": ROOT / "passes"}
SOURCES = sorted(
    file
    for folder in FOLDERS.values()
    for file in folder.rglob("*.py")
    if not file.is_relative_to(ROOT / "edgecompress" / "passes")
)
HEAVY = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy", "pydantic", "jinja2")

# The core stays small: this is what it may add to an installation of torch.
MOST_PACKAGES = 15
MOST_BYTES = 200 * 2**20


def python(code: str, folder: Path) -> str:
    """What a fresh interpreter outside the repository prints."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def members(folder: str) -> list[str]:
    return sorted(f.stem for f in (ROOT / folder).glob("*.py") if not f.stem.startswith("_"))


def requirements(texts: list[str]) -> set[str]:
    return {canonicalize_name(Requirement(text).name) for text in texts}


def test_the_list_of_packages_is_the_folders_on_disk() -> None:
    inside = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "edgecompress").rglob("__init__.py")
    }
    assert set(SETUPTOOLS["packages"]) == inside | {"edgecompress.passes", "edgecompress.targets"}


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_file_of_a_package_is_python_or_package_data(package: str) -> None:
    mapped = SETUPTOOLS["package-dir"].get(package, package.replace(".", "/"))
    patterns = ["*.py", *SETUPTOOLS["package-data"].get(package, [])]
    for file in (ROOT / mapped).iterdir():
        if file.is_file():
            assert any(file.match(pattern) for pattern in patterns), f"{file.name} is not installed"


def test_passes_is_a_link() -> None:
    link = ROOT / "edgecompress" / "passes"
    if not link.is_symlink():
        pytest.skip("this checkout has no symbolic links; the wheel does not need them")
    assert link.readlink() == Path("../passes")


def test_no_module_of_a_common_name_is_installed(tmp_path: Path) -> None:
    code = """
import importlib.util, sys
import edgecompress.passes.cleanup
print([n for n in ("passes", "targets", "tests") if importlib.util.find_spec(n)])
print([n for n in sys.modules if n.split(".")[0] in ("passes", "targets")])
"""
    assert python(code, tmp_path) == "[]\n[]"


@pytest.mark.parametrize(
    "code",
    [
        "import edgecompress",
        "import edgecompress.api",
        "from edgecompress.cli import main; main(['--help'], standalone_mode=False)",
        "from edgecompress.cli import main; main(['build', '--help'], standalone_mode=False)",
    ],
)
def test_nothing_heavy_is_loaded(code: str, tmp_path: Path) -> None:
    code += f"\nimport sys\nprint([n for n in {HEAVY} if n in sys.modules])"
    assert python(code, tmp_path).splitlines()[-1] == "[]"


def test_the_runtime_is_told_to_send_nothing(tmp_path: Path) -> None:
    code = "import os, edgecompress\nprint(os.environ['ORT_DISABLE_TELEMETRY'])"
    assert python(code, tmp_path) == "1"


def third_party(file: Path) -> Iterator[tuple[str, int, bool]]:
    """Third-party modules that a file imports: name, line, and whether at the module's load."""
    tree = ast.parse(file.read_text())
    later = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef)
        or (isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING")
        for node in ast.walk(block)
    }
    # _typeshed exists for type checkers only; onnxruntime.tools.ort_format_model puts the second
    # on the path; RKNN's toolkit lives in an environment of its own.
    own = sys.stdlib_module_names | {"edgecompress", "_typeshed", "ort_flatbuffers_py", "rknn"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = [node.module or ""]
        else:
            continue
        for name in names:
            if name.split(".")[0] not in own:
                yield name, node.lineno, id(node) not in later


@cache
def distributions(module: str) -> frozenset[str]:
    """Distributions that a module may come from."""
    top = module.split(".")[0]
    if top == "google":  # a namespace that many distributions share
        return frozenset({"protobuf"})
    return frozenset(canonicalize_name(name) for name in providers().get(top, [top]))


@cache
def providers() -> Mapping[str, list[str]]:
    """Distributions by the top-level modules that they install."""
    return metadata.packages_distributions()


def test_every_import_is_declared_and_extras_are_imported_where_used() -> None:
    core = requirements(PROJECT["dependencies"])
    extras = set().union(
        *(requirements(v) for k, v in PROJECT["optional-dependencies"].items() if k != "dev")
    )
    wrong = []
    for file in SOURCES:
        for module, line, at_top in third_party(file):
            place = f"{file.relative_to(ROOT)}:{line}: {module}"
            known = distributions(module)
            if not known & (core | extras):
                wrong.append(f"{place} is not declared")
            elif not known & core and at_top:
                wrong.append(f"{place} is an extra: import it in the function that needs it")
    assert wrong == []


def test_no_declared_dependency_is_left_unused() -> None:
    imports = {module for file in SOURCES for module, *_ in third_party(file)}
    used = {name for module in imports for name in distributions(module)}
    assert requirements(PROJECT["dependencies"]) - used == set()


def closure(names: set[str]) -> dict[str, metadata.Distribution]:
    """Installed distributions that these need on this machine, themselves included."""
    found: dict[str, metadata.Distribution] = {}
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found[name] = metadata.distribution(name)
        for text in found[name].requires or []:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(requirement.name))
    return found


def test_the_core_is_small_beside_torch() -> None:
    beside_torch = closure({"torch"})
    added = {
        name: sum(file.size or 0 for file in distribution.files or [])
        for name, distribution in closure(requirements(PROJECT["dependencies"])).items()
        if name not in beside_torch
    }
    assert all(added.values()), "an installation without sizes cannot be judged"
    assert len(added) <= MOST_PACKAGES, sorted(added)
    assert sum(added.values()) <= MOST_BYTES, added


@pytest.mark.parametrize(
    ("source", "tests"),
    [("passes", "tests/passes"), ("edgecompress/runtimes", "tests/runtimes")],
)
def test_every_member_has_a_test_file_of_its_name(source: str, tests: str) -> None:
    tested = {file.stem.removeprefix("test_") for file in (ROOT / tests).glob("test_*.py")}
    assert set(members(source)) - tested == set()


def test_every_verb_is_a_command_and_a_function() -> None:
    api = importlib.import_module("edgecompress.api")
    for verb in VERBS:
        assert importlib.import_module(f"edgecompress.cli.{verb}").command.name == verb
        assert callable(getattr(api, verb))
    assert set(api.__all__) == set(VERBS)


@pytest.mark.parametrize("name", edgecompress.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(edgecompress, name) is not None
    assert name in dir(edgecompress)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'biuld'"):
        _ = edgecompress.biuld


def test_one_version() -> None:
    assert edgecompress.__version__ == PROJECT["version"] == metadata.version("edgecompress")


def test_the_changelog_names_the_version() -> None:
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert PROJECT["version"] in headings[0]
