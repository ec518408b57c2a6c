#include "emmet/versioned_weights.h"

#include <c10/core/GradMode.h>
#include <c10/util/StringUtil.h>

#include <utility>

#include "emmet/error.h"

namespace emmet {

VersionedWeights::VersionedWeights(Weights weights, std::size_t undo_depth)
    : undo_depth_(undo_depth), current_(std::make_shared<const Weights>(std::move(weights))) {}

VersionedWeights::Snapshot VersionedWeights::snapshot() const {
  const std::lock_guard lock(publishing_);
  return current_;
}

void VersionedWeights::apply(const std::map<std::string, Update>& updates, bool transposed) {
  const at::NoGradGuard no_grad;
  const std::lock_guard lock(writing_);
  Weights next = *current_;
  for (const auto& [name, update] : updates) {
    const auto weight = next.find(name);
    if (weight == next.end()) {
      throw Error(c10::str("expected the name of a weight, got '", name, "'; use one that a snapshot has"));
    }
    weight->second = weight->second.clone();
    update.apply_(weight->second, transposed);
  }
  superseded_.push_back(std::make_shared<const Weights>(std::move(next)));
  exchange(superseded_.back());
  if (superseded_.size() > undo_depth_) superseded_.pop_front();
}

void VersionedWeights::undo() {
  const std::lock_guard lock(writing_);
  if (superseded_.empty()) {
    throw Error("expected an edit to take back, got none whose previous version is kept; use a larger undo_depth");
  }
  exchange(superseded_.back());
  superseded_.pop_back();
}

void VersionedWeights::exchange(Snapshot& version) {
  const std::lock_guard lock(publishing_);
  current_.swap(version);
}

}  // namespace emmet
