#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>

namespace emmet {

/// The preservation metric: a cached factorisation through which C⁻¹ is applied to keys.
///
/// Keys are rows here and in every public call: K is [n, dim]. With C = L Lᵀ, `whiten` maps k to L⁻¹k, so that
/// kᵀC⁻¹k' is an inner product of whitened keys, and `unwhiten` maps a whitened key on to C⁻¹k.
///
/// An instance is immutable: `absorb` returns a new metric, so that concurrent solves need no lock.
class Preservation {
 public:
  /// Factorises the second moment C [dim, dim] (symmetric, finite).
  ///
  /// `jitter` is added to the diagonal as a fraction of its mean. Left out, the smallest of 0, 1e-10, 1e-9, …, 1e-2
  /// with which C is safely positive definite is taken, and `jitter()` says which. Throws NotPositiveDefiniteError.
  static Preservation from_second_moment(const at::Tensor& second_moment, std::optional<double> jitter = std::nullopt);

  /// C⁻¹ applied to keys [n, dim] (or one key [dim]): float64 of the same shape.
  at::Tensor solve(const at::Tensor& keys) const;

  /// K C⁻¹ Kᵀ, [n, n] float64 symmetric (KᵀC⁻¹K where keys are columns, as in the papers).
  at::Tensor gram(const at::Tensor& keys) const;

  /// L⁻¹k for each row of keys [n, dim]: [n, rank()].
  at::Tensor whiten(const at::Tensor& keys) const;

  /// L⁻ᵀa for each row of whitened [n, rank()]: [n, dim].
  at::Tensor unwhiten(const at::Tensor& whitened) const;

  /// tr(Δ C Δᵀ) for Δ [m, dim]: by how much an update disturbs the memories that C stands for.
  double cost(const at::Tensor& delta) const;

  /// The metric after keys [n, dim] have become memories: C + weight · Σ k kᵀ. A rank-n Cholesky update.
  Preservation absorb(const at::Tensor& keys, double weight = 1.0) const;

  int64_t dim() const noexcept;
  /// Number of directions in which the metric lets keys act; dim() for a Cholesky metric.
  int64_t rank() const noexcept;
  double jitter() const noexcept { return jitter_; }
  c10::Device device() const { return factor_.device(); }
  Preservation to(c10::Device device) const;

  /// Lower Cholesky factor L, [rank(), rank()] float64.
  const at::Tensor& factor() const noexcept { return factor_; }

  /// Writes or reads one safetensors file, so that a server starts without a factorisation.
  void save(const std::string& path) const;
  static Preservation load(const std::string& path, c10::Device device = c10::kCPU);

 private:
  Preservation(at::Tensor factor, double jitter);

  at::Tensor factor_;
  double jitter_;
};

}  // namespace emmet
