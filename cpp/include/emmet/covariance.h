#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace emmet {

/// Running second moment C = E[k kᵀ] of the keys of one layer (Meng et al. 2022, arXiv 2202.05262, section 3.1).
///
/// Only the upper block triangle of XᵀX is computed. Products are summed in float32 over at most
/// a few thousand rows and then flushed into a float64 total; in float64 where keys are, where squares would leave the
/// range of float32, and where torch may round float32 products.
class Covariance {
 public:
  /// An empty moment of keys of width `dim` (> 0, or ShapeError), accumulated on `device`.
  explicit Covariance(int64_t dim, c10::Device device = c10::kCPU);

  /// Continues from what `sum()` and `count()` gave earlier. `sum` is [dim, dim]. Throws ShapeError and
  /// NonFiniteError for what is no sum, Error for what is no count.
  static Covariance from_sum(const at::Tensor& sum, int64_t count);

  /// Adds keys [..., dim] (float16, bfloat16, float32 or float64) on `device()`. Where `mask` [...] is given, only rows
  /// that it selects (non-zero) count. Throws ShapeError, or NonFiniteError naming the first bad row; nothing is added
  /// then. Where memory runs out midway, the moment is lost: all that reads or changes the sum throws Error from then
  /// on.
  void add(const at::Tensor& keys, const std::optional<at::Tensor>& mask = std::nullopt);

  /// Adds what another moment of the same width has seen, on whatever device. Throws ShapeError for another width.
  void merge(const Covariance& other);

  /// Σ k kᵀ, [dim, dim] float64, symmetric.
  at::Tensor sum() const;

  /// C = Σ k kᵀ / count, [dim, dim] float64, symmetric. Throws Error when no key was added.
  at::Tensor second_moment() const;

  /// Number of keys added.
  int64_t count() const noexcept { return count_; }
  int64_t dim() const noexcept { return total_.size(0); }
  c10::Device device() const { return total_.device(); }

 private:
  void require_whole() const;

  at::Tensor total_;  // upper block triangle of Σ k kᵀ; what lies below it is not meaningful
  int64_t count_ = 0;
  bool is_whole_ = true;  // all rows of each add() are in the total
};

}  // namespace emmet
