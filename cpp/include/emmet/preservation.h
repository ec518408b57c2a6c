#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

namespace emmet {

class CholeskyFactor;

/// The preservation metric: a cached factorisation through which C⁻¹ is applied to keys.
///
/// Keys are rows here and in every public call: K is [n, dim]. With C = L Lᵀ, `whiten` maps k to L⁻¹k, so that
/// kᵀC⁻¹k' is an inner product of whitened keys, and `unwhiten` maps a whitened key on to C⁻¹k. Tensors have to be on
/// the metric's device, of the width that is said and a floating dtype, or ShapeError is thrown, and finite, or
/// NonFiniteError is.
///
/// AlphaEdit is another metric, not another solver: it lets keys act in a subspace only, with an orthonormal basis
/// Q [dim, rank]. There Q (L Lᵀ)⁻¹ Qᵀ stands for C⁻¹, `whiten` maps k to L⁻¹Qᵀk and `unwhiten` maps a to Q L⁻ᵀa.
///
/// An instance is immutable: `absorb` returns a new metric, so that concurrent solves need no lock.
class Preservation {
 public:
  /// Factorises the second moment C [dim, dim] (symmetric, finite).
  ///
  /// `jitter` is added to the diagonal as a fraction of its mean. Left out, the smallest of 0, 1e-10, 1e-9, …, 1e-2
  /// with which C is safely positive definite is taken, and `jitter()` says which. Throws NotPositiveDefiniteError.
  static Preservation from_second_moment(const at::Tensor& second_moment, std::optional<double> jitter = std::nullopt);

  /// The metric of AlphaEdit (Fang et al. 2025, arXiv 2410.02355): the update is confined to the null space of the
  /// second moment C [dim, dim], spanned by the eigenvectors whose eigenvalues are below `threshold`, and its size
  /// counts there with the weight `alpha` > 0, in place of C. With the keys K_p of earlier edits absorbed, Q (αI +
  /// QᵀK_pK_pᵀQ)⁻¹ Qᵀ stands for C⁻¹, and `solve` with a ridge of 1 gives the published update.
  ///
  /// A threshold is measured on the scale of C: the published one is 0.02. Throws Error when no eigenvalue is below it,
  /// NotPositiveDefiniteError when C is no second moment.
  static Preservation null_space(const at::Tensor& second_moment, double threshold, double alpha = 1.0);

  /// C⁻¹ applied to keys [n, dim] (or one key [dim]): float64 of the same shape.
  at::Tensor solve(const at::Tensor& keys) const;

  /// K C⁻¹ Kᵀ, [n, n] float64 symmetric (KᵀC⁻¹K where keys are columns, as in the papers).
  at::Tensor gram(const at::Tensor& keys) const;

  /// L⁻¹k (L⁻¹Qᵀk) for each row of keys [n, dim]: [n, rank()], which are `scratch_rows`.
  at::Tensor whiten(const at::Tensor& keys) const;

  /// L⁻ᵀa (Q L⁻ᵀa) for each row of whitened [n, rank()]: [n, dim].
  at::Tensor unwhiten(const at::Tensor& whitened) const;
  /// The same for contiguous float64 rows [n, rank()], whose memory is used for it, and lost.
  at::Tensor unwhiten_(const at::Tensor& whitened) const;

  /// Δ L (Δ Q L) for Δ [m, dim]: [m, rank()], whose squared norm is cost(Δ).
  at::Tensor disturbance(const at::Tensor& delta) const;

  /// tr(Δ C Δᵀ) for Δ [m, dim]: by how much an update disturbs the memories that C stands for. In a null space, what
  /// Δ does there.
  double cost(const at::Tensor& delta) const;

  /// The metric after keys [n, dim] have become memories: C + weight · Σ k kᵀ with weight ≥ 0. A rank-n Cholesky
  /// update. Throws Error for another weight, and where the factor is in float32.
  Preservation absorb(const at::Tensor& keys, double weight = 1.0) const;

  int64_t dim() const noexcept;
  /// Number of directions in which the metric lets keys act: dim(), or the dimension of the null space.
  int64_t rank() const noexcept;
  double jitter() const noexcept { return jitter_; }
  c10::Device device() const;
  Preservation to(c10::Device device) const;

  /// The same metric with its factor rounded to float32: half the bytes to read in a solve for few edits. Edits'
  /// systems and refinement stay in float64, so that constraints hold as exactly; Δ differs by the rounding of the
  /// metric. Cannot absorb and cannot be saved.
  Preservation in_float32() const;

  /// Lower Cholesky factor L, [rank(), rank()]: float64, unless the metric is `in_float32`. Formed at each call, as it
  /// is kept in half the memory.
  at::Tensor factor() const;

  /// Writes or reads one safetensors file, so that a server starts without a factorisation. Throw Error where that
  /// cannot be done, or the factor is in float32; `load` throws FormatError for any other file.
  void save(const std::string& path) const;
  static Preservation load(const std::string& path, c10::Device device = c10::kCPU);

 private:
  Preservation(CholeskyFactor factor, double jitter, at::Tensor basis = {});

  void require_float64(const char* action) const;
  at::Tensor onto_basis(const at::Tensor& rows) const;  // of [n, dim]: their coordinates in the basis, [n, rank]

  std::shared_ptr<const CholeskyFactor> factor_;
  double jitter_;
  at::Tensor basis_;  // Q; undefined where it would be the identity
};

}  // namespace emmet
