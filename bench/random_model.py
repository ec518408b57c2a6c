"""Make a model of random weights to measure with: python bench/random_model.py MODEL FOLDER [--shape llama]

It has the tokenizer of MODEL. "gpt2" is of GPT-2 small's shape (124 million parameters, Conv1D weights), so that the
figures of SmolLM2 can be checked on another architecture without downloading one; "llama" is one layer of Llama-3-8B's
shape (d_in = 14,336) in bfloat16, for what a large layer takes. "llama-2-7b" and "gpt-j" are whole models in bfloat16,
of 13 and 12 GB, to measure with on a GPU; --layers makes them smaller.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, GPTJConfig, LlamaConfig, PreTrainedConfig

from emmet.loading import load

LLAMA_3_LAYER = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 1,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": True,
}

# Defaults of GPT2Config, LlamaConfig and GPTJConfig are GPT-2 small's, Llama-2-7B's and GPT-J's.
SHAPES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any], torch.dtype]] = {
    "gpt2": (GPT2Config, {}, torch.float32),
    "llama": (LlamaConfig, LLAMA_3_LAYER, torch.bfloat16),
    "llama-2-7b": (LlamaConfig, {}, torch.bfloat16),
    "gpt-j": (GPTJConfig, {}, torch.bfloat16),
}


def main() -> None:
    options_of = argparse.ArgumentParser(description=__doc__)
    options_of.add_argument("model", help="whose tokenizer to take")
    options_of.add_argument("folder")
    options_of.add_argument("--shape", choices=SHAPES, default="gpt2")
    options_of.add_argument("--layers", type=int, help="how many (default: those of the shape)")
    options = options_of.parse_args()

    _, tokenizer = load(options.model)
    torch.manual_seed(0)
    kind, shape, dtype = SHAPES[options.shape]
    config = kind(vocab_size=len(tokenizer), **shape)
    config.num_hidden_layers = options.layers or config.num_hidden_layers
    AutoModelForCausalLM.from_config(config, dtype=dtype).save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
