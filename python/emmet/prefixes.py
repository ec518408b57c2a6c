"""Context prefixes: short texts put before an edit's prompt, so that the edit holds in context."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .progress import Progress, silent
from .sampling import sample
from .tokens import encode_prompts

# How the prefixes begin, in turn, and among how many tokens each next one is drawn (MEMIT's settings).
_STARTS = ("The", "Therefore", "Because", "I", "You")
_TOP_K = 5


def sample_prefixes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    length: int,
    seed: int,
    progress: Progress = silent,
) -> tuple[str, ...]:
    """`count` texts that the model itself writes, each ended by ". ".

    They have `length` tokens, special ones that the tokenizer puts before a text among them. The same model, tokenizer
    and seed give the same texts.
    """
    generator = torch.Generator(model.device).manual_seed(seed)
    prefixes: list[str] = []
    for i in range(count):
        progress("prefixes", i, count)
        (begun,) = encode_prompts(tokenizer, [_STARTS[i % len(_STARTS)]])
        start = torch.tensor([begun.ids], device=model.device)
        new_tokens = max(length - start.shape[1], 0)
        ids = sample(model, start, max_new_tokens=new_tokens, generator=generator, top_k=_TOP_K)
        text = tokenizer.decode(ids[0], skip_special_tokens=True)
        prefixes.append(f"{text}. ")
    progress("prefixes", count, count)
    return tuple(prefixes)
