#pragma once

#include <cstdint>

namespace emmet::cuda {

/// In place, L Lᵀ + V Vᵀ for a lower Cholesky factor L [dim, dim] (column-major, contiguous) and vectors V [dim, count]
/// (row-major, contiguous; overwritten). `diagonal` [dim] is a copy of L's; its entries are positive, and stay so.
///
/// All lie on the current device, and the work is queued in `stream`, a cudaStream_t. Throws Error if it cannot be.
void cholesky_update(double* factor, double* vectors, const double* diagonal, int64_t dim, int64_t count, void* stream);

}  // namespace emmet::cuda
