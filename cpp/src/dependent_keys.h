#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace emmet {

/// Finds which rows of whitened keys [n, r] prevent an equality constraint: those that are zero or, if none is, groups
/// that coincide up to their length or, if none do, groups that are linearly dependent together.
std::vector<std::vector<int64_t>> dependent_groups(const at::Tensor& whitened);

/// Throws DependentKeysError with these groups; NotPositiveDefiniteError if there are none, as the metric is to blame.
[[noreturn]] void throw_dependent_keys(const at::Tensor& whitened);

/// Throws DependentKeysError with the keys, counted from `first`, whose squared length [n, 1] in the metric is zero.
void require_nonzero_keys(const at::Tensor& squared, int64_t first);

/// Throws NotPositiveDefiniteError with the edits, counted from `first`, whose constraint is not `met` [n, 1].
void require_metric_for(const at::Tensor& met, int64_t first);

}  // namespace emmet
