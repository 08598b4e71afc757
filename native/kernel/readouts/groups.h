// Weight on groups of keys, and single weights at fixed offsets from their query.
#ifndef REGARD_KERNEL_READOUTS_GROUPS_H
#define REGARD_KERNEL_READOUTS_GROUPS_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
class Mass {
 public:
  Mass(const regard_problem &p, const Request &q, Scratch &scratch) : p_(p), q_(q) {
    if (wanted()) sums_ = scratch.take<T>(q.mass_count * kBlock<T>);
  }
  bool wanted() const { return q_.mass; }

  void start(const Rows<T> &rows) {
    std::fill_n(sums_, q_.mass_count * rows.width, T(0));
    groups_ = q_.key_groups + rows.batch * q_.key_groups_stride;
  }

  bool touches(int64_t begin, int64_t count) const {
    int32_t most = -1;
    for (int64_t j = begin; j < begin + count; ++j) most = std::max(most, groups_[j]);
    return most >= 0;
  }

  // Neighbours of one group go together.
  void take(const Tile<T> &tile) {
    const int32_t *group = groups_ + tile.begin;
    for (int64_t j = 0, stop; j < tile.count; j = stop) {
      for (stop = j + 1; stop < tile.count && group[stop] == group[j];) ++stop;
      if (group[j] < 0) continue;
      add_keys(tile.of(j), stop - j, tile.rows.width, sums_ + group[j] * tile.rows.width);
    }
  }

  void finish(const Rows<T> &rows) const {
    for (int r = 0; r < rows.count; ++r) {
      T *to = static_cast<T *>(q_.mass) + row_index(p_, rows, r) * q_.mass_count;
      for (int64_t g = 0; g < q_.mass_count; ++g) to[g] = sums_[g * rows.width + r];
    }
  }

 private:
  const regard_problem &p_;
  const Request &q_;
  const int32_t *groups_ = nullptr;
  T *sums_ = nullptr;  // [group][row]
};

template <class T>
class Offsets {
 public:
  Offsets(const regard_problem &p, const Request &q) : p_(p), q_(q) {}
  bool wanted() const { return q_.offset_weights; }

  void start(const Rows<T> &rows) const {
    for (int r = 0; r < rows.count; ++r) std::fill_n(at(rows, r), q_.offset_count, T(0));
  }

  bool touches(const Rows<T> &rows, int64_t begin, int64_t count) const {
    return std::any_of(q_.offsets, q_.offsets + q_.offset_count, [&](int64_t offset) {
      const int64_t first = rows.query[0] + offset;
      return first < begin + count && begin < first + rows.count;
    });
  }

  void take(const Tile<T> &tile) const {
    const Rows<T> &rows = tile.rows;
    for (int64_t n = 0; n < q_.offset_count; ++n) {
      const int64_t key_0 = rows.query[0] + q_.offsets[n] - tile.begin;
      const int64_t first = std::max<int64_t>(0, -key_0);
      const int64_t last = std::min<int64_t>(rows.count, tile.count - key_0);
      for (int64_t r = first; r < last; ++r) {
        at(rows, static_cast<int>(r))[n] = tile.of(key_0 + r)[r];
      }
    }
  }

 private:
  T *at(const Rows<T> &rows, int r) const {
    return static_cast<T *>(q_.offset_weights) + row_index(p_, rows, r) * q_.offset_count;
  }

  const regard_problem &p_;
  const Request &q_;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
