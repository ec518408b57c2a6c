#pragma once

#include <ATen/Context.h>

/// While it lives, torch may drop digits of float32 products on the CPU, as torch.set_float32_matmul_precision allows.
class ReducedPrecision {
 public:
  explicit ReducedPrecision(at::Float32Precision precision) : before_(context().float32Precision(kBackend, kProducts)) {
    context().setFloat32Precision(kBackend, kProducts, precision);
  }
  ~ReducedPrecision() { context().setFloat32Precision(kBackend, kProducts, before_); }
  ReducedPrecision(const ReducedPrecision&) = delete;
  ReducedPrecision& operator=(const ReducedPrecision&) = delete;

 private:
  static constexpr auto kBackend = at::Float32Backend::MKLDNN;
  static constexpr auto kProducts = at::Float32Op::MATMUL;

  static at::Context& context() { return at::globalContext(); }

  const at::Float32Precision before_;
};
