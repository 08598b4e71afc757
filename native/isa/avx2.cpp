// AVX2 with FMA and F16C.
#include "isa/prelude.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#define REGARD_NAMESPACE avx2
#define REGARD_NATIVE_HALF 1

namespace regard {
namespace avx2 {

constexpr const char *kName = "avx2";
constexpr int kRegisterRows[] = {0, 12, 6};

template <class T>
struct Vec;
template <>
struct Vec<float> {
  __m256 v;
};
template <>
struct Vec<double> {
  __m256d v;
};
using F = Vec<float>;
using G = Vec<double>;

template <class T>
constexpr int kLanes = 32 / sizeof(T);
struct MaskF {
  __m256 v;
};
struct MaskG {
  __m256d v;
};
template <class T>
using Mask = std::conditional_t<std::is_same_v<T, float>, MaskF, MaskG>;

// All ones in the first n lanes.
REGARD_INLINE __m256i first8(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(std::min<int64_t>(n, 8))),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
REGARD_INLINE __m256i first4(int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

REGARD_INLINE F load(const float *p) { return {_mm256_loadu_ps(p)}; }
REGARD_INLINE G load(const double *p) { return {_mm256_loadu_pd(p)}; }
REGARD_INLINE void store(float *p, F a) { _mm256_storeu_ps(p, a.v); }
REGARD_INLINE void store(double *p, G a) { _mm256_storeu_pd(p, a.v); }
REGARD_INLINE F load_partial(const float *p, int64_t n) {
  return {_mm256_maskload_ps(p, first8(n))};
}
REGARD_INLINE G load_partial(const double *p, int64_t n) {
  return {_mm256_maskload_pd(p, first4(n))};
}
REGARD_INLINE void store_partial(float *p, F a, int64_t n) {
  _mm256_maskstore_ps(p, first8(n), a.v);
}
REGARD_INLINE void store_partial(double *p, G a, int64_t n) {
  _mm256_maskstore_pd(p, first4(n), a.v);
}

template <class T>
REGARD_INLINE Vec<T> broadcast(T x) {
  if constexpr (std::is_same_v<T, float>) {
    return {_mm256_set1_ps(x)};
  } else {
    return {_mm256_set1_pd(x)};
  }
}

REGARD_INLINE F operator+(F a, F b) { return {_mm256_add_ps(a.v, b.v)}; }
REGARD_INLINE G operator+(G a, G b) { return {_mm256_add_pd(a.v, b.v)}; }
REGARD_INLINE F operator-(F a, F b) { return {_mm256_sub_ps(a.v, b.v)}; }
REGARD_INLINE G operator-(G a, G b) { return {_mm256_sub_pd(a.v, b.v)}; }
REGARD_INLINE F operator*(F a, F b) { return {_mm256_mul_ps(a.v, b.v)}; }
REGARD_INLINE G operator*(G a, G b) { return {_mm256_mul_pd(a.v, b.v)}; }
REGARD_INLINE F operator/(F a, F b) { return {_mm256_div_ps(a.v, b.v)}; }
REGARD_INLINE G operator/(G a, G b) { return {_mm256_div_pd(a.v, b.v)}; }
REGARD_INLINE F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
REGARD_INLINE G fma(G a, G b, G c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
REGARD_INLINE F max(F a, F b) { return {_mm256_max_ps(a.v, b.v)}; }
REGARD_INLINE G max(G a, G b) { return {_mm256_max_pd(a.v, b.v)}; }
REGARD_INLINE F min(F a, F b) { return {_mm256_min_ps(a.v, b.v)}; }
REGARD_INLINE G min(G a, G b) { return {_mm256_min_pd(a.v, b.v)}; }

REGARD_INLINE MaskF less(F a, F b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ)}; }
REGARD_INLINE MaskG less(G a, G b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LT_OQ)}; }
REGARD_INLINE MaskF less_equal(F a, F b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_LE_OQ)}; }
REGARD_INLINE MaskG less_equal(G a, G b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_LE_OQ)}; }
REGARD_INLINE MaskF differ(F a, F b) { return {_mm256_cmp_ps(a.v, b.v, _CMP_NEQ_UQ)}; }
REGARD_INLINE MaskG differ(G a, G b) { return {_mm256_cmp_pd(a.v, b.v, _CMP_NEQ_UQ)}; }
REGARD_INLINE MaskF operator&(MaskF a, MaskF b) { return {_mm256_and_ps(a.v, b.v)}; }
REGARD_INLINE MaskG operator&(MaskG a, MaskG b) { return {_mm256_and_pd(a.v, b.v)}; }
REGARD_INLINE MaskF operator|(MaskF a, MaskF b) { return {_mm256_or_ps(a.v, b.v)}; }
REGARD_INLINE MaskG operator|(MaskG a, MaskG b) { return {_mm256_or_pd(a.v, b.v)}; }
REGARD_INLINE bool any(MaskF m) { return _mm256_movemask_ps(m.v) != 0; }
REGARD_INLINE bool any(MaskG m) { return _mm256_movemask_pd(m.v) != 0; }
REGARD_INLINE unsigned bits(MaskF m) { return static_cast<unsigned>(_mm256_movemask_ps(m.v)); }
REGARD_INLINE unsigned bits(MaskG m) { return static_cast<unsigned>(_mm256_movemask_pd(m.v)); }
REGARD_INLINE F select(MaskF m, F a, F b) { return {_mm256_blendv_ps(b.v, a.v, m.v)}; }
REGARD_INLINE G select(MaskG m, G a, G b) { return {_mm256_blendv_pd(b.v, a.v, m.v)}; }

