// What keys receive from the queries of each group. A piece of a head's queries has sums of its
// own, which are put together in the order of pieces.
#ifndef REGARD_KERNEL_READOUTS_COLUMNS_H
#define REGARD_KERNEL_READOUTS_COLUMNS_H

namespace regard {
namespace REGARD_NAMESPACE {

// The largest of the lanes of kLanes vectors: lane i of the result belongs to parts[i].
template <class T, int kCount = kLanes<T>>
REGARD_INLINE Vec<T> max_each(Vec<T> *parts) {
  if constexpr (kCount == 1) {
    return parts[0];
  } else {
#pragma GCC unroll 8
    for (int i = 0; i < kCount / 2; ++i) {
      const Vec<T> low = zip_low(parts[i], parts[i + kCount / 2]);
      parts[i] = max(low, zip_high(parts[i], parts[i + kCount / 2]));
    }
    return max_each<T, kCount / 2>(parts);
  }
}

// Of one piece, [group][key]; `viewers` for a mean only.
struct ColumnSums {
  double *sums = nullptr, *viewers = nullptr;

  ColumnSums() = default;
  static int64_t size(const regard_problem &p, const Request &q) {
    const int64_t arrays = !q.received ? 0 : q.received_reduction == REGARD_MEAN ? 2 : 1;
    return arrays * q.received_count * p.keys;
  }
  ColumnSums(const regard_problem &p, const Request &q, double *memory)
      : sums(memory), viewers(memory + q.received_count * p.keys) {}
};

template <class T>
class Columns {
 public:
  Columns(const regard_problem &p, const Request &q, Scratch &scratch) : p_(p), q_(q) {
    if (q.received) chosen_ = scratch.take<T>(kBlock<T> * kBlock<T>);
  }

  void turn_to(const ColumnSums &to) { to_ = to; }

  // Which groups these rows belong to, and which rows belong to each of them.
  void start(const Rows<T> &rows) {
    groups_ = 0;
    for (int r = 0; r < rows.count; ++r) {
      const int32_t group = q_.query_groups[rows.query[r]];
      if (group < 0) continue;
      int n = 0;
      while (n < groups_ && group_[n] != group) ++n;
      if (n == groups_) {
        group_[groups_++] = group;
        std::fill_n(chosen_ + n * kBlock<T>, rows.width, T(0));
      }
      chosen_[n * kBlock<T> + r] = 1;
    }
  }

  // Scores: who can see a key.
  void look(const Tile<T> &tile) const {
    if (q_.received_reduction != REGARD_MEAN) return;
    const Vec<T> hidden = broadcast(-kInfinity<T>), zero = broadcast<T>(0);
    for (int n = 0; n < groups_; ++n) {
      add(tile, n, to_.viewers, [&](Vec<T> score, Vec<T> chosen, Vec<T> sum) {
        return sum + select(less(hidden, score), chosen, zero);
      });
    }
  }

  void take(const Tile<T> &tile) const {
    for (int n = 0; n < groups_; ++n) {
      if (q_.received_reduction == REGARD_MAX) {
        raise(tile, n);
      } else {
        const Vec<T> zero = broadcast<T>(0);
        add(tile, n, to_.sums, [&](Vec<T> weight, Vec<T> chosen, Vec<T> sum) {
          return sum + select(less(zero, chosen), weight, zero);
        });
      }
    }
  }

  // The same of weights that are to be multiplied by a factor for each row, for a sum.
  void take(const Tile<T> &tile, const T *factors) const {
    T chosen[kBlock<T>];
    for (int n = 0; n < groups_; ++n) {
      const T *ones = chosen_ + n * kBlock<T>;
      for (int r = 0; r < tile.rows.width; ++r) chosen[r] = ones[r] != 0 ? factors[r] : T(0);
      sum(tile, chosen, to_.sums + group_[n] * p_.keys + tile.begin,
          [](Vec<T> weight, Vec<T> factor, Vec<T> sum) { return fma(weight, factor, sum); });
    }
  }
  bool sums() const { return q_.received_reduction == REGARD_SUM; }

 private:
  template <class Add>
  REGARD_INLINE void add(const Tile<T> &tile, int n, double *sums, Add add) const {
    sum(tile, chosen_ + n * kBlock<T>, sums + group_[n] * p_.keys + tile.begin, add);
  }
  template <class Add>
  REGARD_INLINE void sum(const Tile<T> &tile, const T *chosen, double *to, Add add) const {
    each_key(
        tile, chosen, add, [](Vec<T> *parts) { return sum_each<T>(parts); },
        [&](int64_t j, T value) { to[j] += value; });
  }
  REGARD_INLINE void raise(const Tile<T> &tile, int n) const {
    const Vec<T> zero = broadcast<T>(0);
    double *to = to_.sums + group_[n] * p_.keys + tile.begin;
    each_key(
        tile, chosen_ + n * kBlock<T>,
        [&](Vec<T> weight, Vec<T> chosen, Vec<T> most) {
          return max(select(less(zero, chosen), weight, zero), most);
        },
        [](Vec<T> *parts) { return max_each<T>(parts); },
        [&](int64_t j, T value) { to[j] = std::max<double>(to[j], value); });
  }

  // With what is `chosen` of the rows of a group: `fold` over the vectors of a key, `join` over the
  // lanes of kLanes keys, then `put`.
  template <class Fold, class Join, class Put>
  REGARD_INLINE void each_key(const Tile<T> &tile, const T *chosen, Fold fold, Join join,
                              Put put) const {
    const int width = tile.rows.width;
    for (int64_t j = 0; j < tile.count; j += kLanes<T>) {
      const int64_t count = std::min<int64_t>(kLanes<T>, tile.count - j);
      Vec<T> parts[kLanes<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes<T>; ++i) {
        parts[i] = broadcast<T>(0);
        if (i >= count) continue;
        const T *values = tile.of(j + i);
        for (int r = 0; r < width; r += kLanes<T>) {
          parts[i] = fold(load(values + r), load(chosen + r), parts[i]);
        }
      }
      T results[kLanes<T>];
      store(results, join(parts));
      for (int64_t i = 0; i < count; ++i) put(j + i, results[i]);
    }
  }

  const regard_problem &p_;
  const Request &q_;
  ColumnSums to_;
  T *chosen_ = nullptr;  // [group][row]: 1 or 0
  int groups_ = 0;       // that the rows at hand belong to
  int32_t group_[kBlock<T>];
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
