// Transposition in registers.
#ifndef REGARD_KERNEL_TRANSPOSE_H
#define REGARD_KERNEL_TRANSPOSE_H

namespace regard {
namespace REGARD_NAMESPACE {

// One square of kLanes x kLanes. Interleaving the first half of the rows with the second, log2
// times, is a transposition.
template <class T>
REGARD_INLINE void transpose_registers(Vec<T> *a) {
  constexpr int L = kLanes<T>;
  Vec<T> b[L];
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
}
template <class T>
REGARD_INLINE void transpose_square(const T *from, int64_t from_stride, T *to, int64_t to_stride) {
  constexpr int L = kLanes<T>;
  Vec<T> a[L];
#pragma GCC unroll 16
  for (int i = 0; i < L; ++i) a[i] = load(from + i * from_stride);
  transpose_registers<T>(a);
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

// The same for a square of 16 x 16 bytes, in the compiler's own vectors.
typedef uint8_t Bytes __attribute__((vector_size(16)));

REGARD_INLINE Bytes zip_bytes_low(Bytes a, Bytes b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
#else
  return __builtin_shuffle(a, b, Bytes{0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
#endif
}
REGARD_INLINE Bytes zip_bytes_high(Bytes a, Bytes b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                 31);
#else
  return __builtin_shuffle(a, b,
                           Bytes{8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31});
#endif
}

REGARD_INLINE void transpose_bytes(Bytes rows[16]) {
#pragma GCC unroll 4
  for (int round = 0; round < 4; ++round) {
    Bytes zipped[16];
#pragma GCC unroll 8
    for (int i = 0; i < 8; ++i) {
      zipped[2 * i] = zip_bytes_low(rows[i], rows[i + 8]);
      zipped[2 * i + 1] = zip_bytes_high(rows[i], rows[i + 8]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) rows[i] = zipped[i];
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
