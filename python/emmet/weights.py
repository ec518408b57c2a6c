"""Copies of weights from which they get back the very bits that they had."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn


class Backup:
    """A copy of some weights, on their own devices."""

    def __init__(self, weights: Iterable[nn.Parameter]) -> None:
        self._copies = [(weight, weight.detach().clone()) for weight in weights]

    def restore(self) -> None:
        """Give all weights their former bits. An interrupt (Ctrl-C) waits until the last one has them."""
        interrupt: KeyboardInterrupt | None = None
        while True:
            try:
                with torch.no_grad():
                    for weight, copy in self._copies:
                        weight.copy_(copy)
                break
            except KeyboardInterrupt as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt
