#include "emmet/update.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/diag.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_eigvalsh.h>
#include <ATen/ops/logspace.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <cmath>
#include <filesystem>
#include <limits>

#include "emmet/error.h"
#include "emmet/preservation.h"
#include "emmet/safetensors.h"
#include "on_device.h"
#include "oracle.h"
#include "temporary_folder.h"

namespace {

using emmet::Update;
using oracle::message_of;
using oracle::multiply;
using oracle::random;

TEST(Update, KeepsFactorsWhileTheseAreSmaller) {
  const at::Tensor left = random({6, 2}, 1), right = random({2, 10}, 2);
  const Update update = Update::from_factors(left, right);
  EXPECT_TRUE(update.is_low_rank());
  EXPECT_TRUE(update.left().equal(left));
  EXPECT_TRUE(update.right().equal(right));
  EXPECT_EQ(update.rows(), 6);
  EXPECT_EQ(update.columns(), 10);
  EXPECT_EQ(update.rank(), 2);
  EXPECT_LT(oracle::relative_error(update.dense(), multiply(left, right)), 1e-15);
}

TEST(Update, MultipliesFactorsOutOnceTheProductIsSmaller) {
  EXPECT_TRUE(Update::from_factors(random({6, 3}, 1), random({3, 10}, 2)).is_low_rank());  // 48 numbers for 60
  const at::Tensor left = random({6, 4}, 1), right = random({4, 10}, 2);                   // 64 numbers for 60
  const Update update = Update::from_factors(left, right);
  EXPECT_FALSE(update.is_low_rank());
  EXPECT_EQ(update.rows(), 6);
  EXPECT_EQ(update.columns(), 10);
  EXPECT_EQ(update.rank(), 6);
  EXPECT_LT(oracle::relative_error(update.dense(), multiply(left, right)), 1e-15);
  EXPECT_THROW(update.left(), emmet::Error);
  EXPECT_THROW(update.right(), emmet::Error);
}

TEST(Update, RefusesWhatIsNoUpdate) {
  const at::Tensor left = random({6, 2}, 1), right = random({2, 10}, 2);
  const std::string message = message_of<emmet::ShapeError>([&] { Update::from_factors(left, right.t()); });
  EXPECT_NE(message.find("got [6, 2] and [10, 2]"), std::string::npos) << message;
  EXPECT_THROW(Update::from_factors(left[0], right), emmet::ShapeError);
  EXPECT_THROW(Update::from_factors(left, right.to(at::kLong)), emmet::ShapeError);
  EXPECT_THROW(Update::from_factors(at::Tensor(), right), emmet::ShapeError);
  EXPECT_THROW(Update::from_factors(left.mul(std::nan("")), right), emmet::NonFiniteError);
  EXPECT_THROW(Update::from_factors(left.narrow(1, 0, 0), right.narrow(0, 0, 0)), emmet::ShapeError);
  EXPECT_THROW(Update::from_dense(left[0]), emmet::ShapeError);
  EXPECT_THROW(Update::from_dense(left.narrow(0, 0, 0)), emmet::ShapeError);
  EXPECT_THROW(Update::from_dense(left.mul(std::numeric_limits<double>::infinity())), emmet::NonFiniteError);
}

TEST(Update, DenseIsTheCallersOwn) {
  for (const Update& update :
       {Update::from_factors(random({6, 2}, 1), random({2, 10}, 2)), Update::from_dense(random({6, 10}, 3))}) {
    const at::Tensor dense = update.dense(), before = dense.clone();
    dense.zero_();
    EXPECT_TRUE(update.dense().equal(before));
  }
}

TEST(Update, KeepsNoGraph) {
  const at::Tensor left = random({6, 2}, 1).requires_grad_(true), right = random({2, 10}, 2).requires_grad_(true);
  EXPECT_FALSE(Update::from_factors(left, right).left().requires_grad());
  EXPECT_FALSE(Update::from_dense(random({6, 10}, 3).requires_grad_(true)).dense().requires_grad());
}

/// Both forms of an update, on weights of several row blocks and one, of each dtype.
struct Case {
  bool low_rank;
  int64_t rows;
  at::ScalarType dtype;
};

class Apply : public testing::TestWithParam<Case> {
 protected:
  Apply()
      : update_(GetParam().low_rank ? Update::from_factors(random({GetParam().rows, 2}, 1), random({2, 10}, 2))
                                    : Update::from_dense(random({GetParam().rows, 10}, 1))),
        before_(random({GetParam().rows, 10}, 3, GetParam().dtype)),
        after_(before_.to(at::kDouble).add(update_.dense()).to(GetParam().dtype)) {}

