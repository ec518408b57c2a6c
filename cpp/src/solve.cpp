#include "emmet/solve.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_vecdot.h>
#include <ATen/ops/matmul.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <utility>

#include "checks.h"
#include "dependent_keys.h"
#include "emmet/error.h"
#include "gram.h"
#include "system.h"

namespace emmet {
namespace {

// Beyond this the scaled system is singular to working precision.
constexpr double kLargestCondition = 1e12;
constexpr double kConstraintTolerance = 1e-6;
// Refinement ends here, or when it no longer gains.
constexpr double kRefinedResidual = 1e-12;
constexpr int kRefinements = 3;
// Rows of Δ that are found at a time.
constexpr int64_t kOutputs = 512;
// Edits alone that are solved at a time, and how far the answer to a key may be off before it is put right: where this
// is more, refinement within `solve` does not come to kConstraintTolerance.
constexpr int64_t kAlone = 1024;
constexpr double kLargestCorrection = 0.03;

// The wall clock of what is computed on a device.
class Stopwatch {
 public:
  explicit Stopwatch(c10::Device device) : device_(device) {}

  /// Seconds since the last call, or since the beginning. On a GPU it waits for what was queued until now.
  double lap() {
    if (!device_.is_cpu()) c10::impl::VirtualGuardImpl(device_.type()).getStream(device_).synchronize();
    const auto now = Clock::now();
    return std::chrono::duration<double>(now - std::exchange(start_, now)).count();
  }

 private:
  using Clock = std::chrono::steady_clock;

