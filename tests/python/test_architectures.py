from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from transformers import models as transformers_models
from transformers.pytorch_utils import Conv1D

import tiny
from emmet.architectures import discover
from emmet.errors import ConfigError, ModelError

VOCABULARY = 64
LLAMA_NAME = "model.layers.{}.mlp.down_proj"
PROJECTIONS = {
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "gptj": "transformer.h.{}.mlp.fc_out",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "opt": "model.decoder.layers.{}.fc2",
    "llama": LLAMA_NAME,
    "mistral": LLAMA_NAME,
    "qwen2": LLAMA_NAME,
    "qwen3": LLAMA_NAME,
    "gemma": LLAMA_NAME,
    "gemma2": LLAMA_NAME,
    "gemma3_text": LLAMA_NAME,
    "phi": "model.layers.{}.mlp.fc2",
    "falcon": "transformer.h.{}.mlp.dense_4h_to_h",
    "bloom": "transformer.h.{}.mlp.dense_4h_to_h",
}


def tiny_model(family: str, **overrides: Any) -> PreTrainedModel:
    return tiny.tiny_model(family, vocab_size=VOCABULARY, **overrides)


def random_causal_lm(family: str, **settings: Any) -> PreTrainedModel:
    """A model of a family that `tiny` does not know."""
    config = AutoConfig.for_model(family, vocab_size=VOCABULARY, pad_token_id=0, **settings)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return model.eval()


def token_ids() -> torch.Tensor:
    return torch.arange(4, 20).reshape(2, 8)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_projections_of_every_family(family: str) -> None:
    model = tiny_model(family, layers=3)
    arch = discover(model)
    assert len(arch) == 3
    assert model.get_submodule(arch.layers_name) is arch.layers
    d_mlp = 4 * tiny.D_MODEL if family == "bloom" else tiny.D_MLP
    for layer in range(3):
        projection = arch.projection(layer)
        assert projection.name == PROJECTIONS[family].format(layer)
        assert model.get_submodule(projection.name) is projection.module
        assert (projection.d_in, projection.d_out) == (d_mlp, tiny.D_MODEL)
        assert projection.weight is dict(model.named_parameters())[f"{projection.name}.weight"]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_orientation_is_that_of_the_forward_pass(family: str) -> None:
    arch = discover(tiny_model(family))
    projection = arch.projection(1)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = projection.module.register_forward_hook(lambda _, inputs, output: seen.append((inputs[0], output.clone())))
    with torch.no_grad(), hook:
        arch.base(input_ids=token_ids())
    ((keys, values),) = seen
    weight = projection.weight if projection.transposed else projection.weight.T
    bias = getattr(projection.module, "bias", None)
    assert keys.shape[-1] == projection.d_in
    torch.testing.assert_close(values, keys @ weight + (0 if bias is None else bias))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_head_after_base_is_the_model(family: str) -> None:
    model = tiny_model(family)
    arch = discover(model)
    with torch.no_grad():
        hidden = arch.base(input_ids=token_ids()).last_hidden_state
        logits = arch.head(hidden)
        expected = model(input_ids=token_ids()).logits
    cap = getattr(model.config, "final_logit_softcapping", None)
    assert hidden.shape[-1] == arch.d_model
    torch.testing.assert_close(cap * torch.tanh(logits / cap) if cap else logits, expected)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_max_positions(family: str) -> None:
    unbounded = family == "bloom"  # its attention knows distances only
    assert discover(tiny_model(family)).max_positions == (None if unbounded else tiny.MAX_POSITIONS)


@pytest.mark.parametrize("layer", [-1, 4])
def test_layer_out_of_range(layer: int) -> None:
    with pytest.raises(ConfigError, match=rf"^layer {layer} is out of range: choose from 0 to 3, .*$"):
        discover(tiny_model("llama")).projection(layer)


@pytest.mark.parametrize(("family", "width"), [("llama", "intermediate_size"), ("gpt2", "n_inner"), ("opt", "ffn_dim")])
def test_mlp_as_wide_as_the_model(family: str, width: str) -> None:
    projection = discover(tiny_model(family, **{width: tiny.D_MODEL})).projection(2)
    assert projection.name == PROJECTIONS[family].format(2)


def test_attention_wider_than_the_mlp() -> None:
    assert discover(tiny_model("qwen3", head_dim=64)).projection(2).name == LLAMA_NAME.format(2)


def test_attention_by_another_name() -> None:
    model = tiny_model("qwen3", head_dim=64)
    for layer in model.model.layers:
        layer.mixer = layer._modules.pop("self_attn")
    assert discover(model).projection(2).name == LLAMA_NAME.format(2)


