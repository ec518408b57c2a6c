#!/usr/bin/env bash
# Runs the Python tests of what the extension does, with the extension that a CMake build by the preset asan has made.
#
#   PYTHON=.venv/bin/python tests/python/with_asan.sh build/asan
#
# Python is started without `site`, so that an editable install of emmet does not take the place of this one. Only
# emmet is instrumented: libtorch and Python are not, and their leaks are not looked for.
set -euo pipefail

python=${PYTHON:-python3}
package=$(realpath -m "$1")/package
here=$(dirname "$0")

rm -rf "$package"
cmake --install "$1" --prefix "$package/emmet" >/dev/null
cp -r "$here"/../../python/emmet/. "$package/emmet"
packages=$("$python" -c 'import sys; print(":".join(filter(None, sys.path)))')

# libasan must come first; libstdc++ must be there by then, so that exceptions can be followed.
libraries=$("${CXX:-c++}" -print-file-name=libasan.so):$("${CXX:-c++}" -print-file-name=libstdc++.so)
LD_PRELOAD=$libraries PYTHONPATH=$package:$packages OMP_NUM_THREADS=1 \
  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 PYTHONMALLOC=malloc \
  "$python" -S -m pytest -q -p no:cacheprovider \
  "$here"/test_{covariance,delta,edits,fuzz,numerics,preservation,solve,storage,update}.py
