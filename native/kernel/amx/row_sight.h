// What each row of a block may see of a strip of keys, a bit for each key.
#ifndef REGARD_KERNEL_AMX_ROW_SIGHT_H
#define REGARD_KERNEL_AMX_ROW_SIGHT_H

namespace regard {
namespace REGARD_NAMESPACE {

class RowSight {
 public:
  void allocate(const regard_problem &p, Scratch &scratch) {
    problem_ = &p;
    if (!p.intervals.data) return;
    starts_ = scratch.take<int32_t>(p.intervals.count * kBlockRows);
    stops_ = scratch.take<int32_t>(p.intervals.count * kBlockRows);
  }

  // The rows to look with. Afterwards they see nothing outside [first(), last()).
  void set(const Rows<float> &rows) {
    const regard_problem &p = *problem_;
    rows_ = &rows;
    all_seen_ = false;
    std::fill_n(seen_, rows.width, uint64_t{0});
    first_ = 0;
    last_ = p.keys;
    if (!p.intervals.data) return;
    const int32_t keys = static_cast<int32_t>(p.keys);
    int32_t least = keys, most = 0;
    latest_ = 0;
    earliest_ = keys;
    for (int r = 0; r < rows.width; ++r) {
      const int32_t *pair = p.intervals.data + rows.batch * p.intervals.batch_stride +
                            rows.head[r] * p.intervals.head_stride +
                            rows.query[r] * p.intervals.query_stride;
      for (int64_t c = 0; c < p.intervals.count; ++c) {
        const int32_t start = std::max(pair[2 * c], 0), stop = std::min(pair[2 * c + 1], keys);
        starts_[c * kBlockRows + r] = start;
        stops_[c * kBlockRows + r] = stop;
        latest_ = std::max(latest_, start < stop ? start : keys);
        earliest_ = std::min(earliest_, stop);
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
  // Of the strips that were looked at: whether row r saw anything.
  bool saw(int r) const { return all_seen_ || seen_[r]; }

  // Narrows [*begin, *end), which lie in one strip, to what some row may see. kSome: bit j of
  // visible[row] says whether it sees the j-th key of the strip.
  View look(int64_t *begin, int64_t *end, uint64_t *visible) {
    const int64_t base = *begin / kStripKeys * kStripKeys;
    const regard_problem &p = *problem_;
    bool all = true;
    if (p.intervals.data) {
      *begin = std::max(*begin, first_);
      *end = std::min(*end, last_);
      if (*begin >= *end) return View::kNone;
      all = p.intervals.count == 1 && *begin >= latest_ && *end <= earliest_;
    }
    if (all && !p.mask.data) {
      all_seen_ = true;
      return View::kAll;
    }
    const uint64_t range = bits_below(*end - base) & ~bits_below(*begin - base);
    uint64_t some = 0, every = range;
    for (int r = 0; r < rows_->width; ++r) {
      uint64_t bits = all ? range : range & inside(r, base);
      if (p.mask.data) bits &= bytes(r, base);
      visible[r] = bits;
      seen_[r] |= bits;
      some |= bits;
      every &= bits;
    }
    if (!some) return View::kNone;
    *end = base + 64 - __builtin_clzll(some);
    *begin = base + __builtin_ctzll(some);
    const uint64_t between = bits_below(*end - base) & ~bits_below(*begin - base);
    return every == between ? View::kAll : View::kSome;
  }

  static uint64_t bits_below(int64_t n) {
    return n >= 64 ? ~uint64_t{0} : n <= 0 ? 0 : (uint64_t{1} << n) - 1;
  }

 private:
  uint64_t inside(int r, int64_t base) const {
    uint64_t bits = 0;
    for (int64_t c = 0; c < problem_->intervals.count; ++c) {
      const int64_t at = c * kBlockRows + r;
      bits |= bits_below(stops_[at] - base) & ~bits_below(starts_[at] - base);
    }
    return bits;
  }

  uint64_t bytes(int r, int64_t base) const {
    const regard_grid &m = problem_->mask;
    const auto *row = static_cast<const uint8_t *>(m.data) + rows_->batch * m.batch_stride +
                      rows_->head[r] * m.head_stride + rows_->query[r] * m.query_stride;
    if (!m.key_stride) return *row ? ~uint64_t{0} : 0;
    const __m512i b = _mm512_maskz_loadu_epi8(bits_below(problem_->keys - base), row + base);
    return _mm512_test_epi8_mask(b, b);
  }

  const regard_problem *problem_ = nullptr;
  const Rows<float> *rows_ = nullptr;
  int32_t *starts_ = nullptr, *stops_ = nullptr;  // [interval][row]
  int64_t first_ = 0, last_ = 0;
  int32_t latest_ = 0, earliest_ = 0;  // of all starts and stops
  bool all_seen_ = false;              // some strip wholly, by all rows
  uint64_t seen_[kBlockRows];
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
