#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "emmet/update.h"

namespace emmet {

/// Weights that inference reads while edits replace them. No reader ever sees a weight half written, or one layer with
/// an edit beside another without it.
///
/// A version is a set of named tensors that nobody writes to once it is published. A reader takes a snapshot of the
/// current version and computes with it for as long as it likes, best for a whole request. A writer forms the next
/// version aside and publishes it by exchanging one pointer: readers never wait for a solve or a copy, and writers
/// never wait for readers. A superseded version is freed once no reader holds it and no undo needs it.
///
///     emmet::VersionedWeights served({{"down", weight}});
///
///     const auto weights = served.snapshot();                             // a thread of inference
///     const auto output = at::linear(hidden, weights->at("down"));
///
///     served.apply({{"down", emmet::solve(metric, keys, residuals)}});    // the thread that edits
///     served.undo();
///
/// Every member may be called from any thread. Where the weights are on a GPU, readers and writers have to queue their
/// work on the same stream (torch's default one, unless another was chosen), whose order then protects the data.
class VersionedWeights {
 public:
  using Weights = std::map<std::string, at::Tensor>;
  using Snapshot = std::shared_ptr<const Weights>;

  /// Publishes `weights` as the first version. They are shared, not copied: nobody may write to them from now on.
  /// The latest `undo_depth` superseded versions are kept for `undo`. A version takes the memory of the weights that
  /// its edit changed.
  explicit VersionedWeights(Weights weights, std::size_t undo_depth = 1);

  /// The current version. Must not be written to.
  Snapshot snapshot() const;

  /// Publishes a version with updates added to the weights of these names, as `Update::apply_` adds them. Readers see
  /// all of them or none. Writers take turns, so that no update is lost. Throws Error for an unknown name, and what
  /// `Update::apply_` throws; the current version stays then.
  void apply(const std::map<std::string, Update>& updates, bool transposed = false);

  /// Publishes again, bit for bit, the version before the latest that was applied and not undone. Throws Error when
  /// that is not kept.
  void undo();

 private:
  void exchange(Snapshot& version);  // the current one and this

  const std::size_t undo_depth_;
  std::deque<Snapshot> superseded_;  // guarded by writing_
  Snapshot current_;                 // read under either mutex, exchanged under both
  std::mutex writing_;               // held while a version is formed
  mutable std::mutex publishing_;    // held for the copy or the exchange of a pointer
};

}  // namespace emmet
