#include "emmet/solve.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_eigvalsh.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "emmet/error.h"
#include "on_device.h"
#include "oracle.h"

namespace {

using emmet::Preservation;
using emmet::Ridge;
using emmet::Update;
using oracle::inverse;
using oracle::message_of;
using oracle::multiply;
using oracle::random;

using Groups = std::vector<std::vector<int64_t>>;

constexpr int64_t kIn = 12, kOut = 5;
// No system of these tests has a condition number above 1e5, so that 1e-8 leaves a margin of 100 above its rounding.
constexpr double kTolerance = 1e-8;

at::Tensor second_moment() {
  const at::Tensor keys = random({4 * kIn, kIn}, 1);
  return multiply(keys.t(), keys).div(4 * kIn);
}

Preservation metric() { return Preservation::from_second_moment(second_moment()); }

at::Tensor identity(int64_t size) { return at::eye(size, at::TensorOptions(at::kDouble)); }

/// The papers' formulas have keys and residuals as columns; these take them as rows, as the library does.
at::Tensor rome(const at::Tensor& C, const at::Tensor& k, const at::Tensor& r) {
  const at::Tensor solved = multiply(k, inverse(C));  // kᵀC⁻¹
  return multiply(r.t(), solved).div(multiply(solved, k.t()));
}

at::Tensor emmet_with(double ridge, const at::Tensor& C, const at::Tensor& K, const at::Tensor& R) {
  const at::Tensor solved = multiply(K, inverse(C));  // KᵀC⁻¹
  const at::Tensor system = multiply(solved, K.t()).add(identity(K.size(0)), ridge);
  return multiply(multiply(R.t(), inverse(system)), solved);
}

at::Tensor memit(double lambda, const at::Tensor& C, const at::Tensor& K, const at::Tensor& R) {
  return multiply(multiply(R.t(), K), inverse(C.mul(lambda).add(multiply(K.t(), K))));
}

TEST(Solve, RomeIsItsDefinition) {
  const at::Tensor key = random({1, kIn}, 2), residual = random({1, kOut}, 3);
  const Update update = emmet::rome(metric(), key, residual);
  EXPECT_LT(oracle::relative_error(update.dense(), rome(second_moment(), key, residual)), kTolerance);
  EXPECT_LT(oracle::relative_error(multiply(update.dense(), key.t()), residual.t()), kTolerance);
}

class SolveOfCount : public testing::TestWithParam<int64_t> {
 protected:
  const at::Tensor keys_ = random({GetParam(), kIn}, 2), residuals_ = random({GetParam(), kOut}, 3);
};

TEST_P(SolveOfCount, MemitIsItsDefinition) {
  for (const double lambda : {1e-2, 1.0, 1e4}) {
    const at::Tensor delta = emmet::memit(metric(), keys_, residuals_, lambda).dense();
    EXPECT_LT(oracle::relative_error(delta, memit(lambda, second_moment(), keys_, residuals_)), kTolerance) << lambda;
  }
}

TEST_P(SolveOfCount, MemitIsEmmetWithARidge) {
  const at::Tensor delta = emmet::memit(metric(), keys_, residuals_, 0.5).dense();
  EXPECT_TRUE(delta.equal(emmet::emmet(metric(), keys_, residuals_, 0.5).dense()));
  EXPECT_LT(oracle::relative_error(delta, emmet_with(0.5, second_moment(), keys_, residuals_)), kTolerance);
}

TEST_P(SolveOfCount, EmmetIsItsDefinitionOrSaysWhyNot) {
  if (GetParam() > kIn) {
    EXPECT_THROW(emmet::emmet(metric(), keys_, residuals_), emmet::DependentKeysError);
    return;
  }
  const Update update = emmet::emmet(metric(), keys_, residuals_);
  EXPECT_LT(oracle::relative_error(update.dense(), emmet_with(0, second_moment(), keys_, residuals_)), kTolerance);
  EXPECT_LT(oracle::relative_error(multiply(update.dense(), keys_.t()), residuals_.t()), 1e-12);
  EXPECT_EQ(update.diagnostics().ridge, 0.0);
}

TEST_P(SolveOfCount, DiagnosticsAreWhatTheySay) {
  const Update update = emmet::solve(metric(), keys_, residuals_, 0.5);
  const at::Tensor delta = update.dense(), error = multiply(delta, keys_.t()).sub(residuals_.t());
  const auto& diagnostics = update.diagnostics();
  EXPECT_NEAR(diagnostics.constraint_residual, error.norm().div(residuals_.norm()).item<double>(), kTolerance);
  const double cost = multiply(multiply(delta, second_moment()), delta.t()).trace().item<double>();
  EXPECT_NEAR(diagnostics.preservation_cost, cost, kTolerance * cost);
  EXPECT_EQ(diagnostics.ridge, 0.5);
  EXPECT_GT(diagnostics.seconds_whiten, 0.0);
  EXPECT_GT(diagnostics.seconds_system, 0.0);
}

INSTANTIATE_TEST_SUITE_P(Keys, SolveOfCount, testing::Values(1, 2, 5, kIn - 1, kIn, kIn + 1, 2 * kIn));

TEST(Solve, EmmetOfOneEditIsRome) {
  const at::Tensor key = random({1, kIn}, 2), residual = random({1, kOut}, 3);
  EXPECT_TRUE(emmet::emmet(metric(), key, residual).dense().equal(emmet::rome(metric(), key, residual).dense()));
}

TEST(Solve, TakesOneKeyAsARow) {
  const at::Tensor key = random({1, kIn}, 2), residual = random({1, kOut}, 3);
  const at::Tensor expected = emmet::rome(metric(), key, residual).dense();
  EXPECT_TRUE(emmet::rome(metric(), key[0], residual[0]).dense().equal(expected));
}

TEST(Solve, TakesAnyDtypeAndLayout) {
  const at::Tensor keys = random({6, kIn}, 2, at::kBFloat16), residuals = random({6, kOut}, 3, at::kHalf);
  const at::Tensor expected = emmet::solve(metric(), keys.to(at::kDouble), residuals.to(at::kDouble)).dense();
  EXPECT_TRUE(emmet::solve(metric(), keys, residuals).dense().equal(expected));
  const Update strided = emmet::solve(metric(), keys.t().contiguous().t(), residuals.t().contiguous().t());
  EXPECT_LT(oracle::relative_error(strided.dense(), expected), kTolerance);
}

TEST(Solve, ZeroResidualsChangeNothing) {
  const Update update = emmet::solve(metric(), random({3, kIn}, 2), at::zeros({3, kOut}));
  EXPECT_EQ(update.dense().abs().max().item<double>(), 0.0);
  EXPECT_EQ(update.diagnostics().constraint_residual, 0.0);
}

// Unit diagonals, and cosines of up to 1 - 1e-8 between neighbours: the hardest batch that ridge 0 still takes.
TEST(Solve, KeepsTheConstraintOnKeysThatAlmostCoincide) {
  at::Tensor keys = random({6, kIn}, 2);
  for (const int64_t i : {1, 3, 5}) keys[i].mul_(2e-4).add_(keys[i - 1]);
  const at::Tensor residuals = random({6, kOut}, 3);
  const Update update = emmet::emmet(metric(), keys, residuals);
  EXPECT_GT(update.diagnostics().condition, 1e7);
  EXPECT_LT(oracle::relative_error(multiply(update.dense(), keys.t()), residuals.t()), 1e-6);
}

struct Dependency {
  const char* name;
  at::Tensor (*keys)();
  Groups groups;
};

at::Tensor with_row(int64_t row, const at::Tensor& key) {
  at::Tensor keys = random({8, kIn}, 2);
  keys[row] = key;
  return keys;
}
at::Tensor row(int64_t i) { return random({8, kIn}, 2)[i]; }

const Dependency kDependencies[] = {
    {"Equal", [] { return with_row(6, row(1)); }, {{1, 6}}},
    {"Opposite", [] { return with_row(6, row(1).neg()); }, {{1, 6}}},
    {"Scaled", [] { return with_row(6, row(1).mul(1e5)); }, {{1, 6}}},
    {"NearlyEqual", [] { return with_row(6, row(1).add(row(6), 1e-9)); }, {{1, 6}}},
    {"NearlyEqualInFewerDigits", [] { return with_row(6, row(1).add(row(6), 1e-7)); }, {{1, 6}}},
    {"Zero", [] { return with_row(6, at::zeros({kIn}, at::TensorOptions(at::kDouble))); }, {{6}}},
    {"Three", [] { return with_row(6, row(1).add(row(2))); }, {{1, 2, 6}}},
    {"Parallelogram", [] { return with_row(3, row(1).add(row(2)).sub(row(0))); }, {{0, 1, 2, 3}}},
    {"TwoPairs", [] { return at::cat({random({4, kIn}, 2), random({2, kIn}, 2)}); }, {{0, 4}, {1, 5}}},
    {"TwoTriples",
     [] { return at::cat({random({4, kIn}, 2), at::stack({row(0).add(row(1)), row(2).sub(row(3))})}); },
     {{0, 1, 4}, {2, 3, 5}}},
    {"ThreeEqual", [] { return at::stack({row(0), row(1), row(0), row(0)}); }, {{0, 2, 3}}},
    {"MoreThanDimensions", [] { return random({kIn + 1, kIn}, 2); }, {{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}}},
};

class DependentKeys : public testing::TestWithParam<Dependency> {};

TEST_P(DependentKeys, AreNamed) {
  const at::Tensor keys = GetParam().keys(), residuals = random({keys.size(0), kOut}, 3);
  try {
    emmet::solve(metric(), keys, residuals, 0.0);
    FAIL() << "expected an error, got none";
  } catch (const emmet::DependentKeysError& error) {
    EXPECT_EQ(error.groups(), GetParam().groups);
    const auto& group = error.groups()[0];
    const std::string first = (group.size() > 1 ? "edits {" : "edits ") + std::to_string(group[0] + 1);
    EXPECT_NE(std::string(error.what()).find(first), std::string::npos) << error.what();
  }
}

TEST_P(DependentKeys, AreSolvedWithAnAutomaticRidge) {
  const at::Tensor keys = GetParam().keys(), residuals = random({keys.size(0), kOut}, 3);
  const Update update = emmet::solve(metric(), keys, residuals, Ridge::automatic(1e6));
  const double ridge = update.diagnostics().ridge;
  const at::Tensor gram = metric().gram(keys);
  const auto condition_with = [&](double shift) {
    const at::Tensor eigenvalues = at::linalg_eigvalsh(gram.add(identity(gram.size(0)), shift));
    return eigenvalues[-1].div(eigenvalues[0]).item<double>();
  };
  EXPECT_GT(ridge, 0.0);
  EXPECT_LT(condition_with(ridge), 1.1e6);
  EXPECT_GT(condition_with(ridge / 2), 1.5e6);
  const at::Tensor expected = emmet_with(ridge, second_moment(), keys, residuals);
  EXPECT_LT(oracle::relative_error(update.dense(), expected), kTolerance);
}

INSTANTIATE_TEST_SUITE_P(, DependentKeys, testing::ValuesIn(kDependencies),
                         [](const auto& info) { return std::string(info.param.name); });

TEST(Solve, NamesNoMoreKeysThanCanBeRead) {
  const at::Tensor keys = random({1, kIn}, 2).expand({30, kIn}).mul(random({30, 1}, 3));
  const std::string message =
      message_of<emmet::DependentKeysError>([&] { emmet::solve(metric(), keys, random({30, kOut}, 4)); });
  EXPECT_NE(message.find("{1, 2, 3, 4, 5, 6, 7, 8, … (30 in all)}"), std::string::npos) << message;
}

TEST(Solve, AutomaticRidgeIsZeroWhereNoneIsNeeded) {
  const at::Tensor keys = random({6, kIn}, 2), residuals = random({6, kOut}, 3);
  const Update automatic = emmet::solve(metric(), keys, residuals, Ridge::automatic());
  EXPECT_EQ(automatic.diagnostics().ridge, 0.0);
  EXPECT_TRUE(automatic.dense().equal(emmet::solve(metric(), keys, residuals, 0.0).dense()));
}

TEST(Solve, AutomaticRidgeIsNoMoreThanIsMissing) {
  const double cosine = 1 - 1e-6;  // the eigenvalues are 1 ± cosine, twice as far apart as is allowed
  at::Tensor keys = at::zeros({2, kIn}, at::TensorOptions(at::kDouble));
  keys[0][0] = 1;
  keys[1][0] = cosine;
  keys[1][1] = std::sqrt(1 - cosine * cosine);
  const auto plain = Preservation::from_second_moment(identity(kIn));
  const double ridge = emmet::solve(plain, keys, random({2, kOut}, 3), Ridge::automatic(1e6)).diagnostics().ridge;
  EXPECT_NEAR((1 + cosine + ridge) / (1 - cosine + ridge), 1e6, 1e3);
}

TEST(Solve, LengthsOfKeysAloneNeedNoRidge) {
  at::Tensor keys = random({3, kIn}, 2);
  keys[1].mul_(1e6);
  keys[2].mul_(1e-6);
  const at::Tensor residuals = random({3, kOut}, 3);
  const Update update = emmet::solve(metric(), keys, residuals, Ridge::automatic());
  EXPECT_EQ(update.diagnostics().ridge, 0.0);
  EXPECT_LT(update.diagnostics().condition, 100);
  EXPECT_LT(update.diagnostics().constraint_residual, 1e-11);
  EXPECT_LT(oracle::relative_error(update.dense(), emmet_with(0, second_moment(), keys, residuals)), kTolerance);
}

TEST(Solve, SaysWhereAnAutomaticRidgeWouldUnderflow) {
  for (const int64_t count : {int64_t{2}, 2 * kIn}) {  // fewer than dimensions, and more
    const at::Tensor keys = random({1, kIn}, 2).mul(1e-160).expand({count, kIn});
    const std::string message = message_of<emmet::NonFiniteError>(
        [&] { emmet::solve(metric(), keys, random({count, kOut}, 3), Ridge::automatic()); });
    EXPECT_NE(message.find("got an underflow; scale the input"), std::string::npos) << message;
  }
}

TEST(Solve, RefusesARidgeBelowRounding) {
  const at::Tensor keys = random({1, kIn}, 2).expand({3, kIn});
  for (const double ridge : {1e-300, 1e-14}) {
    const std::string message =
        message_of<emmet::Error>([&] { emmet::solve(metric(), keys, random({3, kOut}, 3), ridge); });
    EXPECT_NE(message.find("use a larger ridge"), std::string::npos) << message;
  }
}

TEST(Solve, SaysHowLongKeysAreBesideWhichARidgeIsTooSmall) {
  const at::Tensor key = random({1, kIn}, 2);
  const double squared = multiply(multiply(key, inverse(second_moment())), key.t()).item<double>();
  for (const int64_t count : {int64_t{3}, 2 * kIn}) {  // fewer than dimensions, and more
    const std::string text = message_of<emmet::NotPositiveDefiniteError>(
        [&] { emmet::solve(metric(), key.expand({count, kIn}), random({count, kOut}, 3), 1e-20); });
    const std::string before = "squared key length of ";
    ASSERT_NE(text.find(before), std::string::npos) << text;
    EXPECT_NEAR(std::stod(text.substr(text.find(before) + before.size())), squared, 1e-5 * squared) << text;
  }
}

TEST(Solve, NothingCanBeDoneWithZeroKeys) {
  const at::Tensor keys = at::zeros({2, kIn}), residuals = random({2, kOut}, 3);
  for (const Ridge ridge : {Ridge(0.0), Ridge::automatic()}) {
    const auto text = message_of<emmet::DependentKeysError>([&] { emmet::solve(metric(), keys, residuals, ridge); });
    EXPECT_NE(text.find("zero ones of edits 1, 2; leave these edits out, or use a ridge > 0"), std::string::npos)
        << text;
    EXPECT_EQ(text.find("automatic"), std::string::npos) << text;
  }
  EXPECT_EQ(emmet::solve(metric(), keys, residuals, 1.0).dense().abs().max().item<double>(), 0.0);
}

TEST(Solve, RefusesRidgesThatLeaveTheSystemSingular) {
  const at::Tensor keys = with_row(6, row(1)), residuals = random({8, kOut}, 3);
  EXPECT_THROW(emmet::solve(metric(), keys, residuals, 1e-15), emmet::NotPositiveDefiniteError);
}

TEST(Solve, RefusesRidgesThatAreNone) {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const double ridge : {-1.0, infinity, std::nan("")}) EXPECT_THROW(Ridge{ridge}, emmet::Error) << ridge;
  for (const double bound : {1.0, -5.0, 1e13, infinity, std::nan("")}) {
    EXPECT_THROW(Ridge::automatic(bound), emmet::Error) << bound;
  }
  for (const double lambda : {0.0, -1.0, infinity, std::nan("")}) {
    EXPECT_THROW(emmet::memit(metric(), random({2, kIn}, 2), random({2, kOut}, 3), lambda), emmet::Error) << lambda;
  }
}

