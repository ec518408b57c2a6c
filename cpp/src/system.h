#pragma once

#include <ATen/core/Tensor.h>

namespace emmet {

/// A symmetric positive semi-definite system S Y = Z, scaled to unit diagonal and factorised.
///
/// The scaling makes what follows indifferent to the lengths of single keys, and is near the best that a diagonal can
/// do for the condition number (van der Sluis 1969).
class System {
 public:
  /// Factorises in the memory of `matrix`, which is lost.
  explicit System(at::Tensor matrix);

  /// Whether there is a Cholesky factor at all.
  bool factorised() const noexcept { return factor_.defined(); }
  /// Estimated 2-norm condition number of the scaled matrix; infinite without a factor.
  double condition() const noexcept { return condition_; }
  /// Smallest eigenvalue of S itself, estimated by inverse iteration; 0 without a factor.
  double smallest_eigenvalue() const;

  /// T⁻¹Z, where S = T Tᵀ, in the memory of Z, which is contiguous. Needs a factor.
  at::Tensor half_solve_(at::Tensor right_hand_side) const;
  /// S⁻¹Z. Needs a factor.
  at::Tensor solve(const at::Tensor& right_hand_side) const;

 private:
  at::Tensor scale_;   // D = diag(S)^(-1/2) as a column; 0 where a row of S is 0
  at::Tensor factor_;  // lower Cholesky factor of D S D
  double condition_;
};

/// Replaces a symmetric matrix, stored by columns, by its lower Cholesky factor, without a copy. False if it has none;
/// the matrix is lost then.
bool factorise_(at::Tensor matrix);

/// Largest eigenvalue of a symmetric positive semi-definite matrix, estimated from below.
double largest_eigenvalue(const at::Tensor& matrix);

}  // namespace emmet
