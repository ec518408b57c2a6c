#pragma once

#include <cstdint>

namespace emmet::cpu {

/// In place, L Lᵀ + Σ v vᵀ for a lower Cholesky factor L [dim, dim] (column-major, contiguous) and `count` vectors v
/// stored one after another. By Givens rotations (Golub and Van Loan 2013, section 6.5); the diagonal stays positive.
void cholesky_update(double* factor, const double* vectors, int64_t dim, int64_t count);

}  // namespace emmet::cpu