TEST(Solve, RefusesKeysAndResidualsThatDoNotFit) {
  const auto preservation = metric();
  const at::Tensor keys = random({3, kIn}, 2), residuals = random({3, kOut}, 3);
  const std::string message =
      message_of<emmet::ShapeError>([&] { emmet::solve(preservation, keys, random({2, kOut}, 3)); });
  EXPECT_NE(message.find("got 2 and 3"), std::string::npos) << message;
  EXPECT_THROW(emmet::solve(preservation, keys.t(), residuals), emmet::ShapeError);
  EXPECT_THROW(emmet::solve(preservation, keys, residuals[0]), emmet::ShapeError);
  const std::string of_none = message_of<emmet::ShapeError>([&] { emmet::solve(preservation, keys, residuals[0][0]); });
  EXPECT_NE(of_none.find("expected residuals [n, d_out], got [];"), std::string::npos) << of_none;
  EXPECT_THROW(emmet::solve(preservation, keys.narrow(0, 0, 0), residuals.narrow(0, 0, 0)), emmet::ShapeError);
  EXPECT_THROW(emmet::solve(preservation, keys.to(at::kLong), residuals), emmet::ShapeError);
  EXPECT_THROW(emmet::solve(preservation, at::Tensor(), residuals), emmet::ShapeError);
  EXPECT_THROW(emmet::solve(preservation, keys, at::Tensor()), emmet::ShapeError);
  EXPECT_THROW(emmet::rome(preservation, keys, residuals), emmet::ShapeError);
}

