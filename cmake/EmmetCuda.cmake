# Sets EMMET_HAS_CUDA: whether to compile emmet's CUDA kernels. Enables the language CUDA if so.
#
# EMMET_CUDA=AUTO compiles them where torch is a CUDA build and nvcc is found, and looks for nvcc only there.
# The CUDA runtime is linked statically, CMake's default: the library loads with a CPU build of torch as well.

set(EMMET_HAS_CUDA OFF)
if(EMMET_CUDA STREQUAL "AUTO" OR EMMET_CUDA)
  find_library(_emmet_torch_cuda torch_cuda PATHS "${EMMET_TORCH_LIBRARY_DIR}" NO_DEFAULT_PATH NO_CACHE)
  if(_emmet_torch_cuda)
    if(NOT CMAKE_CUDA_COMPILER)
      unset(CMAKE_CUDA_COMPILER CACHE) # Not kept: a toolkit may have been installed since.
    endif()
    include(CheckLanguage)
    check_language(CUDA)
    if(CMAKE_CUDA_COMPILER)
      set(EMMET_HAS_CUDA ON)
    endif()
  endif()
  if(NOT EMMET_CUDA STREQUAL "AUTO" AND NOT _emmet_torch_cuda)
    message(FATAL_ERROR
      "emmet: EMMET_CUDA is ON, but the torch in '${EMMET_TORCH_LIBRARY_DIR}' is a build without CUDA: it has no "
      "libtorch_cuda. Install a CUDA build of torch, or configure with -DEMMET_CUDA=OFF.")
  elseif(NOT EMMET_CUDA STREQUAL "AUTO" AND NOT EMMET_HAS_CUDA)
    message(FATAL_ERROR
      "emmet: EMMET_CUDA is ON, but no CUDA compiler was found. Install a CUDA toolkit, put its nvcc on PATH or set "
      "CMAKE_CUDA_COMPILER to it, or configure with -DEMMET_CUDA=OFF.")
  endif()
endif()

if(EMMET_HAS_CUDA)
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
    set(CMAKE_CUDA_ARCHITECTURES all-major)
  endif()
  enable_language(CUDA)
endif()
