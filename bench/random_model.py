"""Make a model of random weights to time things on: python bench/random_model.py MODEL FOLDER

It has the shape of GPT-2 small (124 million parameters, Conv1D weights) and the tokenizer of MODEL, so that the figures
of SmolLM2 can be checked on another architecture without downloading one.
"""

from __future__ import annotations

import argparse

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from emmet.loading import load


def main() -> None:
    options_of = argparse.ArgumentParser(description=__doc__)
    options_of.add_argument("model", help="whose tokenizer to take")
    options_of.add_argument("folder")
    options = options_of.parse_args()

    _, tokenizer = load(options.model)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer))).save_pretrained(options.folder)
    tokenizer.save_pretrained(options.folder)


if __name__ == "__main__":
    main()
