#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace emmet {

/// Finds which rows of whitened keys [n, r] prevent an equality constraint: groups of rows that are zero, that
/// coincide up to their length, or (if neither is found) that are linearly dependent together.
std::vector<std::vector<int64_t>> dependent_groups(const at::Tensor& whitened);

/// Throws DependentKeysError with these groups.
[[noreturn]] void throw_dependent_keys(const at::Tensor& whitened);

}  // namespace emmet
