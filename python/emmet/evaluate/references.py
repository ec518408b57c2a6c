"""Reference texts, and how alike two texts are in their words."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..errors import FormatError
from ..storage import first_line, parse_json

_WORD = re.compile(r"\w\w+")

Attribute = tuple[str, str]
"""A relation and its target, as Wikidata numbers them: a record's `attribute`."""


def read_references(path: Path) -> dict[Attribute, list[str]]:
    """Read texts about subjects that have an attribute, by the attribute.

    `path` is attribute_snippets.json as released with ROME (Meng et al. 2022, arXiv 2202.05262): a JSON array of
    objects with relation_id, target_id, and samples, each with a text. Raises FormatError for any other file.
    """
    references: dict[Attribute, list[str]] = {}
    try:
        for entry in parse_json(path.read_text(encoding="utf-8")):
            texts = [_text(sample["text"]) for sample in entry["samples"]]
            references.setdefault((_text(entry["relation_id"]), _text(entry["target_id"])), []).extend(texts)
    except OSError as error:
        message = f"cannot read {path}: {error.strerror}; expected attribute_snippets.json of ROME's release"
        raise FormatError(message) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        message = f"{path} is not like attribute_snippets.json of ROME's release, a JSON array of objects with "
        message += f"relation_id, target_id and samples ({first_line(error)})"
        raise FormatError(message) from error
    return references


def _text(value: object) -> str:
    if not isinstance(value, str):
        message = f"expected a text, got {value!r}"
        raise TypeError(message)
    return value


class WordWeights:
    """TF-IDF vectors of texts (Salton and Buckley 1988), with the document frequencies of a collection of texts.

    A word counts as often as it occurs in the text, times ln((1 + N) / (1 + n)) + 1 where n of the collection's N texts
    have it: the default of scikit-learn, but for words that the collection lacks, which count with n = 0. Words have
    two letters or digits at least; case does not matter.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        words = [set(_words(text)) for text in texts]
        self._texts = len(words)
        self._texts_with = Counter(word for of_text in words for word in of_text)

    def similarity(self, one: str, other: str) -> float:
        """The cosine of two texts' vectors: 1 for equal texts, 0 where no word is in both."""
        first, second = self._vector(one), self._vector(other)
        product = sum(weight * second[word] for word, weight in first.items() if word in second)
        return product / (_length(first) * _length(second)) if product else 0.0

    def _vector(self, text: str) -> dict[str, float]:
        return {word: count * self._weight(word) for word, count in Counter(_words(text)).items()}

    def _weight(self, word: str) -> float:
        return math.log((1 + self._texts) / (1 + self._texts_with[word])) + 1


def _words(text: str) -> Sequence[str]:
    return _WORD.findall(text.lower())


def _length(vector: Mapping[str, float]) -> float:
    return math.sqrt(sum(weight**2 for weight in vector.values()))