TEST(Solve, NamesTheRowThatIsNotFinite) {
  at::Tensor keys = random({3, kIn}, 2), residuals = random({3, kOut}, 3);
  residuals[2][1] = std::nan("");
  std::string message = message_of<emmet::NonFiniteError>([&] { emmet::solve(metric(), keys, residuals); });
  EXPECT_NE(message.find("expected finite residuals, got NaN in row 3 of 3;"), std::string::npos) << message;
  keys[1][0] = std::numeric_limits<double>::infinity();
  message = message_of<emmet::NonFiniteError>([&] { emmet::solve(metric(), keys, residuals); });
  EXPECT_NE(message.find("expected finite keys, got Inf in row 2 of 3;"), std::string::npos) << message;
}

TEST(Solve, RefusesTensorsOfAnotherDevice) {
  const at::Tensor keys = random({3, kIn}, 2), residuals = random({3, kOut}, 3);
  EXPECT_THROW(emmet::solve(metric(), keys.to(at::kMeta), residuals), emmet::ShapeError);
  EXPECT_THROW(emmet::solve(metric(), keys, residuals.to(at::kMeta)), emmet::ShapeError);
}

TEST(SolveEach, IsASolveOfEachEditAlone) {
  const at::Tensor keys = with_row(6, row(1)), residuals = random({8, kOut}, 3);  // two may be alike
  for (const double ridge : {0.0, 0.5}) {
    const std::vector<Update> updates = emmet::solve_each(metric(), keys, residuals, ridge);
    ASSERT_EQ(updates.size(), 8u);
    for (int64_t i = 0; i < 8; ++i) {
      const auto& update = updates[i];
      const Update alone = emmet::solve(metric(), keys[i], residuals[i], ridge);
      EXPECT_EQ(update.rank(), 1);
      const at::Tensor expected = emmet_with(ridge, second_moment(), keys.narrow(0, i, 1), residuals.narrow(0, i, 1));
      EXPECT_LT(oracle::relative_error(update.dense(), expected), kTolerance);
      const auto &is = update.diagnostics(), &of = alone.diagnostics();
      EXPECT_EQ(is.ridge, ridge);
      EXPECT_EQ(is.condition, 1.0);
      EXPECT_NEAR(is.constraint_residual, of.constraint_residual, 1e-12);
      EXPECT_NEAR(update.constraint_residual(keys[i], residuals[i]), of.constraint_residual, 1e-12);
      EXPECT_NEAR(is.preservation_cost, of.preservation_cost, kTolerance * of.preservation_cost);
      EXPECT_GT(is.seconds_whiten, 0.0);
      EXPECT_GT(is.seconds_system, 0.0);
    }
  }
}

