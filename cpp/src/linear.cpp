#include "linear.h"

#include <ATen/Context.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/List.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/linear.h>

#include <exception>
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

bool is_plain(const at::Tensor& tensor) {
  return tensor.is_cpu() && tensor.scalar_type() == at::kFloat && tensor.layout() == at::kStrided;
}

/// Of a matrix: it is slow with others.
bool has_no_gaps(const at::Tensor& weight) {
  return weight.dim() == 2 && (weight.is_contiguous() || weight.t().is_contiguous());
}

}  // namespace

at::Tensor linear(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  static const auto by_onednn = onednn();
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  const bool fits =
      is_plain(x) && x.numel() > 0 && is_plain(weight) && has_no_gaps(weight) && (!bias || is_plain(*bias));
  if (by_onednn && fits && at::globalContext().userEnabledMkldnn()) {
    try {
      const c10::List<std::optional<at::Scalar>> no_scalars;
      return by_onednn->call(x, weight, bias, /*attr=*/"none", no_scalars, /*algorithm=*/"");
    } catch (const std::exception&) {  // torch says what is wrong, if it cannot do it either
    }
  }
  return at::linear(x, weight, bias);
}

bool prefers_onednn() {
#ifdef __x86_64__
  static const bool is_quicker =
      at::hasMKL() && onednn() && !__builtin_cpu_is("intel") && __builtin_cpu_supports("avx512f");
  return is_quicker && at::globalContext().userEnabledMkldnn();
#else
  return false;
#endif
}

}  // namespace emmet
