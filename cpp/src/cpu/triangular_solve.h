#pragma once

#include <cstdint>

namespace emmet::cpu {

/// In place, L⁻¹v, or L⁻ᵀv if `transposed`, for a lower Cholesky factor L [dim, dim] in the two parts of
/// `CholeskyFactor` and one vector v [dim]. All threads read L, each number once, which is what takes the time.
void triangular_solve(const double* corners, const double* side, double* vector, int64_t dim, bool transposed);
void triangular_solve(const float* corners, const float* side, float* vector, int64_t dim, bool transposed);

}  // namespace emmet::cpu
