"""Deltas of random updates: what is exported, without the time that editing takes."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from transformers import PreTrainedModel

from emmet import EditConfig, Update
from emmet.architectures import discover
from emmet.delta import Delta, LayerDelta
from emmet.fingerprint import tensor_digest


def random_update(d_out: int, d_in: int, rank: int, *, seed: int = 0, imbalance: float = 1.0) -> Update:
    """An update with entries of about 0.1, in factors of which `imbalance` makes one larger and the other smaller."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(d_out, rank, generator=generator, dtype=torch.float64) * imbalance
    right = torch.randn(rank, d_in, generator=generator, dtype=torch.float64) / imbalance
    return Update.from_factors(left, 0.1 * rank**-0.5 * right)


def random_delta(model: PreTrainedModel, ranks: Mapping[int, int]) -> Delta:
    """A delta that updates the layers of `model` that `ranks` names, each by an update of the rank given for it."""
    arch = discover(model)
    layers = {}
    for layer, rank in ranks.items():
        projection = arch.projection(layer)
        update = random_update(projection.d_out, projection.d_in, rank, seed=layer)
        digest = tensor_digest(projection.weight).hex()
        layers[layer] = LayerDelta(projection.name, projection.transposed, digest, update)
    return delta_of(layers)


def delta_of(layers: Mapping[int, LayerDelta], base: str | None = None) -> Delta:
    return Delta(edits=(), config=EditConfig(), prefixes=(), base=base, layers=layers, reports=())
