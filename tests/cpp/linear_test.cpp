#include "linear.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace {

at::Tensor in_float64(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const auto product = at::matmul(x.to(at::kDouble), weight.to(at::kDouble).t());
  return bias ? product + bias->to(at::kDouble) : product;
}

void expect_close(const at::Tensor& x, const at::Tensor& weight, const std::optional<at::Tensor>& bias) {
  const auto found = emmet::linear(x, weight, bias), expected = in_float64(x, weight, bias);
  EXPECT_EQ(found.scalar_type(), x.scalar_type());
  ASSERT_EQ(found.sizes(), expected.sizes());
  if (found.numel() > 0) {
    EXPECT_LE((found - expected).abs().max().item<double>(), 1e-5 * expected.abs().max().item<double>());
  }
}

class Linear : public ::testing::Test {
 protected:
  void SetUp() override { at::manual_seed(0); }
};

TEST_F(Linear, IsTheProductWithTheTransposedWeight) {
  for (const int64_t rows : {1, 9, 64}) {
    expect_close(at::randn({rows, 48}), at::randn({80, 48}), at::randn({80}));
    expect_close(at::randn({rows, 48}), at::randn({80, 48}), std::nullopt);
  }
}

TEST_F(Linear, TakesLeadingDimensions) { expect_close(at::randn({2, 3, 48}), at::randn({80, 48}), at::randn({80})); }

TEST_F(Linear, TakesWeightsByColumnsAndWithGaps) {
  const auto x = at::randn({5, 48});
  expect_close(x, at::randn({48, 80}).t(), std::nullopt);
  expect_close(x, at::randn({80, 96}).narrow(1, 0, 48), std::nullopt);
}

TEST_F(Linear, TakesInputWithGaps) { expect_close(at::randn({5, 96}).narrow(1, 48, 48), at::randn({80, 48}), {}); }

TEST_F(Linear, TakesNoRows) { expect_close(at::randn({0, 48}), at::randn({80, 48}), at::randn({80})); }

TEST_F(Linear, TakesOtherDtypes) {
  const auto options = at::TensorOptions().dtype(at::kDouble);
  expect_close(at::randn({5, 48}, options), at::randn({80, 48}, options), at::randn({80}, options));
}

}  // namespace
