// Gradients of queries, keys, values and sinks.
#ifndef REGARD_KERNEL_BACKWARD_H
#define REGARD_KERNEL_BACKWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

// Within a piece, panels of queries meet tiles of keys: keys outside, blocks of the panel inside.
template <class T>
class Backward : public Pieces<T, Backward<T>> {
 public:
  static constexpr bool kSplit = false;
  static constexpr int kPanelBlocks = 8;
  static constexpr int64_t kPanelRows = kPanelBlocks * kBlock<T>;

  struct Work : Piece<T> {
    GradientBlock<T> blocks[kPanelBlocks];
    T *weights, *d_scores;                   // tiles
    T *keys, *values, *queries, *d_outputs;  // converted
    T *d_query;                              // sums: of a panel
  };

  Backward(const regard_problem &p, const regard_gradients &g)
      : Base(p, g), size_(padded<T>(p.head_size)), width_(padded<T>(p.value_size)) {}

  void allocate(Work &s, Scratch &scratch) const {
    const int64_t rows =
        std::min(kPanelRows, round_up(std::max<int64_t>(p_.queries, 1), kBlock<T>));
    for (int64_t i = 0; i < rows / kBlock<T>; ++i) s.blocks[i].allocate(p_, g_, scores_, scratch);
    s.weights = scratch.take<T>(kTileSize<T>);
    s.d_scores = scores_ ? scratch.take<T>(kTileSize<T>) : nullptr;
    s.keys = scratch.take<T>(kTile<T> * size_);
    s.values = scratch.take<T>(kTile<T> * width_);
    s.queries = scratch.take<T>(rows * size_);
    s.d_outputs = scratch.take<T>(rows * width_);
    s.d_query = g_.d_query.data ? scratch.take<T>(rows * size_) : nullptr;
  }

  // Queries [first, last) of one head.
  void panel(Work &s, int64_t head, int64_t first, int64_t last, Careful<T> &careful) const {
    const int64_t count = (last - first + kBlock<T> - 1) / kBlock<T>;
    int64_t from = p_.keys, to = 0;
    for (int64_t i = 0; i < count; ++i) {
      GradientBlock<T> &g = s.blocks[i];
      const int64_t row = first + i * kBlock<T>;
      g.block.rows.set(p_, s.batch, head, row, std::min(last - row, int64_t{kBlock<T>}));
      g.set();
      from = std::min(from, g.block.sight.first());
      to = std::max(to, g.block.sight.last());
    }
    const auto queries = operand<T>(p_.query, p_.dtype, s.batch, head, first, last - first,
                                    p_.head_size, true, s.queries);
    const auto d_outputs = operand<T>(g_.d_output, p_.dtype, s.batch, head, first, last - first,
                                      p_.value_size, true, s.d_outputs);
    if (s.d_query) std::fill_n(s.d_query, (last - first) * size_, T(0));
    const Tiles<T> tiles(std::min(from, to), to);
    for (int64_t t = 0; t < tiles.count; ++t) {
      tile(s, count, tiles.begin(t), tiles.begin(t + 1), queries, d_outputs);
    }
    if (!s.d_query) return;
    for (int64_t i = first; i < last; ++i) {
      this->write_query(s.batch, head, i, s.d_query + (i - first) * size_, careful);
    }
  }

 private:
  using Base = Pieces<T, Backward>;
  using Base::g_;
  using Base::p_;
  using Base::scores_;

  // One tile of keys against the blocks of a panel.
  void tile(Work &s, int64_t count, int64_t first, int64_t last, Operand<T> queries,
            Operand<T> d_outputs) const {
    bool loaded = false;
    Operand<T> keys{}, values{};
    for (int64_t i = 0; i < count; ++i) {
      GradientBlock<T> &g = s.blocks[i];
      int64_t begin = first, end = last;
      const View view = g.block.sight.look(&begin, &end);
      if (view == View::kNone) continue;
      if (!loaded) {
        keys = operand<T>(p_.key, p_.dtype, s.batch, s.key_head, first, last - first, p_.head_size,
                          true, s.keys);
        if (scores_) {
          values = operand<T>(p_.value, p_.dtype, s.batch, s.value_head, first, last - first,
                              p_.value_size, false, s.values);
        }
        loaded = true;
      }
      const Operand<T> k{keys.data + (begin - first) * keys.stride, keys.stride};
      const Operand<T> v{scores_ ? values.data + (begin - first) * values.stride : nullptr,
                         values.stride};
      g.tile(view, k, v, begin, end, s.weights, s.d_scores, true, s.distances);
      add_products(s, i * kBlock<T>, g.block, k, begin, end - begin, queries, d_outputs);
    }
  }

  void add_products(Work &s, int64_t first_row, Block<T> &block, Operand<T> keys, int64_t begin,
                    int64_t count, Operand<T> queries, Operand<T> d_outputs) const {
    const Rows<T> &rows = block.rows;
    if (s.d_value) {
      product<T, Left::kRows>(s.weights, rows.width, d_outputs.data + first_row * d_outputs.stride,
                              d_outputs.stride, s.d_value + begin * width_, width_, count,
                              width_ / kLanes<T>, rows.count, true);
    }
    if (scores_ && is_additive(p_)) {
      T *d_query = s.d_query ? s.d_query + first_row * size_ : nullptr;
      T *d_key = s.d_key ? s.d_key + begin * size_ : nullptr;
      return block.additive.add_gradients(s.d_scores, count, d_query, d_key, s.d_vector);
    }
    if (s.d_key) {
      product<T, Left::kRows>(s.d_scores, rows.width, queries.data + first_row * queries.stride,
                              queries.stride, s.d_key + begin * size_, size_, count,
                              size_ / kLanes<T>, rows.count, true);
    }
    if (s.d_query) {
      product<T, Left::kAcross>(s.d_scores, rows.width, keys.data, keys.stride,
                                s.d_query + first_row * size_, size_, rows.count, size_ / kLanes<T>,
                                count, true);
    }
  }

  int64_t size_, width_;
};

// d_sink[h] = -sum over (b, i) of (the sink's weight) * delta.
template <class T>
class SinkGradient {
 public:
  SinkGradient(const regard_problem &p, const regard_gradients &g) : p_(p), g_(g) {}
  int run() { return parallel(p_.heads, p_.threads, &SinkGradient::task, this); }

 private:
  static int task(void *context, int64_t head) {
    const SinkGradient &self = *static_cast<SinkGradient *>(context);
    const regard_problem &p = self.p_;
    const T sink = static_cast<const T *>(p.sinks)[head];
    double sum = 0;
    for (int64_t b = 0; b < p.batch && sink != -kInfinity<T>; ++b) {
      const T *lse = static_cast<const T *>(self.g_.lse) + (b * p.heads + head) * p.queries;
      for (int64_t i = 0; i < p.queries; ++i) {
        const T weight = std::exp(sink - lse[i]);
        if (weight == 0) continue;
        const T delta = delta_of<T>(p, self.g_, b, head, i);
        sum -= static_cast<double>(weight) * static_cast<double>(delta);
      }
    }
    static_cast<T *>(self.g_.d_sinks)[head] = static_cast<T>(sum);
    return REGARD_OK;
  }

  const regard_problem &p_;
  const regard_gradients &g_;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
