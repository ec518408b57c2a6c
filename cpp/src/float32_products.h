#pragma once

#include <ATen/Context.h>

namespace emmet {

/// Whether torch's user has allowed products of float32 on the CPU to drop digits, as
/// torch.set_float32_matmul_precision does. at::NoTF32Guard prevents that on a GPU alone.
inline bool rounds_float32_products() {
  using at::Float32Precision;
  const auto precision = at::globalContext().float32Precision(at::Float32Backend::MKLDNN, at::Float32Op::MATMUL);
  return precision == Float32Precision::BF16 || precision == Float32Precision::TF32;
}

}  // namespace emmet