  /// A sum of a different order may round differently in float64, which shows in a float64 weight only.
  void expect_after(const at::Tensor& weight) const {
    EXPECT_LE(oracle::relative_error(weight, after_), GetParam().dtype == at::kDouble ? 1e-15 : 0.0);
  }

  const Update update_;
  const at::Tensor before_, after_;
};

TEST_P(Apply, AddsToALinearWeight) {
  const at::Tensor weight = before_.clone();
  update_.apply_(weight);
  expect_after(weight);
}

TEST_P(Apply, AddsToATransposedWeight) {
  const at::Tensor weight = before_.t().contiguous();
  update_.apply_(weight, /*transposed=*/true);
  expect_after(weight.t());
}

TEST_P(Apply, AddsToAWeightThatIsNotContiguous) {
  const at::Tensor storage = at::ones({2 * GetParam().rows, 30}, before_.options());
  const at::Tensor weight = storage.slice(0, 0, 2 * GetParam().rows, 2).slice(1, 0, 30, 3);
  weight.copy_(before_);
  update_.apply_(weight);
  expect_after(weight);
  EXPECT_TRUE(storage.slice(1, 1, 30, 3).eq(1).all().item<bool>());
}

TEST_P(Apply, LeavesAWeightThatIsNotFiniteAsItIs) {
  for (const double bad : {std::nan(""), std::numeric_limits<double>::infinity()}) {
    const at::Tensor weight = before_.clone();
    weight[-1][3] = bad;
    const at::Tensor untouched = weight.clone();
    EXPECT_THROW(update_.apply_(weight), emmet::NonFiniteError);
    EXPECT_TRUE(weight.nan_to_num(0.5, 0.25).equal(untouched.nan_to_num(0.5, 0.25)));
  }
}

INSTANTIATE_TEST_SUITE_P(, Apply,
                         testing::Values(Case{true, 20, at::kDouble}, Case{true, 20, at::kFloat},
                                         Case{true, 20, at::kHalf}, Case{true, 20, at::kBFloat16},
                                         Case{false, 20, at::kFloat}, Case{true, 1100, at::kFloat},
                                         Case{false, 1100, at::kBFloat16}));

class UpdateOn : public OnDevice {};

TEST_P(UpdateOn, IsAddedToWeightsOfAnyDtypeInPlace) {
  for (const Update& update :
       {Update::from_factors(random({600, 2}, 1), random({2, 10}, 2)), Update::from_dense(random({600, 10}, 1))}) {
    for (const auto dtype : {at::kBFloat16, at::kHalf, at::kFloat}) {
      const at::Tensor before = random({600, 10}, 3, dtype), weight = before.to(device(), dtype, false, true);
      const void* address = weight.const_data_ptr();
      update.apply_(weight);  // from the CPU
      EXPECT_EQ(weight.const_data_ptr(), address);
      const at::Tensor expected = before.to(at::kDouble).add(update.dense()).to(dtype);
      // Sums of another order may fall on the other side of a rounding boundary.
      EXPECT_LE(oracle::relative_error(weight.cpu(), expected), dtype == at::kFloat ? 1e-7 : 1e-3);
    }
  }
}

TEST_P(UpdateOn, IsCompressedWhereTheMetricIs) {
  const at::Tensor keys = random({40, 12}, 1), moment = multiply(keys.t(), keys);
  const auto metric = emmet::Preservation::from_second_moment(moment), there = metric.to(device());
  for (const Update& update :
       {Update::from_factors(random({30, 4}, 2), random({4, 12}, 3)), Update::from_dense(random({30, 12}, 2))}) {
    const Update compressed = update.compress_to_rank(there, 2);  // from the CPU
    EXPECT_EQ(compressed.device(), device());
    EXPECT_LT(oracle::relative_error(compressed.dense().cpu(), update.compress_to_rank(metric, 2).dense()), 1e-10);
    const at::Tensor residuals = random({40, 30}, 4);
    EXPECT_NEAR(compressed.constraint_residual(keys.to(device()), residuals.to(device())),
                compressed.to(at::kCPU).constraint_residual(keys, residuals), 1e-12);
  }
}

INSTANTIATE_TEST_SUITE_P(, UpdateOn, all_devices(), device_name);

TEST(Update, RefusesTensorsOfAnotherDevice) {
  const at::Tensor left = random({6, 2}, 1), right = random({2, 10}, 2);
  EXPECT_THROW(Update::from_factors(left, right.to(at::kMeta)), emmet::ShapeError);
  const Update update = Update::from_factors(left, right);
  EXPECT_THROW(update.constraint_residual(at::zeros({1, 10}, at::device(at::kMeta)), at::zeros({1, 6})),
               emmet::ShapeError);
}

TEST(Update, RefusesASumThatOverflowsTheWeight) {
  const at::Tensor weight = at::full({2, 2}, 60000.0, at::TensorOptions(at::kHalf));
  EXPECT_THROW(Update::from_dense(at::full({2, 2}, 1e4, at::TensorOptions(at::kDouble))).apply_(weight),
               emmet::NonFiniteError);
  EXPECT_TRUE(weight.eq(60000).all().item<bool>());
}

TEST(Update, AppliesToALeafThatNeedsAGradient) {
  const at::Tensor weight = at::zeros({2, 2}).requires_grad_(true);
  Update::from_dense(at::ones({2, 2})).apply_(weight);
  EXPECT_TRUE(weight.eq(1).all().item<bool>());
  EXPECT_TRUE(weight.is_leaf() && weight.requires_grad());
}

TEST(Update, RefusesWeightsThatDoNotFit) {
  const Update update = Update::from_dense(random({6, 10}, 1));
  const std::string message = message_of<emmet::ShapeError>([&] { update.apply_(at::zeros({10, 6})); });
  EXPECT_NE(message.find("d_out 6 and d_in 10, got [10, 6]"), std::string::npos) << message;
  EXPECT_THROW(update.apply_(at::zeros({6, 10}), /*transposed=*/true), emmet::ShapeError);
  EXPECT_THROW(update.apply_(at::zeros({60})), emmet::ShapeError);
  EXPECT_THROW(update.apply_(at::zeros({1, 10, 6}), /*transposed=*/true), emmet::ShapeError);
  EXPECT_THROW(update.apply_(at::zeros({6, 10}, at::TensorOptions(at::kInt))), emmet::ShapeError);
  EXPECT_THROW(update.apply_(at::Tensor()), emmet::ShapeError);
}

/// tr(E C Eᵀ), by its definition.
double cost(const at::Tensor& error, const at::Tensor& moment) {
  return multiply(multiply(error, moment), error.t()).trace().item<double>();
}

class Compress : public testing::TestWithParam<bool> {
 protected:
  Compress() {
    const at::Tensor keys = random({40, 12}, 1).mul(at::logspace(0, -2, 12, 10.0, at::kDouble));
    moment = multiply(keys.t(), keys);
  }

