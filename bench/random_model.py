"""Make a model of random weights to measure with: python bench/random_model.py MODEL FOLDER [--shape llama]

It has the tokenizer of MODEL. "gpt2" is of GPT-2 small's shape (124 million parameters, Conv1D weights), so that the
figures of SmolLM2 can be checked on another architecture without downloading one; "llama" is one layer of Llama-3-8B's
shape (d_in = 14,336) in bfloat16, for what a large layer takes.
"""

from __future__ import annotations

import argparse

import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from emmet.loading import load


def gpt2(vocabulary: int) -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=vocabulary))


def llama(vocabulary: int) -> PreTrainedModel:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=1,
        num_attention_heads=32,
        num_key_value_heads=8,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).bfloat16()


SHAPES = {"gpt2": gpt2, "llama": llama}


def main() -> None:
    options_of = argparse.ArgumentParser(description=__doc__)
    options_of.add_argument("model", help="whose tokenizer to take")
    options_of.add_argument("folder")
    options_of.add_argument("--shape", choices=SHAPES, default="gpt2")
    options = options_of.parse_args()

    _, tokenizer = load(options.model)
    torch.manual_seed(0)
    SHAPES[options.shape](len(tokenizer)).save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
