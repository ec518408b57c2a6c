"""Find, in any decoder-only model, the layers and the MLP output projections that an edit changes.

Everything is read off the structure of the model: no table of models and no model names.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from .errors import ConfigError, ModelError

_EDITABLE_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Projection:
    """The output projection of one layer's MLP: the associative memory that maps a key to a value.

    `name` is the module's full name in the model. The weight has shape [d_out, d_in], or [d_in, d_out] if `transposed`
    (GPT-2's Conv1D).
    """

    name: str
    module: nn.Module
    transposed: bool
    d_in: int
    d_out: int

    @property
    def weight(self) -> nn.Parameter:
        return cast("nn.Parameter", self.module.weight)


@dataclass(frozen=True)
class Architecture:
    """What emmet needs to know about a decoder-only language model.

    `base` is the decoder without the head: it maps token ids to hidden states [..., d_model]. `head` is the matrix that
    maps those to logits; some models scale or cap its output. `max_positions` is the longest context the model accepts,
    None if its config gives no bound.
    """

    model: PreTrainedModel
    layers_name: str
    layers: nn.ModuleList
    base: nn.Module
    head: nn.Module
    d_model: int
    max_positions: int | None

    def __len__(self) -> int:
        return len(self.layers)

    def projection(self, layer: int) -> Projection:
        """Return the MLP output projection of `layer`, counted from 0.

        Raises ConfigError if there is no such layer, and ModelError if it has no MLP that can be edited: experts,
        quantised weights, or no MLP at all.
        """
        if not 0 <= layer < len(self):
            message = f"layer {layer} is out of range: choose from 0 to {len(self) - 1}, the layers of this model"
            raise ConfigError(message)
        return _mlp_output(self.layers[layer], f"{self.layers_name}.{layer}", self.d_model)


def require_weights(model: nn.Module) -> None:
    """Raise ModelError unless all weights are in memory, on whatever devices."""
    if absent := [name for name, weight in model.named_parameters() if weight.is_meta]:
        message = f"expected every weight in memory, got {len(absent)} that are not, such as {absent[0]}: they are "
        message += "offloaded to CPU or disk by a device_map; load the model on devices that hold all of it, or on cpu"
        raise ModelError(message)


def discover(model: nn.Module) -> Architecture:
    """Return the architecture of a causal language model.

    Raises ModelError, with the reason, for everything that emmet cannot edit: what is not a decoder-only language model
    of `transformers`, and a model none of whose layers has an MLP with one output projection in floating point. If only
    some layers lack one, `Architecture.projection` raises for those.
    """
    causal_lm, base, head = _decoder_and_head(model)
    layers_name, layers = _decoder_layers(causal_lm, base)
    config = causal_lm.config.get_text_config(decoder=True)
    architecture = Architecture(
        model=causal_lm,
        layers_name=layers_name,
        layers=layers,
        base=base,
        head=head,
        d_model=config.hidden_size,
        max_positions=_max_positions(config),
    )
    _check_any_layer(architecture)
    return architecture


def _max_positions(config: PreTrainedConfig) -> int | None:
    names = ("max_position_embeddings", "max_seq_len")  # the latter is MPT's
    longest: int | None = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    return longest if longest and longest > 0 else None  # XLNet's is -1


def _decoder_and_head(model: nn.Module) -> tuple[PreTrainedModel, nn.Module, nn.Module]:
    """Return the model, its decoder and its head, or raise ModelError if it is not a decoder-only language model."""
    name = type(model).__name__
    remedy = "load a decoder-only model with AutoModelForCausalLM"
    if not isinstance(model, PreTrainedModel):
        message = f"expected a model of transformers, got {name}: {remedy}, and merge its adapters, if any"
        raise ModelError(message)
    if model.config.is_encoder_decoder:
        message = f"expected a decoder-only model, got the encoder-decoder {name}: {remedy}"
        raise ModelError(message)
    head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    if head is None or not model.can_generate():
        message = f"expected a model that predicts the next token, got {name}: {remedy}"
        raise ModelError(message)
    base = model.get_decoder()  # type: ignore[no-untyped-call]
    if not isinstance(base, PreTrainedModel):  # where a model's head, not its decoder, is called "decoder"
        base = model.base_model
    if head in set(base.modules()):  # as in Llama 4, whose prefix names no module of the text model alone
        parts = [part for part in model.children() if isinstance(part, PreTrainedModel)]
        base = parts[0] if len(parts) == 1 else base
    if head in set(base.modules()):
        message = f"{name} does not keep its decoder apart from its head: choose another model"
        raise ModelError(message)
    if any(False in (getattr(part, "is_causal", True), getattr(part, "is_decoder", True)) for part in base.modules()):
        message = f"{name} has attention that is not causal, like an encoder or cross-attention: {remedy}"
        raise ModelError(message)
    return model, base, head


def _decoder_layers(model: PreTrainedModel, base: nn.Module) -> tuple[str, nn.ModuleList]:
    """Return the longest outermost ModuleList of the decoder; lists within lists hold experts and the like."""
    inside = set(base.modules())
    outermost: dict[str, nn.ModuleList] = {}
    for name, module in model.named_modules():
        is_nested = any(name.startswith(f"{other}.") for other in outermost)
        if isinstance(module, nn.ModuleList) and len(module) and module in inside and not is_nested:
            outermost[name] = module
    if not outermost:
        message = f"{type(model).__name__} has no list of decoder layers: choose a transformer of decoder layers"
        raise ModelError(message)
    return max(outermost.items(), key=lambda item: len(item[1]))


def _check_any_layer(architecture: Architecture) -> None:
    errors = []
    for layer in range(len(architecture)):
        try:
            architecture.projection(layer)
        except ModelError as error:
            errors.append(error)
        else:
            return
    raise errors[0]


def _mlp_output(layer: nn.Module, layer_name: str, d_model: int) -> Projection:
    """Return the projection of `layer` that leads from the widest intermediate width back to `d_model`.

    An intermediate width is one that another projection makes out of `d_model`, alone or, where gate and up are fused,
    twice. Narrower ones belong to adapters and side branches; of equally wide ones, as in a square MLP, the output is
    the last.
    """
    parts = dict(_outside_token_mixers(layer, layer_name))
    _refuse_experts(parts, layer_name)
    _refuse_quantised(parts)
    projections = list(_projections(parts))
    outputs = [
        output
        for output in projections
        if output.d_out == d_model
        and any(
            other is not output and other.d_in == d_model and other.d_out in (output.d_in, 2 * output.d_in)
            for other in projections
        )
    ]
    if not outputs:
        message = f"{layer_name} has no MLP that projects to {d_model} features: choose another layer or model"
        raise ModelError(message)
    return max(reversed(outputs), key=lambda output: output.d_in)


def _outside_token_mixers(module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and its descendants with their names, leaving out attention and state-space blocks."""
    yield name, module
    for child_name, child in module.named_children():
        if not _mixes_tokens(child_name, child):
            yield from _outside_token_mixers(child, f"{name}.{child_name}")


def _mixes_tokens(name: str, module: nn.Module) -> bool:
    is_attention = any(word in f"{name} {type(module).__name__}".lower() for word in ("attn", "attention"))
    return is_attention or any(isinstance(child, nn.Conv1d) for child in module.children())


def _projections(parts: Mapping[str, nn.Module]) -> Iterator[Projection]:
    for name, module in parts.items():
        if isinstance(module, nn.Linear):
            yield Projection(name, module, transposed=False, d_in=module.in_features, d_out=module.out_features)
        elif isinstance(module, Conv1D):
            d_in, d_out = module.weight.shape
            yield Projection(name, module, transposed=True, d_in=d_in, d_out=d_out)


def _refuse_experts(parts: Mapping[str, nn.Module], layer_name: str) -> None:
    """Raise if a layer holds several MLPs: as a list of modules, or with their weights stacked in 3-D parameters."""
    for name, module in parts.items():
        if _is_list_of_mlps(module) or any(_is_stack(weight) for weight in module.parameters(recurse=False)):
            message = f"{layer_name} is a mixture of experts ({name}): choose a layer or model with one MLP a layer"
            raise ModelError(message)


def _is_list_of_mlps(module: nn.Module) -> bool:
    """An MLP that is itself a list has at most one projection an entry; a list of MLPs has two or more."""
    linears = [part for part in module.modules() if isinstance(part, nn.Linear | Conv1D)]
    return isinstance(module, nn.ModuleList) and len(linears) > len(module) > 1


def _is_stack(weight: torch.Tensor) -> bool:
    return weight.ndim == 3 and weight.shape[0] > 1


def _refuse_quantised(parts: Mapping[str, nn.Module]) -> None:
    for name, module in parts.items():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            if tensor.ndim == 2 and not _is_plain_float(tensor):
                message = f"{name} has quantised weights ({tensor.dtype}): load the model in floating point"
                raise ModelError(message)


def _is_plain_float(tensor: torch.Tensor) -> bool:
    """Whether the tensor stores its entries as such; a quantised subclass, as torchao's, may only claim the dtype."""
    return tensor.dtype in _EDITABLE_DTYPES and type(tensor.data) is torch.Tensor
