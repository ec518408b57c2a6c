#include "emmet/preservation.h"

#include <ATen/Context.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/tril.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <utility>

#include "checks.h"
#include "cpu/cholesky_update.h"
#include "cuda/cholesky_update.h"
#include "emmet/error.h"
#include "emmet/safetensors.h"
#include "gram.h"
#include "system.h"
#include "typed_file.h"

namespace emmet {
namespace {

// A pivot this small relative to its diagonal entry is rounding error, not information.
constexpr double kSmallestPivot = 1e-13;
// One factorisation costs as much as updates by d/3 keys on two cores, and as fewer the more cores there are. Not
// measured on a GPU.
constexpr int64_t kDimensionsPerKey = 16;

constexpr std::array<double, 10> kJitters = {0, 1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2};
constexpr double kAsymmetry = 1e-6;
// Rows of a matrix that are looked at at a time.
constexpr int64_t kBlockRows = 512;
// Relative to the largest eigenvalue: what sums in float32 may leave of a zero.
constexpr double kNegativeEigenvalue = 1e-6;
constexpr const char* kFormat = "emmet.preservation.1";

at::Tensor checked_moment(const at::Tensor& moment) {
  require_floating(moment, "second_moment");
  if (moment.dim() != 2 || moment.size(0) != moment.size(1) || moment.size(0) == 0) {
    throw ShapeError(c10::str("expected second_moment [d, d], got ", moment.sizes(),
                              "; pass what Covariance.second_moment() gives"));
  }
  require_finite_rows(moment, "second_moment");
  const auto exact = moment.to(at::kDouble);
  double asymmetry = 0.0;
  for (int64_t row = 0; row < exact.size(0); row += kBlockRows) {
    const int64_t count = std::min(kBlockRows, exact.size(0) - row);
    const auto difference = exact.narrow(0, row, count) - exact.narrow(1, row, count).mT();
    asymmetry = std::max(asymmetry, largest_magnitude(difference));
  }
  if (asymmetry > kAsymmetry * largest_magnitude(exact)) {
    throw ShapeError(c10::str("expected a symmetric second_moment, got one with a relative asymmetry of ",
                              asymmetry / largest_magnitude(exact), "; pass what Covariance.second_moment() gives"));
  }
  return exact;
}

void require_not_negative(double value, const char* name) {
  if (!(std::isfinite(value) && value >= 0)) {
    throw Error(c10::str("expected ", name, " >= 0, got ", value, "; give a finite number that is not negative"));
  }
}

bool is_upper_triangular(const at::Tensor& square) {
  for (int64_t row = 0; row < square.size(0); row += kBlockRows) {
    const int64_t count = std::min(kBlockRows, square.size(0) - row);
    const auto left = square.narrow(0, row, count).narrow(1, 0, row + count);
    if (at::tril(left, row - 1).count_nonzero().item<int64_t>() > 0) return false;
  }
  return true;
}

// The lower Cholesky factor of moment + jitter · mean(diagonal) · I, or an undefined tensor if there is none.
at::Tensor try_factorise(const at::Tensor& moment, double jitter) {
  auto factor = moment.clone(at::MemoryFormat::Contiguous).mT();
  factor.diagonal().add_(jitter * moment.diagonal().mean());
  const auto diagonal = factor.diagonal().clone();
  if (!factorise_(factor)) return {};
  const auto pivots = factor.diagonal().square() / diagonal;
  return pivots.min().item<double>() >= kSmallestPivot ? factor : at::Tensor();
}

// The lower Cholesky factor of L Lᵀ + Σ k kᵀ for few rows k, by one pass over L. Undefined where emmet has no kernel
// for the device.
at::Tensor try_update(const at::Tensor& factor, const at::Tensor& rows) {
  const int64_t dim = factor.size(0), count = rows.size(0);
  const auto transposed = [](const at::Tensor& matrix) { return matrix.mT().clone(at::MemoryFormat::Contiguous); };
  if (factor.is_cpu()) {
    const auto upper = transposed(factor);  // row-major Lᵀ is column-major L
    cpu::cholesky_update(upper.mutable_data_ptr<double>(), rows.contiguous().const_data_ptr<double>(), dim, count);
    return upper.mT();
  }
#ifdef EMMET_CUDA
  if (factor.is_cuda()) {
    const c10::DeviceGuard guard(factor.device());
    const auto stream = c10::impl::VirtualGuardImpl(at::kCUDA).getStream(factor.device());
    const auto upper = transposed(factor), vectors = transposed(rows), diagonal = factor.diagonal().contiguous();
    cuda::cholesky_update(upper.mutable_data_ptr<double>(), vectors.mutable_data_ptr<double>(),
                          diagonal.const_data_ptr<double>(), dim, count, stream.native_handle());
    return upper.mT();
  }
#endif
  return {};
}

}  // namespace

Preservation::Preservation(const at::Tensor& factor, double jitter, at::Tensor basis)
    : factor_(factor.mT().contiguous().mT()),  // by columns, as files have it: so a loaded metric gives the same bits
      jitter_(jitter),
      basis_(std::move(basis)) {}

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
  return {factor, 0.0, eigenvectors.narrow(1, 0, rank).clone(at::MemoryFormat::Contiguous)};
}

