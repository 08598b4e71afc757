// Scores of few queries: a product whose lanes would be almost empty is taken key by key instead,
// which reads the keys in the order in which they lie.
#ifndef REGARD_KERNEL_DOTS_H
#define REGARD_KERNEL_DOTS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Up to so many rows of a block are few.
constexpr int kFew = 4;

// Sums of the lanes of `count` vectors, a power of 2: lane i of the result belongs to parts[i].
template <class T, int kCount = kLanes<T>>
REGARD_INLINE Vec<T> sum_each(Vec<T> *parts) {
  if constexpr (kCount == 1) {
    return parts[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kCount / 2; ++i) {
      const Vec<T> low = zip_low(parts[i], parts[i + kCount / 2]);
      parts[i] = low + zip_high(parts[i], parts[i + kCount / 2]);
    }
    return sum_each<T, kCount / 2>(parts);
  }
}

// to[j * width] = keys[j] . query for j < count; `query` is padded to whole vectors, keys are not.
template <class T>
REGARD_NOINLINE void dots(Operand<T> keys, const T *query, int64_t size, int64_t count, T *to,
                          int64_t width) {
  constexpr int L = kLanes<T>;
  const int64_t whole = size / L * L;
  Vec<T> parts[L];
  for (int64_t j = 0; j < count; j += L) {
    const int there = static_cast<int>(std::min<int64_t>(L, count - j));
    for (int i = 0; i < L; ++i) {
      Vec<T> sum = broadcast<T>(0);
      if (i < there) {
        const T *key = keys.data + (j + i) * keys.stride;
        for (int64_t d = 0; d < whole; d += L) sum = fma(load(key + d), load(query + d), sum);
        if (whole < size) {
          sum = fma(load_partial(key + whole, size - whole), load(query + whole), sum);
        }
      }
      parts[i] = sum;
    }
    T sums[L];
    store(sums, sum_each<T>(parts));
    for (int i = 0; i < there; ++i) to[(j + i) * width] = sums[i];
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
