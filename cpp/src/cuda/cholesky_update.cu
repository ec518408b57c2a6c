#include <string>

#include "cuda/cholesky_update.h"
#include "emmet/error.h"

// [L | V] is multiplied from the right by one Householder reflection for each column of L, which makes that column's
// row of V zero (Golub and Van Loan 2013, sections 5.1 and 6.5). A warp computes a row. Columns are taken in panels:
// one block finds the reflections of a panel from its own rows, then all blocks apply them to the rows below, so that L
// is read from memory once.
namespace emmet::cuda {
namespace {

constexpr int kLanes = 32;
constexpr int kPanel = 32;  // columns, and rows that find their reflections: the warps of the largest block
constexpr int kRows = 8;    // of a block below the panel

struct Problem {
  double* factor;
  double* vectors;
  const double* diagonal;
  int64_t dim, count;

  __device__ double& entry(int64_t row, int64_t column) const { return factor[column * dim + row]; }
  __device__ double* vector_entries(int64_t row) const { return vectors + row * count; }
};

/// The sum of a value over the lanes of a warp, the same in each.
__device__ double warp_sum(double value) {
  for (int distance = kLanes / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(~0u, value, distance);
  return value;
}

/// Inner product of two rows of V.
__device__ double inner_product(const Problem& problem, const double* a, const double* b) {
  double sum = 0.0;
  for (int64_t k = threadIdx.x; k < problem.count; k += kLanes) sum += a[k] * b[k];
  return warp_sum(sum);
}

/// Finds the reflection that makes row `column` of V zero, and writes the new diagonal entry of L. That row of V is not
/// written to: with the diagonal entries before and after, it is what `reflect` needs.
__device__ void find_reflection(const Problem& problem, int64_t column) {
  const double* v = problem.vector_entries(column);
  const double before = problem.diagonal[column], square = inner_product(problem, v, v);
  if (threadIdx.x == 0) problem.entry(column, column) = sqrt(before * before + square);
}

/// Applies the reflection of `column` to a row below it.
__device__ void reflect(const Problem& problem, int64_t column, int64_t row) {
  const double* u = problem.vector_entries(column);
  double* v = problem.vector_entries(row);
  const double before = problem.diagonal[column], after = problem.entry(column, column);
  const double old = problem.entry(row, column);
  const double reflected = (before * old + inner_product(problem, u, v)) / after;
  const double step = (old + reflected) / (before + after);
  for (int64_t k = threadIdx.x; k < problem.count; k += kLanes) v[k] -= step * u[k];
  __syncwarp();  // every lane has read the old entry
  if (threadIdx.x == 0) problem.entry(row, column) = reflected;
}

/// Finds the reflections of the columns [first, last), and applies each to the rows of the panel that come after.
__global__ void __launch_bounds__(kLanes* kPanel) update_panel(Problem problem, int64_t first, int64_t last) {
  const int64_t row = first + threadIdx.y;
  for (int64_t column = first; column < last; ++column) {
    if (row == column) find_reflection(problem, column);
    __syncthreads();
    if (row > column && row < last) reflect(problem, column, row);
  }
}

/// Applies the reflections of the columns [first, last) to the rows from `last` on.
__global__ void __launch_bounds__(kLanes* kRows) update_below(Problem problem, int64_t first, int64_t last) {
  const int64_t row = last + static_cast<int64_t>(blockIdx.x) * kRows + threadIdx.y;
  if (row >= problem.dim) return;
  for (int64_t column = first; column < last; ++column) reflect(problem, column, row);
}

}  // namespace

void cholesky_update(double* factor, double* vectors, const double* diagonal, int64_t dim, int64_t count,
                     void* stream) {
  const Problem problem{factor, vectors, diagonal, dim, count};
  const auto queue = static_cast<cudaStream_t>(stream);
  cudaGetLastError();  // what went wrong earlier is not of this update
  for (int64_t first = 0; first < dim; first += kPanel) {
    const int64_t last = first + kPanel < dim ? first + kPanel : dim;
    update_panel<<<1, dim3(kLanes, kPanel), 0, queue>>>(problem, first, last);
    const auto blocks = static_cast<unsigned>((dim - last + kRows - 1) / kRows);
    if (blocks > 0) update_below<<<blocks, dim3(kLanes, kRows), 0, queue>>>(problem, first, last);
  }
  if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess) {
    throw Error(std::string("cannot update the factor on the GPU: ") + cudaGetErrorString(error) +
                "; check that its driver is as new as the CUDA toolkit that emmet was built with");
  }
}

}  // namespace emmet::cuda