at::Tensor Preservation::onto_basis(const at::Tensor& rows) const {
  return basis_.defined() ? at::matmul(rows, basis_) : rows;
}

at::Tensor Preservation::whiten(const at::Tensor& keys) const {
  const at::NoGradGuard no_grad;
  const at::NoTF32Guard no_tf32;
  const auto rows = onto_basis(as_rows(keys, dim(), device(), "keys")).to(factor_.dtype());
  return at::linalg_solve_triangular(factor_, rows.mT(), /*upper=*/false).mT().to(at::kDouble);
}

at::Tensor Preservation::unwhiten(const at::Tensor& whitened) const {
  const at::NoGradGuard no_grad;
  return unwhiten_(as_rows(whitened, rank(), device(), "whitened").clone(at::MemoryFormat::Contiguous));
}

at::Tensor Preservation::unwhiten_(const at::Tensor& whitened) const {
  const at::NoTF32Guard no_tf32;
  auto columns = whitened.to(factor_.dtype()).mT();
  at::linalg_solve_triangular_out(columns, factor_.mT(), columns, /*upper=*/true);
  const auto solved = columns.mT().to(at::kDouble);
  return basis_.defined() ? at::matmul(solved, basis_.mT()) : solved;
}

at::Tensor Preservation::solve(const at::Tensor& keys) const { return unwhiten(whiten(keys)).view_as(keys); }

at::Tensor Preservation::gram(const at::Tensor& keys) const {
  const at::NoGradGuard no_grad;
  return gram_matrix(whiten(keys).mT());
}

at::Tensor Preservation::disturbance(const at::Tensor& delta) const {
  const at::NoGradGuard no_grad;
  return at::matmul(onto_basis(as_rows(delta, dim(), device(), "delta")), factor_.to(at::kDouble));
}

double Preservation::cost(const at::Tensor& delta) const { return disturbance(delta).square().sum().item<double>(); }

Preservation Preservation::absorb(const at::Tensor& keys, double weight) const {
  const at::NoGradGuard no_grad;
  require_not_negative(weight, "weight");
  require_float64("absorb");
  const auto rows = onto_basis(std::sqrt(weight) * as_rows(keys, dim(), device(), "keys"));
  if (rows.size(0) * kDimensionsPerKey <= rank()) {
    if (auto updated = try_update(factor_, rows); updated.defined()) return {updated, jitter_, basis_};
  }
  // C + w Σ k kᵀ is the Gram matrix of [Lᵀ; √w K], so the triangular factor of this is the new Lᵀ, up to signs. C
  // itself is not formed: that would square the condition number.
  const auto upper = std::get<1>(at::linalg_qr(at::cat({factor_.mT(), rows}), "r"));
  return {(upper.diagonal().sign().unsqueeze(1) * upper).mT(), jitter_, basis_};
}

int64_t Preservation::dim() const noexcept { return (basis_.defined() ? basis_ : factor_).size(0); }

int64_t Preservation::rank() const noexcept { return factor_.size(1); }

Preservation Preservation::to(c10::Device device) const {
  return {factor_.to(device), jitter_, basis_.defined() ? basis_.to(device) : at::Tensor()};
}

Preservation Preservation::in_float32() const { return {factor_.to(at::kFloat), jitter_, basis_}; }

void Preservation::require_float64(const char* action) const {
  if (factor_.scalar_type() != at::kDouble) {
    throw Error(c10::str("expected a metric in float64 to ", action, ", got one in float32; ", action,
                         " with the metric that in_float32() was called on"));
  }
}

void Preservation::save(const std::string& path) const {
  require_float64("save");
  // Lᵀ, because L lies in memory by columns: so neither writing nor reading it takes a copy.
  TensorFile file{{{"upper", factor_.mT()}}, {{"format", kFormat}, {"jitter", exact_text(jitter_)}}};
  if (basis_.defined()) file.tensors["basis"] = basis_;
  write_safetensors(path, file);
}

Preservation Preservation::load(const std::string& path, c10::Device device) {
  const TypedFile file(path, kFormat);
  const auto& upper = file.matrix("upper");
  if (upper.size(0) == 0 || upper.size(0) != upper.size(1) || !upper.diagonal().gt(0).all().item<bool>() ||
      !is_upper_triangular(upper)) {
    throw FormatError(c10::str(path, ": expected a triangular 'upper' with a positive diagonal, got ", upper.sizes(),
                               "; save it anew"));
  }
  at::Tensor basis;
  if (file.has("basis")) {
    basis = file.matrix("basis").to(device);
    if (basis.size(1) != upper.size(0) || basis.size(0) < basis.size(1)) {
      throw FormatError(c10::str(path, ": expected a 'basis' [dim, ", upper.size(0), "] with at least as many rows as ",
                                 "columns, got ", basis.sizes(), "; save it anew"));
    }
  }
  const double jitter = file.number("jitter");
  if (!(std::isfinite(jitter) && jitter >= 0)) {
    throw FormatError(c10::str(path, ": expected a jitter of at least 0, got ", jitter, "; save it anew"));
  }
  return {upper.to(device).mT(), jitter, basis};
}

}  // namespace emmet
