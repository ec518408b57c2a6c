"""What is in the wheel and what is not, and whether a C++ project can use what was installed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

import emmet

pytestmark = pytest.mark.packaging

ROOT = Path(__file__).parents[2]
LARGEST_WHEEL = 5 * 2**20


def run(*command: str | Path) -> str:
    """Run a command and return what it prints; on failure show what it said."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(command, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--wheel-dir", folder, ROOT)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="session")
def package(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's folder in the unpacked wheel."""
    folder = tmp_path_factory.mktemp("unpacked")
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "emmet"


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
    libraries = {path.name.split(".")[0] for path in package.rglob("*.so*")}
    assert libraries == {"_core", "libemmet"}


@pytest.mark.parametrize(
    ("library", "expected"),
    [("_core.cpython-*.so", "$ORIGIN/lib:$ORIGIN/../torch/lib"), ("lib/libemmet.so", "$ORIGIN/../../torch/lib")],
)
def test_libraries_find_torch_beside_the_package(package: Path, library: str, expected: str) -> None:
    (path,) = package.glob(library)
    dynamic = run("readelf", "--dynamic", "--wide", path)
    assert re.findall(r"R(?:UN)?PATH\).*\[(.*)\]", dynamic) == [expected]


def test_core_links_no_python(package: Path) -> None:
    needed = re.findall(r"NEEDED\).*\[(.*)\]", run("readelf", "--dynamic", "--wide", package / "lib/libemmet.so"))
    assert "libtorch.so" in needed
    assert not [name for name in needed if "python" in name]


def test_exported_targets_name_no_path_of_the_build_machine(package: Path) -> None:
    for path in (package / "lib/cmake/emmet").iterdir():
        text = path.read_text()
        assert str(ROOT) not in text, path.name
        assert "site-packages" not in text, path.name


@pytest.mark.parametrize("source", ["installed", "wheel"])
def test_cmake_project_uses_the_core(source: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}") is None:
        pytest.skip("CMake is not installed")
    if source == "installed":
        prefix = run(sys.executable, "-m", "emmet", "--cmake-prefix")
    else:
        prefix = str(request.getfixturevalue("package"))

    run(
        "cmake",
        "-S",
        Path(__file__).parent / "consumer",
        "-B",
        tmp_path,
        f"-DCMAKE_PREFIX_PATH={prefix}",
        f"-DPython_EXECUTABLE={sys.executable}",
    )
    run("cmake", "--build", tmp_path)

    version, relative_error = run(tmp_path / "consumer").split()
    assert version == emmet.__version__
    assert float(relative_error) < 1e-6
