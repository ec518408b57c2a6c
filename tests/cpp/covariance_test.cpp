#include "emmet/covariance.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <c10/core/InferenceMode.h>

#include <algorithm>
#include <cmath>

#include "emmet/error.h"
#include "on_device.h"
#include "oracle.h"
#include "reduced_precision.h"

namespace {

using emmet::Covariance;
using oracle::message_of;

at::Tensor sum_of(const at::Tensor& keys) {
  Covariance moment(keys.size(-1));
  moment.add(keys);
  return moment.sum();
}

/// Rounding errors of a sum of m products grow like √m u with λ = 8 standing for their tails (Higham and Mary 2019).
/// u is that of the dtype in which the library multiplies; m never exceeds the 4096 rows after which it flushes.
void expect_sum(const at::Tensor& sum, const at::Tensor& keys) {
  const at::Tensor rows = keys.reshape({-1, keys.size(-1)}).to(at::kDouble);
  const double unit = keys.scalar_type() == at::kDouble ? 0x1p-53 : 0x1p-24;
  const double bound = 8 * std::sqrt(std::min<int64_t>(rows.size(0), 4096)) * unit;
  const at::Tensor expected = oracle::multiply(rows.t(), rows);
  const at::Tensor magnitude = oracle::multiply(rows.abs().t(), rows.abs());
  EXPECT_EQ(sum.scalar_type(), at::kDouble);
  EXPECT_TRUE(sum.sub(expected).abs().le(magnitude.mul(bound)).all().item<bool>())
      << "relative error " << oracle::relative_error(sum, expected);
  EXPECT_TRUE(sum.equal(sum.t()));
}

class CovarianceOfDtype : public testing::TestWithParam<at::ScalarType> {};

TEST_P(CovarianceOfDtype, IsTheSumOfOuterProducts) {
  const at::Tensor keys = oracle::random({50, 7}, 1, GetParam());
  Covariance moment(7);
  moment.add(keys);
  expect_sum(moment.sum(), keys);
  EXPECT_EQ(moment.count(), 50);
  EXPECT_TRUE(moment.second_moment().equal(moment.sum().div(50)));
}

TEST_P(CovarianceOfDtype, SpansSeveralColumnBlocks) {
  const at::Tensor keys = oracle::random({20, 520}, 2, GetParam());
  expect_sum(sum_of(keys), keys);
}

TEST_P(CovarianceOfDtype, NamesTheRowThatIsNotFiniteAndAddsNothing) {
  Covariance moment(3);
  moment.add(oracle::random({10, 3}, 3, GetParam()));
  const at::Tensor before = moment.sum();
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL}) {
    at::Tensor keys = oracle::random({5000, 3}, 4, GetParam());
    keys[4500][1] = bad;
    keys[4700][2] = bad;
    const std::string message = message_of<emmet::NonFiniteError>([&] { moment.add(keys); });
    EXPECT_NE(message.find("row 4501 of 5000;"), std::string::npos) << message;
    EXPECT_NE(message.find(std::isnan(bad) ? "NaN" : "Inf"), std::string::npos) << message;
    EXPECT_TRUE(moment.sum().equal(before));
    EXPECT_EQ(moment.count(), 10);
  }
}

INSTANTIATE_TEST_SUITE_P(AllDtypes, CovarianceOfDtype,
                         testing::Values(at::kHalf, at::kBFloat16, at::kFloat, at::kDouble),
                         [](const auto& info) { return std::string(at::toString(info.param)); });

class CovarianceOn : public OnDevice {};

