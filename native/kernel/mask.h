// What a block of rows may see of a tile of keys.
#ifndef REGARD_KERNEL_MASK_H
#define REGARD_KERNEL_MASK_H

namespace regard {
namespace REGARD_NAMESPACE {

enum class View { kNone, kAll, kSome };

// Whether one query may see one key.
inline bool sees(const regard_problem &p, int64_t batch, int64_t head, int64_t query, int64_t key) {
  if (p.intervals.data) {
    const regard_intervals &v = p.intervals;
    const int32_t *pair =
        v.data + batch * v.batch_stride + head * v.head_stride + query * v.query_stride;
    bool inside = false;
    for (int64_t c = 0; c < v.count; ++c) inside |= pair[2 * c] <= key && key < pair[2 * c + 1];
    if (!inside) return false;
  }
  if (p.mask.data) {
    const regard_grid &m = p.mask;
    const int64_t at = batch * m.batch_stride + head * m.head_stride + query * m.query_stride;
    if (!static_cast<const uint8_t *>(m.data)[at + key * m.key_stride]) return false;
  }
  return true;
}

template <class T>
class Sight {
 public:
  void allocate(const regard_problem &p, Scratch &scratch) {
    problem_ = &p;
    if (p.intervals.data) {
      const int64_t lanes = p.intervals.count * kBlock<T>;
      starts_ = scratch.take<int32_t>(lanes);
      stops_ = scratch.take<int32_t>(lanes);
      low_ = scratch.take<T>(lanes);
      high_ = scratch.take<T>(lanes);
    }
    if (p.mask.data) bytes_ = scratch.take<uint8_t>(kTile<T> * kBlock<T>);
  }

  // The rows to look with. Afterwards they see nothing outside [first(), last()).
  void set(const Rows<T> &rows) {
    const regard_problem &p = *problem_;
    rows_ = &rows;
    stride_ = round_up(rows.width, 16);
    first_ = 0;
    last_ = p.keys;
    if (!p.intervals.data) return;
    const int32_t keys = static_cast<int32_t>(p.keys);
    int32_t least = keys, most = 0;
    for (int r = 0; r < rows.width; ++r) {
      const int32_t *pair = p.intervals.data + rows.batch * p.intervals.batch_stride +
                            rows.head[r] * p.intervals.head_stride +
                            rows.query[r] * p.intervals.query_stride;
      for (int64_t c = 0; c < p.intervals.count; ++c) {
        const int32_t start = std::max(pair[2 * c], 0), stop = std::min(pair[2 * c + 1], keys);
        starts_[c * kBlock<T> + r] = start;
        stops_[c * kBlock<T> + r] = stop;
        if (start >= stop) continue;
        least = std::min(least, start);
        most = std::max(most, stop);
      }
    }
    first_ = least;
    last_ = std::max(least, most);
  }
  int64_t first() const { return first_; }
  int64_t last() const { return last_; }

  // Narrows [*begin, *end) to what some row sees, and says whether all rows see all of it.
  View look(int64_t *begin, int64_t *end) {
    active_ = 0;
    masked_ = false;
    *begin = std::max(*begin, first_);
    *end = std::min(*end, last_);
    if (*begin >= *end) return View::kNone;
    View view = problem_->intervals.data ? look_at_intervals(begin, end) : View::kAll;
    if (problem_->mask.data && view != View::kNone) {
      const View bytes = look_at_bytes(*begin, *end);
      if (bytes == View::kNone) return View::kNone;
      masked_ = bytes == View::kSome;
      if (masked_) view = View::kSome;
    }
    return view;
  }

  // After kSome: which lanes from `lane` on see the j-th key of the narrowed range.
  REGARD_INLINE Mask<T> visible(int64_t j, int lane) const {
    if (!active_) return nonzero<T>(bytes_ + j * stride_ + lane);
    Mask<T> seen = inside(0, j, lane);
    for (int64_t c = 1; c < active_; ++c) seen = seen | inside(c, j, lane);
    if (masked_) seen = seen & nonzero<T>(bytes_ + j * stride_ + lane);
    return seen;
  }

  // After kSome: hidden scores [key][row] of the narrowed range become -inf.
  void hide(int64_t count, T *scores) const {
    const Vec<T> hidden = broadcast(-kInfinity<T>);
    for (int64_t j = 0; j < count; ++j) {
      for (int r = 0; r < rows_->width; r += kLanes<T>) {
        T *at = scores + j * rows_->width + r;
        store(at, select(visible(j, r), load(at), hidden));
      }
    }
  }

