// What may be called from several threads at once, each result compared with what one thread alone gets. Meant for
// ThreadSanitizer (`make test-tsan`), which sees emmet's own accesses but not those inside of libtorch.

#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <atomic>
#include <cmath>
#include <thread>
#include <vector>

#include "emmet/covariance.h"
#include "emmet/error.h"
#include "emmet/preservation.h"
#include "emmet/solve.h"
#include "emmet/update.h"
#include "emmet/versioned_weights.h"
#include "oracle.h"

namespace {

using emmet::Covariance;
using emmet::Preservation;
using emmet::Update;
using oracle::random;

constexpr int kThreads = 4, kRounds = 40;
constexpr int64_t kIn = 48, kOut = 6;

/// Runs action(0), …, action(kThreads − 1), each in a thread of its own, and lets none begin before all are there.
template <typename Action>
void in_threads(const Action& action) {
  std::atomic<int> ready{0};
  std::vector<std::thread> threads;
  for (int number = 0; number < kThreads; ++number) {
    threads.emplace_back([&, number] {
      for (++ready; ready < kThreads;) std::this_thread::yield();
      action(number);
    });
  }
  for (auto& thread : threads) thread.join();
}

Preservation metric() {
  Covariance moment(kIn);
  moment.add(random({4 * kIn, kIn}, 1));
  return Preservation::from_second_moment(moment.second_moment());
}

/// Keys of whole numbers, whose products and sums are exact in any order.
at::Tensor whole_keys(int seed) { return random({30, kIn}, static_cast<uint64_t>(seed)).mul(4).round(); }

TEST(Concurrency, OneMetricIsSolvedWithAndAbsorbedInto) {
  const Preservation shared = metric();
  const at::Tensor residuals = random({3, kOut}, 3);
  std::vector<at::Tensor> keys, updates, factors, later;
  for (int number = 0; number < kThreads; ++number) {
    keys.push_back(random({3, kIn}, 10 + static_cast<uint64_t>(number)));
    updates.push_back(emmet::solve(shared, keys.back(), residuals).dense());
    const Preservation absorbed = shared.absorb(keys.back());
    factors.push_back(absorbed.factor());
    later.push_back(emmet::solve(absorbed, keys.front(), residuals, 1.0).dense());
  }
  in_threads([&](int number) {
    const auto index = static_cast<size_t>(number);
    for (int round = 0; round < kRounds; ++round) {
      EXPECT_TRUE(emmet::solve(shared, keys[index], residuals).dense().equal(updates[index]));
      const Preservation absorbed = shared.absorb(keys[index]);
      EXPECT_TRUE(absorbed.factor().equal(factors[index]));
      EXPECT_TRUE(emmet::solve(absorbed, keys.front(), residuals, 1.0).dense().equal(later[index]));
    }
  });
  EXPECT_TRUE(shared.factor().equal(metric().factor()));
}

TEST(Concurrency, AFailedSolveDisturbsNoOther) {
  const Preservation shared = metric();
  const at::Tensor keys = random({3, kIn}, 2), residuals = random({3, kOut}, 3);
  const at::Tensor alone = emmet::solve(shared, keys, residuals).dense();
  const at::Tensor twins = keys.index_select(0, at::zeros({3}, at::TensorOptions(at::kLong)));
  in_threads([&](int number) {
    for (int round = 0; round < kRounds; ++round) {
      if (number % 2 == 0) {
        EXPECT_TRUE(emmet::solve(shared, keys, residuals).dense().equal(alone));
      } else {
        EXPECT_THROW(emmet::solve(shared, twins, residuals), emmet::DependentKeysError);
      }
    }
  });
}

TEST(Concurrency, MomentsOfThreadsAreMergedIntoTheirSum) {
  std::vector<Covariance> moments(kThreads,
                                  Covariance(kIn));  // copies, which share their memory until they are added to
  in_threads([&](int number) {
    for (int round = 0; round < kRounds; ++round) moments[static_cast<size_t>(number)].add(whole_keys(number));
  });
  Covariance together(kIn), alone(kIn);
  for (int number = 0; number < kThreads; ++number) {
    together.merge(moments[static_cast<size_t>(number)]);
    for (int round = 0; round < kRounds; ++round) alone.add(whole_keys(number));
  }
  EXPECT_EQ(together.count(), kThreads * kRounds * 30);
  EXPECT_TRUE(together.sum().equal(alone.sum()));
}

TEST(Concurrency, OneUpdateIsAppliedToManyWeights) {
  const Update update = emmet::solve(metric(), random({3, kIn}, 2), random({3, kOut}, 3));
  const at::Tensor before = random({kOut, kIn}, 4, at::kFloat);
  at::Tensor expected = before.clone();
  for (int round = 0; round < kRounds; ++round) update.apply_(expected);
  in_threads([&](int number) {
    const bool transposed = number % 2 == 1;
    const at::Tensor weight = (transposed ? before.t() : before).clone(at::MemoryFormat::Contiguous);
    for (int round = 0; round < kRounds; ++round) update.apply_(weight, transposed);
    EXPECT_TRUE((transposed ? weight.t() : weight).equal(expected));
  });
}

TEST(Concurrency, EditsAreSolvedAndPublishedWhileOthersRead) {
  const Preservation shared = metric();
  const at::Tensor key = random({kIn}, 2), before = random({kOut, kIn}, 4);
  emmet::VersionedWeights served({{"weight", before}}, /*undo_depth=*/kRounds);
  const at::Tensor first = before.mv(key);
  std::atomic<bool> stop{false};
  std::atomic<int> reads{0};
  in_threads([&](int number) {
    if (number > 0) {  // a reader: the key is mapped to what it was, or to what some edit makes of it
      while (!stop) {
        const double edits = served.snapshot()->at("weight").mv(key).sub(first).mean().item<double>();
        EXPECT_NEAR(edits, std::round(edits), 1e-6);
        ++reads;
      }
      return;
    }
    for (int round = 1; round <= kRounds; ++round) {
      served.apply({{"weight", emmet::rome(shared, key, at::ones({kOut}, at::TensorOptions(at::kDouble)))}});
      if (round % 4 == 0) served.undo();
      while (reads < round) std::this_thread::yield();
    }
    stop = true;
  });
  const double edits = served.snapshot()->at("weight").mv(key).sub(first).mean().item<double>();
  EXPECT_NEAR(edits, kRounds - kRounds / 4, 1e-6);
}

}  // namespace
