// The vocabulary of AVX-512 (F, BW, DQ and VL), in the namespace and the target region of whoever
// includes it.
#ifndef REGARD_ISA_AVX512_H
#define REGARD_ISA_AVX512_H

#define REGARD_NATIVE_HALF 1

namespace regard {
namespace REGARD_NAMESPACE {

constexpr int kRegisterRows[] = {0, 12, 12, 8, 6};

template <class T>
struct Vec;
template <>
struct Vec<float> {
  __m512 v;
};
template <>
struct Vec<double> {
  __m512d v;
};
using F = Vec<float>;
using G = Vec<double>;

template <class T>
constexpr int kLanes = 64 / sizeof(T);
template <class T>
using Mask = std::conditional_t<std::is_same_v<T, float>, __mmask16, __mmask8>;

REGARD_INLINE __mmask16 first16(int64_t n) { return n >= 16 ? 0xffff : (1u << n) - 1; }
REGARD_INLINE __mmask8 first8(int64_t n) { return n >= 8 ? 0xff : (1u << n) - 1; }

REGARD_INLINE F load(const float *p) { return {_mm512_loadu_ps(p)}; }
REGARD_INLINE G load(const double *p) { return {_mm512_loadu_pd(p)}; }
REGARD_INLINE void store(float *p, F a) { _mm512_storeu_ps(p, a.v); }
REGARD_INLINE void store(double *p, G a) { _mm512_storeu_pd(p, a.v); }
REGARD_INLINE F load_partial(const float *p, int64_t n) {
  return {_mm512_maskz_loadu_ps(first16(n), p)};
}
REGARD_INLINE G load_partial(const double *p, int64_t n) {
  return {_mm512_maskz_loadu_pd(first8(n), p)};
}
REGARD_INLINE void store_partial(float *p, F a, int64_t n) {
  _mm512_mask_storeu_ps(p, first16(n), a.v);
}
REGARD_INLINE void store_partial(double *p, G a, int64_t n) {
  _mm512_mask_storeu_pd(p, first8(n), a.v);
}

template <class T>
REGARD_INLINE Vec<T> broadcast(T x) {
  if constexpr (std::is_same_v<T, float>) {
    return {_mm512_set1_ps(x)};
  } else {
    return {_mm512_set1_pd(x)};
  }
}

REGARD_INLINE F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
REGARD_INLINE G operator+(G a, G b) { return {_mm512_add_pd(a.v, b.v)}; }
REGARD_INLINE F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
REGARD_INLINE G operator-(G a, G b) { return {_mm512_sub_pd(a.v, b.v)}; }
REGARD_INLINE F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
REGARD_INLINE G operator*(G a, G b) { return {_mm512_mul_pd(a.v, b.v)}; }
REGARD_INLINE F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
REGARD_INLINE G operator/(G a, G b) { return {_mm512_div_pd(a.v, b.v)}; }
REGARD_INLINE F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
REGARD_INLINE G fma(G a, G b, G c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
REGARD_INLINE F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
REGARD_INLINE G max(G a, G b) { return {_mm512_max_pd(a.v, b.v)}; }
REGARD_INLINE F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
REGARD_INLINE G min(G a, G b) { return {_mm512_min_pd(a.v, b.v)}; }

REGARD_INLINE __mmask16 less(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ); }
REGARD_INLINE __mmask8 less(G a, G b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LT_OQ); }
REGARD_INLINE __mmask16 less_equal(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ); }
REGARD_INLINE __mmask8 less_equal(G a, G b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_LE_OQ); }
REGARD_INLINE __mmask16 differ(F a, F b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_NEQ_UQ); }
REGARD_INLINE __mmask8 differ(G a, G b) { return _mm512_cmp_pd_mask(a.v, b.v, _CMP_NEQ_UQ); }
REGARD_INLINE bool any(unsigned mask) { return mask != 0; }
REGARD_INLINE unsigned bits(unsigned mask) { return mask; }
REGARD_INLINE F select(__mmask16 m, F a, F b) { return {_mm512_mask_blend_ps(m, b.v, a.v)}; }
REGARD_INLINE G select(__mmask8 m, G a, G b) { return {_mm512_mask_blend_pd(m, b.v, a.v)}; }

