#include "system.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

namespace emmet {
namespace {

// Enough for the condition number to within a few per cent on the spectra of Gram matrices.
constexpr int kIterations = 30;

at::Tensor solve_with_factor(const at::Tensor& factor, const at::Tensor& right_hand_side) {
  const auto forward = at::linalg_solve_triangular(factor, right_hand_side, /*upper=*/false);
  return at::linalg_solve_triangular(factor.mT(), forward, /*upper=*/true);
}

// The largest eigenvalue of a symmetric positive operator on columns [n, 1].
template <typename Operator>
double dominant_eigenvalue(int64_t n, const at::TensorOptions& options, const Operator& apply) {
  auto vector = at::linspace(1.0, 2.0, n, options).unsqueeze(1);  // any fixed start that favours no axis
  double eigenvalue = 0.0;
  for (int i = 0; i < kIterations; ++i) {
    vector = apply(vector / vector.norm());
    eigenvalue = vector.norm().template item<double>();
    if (!(eigenvalue > 0.0)) break;
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
  scale_ = at::where(diagonal > 0, diagonal.rsqrt(), at::zeros_like(diagonal));
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
