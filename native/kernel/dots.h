// Scores key by key, with elements in the lanes: of few queries, since a product would leave its
// lanes almost empty and this reads the keys in the order in which they lie; and additive ones.
#ifndef REGARD_KERNEL_DOTS_H
#define REGARD_KERNEL_DOTS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Up to so many rows of a block are few.
constexpr int kFew = 8;
// With up to so many rows, memory is the limit: so many keys at a time, the next already on their
// way.
constexpr int kStepRows = 16, kStepKeys = 24, kStepValues = 16;

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

// How a vector of elements from `d` on of a key and a query joins the sum that is their score.
struct DotProduct {
  template <class T>
  REGARD_INLINE Vec<T> operator()(Vec<T> key, Vec<T> query, Vec<T> sum, int64_t) const {
    return fma(key, query, sum);
  }
};

// parts[i * R + r] = keys[i] . queries[r] for K keys and R queries, lanes not yet summed up.
// Queries are padded to whole vectors, keys are not. Each line of a key asks for the one `ahead`
// elements behind it, unless that is 0: in bursts they would stop the processor.
template <class T, int K, int R, class S, class Join>
REGARD_INLINE void add_dots(const S *const *keys, int64_t ahead, const T *queries, int64_t size,
                            Vec<T> *parts, Join join) {
  constexpr int64_t kLine = 64 / sizeof(S);
  constexpr int L = kLanes<T>;
  const int64_t whole = size / L * L, stride = padded<T>(size);
  Vec<T> sum[K * R];
#pragma GCC unroll 16
  for (int i = 0; i < K * R; ++i) sum[i] = broadcast<T>(0);
  for (int64_t d = 0; d < whole; d += L) {
#pragma GCC unroll 4
    for (int i = 0; i < K; ++i) {
      const Vec<T> key = load_as(keys[i] + d);
      if (ahead && d % kLine == 0) __builtin_prefetch(keys[i] + d + ahead);
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        sum[i * R + r] = join(key, load(queries + r * stride + d), sum[i * R + r], d);
      }
    }
  }
  if (whole < size) {
    for (int i = 0; i < K; ++i) {
      const Vec<T> key = load_as_partial(keys[i] + whole, size - whole);
      for (int r = 0; r < R; ++r) {
        sum[i * R + r] = join(key, load(queries + r * stride + whole), sum[i * R + r], whole);
      }
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < K * R; ++i) parts[i] = sum[i];
}

// How many keys, of elements S, are asked for before they are read.
template <class S>
constexpr int kKeysAhead = 16;

// to[j * width + r] = keys[j] . queries[r] for j < count and r < R. If width is R, whole vectors
// are written.
template <class T, int R, class S, class Join>
REGARD_NOINLINE void dots(Operand<S> keys, const T *queries, int64_t size, int64_t count, T *to,
                          int64_t width, Join join) {
  constexpr int L = kLanes<T>, kKeys = L / R, kStep = std::min(4, kKeys);
  Vec<T> parts[L];
  for (int64_t j = 0; j < count; j += kKeys) {
    const S *key[kKeys];
    for (int i = 0; i < kKeys; ++i) key[i] = keys.data + std::min(j + i, count - 1) * keys.stride;
    for (int i = 0; i < kKeys; i += kStep) {
      add_dots<T, kStep, R>(key + i, keys.ahead, queries, size, parts + i * R, join);
    }
    const Vec<T> all = sum_each<T>(parts);
    if (width == R) {
      store(to + j * R, all);
      continue;
    }
    T sums[L];
    store(sums, all);
    for (int i = 0; i < kKeys && j + i < count; ++i) {
      for (int r = 0; r < R; ++r) to[(j + i) * width + r] = sums[i * R + r];
    }
  }
}

// Queries that are taken at a time; how many, of up to so many rows.
template <class T>
constexpr int kGroup = std::min(4, kLanes<T>);
template <class T>
inline int group_of(int rows) {
  return rows <= 2 ? rows : kGroup<T>;
}

// The same for `rows` queries, a few of them at a time; those beyond `rows` that are read repeat
// the last one.
template <class T, class S, class Join = DotProduct>
inline void few_dots(Operand<S> keys, const T *queries, int64_t size, int64_t count, int rows,
                     T *to, int64_t width, Join join = {}) {
  const int64_t stride = padded<T>(size);
  if (width > group_of<T>(rows)) std::fill_n(to, count * width, T(0));
  for (int r = 0; r < rows; r += kGroup<T>) {
    const T *query = queries + r * stride;
    if (rows - r == 1) {
      dots<T, 1>(keys, query, size, count, to + r, width, join);
    } else if (rows - r == 2) {
      dots<T, 2>(keys, query, size, count, to + r, width, join);
    } else {
      dots<T, kGroup<T>>(keys, query, size, count, to + r, width, join);
    }
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
