// A fuzz target of libFuzzer (EMMET_FUZZ): whatever a file of tensors holds, it is read, or emmet::Error is thrown.

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "emmet/error.h"
#include "emmet/preservation.h"
#include "emmet/safetensors.h"
#include "emmet/update.h"

namespace {

/// A file in memory.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : descriptor_(memfd_create("input", MFD_CLOEXEC)) {
    if (descriptor_ < 0 || ::write(descriptor_, data, size) != static_cast<ssize_t>(size)) {
      std::perror("cannot make a file in memory");
      std::abort();
    }
  }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  ~MemoryFile() { ::close(descriptor_); }

  std::string path() const { return "/proc/self/fd/" + std::to_string(descriptor_); }

 private:
  int descriptor_;
};

template <typename Read>
void attempt(Read&& read) {
  try {
    read();
  } catch (const emmet::Error&) {
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile file(data, size);
  attempt([&] { emmet::read_safetensors(file.path()); });
  attempt([&] { emmet::Preservation::load(file.path()); });
  attempt([&] { emmet::Update::load(file.path()); });
  return 0;
}
