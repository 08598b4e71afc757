// Rows of the arrays' element types, as rows of the accumulation type T and back.
#ifndef REGARD_KERNEL_CONVERT_H
#define REGARD_KERNEL_CONVERT_H

namespace regard {
namespace REGARD_NAMESPACE {

REGARD_INLINE int64_t element_size(int dtype) {
  return dtype == REGARD_FLOAT64 ? 8 : dtype == REGARD_FLOAT32 ? 4 : 2;
}
template <class T>
constexpr int kType = std::is_same_v<T, double> ? REGARD_FLOAT64 : REGARD_FLOAT32;

REGARD_INLINE int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
// Elements that a row of n takes when it is padded to whole vectors.
template <class T>
REGARD_INLINE int64_t padded(int64_t n) {
  return round_up(n, kLanes<T>);
}

REGARD_INLINE void *row_of(const regard_array &a, int dtype, int64_t batch, int64_t head,
                           int64_t row) {
  const int64_t at = batch * a.batch_stride + head * a.head_stride + row * a.row_stride;
  return static_cast<char *>(a.data) + at * element_size(dtype);
}

#ifndef REGARD_NATIVE_HALF
REGARD_INLINE float bits_to_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
REGARD_INLINE uint32_t float_to_bits(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float from_float16(uint16_t half) {
  const uint32_t sign = uint32_t(half & 0x8000) << 16, magnitude = half & 0x7fff;
  if (magnitude >= 0x7c00) return bits_to_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
  // 2^112 moves the exponent's bias from 15 to 127, subnormal halves included.
  const float value = bits_to_float(magnitude << 13) * 5.192296858534828e33f;
  return bits_to_float(sign | float_to_bits(value));
}
inline uint16_t to_float16(float x) {
  const uint32_t bits = float_to_bits(x), magnitude = bits & 0x7fffffff;
  const uint16_t sign = (bits >> 16) & 0x8000;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Adding 1/2 leaves the half's subnormal mantissa, rounded, in the lowest bits.
    return sign |
           static_cast<uint16_t>(float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000);
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return sign | static_cast<uint16_t>((rounded - 0x38000000) >> 13);
}
inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = float_to_bits(x);
  if (x != x) return 0x7fc0;
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

inline Vec<float> load_float16(const uint16_t *p, int64_t n) {
  float lanes[kLanes<float>] = {};
  for (int i = 0; i < std::min<int64_t>(n, kLanes<float>); ++i) lanes[i] = from_float16(p[i]);
  return load(lanes);
}
inline Vec<float> load_bfloat16(const uint16_t *p, int64_t n) {
  float lanes[kLanes<float>] = {};
  for (int i = 0; i < std::min<int64_t>(n, kLanes<float>); ++i) {
    lanes[i] = bits_to_float(uint32_t(p[i]) << 16);
  }
  return load(lanes);
}
inline void store_float16(uint16_t *p, Vec<float> a, int64_t n) {
  float lanes[kLanes<float>];
  store(lanes, a);
  for (int i = 0; i < std::min<int64_t>(n, kLanes<float>); ++i) p[i] = to_float16(lanes[i]);
}
inline void store_bfloat16(uint16_t *p, Vec<float> a, int64_t n) {
  float lanes[kLanes<float>];
  store(lanes, a);
  for (int i = 0; i < std::min<int64_t>(n, kLanes<float>); ++i) p[i] = to_bfloat16(lanes[i]);
}
#endif

// Elements as they lie in an array, for kernels that convert while they read.
struct Float16 {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

template <class T>
REGARD_INLINE Vec<T> load_as(const T *p) {
  return load(p);
}
REGARD_INLINE Vec<float> load_as(const Float16 *p) { return load_float16(&p->bits, kLanes<float>); }
REGARD_INLINE Vec<float> load_as(const BFloat16 *p) {
  return load_bfloat16(&p->bits, kLanes<float>);
}
template <class T>
REGARD_INLINE Vec<T> load_as_partial(const T *p, int64_t n) {
  return load_partial(p, n);
}
REGARD_INLINE Vec<float> load_as_partial(const Float16 *p, int64_t n) {
  return load_float16(&p->bits, n);
}
REGARD_INLINE Vec<float> load_as_partial(const BFloat16 *p, int64_t n) {
  return load_bfloat16(&p->bits, n);
}

// n elements of `dtype` as T, then zeros up to whole vectors.
inline void widen_row(float *to, const void *from, int64_t n, int dtype) {
  if (n <= 0) return;
  const auto *half = static_cast<const uint16_t *>(from);
  const auto *single = static_cast<const float *>(from);
  constexpr int L = kLanes<float>;
  if (dtype == REGARD_FLOAT32) {
    int64_t i = 0;
    for (; i + L <= n; i += L) store(to + i, load(single + i));
    if (i < n) store(to + i, load_partial(single + i, n - i));
  } else if (dtype == REGARD_FLOAT16) {
    for (int64_t i = 0; i < n; i += L) store(to + i, load_float16(half + i, n - i));
  } else {
    for (int64_t i = 0; i < n; i += L) store(to + i, load_bfloat16(half + i, n - i));
  }
}
inline void widen_row(double *to, const void *from, int64_t n, int dtype) {
  constexpr int L = kLanes<double>;
  if (dtype == REGARD_FLOAT64) {
    const auto *row = static_cast<const double *>(from);
    int64_t i = 0;
    for (; i + L <= n; i += L) store(to + i, load(row + i));
    if (i < n) store(to + i, load_partial(row + i, n - i));
  } else {
    const auto *row = static_cast<const float *>(from);
    for (int64_t i = 0; i < n; ++i) to[i] = row[i];
    for (int64_t i = n; i < padded<double>(n); ++i) to[i] = 0;
  }
}

// One vector of the same: its first n lanes, then zeros.
template <class T>
REGARD_INLINE Vec<T> widen(const void *from, int64_t n, int dtype) {
  if (dtype == kType<T>) return load_partial(static_cast<const T *>(from), n);
  if constexpr (std::is_same_v<T, float>) {
    const auto *half = static_cast<const uint16_t *>(from);
    return dtype == REGARD_FLOAT16 ? load_float16(half, n) : load_bfloat16(half, n);
  } else {
    T lanes[kLanes<T>];
    widen_row(lanes, from, n, dtype);
    return load(lanes);
  }
}

// factor * row, rounded to `dtype`. `from` is padded to whole vectors.
inline void narrow_row(void *to, const float *from, int64_t n, int dtype, float factor) {
  auto *half = static_cast<uint16_t *>(to);
  auto *single = static_cast<float *>(to);
  constexpr int L = kLanes<float>;
  const Vec<float> f = broadcast(factor);
  if (dtype == REGARD_FLOAT32) {
    int64_t i = 0;
    for (; i + L <= n; i += L) store(single + i, load(from + i) * f);
    if (i < n) store_partial(single + i, load(from + i) * f, n - i);
  } else if (dtype == REGARD_FLOAT16) {
    for (int64_t i = 0; i < n; i += L) store_float16(half + i, load(from + i) * f, n - i);
  } else {
    for (int64_t i = 0; i < n; i += L) store_bfloat16(half + i, load(from + i) * f, n - i);
  }
}
inline void narrow_row(void *to, const double *from, int64_t n, int, double factor) {
  constexpr int L = kLanes<double>;
  auto *row = static_cast<double *>(to);
  const Vec<double> f = broadcast(factor);
  for (int64_t i = 0; i < n; i += L) store_partial(row + i, load(from + i) * f, n - i);
}

// Whether a padded row is free of infinities and NaN once it has been multiplied by factor.
template <class T>
inline bool finite_row(const T *row, int64_t n, T factor) {
  const Vec<T> zero = broadcast<T>(0), f = broadcast<T>(factor);
  Vec<T> probe = zero;
  for (int64_t i = 0; i < n; i += kLanes<T>) probe = fma(load(row + i) * f, zero, probe);
  return !any(differ(probe, probe));
}

// Keys or values, for those of batch element `batch` that lie in the same page as `key`: an array
// whose rows are where `a`'s would be if it were in one piece.
REGARD_INLINE regard_array array_at(const regard_problem &p, const regard_array &a, int64_t batch,
                                    int64_t key) {
  if (!p.pages) return a;
  const int64_t page = key / p.page_size, there = p.pages[batch * p.pages_stride + page];
  const int64_t at = there * a.batch_stride - page * p.page_size * a.row_stride;
  return {static_cast<char *>(a.data) + at * element_size(p.dtype), 0, a.head_stride, a.row_stride};
}

// Rows of a matrix, of T or as they lie in an array. Where memory is the limit, who reads an
// element asks for the one `ahead` elements behind it; 0: for nothing.
template <class S>
struct Operand {
  const S *data;
  int64_t stride;
  int64_t ahead = 0;

  Operand from(int64_t row) const { return {data + row * stride, stride, ahead}; }
};

// Asks for a row that will be read soon. Where there is no such row it does no harm.
template <class S>
REGARD_INLINE void prefetch_row(Operand<S> rows, int64_t row, int64_t size) {
  constexpr int64_t kLine = 64;
  const char *at = reinterpret_cast<const char *>(rows.data + row * rows.stride);
  for (int64_t i = 0; i < size * int64_t{sizeof(S)}; i += kLine) __builtin_prefetch(at + i);
}

template <class S>
inline Operand<S> in_place(const regard_array &a, int64_t batch, int64_t head, int64_t first) {
  const int64_t at = batch * a.batch_stride + head * a.head_stride + first * a.row_stride;
  return {static_cast<const S *>(a.data) + at, a.row_stride};
}

// Keys or values from `first` on, each of which asks for the `rows`-th after it. Of pages that are
// hardly longer than that, each asks for its counterpart in the page of key `next`; -1: none.
template <class S>
inline Operand<S> streamed(const regard_problem &p, const regard_array &a, int64_t batch,
                           int64_t head, int64_t first, int64_t next, int64_t rows) {
  auto found = in_place<S>(array_at(p, a, batch, first), batch, head, first);
  found.ahead = rows * a.row_stride;
  if (!p.pages || p.page_size > 2 * rows) return found;
  const S *there = found.data;
  if (next >= 0) there = in_place<S>(array_at(p, a, batch, next), batch, head, next).data;
  found.ahead = there - found.data;
  return found;
}

// Rows [first, first + count) of one head as T: the array itself where that will do, else
// `scratch`. `vectors`: rows must be whole aligned vectors and close together, as the right side of
// a product wants.
template <class T>
inline Operand<T> operand(const regard_array &a, int dtype, int64_t batch, int64_t head,
                          int64_t first, int64_t count, int64_t size, bool vectors, T *scratch) {
  const char *row = static_cast<const char *>(row_of(a, dtype, batch, head, first));
  const bool aligned = reinterpret_cast<uintptr_t>(row) % sizeof(Vec<T>) == 0;
  const bool fits = !vectors || (aligned && size % kLanes<T> == 0 && a.row_stride == size);
  if (dtype == kType<T> && fits) return {reinterpret_cast<const T *>(row), a.row_stride};
  const int64_t stride = padded<T>(size), step = a.row_stride * element_size(dtype);
  for (int64_t i = 0; i < count; ++i, row += step)
    widen_row(scratch + i * stride, row, size, dtype);
  return {scratch, stride};
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
