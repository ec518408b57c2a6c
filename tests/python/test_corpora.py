"""A corpus gives the tokens of its text, spread over the whole of it, the same each time."""

from __future__ import annotations

import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from emmet import corpora
from emmet.corpora import HubDataset, SampledText, TextFile, open_corpus
from emmet.errors import StatisticsError
from tiny import tiny_model, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
MODEL = tiny_model("llama", vocab_size=len(TOKENIZER))
EVERYTHING = 10**6


def sequences(corpus: corpora.Corpus, tokens: int = EVERYTHING, length: int = 16, **others: Any) -> list[Tensor]:
    tokenizer = others.pop("tokenizer", TOKENIZER)
    return list(corpus.token_sequences(MODEL, tokenizer, tokens=tokens, length=length, **others))


def text_of(found: list[Tensor]) -> str:
    text = TOKENIZER.decode(torch.cat(found))
    assert isinstance(text, str)
    return text


def text_file(folder: Path, text: str) -> TextFile:
    path = folder / "corpus.txt"
    path.write_text(text, encoding="utf-8", newline="")
    return TextFile(path)


def test_names() -> None:
    assert open_corpus("self", seed=3) == SampledText(3)
    assert open_corpus("hf:wikitext") == HubDataset("wikitext")
    assert open_corpus("hf:Salesforce/wikitext:raw-v1") == HubDataset("Salesforce/wikitext", "raw-v1")
    assert open_corpus("./self") == TextFile(Path("self"))
    assert open_corpus(Path("self")) == TextFile(Path("self"))
    assert str(open_corpus("hf:a/b:c")) == "hf:a/b:c"
    assert [open_corpus(name, seed=3).seed for name in ("self", "hf:a", "a.txt")] == [3, None, None]


def test_a_small_file_is_used_whole_and_in_order(tmp_path: Path) -> None:
    text = "The capital of France is Paris.\r\nNot Berlin."
    found = sequences(text_file(tmp_path, text), length=20)
    assert text_of(found) == text
    assert [len(ids) for ids in found[:-1]] == [20] * (len(found) - 1)
    assert 1 <= len(found[-1]) <= 20


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="ab é€😀\n", max_size=300), st.integers(2, 9))
def test_no_character_is_lost_or_broken_where_a_file_is_cut(tmp_path: Path, text: str, length: int) -> None:
    found = sequences(text_file(tmp_path, text), length=length)
    assert Counter(text_of(found) if found else "") == Counter(text)


@given(st.integers(1, 400), st.integers(2, 40))
def test_so_many_tokens_as_asked_for(tokens: int, length: int) -> None:
    source = TextFile(Path(__file__))
    found = sequences(source, tokens, length)
    assert sum(map(len, found)) == tokens
    assert all(len(ids) == length for ids in found[:-1])
    assert len(found[-1]) <= length