// 1,100 columns: several blocks, also of a GPU's larger ones.
TEST_P(CovarianceOn, SumsWhereTheKeysAre) {
  for (const auto dtype : {at::kHalf, at::kBFloat16, at::kFloat, at::kDouble}) {
    at::Tensor keys = oracle::random({70, 1100}, 26, dtype);
    const at::Tensor mask = at::arange(70).remainder(3).ne(0);
    keys[3][5] = std::nan("");  // not selected
    Covariance moment(1100, device());
    moment.add(keys.to(device()), mask.to(device()));
    EXPECT_EQ(moment.sum().device(), device());
    const at::Tensor selected = keys.index_select(0, at::nonzero(mask).squeeze(1));
    expect_sum(moment.sum().cpu(), selected);

    Covariance elsewhere(1100);
    elsewhere.merge(moment);
    EXPECT_TRUE(elsewhere.sum().equal(moment.sum().cpu()));
    EXPECT_TRUE(Covariance::from_sum(moment.sum(), 46).sum().equal(moment.sum()));
  }
}

TEST_P(CovarianceOn, SquaresOfLargeBFloat16KeysDoNotOverflow) {
  const at::Tensor keys = at::full({2, 2}, 0x1p100, at::TensorOptions(device()).dtype(at::kBFloat16));
  Covariance moment(2, device());
  moment.add(keys);
  EXPECT_EQ(moment.sum()[0][1].item<double>(), 0x1p201);
}

TEST_P(CovarianceOn, SquaresOfSmallKeysDoNotVanish) {
  for (const auto dtype : {at::kBFloat16, at::kFloat}) {
    const at::Tensor keys = at::full({2, 2}, 0x1p-100, at::TensorOptions(device()).dtype(dtype));
    Covariance moment(2, device());
    moment.add(keys);
    EXPECT_EQ(moment.sum()[0][1].item<double>(), 0x1p-199) << dtype;
  }
}

INSTANTIATE_TEST_SUITE_P(, CovarianceOn, all_devices(), device_name);

TEST(Covariance, CrossesChunksOfRows) {
  for (const int64_t rows : {1, 4095, 4096, 4097}) {
    const at::Tensor keys = oracle::random({rows, 3}, 5, at::kFloat);
    expect_sum(sum_of(keys), keys);
  }
}

TEST(Covariance, FlushesEachChunkIntoFloat64) {
  // The first chunk sums to 2^38, where a float32 has a spacing of 2^14 and would lose every one that follows.
  at::Tensor keys = at::ones({2 * 4096, 1}, at::TensorOptions(at::kFloat));
  keys.narrow(0, 0, 4096).fill_(0x1p13);
  EXPECT_EQ(sum_of(keys).item<double>(), 0x1p38 + 4096);
}

TEST(Covariance, SquaresOfLargeFloat32KeysDoNotOverflow) {
  const at::Tensor keys = at::full({2, 2}, 1e30, at::TensorOptions(at::kFloat));
  const double key = keys[0][0].item<double>();
  EXPECT_DOUBLE_EQ(sum_of(keys)[0][1].item<double>(), 2 * key * key);
}

TEST(Covariance, SquaresOfSmallFloat32KeysKeepTheirDigits) {
  for (const double scale : {1e-14, 1e-16, 1e-19, 1e-23, 1e-37}) {
    const at::Tensor keys = oracle::random({50, 7}, 1).mul(scale).to(at::kFloat);
    expect_sum(sum_of(keys), keys);
  }
}

TEST(Covariance, KeepsDigitsWhereTorchIsAskedToDropSome) {
  for (const auto precision : {at::Float32Precision::BF16, at::Float32Precision::TF32}) {
    const ReducedPrecision reduced(precision);
    const at::Tensor keys = oracle::random({300, 40}, 1, at::kFloat);
    expect_sum(sum_of(keys), keys);
  }
}

TEST(Covariance, RefusesSquaresBeyondFloat64AndAddsNothing) {
  emmet::Covariance moment(1);
  moment.add(at::ones({2, 1}));
  EXPECT_THROW(moment.add(at::full({1, 1}, 1e160, at::kDouble)), emmet::NonFiniteError);
  EXPECT_EQ(moment.count(), 2);
  EXPECT_EQ(moment.sum().item<double>(), 2.0);
}

