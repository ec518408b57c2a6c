"""Fingerprints of what statistics and values depend on: they are never used with another model or tokenizer."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .architectures import Architecture

# Of a config, what no layer computes with: where a model came from, what is asked of it, and the dtype, which each
# weight has anyway.
_IDLE = re.compile(
    r"_name_or_path|architectures|transformers_version|(torch_)?dtype|use_cache|\w+_token_id|output_(attentions|hidden_states)|return_dict"
    r"|id2label|label2id|problem_type"
)


def tensor_digest(tensor: Tensor) -> bytes:
    """A hash of the dtype, the shape and every bit of a tensor: the same on every device and in every memory layout."""
    values = tensor.detach().cpu().contiguous()
    digest = hashlib.blake2b(f"{values.dtype} {tuple(values.shape)}".encode(), digest_size=16)
    digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()


def layer_fingerprints(arch: Architecture, layers: Iterable[int]) -> dict[int, str]:
    """For each of `layers`, a hash of what its keys depend on: the config, and stored tensors.

    These are the ones outside the decoder layers, those of the layers below, and those of the layer itself without its
    MLP output projection. So the fingerprint outlives an edit of that layer, or of one above, just as the keys do.
    Raises as `Architecture.projection` does.
    """
    projections = {layer: arch.projection(layer).name for layer in layers}
    inside = f"{arch.layers_name}."
    below = hashlib.blake2b(digest_size=16)
    below.update(_joined(_digests(arch.model, leave_out=(inside,))) + _described(arch))

    fingerprints = {}
    for layer in range(max(projections, default=-1) + 1):
        digests = list(_digests(arch.layers[layer], prefix=f"{inside}{layer}."))
        if layer in projections:
            own = f"{projections[layer]}."
            of_keys = below.copy()
            of_keys.update(_joined(item for item in digests if not item[0].startswith(own)))
            fingerprints[layer] = of_keys.hexdigest()
        below.update(_joined(digests))
    return fingerprints


def model_fingerprint(arch: Architecture) -> str:
    """A hash of everything that a model's outputs depend on: each stored tensor, and the config.

    It reads every weight, about a second for each GB: nothing less is safe, as weights can change behind torch's back.
    """
    return _hash(_joined(_digests(arch.model)), _described(arch))


def rest_fingerprint(arch: Architecture, layers: Iterable[int]) -> str:
    """A hash of the config and of all stored tensors but the weights that edits of `layers` change."""
    return _hash(_joined(_digests(arch.model, leave_out=(*_edited(arch, layers),))), _described(arch))


class Identity:
    """Fingerprint of a model and its tokenizer while edits of `layers` change these weights, and nothing else changes.

    So only these are read each time it is asked for.
    """

    def __init__(self, arch: Architecture, tokenizer: PreTrainedTokenizerBase, layers: Iterable[int]) -> None:
        self._edited = _edited(arch, layers)
        self._rest = list(_digests(arch.model, leave_out=(*self._edited,)))
        self._described = _described(arch) + tokenizer_fingerprint(tokenizer).encode()

    def fingerprint(self) -> str:
        """The same for equal models, whichever layers were named."""
        edited = [(name, tensor_digest(weight)) for name, weight in self._edited.items()]
        return _hash(_joined([*self._rest, *edited]), self._described)


def _edited(arch: Architecture, layers: Iterable[int]) -> dict[str, Tensor]:
    projections = [arch.projection(layer) for layer in layers]
    return {f"{projection.name}.weight": projection.weight for projection in projections}


def _hash(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=16).hexdigest()


def _described(arch: Architecture) -> bytes:
    """The config, as far as outputs depend on it: two models may differ in nothing else, as in the scale of RoPE.

    Defaults are left out, so that a version of `transformers` that knows more of them changes nothing.
    """
    return json.dumps(_without_idle(arch.model.config.to_diff_dict()), sort_keys=True, default=str).encode()


def _without_idle(config: dict[str, Any]) -> dict[str, Any]:
    return {
        name: _without_idle(value) if isinstance(value, dict) else value
        for name, value in config.items()
        if not _IDLE.fullmatch(name)
    }


def _digests(module: nn.Module, *, prefix: str = "", leave_out: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """Full name and digest of each stored tensor of `module`, tied ones once, but for those that start as `leave_out`.

    Buffers that are not stored are left out: they follow from the config, and their last bits from the device.
    """
    stored = module.state_dict().keys()
    for name, tensor in itertools.chain(module.named_parameters(), module.named_buffers()):
        if name in stored and not name.startswith(leave_out):
            yield prefix + name, tensor_digest(tensor)


def _joined(digests: Iterable[tuple[str, bytes]]) -> bytes:
    return b"".join(name.encode() + digest for name, digest in sorted(digests))


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of how a tokenizer turns text into ids; what it was last asked to truncate or pad to does not count."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = {"vocabulary": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    else:
        state = json.loads(backend.to_str())
        del state["truncation"], state["padding"]
    return hashlib.sha256(json.dumps(state, sort_keys=True, default=str).encode()).hexdigest()