template <class T>
REGARD_INLINE Mask<T> nonzero(const uint8_t *bytes) {
  if constexpr (std::is_same_v<T, float>) {
    const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i *>(bytes));
    const __m256i wide = _mm256_cvtepu8_epi32(b);
    return {_mm256_castsi256_ps(_mm256_cmpgt_epi32(wide, _mm256_setzero_si256()))};
  } else {
    int four;
    memcpy(&four, bytes, sizeof four);
    const __m256i wide = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(four));
    return {_mm256_castsi256_pd(_mm256_cmpgt_epi64(wide, _mm256_setzero_si256()))};
  }
}

// Exponents of normal numbers; below the least, scale_exp2 gives 0.
REGARD_INLINE F clamp_exponent(F x) { return min(broadcast(127.0f), max(broadcast(-126.0f), x)); }
REGARD_INLINE G clamp_exponent(G x) { return min(broadcast(1023.0), max(broadcast(-1022.0), x)); }

REGARD_INLINE F fraction(F x) {
  x = clamp_exponent(x);
  return x - F{_mm256_floor_ps(x.v)};
}
REGARD_INLINE G fraction(G x) {
  x = clamp_exponent(x);
  return x - G{_mm256_floor_pd(x.v)};
}
REGARD_INLINE F scale_exp2(F p, F x) {
  const __m256i n = _mm256_cvtps_epi32(_mm256_floor_ps(clamp_exponent(x).v));
  const __m256i power = _mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23);
  p = p * F{_mm256_castsi256_ps(power)};
  return {_mm256_andnot_ps(less(x, broadcast(-126.0f)).v, p.v)};
}
REGARD_INLINE G scale_exp2(G p, G x) {
  const __m128i n = _mm256_cvtpd_epi32(_mm256_floor_pd(clamp_exponent(x).v));
  const __m256i biased = _mm256_cvtepi32_epi64(_mm_add_epi32(n, _mm_set1_epi32(1023)));
  p = p * G{_mm256_castsi256_pd(_mm256_slli_epi64(biased, 52))};
  return {_mm256_andnot_pd(less(x, broadcast(-1022.0)).v, p.v)};
}

// A guess of 12 bits, and a step of Newton's.
REGARD_INLINE F reciprocal(F x) {
  const F guess = {_mm256_rcp_ps(x.v)};
  return {_mm256_mul_ps(guess.v, _mm256_fnmadd_ps(x.v, guess.v, _mm256_set1_ps(2)))};
}
REGARD_INLINE G reciprocal(G x) { return broadcast(1.0) / x; }

REGARD_INLINE F zip_low(F a, F b) {
  return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x20)};
}
REGARD_INLINE F zip_high(F a, F b) {
  return {_mm256_permute2f128_ps(_mm256_unpacklo_ps(a.v, b.v), _mm256_unpackhi_ps(a.v, b.v), 0x31)};
}
REGARD_INLINE G zip_low(G a, G b) {
  return {_mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x20)};
}
REGARD_INLINE G zip_high(G a, G b) {
  return {_mm256_permute2f128_pd(_mm256_unpacklo_pd(a.v, b.v), _mm256_unpackhi_pd(a.v, b.v), 0x31)};
}

REGARD_INLINE F reverse(F a) {
  return {_mm256_permutevar8x32_ps(a.v, _mm256_setr_epi32(7, 6, 5, 4, 3, 2, 1, 0))};
}
REGARD_INLINE G reverse(G a) { return {_mm256_permute4x64_pd(a.v, 0x1b)}; }

// Conversions of kLanes<float> halves at most; n counts those that exist.
REGARD_INLINE __m128i load_halves(const uint16_t *p, int64_t n) {
  if (n >= 8) return _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
  uint16_t buffer[8] = {};
  memcpy(buffer, p, static_cast<size_t>(n) * sizeof *p);
  return _mm_loadu_si128(reinterpret_cast<const __m128i *>(buffer));
}
REGARD_INLINE void store_halves(uint16_t *p, __m128i halves, int64_t n) {
  if (n >= 8) return _mm_storeu_si128(reinterpret_cast<__m128i *>(p), halves);
  uint16_t buffer[8];
  _mm_storeu_si128(reinterpret_cast<__m128i *>(buffer), halves);
  memcpy(p, buffer, static_cast<size_t>(n) * sizeof *p);
}
REGARD_INLINE F load_float16(const uint16_t *p, int64_t n) {
  return {_mm256_cvtph_ps(load_halves(p, n))};
}
REGARD_INLINE F load_bfloat16(const uint16_t *p, int64_t n) {
  const __m256i wide = _mm256_cvtepu16_epi32(load_halves(p, n));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(wide, 16))};
}
REGARD_INLINE void store_float16(uint16_t *p, F a, int64_t n) {
  store_halves(p, _mm256_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), n);
}
REGARD_INLINE void store_bfloat16(uint16_t *p, F a, int64_t n) {
  const __m256i bits = _mm256_castps_si256(a.v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i round = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, round), 16);
  const __m256i half =
      _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), _mm256_castps_si256(differ(a, a).v));
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(half, half), 0x08);
  store_halves(p, _mm256_castsi256_si128(packed), n);
}

}  // namespace avx2
}  // namespace regard

#include "kernel/kernel.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace regard {
const Kernels avx2_kernels = {avx2::kName,         avx2::forward,  avx2::backward,
                              avx2::scores,        avx2::readouts, avx2::graph_forward,
                              avx2::graph_backward};
}
#endif