TEST(Covariance, TakesAnyLayoutAndLeadingShape) {
  const at::Tensor transposed = oracle::random({4, 30}, 6, at::kFloat).t();
  expect_sum(sum_of(transposed), transposed);
  const at::Tensor strided = oracle::random({6, 10, 8}, 7, at::kFloat).slice(1, 1, 9, 2).slice(2, 0, 8, 2);
  expect_sum(sum_of(strided), strided.contiguous());
  const at::Tensor single = oracle::random({4}, 8, at::kFloat);
  expect_sum(sum_of(single), single);
}

TEST(Covariance, MaskSelectsRows) {
  const at::Tensor keys = oracle::random({2, 3, 4}, 9, at::kFloat);
  const at::Tensor mask = at::tensor({1, 0, 1, 0, 0, 1}, at::TensorOptions(at::kLong)).view({2, 3});
  const at::Tensor selected = at::stack({keys[0][0], keys[0][2], keys[1][2]});
  for (const at::Tensor& given : {mask, mask.to(at::kBool), mask.mul(7)}) {
    Covariance moment(4);
    moment.add(keys, given);
    expect_sum(moment.sum(), selected);
    EXPECT_EQ(moment.count(), 3);
  }
}

TEST(Covariance, MaskOfAllOrNoRows) {
  const at::Tensor keys = oracle::random({5, 4}, 10, at::kFloat);
  Covariance moment(4);
  moment.add(keys, at::zeros({5}, at::TensorOptions(at::kBool)));
  EXPECT_EQ(moment.count(), 0);
  EXPECT_TRUE(moment.sum().eq(0).all().item<bool>());
  moment.add(keys, at::ones({5}, at::TensorOptions(at::kBool)));
  EXPECT_EQ(moment.count(), 5);
  expect_sum(moment.sum(), keys);
}

TEST(Covariance, LooksOnlyAtSelectedRowsForNaN) {
  at::Tensor keys = oracle::random({2, 3, 4}, 11, at::kFloat);
  keys[0][1][2] = std::nan("");
  at::Tensor mask = at::ones({2, 3}, at::TensorOptions(at::kBool));
  mask[0][1] = false;
  Covariance moment(4);
  moment.add(keys, mask);
  EXPECT_EQ(moment.count(), 5);
  EXPECT_TRUE(moment.sum().isfinite().all().item<bool>());

  keys[1][1][0] = std::nan("");
  const std::string message = message_of<emmet::NonFiniteError>([&] { moment.add(keys, mask); });
  EXPECT_NE(message.find("row 5 of 6;"), std::string::npos) << message;
}

TEST(Covariance, RefusesMasksThatDoNotFit) {
  Covariance moment(4);
  const at::Tensor keys = oracle::random({2, 3, 4}, 12);
  EXPECT_THROW(moment.add(keys, at::ones({6}, at::TensorOptions(at::kBool))), emmet::ShapeError);
  EXPECT_THROW(moment.add(keys, at::ones({2, 3}, at::TensorOptions(at::kFloat))), emmet::ShapeError);
  EXPECT_THROW(moment.add(keys, at::Tensor()), emmet::ShapeError);
  EXPECT_THROW(moment.add(keys, at::ones({2, 3}, at::device(at::kMeta).dtype(at::kBool))), emmet::ShapeError);
  EXPECT_EQ(moment.count(), 0);
}

TEST(Covariance, RefusesKeysThatDoNotFit) {
  Covariance moment(4);
  const std::string message = message_of<emmet::ShapeError>([&] { moment.add(oracle::random({3, 5}, 13)); });
  EXPECT_NE(message.find("expected keys [..., 4], got [3, 5]"), std::string::npos) << message;
  EXPECT_THROW(moment.add(at::ones({3, 4}, at::TensorOptions(at::kLong))), emmet::ShapeError);
  EXPECT_THROW(moment.add(at::Tensor()), emmet::ShapeError);
  EXPECT_THROW(moment.add(oracle::random({}, 14)), emmet::ShapeError);
  EXPECT_THROW(moment.add(at::ones({3, 4}, at::device(at::kMeta))), emmet::ShapeError);
  EXPECT_EQ(moment.count(), 0);
}

