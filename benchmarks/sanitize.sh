#!/bin/sh
# Build the kernels with the address and undefined-behaviour sanitizers, in a folder of its own, and
# run the operator tests on them. Takes a few minutes.
set -eu
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cp -r "$root/csrc" "$root/gradood" "$root/kernels" "$root/setup.py" "$root/pyproject.toml" \
    "$root/LICENSE" "$folder"
cd "$folder"
GRADOOD_BUILD_EXT=1 GRADOOD_SANITIZE=address,undefined \
    "$python" setup.py -q build_ext --inplace >build.log 2>&1 || { cat build.log; exit 1; }
runtime=$(${CXX:-g++} -print-file-name=libasan.so):$(${CXX:-g++} -print-file-name=libstdc++.so)
# PyTorch itself leaks at exit, and asks for more memory than there is where a size is absurd.
# Threads and opcheck start processes or compilers of their own.
LD_PRELOAD=$runtime OMP_NUM_THREADS=1 \
    ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 \
    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
    "$python" -m pytest "$root/tests/ops/test_cpp_backend.py" "$root/tests/ops/test_cpp_fuzz.py" -c pyproject.toml \
    --rootdir "$root" -q -x -p no:cacheprovider "$@"
