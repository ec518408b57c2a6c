"""A trial, before a model is edited, of what finding values rests on (see `suffixes` and `packing`)."""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from .architectures import Architecture
from .errors import ModelError, NonFiniteError
from .hooks import frozen, require_gradients
from .packing import can_pack
from .storage import first_line
from .suffixes import Injection, Row, Suffixes

# Of one length neither before the subject's last token nor from there on; two of them begin alike.
_GROUPS = (
    (Row((0, 1, 2, 3, 4, 5), subject=3, reads=[5]), Row((0, 1, 3, 2), subject=2, reads=[3])),
    (Row((1, 2, 3, 4), subject=2, reads=[3]),),
)
# Relative to the logits: well above rounding, and well below what a layer that forgets its prefix gives.
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}
_TOLERANCE_HALF_PRECISION = 0.05


def tried(arch: Architecture, injection: Injection) -> Injection:
    """The injection with `packs` and `shares` as trials find them. Raises as `check_resumable` does."""
    packings = (True, False) if can_pack(arch.base) else (False,)
    *quicker, plain = [replace(injection, packs=packs, shares=shares) for packs in packings for shares in (True, False)]
    for variant in quicker:
        try:
            check_resumable(arch, variant)
        except (ModelError, NonFiniteError):
            continue
        return variant
    check_resumable(arch, plain)
    return plain


def check_resumable(arch: Architecture, injection: Injection) -> None:
    """Raise ModelError unless the model gives, from the keys and values of prefixes, what it gives of each row alone.

    Layers with a recurrent state or a convolution over tokens do not, nor models that run a layer several times or
    attend to tokens ahead. Raises NonFiniteError if it gives NaN or infinity.
    """
    require_gradients()
    try:
        difference = _difference(arch, injection)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError, AssertionError) as error:
        fault = f"that fails with {type(error).__name__}: {first_line(error)}"
        raise _refusal(arch, injection, fault) from error
    if not math.isfinite(difference):
        message = "expected finite logits, got NaN or Inf: the weights or the dtype are at fault; load the model anew"
        raise NonFiniteError(message)
    if difference > _TOLERANCE.get(arch.model.dtype, _TOLERANCE_HALF_PRECISION):
        raise _refusal(arch, injection, f"its logits are off by {difference:.1%}")


def _difference(arch: Architecture, injection: Injection) -> float:
    """Relative to the logits of each row alone."""
    device = arch.model.device
    with frozen(arch.model):
        suffixes = Suffixes(arch, injection, _GROUPS)
        rows = [row for group in _GROUPS for row in group]
        delta = torch.zeros(len(rows), arch.d_model, device=device, requires_grad=True)
        resumed = suffixes.logits(delta)
        torch.autograd.grad(resumed.sum(), delta)
        with torch.no_grad():
            alone = [torch.tensor([row.ids], device=device) for row in rows]
            whole = torch.cat([arch.model(input_ids=ids, use_cache=False).logits[0, -1:] for ids in alone])
    return float((resumed.detach() - whole).norm() / whole.norm())


def _refusal(arch: Architecture, injection: Injection, fault: str) -> ModelError:
    message = f"{type(arch.model).__name__} cannot be run above layer {injection.layer} from the keys and values of a "
    message += f"prompt's first tokens: {fault}; choose a model of attention layers, or layers above all others"
    return ModelError(message)
