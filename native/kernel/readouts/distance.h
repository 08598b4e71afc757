// Weight by distance, in bins that double.
#ifndef REGARD_KERNEL_READOUTS_DISTANCE_H
#define REGARD_KERNEL_READOUTS_DISTANCE_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
class DistanceBins {
 public:
  DistanceBins(const regard_problem &p, const Request &q, Scratch &scratch) : p_(p), q_(q) {
    if (wanted()) sums_ = scratch.take<T>(q.bin_count * kBlock<T>);
  }
  bool wanted() const { return q_.bins; }

  void start(const Rows<T> &rows) {
    std::fill_n(sums_, q_.bin_count * rows.width, T(0));
    first_ = rows.query[0] + q_.bin_offset;
    last_ = rows.query[rows.count - 1] + q_.bin_offset;
    for (int r = 0; r < rows.width; ++r) ahead_[r] = static_cast<T>(rows.query[r] - rows.query[0]);
  }

  // Most keys fall in one bin for all rows, and so do their neighbours.
  void take(const Tile<T> &tile) {
    const int width = tile.rows.width;
    for (int64_t j = 0, stop; j < tile.count; j = stop) {
      const int64_t key = tile.begin + j;
      const int one = bin(key - first_), other = bin(key - last_);
      stop = j + 1;
      if (one == other && (key > last_ || key < first_)) {
        // The first key that leaves the bin, of some row.
        const int64_t end = key > last_ ? first_ + power(one) : first_ - power(one) / 2 + 1;
        stop = std::max(stop, std::min(tile.count, end - tile.begin));
        add_keys(tile.of(j), stop - j, width, sums_ + one * width);
      } else {
        split(tile.of(j), key, width, one, other);
      }
    }
  }

  // The bin of all keys [begin, begin + count) for all rows, or -1 if there are several.
  int common(int64_t begin, int64_t count) const {
    const int64_t end = begin + count - 1;
    if (begin <= last_ && first_ <= end) return -1;
    const int near = begin > last_ ? bin(begin - last_) : bin(first_ - end);
    const int far = begin > last_ ? bin(end - first_) : bin(last_ - begin);
    return near == far ? near : -1;
  }
  void add(int bin, const T *sum, int width) { add_keys(sum, 1, width, sums_ + bin * width); }

  void finish(const Rows<T> &rows) const {
    for (int r = 0; r < rows.count; ++r) {
      T *to = static_cast<T *>(q_.bins) + row_index(p_, rows, r) * q_.bin_count;
      for (int64_t n = 0; n < q_.bin_count; ++n) to[n] = sums_[n * rows.width + r];
    }
  }

 private:
  // Distances of bin n > 0 are those from 2^(n-1) to below 2^n.
  static int64_t power(int n) { return int64_t{1} << n; }
  static int bin(int64_t ahead) {
    return ahead ? 64 - __builtin_clzll(static_cast<uint64_t>(std::abs(ahead))) : 0;
  }

  // One key, whose distances fall into several bins.
  void split(const T *weights, int64_t key, int width, int one, int other) {
    const bool between = first_ <= key && key <= last_;
    const int least = between ? 0 : std::min(one, other), most = std::max(one, other);
    const Vec<T> zero = broadcast<T>(0), from = broadcast(static_cast<T>(key - first_));
    for (int r = 0; r < width; r += kLanes<T>) {
      const Vec<T> ahead = from - load(ahead_ + r), distance = max(ahead, zero - ahead);
      for (int n = least; n <= most; ++n) {
        const auto inside = less_equal(broadcast(static_cast<T>(power(n) / 2)), distance) &
                            less(distance, broadcast(static_cast<T>(power(n))));
        T *sum = sums_ + n * width + r;
        store(sum, load(sum) + select(inside, load(weights + r), zero));
      }
    }
  }

  const regard_problem &p_;
  const Request &q_;
  T *sums_ = nullptr;             // [bin][row]
  T ahead_[kBlock<T>];            // of each row, beyond the first
  int64_t first_ = 0, last_ = 0;  // positions of the first and the last row
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
