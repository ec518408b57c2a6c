"""Several processes come to what one comes to, share the work, and end together. Two real processes, by gloo."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from emmet import cli
from emmet.distributed import ALONE, World, _terminable
from emmet.errors import ConfigError, EmmetError, LostProcessError
from emmet.statistics import Statistics
from emmet.storage import read_tensors
from ranks import SETTINGS, collect_on
from workspace import TEXT, contents, fill

RANKS = Path(__file__).with_name("ranks.py")


class Outcome:
    """What a process printed: results by step, messages, and how it ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        out, self.messages = process.communicate(timeout=600)
        lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        self.printed = [line for line in out.splitlines() if not line.startswith("{")]
        self.steps: Mapping[str, Any] = {line["step"]: line for line in lines}
        self.code = process.returncode


def run(folder: Path, *steps: str) -> list[Outcome]:
    """The outcome of each of two processes, in the environment that torchrun gives them.

    Like torchrun's agent, this process holds the store of each step, so that it outlives them.
    """
    stores = [dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False) for _ in steps]
    given = [f"{step}:{store.port}" for step, store in zip(steps, stores, strict=True)]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "WORLD_SIZE": "2",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANKS), str(folder), *given],
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    return [Outcome(process) for process in processes]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = fill(tmp_path_factory.mktemp("workspace"))
    (folder / "settings.json").write_text(json.dumps(SETTINGS))
    return folder


@pytest.fixture(scope="module")
def killed(folder: Path) -> list[Outcome]:
    """A collection whose second process is killed after two of its five batches."""
    outcomes = run(folder, "killed")
    names = sorted(path.name.split(".", 2)[2] for path in (folder / "stats").iterdir())
    assert names == ["0-of-2.safetensors", "1-of-2.safetensors"]
    return outcomes


@pytest.fixture(scope="module")
def finished(folder: Path, killed: list[Outcome]) -> list[Outcome]:  # noqa: ARG001
    return run(folder, "edit_nothing", "collect", "edit", "edit_again", "edit_alone")


def test_all_end_when_one_is_killed(killed: list[Outcome]) -> None:
    first, second = killed
    assert second.code == -signal.SIGKILL
    assert first.steps["killed"]["code"] == 1
    assert "lost one of the 2 processes" in first.messages
    assert "run the same command again" in first.messages
    assert "Traceback" not in first.messages


def test_another_run_goes_on_where_each_was(finished: list[Outcome]) -> None:
    assert [process.steps["collect"]["added"] for process in finished] == [0, 3]


def test_statistics_are_those_of_one_process(folder: Path, finished: list[Outcome], tmp_path: Path) -> None:
    assert [process.steps["collect"]["code"] for process in finished] == [0, 0]
    found = Statistics.load(folder / "stats")
    assert not list((folder / "stats").glob("partial*"))
    (tmp_path / "text.txt").write_text(TEXT)
    expected = collect_on(tmp_path, ALONE, lambda *_: None)
    for layer, of_layer in expected.items():
        assert found[layer].count == of_layer.count == 600
        assert found[layer].sources == of_layer.sources
        error = (found[layer].second_moment - of_layer.second_moment).norm()
        assert error <= 1e-6 * of_layer.second_moment.norm()


def test_an_edit_is_that_of_one_process(folder: Path, finished: list[Outcome]) -> None:
    assert [process.steps["edit"]["code"] for process in finished] == [0, 0]
    assert [process.steps["edit"]["minimised"] for process in finished] == [1, 1]
    assert finished[0].steps["edit_alone"]["minimised"] == 2
    for layer in (0, 1):
        name = f"layer.{layer}.safetensors"
        one, two = (read_tensors(folder / path / name).tensors for path in ("edit_alone", "edit"))
        assert all(torch.equal(one[factor], two[factor]) for factor in ("left", "right"))  # same batches, same bits
    one, two = (contents(folder / path) for path in ("values alone", "values"))
    assert one == two


