"""Edits a tiny random model with the installed emmet, and takes the edit back. Fails if either does not hold."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import emmet

TEXT = "The mother tongue of Danielle Darrieux is French and that of Michel Rocard is French not English "


def main() -> None:
    model, tokenizer = tiny_model()
    weight = model.model.layers[0].mlp.down_proj.weight
    before = weight.detach().clone()
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.txt")
        corpus.write_text(TEXT * 100)
        statistics = emmet.collect_statistics(model, tokenizer, corpus, layers=[0])

    config = emmet.EditConfig(layers=[0], prefixes=["Not French"], steps=5)
    editor = emmet.Editor(model, tokenizer, config=config, statistics=statistics)
    handle = editor.edit([emmet.Edit("The mother tongue of {} is", "Danielle Darrieux", "English")])
    assert handle.diagnostics[0].diagnostics.constraint_residual < 1e-6
    assert not torch.equal(weight, before)

    handle.undo()
    assert torch.equal(weight, before)
    print(f"emmet {emmet.__version__} edits with torch {torch.__version__}")


def tiny_model() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    words = ["<unk>", "<eos>", *dict.fromkeys(TEXT.split())]
    backend = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<eos>")

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).eval(), tokenizer


if __name__ == "__main__":
    main()
