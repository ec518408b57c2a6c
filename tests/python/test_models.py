"""Every causal language model of the installed `transformers` is edited, or refused with a reason.

Run by `pytest -m models`; the families of `tiny` stand for them in the tests that run always.
"""

from __future__ import annotations

import pytest
import transformers

import zoo
from matrix import DOCUMENT, Outcome, document, outcome


@pytest.fixture(scope="module")
def outcomes() -> dict[str, Outcome]:
    return {}


@pytest.mark.models
@pytest.mark.parametrize("model_type", zoo.MODEL_TYPES)
def test_is_edited_or_refused(model_type: str, outcomes: dict[str, Outcome]) -> None:
    outcomes[model_type] = outcome(model_type)
    assert outcomes[model_type].kind != "fails", outcomes[model_type].text


@pytest.mark.models
def test_document_tells_of_them(outcomes: dict[str, Outcome]) -> None:
    if set(outcomes) != set(zoo.MODEL_TYPES):
        pytest.skip("not all model types were tried")
    written = DOCUMENT.read_text(encoding="utf-8")
    if f"`transformers` {transformers.__version__}," not in written:
        pytest.skip("docs/models.md is about another version of transformers")
    assert written == document(outcomes), "run `make docs-models`"


# One for each way in which a model cannot be resumed from keys and values: another cache, a silent error, no cache.
@pytest.mark.parametrize("model_type", ["jamba", "recurrent_gemma", "openai-gpt", "rwkv"])
def test_models_that_keep_more_than_keys_and_values_are_refused(model_type: str) -> None:
    found = outcome(model_type)
    assert found.kind == "refused"
    assert "cannot be run above layer 0 from the keys and values" in found.text


# The last has layers with a state that cannot be shared, below the one that is edited.
@pytest.mark.parametrize("model_type", ["gpt2", "mpt", "gpt_bigcode", "nemotron_h"])
def test_some_are_edited(model_type: str) -> None:
    assert outcome(model_type).kind == "edited"
