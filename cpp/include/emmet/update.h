#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace emmet {

class Preservation;

/// What a solve found out about itself. Times are seconds of wall clock; files do not keep them, and give 0.
struct Diagnostics {
  double condition = 1.0;            ///< estimated 2-norm condition number of the (scaled) system that was solved
  double ridge = 0.0;                ///< μ that was used
  double constraint_residual = 0.0;  ///< ‖ΔK − R‖ / ‖R‖, Frobenius; 0 when R is 0
  double preservation_cost = 0.0;    ///< tr(Δ C Δᵀ), where C is what the metric of the solve stands for
  double seconds_whiten = 0.0;       ///< triangular solves with the factor of C
  double seconds_system = 0.0;       ///< Gram matrix, its factorisation and solve
};

/// A weight update Δ [d_out, d_in], kept as low-rank factors Δ = left · right while these are the smaller form.
class Update {
 public:
  /// Takes factors left [d_out, r] and right [r, d_in]; multiplies them out when the product is smaller. Tensors of
  /// float64 are not copied: they are not to be changed afterwards. Throws ShapeError, and NonFiniteError.
  static Update from_factors(at::Tensor left, at::Tensor right, Diagnostics diagnostics = {});
  /// Takes Δ [d_out, d_in], not copied either. Throws the same.
  static Update from_dense(at::Tensor dense, Diagnostics diagnostics = {});

  bool is_low_rank() const noexcept { return left_.defined(); }
  /// Factors, float64, not copied: not to be changed. Throw Error when the update is dense.
  const at::Tensor& left() const;
  const at::Tensor& right() const;
  /// Δ, [d_out, d_in] float64.
  at::Tensor dense() const;

  c10::Device device() const;
  int64_t rows() const noexcept;     ///< d_out
  int64_t columns() const noexcept;  ///< d_in
  int64_t rank() const noexcept;     ///< width of the factors, or min(d_out, d_in) when dense
  /// Of the solve that made the update; defaults when none did.
  const Diagnostics& diagnostics() const noexcept { return diagnostics_; }

  /// weight += Δ in place; weight is [d_out, d_in], or [d_in, d_out] with `transposed` (GPT-2's Conv1D). Where it is on
  /// another device, a copy of the update is taken there.
  ///
  /// The sum is formed in float64 and rounded to the weight's dtype. Throws ShapeError, or NonFiniteError when
  /// the weight or the sum is not finite; the weight is unchanged then.
  void apply_(at::Tensor weight, bool transposed = false) const;

  /// The best approximation Δr of at most this rank ≥ 1 in the metric: of least tr((Δ − Δr) C (Δ − Δr)ᵀ), the
  /// disturbance of old memories that it adds or leaves out (Eckart and Young 1936, of ΔL where C = L Lᵀ). Computed on
  /// the metric's device.
  ///
  /// Its factors share their scale evenly. Its diagnostics remain those of the solve; what it does to the edits is
  /// `constraint_residual(keys, residuals)`. Throws Error if the metric confines keys to a null space which Δ leaves.
  /// In a metric in float32 the result is as exact as that.
  Update compress_to_rank(const Preservation& preservation, int64_t rank) const;
  /// The same of the least rank whose error in the metric is at most `tolerance`, from 0 to below 1, times all of Δ:
  /// ‖(Δ − Δr)L‖ ≤ tolerance · ‖ΔL‖, Frobenius.
  Update compress_to_tolerance(const Preservation& preservation, double tolerance) const;

  /// ‖ΔK − R‖ / ‖R‖ for keys [n, d_in] and residuals [n, d_out] on `device()`: by how much the update misses what edits
  /// ask for. 0 when R is 0.
  double constraint_residual(const at::Tensor& keys, const at::Tensor& residuals) const;

  Update to(c10::Device device) const;

  /// Writes or reads one safetensors file. Throw Error where that cannot be done; `load` throws FormatError for any
  /// other file.
  void save(const std::string& path) const;
  static Update load(const std::string& path);

 private:
  Update() = default;

  at::Tensor left_, right_;  // low-rank form, or
  at::Tensor dense_;         // dense form
  Diagnostics diagnostics_;
};

}  // namespace emmet
