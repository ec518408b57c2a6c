"""The texts that statistics are collected on: a file, a data set of the Hugging Face hub, or what the model writes."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .errors import EmmetError, StatisticsError
from .progress import Progress, silent, within
from .sampling import sample
from .storage import file_hash, first_line

_HUB_PREFIX = "hf:"
_SAMPLED = "self"

# Sampled texts are short and many: a wide batch uses the machine, and text drifts as it goes on.
_SAMPLED_LENGTH = 64
_SAMPLED_ROWS = 256

# A text is cut into pieces of about one sequence; a token of ordinary text has four to five bytes.
_BYTES_PER_TOKEN = 4
_CHARACTER_BYTES = 4  # at most, in UTF-8
_GOLDEN = (5**0.5 - 1) / 2


def _any(_index: int) -> bool:
    return True


class Corpus(ABC):
    """A source of token sequences; `str(corpus)` is how the user names it.

    `seed` is None where nothing is drawn.
    """

    seed: int | None = None

    @property
    def block(self) -> int:
        """How many sequences are made at once, so that one costs as much as all of them."""
        return 1

    @abstractmethod
    def digest(self) -> str:
        """A hash of all that determines the text but for the model. Raises StatisticsError if it cannot be read."""

    @abstractmethod
    def token_sequences(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens: int,
        length: int,
        wanted: Callable[[int], bool] = _any,
        progress: Progress = silent,
    ) -> Iterator[Tensor]:
        """Sequences of token ids [length] on the CPU, the same each time, until they hold `tokens` in all.

        The last one is shorter if need be, and there are fewer if the corpus is smaller. Those are left out whose index
        is not `wanted`. Raises StatisticsError if the corpus cannot be read.
        """


def open_corpus(name: str | Path, seed: int = 0) -> Corpus:
    """The corpus of a name: "self", "hf:NAME" or "hf:NAME:CONFIG" (a data set of the hub), else a text file's path.

    A file that is called self is "./self". `seed` is for text that is sampled.
    """
    if name == _SAMPLED:
        return SampledText(seed)
    if isinstance(name, str) and name.startswith(_HUB_PREFIX):
        dataset, _, config = name.removeprefix(_HUB_PREFIX).partition(":")
        return HubDataset(dataset, config or None)
    return TextFile(Path(name))


class _Text(Corpus):
    """A corpus of pieces of text, packed into sequences without padding.

    Each sequence begins with the beginning-of-text token if the tokenizer puts one before every text.
    """

    @abstractmethod
    def _pieces(self, size: int) -> Iterator[str]:
        """The text, in pieces of about `size` bytes."""

    def token_sequences(
        self,
        model: PreTrainedModel,  # noqa: ARG002
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens: int,
        length: int,
        wanted: Callable[[int], bool] = _any,
        progress: Progress = silent,  # noqa: ARG002
    ) -> Iterator[Tensor]:
        packed = zip(range(0, tokens, length), self._packed(tokenizer, length), strict=False)
        return (ids[: tokens - start] for start, ids in packed if wanted(start // length))

    def _packed(self, tokenizer: PreTrainedTokenizerBase, length: int) -> Iterator[Tensor]:
        beginning = _beginning(tokenizer)
        room = length - len(beginning)
        pending: list[int] = []
        for piece in self._pieces(_BYTES_PER_TOKEN * length):
            pending += tokenizer(piece, add_special_tokens=False, verbose=False)["input_ids"]
            while len(pending) >= room:
                yield torch.tensor(beginning + pending[:room])
                del pending[:room]
        if pending:
            yield torch.tensor(beginning + pending)


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The beginning-of-text token, if the tokenizer puts one before every text."""
    first = tokenizer("a")["input_ids"][:1]
    return first if first == [tokenizer.bos_token_id] else []


