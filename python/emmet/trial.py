"""A trial, before a model is edited, of what finding values rests on (see `suffixes`)."""

from __future__ import annotations

import math

import torch

from .architectures import Architecture
from .errors import ModelError, NonFiniteError
from .hooks import frozen
from .storage import first_line
from .suffixes import Injection, Row, Suffixes

_TOKENS = 6
_SUBJECT = 3
# Relative to the logits: well above rounding, and well below what a layer that forgets its prefix gives.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_TOLERANCE_HALF_PRECISION = 0.05


def check_resumable(arch: Architecture, injection: Injection) -> None:
    """Raise ModelError unless the model gives, from the keys and values of a prefix, what it gives in one pass.

    Layers with a recurrent state or a convolution over tokens do not, nor models that run a layer several times or
    attend to tokens ahead. Raises NonFiniteError if it gives NaN or infinity.
    """
    try:
        difference = _difference(arch, injection)
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        fault = f"that fails with {type(error).__name__}: {first_line(error)}"
        raise _refusal(arch, injection, fault) from error
    if not math.isfinite(difference):
        message = "expected finite logits, got NaN or Inf: the weights or the dtype are at fault; load the model anew"
        raise NonFiniteError(message)
    if difference > _TOLERANCE.get(arch.model.dtype, _TOLERANCE_HALF_PRECISION):
        raise _refusal(arch, injection, f"its logits are off by {difference:.1%}")


def _difference(arch: Architecture, injection: Injection) -> float:
    ids = list(range(_TOKENS))
    row = Row(ids, _SUBJECT, [_TOKENS - 1])
    with frozen(arch.model):
        suffixes = Suffixes(arch, injection, [row])
        delta = torch.zeros(1, arch.d_model, device=arch.model.device, requires_grad=True)
        resumed = suffixes.logits(delta)
        torch.autograd.grad(resumed.sum(), delta)
        with torch.no_grad():
            whole = arch.model(input_ids=torch.tensor([ids], device=arch.model.device), use_cache=False).logits[0, -1:]
    return float((resumed.detach() - whole).norm() / whole.norm())


def _refusal(arch: Architecture, injection: Injection, fault: str) -> ModelError:
    message = f"{type(arch.model).__name__} cannot be run above layer {injection.layer} from the keys and values of a "
    message += f"prompt's first tokens: {fault}; choose a model of attention layers, or layers above all others"
    return ModelError(message)
