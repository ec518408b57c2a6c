#!/usr/bin/env bash
# Sees to it that CMake can find GoogleTest, on Debian and its kin: where it is not installed, root installs
# libgtest-dev and any other user unpacks it into FOLDER, which is then to be given to CMake as GTest_ROOT.
#
#   get_gtest.sh FOLDER
set -euo pipefail

folder=$1

found() { echo '#include <gtest/gtest.h>' | "${CXX:-c++}" -E -x c++ "$@" - >/dev/null 2>&1; }

if found || found -isystem "$folder/include"; then
  exit
fi
if ! command -v apt-get >/dev/null; then
  echo "GoogleTest was not found, and there is no apt-get to install it with. Install GoogleTest by other means." >&2
  exit
fi

if [ "$(id -u)" = 0 ]; then
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends libgtest-dev
else
  scratch=$(mktemp -d)
  trap 'rm -rf "$scratch"' EXIT
  (cd "$scratch" && apt-get download -qq libgtest-dev && dpkg -x libgtest-dev_*.deb unpacked)
  mkdir -p "$folder"
  cp -r "$scratch/unpacked/usr/." "$folder"
fi
