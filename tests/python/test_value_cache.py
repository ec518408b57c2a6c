"""Stored values are those that would be computed, for the very same model, edit and settings, or none."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import emmet
from emmet import Edit, EditConfig, Editor, EmmetError, value_cache
from emmet.architectures import discover
from emmet.config import ResolvedConfig
from emmet.keys import in_contexts
from emmet.progress import Progress, silent
from emmet.suffixes import Injection
from emmet.trial import tried
from emmet.value_cache import cached_values
from emmet.values import Values, optimise_values
from tiny import tiny_model, tiny_tokenizer

PREFIXES = ("It is said that. ",)
EDITS = [  # in the order in which they are put into batches
    Edit("The capital of {} is", "France", "Berlin"),
    Edit("The mother tongue of {} is", "Danielle Darrieux", "English"),
    Edit("The twin city of {} is", "Lyon", "Manila"),
    Edit("{} plays the", "Miles Davis", "piano"),
    Edit("{} is located in", "Autonomous University of Madrid", "the United States"),
]


class Cache:
    """A tiny model with a folder of values. `computed` lists what had to be computed, call by call."""

    def __init__(self, folder: Path, *, dtype: torch.dtype = torch.float32, bos: bool = False) -> None:
        self.folder = folder
        self.tokenizer = tiny_tokenizer(bos=bos)
        self.arch = discover(tiny_model("llama", vocab_size=len(self.tokenizer)).to(dtype))
        self.computed: list[list[Edit]] = []

    def config(self, **settings: Any) -> ResolvedConfig:
        defaults = {"layers": [1], "learning_rate": 0.1, "steps": 3, "clamp": 4, "weight_decay": 0.5, "batch_size": 2}
        return EditConfig(**(defaults | settings)).resolve(self.arch.model.config)

    def arguments(self, edits: Sequence[Edit], prefixes: Sequence[str], config: ResolvedConfig) -> tuple[Any, ...]:
        prompts = [in_contexts(self.tokenizer, edit, prefixes) for edit in edits]
        injection = tried(self.arch, Injection.find(self.arch, config.layers[-1]))
        return self.arch, self.tokenizer, edits, prompts, config, injection

    def __call__(
        self,
        edits: Sequence[Edit] = EDITS,
        *,
        prefixes: Sequence[str] = PREFIXES,
        progress: Progress = silent,
        part_size: int = 2,
        **settings: Any,
    ) -> Values:
        arguments = self.arguments(edits, prefixes, self.config(**settings))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(value_cache, "optimise_values", self._optimise_values)
            return cached_values(self.folder, *arguments, progress, part_size=part_size)

    def _optimise_values(self, *arguments: Any) -> Values:
        self.computed.append(list(arguments[2]))
        return optimise_values(*arguments)

    def files(self) -> list[Path]:
        return sorted(self.folder.rglob("*.safetensors"))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "values")


def assert_same_bits(one: Values, other: Values) -> None:
    for name in ("targets", "loss", "steps"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_values_are_those_without_a_cache_bit_for_bit(cache: Cache) -> None:
    expected = optimise_values(*cache.arguments(EDITS, PREFIXES, cache.config()))
    assert_same_bits(cache(part_size=5), expected)  # one part, so that the batches are the same
    assert_same_bits(cache(part_size=5), expected)
    assert cache.computed == [EDITS]


def test_another_order_and_a_subset_find_what_is_there(cache: Cache) -> None:
    whole = cache()
    order = [3, 0, 4]
    found = cache([EDITS[i] for i in order], batch_size=1)
    assert_same_bits(found, Values(whole.targets[order], whole.loss[order], whole.steps[order]))
    assert cache.computed == [EDITS[:2], EDITS[2:4], EDITS[4:]]


def test_only_what_is_missing_is_computed(cache: Cache) -> None:
    cache(EDITS[1:3])
    cache(EDITS)
    assert cache.computed == [EDITS[1:3], [EDITS[0], EDITS[3]], [EDITS[4]]]


def test_an_interrupted_run_goes_on(cache: Cache, tmp_path: Path) -> None:
    def interrupt(_stage: str, done: int, _total: int) -> None:
        if done > 2 * 3:  # steps: in the second part
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache(progress=interrupt)
    assert len(cache.files()) == 1
    assert_same_bits(cache(), Cache(tmp_path / "other")())
    assert cache.computed == [EDITS[:2], EDITS[2:4], EDITS[2:4], EDITS[4:]]


KILLED_RUN = """
import os, signal, sys
from pathlib import Path
from test_value_cache import Cache

def kill(_stage, done, _total):
    if done > 2 * 3:
        os.kill(os.getpid(), signal.SIGKILL)