template <class T>
REGARD_INLINE Mask<T> nonzero(const uint8_t *bytes) {
  if constexpr (std::is_same_v<T, float>) {
    const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i *>(bytes));
    return _mm_test_epi8_mask(b, b);
  } else {
    const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(bytes));
    return static_cast<__mmask8>(_mm_test_epi8_mask(b, b));
  }
}

constexpr int kDown = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
REGARD_INLINE F fraction(F x) { return {_mm512_reduce_ps(x.v, kDown)}; }
REGARD_INLINE G fraction(G x) { return {_mm512_reduce_pd(x.v, kDown)}; }
REGARD_INLINE F scale_exp2(F p, F x) { return {_mm512_scalef_ps(p.v, x.v)}; }
REGARD_INLINE G scale_exp2(G p, G x) { return {_mm512_scalef_pd(p.v, x.v)}; }

// A guess of 14 bits, and a step of Newton's.
REGARD_INLINE F reciprocal(F x) {
  const F guess = {_mm512_rcp14_ps(x.v)};
  return {_mm512_mul_ps(guess.v, _mm512_fnmadd_ps(x.v, guess.v, _mm512_set1_ps(2)))};
}
REGARD_INLINE G reciprocal(G x) { return broadcast(1.0) / x; }

REGARD_INLINE F zip_low(F a, F b) {
  const __m512i index = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  return {_mm512_permutex2var_ps(a.v, index, b.v)};
}
REGARD_INLINE F zip_high(F a, F b) {
  const __m512i index =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  return {_mm512_permutex2var_ps(a.v, index, b.v)};
}
REGARD_INLINE G zip_low(G a, G b) {
  const __m512i index = _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11);
  return {_mm512_permutex2var_pd(a.v, index, b.v)};
}
REGARD_INLINE G zip_high(G a, G b) {
  const __m512i index = _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15);
  return {_mm512_permutex2var_pd(a.v, index, b.v)};
}

REGARD_INLINE F reverse(F a) {
  const __m512i order = _mm512_setr_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  return {_mm512_permutexvar_ps(order, a.v)};
}
REGARD_INLINE G reverse(G a) {
  return {_mm512_permutexvar_pd(_mm512_setr_epi64(7, 6, 5, 4, 3, 2, 1, 0), a.v)};
}

// Conversions of kLanes<float> halves at most; n counts those that exist.
REGARD_INLINE __m256i load_halves(const uint16_t *p, int64_t n) {
  // Masked loads of halves cost more than one instruction.
  if (n >= 16) return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
  return _mm256_maskz_loadu_epi16(first16(n), p);
}
REGARD_INLINE F load_float16(const uint16_t *p, int64_t n) {
  return {_mm512_cvtph_ps(load_halves(p, n))};
}
REGARD_INLINE F load_bfloat16(const uint16_t *p, int64_t n) {
  const __m512i wide = _mm512_cvtepu16_epi32(load_halves(p, n));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
REGARD_INLINE void store_float16(uint16_t *p, F a, int64_t n) {
  const __m256i half = _mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  _mm256_mask_storeu_epi16(p, first16(n), half);
}
REGARD_INLINE void store_bfloat16(uint16_t *p, F a, int64_t n) {
  const __m512i bits = _mm512_castps_si512(a.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i round = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, round), 16);
  const __m512i half = _mm512_mask_blend_epi32(differ(a, a), rounded, _mm512_set1_epi32(0x7fc0));
  _mm256_mask_storeu_epi16(p, first16(n), _mm512_cvtepi32_epi16(half));
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
