// Scores of a block of rows against tiles of keys, transposed: scores[key][row].
#ifndef REGARD_KERNEL_TILE_H
#define REGARD_KERNEL_TILE_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
constexpr int kTileSize = kTile<T> * kBlock<T>;

// Whether scores are the scaled products themselves: then the scale is left to the exponential.
inline bool plain(const regard_problem &p) { return p.softcap == 0 && !p.bias.data; }

// Queries are multiplied by the sign of the scale, the products by its size.
template <class T>
inline T query_factor(const regard_problem &p) {
  const T scale = static_cast<T>(p.scale);
  return scale > 0 ? T(1) : scale < 0 ? T(-1) : T(0);
}
// What makes powers of 2 of scores as `Block::scores` leaves them. Not 0 (-inf must stay -inf):
// when the scale is 0, so are the queries.
template <class T>
inline T score_unit(const regard_problem &p) {
  const bool scaled = plain(p) && static_cast<T>(p.scale) != 0;
  return static_cast<T>(scaled ? fabs(p.scale) * kLog2e : kLog2e);
}

template <class T>
class Block {
 public:
  Rows<T> rows;
  Sight<T> sight;

  void allocate(const regard_problem &p, Scratch &scratch) {
    problem_ = &p;
    queries_ = scratch.take<T>(kBlock<T> * padded<T>(p.head_size));
    staging_ = scratch.take<T>(std::max<int64_t>(kBlock<T> * padded<T>(p.head_size), kTileSize<T>));
    few_ = scratch.take<T>(kFew * padded<T>(p.head_size));
    if (p.bias.data) bias_ = scratch.take<T>(kTileSize<T>);
    sight.allocate(p, scratch);
  }

  // To be called when `rows` has changed.
  void set() {
    const regard_problem &p = *problem_;
    pack_rows(rows, p.query, p.dtype, p.head_size, query_factor<T>(p), staging_, queries_);
    if (rows.count <= kFew) std::copy_n(staging_, rows.count * padded<T>(p.head_size), few_);
    sight.set(rows);
  }

  // Scores of keys [begin, end), whose rows are given; hidden ones not yet hidden. `slope`, if not
  // null, gets the derivative of the soft cap.
  void scores(Operand<T> keys, int64_t begin, int64_t end, T *to, T *slope = nullptr) {
    const regard_problem &p = *problem_;
    const int64_t count = end - begin;
    if (rows.count <= kFew) {
      std::fill_n(to, count * rows.width, T(0));
      for (int r = 0; r < rows.count; ++r) {
        dots(keys, few_ + r * padded<T>(p.head_size), p.head_size, count, to + r, rows.width);
      }
    } else {
      product<T, Left::kRows>(keys.data, keys.stride, queries_, rows.width, to, rows.width, count,
                              rows.width / kLanes<T>, p.head_size, false);
    }
    if (plain(p)) return;
    if (p.bias.data) pack_bias(begin, count);
    finish(count, to, slope);
  }

  // Hidden scores become -inf. After sight.look() found kSome.
  void hide(int64_t count, T *scores) const {
    const Vec<T> hidden = broadcast(-kInfinity<T>);
    for (int64_t j = 0; j < count; ++j) {
      for (int r = 0; r < rows.width; r += kLanes<T>) {
        T *at = scores + j * rows.width + r;
        store(at, select(sight.visible(j, r), load(at), hidden));
      }
    }
  }

 private:
  // Scale, soft cap, bias.
  void finish(int64_t count, T *scores, T *slope) const {
    const regard_problem &p = *problem_;
    const Vec<T> one = broadcast<T>(1), size = broadcast(static_cast<T>(fabs(p.scale)));
    const Vec<T> cap = broadcast(static_cast<T>(p.softcap));
    const Vec<T> per_cap = broadcast(static_cast<T>(p.softcap > 0 ? fabs(p.scale) / p.softcap : 0));
    for (int64_t i = 0; i < count * rows.width; i += kLanes<T>) {
      Vec<T> x = load(scores + i);
      if (p.softcap > 0) {
        const Vec<T> bent = tanh(x * per_cap);
        if (slope) store(slope + i, one - bent * bent);
        x = cap * bent;
      } else {
        x = x * size;
      }
      if (bias_) x = x + load(bias_ + i);
      store(scores + i, x);
    }
  }

  // bias_[key][row] for keys from `begin` on.
  void pack_bias(int64_t begin, int64_t count) {
    const regard_grid &b = problem_->bias;
    const int type = problem_->bias_dtype;
    const int64_t stride = padded<T>(count);
    for (int r = 0; r < rows.width; ++r) {
      const int64_t at = rows.batch * b.batch_stride + rows.head[r] * b.head_stride +
                         rows.query[r] * b.query_stride + begin * b.key_stride;
      const char *from = static_cast<const char *>(b.data) + at * element_size(type);
      T *to = staging_ + r * stride;
      if (b.key_stride) {
        widen_row(to, from, count, type);
      } else {
        T value[kLanes<T>];
        widen_row(value, from, 1, type);
        for (int64_t j = 0; j < stride; ++j) to[j] = value[0];
      }
    }
    transpose(staging_, stride, bias_, rows.width, rows.width, stride);
  }

  const regard_problem *problem_ = nullptr;
  T *queries_ = nullptr;  // [head_size][width]
  T *few_ = nullptr;      // [row][head_size], padded: if there are few rows
  T *staging_ = nullptr, *bias_ = nullptr;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