Cache(Path(sys.argv[1]))(progress=kill)
"""


def test_a_killed_process_goes_on(cache: Cache, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    killed = subprocess.run([sys.executable, "-c", KILLED_RUN, str(cache.folder)], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert_same_bits(cache(), Cache(tmp_path / "other")())
    assert cache.computed == [EDITS[2:4], EDITS[4:]]


def test_progress_counts_what_was_found(cache: Cache) -> None:
    cache(EDITS[:2])
    seen = []
    cache(progress=lambda stage, done, total: seen.append((stage, done, total)))
    assert seen[0] == ("values", 2 * 3, 5 * 3)
    assert seen[-1] == ("values", 5 * 3, 5 * 3)
    assert seen == sorted(seen)


@pytest.mark.parametrize(
    "settings",
    [
        {"learning_rate": 0.2},
        {"steps": 2},
        {"clamp": 3},
        {"weight_decay": 0.4},
        {"kl_factor": 0.1},
        {"stop_loss": 0.1},
        {"optimizer": "newton"},
        {"contexts_per_step": 1},
        {"layers": [2]},
        {"prefixes": ()},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_other_settings_are_other_values(cache: Cache, settings: dict[str, Any]) -> None:
    cache(EDITS[:1])
    cache(EDITS[:1], **settings)
    assert len(cache.computed) == 2


def test_settings_of_the_solver_share_values(cache: Cache) -> None:
    cache(EDITS[:1])
    cache(EDITS[:1], method="memit", ridge=3.0, layers=[0, 1], absorb=0.5, seed=7, batch_size=2)
    assert len(cache.computed) == 1


@pytest.mark.parametrize("name", ["prompt", "subject", "target"])
def test_another_edit_is_another_value(cache: Cache, name: str) -> None:
    cache(EDITS[:1])
    cache([replace(EDITS[0], **{name: "The tongue of {}" if name == "prompt" else "Paris"})])
    assert len(cache.computed) == 2


def test_an_id_does_not_count(cache: Cache) -> None:
    cache(EDITS[:1])
    cache([replace(EDITS[0], id="7")])
    assert len(cache.computed) == 1


@torch.no_grad()
def test_an_edited_model_has_other_values(cache: Cache) -> None:
    unedited = cache(EDITS[:1])
    weight = cache.arch.projection(3).weight
    saved = weight.clone()
    weight.data[0, 0] += 1  # behind the back of autograd, which counts no change
    cache(EDITS[:1])
    assert len(cache.computed) == 2
    weight.copy_(saved)
    assert_same_bits(cache(EDITS[:1]), unedited)
    assert len(cache.computed) == 2


def test_another_model_has_other_values(tmp_path: Path) -> None:
    others = [Cache(tmp_path), Cache(tmp_path, dtype=torch.float64), Cache(tmp_path, bos=True), Cache(tmp_path)]
    others[-1].arch.model.config.rms_norm_eps *= 2
    for other in others:
        other(EDITS[:1])
        assert len(other.computed) == 1


def test_the_dtype_of_the_targets_is_kept(tmp_path: Path) -> None:
    cache = Cache(tmp_path, dtype=torch.bfloat16)
    assert_same_bits(cache(EDITS[:1]), cache(EDITS[:1]))
    assert len(cache.computed) == 1


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-300] ^= 1
    path.write_bytes(content)


def rename_edits(path: Path) -> None:
    content = path.read_bytes()
    place = content.index(b'\\"', content.index(b'"edits"')) + 2
    path.write_bytes(content[:place] + (b"0" if content[place : place + 1] != b"0" else b"1") + content[place + 1 :])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, rename_edits, empty])
def test_a_damaged_part_is_computed_again(cache: Cache, damage: Any) -> None:
    expected = cache()
    damage(cache.files()[1])
    cache.computed.clear()
    with pytest.warns(emmet.EmmetWarning, match=f"{cache.files()[1].name}.*computed again"):
        again = cache()
    assert_same_bits(again, expected)
    assert len(cache.computed) == 1
    assert_same_bits(cache(), expected)  # and it is whole again
    assert len(cache.computed) == 1


def test_a_strangers_file_is_left_alone(cache: Cache) -> None:
    cache(EDITS[:1])
    stranger = cache.files()[0].with_name("a.safetensors")
    stranger.write_text("not one of ours")
    with pytest.warns(emmet.EmmetWarning, match="a.safetensors"):
        cache(EDITS[:1])
    assert stranger.read_text() == "not one of ours"
    assert len(cache.computed) == 1


def test_two_processes_that_write_at_once(cache: Cache) -> None:
    """The other process, which finds the same part meanwhile, is played by the progress of the first."""
    other = Cache(cache.folder)
    cache(EDITS[:2], progress=lambda _stage, done, total: None if done == total or other.computed else other(EDITS[:2]))
    assert len(other.computed) == 1
    assert len(cache.files()) == 1
    cache(EDITS[:2])
    assert len(cache.computed) == 1


def test_a_folder_that_cannot_be_written_to_is_refused_first(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    cache = Cache(tmp_path / "file" / "values")
    with pytest.raises(EmmetError, match="cannot write to"):
        cache()
    assert cache.computed == []


def test_the_editor_takes_values_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text("The quick brown fox jumps over the lazy dog in Paris. " * 60)
    tokenizer = tiny_tokenizer()
    model = tiny_model("llama", vocab_size=len(tokenizer))
    statistics = emmet.collect_statistics(model, tokenizer, tmp_path / "text.txt", layers=[1], tokens=500)
    config = EditConfig(layers=[1], prefixes=PREFIXES, steps=3)
    plain = Editor(model, tokenizer, config=config, statistics=statistics)
    cached = Editor(model, tokenizer, config=config, statistics=statistics, value_cache=tmp_path / "values")
    assert_same_bits(cached.values(EDITS), plain.values(EDITS))

    monkeypatch.setattr(value_cache, "optimise_values", None)  # what calls it now, fails
    handle = cached.edit(EDITS)
    weight = cached.arch.projection(1).weight.clone()
    handle.undo()
    plain.edit(EDITS)
    assert torch.equal(plain.arch.projection(1).weight, weight)
