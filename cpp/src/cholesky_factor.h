#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace emmet {

/// A lower Cholesky factor L [d, d] in half the memory of a square.
///
/// With L = [L₁ 0; B L₂], where L₂ is as large as L₁ or by one larger, one array holds L₁ᵀ on and above its diagonal
/// and L₂ one row below that, as LAPACK's rectangular full packed format does (Gustavson et al. 2010, ACM TOMS 37, 18).
/// So all that is done with L is done by library calls on its three parts. Vectors are rows here.
///
/// Its users check what they pass: float64 tensors of the right width on the right device, without gradients.
class CholeskyFactor {
 public:
  /// That of a symmetric `matrix` [d, d] (d > 0) with `shift` added to its diagonal, of which it reads the upper
  /// triangle. None if that is not positive definite, or so nearly singular that rounding decides.
  static std::optional<CholeskyFactor> of(const at::Tensor& matrix, double shift);

  /// Of a square whose upper triangle is Lᵀ; what lies below it does not count.
  static CholeskyFactor from_upper(const at::Tensor& upper);

  /// From the parts that `corners()` and `side()` return; none if they do not fit each other, or the diagonal is not
  /// positive.
  static std::optional<CholeskyFactor> from_parts(const at::Tensor& corners, const at::Tensor& side);

  /// L⁻¹r for each of `rows` [n, d], in their place.
  void solve_(const at::Tensor& rows) const;
  /// L⁻ᵀr for each of `rows`, in their place.
  void solve_transposed_(const at::Tensor& rows) const;
  /// rows · L, [n, d].
  at::Tensor multiplied(const at::Tensor& rows) const;
  /// The factor of L Lᵀ + weight · Σ r rᵀ for `rows` [n, d], with a weight of at least 0. The sum is not formed: that
  /// would square the condition number.
  CholeskyFactor updated(const at::Tensor& rows, double weight) const;

  /// Lᵀ, [d, d].
  at::Tensor upper() const;
  at::Tensor diagonal() const;
  /// L₁ᵀ and, one row below, L₂: [⌈d/2⌉ + 1, ⌈d/2⌉].
  const at::Tensor& corners() const noexcept { return corners_; }
  /// B, [⌈d/2⌉, ⌊d/2⌋].
  const at::Tensor& side() const noexcept { return side_; }

  int64_t size() const noexcept { return side_.size(0) + side_.size(1); }
  c10::Device device() const { return corners_.device(); }
  at::ScalarType dtype() const { return corners_.scalar_type(); }
  CholeskyFactor to(const at::TensorOptions& options) const;

 private:
  CholeskyFactor(at::Tensor corners, at::Tensor side);

  // Calls `change` with the halves of some rows at a time, contiguous and in the factor's dtype, and writes back what
  // it leaves. Where d is odd, the left half has a zero more, for the 1 of upper_first().
  template <typename Change>
  void change_halves_(const at::Tensor& rows, const Change& change) const;

  // L⁻¹r, or L⁻ᵀr, for a single row on the CPU, in its place.
  void solve_one_(const at::Tensor& row, bool transposed) const;

  int64_t split() const noexcept { return side_.size(1); }  // the size of L₁
  int64_t rest() const noexcept { return side_.size(0); }   // that of L₂
  at::Tensor upper_first() const;   // [⌈d/2⌉, ⌈d/2⌉] with L₁ᵀ on and above its diagonal, ending in 1 where d is odd
  at::Tensor lower_second() const;  // [⌈d/2⌉, ⌈d/2⌉] with L₂ on and below its diagonal

  at::Tensor corners_;
  at::Tensor side_;
};

}  // namespace emmet