TEST(SolveEach, TakesMoreEditsThanDimensionsAndAnyDtype) {
  const at::Tensor keys = random({3 * kIn, kIn}, 2, at::kHalf), residuals = random({3 * kIn, kOut}, 3, at::kBFloat16);
  const std::vector<Update> updates = emmet::solve_each(metric(), keys, residuals, Ridge::automatic());
  ASSERT_EQ(updates.size(), static_cast<size_t>(3 * kIn));
  for (const int64_t i : {int64_t{0}, 3 * kIn - 1}) {
    EXPECT_LT(oracle::relative_error(updates[i].dense(), rome(second_moment(), keys.narrow(0, i, 1).to(at::kDouble),
                                                              residuals.narrow(0, i, 1).to(at::kDouble))),
              kTolerance);
    EXPECT_EQ(updates[i].diagnostics().ridge, 0.0);
  }
}

TEST(SolveEach, ZeroResidualsChangeNothing) {
  const Update update = emmet::solve_each(metric(), row(0), at::zeros({kOut}), 0.5)[0];
  EXPECT_EQ(update.dense().abs().max().item<double>(), 0.0);
  EXPECT_EQ(update.diagnostics().constraint_residual, 0.0);
}

TEST(SolveEach, NamesZeroKeysOrTakesARidge) {
  at::Tensor keys = random({8, kIn}, 2);
  for (const int64_t i : {2, 5}) keys[i].zero_();
  const at::Tensor residuals = random({8, kOut}, 3);
  for (const Ridge ridge : {Ridge(0.0), Ridge::automatic()}) {
    try {
      emmet::solve_each(metric(), keys, residuals, ridge);
      FAIL() << "zero keys passed";
    } catch (const emmet::DependentKeysError& error) {
      EXPECT_EQ(error.groups(), (Groups{{2, 5}}));
      EXPECT_NE(std::string(error.what()).find("zero ones of edits 3, 6;"), std::string::npos) << error.what();
    }
  }
  EXPECT_EQ(emmet::solve_each(metric(), keys, residuals, 0.5)[2].dense().abs().max().item<double>(), 0.0);
}

