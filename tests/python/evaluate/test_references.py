"""Reference texts are read by attribute; similarities equal scikit-learn's, and values worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from emmet.errors import FormatError
from emmet.evaluate.references import WordWeights, read_references

SNIPPETS = [
    {"relation_id": "P103", "target_id": "Q1860", "samples": [{"name": "Ann", "text": "Ann spoke"}, {"text": "Bob"}]},
    {"relation_id": "P103", "target_id": "Q150", "samples": []},
    {"relation_id": "P103", "target_id": "Q1860", "samples": [{"text": "Eve, too"}]},
]
TEXTS = (
    "the cat sat on the mat, and the other cat sat by it",
    "The dog sat on the cat!",
    "a dog is a dog is a DOG",
    "music: piano, guitar; the piano, a piano",
)


def test_texts_are_read_by_attribute(tmp_path: Path) -> None:
    path = tmp_path / "attribute_snippets.json"
    path.write_text(json.dumps(SNIPPETS), encoding="utf-8")
    assert read_references(path) == {("P103", "Q1860"): ["Ann spoke", "Bob", "Eve, too"], ("P103", "Q150"): []}


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "3",
        '{"a": 1}',
        '[{"relation_id": "P103", "samples": []}]',
        '[{"relation_id": "P103", "target_id": null, "samples": []}]',
        '[{"relation_id": "P103", "target_id": "Q1", "samples": [{"text": 3}]}]',
        '[{"relation_id": "P103", "target_id": "Q1", "samples": ["text"]}]',
    ],
)
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(FormatError, match=r"other\.json is not like attribute_snippets\.json.* samples \("):
        read_references(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"cannot read .*missing\.json: No such file"):
        read_references(tmp_path / "missing.json")


def test_similarity_equals_a_value_worked_out_by_hand() -> None:
    weights = WordWeights(["red cat", "red dog", "blue dog"])
    red, cat, blue = (math.log(4 / (1 + n)) + 1 for n in (2, 1, 1))
    unseen = math.log(4) + 1
    found = weights.similarity("Red cat, red bird", "a blue cat")
    lengths = math.sqrt(4 * red**2 + cat**2 + unseen**2) * math.sqrt(blue**2 + cat**2)
    assert found == pytest.approx(cat**2 / lengths)


def test_similarities_equal_those_of_scikit_learn() -> None:
    text = pytest.importorskip("sklearn.feature_extraction.text", reason="scikit-learn is the oracle")
    vectors = text.TfidfVectorizer().fit_transform(TEXTS)
    expected = (vectors @ vectors.T).toarray()
    weights = WordWeights(TEXTS)
    assert [[weights.similarity(one, other) for other in TEXTS] for one in TEXTS] == [
        pytest.approx(list(row)) for row in expected
    ]


def test_texts_without_a_word_in_common_are_not_alike() -> None:
    weights = WordWeights(TEXTS)
    assert weights.similarity("the cat", "is") == 0
    assert weights.similarity("the cat", "! a") == 0
    assert weights.similarity("", "") == 0
