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

/// Throws DependentKeysError with the keys whose squared length [n] in the metric is none, if there are any.
void require_length(const at::Tensor& squared);

}  // namespace emmet
