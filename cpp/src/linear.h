#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

namespace emmet {

/// x Wᵀ + b by oneDNN, for x [..., in], W [out, in] and b [out], without gradients. By torch where oneDNN is missing or
/// switched off, or where it is slow or does not apply: W neither contiguous by rows nor by columns, or not all of it
/// float32 on the CPU.
at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias = std::nullopt);

/// Whether float32 products are quicker by oneDNN on this CPU than by the library that torch calls for them: MKL uses
/// AVX-512 on Intel's CPUs alone.
bool prefers_onednn();

}  // namespace emmet