  const Update update = GetParam() ? Update::from_factors(random({30, 4}, 2), random({4, 12}, 3))
                                   : Update::from_dense(random({30, 12}, 2));
  at::Tensor moment;
};

// Of all matrices of a rank, the best misses by the singular values of ΔL beyond it: the eigenvalues of Δ C Δᵀ.
TEST_P(Compress, LosesNoMoreThanTheSmallestSingularValues) {
  const auto metric = emmet::Preservation::from_second_moment(moment);
  const at::Tensor eigenvalues =
      at::linalg_eigvalsh(multiply(multiply(update.dense(), moment), update.dense().t())).flip(0);
  for (const int64_t rank : {1, 3}) {
    const Update compressed = update.compress_to_rank(metric, rank);
    EXPECT_EQ(compressed.rank(), rank);
    EXPECT_NEAR(cost(update.dense().sub(compressed.dense()), moment) / cost(update.dense(), moment),
                eigenvalues.slice(0, rank).sum().div(eigenvalues.sum()).item<double>(), 1e-10);
  }
  EXPECT_LT(oracle::relative_error(update.compress_to_rank(metric, 99).dense(), update.dense()), 1e-10);
}

TEST_P(Compress, TakesTheLeastRankWithinATolerance) {
  const auto metric = emmet::Preservation::from_second_moment(moment);
  const double all = cost(update.dense(), moment);
  for (const int64_t rank : {1, 2, 3}) {
    const double lost = cost(update.dense().sub(update.compress_to_rank(metric, rank).dense()), moment);
    EXPECT_EQ(update.compress_to_tolerance(metric, std::sqrt(lost / all) * (1 + 1e-9)).rank(), rank);
    EXPECT_EQ(update.compress_to_tolerance(metric, std::sqrt(lost / all) * (1 - 1e-9)).rank(), rank + 1);
  }
}

TEST_P(Compress, RefusesWhatMakesNoSense) {
  const auto metric = emmet::Preservation::from_second_moment(moment);
  EXPECT_THROW(update.compress_to_rank(metric, 0), emmet::Error);
  for (const double tolerance : {-0.1, 1.0, std::nan("")}) {
    EXPECT_THROW(update.compress_to_tolerance(metric, tolerance), emmet::Error) << tolerance;
  }
  EXPECT_THROW(update.compress_to_rank(emmet::Preservation::null_space(moment, 1.0), 1), emmet::Error);
  const auto narrower = emmet::Preservation::from_second_moment(moment.narrow(0, 0, 9).narrow(1, 0, 9));
  EXPECT_THROW(update.compress_to_rank(narrower, 1), emmet::ShapeError);
}

INSTANTIATE_TEST_SUITE_P(, Compress, testing::Bool());

// The first direction is outside of the null space, the others are inside.
TEST(Update, LeavesANullSpaceWhateverTheScaleOfItsFactors) {
  const at::Tensor axes = at::eye(12, at::TensorOptions(at::kDouble));
  const at::Tensor moment = at::diag(at::cat({at::ones({1}), at::full({11}, 1e-3)}).to(at::kDouble));
  const auto metric = emmet::Preservation::null_space(moment, 0.1);
  const auto update_with = [&](double outer_left, double outer_right) {  // of outer_left · outer_right outside
    return Update::from_factors(at::stack({axes[0], axes[1].mul(outer_left)}, 1),
                                at::stack({axes[3], axes[0].mul(outer_right)}));
  };
  EXPECT_THROW(update_with(1e7, 1e-7).compress_to_rank(metric, 2), emmet::Error);
  EXPECT_THROW(update_with(1e-2, 1e-2).compress_to_rank(metric, 2), emmet::Error);
  const Update inside = update_with(1e-10, 1.0);
  EXPECT_LT(oracle::relative_error(inside.compress_to_rank(metric, 1).dense(), inside.dense()), 1e-9);
}

TEST(Update, SaysByHowMuchItMissesEdits) {
  const at::Tensor keys = random({3, 10}, 1), residuals = random({3, 6}, 2);
  for (const Update& update :
       {Update::from_factors(random({6, 2}, 3), random({2, 10}, 4)), Update::from_dense(random({6, 10}, 5))}) {
    const at::Tensor effect = multiply(keys, update.dense().t());
    EXPECT_NEAR(update.constraint_residual(keys, residuals), oracle::relative_error(effect, residuals), 1e-12);
    EXPECT_NEAR(update.constraint_residual(keys[1], effect[1]), 0.0, 1e-15);
    EXPECT_EQ(update.constraint_residual(keys, at::zeros({3, 6})), 0.0);
    EXPECT_THROW(update.constraint_residual(keys, residuals[0]), emmet::ShapeError);
  }
}

using UpdateFile = TemporaryFolder;

TEST_F(UpdateFile, IsReadBackToTheBit) {
  const emmet::Diagnostics diagnostics{1e8 / 3, 1.0 / 7, 5e-324, std::numeric_limits<double>::max(), 0.1, 0.2};
  const at::Tensor left = random({20, 60}, 1).t(), right = random({20, 100}, 2);  // as solve() makes them
  for (const Update& saved :
       {Update::from_factors(left, right, diagnostics), Update::from_dense(random({6, 10}, 3), diagnostics)}) {
    saved.save(path("update"));
    const Update loaded = Update::load(path("update"));
    EXPECT_EQ(loaded.is_low_rank(), saved.is_low_rank());
    EXPECT_TRUE(loaded.dense().equal(saved.dense()));
    EXPECT_EQ(loaded.diagnostics().condition, diagnostics.condition);
    EXPECT_EQ(loaded.diagnostics().ridge, diagnostics.ridge);
    EXPECT_EQ(loaded.diagnostics().constraint_residual, diagnostics.constraint_residual);
    EXPECT_EQ(loaded.diagnostics().preservation_cost, diagnostics.preservation_cost);
    EXPECT_EQ(loaded.diagnostics().seconds_whiten, 0.0);  // the same update is the same bytes, however long it took
    EXPECT_EQ(loaded.diagnostics().seconds_system, 0.0);
  }
}

TEST_F(UpdateFile, OfAnotherKindIsRefused) {
  const at::Tensor keys = random({20, 4}, 1);
  emmet::Preservation::from_second_moment(multiply(keys.t(), keys)).save(path("metric"));
  EXPECT_THROW(Update::load(path("metric")), emmet::FormatError);
  emmet::write_safetensors(path("plain"), {{{"dense", keys}}, {}});
  EXPECT_THROW(Update::load(path("plain")), emmet::FormatError);
}

TEST_F(UpdateFile, CutShortIsRefused) {
  Update::from_dense(random({6, 10}, 3)).save(path("update"));
  const auto size = std::filesystem::file_size(path("update"));
  for (const auto length : {size - 1, size / 2, decltype(size){0}}) {
    std::filesystem::resize_file(path("update"), length);
    EXPECT_THROW(Update::load(path("update")), emmet::FormatError) << length << " of " << size << " bytes";
  }
}

TEST_F(UpdateFile, WithOtherContentsIsRefused) {
  const at::Tensor left = random({6, 2}, 1), right = random({2, 10}, 2);
  Update::from_factors(left, right).save(path("update"));
  const emmet::TensorFile good = emmet::read_safetensors(path("update"));
  const auto expect_refused = [&](const emmet::TensorFile& contents) {
    emmet::write_safetensors(path("update"), contents);
    const std::string message = message_of<emmet::FormatError>([&] { Update::load(path("update")); });
    EXPECT_NE(message.find(path("update")), std::string::npos) << message;
  };
  expect_refused({{{"left", left}}, good.metadata});
  expect_refused({{{"left", left}, {"right", right.t()}}, good.metadata});
  expect_refused({{{"left", left}, {"right", right.to(at::kFloat)}}, good.metadata});
  expect_refused({{{"left", left}, {"right", right.mul(std::nan(""))}}, good.metadata});
  auto metadata = good.metadata;
  metadata.erase("ridge");
  expect_refused({good.tensors, metadata});
}

}  // namespace
