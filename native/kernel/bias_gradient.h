// The gradient of the bias: gradients of scores, summed over the dimensions that the bias
// broadcasts.
#ifndef REGARD_KERNEL_BIAS_GRADIENT_H
#define REGARD_KERNEL_BIAS_GRADIENT_H

namespace regard {
namespace REGARD_NAMESPACE {

// Work is cut into distinct (batch, head, block of queries, tile of keys) of the bias; a piece goes
// through whatever it is broadcast over, in a fixed order.
template <class T>
class BiasGradient {
 public:
  BiasGradient(const regard_problem &p, const regard_gradients &g)
      : p_(p),
        g_(g),
        batches_(g.d_bias.batch_stride ? p.batch : 1),
        heads_(g.d_bias.head_stride ? p.heads : 1),
        blocks_(g.d_bias.query_stride ? (p.queries + kBlock<T> - 1) / kBlock<T> : 1),
        tiles_(g.d_bias.key_stride ? (p.keys + kTile<T> - 1) / kTile<T> : 1) {}

  int run() {
    return parallel(batches_ * heads_ * blocks_ * tiles_, p_.threads, &BiasGradient::task, this);
  }

 private:
  struct Piece {
    GradientBlock<T> g;
    T *weights, *d_scores, *keys, *values, *sum, *turned;
    int64_t first_key;
  };

  static int task(void *context, int64_t index) {
    const BiasGradient &self = *static_cast<BiasGradient *>(context);
    const regard_problem &p = self.p_;
    const int64_t tile = index % self.tiles_, block = index / self.tiles_ % self.blocks_;
    const int64_t head = index / self.tiles_ / self.blocks_ % self.heads_;
    const int64_t batch = index / self.tiles_ / self.blocks_ / self.heads_;
    Scratch scratch(Scratch::kTask);
    Piece s;
    s.g.allocate(p, self.g_, true, scratch);
    s.weights = scratch.take<T>(kTileSize<T>);
    s.d_scores = scratch.take<T>(kTileSize<T>);
    s.keys = scratch.take<T>(kTile<T> * padded<T>(p.head_size));
    s.values = scratch.take<T>(kTile<T> * padded<T>(p.value_size));
    s.sum = scratch.take<T>(kTileSize<T>);
    s.turned = scratch.take<T>(kTileSize<T>);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    std::fill_n(s.sum, kTileSize<T>, T(0));

    const regard_grid &d = self.g_.d_bias;
    const int64_t first = d.query_stride ? block * kBlock<T> : 0;
    const int64_t last = d.query_stride ? std::min(p.queries, first + kBlock<T>) : p.queries;
    s.first_key = d.key_stride ? tile * kTile<T> : 0;
    const int64_t last_key = d.key_stride ? std::min(p.keys, s.first_key + kTile<T>) : p.keys;
    for (int64_t b = batch; b < (d.batch_stride ? batch + 1 : p.batch); ++b) {
      for (int64_t h = head; h < (d.head_stride ? head + 1 : p.heads); ++h) {
        for (int64_t row = first; row < last; row += kBlock<T>) {
          s.g.block.rows.set(p, b, h, row, std::min(last - row, int64_t{kBlock<T>}));
          s.g.set();
          for (int64_t key = s.first_key; key < last_key; key += kTile<T>) {
            self.add(s, key, std::min(last_key, key + kTile<T>));
          }
        }
      }
    }
    self.write(s, batch, head, first, last, last_key);
    return REGARD_OK;
  }

  // Adds one tile to sum[key or 0][row].
  void add(Piece &s, int64_t begin, int64_t end) const {
    const View view = s.g.block.sight.look(&begin, &end);
    if (view == View::kNone) return;
    const Rows<T> &rows = s.g.block.rows;
    const int64_t h = rows.head[0], count = end - begin;
    const auto keys = operand<T>(p_.key, p_.dtype, rows.batch, h / (p_.heads / p_.key_heads), begin,
                                 count, p_.head_size, false, s.keys);
    const auto values = operand<T>(p_.value, p_.dtype, rows.batch, h / (p_.heads / p_.value_heads),
                                   begin, count, p_.value_size, false, s.values);
    s.g.tile(view, keys, values, begin, end, s.weights, s.d_scores, false);
    for (int64_t j = 0; j < count; ++j) {
      T *to = s.sum + (g_.d_bias.key_stride ? begin - s.first_key + j : 0) * kBlock<T>;
      for (int r = 0; r < rows.count; ++r) to[r] += s.d_scores[j * rows.width + r];
    }
  }

  void write(Piece &s, int64_t batch, int64_t head, int64_t first, int64_t last,
             int64_t last_key) const {
    const regard_grid &d = g_.d_bias;
    T *to = static_cast<T *>(d.data) + batch * d.batch_stride + head * d.head_stride +
            first * d.query_stride + s.first_key * d.key_stride;
    const int64_t count = d.key_stride ? last_key - s.first_key : 1;
    if (!d.query_stride) {
      for (int64_t j = 0; j < count; ++j) {
        T sum = 0;
        for (int r = 0; r < kBlock<T>; ++r) sum += s.sum[j * kBlock<T> + r];
        to[j * d.key_stride] = sum;
      }
      return;
    }
    const int64_t stride = padded<T>(count);
    transpose(s.sum, kBlock<T>, s.turned, stride, stride, kBlock<T>);
    for (int64_t i = 0; i < last - first; ++i) {
      memcpy(to + i * d.query_stride, s.turned + i * stride,
             static_cast<size_t>(count) * sizeof(T));
    }
  }

  const regard_problem &p_;
  const regard_gradients &g_;
  int64_t batches_, heads_, blocks_, tiles_;
};

template <class T>
int backward_of(const regard_problem &p, const regard_gradients &g) {
  if (p.heads == 0) return REGARD_OK;
  int status = Backward<T>(p, g).run();
  // Backward has made that of a bias by distance.
  if (status == REGARD_OK && g.d_bias.data && !by_distance(g.d_bias))
    status = BiasGradient<T>(p, g).run();
  if (status == REGARD_OK && g.d_sinks) status = SinkGradient<T>(p, g).run();
  return status;
}

// What is left of all gradients once those of queries, keys, values and of a bias by distance have
// been made.
inline regard_gradients but_for_arrays(regard_gradients g) {
  g.d_query.data = g.d_key.data = g.d_value.data = nullptr;
  if (by_distance(g.d_bias)) g.d_bias.data = nullptr;
  return g;
}

inline int backward(const regard_problem &p, const regard_gradients &g) {
  return p.dtype == REGARD_FLOAT64 ? backward_of<double>(p, g) : backward_of<float>(p, g);
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
