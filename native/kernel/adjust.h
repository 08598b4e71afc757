// What turns products of queries and keys into scores: scale, soft cap, bias.
#ifndef REGARD_KERNEL_ADJUST_H
#define REGARD_KERNEL_ADJUST_H

namespace regard {
namespace REGARD_NAMESPACE {

// Whether scores are the scaled products themselves: then the scale is left to the exponential.
inline bool plain(const regard_problem &p) { return p.softcap == 0 && !p.bias.data; }

// Whether a bias, or its gradient, has one entry for each distance of key and query.
inline bool by_distance(const regard_grid &bias) { return bias.query_stride < 0; }

// Entries of a bias by distance: distances -(Lq - 1) ... Lk - 1.
inline int64_t distances(const regard_problem &p) {
  return std::max<int64_t>(p.queries + p.keys - 1, 0);
}

// The soft cap of `count` products. `slope`, if not null, gets its derivative.
template <class T>
inline void bend(const regard_problem &p, int64_t count, T *scores, T *slope) {
  const Vec<T> one = broadcast<T>(1), cap = broadcast(static_cast<T>(p.softcap));
  const Vec<T> per_cap = broadcast(static_cast<T>(fabs(p.scale) / p.softcap));
  for (int64_t i = 0; i < count; i += kLanes<T>) {
    const Vec<T> bent = tanh(load(scores + i) * per_cap);
    if (slope) store(slope + i, one - bent * bent);
    store(scores + i, cap * bent);
  }
}

// A finite score with its bias counts as kLeastScore below that: where all are, as in a row that
// -1e9 or the lowest number hides as a whole, logarithms of sums would be too large to hold what
// weights are. Nowhere else does it change a weight.
template <class T>
constexpr T kLeastScore = -131072;
template <class T>
REGARD_INLINE Vec<T> raised(Vec<T> score) {
  const auto finite = less(broadcast(-kInfinity<T>), score);
  return select(finite, max(broadcast(kLeastScore<T>), score), score);
}
template <class T>
REGARD_INLINE Vec<T> biased(Vec<T> score, Vec<T> factor, Vec<T> bias) {
  return raised<T>(fma(score, factor, bias));
}

// `factor` times scores [key][row] of rows r, r + 1, …, one in each lane, and `count` keys from
// `begin` on, plus their bias, which is transposed in squares that stay in registers.
template <class T>
inline void add_bias(const regard_problem &p, const Rows<T> &rows, int r, int64_t begin,
                     int64_t count, T factor, T *scores) {
  constexpr int L = kLanes<T>;
  const regard_grid &b = p.bias;
  const int64_t element = element_size(p.bias_dtype), step = b.key_stride ? element : 0;
  const char *from[L];
  for (int i = 0; i < L; ++i) {
    const int64_t at = rows.batch * b.batch_stride + rows.head[r + i] * b.head_stride +
                       rows.query[r + i] * b.query_stride + begin * b.key_stride;
    from[i] = static_cast<const char *>(b.data) + at * element;
  }
  const Vec<T> f = broadcast(factor);
  for (int64_t j = 0; j < count; j += L) {
    const int64_t there = step ? std::min<int64_t>(L, count - j) : 1;
    Vec<T> square[L];
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      const char *at = from[i] + j * step;
      square[i] = widen<T>(at, there, p.bias_dtype);
      // The next tile: rows are too far apart for the processor to see a stream in them.
      __builtin_prefetch(at + count * step);
    }
    transpose_registers<T>(square);
    if (!step) std::fill_n(square, L, square[0]);
    T *to = scores + j * rows.width;
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (j + i >= count) break;
      store(to + i * rows.width, biased<T>(load(to + i * rows.width), f, square[i]));
    }
  }
}

// Whether rows r, r + 1, … of a vector are as many queries of one head, one after the other.
template <class T>
inline bool in_order(const Rows<T> &rows, int r) {
  constexpr int kLast = kLanes<T> - 1;
  return rows.query[r + kLast] == rows.query[r] + kLast && rows.head[r + kLast] == rows.head[r];
}

// As add_bias, by distance, for rows in order: the entries that a key's lanes need lie side by
// side.
template <class T>
inline void add_distances(const regard_problem &p, const Rows<T> &rows, int r, int64_t begin,
                          int64_t count, T factor, T *scores) {
  const regard_grid &b = p.bias;
  const T *from = static_cast<const T *>(b.data) + rows.batch * b.batch_stride +
                  rows.head[r] * b.head_stride - rows.query[r] - (kLanes<T> - 1) + begin;
  const Vec<T> f = broadcast(factor);
  for (int64_t j = 0; j < count; ++j) {
    T *to = scores + j * rows.width;
    store(to, biased<T>(load(to), f, reverse(load(from + j))));
  }
}

// Products [key][row] of keys [begin, end) become scores. `slope`, if not null, gets the derivative
// of the soft cap.
template <class T>
inline void adjust(const regard_problem &p, const Rows<T> &rows, int64_t begin, int64_t end,
                   T *scores, T *slope = nullptr) {
  const bool bends = p.softcap > 0;
  if (bends) bend(p, (end - begin) * rows.width, scores, slope);
  if (!p.bias.data) return;
  const T factor = bends ? T(1) : static_cast<T>(fabs(p.scale));
  for (int r = 0; r < rows.width; r += kLanes<T>) {
    const auto add = by_distance(p.bias) && in_order(rows, r) ? add_distances<T> : add_bias<T>;
    add(p, rows, r, begin, end - begin, factor, scores + r);
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
