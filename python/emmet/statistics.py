"""The second moment C = E[k kᵀ] of each layer's keys over ordinary text: the memories that an edit is to preserve.

One pass over the text serves all layers and ends at the deepest. A run that was killed goes on from its last checkpoint.
Every file says what it was computed from, and is used for nothing else.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from . import __version__
from ._core import Covariance
from .architectures import Architecture, discover
from .corpora import Corpus, open_corpus
from .errors import ConfigError, FormatError, NonFiniteError, StatisticsError
from .fingerprint import layer_fingerprints, tokenizer_fingerprint
from .hooks import frozen, on_input, stop_after
from .progress import Progress, silent
from .storage import TensorFile, cache_folder, read_tensors, write_tensors

# In the metadata of the files. Another format gets another number.
_FORMAT = "emmet statistics 1"
_CHECKPOINT_FORMAT = "emmet statistics checkpoint 1"

# Gupta et al. 2025, arXiv 2506.04226: this many tokens for each input dimension give the whole score.
_TOKENS_PER_DIMENSION = 10


@dataclass(frozen=True, slots=True)
class Source:
    """The text that statistics were collected on. Together with the model it determines them.

    `tokens` were asked for; a small corpus has fewer.
    """

    corpus: str = field(compare=False)  # its name; what counts is the hash
    corpus_hash: str
    tokenizer: str
    tokens: int
    sequence_length: int
    seed: int | None


@dataclass(frozen=True, slots=True)
class LayerStatistics:
    """The second moment [d_in, d_in] (float64, on the CPU) of one layer's keys, over `count` tokens.

    `fingerprint` and `dtype` are those of the model.
    """

    layer: int
    second_moment: Tensor
    count: int
    fingerprint: str
    dtype: str
    sources: tuple[Source, ...]

    def merge(self, other: LayerStatistics) -> LayerStatistics:
        """The statistics over the text of both. Raises StatisticsError if they are not of the same layer and model."""
        if (self.layer, self.fingerprint) != (other.layer, other.fingerprint):
            message = f"cannot merge statistics of layer {self.layer} with those of another layer or model"
            raise StatisticsError(message)
        count = self.count + other.count
        total = self.count * self.second_moment + other.count * other.second_moment
        sources = self.sources + other.sources
        return LayerStatistics(self.layer, total / count, count, self.fingerprint, self.dtype, sources)

    def save(self, folder: Path) -> None:
        """Write ``layer.N.safetensors`` in `folder`."""
        metadata = {
            "format": _FORMAT,
            "emmet_version": __version__,
            "layer": str(self.layer),
            "count": str(self.count),
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "sources": json.dumps([asdict(source) for source in self.sources]),
        }
        write_tensors(layer_path(folder, self.layer), {"second_moment": self.second_moment}, metadata)

    @staticmethod
    def load(path: Path) -> LayerStatistics:
        """Read what `save` wrote. Raises FormatError for any other file."""
        tensors, metadata = _read(path, _FORMAT)
        second_moment = tensors["second_moment"]
        ...


def layer_path(folder: Path, layer: int) -> Path:
    """The file of a layer's statistics."""
    return folder / f"layer.{layer}.safetensors"