def test_an_edit_of_which_one_was_killed_is_made_by_another_run(folder: Path, finished: list[Outcome]) -> None:  # noqa: ARG001
    first, second = run(folder, "edit_killed")
    assert second.code == -signal.SIGKILL
    assert first.steps["edit_killed"]["code"] == 75
    assert "lost one of the 2 processes" in first.messages
    assert not (folder / "edit_killed").exists()
    resumed = run(folder, "edit_resumed")
    assert [process.steps["edit_resumed"]["code"] for process in resumed] == [0, 0]
    assert updates(folder / "edit_resumed") == updates(folder / "edit_alone")


def test_torchrun(folder: Path, finished: list[Outcome], tmp_path: Path) -> None:  # noqa: ARG001
    """As people start it."""
    corpus = ["--corpus", folder / "text.txt", "--layers", "0-1", "--tokens", "600"]
    torchrun(tmp_path, "stats", folder / "model", *corpus, "--out", tmp_path / "both")
    assert cli.main(list(map(str, ["stats", folder / "model", *corpus, "--out", tmp_path / "one", "--quiet"]))) == 0
    both, one = (Statistics.load(tmp_path / name) for name in ("both", "one"))
    for layer in (0, 1):
        assert both[layer].count == one[layer].count == 600
        error = (both[layer].second_moment - one[layer].second_moment).norm()
        assert error <= 1e-6 * one[layer].second_moment.norm()
    settings = ["--layers", "0-1", "--method", "memit", "--ridge", "0.1", "--config", folder / "settings.json"]
    edit = ["edit", folder / "model", folder / "edits.jsonl", *settings, "--stats", folder / "stats"]
    torchrun(tmp_path, *edit, "--out", tmp_path / "delta")
    assert updates(tmp_path / "delta") == updates(folder / "edit_alone")


def torchrun(cache: Path, *arguments: object) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "emmet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "EMMET_CACHE": str(cache)}
    done = subprocess.run(
        [*launcher, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr


def updates(delta: Path) -> list[bytes]:
    return [(delta / f"layer.{layer}.safetensors").read_bytes() for layer in (0, 1)]


def test_values_are_kept(finished: list[Outcome]) -> None:
    assert [process.steps["edit_again"]["minimised"] for process in finished] == [0, 0]


def test_only_the_first_prints(finished: list[Outcome]) -> None:
    first, second = finished
    assert any(line.startswith("edits") for line in first.printed)
    assert (second.printed, second.messages) == ([], "")


def test_bad_input_is_reported_once(finished: list[Outcome]) -> None:
    first, second = finished
    assert [process.steps["edit_nothing"]["code"] for process in finished] == [2, 2]
    assert first.messages.count("emmet: error: ") == 1
    assert "emmet: error: cannot read" in first.messages
    assert second.messages == ""


def world_with(error: Exception | None) -> World:
    """The first of two processes, of which the other has ended with an error, or not."""
    world = World(0, 2, dist.HashStore())
    if error is not None:
        world._tell(error)
    return world


def test_an_error_of_another_process_is_raised() -> None:
    with pytest.raises(EmmetError, match=r"^expected another layer$"):
        world_with(ConfigError("expected another layer")).meet()
    with pytest.raises(EmmetError, match=r"^process 0 of 2 failed with ZeroDivisionError: by zero$"):
        world_with(ZeroDivisionError("by zero")).meet()


def test_being_terminated() -> None:
    before = signal.getsignal(signal.SIGTERM)
    for error, raised in ((None, LostProcessError), (ConfigError("expected another layer"), EmmetError)):
        expected = pytest.raises(raised, match=r"one of the 2 processes has died|^expected another layer$")
        with expected, _terminable(world_with(error)):
            os.kill(os.getpid(), signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is before


def test_a_world_of_one() -> None:
    tensor = torch.ones(2)
    assert ALONE.sum(tensor) is tensor
    assert ALONE.agreed("it") == "it"
    assert list(ALONE.shard(range(3))) == [0, 1, 2]
    assert [list(World(rank, 2).shard(range(5))) for rank in range(2)] == [[0, 2, 4], [1, 3]]
    ALONE.meet()
