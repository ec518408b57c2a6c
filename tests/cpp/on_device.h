#pragma once

#include <ATen/Context.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <string>

/// A test that runs on the CPU, and on a GPU where there is one. With EMMET_REQUIRE_CUDA=1 it has to be there.
class OnDevice : public testing::TestWithParam<c10::DeviceType> {
 protected:
  void SetUp() override {
    if (GetParam() != at::kCUDA || at::hasCUDA()) return;
    const char* required = std::getenv("EMMET_REQUIRE_CUDA");
    if (required != nullptr && std::string(required) == "1") FAIL() << "EMMET_REQUIRE_CUDA is 1, but there is no GPU";
    GTEST_SKIP() << "there is no GPU";
  }

  c10::Device device() const { return c10::Device(GetParam(), GetParam() == at::kCUDA ? 0 : -1); }
};

inline auto all_devices() { return testing::Values(at::kCPU, at::kCUDA); }

inline std::string device_name(const testing::TestParamInfo<c10::DeviceType>& info) {
  return c10::DeviceTypeName(info.param, /*lower_case=*/true);
}
