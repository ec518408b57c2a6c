#include "dependent_keys.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/nonzero.h>
#include <c10/util/StringUtil.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <string>

#include "emmet/error.h"

namespace emmet {
namespace {

using Groups = std::vector<std::vector<int64_t>>;

// Keys whose cosine is closer to ±1 than this coincide.
constexpr double kCoincidence = 1e-12;
// Eigenvalues of the matrix of cosines of n keys below the larger of these, the second times n, belong to a dependency.
// They add up to n, so that there is one wherever the condition number is above 1e12.
constexpr double kNullEigenvalue = 1e-10;
constexpr double kNullEigenvalueOfEachKey = 1e-12;
// A key takes part in a dependency when its coefficient in it reaches this share of the largest.
constexpr double kShare = 1e-3;
constexpr int64_t kBlockRows = 1024;
constexpr size_t kNamedKeys = 8;

// Where a condition [n] holds.
std::vector<int64_t> indices_where(const at::Tensor& condition) {
  const auto found = at::nonzero(condition).reshape(-1).cpu().contiguous();
  return {found.const_data_ptr<int64_t>(), found.const_data_ptr<int64_t>() + found.numel()};
}

// Disjoint sets of rows.
class Partition {
 public:
  explicit Partition(int64_t n) : parent_(n) { std::iota(parent_.begin(), parent_.end(), 0); }

  /// Joins row first + i with row j wherever related [m, n] holds at (i, j).
  void join_where(const at::Tensor& related, int64_t first = 0) {
    const auto pairs = at::nonzero(related).cpu().contiguous();
    const auto* pair = pairs.const_data_ptr<int64_t>();
    for (int64_t i = 0; i < pairs.size(0); ++i, pair += 2) parent_[root(first + pair[0])] = root(pair[1]);
  }

  Groups groups() {
    std::map<int64_t, std::vector<int64_t>> by_root;
    for (int64_t i = 0; i < static_cast<int64_t>(parent_.size()); ++i) by_root[root(i)].push_back(i);
    Groups found;
    for (auto& [root, members] : by_root) {
      if (members.size() > 1) found.push_back(std::move(members));
    }
    std::sort(found.begin(), found.end());
    return found;
  }

 private:
  int64_t root(int64_t i) {
    while (parent_[i] != i) i = parent_[i] = parent_[parent_[i]];
    return i;
  }

  std::vector<int64_t> parent_;
};

Groups coinciding(const at::Tensor& unit) {
  Partition partition(unit.size(0));
  for (int64_t row = 0; row < unit.size(0); row += kBlockRows) {
    const auto block = unit.narrow(0, row, std::min(kBlockRows, unit.size(0) - row));
    partition.join_where(at::matmul(block, unit.mT()).abs() > 1 - kCoincidence, row);
  }
  return partition.groups();
}

// The coefficients of all dependencies span the null space of the matrix of cosines. Its projector has one block for
// each set of rows that depend on each other.
Groups jointly_dependent(const at::Tensor& unit) {
  const auto [values, vectors] = at::linalg_eigh(at::matmul(unit, unit.mT()));
  const auto null = values <= std::max(kNullEigenvalue, kNullEigenvalueOfEachKey * static_cast<double>(unit.size(0)));
  if (!null.any().item<bool>()) return {};
  const auto projector = at::matmul(vectors * null, vectors.mT());
  Partition partition(unit.size(0));
  partition.join_where(projector.abs() >= kShare * projector.diagonal().max());
  return partition.groups();
}

// People count edits from 1, as in all messages.
std::string list_text(const std::vector<int64_t>& group) {
  std::string text;
  for (size_t i = 0; i < std::min(group.size(), kNamedKeys); ++i)
    text += (i ? ", " : "") + std::to_string(group[i] + 1);
  return group.size() > kNamedKeys ? c10::str(text, ", … (", group.size(), " in all)") : text;
}

[[noreturn]] void throw_for_metric(const std::string& edits) {
  throw NotPositiveDefiniteError(
      c10::str("expected a metric in which the constraint can be met to 1e-6, got one that is too ill-conditioned",
               edits, "; use the metric in float64, one of more tokens or a larger jitter, or a ridge > 0"));
}

Groups dependent_groups(const at::Tensor& whitened) {
  const auto unit = whitened / whitened.norm(2, 1, /*keepdim=*/true);
  if (auto groups = coinciding(unit); !groups.empty()) return groups;
  if (unit.size(0) > unit.size(1)) {
    std::vector<int64_t> all(unit.size(0));
    std::iota(all.begin(), all.end(), 0);
    return {all};
  }
  return jointly_dependent(unit);
}

}  // namespace

void throw_dependent_keys(const at::Tensor& whitened) {
  require_nonzero_keys(whitened);
  const auto groups = dependent_groups(whitened);
  if (groups.empty()) throw_for_metric("");
  std::string named;
  for (size_t i = 0; i < std::min(groups.size(), kNamedKeys); ++i) {
    named += (i ? "; " : "") + ("{" + list_text(groups[i]) + "}");
  }
  if (groups.size() > kNamedKeys) named += c10::str("; … (", groups.size(), " groups in all)");
  throw DependentKeysError(
      c10::str("expected linearly independent keys for an equality constraint on ", whitened.size(0), " edits in ",
               whitened.size(1), " dimensions, got dependent ones of edits ", named,
               "; leave some of each group out, or use a ridge > 0 (or automatic)"),
      groups);
}

void require_nonzero_keys(const at::Tensor& whitened) {
  const auto zero = indices_where(whitened.square().sum(1) == 0);
  if (zero.empty()) return;
  throw DependentKeysError(c10::str("expected keys that are not zero in the metric, got zero ones of edits ",
                                    list_text(zero), "; leave these edits out, or use a ridge > 0"),
                           {zero});
}

void require_metric_for(const std::vector<int64_t>& missed) {
  if (!missed.empty()) throw_for_metric(" for edits " + list_text(missed));
}

}  // namespace emmet
