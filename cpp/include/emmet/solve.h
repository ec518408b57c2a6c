#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "emmet/preservation.h"
#include "emmet/update.h"

namespace emmet {

/// The ridge μ of a solve: a fixed number ≥ 0, or the smallest that bounds the condition number of the system.
class Ridge {
 public:
  /// A fixed μ; throws Error when it is negative or not finite.
  Ridge(double value);  // NOLINT(google-explicit-constructor): a number is a ridge
  /// 0 while the condition number of the system, scaled to unit diagonal, is at most `max_condition` (above 1, to
  /// 1e12); otherwise what brings that of the unscaled system down to it.
  static Ridge automatic(double max_condition = 1e8);

  bool is_automatic() const noexcept { return automatic_; }
  /// μ, or the largest condition number of an automatic one.
  double value() const noexcept { return value_; }

 private:
  Ridge() = default;
  double value_ = 0.0;
  bool automatic_ = false;
};

/// The preservation-memorization objective in closed form (Gupta et al. 2024, arXiv 2403.14236):
///
///     Δ = R (KᵀC⁻¹K + μI)⁻¹ KᵀC⁻¹
///
/// with keys K [n, d_in] and residuals R [n, d_out] given as rows (one key [d_in] and one residual [d_out] are taken
/// as n = 1), any float dtype, on the metric's device; float64 inside. μ = 0 is the equality constraint ΔK = R (ROME,
/// EMMET); μ = λ is MEMIT.
///
/// With μ = 0 the constraint holds to 1e-6 relative, or DependentKeysError names the keys that prevent it, or
/// NotPositiveDefiniteError says that the metric does, as one in float32 may. That is also thrown where a ridge is too
/// small to matter beside keys that depend on each other; ShapeError and NonFiniteError for bad input. Re-entrant.
Update solve(const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals, Ridge ridge = 0.0);

/// An update of rank one for each edit: what `solve` gives for its key and residual alone,
///
///     Δᵢ = rᵢ kᵢᵀC⁻¹ / (kᵢᵀC⁻¹kᵢ + μ)
///
/// with keys [n, d_in] and residuals [n, d_out] as there. The factor of C is read for many edits at once, which for
/// thousands that are to know nothing of each other (ROME over a benchmark, an adapter for each fact) is much less than
/// as many solves. Diagnostics are of each update, but for times, which are shares of what all took.
///
/// Throws as `solve`, and nothing is returned then; but keys may be alike: where μ = 0, DependentKeysError names those
/// that are zero in the metric. An automatic ridge is 0, as one edit alone is well conditioned. Re-entrant.
std::vector<Update> solve_each(const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals,
                               Ridge ridge = 0.0);

/// ROME (Meng et al. 2022, arXiv 2202.05262, eq. 2): one edit, equality constraint.
Update rome(const Preservation& preservation, const at::Tensor& key, const at::Tensor& residual);

/// MEMIT (Meng et al. 2023, arXiv 2210.07229, eq. 14): least squares, C weighted by lambda > 0.
Update memit(const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals, double lambda);

/// EMMET (Gupta et al. 2024, arXiv 2403.14236, eq. 14): a batch under equality constraints.
Update emmet(const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals, Ridge ridge = 0.0);

}  // namespace emmet
