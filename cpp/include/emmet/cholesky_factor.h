#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace emmet {

/// A lower Cholesky factor L [d, d] in half the memory of a square: d (d + 1) / 2 numbers for even d.
///
/// With L = [L₁ 0; B L₂], where L₂ is as large as L₁ or by one larger, one array holds L₁ᵀ on and above its diagonal
/// and L₂ one row below that, as LAPACK's rectangular full packed format does (Gustavson et al. 2010, ACM TOMS 37, 18).
/// So all that is done with L is done by library calls on its three parts. Vectors are rows here.
class CholeskyFactor {
 public:
  /// That of a symmetric `matrix` [d, d] (float64, d > 0) with `shift` added to its diagonal, of which it reads the
  /// upper triangle. None if that is not positive definite, or so nearly singular that rounding decides.
  static std::optional<CholeskyFactor> of(const at::Tensor& matrix, double shift);

  /// Of a square whose upper triangle is Lᵀ; what lies below it does not count.
  static CholeskyFactor from_upper(const at::Tensor& upper);

  /// Of what `corners()` and `side()` of another gave.
  CholeskyFactor(const at::Tensor& corners, const at::Tensor& side);

  /// L⁻¹r for each of `rows` [n, d] (float64, on device()), in their place.
  void solve_(const at::Tensor& rows) const;
  /// L⁻ᵀr for each of `rows`, in their place.
  void solve_transposed_(const at::Tensor& rows) const;
  /// rows · L, [n, d] float64.
  at::Tensor multiplied(const at::Tensor& rows) const;
  /// The factor of L Lᵀ + Σ r rᵀ for few `rows` [n, d] (float64, on device()), by one pass over L. None where emmet has
  /// no kernel for the device.
  std::optional<CholeskyFactor> updated(const at::Tensor& rows) const;

  /// L, [d, d].
  at::Tensor lower() const;
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
  int64_t split() const noexcept { return side_.size(1); }  // the size of L₁
  at::Tensor first() const;                                 // a square with L₁ᵀ on and above its diagonal
  at::Tensor second() const;                                // a square with L₂ on and below its diagonal

  at::Tensor corners_;
  at::Tensor side_;
};

}  // namespace emmet
