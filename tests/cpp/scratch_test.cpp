#include "emmet/scratch.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "temporary_folder.h"

namespace {

constexpr int64_t kLarge = int64_t{1} << 25;  // numbers: a quarter of a GB

/// Whether a file of `folder` that has no name is mapped into memory.
bool is_mapped(const std::string& folder) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(folder + "/emmet-") != std::string::npos && line.find("(deleted)") != std::string::npos) return true;
  }
  return false;
}

class Scratch : public TemporaryFolder {
 protected:
  void SetUp() override {
    TemporaryFolder::SetUp();
    std::filesystem::create_directory(path("scratch"));
    setenv("TMPDIR", path("scratch").c_str(), 1);
  }
  void TearDown() override {
    unsetenv("TMPDIR");
    TemporaryFolder::TearDown();
  }
};

TEST_F(Scratch, OfLittleIsOrdinaryMemory) {
  const at::Tensor rows = emmet::scratch_rows(3, 4, at::kCPU);
  EXPECT_EQ(rows.sizes(), at::IntArrayRef({3, 4}));
  EXPECT_EQ(rows.scalar_type(), at::kDouble);
  EXPECT_EQ(rows.count_nonzero().item<int64_t>(), 0);
}

#ifdef __linux__
TEST_F(Scratch, OfMuchLiesInAFileUntilItIsFreed) {
  at::Tensor rows = emmet::scratch_rows(kLarge / 1024, 1024, at::kCPU);
  EXPECT_TRUE(is_mapped(path("scratch")));
  EXPECT_EQ(rows[0][0].item<double>(), 0.0);
  rows[-1].fill_(2.5);
  EXPECT_EQ(rows[-1].sum().item<double>(), 2560.0);
  rows.reset();
  EXPECT_FALSE(is_mapped(path("scratch")));
}

TEST_F(Scratch, IsOrdinaryMemoryWhereNoFileCanBe) {
  setenv("TMPDIR", path("none").c_str(), 1);
  const at::Tensor rows = emmet::scratch_rows(kLarge / 1024, 1024, at::kCPU);
  EXPECT_FALSE(is_mapped(path("none")));
  EXPECT_EQ(rows[-1].count_nonzero().item<int64_t>(), 0);
}
#endif

}  // namespace
