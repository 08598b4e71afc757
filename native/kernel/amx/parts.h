// Elements as sums of bfloat16, which the matrix unit multiplies: a bfloat16 is one part; a float16
// is exactly two, and a float32 two but for 2^-17 of it.
//
// Of two such sums the products of parts are added up but for that of both lower parts, which is
// within 2^-18 of the whole. Lower parts below 1.2e-38 count as zero: no float16 has any, and a
// float32 below 2^-110 keeps 8 bits of its mantissa.
#ifndef REGARD_KERNEL_AMX_PARTS_H
#define REGARD_KERNEL_AMX_PARTS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Depth of a tile: elements of a row of the left side.
constexpr int64_t kDepth = kTileBytes / sizeof(uint16_t);

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

// Elements of two vectors, one after another.
REGARD_INLINE Parts<2> split(F low, F high) {
  const __m512i top = (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
  const __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(top));
  const __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(top, 1));
  const F low_rest = low - even_of(first), high_rest = high - even_of(second);
  return {{top, (__m512i)_mm512_cvtne2ps_pbh(high_rest.v, low_rest.v)}};
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
    return split(load_float16(half, n), load_float16(half + L, std::max<int64_t>(n - L, 0)));
  } else {
    const auto *single = static_cast<const float *>(from);
    return split(load_partial(single, n), load_partial(single + L, std::max<int64_t>(n - L, 0)));
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
