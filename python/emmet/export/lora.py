"""Updates as LoRA factors: what the formats of adapters have in common."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from .._core import Update
from ..delta import Delta
from ..errors import EmmetError


class Factors(NamedTuple):
    """An update Δ = b · a, with a [rank, d_in] and b [d_out, rank], named as in LoRA (Hu et al., arXiv 2106.09685)."""

    a: Tensor
    b: Tensor

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    def padded(self, rank: int) -> Factors:
        """The same update in float32, with zeros to fill a larger rank."""
        missing = rank - self.rank
        return Factors(pad(self.a.float(), (0, 0, 0, missing)), pad(self.b.float(), (0, missing)))


def require_updates(delta: Delta) -> None:
    """Raise EmmetError for a delta that changes nothing, which no adapter can say."""
    if not delta.layers:
        message = "expected a delta with edits, got one that has none left; serve the unedited model instead"
        raise EmmetError(message)


def factorise(update: Update) -> Factors:
    """The factors of an update, of the least rank that gives it to float64 precision.

    Row i of a and column i of b both have the norm √σᵢ, σᵢ being a singular value of Δ. The solver's own factors, a
    residual and a whitened key, can be of such different scales that a server's float16 holds neither.
    """
    left, values, right = _svd(update)
    largest = float(values.max())
    rounding = torch.finfo(values.dtype).eps * max(update.shape) * largest
    rank = int((values > rounding).sum())
    roots = values[:rank].sqrt()
    return Factors(a=roots[:, None] * right[:rank], b=left[:, :rank] * roots)


def _svd(update: Update) -> tuple[Tensor, Tensor, Tensor]:
    """The thin singular value decomposition of Δ; that of low-rank factors never multiplies them out."""
    if not update.is_low_rank:
        left, values, right = torch.linalg.svd(update.dense(), full_matrices=False)
        return left, values, right
    left_basis, left_core = torch.linalg.qr(update.left)
    right_basis, right_core = torch.linalg.qr(update.right.T)
    left, values, right = torch.linalg.svd(left_core @ right_core.T)
    return left_basis @ left, values, right @ right_basis.T
