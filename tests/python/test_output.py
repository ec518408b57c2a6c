from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from emmet import EmmetError, output
from emmet.output import MANIFEST, check_folder, check_output, output_folder
from emmet.storage import write_json
from workspace import full_disk

DELTA = '{"format": "emmet.delta.1"}'


def test_a_folder_is_complete_or_absent(tmp_path):
    path = tmp_path / "sub" / "out"
    with pytest.raises(FileNotFoundError), output_folder(path) as folder:
        (folder / "missing" / MANIFEST).write_text("half")
    assert list(tmp_path.rglob("*")) == [tmp_path / "sub"]
    with output_folder(path) as folder:
        (folder / MANIFEST).write_text(DELTA)
    assert [file.name for file in path.iterdir()] == [MANIFEST]


def test_what_emmet_wrote_is_replaced_as_a_whole(tmp_path):
    path = tmp_path / "out"
    for name in ("first", "second"):
        with output_folder(path) as folder:
            (folder / MANIFEST).write_text(DELTA)
            (folder / name).write_text("")
    assert sorted(file.name for file in path.iterdir()) == sorted([MANIFEST, "second"])
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_leaves_the_old_folder_and_is_named_by_the_folder(tmp_path):
    path = tmp_path / "out"
    with output_folder(path) as folder:
        (folder / MANIFEST).write_text(DELTA)
    refused = f"^cannot write {path}: File too large; make room"
    with pytest.raises(EmmetError, match=refused), full_disk(), output_folder(path) as folder:
        write_json(folder / MANIFEST, "new" * 1000)
    assert (path / MANIFEST).read_text() == DELTA
    assert list(tmp_path.iterdir()) == [path]


def test_the_files_of_others_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("dear")
    with pytest.raises(EmmetError, match="new or empty folder"), output_folder(tmp_path):
        pass
    assert (tmp_path / "thesis.txt").read_text() == "dear"
    with pytest.raises(EmmetError, match="not a folder"):
        check_output(tmp_path / "thesis.txt", "update")


@pytest.mark.parametrize("name", ["model", "peft", "gguf"])
def test_edits_in_one_format_are_replaced_by_those_in_another(tmp_path, name):
    (tmp_path / MANIFEST).write_text(f'{{"format": "emmet.{name}.2"}}')
    check_output(tmp_path, "update")


@pytest.mark.parametrize(("held", "asked"), [("ledger", "update"), ("sweep", "update"), ("delta", "ledger")])
def test_accounts_and_edits_do_not_replace_one_another(tmp_path, held, asked):
    manifest = f'{{"format": "emmet.{held}.1"}}'
    (tmp_path / MANIFEST).write_text(manifest)
    what = "edits" if held == "delta" else f"a {held}"
    with pytest.raises(EmmetError, match=f"which holds {what}; name another"), output_folder(tmp_path, asked):
        pass
    assert (tmp_path / MANIFEST).read_text() == manifest


@pytest.mark.parametrize("closed", [os.R_OK, os.W_OK, os.X_OK])
def test_a_folder_that_may_not_be_read_written_and_searched(tmp_path, monkeypatch, closed):
    monkeypatch.setattr(os, "access", lambda _place, asked: not asked & closed)
    for check in (check_folder, lambda path: check_output(path, "update")):
        with pytest.raises(
            EmmetError, match=f"^cannot write to {tmp_path}/sub/out, as {tmp_path} is not a folder that"
        ):
            check(tmp_path / "sub" / "out")


def test_below_a_folder_that_may_not_be_searched(tmp_path, monkeypatch):
    def denied(_place):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "exists", denied)
    with pytest.raises(EmmetError, match=f"^cannot write to {tmp_path}/out: Permission denied; name another$"):
        check_output(tmp_path / "out", "update")


def test_a_place_in_the_cache_is_named_by_its_variable(tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    monkeypatch.setenv("EMMET_CACHE", str(tmp_path / "cache"))
    with pytest.raises(EmmetError, match=r"may write to; name another with EMMET_CACHE$"):
        check_folder(tmp_path / "cache" / "values")


def test_nothing_is_written_into_what_is_replaced_as_a_whole(tmp_path):
    """A link to the folder is the folder."""
    with output_folder(tmp_path / "delta") as folder:
        (folder / MANIFEST).write_text(DELTA)
    (tmp_path / "link").symlink_to(tmp_path / "delta")
    for path in (tmp_path / "delta" / "report", tmp_path / "link" / "report"):
        for check in (check_folder, lambda path: check_output(path, "sweep")):
            with pytest.raises(EmmetError, match=f"expected a folder of its own, got {path}, which goes when emmet"):
                check(path)
    check_output(tmp_path / "link", "update")


def test_what_is_not_replaced_as_a_whole_may_hold_other_results(tmp_path):
    for name, format_ in (("sweep", "emmet.sweep.1"), ("others", "package.delta.1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / MANIFEST).write_text(f'{{"format": "{format_}"}}')
        check_folder(tmp_path / name / "values")
    check_folder(tmp_path / "others")


@pytest.mark.parametrize("manifest", ["{}", "[]", "half", '{"format": "delta"}', '{"format": 3}'])
def test_a_manifest_of_others_is_left_alone(tmp_path, manifest):
    (tmp_path / MANIFEST).write_text(manifest)
    with pytest.raises(EmmetError, match="which holds other files"):
        check_output(tmp_path, "update")


@pytest.mark.parametrize("swap", [True, False])
def test_a_folder_is_replaced_also_where_two_cannot_swap_names(tmp_path, monkeypatch, swap):
    path = tmp_path / "out"
    if not swap:
        monkeypatch.setattr(output, "_exchange", lambda *_: False)
    for name in ("first", "second"):
        with output_folder(path) as folder:
            (folder / MANIFEST).write_text(DELTA)
            (folder / name).touch()
    assert (path / "second").exists()
    assert list(tmp_path.iterdir()) == [path]


def test_two_folders_swap_names(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    (one / "file").touch()
    if not output._exchange(one, other):
        pytest.skip("this system or its file system cannot")
    assert (other / "file").exists()
    assert not output._exchange(one, tmp_path / "missing")
