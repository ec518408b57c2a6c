#include "system.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_matrix_norm.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

namespace emmet {
namespace {

// Enough for a condition number that is within a few per cent, and never too large.
constexpr int64_t kSubspace = 8;
constexpr int kIterations = 30;
constexpr double kSettled = 1e-3;

at::Tensor solve_with_factor(const at::Tensor& factor, const at::Tensor& right_hand_side) {
  const auto half = at::linalg_solve_triangular(factor, right_hand_side, /*upper=*/false);
  return at::linalg_solve_triangular(factor.mT(), half, /*upper=*/true);
}

// The 2-norm of a small matrix, at which the CPU is quicker than a GPU.
double spectral_norm(const at::Tensor& matrix) {
  if (matrix.numel() == 1) return std::abs(matrix.item<double>());
  return at::linalg_matrix_norm(matrix.cpu(), 2).item<double>();
}

// The largest eigenvalue of a symmetric positive operator on columns of length n, by subspace iteration.
template <typename Operator>
double dominant_eigenvalue(int64_t n, const at::TensorOptions& options, const Operator& apply) {
  if (n <= kSubspace) return spectral_norm(apply(at::eye(n, options)));
  const auto start = at::arange(n * kSubspace, options).square_().cos_().view({n, kSubspace});  // favours no direction
  auto basis = std::get<0>(at::linalg_qr(start));
  double eigenvalue = 0.0;
  for (int i = 0; i < kIterations; ++i) {
    at::Tensor triangle;  // has the norm of what was applied
    std::tie(basis, triangle) = at::linalg_qr(apply(basis));
    const double previous = std::exchange(eigenvalue, spectral_norm(triangle));
    if (!(std::abs(eigenvalue - previous) > kSettled * eigenvalue)) break;
  }
  return eigenvalue;
}

}  // namespace

bool factorise_(at::Tensor matrix) {
  auto info = at::empty({0}, matrix.options().dtype(at::kInt));
  at::linalg_cholesky_ex_out(matrix, info, matrix);
  return info.item<int>() == 0;
}

double largest_eigenvalue(const at::Tensor& matrix) {
  return dominant_eigenvalue(matrix.size(0), matrix.options(),
                             [&](const at::Tensor& columns) { return at::matmul(matrix, columns); });
}

System::System(at::Tensor matrix) : condition_(std::numeric_limits<double>::infinity()) {
  const auto diagonal = matrix.diagonal().unsqueeze(1);
  scale_ = at::where(diagonal > 0, diagonal.rsqrt(), 0.0);
  matrix.mul_(scale_).mul_(scale_.mT());
  const double largest = largest_eigenvalue(matrix);  // by rows: MKL multiplies a transposed view 30 times as slowly
  const auto scaled = matrix.mT();                    // by columns, as it is factorised
  if (!factorise_(scaled)) return;
  factor_ = scaled;
  condition_ = largest * dominant_eigenvalue(matrix.size(0), matrix.options(), [&](const at::Tensor& columns) {
                 return solve_with_factor(factor_, columns);
               });
}

double System::smallest_eigenvalue() const {
  if (!factorised()) return 0.0;
  return 1.0 / dominant_eigenvalue(factor_.size(0), factor_.options(),
                                   [&](const at::Tensor& columns) { return solve(columns); });
}

at::Tensor System::half_solve_(at::Tensor right_hand_side) const {
  right_hand_side.mul_(scale_);
  return at::linalg_solve_triangular_out(right_hand_side, factor_, right_hand_side, /*upper=*/false);
}

at::Tensor System::solve(const at::Tensor& right_hand_side) const {
  auto solution = half_solve_(right_hand_side.clone(at::MemoryFormat::Contiguous));
  at::linalg_solve_triangular_out(solution, factor_.mT(), solution, /*upper=*/true);
  return solution.mul_(scale_);
}

}  // namespace emmet
