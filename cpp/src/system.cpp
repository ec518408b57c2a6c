#include "system.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <limits>
#include <utility>

namespace emmet {
namespace {

// Enough for a condition number that is never too large, mostly within a few per cent and hardly ever a fifth too small.
constexpr int kIterations = 30;
constexpr double kSettled = 1e-4;

at::Tensor solve_with_factor(const at::Tensor& factor, const at::Tensor& right_hand_side) {
  const auto forward = at::linalg_solve_triangular(factor, right_hand_side, /*upper=*/false);
  return at::linalg_solve_triangular(factor.mT(), forward, /*upper=*/true);
}

// The largest eigenvalue of a symmetric positive operator on columns [n, 1].
template <typename Operator>
double dominant_eigenvalue(int64_t n, const at::TensorOptions& options, const Operator& apply) {
  // A fixed start that no simple combination of axes, such as k₁ − k₂ − k₃ + k₄, is orthogonal to.
  auto vector = 1.0 + 0.5 * at::arange(n, options).cos().unsqueeze(1);
  double eigenvalue = 0.0;
  for (int i = 0; i < kIterations; ++i) {
    vector = apply(vector / vector.norm());
    const double previous = std::exchange(eigenvalue, vector.norm().template item<double>());
    if (!(std::abs(eigenvalue - previous) > kSettled * eigenvalue)) break;
  }
  return eigenvalue;
}

}  // namespace

double largest_eigenvalue(const at::Tensor& matrix) {
  return dominant_eigenvalue(matrix.size(0), matrix.options(),
                             [&](const at::Tensor& vector) { return at::matmul(matrix, vector); });
}

System::System(const at::Tensor& matrix) : condition_(std::numeric_limits<double>::infinity()) {
  const auto diagonal = matrix.diagonal().unsqueeze(1);
  scale_ = at::where(diagonal > 0, diagonal.rsqrt(), 0.0);
  const auto scaled = scale_ * matrix * scale_.mT();
  auto [factor, info] = at::linalg_cholesky_ex(scaled);
  if (info.item<int>() != 0) return;
  factor_ = factor;
  condition_ = largest_eigenvalue(scaled) *
               dominant_eigenvalue(matrix.size(0), matrix.options(),
                                   [&](const at::Tensor& vector) { return solve_with_factor(factor_, vector); });
}

double System::smallest_eigenvalue() const {
  if (!factorised()) return 0.0;
  return 1.0 / dominant_eigenvalue(factor_.size(0), factor_.options(),
                                   [&](const at::Tensor& vector) { return solve(vector); });
}

at::Tensor System::solve(const at::Tensor& right_hand_side) const {
  return scale_ * solve_with_factor(factor_, scale_ * right_hand_side);
}

}  // namespace emmet