 private:
  REGARD_INLINE Mask<T> inside(int64_t c, int64_t j, int lane) const {
    const Vec<T> key = broadcast(static_cast<T>(j));
    const int64_t at = c * kBlock<T> + lane;
    return less_equal(load(low_ + at), key) & less(key, load(high_ + at));
  }

  // Intervals relative to the narrowed range, as numbers of type T: exact, since tiles are small.
  View look_at_intervals(int64_t *begin, int64_t *end) {
    const int32_t from = static_cast<int32_t>(*begin), to = static_cast<int32_t>(*end);
    const int width = rows_->width;
    int32_t least = to, most = from, latest = from, earliest = to;
    for (int64_t c = 0; c < problem_->intervals.count; ++c) {
      const int32_t *start = starts_ + c * kBlock<T>, *stop = stops_ + c * kBlock<T>;
      T *low = low_ + active_ * kBlock<T>, *high = high_ + active_ * kBlock<T>;
      int32_t low_most = from, low_least = to, high_most = from, high_least = to, seen = 0;
      for (int r = 0; r < width; ++r) {
        const int32_t a = std::min(std::max(start[r], from), to);
        const int32_t b = std::max(std::min(stop[r], to), a);
        const bool empty = a >= b;
        seen |= !empty;
        low_least = std::min(low_least, empty ? to : a);
        high_most = std::max(high_most, empty ? from : b);
        low_most = std::max(low_most, a);
        high_least = std::min(high_least, b);
        low[r] = static_cast<T>(a - from);
        high[r] = static_cast<T>(b - from);
      }
      if (!seen) continue;
      ++active_;
      least = std::min(least, low_least);
      most = std::max(most, high_most);
      latest = low_most;
      earliest = high_least;
    }
    if (!active_) return View::kNone;
    *begin = least;
    *end = most;
    if (active_ == 1 && latest == least && earliest == most) {
      active_ = 0;
      return View::kAll;
    }
    const Vec<T> shift = broadcast(static_cast<T>(least - from));
    for (int64_t i = 0; least > from && i < active_ * kBlock<T>; i += kLanes<T>) {
      store(low_ + i, load(low_ + i) - shift);
      store(high_ + i, load(high_ + i) - shift);
    }
    return View::kSome;
  }

  // The mask's bytes of the range, transposed to [key][row].
  View look_at_bytes(int64_t begin, int64_t end) {
    const regard_grid &m = problem_->mask;
    const int64_t keys = end - begin;
    Bytes some = {}, zero = {};
    for (int r = 0; r < rows_->width; r += 16) {
      const uint8_t *row[16];
      for (int i = 0; i < 16; ++i) {
        const int lane = std::min(r + i, rows_->width - 1);
        row[i] = static_cast<const uint8_t *>(m.data) + rows_->batch * m.batch_stride +
                 rows_->head[lane] * m.head_stride + rows_->query[lane] * m.query_stride +
                 begin * m.key_stride;
      }
      for (int64_t j = 0; j < keys; j += 16) {
        const int columns = static_cast<int>(std::min<int64_t>(16, keys - j));
        Bytes square[16];
        for (int i = 0; i < 16; ++i) {
          square[i] = bytes_of(row[i] + j * m.key_stride, columns);
          some |= square[i];
          zero |= (Bytes)(square[i] == Bytes{});
        }
        transpose_bytes(square);
        for (int k = 0; k < columns; ++k) memcpy(bytes_ + (j + k) * stride_ + r, square + k, 16);
      }
    }
    return !any_byte(some) ? View::kNone : any_byte(zero) ? View::kSome : View::kAll;
  }

  // `columns` bytes, then the first of them again.
  REGARD_INLINE Bytes bytes_of(const uint8_t *p, int columns) const {
    Bytes bytes;
    if (columns == 16 && problem_->mask.key_stride) {
      memcpy(&bytes, p, 16);
    } else {
      bytes = Bytes{} + *p;
      for (int i = 1; problem_->mask.key_stride && i < columns; ++i) bytes[i] = p[i];
    }
    return bytes;
  }
  REGARD_INLINE static bool any_byte(Bytes bytes) {
    uint64_t words[2];
    memcpy(words, &bytes, sizeof words);
    return (words[0] | words[1]) != 0;
  }

  const regard_problem *problem_ = nullptr;
  const Rows<T> *rows_ = nullptr;
  int32_t *starts_ = nullptr, *stops_ = nullptr;
  T *low_ = nullptr, *high_ = nullptr;  // of the intervals that reach into the tile
  uint8_t *bytes_ = nullptr;            // [key][stride_]
  int64_t first_ = 0, last_ = 0, active_ = 0, stride_ = 0;
  bool masked_ = false;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
