"""What edits preserve: the memories of ordinary text, and the keys of the edits before them."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ._core import Preservation
from .architectures import Architecture
from .config import ResolvedConfig
from .ledger import Batch
from .statistics import Statistics


class Memories:
    """The preservation metric of each edited layer, with and without edits."""

    def __init__(self, arch: Architecture, statistics: Statistics, config: ResolvedConfig) -> None:
        self._arch = arch
        self._statistics = statistics
        self._config = config
        self._layers: dict[int, _Absorbed] = {}

    def after(self, layer: int, batches: tuple[Batch, ...]) -> Preservation:
        """The metric of a layer that preserves the edits of these batches, too (see `EditConfig.absorb`, `Given`).

        On the device of its weight; factorised at first use. What was absorbed last time is not absorbed again.
        """
        if layer not in self._layers:
            device = self._arch.projection(layer).weight.device
            metric = _metric(self._statistics[layer].second_moment.to(device), self._config)
            self._layers[layer] = _Absorbed(metric, (), metric)
        unedited, absorbed, metric = self._layers[layer]
        if absorbed != batches[: len(absorbed)]:
            absorbed, metric = (), unedited
        if self._config.absorb > 0:
            for batch in batches[len(absorbed) :]:
                for keys in batch.given[layer].memories:
                    metric = metric.absorb(keys, _absorbed_weight(self._config))
        self._layers[layer] = _Absorbed(unedited, batches, metric)
        return metric


class _Absorbed(NamedTuple):
    """A layer's metric without edits, and the one after some batches."""

    unedited: Preservation
    batches: tuple[Batch, ...]
    metric: Preservation


def _absorbed_weight(config: ResolvedConfig) -> float:
    """ρ of C + ρ K_pK_pᵀ. The ridge μ weighs all of this against the edits at hand, and so it is divided out."""
    return config.absorb / config.ridge if config.ridge != "auto" and config.ridge > 0 else config.absorb


def _metric(second_moment: Tensor, config: ResolvedConfig) -> Preservation:
    """What the method preserves: memories in proportion to C, or all of them but those in its null space."""
    if config.method != "alphaedit":
        return Preservation.from_second_moment(second_moment)
    threshold = config.null_space_threshold
    if threshold == "auto":
        threshold = float(second_moment.diagonal().mean())
    return Preservation.null_space(second_moment, threshold, config.null_space_alpha)
