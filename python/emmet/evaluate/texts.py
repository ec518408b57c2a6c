"""Longer texts that a model writes from a record's generation prompts: whether they are fluent, and about the target.

The metrics of Meng et al. (2022, arXiv 2202.05262, section 3.3), multiplied by 100 as their tables are:

    GE    generation entropy, in hundredths of a bit: the mean over the texts of (2/3 H₂ + 4/3 H₃) / 2, Hₙ the entropy
          of a text's n-grams of words. It falls when a model repeats itself.
    RS    reference score, in percent: cosine of the TF-IDF vectors of all texts of a record and of all reference texts
          about subjects that have the target as attribute (see `references`)

As in the published code of MEMIT (Meng et al. 2023, arXiv 2210.07229) each text has 100 tokens, the prompt included,
and each token is drawn from the five likeliest. Two things differ from it: a word is a run of letters and digits or a
single other mark, where NLTK's rules decided; document frequencies are those of the reference texts, where they were
Wikipedia's.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

import torch
from transformers import PreTrainedTokenizerBase

from ..architectures import Architecture
from ..edits import Record
from ..errors import EditError
from ..forward import batches_of_one_length
from ..progress import Progress, silent
from ..sampling import sample
from ..tokens import encode_prompts
from .generation import ROWS
from .intervals import percent
from .references import Attribute, WordWeights
from .scoring import shortened

METRICS = {
    "GE": "generation entropy of sampled texts, in hundredths of a bit: low where they repeat themselves",
    "RS": "reference score: TF-IDF cosine of sampled texts and of texts about subjects with the target as attribute",
}

_LENGTH = 100  # tokens, the prompt included
_TOP_K = 5
_WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # of the entropy of n-grams
_WORD = re.compile(r"\w+|[^\w\s]")


def evaluate_texts(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    references: Mapping[Attribute, Sequence[str]] | None = None,
    progress: Progress = silent,
    seed: int = 0,
) -> list[dict[str, object]]:
    """Each record's values of METRICS, None where it has no generation prompts or reference texts, and its "texts".

    Raises EditError if no record has generation prompts, none has `references` where they are given, or a prompt is too
    long, and NonFiniteError if the model gives NaN or infinity.
    """
    check_records(arch, tokenizer, records, references)
    about_target = [_references_of(record, references) for record in records]
    prompts = _prompts(records)
    written = iter(_write(arch, tokenizer, prompts, torch.Generator(arch.model.device).manual_seed(seed), progress))
    weights = WordWeights(text for texts in (references or {}).values() for text in texts)
    rows: list[dict[str, object]] = []
    for record, of_target in zip(records, about_target, strict=True):
        texts = list(islice(written, len(record.generation_prompts)))
        similarity = weights.similarity(" ".join(texts), " ".join(of_target)) if texts and of_target else None
        rows.append(
            {
                "GE": percent(map(entropy, texts)),
                "RS": None if similarity is None else 100 * similarity,
                "texts": texts,
            }
        )
    return rows


def check_records(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    records: Sequence[Record],
    references: Mapping[Attribute, Sequence[str]] | None = None,
) -> None:
    """Raise EditError for what `evaluate_texts` cannot take, before any text is written."""
    prompts = _prompts(records)
    if not prompts:
        message = "expected records with generation prompts, got none: give CounterFact as published with ROME"
        raise EditError(message)
    if references is not None and not any(_references_of(record, references) for record in records):
        message = "expected reference texts for the records, got none about their relations and targets: "
        message += "give the file that was published with the records"
        raise EditError(message)
    length = _text_length(arch)
    for prompt, encoded in zip(prompts, encode_prompts(tokenizer, prompts), strict=True):
        if len(encoded.ids) >= length:
            message = f"the generation prompt {shortened(prompt)} has {len(encoded.ids)} tokens, but a text has "
            message += f"{length} with it: shorten the record or leave it out"
            raise EditError(message)


def entropy(text: str) -> float:
    """The weighted mean of the entropies of a text's 2- and 3-grams of words, in bits; 0 where it is too short."""
    words = _WORD.findall(text)
    return sum(weight * _entropy_of_grams(words, n) for n, weight in _WEIGHTS.items()) / len(_WEIGHTS)


def _entropy_of_grams(words: Sequence[str], n: int) -> float:
    counts = Counter(zip(*(words[start:] for start in range(n)), strict=False))
    return -sum(count / counts.total() * math.log2(count / counts.total()) for count in counts.values())


def _references_of(record: Record, references: Mapping[Attribute, Sequence[str]] | None) -> Sequence[str]:
    return () if references is None or record.attribute is None else references.get(record.attribute, ())


def _prompts(records: Sequence[Record]) -> list[str]:
    return [prompt for record in records for prompt in record.generation_prompts]


def _text_length(arch: Architecture) -> int:
    return _LENGTH if arch.max_positions is None else min(_LENGTH, arch.max_positions)


def _write(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    generator: torch.Generator,
    progress: Progress,
) -> list[str]:
    """A text that begins with each prompt."""
    length = _text_length(arch)
    rows = [prompt.ids for prompt in encode_prompts(tokenizer, prompts)]
    texts = [""] * len(rows)
    done = 0
    for batch in batches_of_one_length([len(row) for row in rows], ROWS):
        ids = torch.tensor([rows[i] for i in batch], device=arch.model.device)
        ids = sample(arch.model, ids, max_new_tokens=length - ids.shape[1], generator=generator, top_k=_TOP_K)
        for index, text in zip(batch, tokenizer.batch_decode(ids, skip_special_tokens=True), strict=True):
            texts[index] = text
        done += len(batch)
        progress("texts", done, len(rows))
    return texts
