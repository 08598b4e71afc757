// The largest weights of each query, and of each key. Scores are compared, not weights: they keep
// their order where weights are too small to differ.
#ifndef REGARD_KERNEL_READOUTS_TOP_H
#define REGARD_KERNEL_READOUTS_TOP_H

namespace regard {
namespace REGARD_NAMESPACE {

// A list of the largest values so far, falling, and where they were found; -inf and -1 where there
// are none yet. Of equals the one that comes first stays before the others.
template <class T>
struct Ranking {
  T *values;
  int64_t *places;
  int64_t count;

  void clear() const {
    std::fill_n(values, count, -kInfinity<T>);
    std::fill_n(places, count, int64_t{-1});
  }
  T least() const { return values[count - 1]; }
  // `value` is larger than least().
  void insert(T value, int64_t place) const {
    int64_t n = count - 1;
    for (; n > 0 && values[n - 1] < value; --n) {
      values[n] = values[n - 1];
      places[n] = places[n - 1];
    }
    values[n] = value;
    places[n] = place;
  }
};

template <class T>
class TopKeys {
 public:
  TopKeys(const regard_problem &p, const Request &q) : p_(p), q_(q) {}
  bool wanted() const { return q_.top_weights; }

  void start(const Rows<T> &rows) {
    for (int r = 0; r < rows.width; ++r) {
      // Lanes beyond the rows take nothing.
      least_[r] = r < rows.count ? -kInfinity<T> : kInfinity<T>;
      if (r < rows.count) ranking(rows, r).clear();
    }
  }

  void look(const Tile<T> &tile) {
    const int width = tile.rows.width;
    for (int r = 0; r < width; r += kLanes<T>) {
      Vec<T> least = load(least_ + r);
      for (int64_t j = 0; j < tile.count; ++j) {
        const auto larger = less(least, load(tile.of(j) + r));
        if (__builtin_expect(!any(larger), true)) continue;
        insert(tile, j, r, larger);
        least = load(least_ + r);
      }
    }
  }

  void finish(const Rows<T> &rows, const RowSums<T> &sums) const {
    for (int r = 0; r < rows.count; ++r) {
      const Ranking<T> top = ranking(rows, r);
      for (int64_t n = 0; n < top.count; ++n) {
        top.values[n] = top.places[n] < 0 ? T(0) : sums.weight(top.values[n], r);
      }
    }
  }

 private:
  Ranking<T> ranking(const Rows<T> &rows, int r) const {
    const int64_t at = row_index(p_, rows, r) * q_.top_count;
    return {static_cast<T *>(q_.top_weights) + at, q_.top_keys + at, q_.top_count};
  }

  template <class M>
  REGARD_NOINLINE void insert(const Tile<T> &tile, int64_t j, int r, M larger) {
    each_lane(larger, [&](int lane) {
      const Ranking<T> top = ranking(tile.rows, r + lane);
      top.insert(tile.of(j)[r + lane], tile.begin + j);
      least_[r + lane] = top.least();
    });
  }

  const regard_problem &p_;
  const Request &q_;
  T least_[kBlock<T>];  // of each row, what a score must exceed
};

// Of each key, over blocks of rows with rising queries; `values` are log2 of weights.
template <class T>
class TopQueries {
 public:
  TopQueries(const Request &q, T *values, int64_t *places)
      : count_(q.top_query_count), values_(values), places_(places) {}

  void start(const Rows<T> &rows, const RowSums<T> &sums) {
    unit_ = sums.unit();
    for (int r = 0; r < rows.width; ++r) {
      shift_[r] = r < rows.count ? sums.shift()[r] : -kInfinity<T>;
    }
  }

  void look(const Tile<T> &tile) const {
    const Rows<T> &rows = tile.rows;
    const Vec<T> unit = broadcast(unit_);
    for (int64_t j = 0; j < tile.count; ++j) {
      const Ranking<T> top = of(tile.begin + j);
      for (int r = 0; r < rows.width; r += kLanes<T>) {
        const Vec<T> power = fma(load(tile.of(j) + r), unit, load(shift_ + r));
        const auto larger = less(broadcast(top.least()), power);
        if (__builtin_expect(!any(larger), true)) continue;
        T lanes[kLanes<T>];
        store(lanes, power);
        each_lane(larger, [&](int lane) {
          if (lanes[lane] > top.least()) top.insert(lanes[lane], rows.query[r + lane]);
        });
      }
    }
  }

  Ranking<T> of(int64_t key) const {
    return {values_ + key * count_, places_ + key * count_, count_};
  }

 private:
  int64_t count_;
  T *values_;
  int64_t *places_;
  T unit_, shift_[kBlock<T>];
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
