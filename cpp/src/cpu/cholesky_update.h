#pragma once

#include <cstdint>

namespace emmet::cpu {

/// In place, L Lᵀ + Σ v vᵀ for a lower Cholesky factor L [dim, dim] (column-major, contiguous) and `count` vectors
/// stored one after another, which are overwritten. Gill, Golub, Murray, Saunders 1974, method C1 (Givens rotations).
void cholesky_update(double* factor, int64_t dim, double* vectors, int64_t count);

}  // namespace emmet::cpu
