// Gradients of scores, summed over all pairs of query and key that are equally far apart: what a
// bias by distance gets.
#ifndef REGARD_KERNEL_DISTANCE_SUMS_H
#define REGARD_KERNEL_DISTANCE_SUMS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Of one head and the queries of one piece. A vector of rows at key j + 1 belongs one entry before
// that at key j, so that a single table would be read and written across the borders of vectors.
// There are as many tables as a vector has lanes, and keys take turns: then every vector of rows
// falls on a whole vector of its table. The tables' vectors lie interleaved, so that keys next to
// one another use memory next to one another.
template <class T>
class DistanceSums {
 public:
  // For `rows` queries at most.
  void allocate(const regard_problem &p, int64_t rows, Scratch &scratch) {
    keys_ = p.keys;
    groups_ = (p.keys + kLanes<T>) / kLanes<T>;
    size_ = (rows + kLanes<T> - 1) / kLanes<T> + groups_;
    sums_ = scratch.take<T>(size_ * kGroup);
  }
  void start(int64_t first_query) {
    first_ = first_query;
    std::fill_n(sums_, size_ * kGroup, T(0));
  }

  // Where the gradients of queries i, i + 1, … and key j are added; i - first_query is a multiple
  // of the lanes.
  REGARD_INLINE T *at(int64_t i, int64_t j) const {
    const int64_t group = (i - first_) / kLanes<T> - j / kLanes<T> + groups_;
    return sums_ + group * kGroup + j % kLanes<T> * kLanes<T>;
  }

  // Elements that `finish` writes: entries by distance, with the largest first, and a margin on
  // both sides.
  static int64_t finished(const regard_problem &p) { return distances(p) + 2 * kMargin; }
  static T finished_at(const T *sums, const regard_problem &p, int64_t entry) {
    return sums[kMargin + distances(p) - 1 - entry];
  }
  void finish(const regard_problem &p, T *to) const {
    std::fill_n(to, finished(p), T(0));
    // Query i and key j go to i - j + Lk - 1.
    T *first = to + kMargin + first_ + keys_ - 1 - groups_ * kLanes<T>;
    for (int64_t m = 0; m < kLanes<T>; ++m) {
      for (int64_t group = 0; group < size_; ++group) {
        T *sum = first + group * kLanes<T> - m;
        if (sum < to || sum + kLanes<T> > to + finished(p)) continue;  // nothing was added there
        store(sum, load(sum) + load(sums_ + group * kGroup + m * kLanes<T>));
      }
    }
  }

 private:
  static constexpr int64_t kGroup = int64_t{kLanes<T>} * kLanes<T>, kMargin = 2 * kLanes<T>;

  int64_t first_ = 0, keys_ = 0, groups_ = 0, size_ = 0;
  T *sums_ = nullptr;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
