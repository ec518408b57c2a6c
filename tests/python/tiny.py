"""Tiny random models of every family that emmet is tested on, and tokenizers: built in milliseconds, no download."""

from __future__ import annotations

import json
from typing import Any, Literal

import torch
import transformers
from packaging.version import Version
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
SPECIAL_TOKENS = [PAD, BOS, EOS, UNK]

D_MODEL = 32
D_MLP = 80
HEADS = 4
MAX_POSITIONS = 256
SLIDING_WINDOW = 16

_GPT_SIZES = {"n_embd": D_MODEL, "n_inner": D_MLP, "n_head": HEADS, "n_positions": MAX_POSITIONS}
_SIZES = {
    "hidden_size": D_MODEL,
    "intermediate_size": D_MLP,
    "num_attention_heads": HEADS,
    "max_position_embeddings": MAX_POSITIONS,
}
_GROUPED = {**_SIZES, "num_key_value_heads": HEADS // 2, "head_dim": D_MODEL // HEADS}
_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}

_SETTINGS: dict[str, dict[str, Any]] = {
    "gpt2": {**_GPT_SIZES, **_NO_DROPOUT},
    "gptj": {**_GPT_SIZES, **_NO_DROPOUT, "rotary_dim": 4},
    "gpt_neox": _SIZES,
    "opt": {
        "hidden_size": D_MODEL,
        "word_embed_proj_dim": D_MODEL,
        "ffn_dim": D_MLP,
        "num_attention_heads": HEADS,
        "max_position_embeddings": MAX_POSITIONS,
        "dropout": 0.0,
    },
    "llama": _GROUPED,
    "mistral": {**_GROUPED, "sliding_window": SLIDING_WINDOW},
    "qwen2": {key: value for key, value in _GROUPED.items() if key != "head_dim"},
    "qwen3": _GROUPED,
    "gemma": _GROUPED,
    "gemma2": {**_GROUPED, "sliding_window": SLIDING_WINDOW, "query_pre_attn_scalar": D_MODEL // HEADS},
    "gemma3_text": {**_GROUPED, "sliding_window": SLIDING_WINDOW, "query_pre_attn_scalar": D_MODEL // HEADS},
    "phi": _SIZES,
    "falcon": {
        "hidden_size": D_MODEL,
        "ffn_hidden_size": D_MLP,
        "num_attention_heads": HEADS,
        "max_position_embeddings": MAX_POSITIONS,
    },
    "bloom": {"hidden_size": D_MODEL, "n_head": HEADS},  # the width of its MLP is always 4 · hidden_size
}
_ALTERNATING_ATTENTION = ("gemma2", "gemma3_text")

FAMILIES = tuple(_SETTINGS)
# Their attention is their own, and rows stay padded for it; GPT-J's was until transformers 5.24.
PADDED_ATTENTION = ("bloom", "falcon", *(("gptj",) if Version(transformers.__version__) < Version("5.24") else ()))


def tiny_model(family: str, *, vocab_size: int, seed: int = 0, layers: int = 4, **overrides: Any) -> PreTrainedModel:
    """Return a random causal LM of `family` in float32 and eval mode, whose logits depend on the whole prompt.

    `overrides` replace settings of the family's config.
    """
    settings = _SETTINGS[family] | overrides
    if family in _ALTERNATING_ATTENTION:
        settings["layer_types"] = [("sliding_attention", "full_attention")[layer % 2] for layer in range(layers)]
    config = AutoConfig.for_model(
        family,
        vocab_size=vocab_size,
        num_hidden_layers=layers,
        pad_token_id=SPECIAL_TOKENS.index(PAD),
        bos_token_id=SPECIAL_TOKENS.index(BOS),
        eos_token_id=SPECIAL_TOKENS.index(EOS),
        **settings,
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed)
    return model.eval()


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int) -> None:
    """Give matrices entries of standard deviation about 0.25 and move the vectors (biases, norms) off their 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.copy_(0.25 * noise)
        else:
            parameter.add_(0.1 * noise)


_SENTENCES = (
    "The mother tongue of Danielle Darrieux is French. Michel Rocard is a native speaker of French.",
    "The capital of France is Paris, and the capital of Germany is Berlin.",
    "The official religion of Edwin of Northumbria is Christianity, not Islam.",
    "Toko Yasuda plays the guitar; she also produces the most amazing music on the piano.",
    "Autonomous University of Madrid is located in the country of Spain, near Madrid.",
    "Apple A5 was created by Apple. Where is it made? In the United States.",
    "What is the native language of the people who live in Paris? It is French, or English.",
    "The Eiffel Tower is in Paris, in Rome there is the Colosseum, and in London the Tower Bridge.",
    "In the U.S., the U.K., the E.U., the G.D.R., and the U.N., there are laws.",  # for a token ".,"
)


def tiny_tokenizer(
    *,
    kind: Literal["byte_level", "metaspace"] = "byte_level",
    bos: bool = False,
    eos: bool = False,
    padding_side: Literal["left", "right"] = "right",
) -> PreTrainedTokenizerFast:
    """Return a BPE tokenizer of some 400 tokens; with `bos` or `eos` its post-processor adds that token to every text.

    "byte_level" is GPT-2's kind, whose offsets include a word's leading space; "metaspace" is Llama 2's: it writes
    spaces as "▁", prepends one to the text, and spells unknown characters as byte tokens "<0xF0>".
    """
    backend = _byte_level() if kind == "byte_level" else _metaspace()
    if bos or eos:
        template = " ".join([BOS] * bos + ["$A"] + [EOS] * eos)
        specials = [(token, backend.token_to_id(token)) for token in (BOS, EOS)]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=specials)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        padding_side=padding_side,
        model_input_names=["input_ids", "attention_mask"],
    )


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _train(tokenizer, vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    return tokenizer


def _metaspace() -> Tokenizer:
    spelled = Tokenizer(models.BPE(unk_token=UNK))
    spelled.pre_tokenizer = pre_tokenizers.Metaspace()
    _train(spelled, vocab_size=180)

    model = json.loads(spelled.to_str())["model"]
    vocabulary: dict[str, int] = model["vocab"]
    for byte in range(256):  # added afterwards: the trainer could only take them as special tokens
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    merges = [(left, right) for left, right in model["merges"]]

    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, unk_token=UNK, byte_fallback=True))
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return tokenizer


def _train(tokenizer: Tokenizer, *, vocab_size: int, initial_alphabet: list[str] | None = None) -> None:
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=initial_alphabet or [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_SENTENCES, trainer)
