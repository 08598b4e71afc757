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
  TopKeys(const regard_problem &p, const Request &q, Scratch &scratch) : p_(p), q_(q) {
    if (!wanted()) return;
    values_ = scratch.take<T>(q.top_count * kBlock<T>);
    keys_ = scratch.take<T>(q.top_count * kBlock<T>);
  }
  bool wanted() const { return q_.top_weights; }

  void start(const Rows<T> &rows) {
    clear(rows);
    std::fill_n(floor_, rows.width, -kInfinity<T>);
  }

  // `largest`: the largest score of each tile, in place of keys, where they are known beforehand.
  // As many scores as are wanted reach the last of the largest of these: what does not reach it
  // need not be looked at.
  void expect(const Tile<T> &largest) {
    const int width = largest.rows.width;
    for (int r = 0; r < width; r += kLanes<T>) {
      for (int64_t t = 0; t < largest.count; ++t) sink(load(largest.of(t) + r), width, r);
    }
    for (int r = 0; r < width; ++r) {
      const T last = values_[(q_.top_count - 1) * width + r];
      floor_[r] = std::max(floor_[r], std::nextafter(last, -kInfinity<T>));
    }
    clear(largest.rows);
  }
  // Nothing up to `value` counts.
  void exceed(T value, int width) { std::fill_n(floor_, width, value); }

  void look(const Tile<T> &tile) {
    for (int r = 0; r < tile.rows.width; r += kLanes<T>) {
      look(tile, r, [](Vec<T> score) { return score; });
    }
  }
  // Of rows r, r + 1, … in one vector, of which `as` makes what is compared.
  template <class As>
  REGARD_INLINE void look(const Tile<T> &tile, int r, As as) {
    const int width = tile.rows.width;
    Vec<T> most = limit(width, r);
    for (int64_t j = 0; j < tile.count; ++j) {
      const Vec<T> value = as(load(tile.of(j) + r));
      const auto larger = less(most, value);
      if (__builtin_expect(!any(larger), true)) continue;
      insert(value, tile.begin + j, width, r, larger);
      most = limit(width, r);
    }
  }
  // What a value must exceed.
  Vec<T> limit(int width, int r) const { return max(load(least(width) + r), load(floor_ + r)); }
  const T *least(int width) const { return values_ + (q_.top_count - 1) * width; }

  // `weight(value, r)`: of what was compared.
  template <class Weight>
  void finish(const Rows<T> &rows, Weight weight) const {
    for (int r = 0; r < rows.count; ++r) {
      const int64_t to = row_index(p_, rows, r) * q_.top_count;
      for (int64_t n = 0; n < q_.top_count; ++n) {
        const int64_t key = as_key(keys_[n * rows.width + r]);
        q_.top_keys[to + n] = key;
        static_cast<T *>(q_.top_weights)[to + n] =
            key < 0 ? T(0) : weight(values_[n * rows.width + r], r);
      }
    }
  }

 private:
  void clear(const Rows<T> &rows) {
    std::fill_n(values_, q_.top_count * rows.width, -kInfinity<T>);
    std::fill_n(keys_, q_.top_count * rows.width, as_lane(-1));
  }

  // A value in the lists of a vector of rows, without its key.
  REGARD_INLINE void sink(Vec<T> value, int width, int r) {
    for (int64_t n = 0; n < q_.top_count; ++n) {
      T *at = values_ + n * width + r;
      const Vec<T> there = load(at);
      store(at, max(value, there));
      value = min(value, there);
    }
  }

  // Keys lie in lanes of T as what they are, whole numbers: they are only moved about.
  using Bits = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  static T as_lane(int64_t key) {
    const Bits number = static_cast<Bits>(key);
    T lane;
    memcpy(&lane, &number, sizeof lane);
    return lane;
  }
  static int64_t as_key(T lane) {
    Bits number;
    memcpy(&number, &lane, sizeof number);
    return number;
  }

  // One key in the lists of a vector of rows, all at once: what is smaller moves on by one place.
  // `smaller`: whether the last of a list is.
  template <class M>
  REGARD_NOINLINE void insert(Vec<T> score, int64_t key, int width, int r, M smaller) {
    const Vec<T> own_key = broadcast(as_lane(key));
    T *value_at = values_ + (q_.top_count - 1) * width + r, *key_at = keys_ + (value_at - values_);
    Vec<T> value = load(value_at), place = load(key_at);
    for (int64_t n = q_.top_count - 1; n > 0; --n) {
      const Vec<T> above = load(value_at - width), place_above = load(key_at - width);
      const auto moves = less(above, score);
      store(value_at, select(smaller, select(moves, above, score), value));
      store(key_at, select(smaller, select(moves, place_above, own_key), place));
      smaller = moves;
      value = above;
      place = place_above;
      value_at -= width;
      key_at -= width;
    }
    store(value_at, select(smaller, score, value));
    store(key_at, select(smaller, own_key, place));
  }

  const regard_problem &p_;
  const Request &q_;
  T *values_ = nullptr, *keys_ = nullptr;  // [place][row], falling
  T floor_[kBlock<T>];                     // of each row: what a score must exceed in any case
};

// Of each key, over blocks of rows with rising queries; `values` are log2 of weights.
template <class T>
class TopQueries {
 public:
  TopQueries() = default;
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
  int64_t count_ = 0;
  T *values_ = nullptr;
  int64_t *places_ = nullptr;
  T unit_, shift_[kBlock<T>];
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
