// Transposition in registers.
#ifndef REGARD_KERNEL_TRANSPOSE_H
#define REGARD_KERNEL_TRANSPOSE_H

namespace regard {
namespace REGARD_NAMESPACE {

// One square of kLanes x kLanes. Interleaving the first half of the rows with the second, log2
// times, is a transposition.
template <class T>
REGARD_INLINE void transpose_square(const T *from, int64_t from_stride, T *to, int64_t to_stride) {
  constexpr int L = kLanes<T>;
  Vec<T> a[L], b[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) a[i] = load(from + i * from_stride);
#pragma GCC unroll 4
  for (int width = 1; width < L; width *= 2) {
#pragma GCC unroll 8
    for (int i = 0; i < L / 2; ++i) {
      b[2 * i] = zip_low(a[i], a[i + L / 2]);
      b[2 * i + 1] = zip_high(a[i], a[i + L / 2]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) a[i] = b[i];
  }
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) store(to + i * to_stride, a[i]);
}

// to[j][i] = from[i][j] for i < rows, j < columns; both are rounded up to kLanes, in memory too.
template <class T>
REGARD_NOINLINE void transpose(const T *from, int64_t from_stride, T *to, int64_t to_stride,
                               int64_t rows, int64_t columns) {
  constexpr int L = kLanes<T>;
  for (int64_t j = 0; j < columns; j += L) {
    for (int64_t i = 0; i < rows; i += L) {
      transpose_square(from + i * from_stride + j, from_stride, to + j * to_stride + i, to_stride);
    }
  }
}

// The same for a square of 8 x 8 bytes, row i in words[i].
REGARD_INLINE void transpose_bytes(uint64_t words[8]) {
  constexpr uint64_t low[] = {0x00000000ffffffff, 0x0000ffff0000ffff, 0x00ff00ff00ff00ff};
#pragma GCC unroll 3
  for (int step = 0; step < 3; ++step) {
    const int distance = 4 >> step, shift = 32 >> step;
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      if (i & distance) continue;
      const uint64_t a = words[i], b = words[i + distance];
      words[i] = (a & low[step]) | (b & low[step]) << shift;
      words[i + distance] = ((a >> shift) & low[step]) | (b & ~low[step]);
    }
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