TEST(SolveEach, LengthsOfKeysAndResidualsMayBeExtreme) {
  const at::Tensor key = random({1, kIn}, 2), residual = random({1, kOut}, 3), zero = at::zeros_like(key);
  const at::Tensor expected = rome(second_moment(), key, residual);
  for (const double scale : {1e-158, 1e-100, 1e100}) {  // the first gives a squared length that is subnormal
    const Update update = emmet::solve_each(metric(), key.mul(scale), residual.mul(scale))[0];
    EXPECT_LT(oracle::relative_error(update.dense(), expected), scale < 1e-150 ? 1e-4 : kTolerance) << scale;
  }
  EXPECT_EQ(emmet::solve_each(metric(), zero, residual, 1e-310)[0].dense().abs().max().item<double>(), 0.0);
  const at::Tensor keys = at::cat({key, key.mul(1e200)}), residuals = at::cat({residual, residual.mul(1e200)});
  EXPECT_NE(message_of<emmet::NonFiniteError>([&] {
              emmet::solve_each(metric(), keys, residuals);
            }).find("of a key in the metric within the range of float64, got an overflow for edit 2;"),
            std::string::npos);
  EXPECT_NE(message_of<emmet::NonFiniteError>([&] {
              emmet::solve_each(metric(), at::cat({key, key}), residuals);
            }).find("of a residual within the range of float64, got an overflow for edit 2;"),
            std::string::npos);
}

