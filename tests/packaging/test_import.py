"""What `import emmet` does, checks and leaves undone."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import emmet
from emmet import _core


def test_another_minor_version_of_torch_is_refused() -> None:
    with pytest.raises(ImportError, match=r"built against torch 2\.13\.0, but torch 2\.14\.1 is installed"):
        emmet._require_torch("2.13.0", "2.14.1")


@pytest.mark.parametrize("installed", ["2.13.0", "2.13.1+cpu", "2.13.0+cu130"])
def test_another_build_of_the_same_minor_version_is_taken(installed: str) -> None:
    emmet._require_torch("2.13.0", installed)


def test_import_leaves_transformers_alone() -> None:
    code = "import sys, emmet; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_exported_name_can_be_had() -> None:
    for name in emmet.__all__:
        assert getattr(emmet, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        emmet.nothing  # noqa: B018


def test_cmake_prefix_holds_the_cmake_package() -> None:
    command = [sys.executable, "-m", "emmet", "--cmake-prefix"]
    prefix = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert Path(prefix, "lib/cmake/emmet/emmetConfig.cmake").is_file()
    assert Path(prefix, "include/emmet/solve.h").is_file()


def test_stubs_name_what_the_extension_has() -> None:
    stubs = ast.parse((Path(emmet.__file__).parent / "_core.pyi").read_text())
    classes = [node for node in stubs.body if isinstance(node, ast.ClassDef)]
    functions = [node for node in stubs.body if isinstance(node, ast.FunctionDef)]

    assert {node.name for node in [*classes, *functions]} == _public(_core)
    for node in classes:
        inherited = _public(ValueError) | {"groups"}  # set on the instance
        stubbed = {member.name for member in node.body if isinstance(member, ast.FunctionDef)} - {"__init__"}
        assert stubbed == _public(getattr(_core, node.name)) - inherited, node.name


def _public(thing: object) -> set[str]:
    return {name for name in dir(thing) if not name.startswith("_")}
