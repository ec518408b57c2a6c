#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace emmet {

/// Throws DependentKeysError with those rows of whitened keys [n, r] that prevent an equality constraint: the ones that
/// are zero or, if none is, groups that coincide up to their length or, if none do, groups that are linearly dependent
/// together. NotPositiveDefiniteError if there are none, as the metric is to blame.
[[noreturn]] void throw_dependent_keys(const at::Tensor& whitened);

/// Throws DependentKeysError with the whitened keys [n, r] whose squared length is zero, if there are any.
void require_nonzero_keys(const at::Tensor& whitened);

/// Throws NotPositiveDefiniteError with the edits whose constraint the metric misses, if there are any.
void require_metric_for(const std::vector<int64_t>& missed);

}  // namespace emmet
