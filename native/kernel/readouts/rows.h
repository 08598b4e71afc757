// Scores become weights; and what is a sum over the keys of a row: entropy, effective keys, mean
// distance, and the largest.
#ifndef REGARD_KERNEL_READOUTS_ROWS_H
#define REGARD_KERNEL_READOUTS_ROWS_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
class RowSums {
 public:
  RowSums(const regard_problem &p, const T *lse, const Request &q)
      : p_(p),
        q_(q),
        lse_(lse),
        unit_(score_unit<T>(p)),
        size_(plain(p) ? static_cast<T>(fabs(p.scale)) : T(1)),
        sums_(q.entropy || q.effective_keys || q.distance),
        largest_(q.max_score || q.max_weight) {}

  bool wanted() const { return sums_; }

  void start(const Rows<T> &rows) {
    for (int r = 0; r < rows.width; ++r) {
      const T lse = lse_[row_index(p_, rows, r)];
      // A row that sees nothing keeps weights 2^(-inf + 0) = 0.
      shift_[r] = lse == -kInfinity<T> ? T(0) : -lse * static_cast<T>(kLog2e);
      top_[r] = -kInfinity<T>;
      sum_[r] = logarithms_[r] = squares_[r] = distance_[r] = 0;
    }
  }

  // 2^(unit * score + shift) is the weight of a score.
  T unit() const { return unit_; }
  const T *shift() const { return shift_; }
  T weight(T score, int r) const {
    T lanes[kLanes<T>];
    store(lanes, exp2(fma(broadcast(score), broadcast(unit_), broadcast(shift_[r]))));
    return lanes[0];
  }

  // Scores become weights, which are left in the tile if they are `needed`.
  void take(const Tile<T> &tile, bool needed) {
    const int width = tile.rows.width;
    for (int r = 0; r < width; r += kLanes<T>) {
      if (!sums_) {
        take_lanes<false, true>(tile.values, tile.count, width, r);
      } else if (needed) {
        take_lanes<true, true>(tile.values, tile.count, width, r);
      } else {
        take_lanes<true, false>(tile.values, tile.count, width, r);
      }
    }
    if (sums_) add(tile.rows, tile.begin, tile.count, last_, [&] { return tile; });
  }
  // Of the last tile.
  const TileSums<T> &last() const { return last_; }

  // Whether add() will ask for the weights of a tile.
  bool touches(const Rows<T> &rows, int64_t begin, int64_t count) const {
    const int64_t first = rows.query[0] + q_.distance_offset;
    const int64_t last = rows.query[rows.count - 1] + q_.distance_offset;
    return q_.distance && begin < last && first < begin + count;
  }

  // What a tile of weights adds to the sums of its rows, in double. `weights()`: the tile itself,
  // if it is needed.
  template <class Weights>
  void add(const Rows<T> &rows, int64_t begin, int64_t count, const TileSums<T> &tile,
           Weights weights) {
    for (int r = 0; r < rows.width; ++r) {
      sum_[r] += tile.sum[r];
      logarithms_[r] += tile.logarithms[r];
      squares_[r] += tile.squares[r];
    }
    if (!q_.distance) return;
    if (touches(rows, begin, count)) return add_near(weights());
    const int64_t end = begin + count;
    const double sign = begin >= rows.query[rows.count - 1] + q_.distance_offset ? 1 : -1;
    for (int r = 0; r < rows.width; ++r) {
      // The j-th of n keys is counted n - j times in `behind`: n sum - behind is the sum of p j.
      const double from = static_cast<double>(end - rows.query[r] - q_.distance_offset);
      distance_[r] += sign * (from * tile.sum[r] - tile.behind[r]);
    }
  }

  // Before take(), if `largest` is wanted; the scores stay.
  void look(const Tile<T> &tile) { raise_keys(tile.values, tile.count, tile.rows.width, top_); }
  bool largest() const { return largest_; }

  void finish(const Rows<T> &rows) const {
    for (int r = 0; r < rows.count; ++r) {
      const int64_t at = row_index(p_, rows, r);
      put(q_.max_score, at, top_[r] * size_);
      put(q_.max_weight, at, weight(top_[r], r));
      if (!sums_) continue;
      const bool blind = sum_[r] == 0;
      const double all = total(rows, r);
      const double entropy = (sum_[r] * std::log(all) - kLn2 * logarithms_[r]) / all;
      put(q_.entropy, at, static_cast<T>(blind ? 0 : std::max(entropy, 0.0)));
      put(q_.effective_keys, at, static_cast<T>(blind ? 0 : all * all / squares_[r]));
      put(q_.distance, at, static_cast<T>(blind ? 0 : distance_[r] / all));
    }
  }

 private:
  static void put(void *array, int64_t at, T value) {
    if (array) static_cast<T *>(array)[at] = value;
  }

  // What all weights, that of the sink too, sum up to. It would be 1, were the log-sum-exp not
  // rounded, and sums are corrected by it.
  double total(const Rows<T> &rows, int r) const {
    if (!p_.sinks) return sum_[r];
    const double sink = double{static_cast<const T *>(p_.sinks)[rows.head[r]]};
    return sum_[r] + std::exp(sink - lse_[row_index(p_, rows, r)]);
  }

  template <bool kSums, bool kStore>
  REGARD_INLINE void take_lanes(T *values, int64_t keys, int width, int r) {
    const Vec<T> unit = broadcast(unit_), shift = load(shift_ + r), zero = broadcast<T>(0);
    // A weight that is 0 has no logarithm: 0 * kLeast is 0 all the same.
    const Vec<T> least = broadcast<T>(kLeast);
    Vec<T> sum = zero, behind = zero, logarithms = zero, squares = zero;
    for (int64_t j = 0; j < keys; ++j) {
      T *at = values + j * width + r;
      const Vec<T> power = fma(load(at), unit, shift), weight = exp2(power);
      if constexpr (kStore) store(at, weight);
      if constexpr (kSums) {
        sum = sum + weight;
        behind = behind + sum;
        logarithms = fma(weight, max(power, least), logarithms);
        squares = fma(weight, weight, squares);
      }
    }
    if constexpr (kSums) {
      store(last_.sum + r, sum);
      store(last_.behind + r, behind);
      store(last_.logarithms + r, logarithms);
      store(last_.squares + r, squares);
    }
  }

  // Some keys lie before, some behind their query.
  void add_near(const Tile<T> &tile) {
    const Rows<T> &rows = tile.rows;
    T position[kBlock<T>], sum[kBlock<T>];
    for (int r = 0; r < rows.width; ++r) {
      position[r] = static_cast<T>(rows.query[r] + q_.distance_offset - tile.begin);
    }
    for (int r = 0; r < rows.width; r += kLanes<T>) {
      Vec<T> total = broadcast<T>(0);
      for (int64_t j = 0; j < tile.count; ++j) {
        const Vec<T> ahead = broadcast(static_cast<T>(j)) - load(position + r);
        total = fma(load(tile.of(j) + r), max(ahead, broadcast<T>(0) - ahead), total);
      }
      store(sum + r, total);
    }
    for (int r = 0; r < rows.width; ++r) distance_[r] += sum[r];
  }

  static constexpr T kLeast = -2000;

  const regard_problem &p_;
  const Request &q_;
  const T *lse_;
  T unit_, size_;
  bool sums_, largest_;
  T shift_[kBlock<T>], top_[kBlock<T>];
  TileSums<T> last_;
  // Over all keys: sums of p, p log2 p, p^2 and p |distance|.
  double sum_[kBlock<T>], logarithms_[kBlock<T>], squares_[kBlock<T>], distance_[kBlock<T>];
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
