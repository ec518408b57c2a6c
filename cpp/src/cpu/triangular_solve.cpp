#include "cpu/triangular_solve.h"

#include <ATen/Parallel.h>

#include <algorithm>

// Compiled anew within each function that calls it, for the instructions that this one may use.
#define EMMET_COMPILED_ANEW __attribute__((always_inline))

namespace emmet::cpu {
namespace {

// Unknowns that one thread solves for before all threads go on.
constexpr int64_t kPanel = 64;
// A multiple of the rows that are multiplied together, and a cache line of results.
constexpr int64_t kGroup = 8;
// Numbers that a thread reads at least: starting one takes as long as reading these.
constexpr int64_t kGrain = 16384;

// Numbers that lie by rows, `stride` apart.
template <typename T>
struct Block {
  const T* data;
  int64_t stride, rows, columns;

  const T* row(int64_t index) const { return data + index * stride; }
  Block part(int64_t row, int64_t column, int64_t height, int64_t width) const {
    return {data + row * stride + column, stride, height, width};
  }
};

// y -= B x, four rows at a time.
template <typename T>
EMMET_COMPILED_ANEW inline void subtract_product(const Block<T>& B, const T* x, T* y) {
  int64_t i = 0;
  for (; i + 4 <= B.rows; i += 4) {
    const T *r0 = B.row(i), *r1 = B.row(i + 1), *r2 = B.row(i + 2), *r3 = B.row(i + 3);
    T s0 = 0, s1 = 0, s2 = 0, s3 = 0;
#pragma omp simd reduction(+ : s0, s1, s2, s3)
    for (int64_t j = 0; j < B.columns; ++j) {
      s0 += r0[j] * x[j];
      s1 += r1[j] * x[j];
      s2 += r2[j] * x[j];
      s3 += r3[j] * x[j];
    }
    y[i] -= s0;
    y[i + 1] -= s1;
    y[i + 2] -= s2;
    y[i + 3] -= s3;
  }
  for (; i < B.rows; ++i) {
    const T* r = B.row(i);
    T s = 0;
#pragma omp simd reduction(+ : s)
    for (int64_t j = 0; j < B.columns; ++j) s += r[j] * x[j];
    y[i] -= s;
  }
}

// y -= Bᵀ x, four rows of B at a time.
template <typename T>
EMMET_COMPILED_ANEW inline void subtract_transposed_product(const Block<T>& B, const T* x, T* y) {
  int64_t i = 0;
  for (; i + 4 <= B.rows; i += 4) {
    const T *r0 = B.row(i), *r1 = B.row(i + 1), *r2 = B.row(i + 2), *r3 = B.row(i + 3);
    const T x0 = x[i], x1 = x[i + 1], x2 = x[i + 2], x3 = x[i + 3];
#pragma omp simd
    for (int64_t j = 0; j < B.columns; ++j) y[j] -= r0[j] * x0 + r1[j] * x1 + r2[j] * x2 + r3[j] * x3;
  }
  for (; i < B.rows; ++i) {
    const T* r = B.row(i);
    const T xi = x[i];
#pragma omp simd
    for (int64_t j = 0; j < B.columns; ++j) y[j] -= r[j] * xi;
  }
}

template <typename T>
EMMET_COMPILED_ANEW inline void subtract(const Block<T>& B, bool transposed, const T* x, T* y) {
  transposed ? subtract_transposed_product(B, x, y) : subtract_product(B, x, y);
}

#if defined(__x86_64__)
template <typename Work>
__attribute__((target("avx512f"))) void do_with_avx512(const Work& work) {
  work();
}

template <typename Work>
__attribute__((target("avx2,fma"))) void do_with_avx2(const Work& work) {
  work();
}
#endif

// Does some work that is compiled anew, with the widest instructions that the CPU has.
template <typename Work>
void do_on_this_cpu(const Work& work) {
#if defined(__x86_64__)
  static const bool has_avx512 = __builtin_cpu_supports("avx512f");
  static const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (has_avx512) return do_with_avx512(work);
  if (has_avx2) return do_with_avx2(work);
#endif
  work();
}

// y -= B x, or Bᵀ x, by all threads. Each has some whole groups of the numbers of y, so that all are summed up alike
// however many threads there are.
template <typename T>
void subtract_in_parallel(const Block<T>& B, bool transposed, const T* x, T* y) {
  const int64_t count = transposed ? B.columns : B.rows, each = transposed ? B.rows : B.columns;
  if (each == 0) return;
  const int64_t groups = (count + kGroup - 1) / kGroup;
  at::parallel_for(0, groups, std::max<int64_t>(1, kGrain / (kGroup * each)), [&](int64_t first, int64_t last) {
    const int64_t start = kGroup * first, size = std::min(kGroup * last, count) - start;
    const auto some = transposed ? B.part(0, start, B.rows, size) : B.part(start, 0, size, B.columns);
    do_on_this_cpu([&]() EMMET_COMPILED_ANEW { subtract(some, transposed, x, y + start); });
  });
}

// x ← T⁻¹x, or T⁻ᵀx, for the lower or the upper triangle T of a square: some rows at a time, which have a triangle of
// their own and what lies beside that.
template <int64_t kRows, typename T>
EMMET_COMPILED_ANEW inline void solve(const Block<T>& square, bool lower, bool transposed, T* x) {
  const bool forward = lower != transposed;
  const int64_t size = square.rows;
  for (int64_t done = 0, height = 0; done < size; done += height) {
    height = std::min(kRows, size - done);
    const int64_t start = forward ? done : size - done - height, end = start + height;
    const int64_t from = lower ? 0 : end, to = lower ? start : size;
    const auto beside = square.part(start, from, height, to - from);
    if constexpr (kRows == 1) {
      if (!transposed) subtract(beside, transposed, x + from, x + start);
      x[start] /= square.row(start)[start];
      if (transposed) subtract(beside, transposed, x + start, x + from);
    } else {
      const auto panel = square.part(start, start, height, height);
      if (!transposed) subtract_in_parallel(beside, transposed, x + from, x + start);
      do_on_this_cpu([&]() EMMET_COMPILED_ANEW { solve<1>(panel, lower, transposed, x + start); });
      if (transposed) subtract_in_parallel(beside, transposed, x + start, x + from);
    }
  }
}

template <typename T>
void solve_parts(const T* corners, const T* side, T* vector, int64_t dim, bool transposed) {
  const int64_t split = dim / 2, rest = dim - split;
  const Block<T> upper_first{corners, rest, split, split}, below{side, split, rest, split},
      lower_second{corners + rest, rest, rest, rest};
  T *left = vector, *right = vector + split;
  if (transposed) {
    solve<kPanel>(lower_second, /*lower=*/true, /*transposed=*/true, right);
    subtract_in_parallel(below, /*transposed=*/true, right, left);
    solve<kPanel>(upper_first, /*lower=*/false, /*transposed=*/false, left);
  } else {
    solve<kPanel>(upper_first, /*lower=*/false, /*transposed=*/true, left);
    subtract_in_parallel(below, /*transposed=*/false, left, right);
    solve<kPanel>(lower_second, /*lower=*/true, /*transposed=*/false, right);
  }
}

}  // namespace

void triangular_solve(const double* corners, const double* side, double* vector, int64_t dim, bool transposed) {
  solve_parts(corners, side, vector, dim, transposed);
}

void triangular_solve(const float* corners, const float* side, float* vector, int64_t dim, bool transposed) {
  solve_parts(corners, side, vector, dim, transposed);
}

}  // namespace emmet::cpu
