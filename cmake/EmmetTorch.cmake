# Defines emmet::torch (libtorch's headers and libraries) and EMMET_TORCH_VERSION.
#
# The build uses this file and installs it beside emmetConfig.cmake. find_package(Torch) is avoided: it fails on a CUDA
# build of torch without a full CUDA toolkit, and its absolute paths would end up in emmet's exported targets.
#
# EMMET_TORCH_ROOT, the folder with torch's include/ and lib/, may be set; otherwise the current Python is asked.

if(TARGET emmet::torch)
  return()
endif()

if(EMMET_TORCH_ROOT)
  set(_emmet_torch_root "${EMMET_TORCH_ROOT}")
else()
  if(NOT Python_EXECUTABLE)
    find_package(Python REQUIRED COMPONENTS Interpreter)
  endif()
  execute_process(
    COMMAND "${Python_EXECUTABLE}" -c
            "from importlib.util import find_spec; print(find_spec('torch').submodule_search_locations[0])"
    OUTPUT_VARIABLE _emmet_torch_root
    OUTPUT_STRIP_TRAILING_WHITESPACE
    ERROR_QUIET)
endif()

set(_emmet_version_header "${_emmet_torch_root}/include/torch/headeronly/version.h")
if(NOT EXISTS "${_emmet_version_header}")
  message(FATAL_ERROR
    "emmet: no torch with C++ headers was found in '${_emmet_torch_root}' (Python: '${Python_EXECUTABLE}'). "
    "Install torch for this Python, or set EMMET_TORCH_ROOT to the folder that holds torch's include/ and lib/.")
endif()
file(READ "${_emmet_version_header}" _emmet_header)
foreach(_emmet_part IN ITEMS MAJOR MINOR PATCH)
  string(REGEX MATCH "define TORCH_VERSION_${_emmet_part} ([0-9]+)" _ "${_emmet_header}")
  set(_emmet_${_emmet_part} "${CMAKE_MATCH_1}")
endforeach()
set(EMMET_TORCH_VERSION "${_emmet_MAJOR}.${_emmet_MINOR}.${_emmet_PATCH}")

set(EMMET_TORCH_LIBRARY_DIR "${_emmet_torch_root}/lib")
foreach(_emmet_name IN ITEMS c10 torch_cpu torch)
  # Not cached: torch may have moved since the last configuration, as it does under pip's build isolation.
  find_library(_emmet_${_emmet_name} ${_emmet_name} PATHS "${EMMET_TORCH_LIBRARY_DIR}"
    NO_DEFAULT_PATH NO_CACHE REQUIRED)
endforeach()

# --no-as-needed: libtorch has no symbols of its own to need, but it is what loads torch_cuda where there is one.
add_library(emmet::torch INTERFACE IMPORTED)
target_include_directories(emmet::torch INTERFACE
  "${_emmet_torch_root}/include"
  "${_emmet_torch_root}/include/torch/csrc/api/include") # torch::nn
target_link_libraries(emmet::torch INTERFACE
  "${_emmet_c10}" "${_emmet_torch_cpu}" "-Wl,--push-state,--no-as-needed,${_emmet_torch},--pop-state")
target_link_options(emmet::torch INTERFACE "LINKER:-rpath-link,${EMMET_TORCH_LIBRARY_DIR}")
