#include "emmet/scratch.h"

#include <gtest/gtest.h>

#ifdef __linux__
#include <ATen/ops/eye.h>
#include <ATen/ops/full.h>
#include <linux/magic.h>
#include <sys/resource.h>
#include <sys/vfs.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>

#include "emmet/preservation.h"
#endif

namespace {

TEST(Scratch, OfLittleIsOrdinaryMemory) {
  const at::Tensor rows = emmet::scratch_rows(3, 4, at::kCPU);
  EXPECT_EQ(rows.sizes(), at::IntArrayRef({3, 4}));
  EXPECT_EQ(rows.scalar_type(), at::kDouble);
  EXPECT_EQ(rows.count_nonzero().item<int64_t>(), 0);
}

#ifdef __linux__
constexpr int64_t kLarge = int64_t{1} << 25;  // numbers: a quarter of a GB
constexpr int64_t kWidth = 8;

/// Whether a file of `folder` that has no name is mapped into memory.
bool is_mapped(const std::filesystem::path& folder) {
  const std::string start = std::filesystem::weakly_canonical(folder).string() + "/emmet-";
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(start) != std::string::npos && line.find("(deleted)") != std::string::npos) return true;
  }
  return false;
}

bool has_room(const std::filesystem::path& folder) {
  struct statfs disk;
  return statfs(folder.c_str(), &disk) == 0 &&
         disk.f_bavail * static_cast<uint64_t>(disk.f_bsize) > (uint64_t{3} << 28);
}

bool is_in_memory(const std::filesystem::path& folder) {
  struct statfs disk;
  return statfs(folder.c_str(), &disk) == 0 && disk.f_type == TMPFS_MAGIC;
}

/// Has a folder of its own where files may be large, and TMPDIR name it.
class LargeScratch : public testing::Test {
 protected:
  void SetUp() override {
    if (is_in_memory("/var/tmp") || !has_room("/var/tmp")) GTEST_SKIP() << "needs 0.8 GB of a disk in /var/tmp";
    std::string name = "/var/tmp/emmet-test-XXXXXX";
    ASSERT_NE(mkdtemp(name.data()), nullptr);
    folder = name;
    if (const char* chosen = std::getenv("TMPDIR")) before_ = chosen;
    setenv("TMPDIR", folder.c_str(), 1);
  }
  void TearDown() override {
    if (folder.empty()) return;
    before_ ? setenv("TMPDIR", before_->c_str(), 1) : unsetenv("TMPDIR");
    std::filesystem::remove_all(folder);
  }

  std::filesystem::path folder;

 private:
  std::optional<std::string> before_;
};

TEST_F(LargeScratch, LiesInAFileUntilItIsFreed) {
  at::Tensor rows = emmet::scratch_rows(kLarge / kWidth, kWidth, at::kCPU);
  EXPECT_TRUE(is_mapped(folder));
  EXPECT_EQ(rows.count_nonzero().item<int64_t>(), 0);
  rows[-1].fill_(2.5);
  EXPECT_EQ(rows[-1].sum().item<double>(), 2.5 * kWidth);
  rows.reset();
  EXPECT_FALSE(is_mapped(folder));
}

TEST_F(LargeScratch, HoldsManyKeysInTheMetric) {
  const at::TensorOptions options(at::kDouble);
  const auto metric = emmet::Preservation::from_second_moment(at::eye(kWidth, options).mul_(4.0));
  const at::Tensor whitened = metric.whiten(at::full({kLarge / kWidth, kWidth}, 3.0, options));
  EXPECT_TRUE(is_mapped(folder));
  EXPECT_TRUE(whitened.eq(1.5).all().item<bool>());
}

TEST_F(LargeScratch, IsOrdinaryMemoryWhereFilesMayNotBeSoLarge) {
  struct rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const struct rlimit small = {1 << 20, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  const at::Tensor rows = emmet::scratch_rows(kLarge / kWidth, kWidth, at::kCPU);
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_FALSE(is_mapped(folder));
  EXPECT_EQ(rows[-1].count_nonzero().item<int64_t>(), 0);
}

TEST_F(LargeScratch, IsOrdinaryMemoryWhereTheFolderIsInMemory) {
  if (!is_in_memory("/dev/shm") || !has_room("/dev/shm")) GTEST_SKIP() << "needs 0.8 GB of a tmpfs in /dev/shm";
  setenv("TMPDIR", "/dev/shm", 1);
  const at::Tensor rows = emmet::scratch_rows(kLarge / kWidth, kWidth, at::kCPU);
  EXPECT_FALSE(is_mapped("/dev/shm"));
  EXPECT_EQ(rows[-1].count_nonzero().item<int64_t>(), 0);
}

TEST_F(LargeScratch, IsOrdinaryMemoryWhereNoFileCanBe) {
  setenv("TMPDIR", (folder / "none").c_str(), 1);
  const at::Tensor rows = emmet::scratch_rows(kLarge / kWidth, kWidth, at::kCPU);
  EXPECT_FALSE(is_mapped(folder / "none"));
  EXPECT_EQ(rows[-1].count_nonzero().item<int64_t>(), 0);
}
#endif

}  // namespace
