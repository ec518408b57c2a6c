"""What is in the source distribution and in its wheel and what is not, and whether what it installs can be used."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

import emmet
from emmet._build import TORCH_VERSION

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
LARGEST_WHEEL = 5 * 2**20
PATH = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])

needs_cmake = pytest.mark.skipif(shutil.which("cmake", path=PATH) is None, reason="CMake is not installed")


def attempt(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, env=os.environ | {"PATH": PATH}, capture_output=True, text=True, check=False)


def run(*command: str | Path) -> str:
    """Run a command and return what it prints; on failure show what it said."""
    done = attempt(*command)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source distribution, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    return folder


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    (path,) = dist.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def package(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder in the unpacked wheel."""
    return unpacked(wheel, tmp_path_factory.mktemp("unpacked"))


def unpacked(wheel: Path, folder: Path) -> Path:
    """The package's folder of a wheel that is unpacked into `folder`."""
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "emmet"


def libraries(package: Path) -> set[str]:
    """The names of the shared libraries of a package, without their suffixes."""
    return {path.name.split(".")[0] for path in package.parent.rglob("*.so*")}


def runpaths(library: Path) -> list[str]:
    return re.findall(r"R(?:UN)?PATH\).*\[(.*)\]", run("readelf", "--dynamic", "--wide", library))


def test_source_distribution_has_sources_and_nothing_built(dist: Path) -> None:
    (path,) = dist.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "cpp/src/solve.cpp", "docs/index.md", "tests/packaging/smoke.py"} <= names
    assert not [name for name in names if name.startswith(("build/", ".venv/", "dist/")) or name.endswith(".so")]


def test_wheel_is_small(wheel: Path) -> None:
    assert wheel.stat().st_size <= LARGEST_WHEEL


@pytest.mark.parametrize(
    "pattern",
    [
        "_core.cpython-*.so",
        "_core.pyi",
        "py.typed",
        "lib/libemmet.so",
        "lib/cmake/emmet/emmetConfig.cmake",
        "lib/cmake/emmet/emmetConfigVersion.cmake",
        "lib/cmake/emmet/emmetTargets.cmake",
        "lib/cmake/emmet/EmmetTorch.cmake",
        "include/emmet/version.h",
        "presets/presets.json",
    ],
)
def test_wheel_contains(package: Path, pattern: str) -> None:
    assert list(package.glob(pattern))


def test_wheel_contains_every_public_header(package: Path) -> None:
    public = {header.name for header in (ROOT / "cpp/include/emmet").glob("*.h")}
    assert public
    assert public <= {header.name for header in (package / "include/emmet").iterdir()}


def test_wheel_contains_no_other_library(package: Path) -> None:
    assert libraries(package) == {"_core", "libemmet"}


RUNPATHS = {"_core.cpython-*.so": "$ORIGIN/lib:$ORIGIN/../torch/lib", "lib/libemmet.so": "$ORIGIN/../../torch/lib"}


@pytest.mark.parametrize("library", RUNPATHS)
def test_libraries_find_torch_beside_the_package(package: Path, library: str) -> None:
    (path,) = package.glob(library)
    assert runpaths(path) == [RUNPATHS[library]]


def test_repair_for_release_checks_symbol_versions_and_adds_no_library(wheel: Path, tmp_path: Path) -> None:
    tomllib = pytest.importorskip("tomllib", reason="it is part of Python from 3.11")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    command = settings["tool"]["cibuildwheel"]["linux"]["repair-wheel-command"]
    run(*shlex.split(command.format(wheel=wheel, dest_dir=tmp_path / "repaired")))

    (repaired,) = (tmp_path / "repaired").glob("*.whl")
    assert "manylinux" in repaired.name  # all symbols that are needed are of versions that this policy allows
    package = unpacked(repaired, tmp_path / "unpacked")
    assert libraries(package) == {"_core", "libemmet"}
    for library, expected in RUNPATHS.items():
        (path,) = package.glob(library)
        assert runpaths(path) == [expected]


def test_wheel_edits_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    python = tmp_path / "bin/python"
    run(sys.executable, "-m", "venv", tmp_path)
    # The torch that is installed here: a range may draw another build, of several GB.
    run(python, "-m", "pip", "install", "--quiet", wheel, f"torch=={torch.__version__.partition('+')[0]}")
    assert emmet.__version__ in run(python, Path(__file__).parent / "smoke.py")


def test_core_links_neither_python_nor_openmp(package: Path) -> None:
    """A second OpenMP runtime beside torch's would have threads of its own."""
    needed = re.findall(r"NEEDED\).*\[(.*)\]", run("readelf", "--dynamic", "--wide", package / "lib/libemmet.so"))
    assert "libtorch.so" in needed
    assert not [name for name in needed if "python" in name or "omp" in name]


def test_exported_targets_name_no_path_of_the_build_machine(package: Path) -> None:
    for path in (package / "lib/cmake/emmet").iterdir():
        text = path.read_text()
        assert str(ROOT) not in text, path.name
        assert "site-packages" not in text, path.name


def configuration(prefix: str | Path, build: Path) -> tuple[str | Path, ...]:
    """The command that configures the C++ project in consumer/ with an emmet in `prefix`."""
    source = Path(__file__).parent / "consumer"
    return "cmake", "-S", source, "-B", build, f"-DCMAKE_PREFIX_PATH={prefix}", f"-DPython_EXECUTABLE={sys.executable}"


@needs_cmake
@pytest.mark.parametrize("source", ["installed", "wheel"])
def test_cmake_project_uses_the_core(source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if source == "installed":
        prefix = run(sys.executable, "-m", "emmet", "--cmake-prefix")
    else:
        prefix = request.getfixturevalue("package")

    run(*configuration(prefix, tmp_path))
    run("cmake", "--build", tmp_path)

    version, relative_error = run(tmp_path / "consumer").split()
    assert version == emmet.__version__
    assert float(relative_error) < 1e-6


@needs_cmake
def test_cmake_project_with_another_minor_version_of_torch_is_refused(tmp_path: Path) -> None:
    header = tmp_path / "torch/include/torch/headeronly/version.h"
    header.parent.mkdir(parents=True)
    parts = zip(("MAJOR", "MINOR", "PATCH"), (2, 99, 1), strict=True)
    header.write_text("".join(f"#define TORCH_VERSION_{name} {number}\n" for name, number in parts))
    libraries = tmp_path / "torch/lib"
    libraries.mkdir()
    for name in ("c10", "torch_cpu", "torch"):
        (libraries / f"lib{name}.so").touch()

    prefix = run(sys.executable, "-m", "emmet", "--cmake-prefix")
    done = attempt(*configuration(prefix, tmp_path / "build"), f"-DEMMET_TORCH_ROOT={tmp_path / 'torch'}")
    assert done.returncode != 0
    assert f"built against torch {TORCH_VERSION}, but torch 2.99.1 was found" in " ".join(done.stderr.split())
