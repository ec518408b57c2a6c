#include "emmet/preservation.h"

#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <filesystem>
#include <limits>
#include <thread>
#include <vector>

#include "emmet/error.h"
#include "emmet/safetensors.h"
#include "emmet/solve.h"
#include "emmet/update.h"
#include "on_device.h"
#include "oracle.h"
#include "temporary_folder.h"

namespace {

using emmet::Preservation;
using oracle::message_of;

// The moments of these tests have condition numbers below 1e3, so that an inverse is good to 1e3 · d · 2⁻⁵³ < 1e-11.
constexpr double kTolerance = 1e-11;

/// A well-conditioned second moment [dim, dim].
at::Tensor second_moment(int64_t dim, uint64_t seed = 1) {
  const at::Tensor keys = oracle::random({4 * dim, dim}, seed);
  return oracle::multiply(keys.t(), keys).div(4 * dim);
}

at::Tensor product_of_factor(const Preservation& metric) {
  return oracle::multiply(metric.factor(), metric.factor().t());
}

class PreservationOfDtype : public testing::TestWithParam<at::ScalarType> {};

TEST_P(PreservationOfDtype, SolveAppliesTheInverse) {
  const at::Tensor moment = second_moment(20), keys = oracle::random({7, 20}, 2, GetParam());
  const at::Tensor solved = Preservation::from_second_moment(moment).solve(keys);
  EXPECT_EQ(solved.scalar_type(), at::kDouble);
  EXPECT_LT(oracle::relative_error(solved, oracle::multiply(keys, oracle::inverse(moment))), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(, PreservationOfDtype, testing::Values(at::kDouble, at::kFloat, at::kHalf, at::kBFloat16),
                         [](const auto& info) { return at::toString(info.param); });

TEST(Preservation, SolvesOneKeyAndAnyLayout) {
  const auto metric = Preservation::from_second_moment(second_moment(20));
  const at::Tensor keys = oracle::random({7, 20}, 2), expected = metric.solve(keys);
  EXPECT_EQ(metric.solve(keys[3]).sizes(), at::IntArrayRef({20}));
  EXPECT_LT(oracle::relative_error(metric.solve(keys[3]), expected[3]), kTolerance);
  const at::Tensor strided = oracle::random({14, 40}, 3).slice(0, 0, 14, 2).slice(1, 0, 40, 2).copy_(keys);
  EXPECT_LT(oracle::relative_error(metric.solve(strided), expected), kTolerance);
  EXPECT_LT(oracle::relative_error(metric.solve(keys.t().contiguous().t()), expected), kTolerance);
}

TEST(Preservation, GramIsTheInnerProductOfKeys) {
  const at::Tensor moment = second_moment(20), keys = oracle::random({7, 20}, 2);
  const at::Tensor gram = Preservation::from_second_moment(moment).gram(keys);
  const at::Tensor expected = oracle::multiply(oracle::multiply(keys, oracle::inverse(moment)), keys.t());
  EXPECT_LT(oracle::relative_error(gram, expected), kTolerance);
  EXPECT_TRUE(gram.equal(gram.t()));
}

TEST(Preservation, WhitensWithTheCholeskyFactor) {
  const at::Tensor moment = second_moment(20), keys = oracle::random({7, 20}, 2);
  const auto metric = Preservation::from_second_moment(moment);
  EXPECT_LT(oracle::relative_error(product_of_factor(metric), moment), kTolerance);
  EXPECT_TRUE(metric.factor().equal(metric.factor().tril()));
  const at::Tensor inverse = oracle::inverse(metric.factor());
  EXPECT_LT(oracle::relative_error(metric.whiten(keys), oracle::multiply(keys, inverse.t())), kTolerance);
  EXPECT_LT(oracle::relative_error(metric.unwhiten(keys), oracle::multiply(keys, inverse)), kTolerance);
}

TEST(Preservation, CostIsTheTraceOfTheDisturbance) {
  const at::Tensor moment = second_moment(20), delta = oracle::random({5, 20}, 2);
  const at::Tensor disturbance = oracle::multiply(oracle::multiply(delta, moment), delta.t());
  EXPECT_NEAR(Preservation::from_second_moment(moment).cost(delta), disturbance.trace().item<double>(), 1e-9);
}

TEST(Preservation, TakesTheSmallestJitterThatHelps) {
  EXPECT_EQ(Preservation::from_second_moment(second_moment(20)).jitter(), 0.0);

  const at::Tensor keys = oracle::random({15, 20}, 2);  // too few of them
  const auto metric = Preservation::from_second_moment(oracle::multiply(keys.t(), keys));
  EXPECT_EQ(metric.jitter(), 1e-10);
}

TEST(Preservation, TakesNoRoundingErrorForInformation) {
  at::Tensor moment = at::ones({2, 2}, at::TensorOptions(at::kDouble));  // two neurons that always agree
  moment[1][1] += 1e-15;                                                 // which leaves a pivot of 1e-15
  EXPECT_EQ(Preservation::from_second_moment(moment).jitter(), 1e-10);
  EXPECT_THROW(Preservation::from_second_moment(moment, 0.0), emmet::NotPositiveDefiniteError);
}

TEST(Preservation, JitterIsAFractionOfTheMeanDiagonal) {
  const at::Tensor moment = second_moment(20).mul(1e-6);
  const auto metric = Preservation::from_second_moment(moment, 0.25);
  EXPECT_EQ(metric.jitter(), 0.25);
  const at::Tensor shift = at::eye(20, at::TensorOptions(at::kDouble)).mul(moment.diagonal().mean()).mul(0.25);
  EXPECT_LT(oracle::relative_error(product_of_factor(metric), moment.add(shift)), kTolerance);
}

TEST(Preservation, TakesADeadNeuron) {
  at::Tensor moment = second_moment(20);
  moment[4].zero_();
  moment.select(1, 4).zero_();
  const auto metric = Preservation::from_second_moment(moment);
  EXPECT_EQ(metric.jitter(), 1e-10);
  EXPECT_LT(oracle::relative_error(product_of_factor(metric), moment), 1e-9);
  EXPECT_THROW(Preservation::from_second_moment(moment, 0.0), emmet::NotPositiveDefiniteError);
}

TEST(Preservation, RefusesWhatIsNoSecondMoment) {
  const at::Tensor moment = second_moment(4);
  EXPECT_THROW(Preservation::from_second_moment(at::Tensor()), emmet::ShapeError);
  EXPECT_THROW(Preservation::from_second_moment(moment[0]), emmet::ShapeError);
  EXPECT_THROW(Preservation::from_second_moment(moment.narrow(0, 0, 3)), emmet::ShapeError);
  EXPECT_THROW(Preservation::from_second_moment(at::zeros({0, 0})), emmet::ShapeError);
  EXPECT_THROW(Preservation::from_second_moment(moment.to(at::kLong)), emmet::ShapeError);
  EXPECT_THROW(Preservation::from_second_moment(moment.tril()), emmet::ShapeError);
  EXPECT_THROW(Preservation::from_second_moment(moment.mul(std::nan(""))), emmet::NonFiniteError);
  EXPECT_THROW(Preservation::from_second_moment(moment.neg()), emmet::NotPositiveDefiniteError);
  EXPECT_THROW(Preservation::from_second_moment(moment.mul(0)), emmet::NotPositiveDefiniteError);
}

TEST(Preservation, RefusesJitterThatIsNone) {
  const at::Tensor moment = second_moment(4);
  EXPECT_THROW(Preservation::from_second_moment(moment, -1e-3), emmet::Error);
  EXPECT_THROW(Preservation::from_second_moment(moment, std::numeric_limits<double>::infinity()), emmet::Error);
}

TEST(Preservation, RefusesKeysThatDoNotFit) {
  const auto metric = Preservation::from_second_moment(second_moment(4));
  const std::string message = message_of<emmet::ShapeError>([&] { metric.solve(oracle::random({3, 5}, 2)); });
  EXPECT_NE(message.find("expected keys [..., 4], got [3, 5]"), std::string::npos) << message;
  EXPECT_THROW(metric.whiten(at::zeros({0, 4})), emmet::ShapeError);
  EXPECT_THROW(metric.gram(oracle::random({2, 3, 4}, 2)), emmet::ShapeError);
  EXPECT_THROW(metric.cost(oracle::random({2, 3}, 2)), emmet::ShapeError);
  EXPECT_THROW(metric.absorb(at::Tensor()), emmet::ShapeError);
}

/// Few keys are absorbed by rotations, more by reflections.
class Absorb : public testing::TestWithParam<int64_t> {};

TEST_P(Absorb, EqualsFactorisingTheSum) {
  const at::Tensor moment = second_moment(64), keys = oracle::random({GetParam(), 64}, 2);
  const auto metric = Preservation::from_second_moment(moment);
  const at::Tensor before = metric.factor().clone();
  const auto absorbed = metric.absorb(keys, 2.5);

  const at::Tensor sum = moment.add(oracle::multiply(keys.t(), keys), 2.5);
  EXPECT_LT(oracle::relative_error(absorbed.factor(), Preservation::from_second_moment(sum).factor()), kTolerance);
  EXPECT_TRUE(absorbed.factor().equal(absorbed.factor().tril()));
  EXPECT_TRUE(metric.factor().equal(before));
}

TEST_P(Absorb, OfWeightZeroChangesNothing) {
  const auto metric = Preservation::from_second_moment(second_moment(64));
  const auto same = metric.absorb(oracle::random({GetParam(), 64}, 2), 0.0);
  EXPECT_LT(oracle::relative_error(same.factor(), metric.factor()), 1e-15);
}

// (C + Σ k kᵀ)⁻¹ = C⁻¹ − C⁻¹K (I + KᵀC⁻¹K)⁻¹ KᵀC⁻¹ does not mix large numbers with small ones as the sum does: there,
// keys of length 1e6 leave 4 of the 16 digits of C.
TEST_P(Absorb, KeepsTheDigitsOfCBesideLargeKeys) {
  const int64_t n = GetParam();
  const at::Tensor moment = second_moment(64), keys = oracle::random({n, 64}, 2).mul(1e6);
  const auto absorbed = Preservation::from_second_moment(moment).absorb(keys);

  const at::Tensor inverse = oracle::inverse(moment), solved = oracle::multiply(keys, inverse);
  const at::Tensor core = oracle::multiply(solved, keys.t()).add(at::eye(n, at::TensorOptions(at::kDouble)));
  const at::Tensor correction = oracle::multiply(oracle::multiply(solved.t(), oracle::inverse(core)), solved);
  const at::Tensor probes = oracle::random({5, 64}, 3);
  const at::Tensor expected = oracle::multiply(probes, inverse.sub(correction));
  EXPECT_LT(oracle::relative_error(absorbed.solve(probes), expected), 1e-7);
}

INSTANTIATE_TEST_SUITE_P(Keys, Absorb, testing::Values(1, 3, 32, 40));

class PreservationOn : public OnDevice {};

TEST_P(PreservationOn, SolvesAndMeasuresWhereItIs) {
  const at::Tensor moment = second_moment(32), keys = oracle::random({3, 32}, 2);
  const auto metric = Preservation::from_second_moment(moment.to(device()));
  const at::Tensor solved = metric.solve(keys.to(device()));
  EXPECT_EQ(solved.device(), device());
  EXPECT_LT(oracle::relative_error(solved.cpu(), oracle::multiply(keys, oracle::inverse(moment))), kTolerance);
  const double cost = oracle::multiply(oracle::multiply(keys, moment), keys.t()).trace().item<double>();
  EXPECT_NEAR(metric.cost(keys.to(device())), cost, kTolerance * cost);
  EXPECT_LT(oracle::relative_error(metric.in_float32().solve(keys.to(device())), solved), 1e-4);
  EXPECT_LT(oracle::relative_error(metric.to(at::kCPU).solve(keys), solved.cpu()), kTolerance);
}

// 300 dimensions are several panels of a GPU's update by few keys, and two of reflections; 6 keys are few, 40 many.
TEST_P(PreservationOn, AbsorbsWhereItIs) {
  const at::Tensor moment = second_moment(300);
  const auto metric = Preservation::from_second_moment(moment.to(device()));
  for (const int64_t count : {1, 6, 40}) {
    const at::Tensor keys = oracle::random({count, 300}, 2);
    const auto absorbed = metric.absorb(keys.to(device()), 2.5);
    const at::Tensor sum = moment.add(oracle::multiply(keys.t(), keys), 2.5), factor = absorbed.factor().cpu();
    EXPECT_EQ(absorbed.device(), device());
    EXPECT_LT(oracle::relative_error(oracle::multiply(factor, factor.t()), sum), kTolerance);
    EXPECT_TRUE(factor.equal(factor.tril()));
    EXPECT_TRUE(factor.diagonal().gt(0).all().item<bool>());
  }
}

INSTANTIATE_TEST_SUITE_P(, PreservationOn, all_devices(), device_name);

TEST(Preservation, UnwhitensInPlaceOnlyWhatFits) {
  const auto preservation = Preservation::from_second_moment(second_moment(12));
  const auto options = at::TensorOptions(at::kDouble);
  for (const int64_t count : {int64_t{1}, int64_t{2}}) {
    EXPECT_THROW(preservation.unwhiten_(at::zeros({count, preservation.rank() - 1}, options)), emmet::ShapeError);
    EXPECT_THROW(preservation.unwhiten_(at::zeros({count, preservation.rank() + 1}, options)), emmet::ShapeError);
    EXPECT_THROW(preservation.unwhiten_(at::zeros({count, preservation.rank()}, options.device(at::kMeta))),
                 emmet::ShapeError);
  }
}

TEST(Preservation, RefusesTensorsOfAnotherDevice) {
  const auto metric = Preservation::from_second_moment(second_moment(4));
  const at::Tensor keys = at::zeros({3, 4}, at::device(at::kMeta));
  const std::string message = message_of<emmet::ShapeError>([&] { metric.solve(keys); });
  EXPECT_NE(message.find("expected keys on cpu, got meta"), std::string::npos) << message;
  EXPECT_THROW(metric.unwhiten(keys), emmet::ShapeError);
  EXPECT_THROW(metric.cost(keys), emmet::ShapeError);
  EXPECT_THROW(metric.absorb(keys), emmet::ShapeError);
}

TEST(Preservation, AbsorbsManyTimes) {
  const at::Tensor moment = second_moment(32), keys = oracle::random({50, 32}, 2);
  auto metric = Preservation::from_second_moment(moment);
  for (int64_t i = 0; i < keys.size(0); ++i) metric = metric.absorb(keys[i]);
  EXPECT_LT(oracle::relative_error(product_of_factor(metric), moment.add(oracle::multiply(keys.t(), keys))),
            kTolerance);
}

TEST(Preservation, RefusesWeightsThatAreNone) {
  const auto metric = Preservation::from_second_moment(second_moment(4));
  EXPECT_THROW(metric.absorb(oracle::random({1, 4}, 2), -1.0), emmet::Error);
  EXPECT_THROW(metric.absorb(oracle::random({1, 4}, 2), std::nan("")), emmet::Error);
}

TEST(Preservation, InFloat32DiffersByRounding) {
  const auto metric = Preservation::from_second_moment(second_moment(16));
  const auto rounded = metric.in_float32();
  const at::Tensor keys = oracle::random({3, 16}, 2);
  EXPECT_EQ(rounded.factor().scalar_type(), at::kFloat);
  const double error = oracle::relative_error(rounded.solve(keys), metric.solve(keys));
  EXPECT_GT(error, 0.0);
  EXPECT_LT(error, 1e-4);
  EXPECT_THROW(rounded.absorb(keys), emmet::Error);
}

TEST(Preservation, KeepsNoGraph) {
  const auto metric = Preservation::from_second_moment(second_moment(4).requires_grad_(true));
  const at::Tensor keys = oracle::random({1, 4}, 2).requires_grad_(true);
  EXPECT_FALSE(metric.factor().requires_grad());
  EXPECT_FALSE(metric.solve(keys).requires_grad());
  EXPECT_FALSE(metric.absorb(keys).factor().requires_grad());
}

TEST(Preservation, ThreadsShareOneMetric) {
  const auto metric = Preservation::from_second_moment(second_moment(64));
  const at::Tensor keys = oracle::random({8, 64}, 2), alone = metric.solve(keys),
                   absorbed = metric.absorb(keys).factor();
  std::vector<int> same(4);  // not of bool: neighbours would share a byte
  std::vector<std::thread> threads;
  for (int& result : same) {
    threads.emplace_back(
        [&] { result = metric.solve(keys).equal(alone) && metric.absorb(keys).factor().equal(absorbed); });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(same, std::vector<int>(same.size(), 1));
}

/// A moment of which the last `dim - rank` of `dim` eigenvalues, at a threshold of 0.5, are large.
struct NullSpace {
  static constexpr int64_t dim = 32, rank = 20;

  NullSpace() {
    const at::Tensor rotation = std::get<0>(at::linalg_qr(oracle::random({dim, dim}, 7)));
    for (int64_t i = 0; i < dim; ++i) {
      const at::Tensor direction = rotation.narrow(1, i, 1), product = oracle::multiply(direction, direction.t());
      moment.add_(product, i < rank ? 0.01 * static_cast<double>(i) : 1.0 + static_cast<double>(i));
      if (i < rank) projector.add_(product);
    }
  }

  /// Δ = R KᵀP (K_pK_pᵀP + KKᵀP + αI)⁻¹, the published closed form.
  at::Tensor published(const at::Tensor& keys, const at::Tensor& residuals, const at::Tensor& earlier,
                       double alpha) const {
    const at::Tensor memories = oracle::multiply(earlier.t(), earlier).add(oracle::multiply(keys.t(), keys));
    const at::Tensor system = oracle::multiply(memories, projector).add(at::eye(dim, projector.options()), alpha);
    const at::Tensor right = oracle::multiply(oracle::multiply(keys, projector), oracle::inverse(system));
    return oracle::multiply(residuals.t(), right);
  }

  at::Tensor moment = at::zeros({dim, dim}, at::TensorOptions(at::kDouble)), projector = at::zeros_like(moment);
};

TEST(NullSpace, SolvesAsPublished) {
  const NullSpace space;
  const at::Tensor keys = oracle::random({5, space.dim}, 2), residuals = oracle::random({5, 6}, 3);
  const at::Tensor none = at::zeros({1, space.dim}, keys.options());
  for (const double alpha : {1.0, 10.0}) {
    const auto metric = Preservation::null_space(space.moment, 0.5, alpha);
    EXPECT_EQ(metric.dim(), space.dim);
    EXPECT_EQ(metric.rank(), space.rank);
    const at::Tensor delta = emmet::solve(metric, keys, residuals, 1.0).dense();
    EXPECT_LT(oracle::relative_error(delta, space.published(keys, residuals, none, alpha)), 1e-10);
    EXPECT_LT(oracle::relative_error(oracle::multiply(delta, space.projector), delta), 1e-12);
    EXPECT_NEAR(metric.cost(delta), alpha * delta.square().sum().item<double>(), 1e-9);
  }
}

// Absorbed by rotations and by reflections; with fewer edits than directions, and with more.
TEST(NullSpace, SolvesAsPublishedAfterEarlierEdits) {
  const NullSpace space;
  for (const int64_t earlier_count : {1, 40}) {
    for (const int64_t count : {5, 24}) {
      const at::Tensor earlier = oracle::random({earlier_count, space.dim}, 4);
      const at::Tensor keys = oracle::random({count, space.dim}, 2), residuals = oracle::random({count, 6}, 3);
      const auto metric = Preservation::null_space(space.moment, 0.5).absorb(earlier);
      EXPECT_EQ(metric.rank(), space.rank);
      const at::Tensor delta = emmet::solve(metric, keys, residuals, 1.0).dense();
      EXPECT_LT(oracle::relative_error(delta, space.published(keys, residuals, earlier, 1.0)), 1e-10);
    }
  }
}

TEST(NullSpace, KeysOutsideOfItAreZeroInside) {
  const at::Tensor outside = oracle::random({4, 12}, 5), others = oracle::random({4, 12}, 6);
  const auto metric = Preservation::null_space(oracle::multiply(outside.t(), outside), 1e-6);
  EXPECT_EQ(metric.whiten(outside).abs().max().item<double>(), 0.0);
  EXPECT_GT(metric.whiten(outside.add(others, 1e-9)).abs().min().item<double>(), 0.0);
}

TEST(NullSpace, MayBeEverything) {
  const auto metric = Preservation::null_space(second_moment(20), 1e6, 4.0);
  const at::Tensor keys = oracle::random({3, 20}, 2);
  EXPECT_EQ(metric.rank(), 20);
  EXPECT_LT(oracle::relative_error(metric.solve(keys), keys.div(4.0)), 1e-12);
}

TEST(NullSpace, MayNotBeEmpty) {
  const std::string message = message_of<emmet::Error>([&] { Preservation::null_space(second_moment(20), 1e-9); });
  EXPECT_NE(message.find("expected a null space, got none"), std::string::npos) << message;
}

TEST(NullSpace, RefusesWhatIsNone) {
  const at::Tensor moment = second_moment(4);
  EXPECT_THROW(Preservation::null_space(moment.neg(), 0.5), emmet::NotPositiveDefiniteError);
  EXPECT_THROW(Preservation::null_space(moment[0], 0.5), emmet::ShapeError);
  EXPECT_THROW(Preservation::null_space(moment, -1.0), emmet::Error);
  EXPECT_THROW(Preservation::null_space(moment, 0.5, 0.0), emmet::Error);
  EXPECT_THROW(Preservation::null_space(moment, 1e6).whiten(oracle::random({3, 5}, 2)), emmet::ShapeError);
}

using PreservationFile = TemporaryFolder;

TEST_F(PreservationFile, OfAnySizeIsReadBack) {
  for (const int64_t size : {1, 2, 7}) {
    const auto metric = Preservation::from_second_moment(second_moment(size));
    metric.save(path("metric"));
    EXPECT_TRUE(Preservation::load(path("metric")).factor().equal(metric.factor()));
  }
}

TEST_F(PreservationFile, IsReadBackToTheBit) {
  const at::Tensor keys = oracle::random({5, 32}, 2);
  const auto metric = Preservation::from_second_moment(second_moment(32), 0.1);
  for (const auto& saved : {metric, metric.absorb(keys[0]), metric.absorb(keys)}) {
    saved.save(path("metric"));
    const auto loaded = Preservation::load(path("metric"));
    EXPECT_TRUE(loaded.factor().equal(saved.factor()));
    EXPECT_EQ(loaded.jitter(), 0.1);
    EXPECT_TRUE(loaded.solve(keys).equal(saved.solve(keys)));
  }
}

TEST_F(PreservationFile, KeepsTheNullSpace) {
  const at::Tensor keys = oracle::random({5, NullSpace::dim}, 2);
  const auto metric = Preservation::null_space(NullSpace().moment, 0.5, 2.0).absorb(keys[0]);
  metric.save(path("metric"));
  const auto loaded = Preservation::load(path("metric"));
  EXPECT_EQ(loaded.rank(), NullSpace::rank);
  EXPECT_TRUE(loaded.solve(keys).equal(metric.solve(keys)));

  const emmet::TensorFile good = emmet::read_safetensors(path("metric"));
  const at::Tensor basis = good.tensors.at("basis");
  for (const at::Tensor& other : {basis.narrow(1, 0, 3), basis.narrow(0, 0, NullSpace::rank - 1), basis.mul(NAN)}) {
    emmet::TensorFile contents = good;
    contents.tensors["basis"] = other;
    emmet::write_safetensors(path("metric"), contents);
    EXPECT_THROW(Preservation::load(path("metric")), emmet::FormatError) << other.sizes();
  }
}

TEST_F(PreservationFile, OfAnotherKindIsRefused) {
  emmet::Update::from_dense(oracle::random({4, 4}, 1)).save(path("update"));
  const std::string message = message_of<emmet::FormatError>([&] { Preservation::load(path("update")); });
  EXPECT_NE(message.find("expected a file of format emmet.preservation.2, got emmet.update.1"), std::string::npos)
      << message;
}

TEST_F(PreservationFile, CutShortIsRefused) {
  Preservation::from_second_moment(second_moment(8)).save(path("metric"));
  const auto size = std::filesystem::file_size(path("metric"));
  for (const auto length : {size - 1, size / 2, decltype(size){9}, decltype(size){0}}) {
    std::filesystem::resize_file(path("metric"), length);
    EXPECT_THROW(Preservation::load(path("metric")), emmet::FormatError) << length << " of " << size << " bytes";
  }
}

TEST_F(PreservationFile, WithOtherContentsIsRefused) {
  Preservation::from_second_moment(second_moment(8)).save(path("metric"));
  const emmet::TensorFile good = emmet::read_safetensors(path("metric"));
  const at::Tensor corners = good.tensors.at("corners"), side = good.tensors.at("side");
  const auto expect_refused = [&](const emmet::TensorFile& contents) {
    emmet::write_safetensors(path("metric"), contents);
    EXPECT_THROW(Preservation::load(path("metric")), emmet::FormatError);
  };
  for (const at::Tensor& other : {corners.narrow(0, 0, 4), corners[0], corners.to(at::kFloat), corners.neg()}) {
    expect_refused({{{"corners", other}, {"side", side}}, good.metadata});
  }
  for (const at::Tensor& other : {side.narrow(0, 0, 3), side.narrow(1, 0, 2), side[0], side.to(at::kFloat)}) {
    expect_refused({{{"corners", corners}, {"side", other}}, good.metadata});
  }
  for (const at::Tensor& part : {corners, side}) {
    at::Tensor damaged = part.clone();
    damaged[0][3] = std::nan("");
    const bool of_corners = part.is_same(corners);
    expect_refused(
        {{{"corners", of_corners ? damaged : corners}, {"side", of_corners ? side : damaged}}, good.metadata});
  }
  expect_refused({{{"corners", corners}}, good.metadata});
  expect_refused({{}, good.metadata});
  for (const char* jitter : {"", "much", "1e-3 or so", "nan", "inf", "-1"}) {
    expect_refused({good.tensors, {{"format", "emmet.preservation.2"}, {"jitter", jitter}}});
  }
  expect_refused({good.tensors, {{"format", "emmet.preservation.2"}}});
}

TEST_F(PreservationFile, ThatIsMissingIsNamed) {
  const std::string message = message_of<emmet::Error>([&] { Preservation::load(path("none")); });
  EXPECT_NE(message.find(path("none")), std::string::npos) << message;
}

}  // namespace
