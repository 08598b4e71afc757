// Two bfloat16 side by side, which AVX512_BF16 multiplies and adds up with one instruction. It
// takes subnormal numbers for 0 and rounds to nearest.
#ifndef REGARD_KERNEL_PAIRS_PAIRS_H
#define REGARD_KERNEL_PAIRS_PAIRS_H

namespace regard {
namespace REGARD_NAMESPACE {

// The first of the two is the lower half. Where a pair is handled as a float, only its bits count.
struct Pair {
  uint32_t bits;
};
// Processors that multiply pairs fast have keys of them come from farther ahead.
template <>
constexpr int kKeysAhead<Pair> = 32;

REGARD_INLINE Vec<float> load_as(const Pair *p) { return load(reinterpret_cast<const float *>(p)); }
REGARD_INLINE Vec<float> load_as_partial(const Pair *p, int64_t n) {
  return load_partial(reinterpret_cast<const float *>(p), n);
}

// sum + the products of both halves
REGARD_INLINE Vec<float> add_product(Pair, Vec<float> a, Vec<float> b, Vec<float> sum) {
  return {_mm512_dpbf16_ps(sum.v, (__m512bh)a.v, (__m512bh)b.v)};
}
struct PairProduct {
  REGARD_INLINE Vec<float> operator()(Vec<float> key, Vec<float> query, Vec<float> sum,
                                      int64_t) const {
    return add_product(Pair(), key, query, sum);
  }
};

// Pairs (low, high), lane by lane, rounded to nearest: halfway cases away from 0, which costs half
// of what the processor's own conversion takes.
REGARD_INLINE __m512i join(Vec<float> low, Vec<float> high) {
  const __m512i half = _mm512_set1_epi32(0x8000), upper = _mm512_set1_epi32(int(0xffff0000));
  const __m512i a = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(low.v), half), 16);
  const __m512i b = _mm512_add_epi32(_mm512_castps_si512(high.v), half);
  constexpr int kFirstOrBoth = 0xf8;  // a | (b & c)
  return _mm512_ternarylogic_epi32(a, b, upper, kFirstOrBoth);
}

// The first n of 32 bfloat16, then zeros.
REGARD_INLINE __m512i load_row(const uint16_t *from, int64_t n) {
  constexpr int L = 2 * kLanes<float>;
  // Masked loads of halves cost more than one instruction.
  if (n >= L) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << n) - 1, from);
}

// A row of n bfloat16, times 1, -1 or 0, then zeros up to whole vectors of pairs.
inline void copy_pairs(const void *from, int64_t n, float factor, float *to) {
  const auto *half = static_cast<const uint16_t *>(from);
  const __m512i sign = _mm512_set1_epi16(factor < 0 ? short(0x8000) : 0);
  constexpr int L = 2 * kLanes<float>;
  for (int64_t i = 0; i < n; i += L) {
    const __m512i row = factor == 0 ? _mm512_setzero_si512() : load_row(half + i, n - i);
    _mm512_storeu_si512(to + i / 2, _mm512_xor_si512(row, sign));
  }
}

// Rows as pairs of elements, which must lie so.
inline Operand<float> pairs_of(Operand<uint16_t> rows) {
  return {reinterpret_cast<const float *>(rows.data), rows.stride / 2, rows.ahead / 2};
}

// Two rows of `size` bfloat16 side by side, then zeros up to `width` pairs. A row that is null is
// 0.
REGARD_INLINE void join_rows(const uint16_t *first, const uint16_t *second, int64_t size,
                             int64_t width, float *to) {
  const __m512i low = _mm512_setr_epi32(0x200000, 0x210001, 0x220002, 0x230003, 0x240004, 0x250005,
                                        0x260006, 0x270007, 0x280008, 0x290009, 0x2a000a, 0x2b000b,
                                        0x2c000c, 0x2d000d, 0x2e000e, 0x2f000f);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(kLanes<float>));
  constexpr int L = 2 * kLanes<float>;
  for (int64_t e = 0; e < width; e += L) {
    const __m512i a = first ? load_row(first + e, size - e) : _mm512_setzero_si512();
    const __m512i b = second ? load_row(second + e, size - e) : _mm512_setzero_si512();
    _mm512_storeu_si512(to + e, _mm512_permutex2var_epi16(a, low, b));
    if (e + L / 2 < width) {
      _mm512_storeu_si512(to + e + L / 2, _mm512_permutex2var_epi16(a, high, b));
    }
  }
}

// Rows of keys or values in pairs of keys: to[key / 2][width].
inline void join_keys(Operand<uint16_t> rows, int64_t count, int64_t size, int64_t width,
                      float *to) {
  for (int64_t j = 0; j < count; j += 2) {
    const uint16_t *first = rows.data + j * rows.stride;
    join_rows(first, j + 1 < count ? first + rows.stride : nullptr, size, width,
              to + j / 2 * width);
  }
}

// Weights [key][width] in pairs of keys: to[key / 2][width], after dropout if there are `factors`.
struct PairedWeights {
  float *to;
  const float *factors;  // [key][width], or null
  int width;

  REGARD_INLINE void put(int64_t j, int r, Vec<float> weight) const {
    put_pair(j, r, factors ? weight * load(factors + j * width + r) : weight, broadcast(0.0f));
  }
  REGARD_INLINE void put(int64_t j, int r, Vec<float> weight, Vec<float> next) const {
    if (!factors) return put_pair(j, r, weight, next);
    const float *factor = factors + j * width + r;
    put_pair(j, r, weight * load(factor), next * load(factor + width));
  }

 private:
  REGARD_INLINE void put_pair(int64_t j, int r, Vec<float> weight, Vec<float> next) const {
    _mm512_storeu_si512(to + j / 2 * width + r, join(weight, next));
  }
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