def test_a_part_is_spread_over_the_file(tmp_path: Path) -> None:
    """The text is a hundred chapters, each of its own letter pair; a tenth of it touches every region."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    corpus = text_file(tmp_path, "".join(f"{letters[i // 26]}{letters[i % 26]}." * 200 for i in range(100)))
    whole = sum(map(len, sequences(corpus)))
    text = text_of(sequences(corpus, tokens=whole // 10))
    chapters = [i for i in range(100) if f"{letters[i // 26]}{letters[i % 26]}." in text]
    assert all(any(start <= chapter < start + 10 for chapter in chapters) for start in range(0, 100, 10))


@given(st.integers(0, 3000))
def test_spread_visits_everything_once(count: int) -> None:
    assert sorted(corpora._spread(count)) == list(range(count))


@pytest.mark.parametrize("name", ["file", "self"])
def test_leaving_out_the_first_leaves_the_rest_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(corpora, "_SAMPLED_ROWS", 4)
    corpus = text_file(tmp_path, "Toko Yasuda plays the guitar. " * 40) if name == "file" else SampledText()
    every = sequences(corpus, tokens=150)
    assert len(every) == 10
    for skip in range(12):
        rest = sequences(corpus, tokens=150, wanted=lambda index, skip=skip: index >= skip)
        assert len(rest) == max(10 - skip, 0)
        assert all(torch.equal(one, other) for one, other in zip(rest, every[skip:], strict=True))
    odd = sequences(corpus, tokens=150, wanted=lambda index: index % 2 == 1)
    assert all(torch.equal(one, other) for one, other in zip(odd, every[1::2], strict=True))


def test_unwanted_batches_are_not_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpora, "_SAMPLED_ROWS", 4)
    reports: list[tuple[str, int, int]] = []
    sequences(
        SampledText(), tokens=160, wanted=lambda index: index >= 8, progress=lambda *report: reports.append(report)
    )
    assert len(reports) == 15  # one batch of ten rows' three, in sequences of 16
    assert reports[-1] == ("sampling", 150, 150)


@pytest.mark.parametrize("kind", ["byte_level", "metaspace"])
def test_sequences_begin_as_the_tokenizer_begins_texts(tmp_path: Path, kind: Any) -> None:
    corpus = text_file(tmp_path, "Toko Yasuda plays the guitar. " * 40)
    for bos in (False, True):
        tokenizer = tiny_tokenizer(kind=kind, bos=bos, eos=True)
        found = sequences(corpus, tokenizer=tokenizer)
        special = [[i for i, token in enumerate(ids) if token in tokenizer.all_special_ids] for ids in found]
        assert special == [[0] if bos else []] * len(found)
        assert all(len(ids) == 16 for ids in found[:-1])


def test_digest_is_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    text = "one two three " * 1000
    digest = text_file(tmp_path, text).digest()
    assert text_file(tmp_path / "other", text).digest() == digest
    assert text_file(tmp_path, text + "x").digest() != digest


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.txt"
    latin.write_bytes("café ".encode("latin-1") * 100)
    with pytest.raises(StatisticsError, match=r"latin\.txt is not a text file in UTF-8"):
        sequences(TextFile(latin))
    for path in (tmp_path, tmp_path / "missing.txt"):
        for read in (TextFile.digest, sequences):
            with pytest.raises(StatisticsError, match=f"cannot read {path} "):
                read(TextFile(path))


def test_an_empty_file_gives_nothing(tmp_path: Path) -> None:
    assert sequences(text_file(tmp_path, "")) == []


def test_sampled_text_begins_at_the_beginning_of_text() -> None:
    found = sequences(SampledText(), tokens=100, length=10)
    assert [int(ids[0]) for ids in found] == [TOKENIZER.bos_token_id] * 10
    assert len({tuple(ids.tolist()) for ids in found}) == 10


def test_sampled_sequences_are_short_and_hold_the_tokens_asked_for() -> None:
    assert [len(ids) for ids in sequences(SampledText(), tokens=150, length=512)] == [64, 64, 22]


def test_sampled_text_follows_its_seed() -> None:
    def drawn(seed: int) -> Tensor:
        return torch.cat(sequences(SampledText(seed), tokens=160))

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert SampledText(0).digest() == SampledText(0).digest()
    assert SampledText(0).digest() != SampledText(1).digest()


def without(tokenizer: PreTrainedTokenizerBase, *tokens: str) -> PreTrainedTokenizerBase:
    for token in tokens:
        setattr(tokenizer, token, None)
    return tokenizer


def test_without_a_beginning_of_text_sampling_begins_at_its_end_or_a_line_break() -> None:
    def first(tokenizer: PreTrainedTokenizerBase) -> int:
        return int(sequences(SampledText(), tokens=4, length=4, tokenizer=tokenizer)[0][0])

    assert first(without(tiny_tokenizer(), "bos_token")) == TOKENIZER.eos_token_id
    line_break = TOKENIZER("\n", add_special_tokens=False)["input_ids"]
    assert [first(without(tiny_tokenizer(), "bos_token", "eos_token"))] == line_break


class TestHubDataset:
    """A local folder stands in for the hub."""

    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        (tmp_path / "data").mkdir()
        return tmp_path / "data"

    def test_texts_of_the_train_split(self, folder: Path) -> None:
        (folder / "train.jsonl").write_text('{"text": "One text."}\n{"text": ""}\n{"text": "Two."}\n')
        (folder / "test.jsonl").write_text('{"text": "Not this."}\n')
        corpus = open_corpus(f"hf:{folder}")
        assert text_of(sequences(corpus)) == "One text.Two."
        assert corpus.digest() == open_corpus(f"hf:{folder}").digest()

    @pytest.mark.parametrize("patterns", ["", "---\nconfigs:\n- config_name: default\n  data_files: train*\n---\n"])
    def test_digest_is_of_the_files(self, folder: Path, patterns: str) -> None:
        def digest_of(text: str, time: int) -> str:
            (folder / "train.jsonl").write_text(f'{{"text": "{text}"}}\n')
            os.utime(folder / "train.jsonl", (time, time))
            return open_corpus(f"hf:{folder}").digest()

        (folder / "README.md").write_text(patterns)
        digest = digest_of("One text.", 1)
        assert digest_of("One text.", 1) == digest
        assert digest_of("Another one.", 2) != digest

    def test_only_the_start_of_a_long_text(self, folder: Path) -> None:
        (folder / "train.jsonl").write_text(f'{{"text": "{"a" * 1000}"}}\n{{"text": "Two."}}\n')
        assert text_of(sequences(open_corpus(f"hf:{folder}"), length=16)) == "a" * 64 + "Two."

    def test_no_text_column(self, folder: Path) -> None:
        (folder / "train.jsonl").write_text('{"question": "Who?", "answer": "Nobody."}\n')
        with pytest.raises(StatisticsError, match='no column "text", but question, answer'):
            sequences(open_corpus(f"hf:{folder}"))

    def test_hub_out_of_reach(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")

        def unreachable(*_args: object) -> None:
            message = "Couldn't reach 'wikitext' on the Hub\nTry later"
            raise ConnectionError(message)

        monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
        with pytest.raises(StatisticsError, match=r"^cannot read hf:wikitext: Couldn't reach .* Hub; .*$"):
            open_corpus("hf:wikitext").digest()

    def test_package_missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(StatisticsError, match=r"pip install 'emmet-edit\[datasets\]'"):
            open_corpus("hf:wikitext").digest()
