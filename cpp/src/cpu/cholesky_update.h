#pragma once

#include <cstdint>

namespace emmet::cpu {

/// In place, the factor of L Lᵀ + Σ v vᵀ for a lower Cholesky factor L [dim, dim] in the two parts of `CholeskyFactor`
/// and `vectors` [count, dim] (row-major, contiguous). By Givens rotations (Golub and Van Loan 2013, section 6.5); the
/// diagonal stays positive.
void cholesky_update(double* corners, double* side, const double* vectors, int64_t dim, int64_t count);

}  // namespace emmet::cpu
