// Elementary functions of vectors.
#ifndef REGARD_KERNEL_MATH_H
#define REGARD_KERNEL_MATH_H

namespace regard {
namespace REGARD_NAMESPACE {

constexpr double kLog2e = 1.44269504088896340736;
constexpr double kLn2 = 0.69314718055994530942;

template <class T>
constexpr T kInfinity = std::numeric_limits<T>::infinity();

// 2^r on [0, 1] with the least relative error (Remez): 7.5e-8 for float, 3e-18 for double.
template <class T>
struct Exp2Polynomial;
template <>
struct Exp2Polynomial<float> {
  static constexpr float c[] = {0.999999925063759935f,   0.693153073207096229f,
                                0.240153616982723578f,   0.0558263182316833768f,
                                0.00898933987659873577f, 0.00187757676565801496f};
};
template <>
struct Exp2Polynomial<double> {
  static constexpr double c[] = {
      0.999999999999999997,    0.693147180559946235,     0.240226506959054712,
      0.0555041086657111632,   0.00961812909879244896,   0.00133335586615834706,
      0.000154035114462742881, 0.0000152531902527511925, 1.320819344985004e-6,
      1.02544577142324723e-7,  6.5544557738570504e-9,    6.27243695713783512e-10};
};

template <class T, size_t N>
REGARD_INLINE Vec<T> polynomial(const T (&c)[N], Vec<T> x) {
  Vec<T> sum = broadcast<T>(c[N - 1]);
#pragma GCC unroll 16
  for (int i = static_cast<int>(N) - 2; i >= 0; --i) sum = fma(sum, x, broadcast<T>(c[i]));
  return sum;
}

// 2^x: exactly 0 for x = -inf, NaN for NaN.
template <class T>
REGARD_INLINE Vec<T> exp2(Vec<T> x) {
  return scale_exp2(polynomial(Exp2Polynomial<T>::c, fraction(x)), x);
}

// tanh near 0, where 1 - 2 / (exp(2x) + 1) would lose its digits: x + x^3 P(x^2), after Cephes.
REGARD_INLINE Vec<float> tanh_small(Vec<float> x) {
  constexpr float p[] = {-3.33332819422e-1f, 1.33314422036e-1f, -5.37397155531e-2f,
                         2.06390887954e-2f, -5.70498872745e-3f};
  const Vec<float> z = x * x;
  return fma(polynomial(p, z) * z, x, x);
}
REGARD_INLINE Vec<double> tanh_small(Vec<double> x) {
  constexpr double p[] = {-1.61468768441708447952e3, -9.92877231001918586564e1,
                          -9.64399179425052238628e-1};
  constexpr double q[] = {4.84406305325125486048e3, 2.23548839060100448583e3,
                          1.12811678491632931402e2, 1.0};
  const Vec<double> z = x * x;
  return fma(z * (polynomial(p, z) / polynomial(q, z)), x, x);
}

template <class T>
REGARD_INLINE Vec<T> tanh(Vec<T> x) {
  const Vec<T> one = broadcast<T>(1), zero = broadcast<T>(0);
  const Vec<T> size = max(zero - x, x);
  const Vec<T> power = exp2(min(broadcast<T>(60), size) * broadcast<T>(T(2 * kLog2e)));
  const Vec<T> large = one - broadcast<T>(2) / (power + one);
  const Vec<T> signed_large = select(less(x, zero), zero - large, large);
  return select(less(size, broadcast<T>(T(0.625))), tanh_small(x), signed_large);
}

// Sum of the lanes, in their order.
template <class T>
REGARD_INLINE T sum_lanes(Vec<T> a) {
  T lanes[kLanes<T>];
  store(lanes, a);
  T sum = 0;
  for (int i = 0; i < kLanes<T>; ++i) sum += lanes[i];
  return sum;
}

// The lanes joined in halves.
template <class T, class Join>
REGARD_INLINE T join_lanes(Vec<T> a, Join join) {
  T lanes[kLanes<T>];
  store(lanes, a);
#pragma GCC unroll 4
  for (int n = kLanes<T> / 2; n; n /= 2) {
    for (int i = 0; i < n; ++i) lanes[i] = join(lanes[i], lanes[i + n]);
  }
  return lanes[0];
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