TEST(SolveEach, StaysInANullSpaceAndNamesKeysOutside) {
  const at::Tensor wide = random({4, kIn}, 5);  // C has rank 4: keys of its span are outside of its null space
  const Preservation null = Preservation::null_space(multiply(wide.t(), wide), 1e-6);
  const at::Tensor inside = random({1, kIn}, 6), residual = random({1, kOut}, 3);
  const Update update = emmet::solve_each(null, inside, residual)[0];
  EXPECT_LT(update.constraint_residual(inside, residual), 1e-12);
  EXPECT_LT(multiply(update.dense(), wide.t()).norm().item<double>(), 1e-10);
  const at::Tensor keys = at::cat({inside, wide.narrow(0, 0, 1)}), residuals = at::cat({residual, residual});
  const auto text = message_of<emmet::DependentKeysError>([&] { emmet::solve_each(null, keys, residuals); });
  EXPECT_NE(text.find("zero ones of edits 2;"), std::string::npos) << text;
}

TEST(SolveEach, GivesWhatSolveGivesInAFloat32Metric) {
  const at::Tensor keys = random({3, kIn}, 2), residuals = random({3, kOut}, 3);
  for (const double ridge : {0.0, 0.5}) {
    const auto updates = emmet::solve_each(metric().in_float32(), keys, residuals, ridge);
    for (int64_t i = 0; i < 3; ++i) {
      const Update alone = emmet::solve(metric().in_float32(), keys[i], residuals[i], ridge);
      EXPECT_LT(oracle::relative_error(updates[i].dense(), alone.dense()), 1e-6) << ridge;
    }
  }
}