@dataclass(frozen=True)
class TextFile(_Text):
    """A text file in UTF-8. If only a part of it is needed, that part is spread evenly over the file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def digest(self) -> str:
        with self._readable():
            return file_hash(self.path)

    def _pieces(self, size: int) -> Iterator[str]:
        with self._readable(), self.path.open("rb") as file:
            count = math.ceil(self.path.stat().st_size / size)
            for index in _spread(count):
                file.seek(index * size)
                yield _whole_characters(file.read(size + _CHARACTER_BYTES - 1), size).decode()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError as error:
            message = f"{self.path} is not a text file in UTF-8: convert it, or give another corpus"
            raise StatisticsError(message) from error
        except OSError as error:
            message = f"cannot read {self.path} ({error.strerror or error}): a corpus is a text file, hf:NAME or self"
            raise StatisticsError(message) from error


def _spread(count: int) -> Iterator[int]:
    """All of range(count), in golden-ratio steps modulo count: the first so many of them are always spread evenly."""
    step = next((s for s in range(round(_GOLDEN * count), count) if math.gcd(s, count) == 1), 1)
    return (i * step % count for i in range(count))


def _whole_characters(block: bytes, size: int) -> bytes:
    """The UTF-8 characters that begin in the first `size` bytes of a block that goes on a little after these."""
    return block[_next_character(block, 0) : _next_character(block, size)]


def _next_character(block: bytes, position: int) -> int:
    while position < len(block) and block[position] & 0xC0 == 0x80:
        position += 1
    return position


@dataclass(frozen=True)
class HubDataset(_Text):
    """A data set of the hub or of a local folder, streamed: the start of each "text" in its train split."""

    name: str
    config: str | None = None

    def __str__(self) -> str:
        return _HUB_PREFIX + ":".join(part for part in (self.name, self.config) if part)

    def digest(self) -> str:
        builder = self._builder()
        files = builder.config.data_files or {}
        # The hash of a local folder whose README names files by patterns is of these, not of the files found.
        versions = sorted((str(split), of_split.origin_metadata) for split, of_split in files.items())
        return hashlib.sha256(f"{self} {builder.hash} {versions}".encode()).hexdigest()

    def _pieces(self, size: int) -> Iterator[str]:
        builder = self._builder()
        with self._readable():
            splits = builder.as_streaming_dataset()
            for row in splits.get("train") or next(iter(splits.values())):
                yield self._text(row)[:size]

    def _text(self, row: dict[str, Any]) -> str:
        text = row.get("text")
        if not isinstance(text, str):
            message = f'{self} has no column "text", but {", ".join(row)}: choose another data set, or a text file'
            raise StatisticsError(message)
        return text

    def _builder(self) -> Any:
        try:
            from datasets import load_dataset_builder
        except ImportError as error:
            message = f"reading {self} needs the package datasets: pip install 'emmet-edit[datasets]'"
            raise StatisticsError(message) from error
        with self._readable():
            return load_dataset_builder(self.name, self.config)

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except EmmetError:
            raise
        except Exception as error:  # whatever datasets, the hub, the network and the file formats raise
            message = f"cannot read {self}: {first_line(error)}; check name and network, or give a text file or self"
            raise StatisticsError(message) from error


@dataclass(frozen=True)
class SampledText(Corpus):
    """Text that the model itself writes, at temperature 1 from the beginning-of-text token.

    Sequences have at most 64 tokens. Each block of them has its own seed, so that one can be left out at no cost.
    """

    seed: int = 0

    @property
    def block(self) -> int:
        return _SAMPLED_ROWS

    def __str__(self) -> str:
        return _SAMPLED

    def digest(self) -> str:
        settings = f"sampled, temperature 1, length {_SAMPLED_LENGTH}, rows {_SAMPLED_ROWS}, seed {self.seed}"
        return hashlib.sha256(settings.encode()).hexdigest()

    def token_sequences(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        tokens: int,
        length: int,
        wanted: Callable[[int], bool] = _any,
        progress: Progress = silent,
    ) -> Iterator[Tensor]:
        length = min(length, _SAMPLED_LENGTH)
        starts = range(0, tokens, length)
        for first in range(0, len(starts), self.block):
            batch = starts[first : first + self.block]
            left = [index for index in range(len(batch)) if wanted(first + index)]
            if left:
                done = within(progress, first * (length - 1), len(starts) * (length - 1))
                rows = self._sampled(model, tokenizer, len(batch), length, first, done)
                for index in left:
                    yield rows[index, : tokens - batch[index]]

    def _sampled(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: int,
        length: int,
        first: int,
        progress: Progress,
    ) -> Tensor:
        """A batch [rows, length] whose random numbers are determined by the seed and by the index of its first row."""
        generator = torch.Generator().manual_seed(self.seed + (first << 32))
        beginning = torch.full((rows, 1), _first_token(tokenizer), device=model.device)
        return sample(model, beginning, max_new_tokens=length - 1, generator=generator, progress=progress).cpu()


def _first_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token to sample from: beginning of text, else end of text (which separates texts), else a line break."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return int(tokenizer("\n", add_special_tokens=False)["input_ids"][0])
