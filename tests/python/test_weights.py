from __future__ import annotations

import signal

import pytest
import torch
from torch import nn

from emmet.weights import Backup


def test_weights_get_their_bits_back():
    weights = [nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(5, 2).t().to(torch.bfloat16))]
    before = [weight.detach().clone() for weight in weights]
    backup = Backup(weights)
    with torch.no_grad():
        for weight in weights:
            weight.fill_(float("nan"))
    backup.restore()
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_until_all_weights_are_restored():
    class Interrupting(nn.Parameter):
        def copy_(self, source):
            result = super().copy_(source)
            del Interrupting.copy_  # once
            signal.raise_signal(signal.SIGINT)
            return result

    weights = [Interrupting(torch.zeros(2)), nn.Parameter(torch.zeros(2))]
    backup = Backup(weights)
    with torch.no_grad():
        for weight in weights:
            weight.add_(1)
    with pytest.raises(KeyboardInterrupt):
        backup.restore()
    assert all((weight == 0).all() for weight in weights)
