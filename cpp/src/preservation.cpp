#include "emmet/preservation.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/diagonal.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/matmul.h>
#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <array>
#include <cmath>
#include <utility>

#include "checks.h"
#include "cpu/cholesky_update.h"
#include "emmet/error.h"
#include "emmet/safetensors.h"
#include "typed_file.h"

namespace emmet {
namespace {

// A pivot this small relative to its diagonal entry is rounding error, not information.
constexpr double kSmallestPivot = 1e-13;
// Above this many keys per dimension one factorisation is cheaper than rotations (measured: bench/solve.py).
constexpr int64_t kRotationsPerDimension = 64;

constexpr std::array<double, 10> kJitters = {0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2};
constexpr double kAsymmetry = 1e-6;
constexpr const char* kFormat = "emmet.preservation.1";

at::Tensor checked_moment(const at::Tensor& moment) {
  require_floating(moment, "second_moment");
  if (moment.dim() != 2 || moment.size(0) != moment.size(1) || moment.size(0) == 0) {
    throw ShapeError(c10::str("expected second_moment [d, d], got ", moment.sizes(),
                              "; pass what Covariance.second_moment() gives"));
  }
  require_finite_rows(moment, "second_moment");
  const double asymmetry = largest_magnitude(moment - moment.mT()) / largest_magnitude(moment);
  if (asymmetry > kAsymmetry) {
    throw ShapeError(c10::str("expected a symmetric second_moment, got one with a relative asymmetry of ", asymmetry,
                              "; pass what Covariance.second_moment() gives"));
  }
  return moment.to(at::kDouble);
}

void require_not_negative(double value, const char* name) {
  if (!(std::isfinite(value) && value >= 0)) {
    throw Error(c10::str("expected ", name, " >= 0, got ", value, "; give a finite number that is not negative"));
  }
}

// The lower Cholesky factor of moment + jitter · mean(diagonal) · I, or an undefined tensor if there is none.
at::Tensor try_factorise(const at::Tensor& moment, double jitter) {
  auto shifted = moment;
  if (jitter > 0) {
    shifted = moment.clone();
    auto diagonal = shifted.diagonal();
    diagonal.add_(jitter * diagonal.mean());
  }
  auto [factor, info] = at::linalg_cholesky_ex(shifted);
  if (info.item<int>() != 0) return {};
  const auto pivots = factor.diagonal().square() / shifted.diagonal();
  return pivots.min().item<double>() >= kSmallestPivot ? factor : at::Tensor();
}

}  // namespace

Preservation::Preservation(at::Tensor factor, double jitter) : factor_(std::move(factor)), jitter_(jitter) {}

Preservation Preservation::from_second_moment(const at::Tensor& second_moment, std::optional<double> jitter) {
  const at::NoGradGuard no_grad;
  const auto moment = checked_moment(second_moment);
  if (jitter) {
    require_not_negative(*jitter, "jitter");
    if (auto factor = try_factorise(moment, *jitter); factor.defined()) return {factor, *jitter};
  } else {
    for (const double candidate : kJitters) {
      if (auto factor = try_factorise(moment, candidate); factor.defined()) return {factor, candidate};
    }
  }
  throw NotPositiveDefiniteError(
      c10::str("expected a positive definite second_moment, got a singular one even with jitter ",
               jitter.value_or(kJitters.back()), "; collect statistics over more tokens, or give a larger jitter"));
}

at::Tensor Preservation::whiten(const at::Tensor& keys) const {
  const at::NoGradGuard no_grad;
  const auto rows = as_rows(keys, dim(), "keys").to(factor_.device());
  return at::linalg_solve_triangular(factor_, rows.mT(), /*upper=*/false).mT();
}

at::Tensor Preservation::unwhiten(const at::Tensor& whitened) const {
  const at::NoGradGuard no_grad;
  const auto rows = as_rows(whitened, rank(), "whitened").to(factor_.device());
  return at::linalg_solve_triangular(factor_.mT(), rows.mT(), /*upper=*/true).mT();
}

at::Tensor Preservation::solve(const at::Tensor& keys) const { return unwhiten(whiten(keys)).view_as(keys); }

at::Tensor Preservation::gram(const at::Tensor& keys) const {
  const auto whitened = whiten(keys);
  return at::matmul(whitened, whitened.mT());
}

double Preservation::cost(const at::Tensor& delta) const {
  const at::NoGradGuard no_grad;
  const auto rows = as_rows(delta, dim(), "delta").to(factor_.device());
  return at::matmul(rows, factor_).square().sum().item<double>();
}

Preservation Preservation::absorb(const at::Tensor& keys, double weight) const {
  const at::NoGradGuard no_grad;
  require_not_negative(weight, "weight");
  const auto rows = (std::sqrt(weight) * as_rows(keys, dim(), "keys")).to(factor_.device()).contiguous();
  if (factor_.is_cpu() && rows.size(0) * kRotationsPerDimension <= dim()) {
    auto upper = factor_.mT().clone(at::MemoryFormat::Contiguous);  // row-major Lᵀ is column-major L
    cpu::cholesky_update(upper.mutable_data_ptr<double>(), dim(), rows.mutable_data_ptr<double>(), rows.size(0));
    return {upper.mT(), jitter_};
  }
  auto moment = at::matmul(factor_, factor_.mT()).addmm_(rows.mT(), rows);
  return {std::get<0>(at::linalg_cholesky_ex(moment)), jitter_};
}

int64_t Preservation::dim() const noexcept { return factor_.size(0); }

int64_t Preservation::rank() const noexcept { return factor_.size(1); }

Preservation Preservation::to(c10::Device device) const { return {factor_.to(device), jitter_}; }

void Preservation::save(const std::string& path) const {
  write_safetensors(path, {{{"factor", factor_}}, {{"format", kFormat}, {"jitter", exact_text(jitter_)}}});
}

Preservation Preservation::load(const std::string& path, c10::Device device) {
  const TypedFile file(path, kFormat);
  const auto& factor = file.matrix("factor");
  if (factor.size(0) != factor.size(1)) {
    throw FormatError(c10::str(path, ": expected a square 'factor', got ", factor.sizes(), "; save it anew"));
  }
  return {factor.to(device), file.number("jitter")};
}

}  // namespace emmet
