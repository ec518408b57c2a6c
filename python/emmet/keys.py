"""Keys of edits: what the MLP output projection sees at the subject's last token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ._core import scratch_rows
from .architectures import Architecture
from .distributed import ALONE, World
from .edits import Edit, check_consistent
from .errors import EditError
from .forward import Site, last_token_states, later_token_states
from .tokens import Prompt, encode_prompts

# Whose states are held at once: about a batch of `last_token_states`, with the usual prefixes.
_EDITS_AT_ONCE = 64


def in_contexts(tokenizer: PreTrainedTokenizerBase, edit: Edit, prefixes: Sequence[str]) -> list[Prompt]:
    """The edit's prompt and target, bare and after each prefix: 1 + len(prefixes) encoded prompts."""
    contexts = ("", *prefixes)
    first, last = edit.subject_span
    return encode_prompts(
        tokenizer,
        [prefix + edit.text for prefix in contexts],
        [(len(prefix) + first, len(prefix) + last) for prefix in contexts],
        [edit.target] * len(contexts),
    )


def checked_prompts(
    arch: Architecture, tokenizer: PreTrainedTokenizerBase, edits: Sequence[Edit], prefixes: Sequence[str]
) -> list[list[Prompt]]:
    """For each edit what `in_contexts` gives.

    Raises EditError if there are none, if two contradict each other, or if one is longer than the model's context, and
    ModelError if the tokenizer merges a subject with its target.
    """
    if not edits:
        message = "expected one edit or more, got none: give a list of emmet.Edit"
        raise EditError(message)
    check_consistent(edits)
    prompts = [in_contexts(tokenizer, edit, prefixes) for edit in edits]
    longest = arch.max_positions
    for edit, contexts in zip(edits, prompts, strict=True):
        tokens = max(len(prompt.ids) for prompt in contexts)
        if longest is not None and tokens > longest:
            message = f"expected at most {longest} tokens, the context of the model, got {tokens}"
            message += f" for the edit of {edit.subject[:40]!r}; shorten its prompt or the prefixes"
            raise EditError(message)
    return prompts


def subject_keys(arch: Architecture, prompts: Sequence[Sequence[Prompt]], layer: int, world: World = ALONE) -> Tensor:
    """Keys [n, d_in] float64 at `layer`, one for each edit, whose prompts are what `in_contexts` gave.

    A key is half the bare prompt's and half the mean over the prefixed ones, as in MEMIT's published code (arXiv
    2210.07229, eq. 19, weighs all alike). The residual is that of the bare prompt, and an update meets it at this key,
    where ROME's code meets it at the bare prompt's. The processes of `world` share the edits.
    """
    site = Site.keys(arch, layer)
    keys = scratch_rows(len(prompts), site.width, arch.model.device)
    for first in world.shard(range(0, len(prompts), _EDITS_AT_ONCE)):
        some = prompts[first : first + _EDITS_AT_ONCE]
        rows = [prompt.ids[: prompt.subject + 1] for contexts in some for prompt in contexts]
        states = last_token_states(arch, rows, site).view(len(some), -1, site.width)
        bare, prefixed = states[:, 0], states[:, 1:]
        keys[first : first + len(some)] = (bare + prefixed.mean(1)).div(2) if prefixed.shape[1] else bare
    return world.sum(keys)


def prompt_keys(
    arch: Architecture, prompts: Sequence[Sequence[Prompt]], layer: int, world: World = ALONE
) -> tuple[Tensor, Tensor]:
    """Keys [m, d_in] of the tokens of all bare prompts, in the weight's dtype, and [m] which edit each belongs to.

    Not those of the first tokens: they stand for "begin of text" in many models, with keys like no others. What several
    prompts share is there as often.
    """
    rows = [contexts[0].ids[: contexts[0].target.start] for contexts in prompts]
    dtype = arch.projection(layer).weight.dtype
    owners = torch.tensor([edit for edit, row in enumerate(rows) for _ in row[1:]], dtype=torch.long)
    return later_token_states(arch, rows, Site.keys(arch, layer), dtype, world), owners
