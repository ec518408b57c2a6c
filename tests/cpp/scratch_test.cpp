#include "emmet/scratch.h"

#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "emmet/preservation.h"
#include "temporary_folder.h"

namespace {

constexpr int64_t kLarge = int64_t{1} << 25;  // numbers: a quarter of a GB

/// Whether a file of `folder` that has no name is mapped into memory.
bool is_mapped(const std::filesystem::path& folder) {
  const std::string start = std::filesystem::weakly_canonical(folder).string() + "/emmet-";
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(start) != std::string::npos && line.find("(deleted)") != std::string::npos) return true;
  }
  return false;
}

class Scratch : public TemporaryFolder {
 protected:
  void SetUp() override {
    TemporaryFolder::SetUp();
    std::filesystem::create_directory(path("scratch"));
    if (const char* folder = std::getenv("TMPDIR")) before_ = folder;
    setenv("TMPDIR", path("scratch").c_str(), 1);
  }
  void TearDown() override {
    before_ ? setenv("TMPDIR", before_->c_str(), 1) : unsetenv("TMPDIR");
    TemporaryFolder::TearDown();
  }

 private:
  std::optional<std::string> before_;
};

TEST_F(Scratch, OfLittleIsOrdinaryMemory) {
  const at::Tensor rows = emmet::scratch_rows(3, 4, at::kCPU);
  EXPECT_EQ(rows.sizes(), at::IntArrayRef({3, 4}));
  EXPECT_EQ(rows.scalar_type(), at::kDouble);
  EXPECT_EQ(rows.count_nonzero().item<int64_t>(), 0);
  EXPECT_FALSE(is_mapped(path("scratch")));
}

#ifdef __linux__
TEST_F(Scratch, OfMuchLiesInAFileUntilItIsFreed) {
  at::Tensor rows = emmet::scratch_rows(kLarge / 1024, 1024, at::kCPU);
  EXPECT_TRUE(is_mapped(path("scratch")));
  EXPECT_EQ(rows.count_nonzero().item<int64_t>(), 0);
  rows[-1].fill_(2.5);
  EXPECT_EQ(rows[-1].sum().item<double>(), 2560.0);
  rows.reset();
  EXPECT_FALSE(is_mapped(path("scratch")));
}

TEST_F(Scratch, HoldsManyKeysInTheMetric) {
  const int64_t size = 5800;  // whose square is more than a quarter of a GB
  const auto metric = emmet::Preservation::from_second_moment(at::eye(size, at::TensorOptions(at::kDouble)).mul_(4.0));
  const at::Tensor keys = at::full({size, size}, 3.0, at::TensorOptions(at::kDouble));
  const at::Tensor whitened = metric.whiten(keys);
  EXPECT_TRUE(is_mapped(path("scratch")));
  EXPECT_TRUE(whitened.eq(1.5).all().item<bool>());
}

TEST_F(Scratch, IsOrdinaryMemoryWhereFilesMayNotBeSoLarge) {
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const struct rlimit small = {1 << 20, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const at::Tensor rows = emmet::scratch_rows(kLarge / 1024, 1024, at::kCPU);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_FALSE(is_mapped(path("scratch")));
  EXPECT_EQ(rows[-1].count_nonzero().item<int64_t>(), 0);
}

TEST_F(Scratch, IsOrdinaryMemoryWhereTheFolderIsInMemory) {
  if (!std::filesystem::exists("/dev/shm")) GTEST_SKIP() << "there is no /dev/shm";
  setenv("TMPDIR", "/dev/shm", 1);
  const at::Tensor rows = emmet::scratch_rows(kLarge / 1024, 1024, at::kCPU);
  EXPECT_FALSE(is_mapped("/dev/shm"));
}

TEST_F(Scratch, IsOrdinaryMemoryWhereNoFileCanBe) {
  setenv("TMPDIR", path("none").c_str(), 1);
  const at::Tensor rows = emmet::scratch_rows(kLarge / 1024, 1024, at::kCPU);
  EXPECT_FALSE(is_mapped(path("none")));
  EXPECT_EQ(rows[-1].count_nonzero().item<int64_t>(), 0);
}
#endif

}  // namespace
