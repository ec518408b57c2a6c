#include "emmet/versioned_weights.h"

#include <ATen/ops/full.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <atomic>
#include <memory>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "emmet/error.h"
#include "oracle.h"

namespace {

using emmet::Update;
using emmet::VersionedWeights;
using oracle::message_of;
using oracle::random;

constexpr int64_t kRows = 24, kColumns = 160;

Update random_update(uint64_t seed) { return Update::from_factors(random({6, 2}, seed), random({2, 10}, seed + 1)); }

/// Adds 1 to every entry: version v of a weight of zeros is v everywhere, and its products with ones are exact.
Update increment() { return Update::from_factors(at::ones({kRows, 1}), at::ones({1, kColumns})); }

at::Tensor zeros() { return at::zeros({kRows, kColumns}, at::TensorOptions(at::kDouble)); }

/// The versions that the products of a snapshot's weights with a vector of ones belong to.
///
/// Each product is formed twice: as inference does, and by a loop that ThreadSanitizer sees, as libtorch is not
/// instrumented.
std::set<double> versions_of(const VersionedWeights::Weights& weights) {
  std::set<double> versions;
  const at::Tensor input = at::ones({1, kColumns}, at::TensorOptions(at::kDouble));
  for (const auto& [name, weight] : weights) {
    for (const at::Tensor& product : {at::linear(input, weight), oracle::multiply(weight, input.t())}) {
      const auto* values = product.const_data_ptr<double>();
      for (int64_t row = 0; row < kRows; ++row) versions.insert(values[row] / kColumns);
    }
  }
  return versions;
}

TEST(VersionedWeights, EveryProductBelongsToOneVersionWhileEditsAreMadeAndUndone) {
  constexpr int kEdits = 150;
  VersionedWeights served({{"first", zeros()}, {"second", zeros()}}, /*undo_depth=*/2);
  std::set<double> published;
  for (int version = 0; version <= kEdits + 1; ++version) published.insert(version);
  std::atomic<bool> stop{false};
  std::atomic<int> passes{0};
  const auto read = [&] {
    while (!stop) {
      const auto versions = versions_of(*served.snapshot());
      EXPECT_EQ(versions.size(), 1);
      EXPECT_EQ(published.count(*versions.begin()), 1) << *versions.begin();
      ++passes;
    }
  };
  std::vector<std::thread> readers;
  for (int i = 0; i < 2; ++i) readers.emplace_back(read);

  // Two steps on, one back.
  for (int edit = 0; edit < kEdits; ++edit) {
    served.apply({{"first", increment()}, {"second", increment()}});
    served.apply({{"first", increment()}, {"second", increment()}});
    served.undo();
    while (passes < edit) std::this_thread::yield();  // so that reading goes on during all of this
  }
  stop = true;
  for (auto& reader : readers) reader.join();
  EXPECT_EQ(versions_of(*served.snapshot()), std::set<double>{kEdits});
}

TEST(VersionedWeights, WritersLoseNoUpdate) {
  constexpr int kEdits = 200;
  VersionedWeights served({{"weight", zeros()}});
  std::atomic<int> ready{0};
  const auto write = [&] {
    for (++ready; ready < 2;) std::this_thread::yield();
    for (int edit = 0; edit < kEdits; ++edit) served.apply({{"weight", increment()}});
  };
  std::thread other(write);
  write();
  other.join();
  EXPECT_EQ(versions_of(*served.snapshot()), std::set<double>{2 * kEdits});
}

TEST(VersionedWeights, AddsUpdatesAsApplyDoes) {
  for (const bool transposed : {false, true}) {
    const at::Tensor weight = transposed ? random({10, 6}, 1, at::kFloat) : random({6, 10}, 1, at::kFloat);
    at::Tensor expected = weight.clone();
    random_update(2).apply_(expected, transposed);
    VersionedWeights served({{"weight", weight}});
    served.apply({{"weight", random_update(2)}}, transposed);
    EXPECT_TRUE(served.snapshot()->at("weight").equal(expected));
  }
}

TEST(VersionedWeights, SnapshotKeepsItsVersion) {
  VersionedWeights served({{"weight", random({6, 10}, 1)}}, /*undo_depth=*/0);
  const auto snapshot = served.snapshot();
  const at::Tensor before = snapshot->at("weight").clone();
  served.apply({{"weight", random_update(2)}});
  EXPECT_TRUE(snapshot->at("weight").equal(before));
  EXPECT_FALSE(served.snapshot()->at("weight").equal(before));
}

TEST(VersionedWeights, WeightsWithoutAnUpdateAreShared) {
  const at::Tensor other = random({3, 4}, 1);
  VersionedWeights served({{"other", other}, {"weight", random({6, 10}, 2)}});
  served.apply({{"weight", random_update(3)}});
  EXPECT_TRUE(served.snapshot()->at("other").is_same(other));
}

TEST(VersionedWeights, UndoGivesBackTheVeryVersion) {
  VersionedWeights served({{"weight", random({6, 10}, 1)}}, /*undo_depth=*/2);
  const auto first = served.snapshot();
  served.apply({{"weight", random_update(2)}});
  const auto second = served.snapshot();
  served.apply({{"weight", random_update(4)}});
  served.undo();
  EXPECT_EQ(served.snapshot(), second);
  served.undo();
  EXPECT_EQ(served.snapshot(), first);
}

TEST(VersionedWeights, UndoReachesAsFarAsVersionsAreKept) {
  VersionedWeights served({{"weight", random({6, 10}, 1)}}, /*undo_depth=*/2);
  EXPECT_THROW(served.undo(), emmet::Error);
  for (uint64_t edit = 0; edit < 3; ++edit) served.apply({{"weight", random_update(edit)}});
  served.undo();
  served.undo();
  const auto current = served.snapshot();
  const std::string message = message_of<emmet::Error>([&] { served.undo(); });
  EXPECT_NE(message.find("undo_depth"), std::string::npos) << message;
  EXPECT_EQ(served.snapshot(), current);
}

TEST(VersionedWeights, SupersededVersionIsFreedOnceNobodyNeedsIt) {
  VersionedWeights served({{"weight", random({6, 10}, 1)}}, /*undo_depth=*/1);
  auto held = served.snapshot();
  const std::weak_ptr<const VersionedWeights::Weights> first = held;
  for (uint64_t edit = 0; edit < 2; ++edit) served.apply({{"weight", random_update(edit)}});
  EXPECT_FALSE(first.expired());
  held.reset();
  EXPECT_TRUE(first.expired());
}

TEST(VersionedWeights, StayAsTheyAreWhenAnUpdateFails) {
  VersionedWeights served({{"good", random({6, 10}, 1)}, {"other", random({4, 10}, 2)}});
  const auto before = served.snapshot();
  const at::Tensor values = before->at("good").clone();
  EXPECT_THROW(served.apply({{"good", random_update(3)}, {"other", random_update(3)}}), emmet::ShapeError);
  const std::string message =
      message_of<emmet::Error>([&] { served.apply({{"good", random_update(3)}, {"unknown", random_update(3)}}); });
  EXPECT_NE(message.find("'unknown'"), std::string::npos) << message;
  EXPECT_EQ(served.snapshot(), before);
  EXPECT_TRUE(before->at("good").equal(values));
  EXPECT_THROW(served.undo(), emmet::Error);
}

}  // namespace
