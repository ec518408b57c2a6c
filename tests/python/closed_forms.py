"""Random editing problems, and the published closed forms in float64 NumPy, as their papers define them.

Arrays hold one key or residual a row, as the library takes them; the papers have them as columns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

Array = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)


@dataclass(frozen=True)
class Problem:
    moment: Array  # C [d_in, d_in]
    keys: Array  # K [n, d_in]
    residuals: Array  # R [n, d_out]

    def gram(self) -> Array:
        """KᵀC⁻¹K."""
        gram = self.keys @ np.linalg.solve(self.moment, self.keys.T)
        return (gram + gram.T) / 2


def singles(problem: Problem) -> list[Problem]:
    """Each edit of a problem by itself."""
    rows = [slice(i, i + 1) for i in range(len(problem.keys))]
    return [Problem(problem.moment, problem.keys[row], problem.residuals[row]) for row in rows]


def condition(matrix: Array) -> float:
    """2-norm condition number of a symmetric matrix scaled to unit diagonal: lengths of keys alone cost no digits."""
    scale = 1 / np.sqrt(np.diag(matrix))
    return float(np.linalg.cond(scale * matrix * scale[:, None]))


def tolerance(*matrices: Array) -> float:
    """How far two right answers may lie apart, relatively, when these are solved with one after another.

    Each loses up to its condition number in units of rounding; 10 times the size covers the constants of that bound.
    """
    size = max(len(matrix) for matrix in matrices)
    return 10 * size * EPS * math.prod(condition(matrix) for matrix in matrices)


def relative_error(actual: Array, expected: Array) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def rome(problem: Problem) -> Array:
    """Meng et al. 2022, eq. 2: r (C⁻¹k)ᵀ / (C⁻¹k)ᵀk."""
    (key,), (residual,) = problem.keys, problem.residuals
    solved = np.linalg.solve(problem.moment, key)
    return np.outer(residual, solved) / (solved @ key)


def memit(problem: Problem, lambda_: float) -> Array:
    """Meng et al. 2023, eq. 14: R Kᵀ (λC + K Kᵀ)⁻¹."""
    keys = problem.keys
    return np.linalg.solve(lambda_ * problem.moment + keys.T @ keys, keys.T @ problem.residuals).T


def emmet(problem: Problem) -> Array:
    """Gupta et al. 2024, eq. 14: R (KᵀC⁻¹K)⁻¹ KᵀC⁻¹."""
    solved = np.linalg.solve(problem.moment, problem.keys.T)  # C⁻¹K
    return problem.residuals.T @ np.linalg.solve(problem.keys @ solved, solved.T)


def published_emmet(problem: Problem, weight: float, epsilon: float) -> Array:
    """EMMET as its authors' program computes it: R (Kᵀ(wC)⁻¹K + εI)⁻¹ Kᵀ(wC)⁻¹."""
    solved = np.linalg.solve(weight * problem.moment, problem.keys.T)
    system = problem.keys @ solved + epsilon * np.eye(len(problem.keys))
    return problem.residuals.T @ np.linalg.solve(system, solved.T)


def alphaedit(problem: Problem, earlier: Array, threshold: float, alpha: float) -> Array:
    """Fang et al. 2025: R KᵀP (K_pK_pᵀP + KKᵀP + αI)⁻¹, P projecting onto eigenvectors of C with small eigenvalues."""
    values, vectors = np.linalg.eigh(problem.moment)
    null = vectors[:, values < threshold]
    projector = null @ null.T
    system = (earlier.T @ earlier + problem.keys.T @ problem.keys) @ projector + alpha * np.eye(len(projector))
    return problem.residuals.T @ problem.keys @ projector @ np.linalg.inv(system)


def moment(rng: np.random.Generator, d: int, condition: float) -> Array:
    """A second moment with this condition number and eigenvalues from 1 down, evenly spaced in their logarithm."""
    basis, _ = np.linalg.qr(rng.standard_normal((d, d)))
    matrix = (basis * np.geomspace(1, 1 / condition, d)) @ basis.T
    return (matrix + matrix.T) / 2


def problem(
    rng: np.random.Generator,
    d: int,
    n: int,
    *,
    d_out: int = 4,
    condition: float = 100.0,
    scales: tuple[float, float, float] = (1.0, 1.0, 1.0),
    isotropic: bool = False,
) -> Problem:
    """`n` edits in `d` dimensions; `scales` are those of C, the keys and the residuals.

    Keys are distributed as C says, which makes KᵀC⁻¹K as good as chance allows; or `isotropic`, which makes it inherit
    the condition number of C.
    """
    c = moment(rng, d, condition)
    keys = rng.standard_normal((n, d))
    if not isotropic:
        keys = keys @ np.linalg.cholesky(c).T
    residuals = rng.standard_normal((n, d_out))
    return Problem(scales[0] * c, scales[1] * keys, scales[2] * residuals)


@st.composite
def problems(draw: st.DrawFn, *, max_keys_per_dimension: int = 2, isotropic: bool = False) -> Problem:
    """Problems of up to 24 dimensions, condition numbers of C up to 1e10 and scales from 1e-6 to 1e6."""
    scale = st.floats(-6, 6).map(lambda exponent: 10.0**exponent)
    d = draw(st.integers(1, 24))
    return problem(
        np.random.default_rng(draw(st.integers(0, 2**32 - 1))),
        d,
        draw(st.integers(1, max_keys_per_dimension * d)),
        d_out=draw(st.integers(1, 6)),
        condition=10 ** draw(st.floats(0, 10)),
        scales=(draw(scale), draw(scale), draw(scale)),
        isotropic=isotropic,
    )
