#include "emmet/scratch.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#ifdef __linux__
#include <fcntl.h>
#include <linux/magic.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstdlib>
#include <string>
#endif

namespace emmet {

#ifdef __linux__
namespace {

constexpr size_t kSmallestFile = size_t{1} << 28;  // bytes

// Whether `folder` is on a disk with room for a file of this size, and as much again for others.
bool has_room(const char* folder, size_t size) {
  struct statfs disk;
  if (statfs(folder, &disk) != 0 || disk.f_type == TMPFS_MAGIC || disk.f_type == RAMFS_MAGIC) return false;
  struct rlimit largest;  // beyond it there is a signal, not an error
  if (getrlimit(RLIMIT_FSIZE, &largest) == 0 && largest.rlim_cur < size) return false;
  return static_cast<size_t>(disk.f_bavail) * static_cast<size_t>(disk.f_bsize) / 2 >= size;
}

// Memory shared with a new file of this size, whose blocks are taken now; null where it cannot be had.
void* map_file(size_t size) {
  const char* chosen = std::getenv("TMPDIR");
  const char* folder = chosen != nullptr && *chosen != '\0' ? chosen : "/var/tmp";
  if (!has_room(folder, size)) return nullptr;
  std::string name = std::string(folder) + "/emmet-XXXXXX";
  const int file = mkostemp(name.data(), O_CLOEXEC);
  if (file < 0) return nullptr;
  unlink(name.c_str());
  int failed = 0;
  do {
    failed = fallocate(file, 0, 0, static_cast<off_t>(size));
  } while (failed != 0 && errno == EINTR);
  void* memory = failed != 0 ? MAP_FAILED : mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  return memory == MAP_FAILED ? nullptr : memory;
}

}  // namespace
#endif

at::Tensor scratch_rows(int64_t n, int64_t width, c10::Device device) {
  const auto options = at::TensorOptions(at::kDouble).device(device);
#ifdef __linux__
  const auto size = static_cast<size_t>(n * width) * sizeof(double);
  if (device.is_cpu() && size >= kSmallestFile) {
    if (void* memory = map_file(size)) {
      return at::from_blob(memory, {n, width}, [size](void* mapped) { munmap(mapped, size); }, options);
    }
  }
#endif
  return at::zeros({n, width}, options);
}

}  // namespace emmet
