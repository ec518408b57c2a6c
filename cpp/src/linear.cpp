#include "emmet/linear.h"

#include <ATen/Context.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>

#include <string_view>

namespace emmet {
namespace {

using Pointwise = at::Tensor(const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, std::string_view,
                             c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

/// What code that torch compiles calls for a linear module; none if torch is built without it.
std::optional<c10::TypedOperatorHandle<Pointwise>> onednn() {
  const auto found = c10::Dispatcher::singleton().findSchema({"mkldnn::_linear_pointwise", ""});
  if (!found || !found->hasKernelForDispatchKey(c10::DispatchKey::CPU)) return std::nullopt;
  return found->typed<Pointwise>();
}

bool is_float32_on_cpu(const at::Tensor& tensor) { return tensor.is_cpu() && tensor.scalar_type() == at::kFloat; }

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  static const auto by_onednn = onednn();
  const bool fits = is_float32_on_cpu(x) && is_float32_on_cpu(weight) && (!bias || is_float32_on_cpu(*bias));
  const bool has_no_gaps = weight.is_contiguous() || weight.mT().is_contiguous();  // it is slow otherwise
  if (!by_onednn || !fits || !has_no_gaps || x.numel() == 0) return at::linear(x, weight, bias);
  const c10::List<std::optional<at::Scalar>> no_scalars;
  return by_onednn->call(x, weight, bias, /*attr=*/"none", no_scalars, /*algorithm=*/"");
}

bool prefers_onednn() {
#ifdef __x86_64__
  static const bool prefers =
      at::hasMKL() && onednn() && !__builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f");
  return prefers;
#else
  return false;
#endif
}

}  // namespace emmet
