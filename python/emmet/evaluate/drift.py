"""How far edits move a model where they should not: its predictions on held-out text, and its weights.

A model is compared with what edits make of it:

    kl                  mean over the text's tokens of KL(p ‖ q) in nats, p being the distribution of the token by the
                        unedited model and q by the edited one: 0 where nothing changed
    perplexity          exp of the mean NLL of the text's tokens, before and after
    top_1_agreement     share of tokens for which both models find the same one likeliest, in percent
    relative_change     ‖Δ‖ / ‖W‖ of each edited weight, in Frobenius norms
    preservation_cost   tr(ΔCΔᵀ) of each edited weight: the mean of ‖Δk‖² over the keys that C is of, which edits keep
                        small (Gupta et al. 2024, arXiv 2403.14236). As its solve measured it, with the keys of earlier
                        edits in C if these were preserved; None for several solves, and for AlphaEdit, which has no C
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from ..architectures import Architecture
from ..corpora import open_corpus
from ..delta import Delta
from ..errors import NonFiniteError, StatisticsError
from ..hooks import frozen
from ..progress import Progress, silent
from ..weights import Backup

_TOKENS = 10_000
_LARGEST_NLL = math.log(sys.float_info.max)  # whose perplexity is still a number
_LENGTH = 256  # tokens of one pass: few, because all its logits are needed


@dataclass(frozen=True)
class TextDrift:
    """What edits do to the predictions of `tokens` of text; see the module's text."""

    tokens: int
    kl: float
    perplexity_before: float
    perplexity_after: float
    top_1_agreement: float

    @property
    def perplexity_ratio(self) -> float:
        return self.perplexity_after / self.perplexity_before


@dataclass(frozen=True)
class LayerDrift:
    """What edits do to one weight. The cost is None if the update is a sum of several, of which each has its own."""

    relative_change: float
    preservation_cost: float | None


@dataclass(frozen=True)
class Drift:
    """What edits do to a model: to its predictions of the text `corpus`, and to the weight of each edited layer."""

    corpus: str
    text: TextDrift
    layers: Mapping[int, LayerDrift]

    def to_json(self) -> dict[str, Any]:
        return {
            "corpus": self.corpus,
            **asdict(self.text),
            "perplexity_ratio": self.text.perplexity_ratio,
            "layers": {str(layer): asdict(drift) for layer, drift in self.layers.items()},
        }


def measure_drift(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    delta: Delta,
    corpus: str | Path,
    *,
    tokens: int = _TOKENS,
    progress: Progress = silent,
) -> Drift:
    """Compare a model, which must be without the edits of `delta` and is left so, with what they make of it.

    `corpus` is as in `collect_statistics`, best a text that these were not collected on; `tokens` of it are read.

    Raises ModelError if the delta was made for another model, StatisticsError if the text cannot be read or is empty,
    and NonFiniteError if a model gives NaN or infinity.
    """
    sequences = drift_sequences(arch, tokenizer, corpus, tokens, progress)
    layers = {layer: _layer_drift(arch, delta, layer) for layer in delta.layers}
    unedited = delta.apply(arch.model)
    try:
        edited = Backup(arch.projection(layer).weight for layer in delta.layers)
        return Drift(str(open_corpus(corpus)), text_drift(arch, sequences, unedited, edited, progress), layers)
    finally:
        unedited.restore()


def drift_sequences(
    arch: Architecture,
    tokenizer: PreTrainedTokenizerBase,
    corpus: str | Path,
    tokens: int,
    progress: Progress = silent,
) -> list[Tensor]:
    """The sequences of token ids to measure drift on, `tokens` in all.

    Raises StatisticsError if the text cannot be read, or has no token that another one predicts.
    """
    length = min(_LENGTH, arch.max_positions or _LENGTH)
    text = open_corpus(corpus).token_sequences(arch.model, tokenizer, tokens=tokens, length=length, progress=progress)
    sequences = list(text)
    if max(map(len, sequences), default=0) < 2:
        message = f"expected a text of two tokens or more to measure drift on, got fewer in {corpus}; name another"
        raise StatisticsError(message)
    return sequences


def text_drift(
    arch: Architecture, sequences: Sequence[Tensor], unedited: Backup, edited: Backup, progress: Progress = silent
) -> TextDrift:
    """Compare what two states of a model's weights predict in the sequences of `drift_sequences`.

    The model is brought into both for each sequence in turn, so that only one sequence's predictions are kept, and is
    left unedited. Raises NonFiniteError for NaN and infinity.
    """
    found: list[Tensor] = []
    for done, ids in enumerate(sequences, start=1):
        ids = ids.to(arch.model.device)
        try:
            edited.restore()
            after = _log_probabilities(arch, ids)
        finally:
            unedited.restore()
        found.append(_compare(_log_probabilities(arch, ids), after, ids[1:]))
        progress("drift", done, len(sequences))
    kl, nll_before, nll_after, agreement = torch.cat(found).mean(0).tolist()
    if not (math.isfinite(kl) and max(nll_before, nll_after) < _LARGEST_NLL):  # NaN is not below it either
        message = "the model's predictions of the text are NaN or of infinite perplexity, before or after the edits: "
        message += "its weights are damaged, or its dtype overflows; load it in float32 or bfloat16"
        raise NonFiniteError(message)
    return TextDrift(sum(map(len, found)), kl, math.exp(nll_before), math.exp(nll_after), 100 * agreement)


def _log_probabilities(arch: Architecture, ids: Tensor) -> Tensor:
    """Those of each token after the first: [tokens - 1, vocab]."""
    with frozen(arch.model), torch.inference_mode():
        logits: Tensor = arch.model(input_ids=ids[None], use_cache=False).logits
        return functional.log_softmax(logits[0, :-1].float(), dim=-1)


def _compare(before: Tensor, after: Tensor, ids: Tensor) -> Tensor:
    """KL, NLL before, NLL after and agreement for each token: [tokens, 4] float64."""
    columns = (
        functional.kl_div(after, before, log_target=True, reduction="none").sum(-1),
        -before.gather(-1, ids[:, None])[:, 0],
        -after.gather(-1, ids[:, None])[:, 0],
        before.argmax(-1) == after.argmax(-1),
    )
    return torch.stack([column.double() for column in columns], dim=-1).cpu()


def _layer_drift(arch: Architecture, delta: Delta, layer: int) -> LayerDrift:
    change = delta.layers[layer].update.dense().norm() / arch.projection(layer).weight.double().norm()
    costs = [report.diagnostics.preservation_cost for report in delta.reports if report.layer == layer]
    has_one = len(costs) == 1 and delta.config.method != "alphaedit"
    return LayerDrift(change.item(), costs[0] if has_one else None)