TEST(SolveEach, LeavesItsInputAsItIsAndKeepsNoGraph) {
  const at::Tensor keys = random({3, kIn}, 2), residuals = random({3, kOut}, 3);
  const at::Tensor keys_then = keys.clone(), residuals_then = residuals.clone();
  keys.requires_grad_();
  const auto updates = emmet::solve_each(metric(), keys, residuals);
  EXPECT_FALSE(updates[0].right().requires_grad());
  EXPECT_TRUE(keys.equal(keys_then));
  EXPECT_TRUE(residuals.equal(residuals_then));
}

TEST(SolveEach, TakesMoreEditsThanAreSolvedAtATime) {
  const at::Tensor keys = random({1030, kIn}, 2), residuals = random({1030, kOut}, 3);
  const auto updates = emmet::solve_each(metric(), keys, residuals);
  ASSERT_EQ(updates.size(), 1030u);
  for (const int64_t i : {1023, 1024, 1029}) {
    const at::Tensor expected = rome(second_moment(), keys.narrow(0, i, 1), residuals.narrow(0, i, 1));
    EXPECT_LT(oracle::relative_error(updates[i].dense(), expected), kTolerance);
  }
  at::Tensor zero = keys.clone();
  for (const int64_t i : {3, 1025}) zero[i].zero_();
  const auto text = message_of<emmet::DependentKeysError>([&] { emmet::solve_each(metric(), zero, residuals); });
  EXPECT_NE(text.find("edits 4, 1026;"), std::string::npos) << text;
}

