// Pairs with a large weight: counted, or written where a count has made room for them.
#ifndef REGARD_KERNEL_READOUTS_EDGES_H
#define REGARD_KERNEL_READOUTS_EDGES_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
class Edges {
 public:
  Edges(const regard_problem &p, const Request &q) : p_(p), q_(q) {}
  bool wanted() const { return q_.edge_counts || q_.edge_starts; }

  void start(const Rows<T> &rows) {
    for (int r = 0; r < rows.count; ++r) {
      next_[r] = q_.edge_starts ? q_.edge_starts[row_index(p_, rows, r)] : 0;
    }
  }

  // Whether one of these weights counts, of as many rows.
  bool reached(const T *largest, int width) const {
    return std::any_of(largest, largest + width, [&](T weight) { return weight >= least(); });
  }

  void take(const Tile<T> &tile) {
    const Vec<T> limit = broadcast(least());
    for (int64_t j = 0; j < tile.count; ++j) {
      for (int r = 0; r < tile.rows.width; r += kLanes<T>) {
        const auto large = less_equal(limit, load(tile.of(j) + r));
        if (__builtin_expect(any(large), false)) add(tile, j, r, large);
      }
    }
  }

  void finish(const Rows<T> &rows) const {
    if (!q_.edge_counts) return;
    for (int r = 0; r < rows.count; ++r) q_.edge_counts[row_index(p_, rows, r)] = next_[r];
  }

 private:
  T least() const { return static_cast<T>(q_.edge_least); }

  template <class M>
  void add(const Tile<T> &tile, int64_t j, int first, M large) {
    each_lane(large, [&](int lane) {
      const int r = first + lane;
      if (r >= tile.rows.count) return;
      if (q_.edge_starts) {
        q_.edge_keys[next_[r]] = tile.begin + j;
        static_cast<T *>(q_.edge_weights)[next_[r]] = tile.of(j)[r];
      }
      ++next_[r];
    });
  }

  const regard_problem &p_;
  const Request &q_;
  int64_t next_[kBlock<T>];
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
