// Any machine: the compiler's own vectors of 16 bytes (SSE2 on x86-64, NEON on AArch64).
#include "isa/prelude.h"

#define REGARD_NAMESPACE baseline

namespace regard {
namespace baseline {

constexpr const char *kName = "baseline";
#if defined(__aarch64__)
constexpr int kRegisterRows[] = {0, 12, 12, 8, 6};
#else
constexpr int kRegisterRows[] = {0, 8, 6};
#endif

typedef float Float4 __attribute__((vector_size(16)));
typedef double Double2 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef int64_t Long2 __attribute__((vector_size(16)));

template <class T>
constexpr int kLanes = 16 / sizeof(T);

// The compiler's vector of T, and of integers of the same size.
template <class T>
using Raw = std::conditional_t<std::is_same_v<T, float>, Float4, Double2>;
template <class T>
using Bits = std::conditional_t<std::is_same_v<T, float>, Int4, Long2>;

template <class T>
struct Vec {
  Raw<T> v;
};
template <class T>
struct Mask {
  Bits<T> v;
};

template <class T>
REGARD_INLINE Vec<T> load_partial(const T *p, int64_t n) {
  Vec<T> a = {};
  memcpy(&a.v, p, static_cast<size_t>(std::min<int64_t>(n, kLanes<T>)) * sizeof(T));
  return a;
}
template <class T>
REGARD_INLINE void store_partial(T *p, Vec<T> a, int64_t n) {
  memcpy(p, &a.v, static_cast<size_t>(std::min<int64_t>(n, kLanes<T>)) * sizeof(T));
}
template <class T>
REGARD_INLINE Vec<T> load(const T *p) {
  Vec<T> a;
  memcpy(&a.v, p, sizeof a.v);
  return a;
}
template <class T>
REGARD_INLINE void store(T *p, Vec<T> a) {
  memcpy(p, &a.v, sizeof a.v);
}
template <class T>
REGARD_INLINE Vec<T> broadcast(T x) {
  return {x - Raw<T>{}};
}

template <class T>
REGARD_INLINE Vec<T> operator+(Vec<T> a, Vec<T> b) {
  return {a.v + b.v};
}
template <class T>
REGARD_INLINE Vec<T> operator-(Vec<T> a, Vec<T> b) {
  return {a.v - b.v};
}
template <class T>
REGARD_INLINE Vec<T> operator*(Vec<T> a, Vec<T> b) {
  return {a.v * b.v};
}
template <class T>
REGARD_INLINE Vec<T> operator/(Vec<T> a, Vec<T> b) {
  return {a.v / b.v};
}
template <class T>
REGARD_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return {a.v * b.v + c.v};
}

template <class T>
REGARD_INLINE Mask<T> less(Vec<T> a, Vec<T> b) {
  return {a.v < b.v};
}
template <class T>
REGARD_INLINE Mask<T> less_equal(Vec<T> a, Vec<T> b) {
  return {a.v <= b.v};
}
template <class T>
REGARD_INLINE Mask<T> differ(Vec<T> a, Vec<T> b) {
  return {a.v != b.v};
}
template <class T>
REGARD_INLINE Mask<T> operator&(Mask<T> a, Mask<T> b) {
  return {a.v & b.v};
}
template <class T>
REGARD_INLINE Mask<T> operator|(Mask<T> a, Mask<T> b) {
  return {a.v | b.v};
}
template <class T>
REGARD_INLINE bool any(Mask<T> m) {
  uint64_t words[2];
  memcpy(words, &m.v, sizeof words);
  return (words[0] | words[1]) != 0;
}
template <class T>
REGARD_INLINE unsigned bits(Mask<T> m) {
  unsigned found = 0;
  for (int i = 0; i < kLanes<T>; ++i) found |= (m.v[i] ? 1u : 0u) << i;
  return found;
}
template <class T>
REGARD_INLINE Vec<T> select(Mask<T> m, Vec<T> a, Vec<T> b) {
  return {(Raw<T>)((m.v & (Bits<T>)a.v) | (~m.v & (Bits<T>)b.v))};
}
template <class T>
REGARD_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
  return select(less(b, a), a, b);
}
template <class T>
REGARD_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
  return select(less(a, b), a, b);
}

template <class T>
REGARD_INLINE Mask<T> nonzero(const uint8_t *bytes) {
  Bits<T> wide;
  for (int i = 0; i < kLanes<T>; ++i) wide[i] = bytes[i];
  return {wide != Bits<T>{}};
}

template <class T>
struct Exponent;
template <>
struct Exponent<float> {
  static constexpr float least = -126, most = 127, magic = 12582912.0f;
  static constexpr int bias = 127, bits = 23;
};
template <>
struct Exponent<double> {
  static constexpr double least = -1022, most = 1023, magic = 6755399441055744.0;
  static constexpr int bias = 1023, bits = 52;
};

// A whole number in [x - 1, x]: rounding x - 1/2 to the nearest needs no instruction of its own.
template <class T>
REGARD_INLINE Vec<T> whole(Vec<T> x) {
  using E = Exponent<T>;
  x = min(broadcast<T>(E::most), max(broadcast<T>(E::least), x)) - broadcast<T>(T(0.5));
  const Vec<T> magic = broadcast<T>(E::magic);
  return max(broadcast<T>(E::least), (x + magic) - magic);
}
template <class T>
REGARD_INLINE Vec<T> fraction(Vec<T> x) {
  using E = Exponent<T>;
  return min(broadcast<T>(E::most), max(broadcast<T>(E::least), x)) - whole(x);
}
template <class T>
REGARD_INLINE Vec<T> scale_exp2(Vec<T> p, Vec<T> x) {
  using E = Exponent<T>;
  // The bits of magic + n, less those of magic, are n.
  const Raw<T> magic = broadcast<T>(E::magic).v;
  const Bits<T> n = (Bits<T>)(whole(x).v + magic) - (Bits<T>)magic;
  const Vec<T> power = {(Raw<T>)((n + E::bias) << E::bits)};
  return select(less(x, broadcast<T>(E::least)), broadcast<T>(0), p * power);
}

template <class T>
REGARD_INLINE Vec<T> reciprocal(Vec<T> x) {
  return broadcast<T>(1) / x;
}

template <class T>
REGARD_INLINE Vec<T> zip_low(Vec<T> a, Vec<T> b) {
  if constexpr (std::is_same_v<T, float>) {
    return {Float4{a.v[0], b.v[0], a.v[1], b.v[1]}};
  } else {
    return {Double2{a.v[0], b.v[0]}};
  }
}
template <class T>
REGARD_INLINE Vec<T> zip_high(Vec<T> a, Vec<T> b) {
  if constexpr (std::is_same_v<T, float>) {
    return {Float4{a.v[2], b.v[2], a.v[3], b.v[3]}};
  } else {
    return {Double2{a.v[1], b.v[1]}};
  }
}

template <class T>
REGARD_INLINE Vec<T> reverse(Vec<T> a) {
  if constexpr (std::is_same_v<T, float>) {
    return {Float4{a.v[3], a.v[2], a.v[1], a.v[0]}};
  } else {
    return {Double2{a.v[1], a.v[0]}};
  }
}

}  // namespace baseline
}  // namespace regard

#include "kernel/kernel.h"

namespace regard {
const Kernels baseline_kernels = {
    baseline::kName,    baseline::forward,       baseline::backward,      baseline::scores,
    baseline::readouts, baseline::graph_forward, baseline::graph_backward};
}