class SolveOn : public OnDevice {};

// Fewer edits than dimensions, and more.
TEST_P(SolveOn, IsItsDefinition) {
  const auto preservation = metric().to(device());
  for (const int64_t count : {int64_t{1}, int64_t{5}, 2 * kIn}) {
    const at::Tensor keys = random({count, kIn}, 2), residuals = random({count, kOut}, 3);
    const double ridge = count > kIn ? 0.5 : 0.0;
    const Update update = emmet::solve(preservation, keys.to(device()), residuals.to(device()), ridge);
    EXPECT_EQ(update.device(), device());
    const at::Tensor expected = emmet_with(ridge, second_moment(), keys, residuals);
    EXPECT_LT(oracle::relative_error(update.dense().cpu(), expected), kTolerance);
  }
}

TEST_P(SolveOn, NamesDependentKeysOrTakesARidge) {
  const at::Tensor keys = at::cat({random({4, kIn}, 2), random({2, kIn}, 2)}).to(device());
  const at::Tensor residuals = random({6, kOut}, 3).to(device());
  try {
    emmet::solve(metric().to(device()), keys, residuals);
    FAIL() << "expected an error, got none";
  } catch (const emmet::DependentKeysError& error) {
    EXPECT_EQ(error.groups(), (Groups{{0, 4}, {1, 5}}));
  }
  EXPECT_GT(emmet::solve(metric().to(device()), keys, residuals, Ridge::automatic()).diagnostics().ridge, 0.0);
}

TEST_P(SolveOn, SolvesEach) {
  const at::Tensor keys = random({6, kIn}, 2), residuals = random({6, kOut}, 3);
  const auto updates = emmet::solve_each(metric().to(device()), keys.to(device()), residuals.to(device()), 0.5);
  for (int64_t i = 0; i < 6; ++i) {
    EXPECT_EQ(updates[i].device(), device());
    const at::Tensor expected = emmet_with(0.5, second_moment(), keys.narrow(0, i, 1), residuals.narrow(0, i, 1));
    EXPECT_LT(oracle::relative_error(updates[i].dense().cpu(), expected), kTolerance);
  }
}

INSTANTIATE_TEST_SUITE_P(, SolveOn, all_devices(), device_name);

TEST(Solve, KeepsNoGraph) {
  const at::Tensor keys = random({3, kIn}, 2).requires_grad_(true);
  const at::Tensor residuals = random({3, kOut}, 3).requires_grad_(true);
  EXPECT_FALSE(emmet::solve(metric(), keys, residuals).dense().requires_grad());
}

TEST(Solve, ThreadsDoNotDisturbEachOther) {
  const auto preservation = metric();
  const at::Tensor keys = random({6, kIn}, 2), residuals = random({6, kOut}, 3);
  const at::Tensor alone = emmet::solve(preservation, keys, residuals).dense();
  std::vector<int> same(4);  // not of bool: neighbours would share a byte
  std::vector<std::thread> threads;
  for (int& result : same) {
    threads.emplace_back([&] { result = emmet::solve(preservation, keys, residuals).dense().equal(alone); });
  }
  for (auto& thread : threads) thread.join();
  EXPECT_EQ(same, std::vector<int>(same.size(), 1));
}

}  // namespace