  c10::Device device_;
  Clock::time_point start_ = Clock::now();
};

void require_representable(double value, const char* what) {
  if (!std::isfinite(value)) {
    throw NonFiniteError(c10::str("expected ", what, " within the range of float64, got an overflow; scale the input"));
  }
}

// The same of one of several edits.
void require_representable(double value, const char* what, int64_t edit) {
  if (!std::isfinite(value)) {
    throw NonFiniteError(c10::str("expected ", what, " within the range of float64, got an overflow for edit ",
                                  edit + 1, "; scale the input"));
  }
}

at::Tensor with_ridge_(at::Tensor gram, double ridge) {
  gram.diagonal().add_(ridge);
  return gram;
}

struct Factorised {
  System system;  // gram + μI
  double ridge;   // μ
};

Factorised with_fixed_ridge(const at::Tensor& gram, const at::Tensor& whitened, double ridge) {
  const bool underdetermined = whitened.size(0) > whitened.size(1);
  if (ridge == 0.0 && underdetermined) throw_dependent_keys(whitened);
  System system(with_ridge_(gram, ridge));
  if (system.condition() > kLargestCondition) {
    if (ridge == 0.0) throw_dependent_keys(whitened);
    const auto longest = whitened.square().sum(1).max().item<double>();
    throw NotPositiveDefiniteError(c10::str("expected a ridge that makes the system definite, got ", ridge,
                                            " beside a squared key length of ", longest,
                                            "; use a larger ridge, or have it chosen (automatic)"));
  }
  return {std::move(system), ridge};
}

// The smallest μ with which the eigenvalues of K C⁻¹ Kᵀ + μI lie within a factor of `bound`. `longest` is the largest
// squared length of a key.
Factorised with_bounded_condition(const at::Tensor& gram, const at::Tensor& whitened, double longest, double bound) {
  if (longest == 0.0) throw_dependent_keys(whitened);
  const bool is_in_range = longest >= bound * std::numeric_limits<double>::min();  // so are a ridge and its inverse
  double smallest = 0.0;  // with more keys than dimensions K C⁻¹ Kᵀ is singular
  if (whitened.size(0) <= whitened.size(1)) {
    System system(gram.clone());
    if (system.condition() <= bound) return {std::move(system), 0.0};
    if (is_in_range) smallest = system.smallest_eigenvalue();
  }
  if (!is_in_range) {
    throw NonFiniteError(
        "expected squared lengths of the keys in the metric within the range of float64, got an underflow; "
        "scale the input");
  }
  const double largest = largest_eigenvalue(gram);
  const double ridge = std::max(0.0, (largest - bound * smallest) / (bound - 1.0));
  return {System(with_ridge_(gram, ridge)), ridge};
}

// `gram` is A Aᵀ or AᵀA of whitened keys A: both have the same eigenvalues but for zeros. It is lost.
Factorised factorise(const at::Tensor& gram, const at::Tensor& whitened, const Ridge& ridge) {
  const double longest = largest_magnitude(gram);
  require_representable(longest, "squared lengths of the keys in the metric");
  return ridge.is_automatic() ? with_bounded_condition(gram, whitened, longest, ridge.value())
                              : with_fixed_ridge(gram, whitened, ridge.value());
}

// A solution X for residuals R and the (ΔK)ᵀ that it reaches, both refined where the constraint is to be met.
template <typename Answer, typename Reach>
std::pair<at::Tensor, at::Tensor> refined(at::Tensor X, const at::Tensor& R, double mu, const Answer& answer,
                                          const Reach& reach) {
  auto reached = reach(X);
  if (mu > 0.0) return {X, reached};
  double missing = relative_norm(R - reached, R);
  for (int i = 0; i < kRefinements && missing > kRefinedResidual; ++i) {
    const auto better = X + answer(R - reached), reached_then = reach(better);
    const double missing_then = relative_norm(R - reached_then, R);
    if (!(missing_then < missing)) break;
    X = better;
    reached = reached_then;
    missing = missing_then;
  }
  return {X, reached};
}

// Adds what an n × n system S = KᵀC⁻¹K + μI found for some outputs, where `multipliers` are S⁻¹R: tr(Δ C Δᵀ) is
// ⟨S⁻¹R, (ΔK)ᵀ⟩. `norm` is that of the residuals of all outputs.
void measure(Diagnostics& diagnostics, const at::Tensor& R, double norm, const at::Tensor& multipliers,
             const at::Tensor& reached) {
  const double missing = norm == 0.0 ? 0.0 : (R - reached).norm().item<double>() / norm;
  diagnostics.constraint_residual = std::hypot(diagnostics.constraint_residual, missing);
  diagnostics.preservation_cost += (multipliers * reached).sum().item<double>();
}

void require_constraint(const Diagnostics& diagnostics, const Preservation& preservation, const at::Tensor& K) {
  require_representable(diagnostics.constraint_residual, "squared lengths of the residuals");
  if (diagnostics.ridge == 0.0 && !(diagnostics.constraint_residual <= kConstraintTolerance)) {
    throw_dependent_keys(preservation.whiten(K));
  }
}

// With S = T Tᵀ, Δ = (T⁻¹R)ᵀ · T⁻¹KᵀC⁻¹ for few edits. T is shared between the factors so that neither is much larger
// than Δ; otherwise their product would lose digits. A, then Q, then `right` share one memory.
Update solve_for_factors(const Preservation& preservation, const at::Tensor& K, const at::Tensor& A,
                         const at::Tensor& R, const Ridge& ridge, Diagnostics diagnostics) {
  Stopwatch stopwatch(A.device());
  const auto factorised = factorise(gram_matrix(A.mT()), A, ridge);
  diagnostics.condition = factorised.system.condition();
  diagnostics.ridge = factorised.ridge;
  const auto& system = factorised.system;
  const auto multipliers = system.solve(R);  // [n, d_out]
  const auto Q = system.half_solve_(A);      // [n, rank], orthonormal rows when μ = 0
  diagnostics.seconds_system = stopwatch.lap();
  const auto right = preservation.unwhiten_(Q);  // [n, d_in]
  diagnostics.seconds_whiten += stopwatch.lap();

  const auto effect = at::matmul(K, right.mT());  // (ΔK)ᵀ = effect · left, with the factor as it came out
  const auto half_solve = [&](const at::Tensor& B) {
    return system.half_solve_(B.clone(at::MemoryFormat::Contiguous));
  };
  const auto [left, reached] = refined(half_solve(R), R, factorised.ridge, half_solve,
                                       [&](const at::Tensor& X) { return at::matmul(effect, X); });
  measure(diagnostics, R, R.norm().item<double>(), multipliers, reached);
  diagnostics.seconds_system += stopwatch.lap();
  require_constraint(diagnostics, preservation, K);
  return Update::from_factors(left.mT(), right, diagnostics);
}

// Δ = (S⁻¹R)ᵀA · L⁻¹ for more edits, where Δ is smaller than its factors, and quicker to find. Its rows do not depend
// on each other: some are found at a time, so that nothing but A, S and Δ is large.
Update solve_for_delta(const Preservation& preservation, const at::Tensor& K, const at::Tensor& A, const at::Tensor& R,
                       const Ridge& ridge, Diagnostics diagnostics) {
  Stopwatch stopwatch(A.device());
  const auto factorised = factorise(gram_matrix(A.mT()), A, ridge);
  diagnostics.condition = factorised.system.condition();
  diagnostics.ridge = factorised.ridge;
  const double norm = R.norm().item<double>();
  const auto delta = at::empty({R.size(1), K.size(1)}, R.options());
  const auto reach = [&](const at::Tensor& rows) { return at::matmul(K, rows.mT()); };
  diagnostics.seconds_system = stopwatch.lap();
  for (int64_t first = 0; first < R.size(1); first += kOutputs) {
    const auto some = R.narrow(1, first, std::min(kOutputs, R.size(1) - first));
    const auto rows_for = [&](const at::Tensor& multipliers) {
      const auto disturbance = at::matmul(multipliers.mT(), A);  // Δ L, [outputs, rank]
      diagnostics.seconds_system += stopwatch.lap();
      const auto rows = preservation.unwhiten_(disturbance);
      diagnostics.seconds_whiten += stopwatch.lap();
      return rows;
    };
    const auto multipliers = factorised.system.solve(some);  // [n, outputs]
    const auto answer = [&](const at::Tensor& B) { return rows_for(factorised.system.solve(B)); };
    const auto [rows, reached] = refined(rows_for(multipliers), some, factorised.ridge, answer, reach);
    delta.narrow(0, first, rows.size(0)).copy_(rows);
    measure(diagnostics, some, norm, multipliers, reached);
    diagnostics.seconds_system += stopwatch.lap();
  }
  require_constraint(diagnostics, preservation, K);
  return Update::from_dense(delta, diagnostics);
}

// Δ = Zᵀ L⁻¹ with (AᵀA + μI) Z = AᵀR: one unknown a dimension, for n > d_in (the push-through identity).
Update solve_by_dimensions(const Preservation& preservation, const at::Tensor& A, const at::Tensor& R,
                           const Ridge& ridge, Diagnostics diagnostics) {
  Stopwatch stopwatch(A.device());
  const auto [system, mu] = factorise(gram_matrix(A), A, ridge);
  const auto Z = system.solve(at::matmul(A.mT(), R));  // [rank, d_out]
  diagnostics.condition = system.condition();
  diagnostics.ridge = mu;
  diagnostics.constraint_residual = relative_norm(at::matmul(A, Z) - R, R);
  diagnostics.preservation_cost = Z.square().sum().item<double>();
  require_representable(diagnostics.constraint_residual + diagnostics.preservation_cost,
                        "squared lengths of the residuals");
  diagnostics.seconds_system = stopwatch.lap();

  const auto delta = preservation.unwhiten_(Z.mT()).contiguous();  // [d_out, d_in]
  diagnostics.seconds_whiten += stopwatch.lap();
  return Update::from_dense(delta, diagnostics);
}

struct Edits {
  at::Tensor keys, residuals;  // [n, d_in] and [n, d_out], float64
};

// One number for each edit, at which the CPU is quicker than a GPU.
std::vector<double> numbers(const at::Tensor& tensor) {
  const auto values = tensor.cpu();
  return {values.const_data_ptr<double>(), values.const_data_ptr<double>() + values.numel()};
}

// Adds the updates of the next of some edits that know nothing of each other. ROME's closed form, with a ridge μ:
// Δ = r kᵀC⁻¹ / (kᵀC⁻¹k + μ), whose factors share √(kᵀC⁻¹k + μ) between them.
void solve_next(std::vector<Update>& updates, const Preservation& preservation, const Edits& edits, double mu) {
  const auto first = static_cast<int64_t>(updates.size());
  const int64_t count = std::min(kAlone, edits.keys.size(0) - first);
  const auto K = edits.keys.narrow(0, first, count), R = edits.residuals.narrow(0, first, count);
  const double share_of_each = 1.0 / static_cast<double>(count);
  Stopwatch stopwatch(K.device());
  const auto A = preservation.whiten(K);
  const auto squared = at::linalg_vecdot(A, A);  // kᵀC⁻¹k
  const auto scale = (squared + mu).rsqrt();
  const auto right = preservation.unwhiten_(A.mul_(scale.unsqueeze(1)));  // [n, d_in]
  const double seconds_whiten = stopwatch.lap() * share_of_each;

  const auto key_sizes = numbers(squared), residual_sizes = numbers(at::linalg_vecdot(R, R)), scales = numbers(scale);
  const auto answers = numbers(at::linalg_vecdot(K, right));  // to a key, of one unit of left
  std::vector<int64_t> missed;
  for (int64_t i = 0; i < count; ++i) {
    require_representable(key_sizes[i], "the squared length of a key in the metric", first + i);
    require_representable(residual_sizes[i], "the squared length of a residual", first + i);
    if (mu > 0.0) continue;
    if (key_sizes[i] == 0.0) require_nonzero_keys(preservation.whiten(edits.keys));
    if (!(std::abs(answers[i] * scales[i] - 1.0) <= kLargestCorrection)) missed.push_back(first + i);
  }
  require_metric_for(missed);
  const double seconds_system = stopwatch.lap() * share_of_each;

  for (int64_t i = 0; i < count; ++i) {
    const double share = mu == 0.0 ? 1.0 / answers[i] : scales[i];  // of the residual; without a ridge all is answered
    Diagnostics diagnostics;
    diagnostics.ridge = mu;
    diagnostics.constraint_residual = residual_sizes[i] > 0.0 ? std::abs(share * answers[i] - 1.0) : 0.0;
    diagnostics.preservation_cost =
        std::pow(std::sqrt(residual_sizes[i]) * share * std::sqrt(key_sizes[i]) * scales[i], 2);
    diagnostics.seconds_whiten = seconds_whiten;
    diagnostics.seconds_system = seconds_system;
    updates.push_back(Update::from_factors(R[i].unsqueeze(1) * share, right.narrow(0, i, 1).clone(), diagnostics));
  }
}

std::vector<Update> solve_alone(const Preservation& preservation, const Edits& edits, const Ridge& ridge) {
  const auto count = static_cast<size_t>(edits.keys.size(0));
  std::vector<Update> updates;
  updates.reserve(count);
  while (updates.size() < count) {
    solve_next(updates, preservation, edits, ridge.is_automatic() ? 0.0 : ridge.value());
  }
  return updates;
}

Edits checked(const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals) {
  if (residuals.dim() == 0) throw ShapeError("expected residuals [n, d_out], got []; give one row an edit");
  Edits edits{as_rows(keys, preservation.dim(), preservation.device(), "keys"),
              as_rows(residuals, residuals.size(-1), preservation.device(), "residuals")};
  require_same_count(edits.keys, edits.residuals);
  return edits;
}

}  // namespace

Ridge::Ridge(double value) : value_(value) { require_not_negative(value, "ridge"); }

Ridge Ridge::automatic(double max_condition) {
  if (!(max_condition > 1 && max_condition <= kLargestCondition)) {
    throw Error(c10::str("expected max_condition > 1 and at most ", kLargestCondition, ", got ", max_condition,
                         "; 1e8 suits float64"));
  }
  Ridge ridge(max_condition);
  ridge.automatic_ = true;
  return ridge;
}

Update solve(const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals, Ridge ridge) {
  const at::NoGradGuard no_grad;
  auto edits = checked(preservation, keys, residuals);
  auto& [K, R] = edits;
  const int64_t n = K.size(0), d_in = K.size(1), d_out = R.size(1);
  if (n == 1) return solve_alone(preservation, edits, ridge).front();
  Diagnostics diagnostics;
  Stopwatch stopwatch(K.device());
  const auto A = preservation.whiten(K);  // [n, rank], rows L⁻¹k: A Aᵀ is the papers' KᵀC⁻¹K
  diagnostics.seconds_whiten = stopwatch.lap();
  if (n > A.size(1)) {
    K.reset();  // its memory is needed
    return solve_by_dimensions(preservation, A, R, ridge, diagnostics);
  }
  if (n * (d_in + d_out) < d_in * d_out) return solve_for_factors(preservation, K, A, R, ridge, diagnostics);
  return solve_for_delta(preservation, K, A, R, ridge, diagnostics);
}

std::vector<Update> solve_each(const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals,
                               Ridge ridge) {
  const at::NoGradGuard no_grad;
  return solve_alone(preservation, checked(preservation, keys, residuals), ridge);
}

Update rome(const Preservation& preservation, const at::Tensor& key, const at::Tensor& residual) {
  if (key.dim() > 1 && key.size(0) != 1) {
    throw ShapeError(c10::str("expected one key for ROME, got ", key.size(0), "; use emmet() or memit() for a batch"));
  }
  return solve(preservation, key, residual, 0.0);
}

Update memit(const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals, double lambda) {
  if (!(lambda > 0)) {
    throw Error(c10::str("expected lambda > 0 for MEMIT, got ", lambda, "; emmet() is its limit at 0"));
  }
  return solve(preservation, keys, residuals, lambda);
}

Update emmet(const Preservation& preservation, const at::Tensor& keys, const at::Tensor& residuals, Ridge ridge) {
  return solve(preservation, keys, residuals, ridge);
}

}  // namespace emmet