def test_gate_and_up_in_one_projection() -> None:
    model = random_causal_lm("phi3", hidden_size=32, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4)
    projection = discover(model).projection(1)
    assert (projection.name, projection.d_in) == (LLAMA_NAME.format(1), 80)


def test_side_branches_are_not_the_mlp() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.mlp.adapter = nn.Sequential(nn.Linear(tiny.D_MODEL, 8), nn.Linear(8, tiny.D_MODEL))
    assert discover(model).projection(0).name == LLAMA_NAME.format(0)


def test_single_square_projection_is_not_an_mlp() -> None:
    model = tiny_model("llama")
    model.model.layers[2].mlp = nn.Linear(tiny.D_MODEL, tiny.D_MODEL)
    with pytest.raises(ModelError, match=r"^model\.layers\.2 has no MLP that projects to 32 features"):
        discover(model).projection(2)


def test_embeddings_narrower_than_the_layers() -> None:
    arch = discover(tiny_model("opt", word_embed_proj_dim=16))
    assert arch.d_model == arch.projection(0).d_out == tiny.D_MODEL


def test_head_that_is_called_decoder() -> None:
    model = random_causal_lm(
        "modernbert-decoder", hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4
    )
    arch = discover(model)
    assert arch.layers_name == "model.layers"
    assert arch.base is model.model


def test_text_decoder_of_a_multimodal_model() -> None:
    text = {"num_hidden_layers": 2, "hidden_size": 32, "intermediate_size": 80, "num_attention_heads": 4, "head_dim": 8}
    vision = {"num_hidden_layers": 5, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    text |= {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 99}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=vision)
    model = transformers_models.gemma3.Gemma3ForConditionalGeneration(config)
    arch = discover(model)
    assert arch.projection(1).name == "model.language_model.layers.1.mlp.down_proj"
    assert (len(arch), arch.d_model, arch.max_positions) == (2, 32, 99)


def test_decoder_that_the_model_does_not_name() -> None:
    model = mllama_text()
    arch = discover(model)
    assert arch.base is model.model
    assert arch.projection(1).name == "model.layers.1.mlp.down_proj"


def test_context_without_a_bound() -> None:
    assert discover(random_causal_lm("xlnet", d_model=32, n_layer=2, n_head=4, d_inner=80)).max_positions is None


def encoder_settings() -> dict[str, Any]:
    return {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4}


def t5() -> nn.Module:
    config = AutoConfig.for_model("t5", d_model=32, d_ff=80, num_layers=2, num_heads=4, d_kv=8, vocab_size=VOCABULARY)
    return transformers_models.t5.T5ForConditionalGeneration(config)


def masked_bert() -> nn.Module:
    config = AutoConfig.for_model("bert", vocab_size=VOCABULARY, **encoder_settings())
    return transformers_models.bert.BertForMaskedLM(config)


def classifier() -> nn.Module:
    return transformers_models.gpt2.GPT2ForSequenceClassification(tiny_model("gpt2").config)


def mamba() -> nn.Module:
    return random_causal_lm("mamba", hidden_size=32, num_hidden_layers=2, state_size=4)


def mllama_text() -> PreTrainedModel:
    settings = {**encoder_settings(), "num_key_value_heads": 2, "cross_attention_layers": [], "vocab_size": VOCABULARY}
    settings["pad_token_id"] = 0
    config = AutoConfig.for_model("mllama_text_model", **settings)
    model: PreTrainedModel = transformers_models.mllama.MllamaForCausalLM(config)
    return model


def head_inside_its_decoder() -> nn.Module:
    model = tiny_model("llama")
    model.model.lm_head = model.lm_head
    return model


REFUSED = {
    "encoder-decoder": (t5, "expected a decoder-only model, got the encoder-decoder T5ForConditionalGeneration"),
    "masked language model": (masked_bert, "expected a model that predicts the next token, got BertForMaskedLM"),
    "encoder as causal model": (
        lambda: random_causal_lm("bert", **encoder_settings()),
        "BertLMHeadModel has attention that is not causal",
    ),
    "encoder without the mark in its attention": (
        lambda: random_causal_lm("roformer", **encoder_settings()),
        "RoFormerForCausalLM has attention that is not causal",
    ),
    "no head": (lambda: tiny_model("gpt2").transformer, "expected a model that predicts the next token, got GPT2Model"),
    "classifier": (classifier, "expected a model that predicts the next token, got GPT2ForSequenceClassification"),
    "not transformers": (lambda: nn.Linear(2, 2), "expected a model of transformers, got Linear"),
    "no layers": (lambda: tiny_model("gpt2", layers=0), "GPT2LMHeadModel has no list of decoder layers"),
    "state space": (mamba, "backbone.layers.0 has no MLP that projects to 32 features"),
    "mixture of experts": (
        lambda: random_causal_lm("mixtral", **encoder_settings(), num_key_value_heads=2, num_local_experts=4),
        "model.layers.0 is a mixture of experts (model.layers.0.mlp.experts)",
    ),
    "decoder and head in one": (
        head_inside_its_decoder,
        "LlamaForCausalLM does not keep its decoder apart from its head",
    ),
}


