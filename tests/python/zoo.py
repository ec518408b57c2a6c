"""Tiny random models of every causal language model of the installed `transformers`, by one table of settings.

Where `tiny` knows the settings of a few families, here each configuration takes from one table what it has.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tiny import randomise

MODEL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
LAYERS = 4
_MAX_PARAMETERS = 100_000_000

_BY_VALUE: tuple[tuple[int | float, str], ...] = (
    # Widths: of hidden states, of MLPs, of experts, of ranks and windows, of heads.
    (
        32,
        """hidden_size d_model n_embd embed_dim embedding_size word_embed_proj_dim lru_width attention_hidden_size
        emb_dim embedding_dim input_embedding_size output_embedding_size""",
    ),
    (
        80,
        """intermediate_size ffn_dim n_inner ffn_hidden_size dense_intermediate_size decoder_ffn_dim encoder_ffn_dim
        feed_forward_size dim_ff dff intermediate_size_mlp d_inner""",
    ),
    (
        48,
        """moe_intermediate_size expert_ffn_hidden_size shared_expert_intermediate_size shared_intermediate_size
        moe_shared_expert_intermediate_size shared_experts_intermediate_size router_hidden_size""",
    ),
    (
        16,
        """q_lora_rank kv_lora_rank o_lora_rank index_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim
        mamba_d_state state_size ssm_state_size kv_channels hidden_size_per_layer_input sliding_window
        sliding_window_size local_attention_window_len attention_chunk_size chunk_size mamba_chunk_size
        attention_window_size window_size adapter_rank laurel_rank dim_model_base ple_embed_dim mamba_d_head
        mamba_head_dim mamba_headdim qk_head_dim""",
    ),
    (
        8,
        """head_dim d_kv attention_head_dim global_head_dim dim_head swa_head_dim qk_nope_head_dim qk_rope_head_dim
        v_head_dim d_head query_pre_attn_scalar time_step_rank mamba_dt_rank dt_rank attention_head_size""",
    ),
    # Numbers: of layers, heads and experts, of fewer heads and experts, of groups, of positions.
    (
        4,
        """num_hidden_layers n_layer n_layers num_layers decoder_layers num_decoder_layers num_attention_heads n_head
        n_heads num_heads decoder_attention_heads encoder_attention_heads num_experts num_local_experts
        n_routed_experts moe_num_experts swa_num_attention_heads num_decoder_attention_heads
        num_encoder_attention_heads index_n_heads linear_num_heads mamba_n_heads mamba_num_heads index_topk num_blocks
        rotary_dim""",
    ),
    (
        2,
        """num_key_value_heads encoder_layers num_encoder_layers num_experts_per_tok num_experts_per_token moe_topk
        moe_k num_global_key_value_heads linear_num_key_heads linear_num_value_heads swa_num_key_value_heads
        num_kv_heads num_query_groups n_mamba_heads""",
    ),
    (
        1,
        """n_group topk_group n_groups mamba_n_groups mamba_ngroups first_k_dense_replace num_dense_layers
        num_expert_group""",
    ),
    (256, "max_position_embeddings n_positions max_seq_len max_sequence_length n_ctx model_max_length context_length"),
    (28, "image_size"),
    (1, "bos_token_id decoder_start_token_id"),
    (2, "eos_token_id"),
    (0, "pad_token_id num_nextn_predict_layers"),
    (
        0.0,
        """resid_pdrop embd_pdrop attn_pdrop dropout attention_dropout hidden_dropout activation_dropout
        hidden_dropout_prob attention_probs_dropout_prob""",
    ),
)
_VOCABULARIES = ("vocab_size", "decoder_vocab_size", "vocab_size_per_layer_input")
_SETTINGS = {name: value for value, names in _BY_VALUE for name in names.split()}

# What the table cannot say: settings that depend on each other.
_EXCEPTIONS: dict[str, dict[str, Any]] = {
    "dots1": {"n_shared_experts": 1},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "mpt": {"attn_config": {"attn_pdrop": 0}},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "reformer": {"is_decoder": True, "axial_pos_shape": [16, 16], "axial_pos_embds_dim": [16, 16]},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"] * 2},
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(model_type: str, vocab_size: int) -> PreTrainedConfig:
    """The configuration of a model type with everything that has a size made small."""
    default = CONFIG_MAPPING[model_type]()
    return type(default)(**_settings(default, vocab_size) | _EXCEPTIONS.get(model_type, {}))


def _settings(default: PreTrainedConfig, vocab_size: int) -> dict[str, Any]:
    """Small values for what a configuration has, and for what its parts have."""
    known, aliases = vars(default), default.attribute_map
    settings: dict[str, Any] = {name: value for name, value in _SETTINGS.items() if name in known}
    settings |= {
        name: value
        for name, value in _SETTINGS.items()
        if name not in known and aliases.get(name) in known and aliases[name] not in settings
    }
    if "kv_lora_rank" in known:  # latent attention has as many keys as queries
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    settings |= {name: vocab_size for name in _VOCABULARIES if name in known}
    settings |= {
        name: _settings(part, vocab_size) for name, part in known.items() if isinstance(part, PreTrainedConfig)
    }
    return settings


def tiny_model(model_type: str, vocab_size: int) -> PreTrainedModel:
    """A random model in float32 and eval mode. Raises whatever its configuration or its modules raise."""
    config = tiny_config(model_type, vocab_size)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in AutoModelForCausalLM.from_config(config).parameters())
    if size > _MAX_PARAMETERS:
        message = f"the settings leave it with {size:,} parameters"
        raise ValueError(message)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    randomise(model, seed=0)
    return model.eval()
