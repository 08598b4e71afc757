// Final scores, row by row as a user wants to see them.
#ifndef REGARD_KERNEL_SCORES_H
#define REGARD_KERNEL_SCORES_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
class Scores {
 public:
  Scores(const regard_problem &p, const ScoresRequest &request) : p_(p), request_(request) {}

  int run() {
    const int64_t rows = request_.last - request_.first;
    return parallel((rows + kBlock<T> - 1) / kBlock<T>, p_.threads, &Scores::task, this);
  }

 private:
  static int task(void *context, int64_t index) {
    const Scores &self = *static_cast<Scores *>(context);
    const ScoresRequest &q = self.request_;
    Scratch scratch(Scratch::kTask);
    Block<T> block;
    block.allocate(self.p_, scratch);
    T *keys = scratch.take<T>(kTile<T> * padded<T>(self.p_.head_size));
    T *tile = scratch.take<T>(kTileSize<T>), *turned = scratch.take<T>(kTileSize<T>);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const int64_t first = q.first + index * kBlock<T>;
    const int64_t last = std::min(q.last, first + kBlock<T>);
    block.rows.set(self.p_, q.batch, q.head, first, last - first);
    block.set();
    T *to = static_cast<T *>(q.scores) + (first - q.first) * q.row_stride;
    for (int64_t begin = q.first_key; begin < q.last_key; begin += kTile<T>) {
      const int64_t end = std::min(q.last_key, begin + kTile<T>);
      self.tile(block, begin, end, to + (begin - q.first_key), keys, tile, turned);
    }
    return REGARD_OK;
  }

  void tile(Block<T> &block, int64_t begin, int64_t end, T *to, T *keys, T *tile, T *turned) const {
    const Rows<T> &rows = block.rows;
    const int64_t start = begin, whole = end - begin;
    const View view = block.sight.look(&begin, &end);
    if (view == View::kNone || end - begin < whole) {
      for (int r = 0; r < rows.count; ++r) {
        std::fill_n(to + r * request_.row_stride, whole, -kInfinity<T>);
      }
    }
    if (view == View::kNone) return;
    const int64_t count = end - begin, stride = padded<T>(count);
    block.scores(begin, end, keys, tile);
    if (plain(p_)) {
      const Vec<T> scale = broadcast(static_cast<T>(fabs(p_.scale)));
      for (int64_t i = 0; i < count * rows.width; i += kLanes<T>) {
        store(tile + i, load(tile + i) * scale);
      }
    }
    if (view == View::kSome) block.sight.hide(count, tile);
    std::fill(tile + count * rows.width, tile + stride * rows.width, T(0));
    transpose(tile, rows.width, turned, stride, stride, rows.width);
    for (int r = 0; r < rows.count; ++r) {
      memcpy(to + r * request_.row_stride + (begin - start), turned + r * stride,
             static_cast<size_t>(count) * sizeof(T));
    }
  }

  const regard_problem &p_;
  const ScoresRequest &request_;
};

inline int scores(const regard_problem &p, const ScoresRequest &request) {
  if (p.dtype == REGARD_FLOAT64) return Scores<double>(p, request).run();
  return Scores<float>(p, request).run();
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