TEST(Covariance, RefusesWidthsThatAreNotPositive) {
  EXPECT_THROW(Covariance(0), emmet::ShapeError);
  EXPECT_THROW(Covariance(-3), emmet::ShapeError);
}

TEST(Covariance, NoKeysNoMoment) {
  Covariance moment(4);
  moment.add(oracle::random({0, 4}, 15));
  EXPECT_EQ(moment.count(), 0);
  EXPECT_THROW(moment.second_moment(), emmet::Error);
}

TEST(Covariance, MergeEqualsAddingBoth) {
  const at::Tensor first = oracle::random({30, 300}, 16), second = oracle::random({20, 300}, 17);
  Covariance merged(300), other(300), both(300);
  merged.add(first);
  other.add(second);
  both.add(first);
  both.add(second);
  merged.merge(other);
  EXPECT_EQ(merged.count(), 50);
  EXPECT_LT(oracle::relative_error(merged.sum(), both.sum()), 1e-15);
  EXPECT_THROW(merged.merge(Covariance(4)), emmet::ShapeError);
}

TEST(Covariance, ContinuesFromASum) {
  const at::Tensor first = oracle::random({30, 300}, 18), second = oracle::random({20, 300}, 19);
  Covariance whole(300);
  whole.add(first);
  at::Tensor stored = whole.sum();
  Covariance resumed = Covariance::from_sum(stored, whole.count());
  stored.zero_();  // the moment keeps its own copy
  whole.add(second);
  resumed.add(second);
  EXPECT_TRUE(resumed.sum().equal(whole.sum()));
  EXPECT_EQ(resumed.count(), 50);
}

TEST(Covariance, RefusesSumsThatAreNone) {
  const at::Tensor sum = sum_of(oracle::random({10, 3}, 20));
  EXPECT_THROW(Covariance::from_sum(sum.narrow(0, 0, 2), 10), emmet::ShapeError);
  EXPECT_THROW(Covariance::from_sum(sum.to(at::kLong), 10), emmet::ShapeError);
  EXPECT_THROW(Covariance::from_sum(sum.mul(std::nan("")), 10), emmet::NonFiniteError);
  EXPECT_THROW(Covariance::from_sum(sum.triu(), 10), emmet::ShapeError);
  EXPECT_THROW(Covariance::from_sum(sum, 0), emmet::Error);
  EXPECT_THROW(Covariance::from_sum(sum, -1), emmet::Error);
}

TEST(Covariance, CopiesAreIndependent) {
  Covariance original(4);
  original.add(oracle::random({3, 4}, 21));
  const at::Tensor before = original.sum();
  Covariance copy = original;
  copy.add(oracle::random({3, 4}, 22));
  EXPECT_TRUE(original.sum().equal(before));
  EXPECT_FALSE(copy.sum().equal(before));
}

TEST(Covariance, KeepsNoGraph) {
  const at::Tensor keys = oracle::random({3, 4}, 23).requires_grad_(true);
  const at::Tensor sum = sum_of(keys);
  EXPECT_FALSE(sum.requires_grad());
  EXPECT_FALSE(Covariance::from_sum(sum.clone().requires_grad_(true), 3).sum().requires_grad());
}

TEST(Covariance, MixesWithInferenceMode) {
  const at::Tensor first = oracle::random({3, 4}, 24), second = oracle::random({3, 4}, 25);
  Covariance moment = [&] {
    const c10::InferenceMode inference;
    Covariance made(4);
    made.add(first);
    return made;
  }();
  moment.add(second);
  expect_sum(moment.sum(), at::cat({first, second}));
  EXPECT_FALSE(moment.sum().is_inference());
}

}  // namespace
