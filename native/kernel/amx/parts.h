// Elements as sums of bfloat16, which the matrix unit multiplies: a bfloat16 is one part; a float16
// is exactly two; a float32 is exactly three, and two but for 2^-17 of it.
//
// Of two such sums the products of parts are added up but for the least: with two parts that of
// both lower ones, at most 2^-16 of the whole, and mostly much less; with three parts three
// products of at most 2^-24 together, less than float32 rounds away. Lower parts below 1.2e-38
// count as zero: no float16 has any, and a float32 below 2^-110 keeps 8 bits of its mantissa.
#ifndef REGARD_KERNEL_AMX_PARTS_H
#define REGARD_KERNEL_AMX_PARTS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Depth of a tile: elements of a row of the left side.
constexpr int64_t kDepth = kTileBytes / sizeof(uint16_t);

// How many parts the elements of a problem have on the matrix unit; 0: they are not for it. Three
// parts are exactly a float32, and their products no less exact than those of float32.
inline int parts_of(const regard_problem &p) {
  switch (p.dtype) {
    case REGARD_BFLOAT16:
      return 1;
    case REGARD_FLOAT16:
      return 2;
    case REGARD_FLOAT32:
      return p.precision == REGARD_HIGH ? 2 : 3;
    default:
      return 0;
  }
}

// Of kDepth elements; the higher one first.
template <int kParts>
struct Parts {
  __m512i part[kParts];
};

// Both elements of pairs of bfloat16, widened.
REGARD_INLINE F even_of(__m512i pairs) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16))};
}
REGARD_INLINE F odd_of(__m512i pairs) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(pairs, high))};
}

// The upper halves of two vectors of float, interleaved: their upper parts, cut.
REGARD_INLINE __m512i upper_pairs(__m512i even, __m512i odd) {
  constexpr int kFirstOrBothOthers = 0xf8;
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return _mm512_ternarylogic_epi32(_mm512_srli_epi32(even, 16), odd, high, kFirstOrBothOthers);
}

// The bfloat16 nearest to x. NaN may turn into anything.
REGARD_INLINE F nearest(F x) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  const __m512i up = _mm512_add_epi32(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x8000));
  return {_mm512_castsi512_ps(_mm512_and_si512(up, high))};
}

// Elements of two vectors, one after another. What all parts but the last leave of a NaN is NaN.
template <int kParts>
REGARD_INLINE Parts<kParts> split(F low, F high) {
  const __m512i upper_halves =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                       25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  Parts<kParts> parts;
#pragma GCC unroll 2
  for (int i = 0; i + 1 < kParts; ++i) {
    const F x = nearest(low), y = nearest(high);
    parts.part[i] =
        _mm512_permutex2var_epi16(_mm512_castps_si512(x.v), upper_halves, _mm512_castps_si512(y.v));
    low = low - x;
    high = high - y;
  }
  parts.part[kParts - 1] = (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
  return parts;
}

// n elements of bfloat16 at `from`, then zeros up to kDepth.
REGARD_INLINE __m512i load_elements(const uint16_t *from, int64_t n) {
  if (n >= kDepth) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi16((1u << std::max<int64_t>(n, 0)) - 1, from);
}
// The same of `dtype`.
template <int kParts>
REGARD_INLINE Parts<kParts> load_parts(const void *from, int64_t n, int dtype) {
  constexpr int L = kLanes<float>;
  n = std::max<int64_t>(n, 0);
  if constexpr (kParts == 1) {
    return {{load_elements(static_cast<const uint16_t *>(from), n)}};
  } else if (dtype == REGARD_FLOAT16) {
    const auto *half = static_cast<const uint16_t *>(from);
    return split<kParts>(load_float16(half, n),
                         load_float16(half + L, std::max<int64_t>(n - L, 0)));
  } else {
    const auto *single = static_cast<const float *>(from);
    return split<kParts>(load_partial(single, n),
                         load_partial(single + L, std::max<int64_t>(n - L, 0)));
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
