#include "emmet/preservation.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/matmul.h>
#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "checks.h"
#include "cholesky_factor.h"
#include "emmet/error.h"
#include "emmet/safetensors.h"
#include "emmet/scratch.h"
#include "gram.h"
#include "typed_file.h"

namespace emmet {
namespace {

constexpr std::array<double, 10> kJitters = {0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2};
// Relative to the largest eigenvalue: what sums in float32 may leave of a zero.
constexpr double kNegativeEigenvalue = 1e-6;
constexpr const char* kFormat = "emmet.preservation.2";

at::Tensor checked_moment(const at::Tensor& moment) {
  require_symmetric(moment, "second_moment", "Covariance.second_moment()");
  return moment.to(at::kDouble);
}

// What rounding leaves of keys that lie outside of a null space is no part of them inside.
void clear_rounding_(const at::Tensor& inside, const at::Tensor& keys) {
  const double share = static_cast<double>(keys.size(1)) * std::numeric_limits<double>::epsilon();
  inside.masked_fill_(inside.norm(2, 1, /*keepdim=*/true) <= share * keys.norm(2, 1, /*keepdim=*/true), 0.0);
}

}  // namespace

Preservation::Preservation(CholeskyFactor factor, double jitter, at::Tensor basis)
    : factor_(std::make_shared<const CholeskyFactor>(std::move(factor))), jitter_(jitter), basis_(std::move(basis)) {}

Preservation Preservation::from_second_moment(const at::Tensor& second_moment, std::optional<double> jitter) {
  const at::NoGradGuard no_grad;
  const auto moment = checked_moment(second_moment);
  const double mean = moment.diagonal().mean().item<double>();
  if (jitter) {
    require_not_negative(*jitter, "jitter");
    if (auto factor = CholeskyFactor::of(moment, *jitter * mean)) return {std::move(*factor), *jitter};
  } else {
    for (const double candidate : kJitters) {
      if (auto factor = CholeskyFactor::of(moment, candidate * mean)) return {std::move(*factor), candidate};
    }
  }
  throw NotPositiveDefiniteError(
      c10::str("expected a positive definite second_moment, got a singular one even with jitter ",
               jitter.value_or(kJitters.back()), "; collect statistics over more tokens, or give a larger jitter"));
}

Preservation Preservation::null_space(const at::Tensor& second_moment, double threshold, double alpha) {
  const at::NoGradGuard no_grad;
  const auto moment = checked_moment(second_moment);
  require_not_negative(threshold, "threshold");
  if (!(std::isfinite(alpha) && alpha > 0)) {
    throw Error(c10::str("expected alpha > 0, got ", alpha, "; AlphaEdit's is 1"));
  }
  const auto [eigenvalues, eigenvectors] = at::linalg_eigh(moment);  // in ascending order
  const double smallest = eigenvalues[0].item<double>(), largest = eigenvalues[-1].item<double>();
  if (smallest < -kNegativeEigenvalue * largest) {
    throw NotPositiveDefiniteError(c10::str("expected a second_moment without negative eigenvalues, got one of ",
                                            smallest, "; pass what Covariance.second_moment() gives"));
  }
  const auto rank = eigenvalues.lt(threshold).sum().item<int64_t>();
  if (rank == 0) {
    throw Error(c10::str(
        "expected a null space, got none: every eigenvalue of second_moment is at least the threshold ", threshold,
        ", the smallest is ", smallest, " and the largest ", largest, "; give a threshold between these"));
  }
  const auto factor = std::sqrt(alpha) * at::eye(rank, moment.options());
  return {CholeskyFactor::from_upper(factor), 0.0, eigenvectors.narrow(1, 0, rank).clone(at::MemoryFormat::Contiguous)};
}

at::Tensor Preservation::onto_basis(const at::Tensor& rows) const {
  return basis_.defined() ? at::matmul(rows, basis_) : rows;
}

at::Tensor Preservation::whiten(const at::Tensor& keys) const {
  const at::NoGradGuard no_grad;
  const auto rows = as_rows(keys, dim(), device(), "keys");
  auto whitened = scratch_rows(rows.size(0), rank(), device());
  if (basis_.defined()) {
    at::matmul_out(whitened, rows, basis_);
    clear_rounding_(whitened, rows);
  } else {
    whitened.copy_(rows);
  }
  factor_->solve_(whitened);
  return whitened;
}

at::Tensor Preservation::unwhiten(const at::Tensor& whitened) const {
  const at::NoGradGuard no_grad;
  return unwhiten_(as_rows(whitened, rank(), device(), "whitened").clone(at::MemoryFormat::Contiguous));
}

at::Tensor Preservation::unwhiten_(const at::Tensor& whitened) const {
  const at::NoGradGuard no_grad;
  require_floating(whitened, "whitened");
  require_width(whitened, rank(), "whitened");
  require_device(whitened, device(), "whitened");
  factor_->solve_transposed_(whitened);
  return basis_.defined() ? at::matmul(whitened, basis_.mT()) : whitened;
}

at::Tensor Preservation::solve(const at::Tensor& keys) const { return unwhiten(whiten(keys)).view_as(keys); }

at::Tensor Preservation::gram(const at::Tensor& keys) const {
  const at::NoGradGuard no_grad;
  return gram_matrix(whiten(keys).mT());
}

at::Tensor Preservation::disturbance(const at::Tensor& delta) const {
  const at::NoGradGuard no_grad;
  return factor_->multiplied(onto_basis(as_rows(delta, dim(), device(), "delta")));
}

double Preservation::cost(const at::Tensor& delta) const { return disturbance(delta).square().sum().item<double>(); }

Preservation Preservation::absorb(const at::Tensor& keys, double weight) const {
  const at::NoGradGuard no_grad;
  require_not_negative(weight, "weight");
  require_float64("absorb");
  return {factor_->updated(onto_basis(as_rows(keys, dim(), device(), "keys")), weight), jitter_, basis_};
}

at::Tensor Preservation::factor() const { return factor_->upper().mT(); }

c10::Device Preservation::device() const { return factor_->device(); }

int64_t Preservation::dim() const noexcept { return basis_.defined() ? basis_.size(0) : rank(); }

int64_t Preservation::rank() const noexcept { return factor_->size(); }

Preservation Preservation::to(c10::Device device) const {
  return {factor_->to(at::TensorOptions().device(device)), jitter_,
          basis_.defined() ? basis_.to(device) : at::Tensor()};
}

Preservation Preservation::in_float32() const { return {factor_->to(at::kFloat), jitter_, basis_}; }

void Preservation::require_float64(const char* action) const {
  if (factor_->dtype() != at::kDouble) {
    throw Error(c10::str("expected a metric in float64 to ", action, ", got one in float32; ", action,
                         " with the metric that in_float32() was called on"));
  }
}

void Preservation::save(const std::string& path) const {
  require_float64("save");
  TensorFile file{{{"corners", factor_->corners()}}, {{"format", kFormat}, {"jitter", exact_text(jitter_)}}};
  if (factor_->side().numel() > 0) file.tensors["side"] = factor_->side();  // there is none in one dimension
  if (basis_.defined()) file.tensors["basis"] = basis_;
  write_safetensors(path, file);
}

Preservation Preservation::load(const std::string& path, c10::Device device) {
  const TypedFile file(path, kFormat);
  const auto& corners = file.matrix("corners");
  const auto side = file.has("side") ? file.matrix("side") : at::empty({1, 0}, corners.options());
  const auto factor = CholeskyFactor::from_parts(corners, side);
  if (!factor) {
    throw FormatError(c10::str(path, ": expected the two parts of a factor with a positive diagonal, got 'corners' ",
                               corners.sizes(), " and 'side' ", side.sizes(), "; save it anew"));
  }
  at::Tensor basis;
  if (file.has("basis")) {
    basis = file.matrix("basis").to(device);
    if (basis.size(1) != factor->size() || basis.size(0) < basis.size(1)) {
      throw FormatError(c10::str(path, ": expected a 'basis' [dim, ", factor->size(),
                                 "] with at least as many rows as ", "columns, got ", basis.sizes(), "; save it anew"));
    }
  }
  const double jitter = file.number("jitter");
  if (!(std::isfinite(jitter) && jitter >= 0)) {
    throw FormatError(c10::str(path, ": expected a jitter of at least 0, got ", jitter, "; save it anew"));
  }
  return {factor->to(at::TensorOptions().device(device)), jitter, basis};
}

}  // namespace emmet
