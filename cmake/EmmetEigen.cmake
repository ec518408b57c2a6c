# Sets EMMET_EIGEN_INCLUDE_DIRS. Only emmet's own sources include Eigen: the installed package does not need it.
#
# Looked for as a CMake package, then in the cmeel-eigen wheel (a build requirement of the Python package), then, where
# EMMET_FETCH_EIGEN allows it, downloaded.

execute_process(
  COMMAND "${Python_EXECUTABLE}" -c
          "from importlib.metadata import distribution; print(distribution('cmeel-eigen').locate_file('cmeel.prefix'))"
  OUTPUT_VARIABLE _emmet_cmeel
  OUTPUT_STRIP_TRAILING_WHITESPACE
  ERROR_QUIET)
unset(Eigen3_DIR CACHE) # Not kept: under pip's build isolation the wheel lies elsewhere each time.
find_package(Eigen3 3.4 QUIET CONFIG HINTS "${_emmet_cmeel}")

if(TARGET Eigen3::Eigen)
  get_target_property(EMMET_EIGEN_INCLUDE_DIRS Eigen3::Eigen INTERFACE_INCLUDE_DIRECTORIES)
elseif(EMMET_FETCH_EIGEN)
  include(FetchContent)
  FetchContent_Declare(eigen
    URL https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz
    SOURCE_SUBDIR no-cmake) # headers only: Eigen's own build is of no use
  FetchContent_MakeAvailable(eigen)
  set(EMMET_EIGEN_INCLUDE_DIRS "${eigen_SOURCE_DIR}")
else()
  message(FATAL_ERROR
    "emmet: Eigen 3.4 was not found. Run 'pip install cmeel-eigen' (or install libeigen3-dev), "
    "or configure with -DEMMET_FETCH_EIGEN=ON to download it.")
endif()