@pytest.mark.parametrize(("build", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_models(build: Any, reason: str) -> None:
    with pytest.raises(ModelError) as caught:
        discover(build())
    message = str(caught.value)
    assert message.startswith(reason)
    assert "\n" not in message


def test_layers_of_both_kinds() -> None:
    model = random_causal_lm(
        "qwen2_moe",
        **encoder_settings(),
        num_key_value_heads=2,
        num_experts=4,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=48,
        mlp_only_layers=[1],
    )
    arch = discover(model)
    assert arch.projection(1).name == LLAMA_NAME.format(1)
    with pytest.raises(ModelError, match=r"^model\.layers\.0 is a mixture of experts"):
        arch.projection(0)


def test_experts_in_a_module_list() -> None:
    model = tiny_model("llama", layers=2)
    mlp = model.model.layers[0].mlp
    mlp.experts = nn.ModuleList(type(mlp)(model.config) for _ in range(3))
    with pytest.raises(
        ModelError, match=r"^model\.layers\.0 is a mixture of experts \(model\.layers\.0\.mlp\.experts\)"
    ):
        discover(model).projection(0)


def test_one_row_in_3d_is_not_a_stack_of_experts() -> None:
    model = tiny_model("llama")
    model.model.layers[0].mlp.time_mix = nn.Parameter(torch.ones(1, 1, tiny.D_MODEL))  # as in RWKV
    assert discover(model).projection(0).name == LLAMA_NAME.format(0)


def test_mlp_in_a_module_list() -> None:
    model = tiny_model("gpt2", layers=2)
    mlp = model.transformer.h[1].mlp
    model.transformer.h[1].mlp = nn.ModuleList([mlp.c_fc, mlp.act, mlp.c_proj])
    assert discover(model).projection(1).name == "transformer.h.1.mlp.2"


class PackedLinear(nn.Module):
    """A linear module as GPTQ packs it: no weight, but integers in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(10, tiny.D_MODEL, dtype=torch.int32))


class WrappedTensor(torch.Tensor):
    """A tensor that stores something else than its entries, as torchao's quantised ones do."""


def with_weight(weight: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(tiny.D_MLP, tiny.D_MODEL, bias=False)
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


FULL = torch.zeros(tiny.D_MODEL, tiny.D_MLP)
QUANTISED = {
    "int8": lambda: with_weight(FULL.to(torch.int8)),
    "uint8": lambda: with_weight(FULL.to(torch.uint8)),
    "float8": lambda: with_weight(FULL.to(torch.float8_e4m3fn)),
    "subclass": lambda: with_weight(FULL.as_subclass(WrappedTensor)),
    "packed": PackedLinear,
}


@pytest.mark.parametrize("quantised", QUANTISED.values(), ids=QUANTISED)
def test_quantised_weights_are_refused(quantised: Any) -> None:
    model = tiny_model("llama", layers=2)
    model.model.layers[1].mlp.down_proj = quantised()
    arch = discover(model)
    assert arch.projection(0).name == LLAMA_NAME.format(0)
    with pytest.raises(ModelError, match=r"^model\.layers\.1\.mlp\.down_proj has quantised weights"):
        arch.projection(1)
    model.model.layers[0].mlp.down_proj = quantised()
    with pytest.raises(ModelError, match=r"^model\.layers\.0\.mlp\.down_proj has quantised weights"):
        discover(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_floating_dtypes_are_accepted(dtype: torch.dtype) -> None:
    assert discover(tiny_model("gpt2").to(dtype)).projection(0).weight.dtype == dtype


def test_discovery_needs_no_weights() -> None:
    with torch.device("meta"):
        model = random_causal_lm("gpt2", n_embd=32, n_layer=2, n_head=4)
    assert isinstance(discover(model).projection(1).module, Conv1D)
