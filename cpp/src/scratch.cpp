#include "emmet/scratch.h"

#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#ifdef __linux__
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <cstdlib>
#include <string>

namespace emmet {
namespace {

constexpr int64_t kInFile = int64_t{1} << 28;  // bytes

// Shared memory of a new file of this size, all of whose blocks are its own; null where there is no room.
void* map_file(size_t size) {
#ifdef __linux__
  const char* folder = std::getenv("TMPDIR");
  std::string name = std::string(folder && *folder ? folder : "/var/tmp") + "/emmet-XXXXXX";
  const int file = mkostemp(name.data(), O_CLOEXEC);
  if (file < 0) return nullptr;
  unlink(name.c_str());
  void* memory = MAP_FAILED;
  if (posix_fallocate(file, 0, static_cast<off_t>(size)) == 0) {
    memory = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  }
  close(file);
  return memory == MAP_FAILED ? nullptr : memory;
#else
  static_cast<void>(size);
  return nullptr;
#endif
}

void unmap(void* memory, size_t size) {
#ifdef __linux__
  munmap(memory, size);
#else
  static_cast<void>(memory);
  static_cast<void>(size);
#endif
}

}  // namespace

at::Tensor scratch_rows(int64_t n, int64_t width, c10::Device device) {
  const auto options = at::TensorOptions(at::kDouble).device(device);
  const int64_t size = n * width * static_cast<int64_t>(sizeof(double));
  if (device.is_cpu() && size >= kInFile) {
    const auto bytes = static_cast<size_t>(size);
    if (void* memory = map_file(bytes)) {
      return at::from_blob(memory, {n, width}, [bytes](void* mapped) { unmap(mapped, bytes); }, options);
    }
  }
  return at::zeros({n, width}, options);
}

}  // namespace emmet
