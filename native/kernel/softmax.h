// The online softmax of a block of rows, one row a lane.
#ifndef REGARD_KERNEL_SOFTMAX_H
#define REGARD_KERNEL_SOFTMAX_H

namespace regard {
namespace REGARD_NAMESPACE {

// Weights [key][width] as they are.
template <class T>
struct PlainWeights {
  T *to;
  int width;

  REGARD_INLINE void put(int64_t j, int r, Vec<T> weight) const {
    store(to + j * width + r, weight);
  }
  // Of keys j and j + 1.
  REGARD_INLINE void put(int64_t j, int r, Vec<T> weight, Vec<T> next) const {
    put(j, r, weight);
    put(j + 1, r, next);
  }
};

template <class T>
struct Softmax {
  T unit;                // scores times unit are powers of 2
  T pivot[kBlock<T>];    // near the largest score so far
  T sum[kBlock<T>];      // of 2^(unit * (score - pivot))
  T rescale[kBlock<T>];  // what the last tile's move of the pivot makes of what was summed before
  T most[kBlock<T>];     // the largest score of the last tile

  void reset(T score_unit, int width) {
    unit = score_unit;
    for (int r = 0; r < width; ++r) {
      pivot[r] = -kInfinity<T>;
      sum[r] = 0;
      rescale[r] = 1;
    }
  }

  // Weights of scores [keys][width], not normalised, are put into `to`, whose memory may be that of
  // the scores. Returns whether some row must be rescaled.
  template <class To>
  bool take(const T *scores, int64_t keys, int width, To to) {
    bool rescaled = false;
    for (int r = 0; r < width; r += kLanes<T>) {
      rescaled |= take_lanes(scores + r, keys, width, r, to);
    }
    return rescaled;
  }

  // The same in place for `group` rows, a power of 2, whose scores lie side by side [key][group].
  // Memory behind them is written, up to whole vectors.
  bool take_group(T *scores, int64_t keys, int group) {
    constexpr int L = kLanes<T>;
    const int64_t count = keys * group, whole = padded<T>(count);
    std::fill(scores + count, scores + whole, -kInfinity<T>);
    Vec<T> top = broadcast(-kInfinity<T>), total = broadcast<T>(0);
    for (int64_t i = 0; i < whole; i += L) top = max(load(scores + i), top);
    T lanes[L], folded[L];
    store(lanes, top);
    std::fill_n(folded, L, -kInfinity<T>);
    for (int i = 0; i < L; ++i) folded[i % group] = std::max(folded[i % group], lanes[i]);
    const Rise risen = rise(load(folded), 0);

    store(lanes, risen.shift);
    for (int i = group; i < L; ++i) lanes[i] = lanes[i - group];
    const Vec<T> u = broadcast(unit), shift = load(lanes);
    for (int64_t i = 0; i < whole; i += L) {
      const Vec<T> weight = exp2(fma(load(scores + i), u, shift));
      total = total + weight;
      store(scores + i, weight);
    }
    store(lanes, total);
    std::fill_n(folded, L, T(0));
    for (int i = 0; i < L; ++i) folded[i % group] += lanes[i];
    store(sum, fma(load(sum), risen.factor, load(folded)));
    return risen.any;
  }

 protected:
  // The pivot moves only when the largest score has left it this many powers of 2 behind: exact all
  // the same, and most tiles rescale nothing.
  static constexpr T kSlack = 8;

  // Of one vector of rows.
  REGARD_INLINE static Vec<T> largest(const T *scores, int64_t keys, int width) {
    const Vec<T> lowest = broadcast(-kInfinity<T>);
    Vec<T> top[4] = {lowest, lowest, lowest, lowest};
    int64_t j = 0;
    for (; j + 4 <= keys; j += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) top[i] = max(load(scores + (j + i) * width), top[i]);
    }
    for (; j < keys; ++j) top[0] = max(load(scores + j * width), top[0]);
    return max(max(top[0], top[1]), max(top[2], top[3]));
  }

 private:
  struct Rise {
    bool any;
    Vec<T> shift;   // to be added to unit * score
    Vec<T> factor;  // what becomes of the sums so far
  };

  // Moves the pivots of the rows from r on, if their largest scores have left them behind.
  REGARD_INLINE Rise rise(Vec<T> largest, int r) {
    const Vec<T> lowest = broadcast(-kInfinity<T>), zero = broadcast<T>(0), u = broadcast(unit);
    const Vec<T> old = load(pivot + r);
    const auto rises = less(fma(old, u, broadcast(kSlack)), largest * u);
    const Vec<T> now = select(rises, largest, old);
    // A row that has seen nothing keeps weights 2^(-inf - 0) = 0.
    const Vec<T> shift = zero - select(differ(now, lowest), now, zero) * u;
    const Vec<T> factor = select(rises, exp2(fma(old, u, shift)), broadcast<T>(1));
    store(most + r, largest);
    store(rescale + r, factor);
    store(pivot + r, now);
    return {any(rises), shift, factor};
  }

  template <class To>
  REGARD_INLINE bool take_lanes(const T *scores, int64_t keys, int width, int r, To to) {
    const Vec<T> zero = broadcast<T>(0), u = broadcast(unit);
    const Rise risen = rise(largest(scores, keys, width), r);
    int64_t j = 0;
    Vec<T> total[2] = {zero, zero};
    for (; j + 2 <= keys; j += 2) {
      Vec<T> weight[2];
#pragma GCC unroll 2
      for (int i = 0; i < 2; ++i) {
        weight[i] = exp2(fma(load(scores + (j + i) * width), u, risen.shift));
        total[i] = total[i] + weight[i];
      }
      to.put(j, r, weight[0], weight[1]);
    }
    if (j < keys) {
      const Vec<T> weight = exp2(fma(load(scores + j * width), u, risen.shift));
      total[0] = total[0] + weight;
      to.put(j, r, weight);
    }

    store(sum + r, fma(load(sum + r), risen.factor, total[0] + total[1]));
    return risen.any;
  }
};

// What a row's sum of values is multiplied by; its log-sum-exp, the sink of its head included,
// unless `lse` is null. `sum`: of exp(score - most).
template <class T>
inline void normalise(const regard_problem &p, T most, T sum, int64_t head, T *factor, T *lse) {
  const bool blind = sum == 0;
  if (!p.sinks) {
    *factor = blind ? T(0) : 1 / sum;
    if (lse) *lse = blind ? -kInfinity<T> : most + std::log(sum);
    return;
  }
  const T sink = static_cast<const T *>(p.sinks)[head];
  if (blind) {
    *factor = 0;
    if (lse) *lse = sink;
    return;
  }
  const T top = std::max(most, sink), share = std::exp(most - top);
  const T total = sum * share + std::exp(sink - top);
  *factor = share / total;
  if (lse) *lse = top + std::log(total);
}

// The same of row r.
template <class T>
inline void normalise(const regard_problem &p, const Softmax<T> &softmax, int64_t head, int r,
                      T *factor, T *lse) {
  const T most = softmax.pivot[r] * softmax.unit * static_cast<T>(kLn2);
  normalise(p, most, softmax.sum[r], head, factor, lse);
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
