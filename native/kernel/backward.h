// Gradients of queries, keys, values and sinks.
#ifndef REGARD_KERNEL_BACKWARD_H
#define REGARD_KERNEL_BACKWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

// Within a piece, panels of queries meet tiles of keys: keys outside, blocks of the panel inside. A
// kernel derives from this and has, besides what Pieces wants,
//
//   void take_queries(Work &, head, first, last) const: prepares a panel's queries
//   void take_keys(Work &, first, last) const: prepares a tile's keys and values
//   void tile(Work &, block, view, begin, end) const: of the tile last taken, adds what a block
//   that sees `view` of keys [begin, end) has to add
template <class T, class RowBlock, class Kernel>
class Panels : public Pieces<T, Kernel> {
 public:
  static constexpr bool kSplit = false;
  static constexpr int kPanelBlocks = 8;
  static constexpr int64_t kPanelRows = kPanelBlocks * kBlock<T>;

  struct Work : Piece<T> {
    GradientBlock<T, RowBlock> blocks[kPanelBlocks];
    T *weights, *d_scores;  // tiles
    T *d_query;             // sums: of a panel
  };

  Panels(const regard_problem &p, const regard_gradients &g)
      : Base(p, g), size_(padded<T>(p.head_size)), width_(padded<T>(p.value_size)) {}

  // Queries [first, last) of one head.
  template <class KernelWork>
  void panel(KernelWork &s, int64_t head, int64_t first, int64_t last, Careful<T> &careful) const {
    const int64_t count = (last - first + kBlock<T> - 1) / kBlock<T>;
    int64_t from = p_.keys, to = 0;
    for (int64_t i = 0; i < count; ++i) {
      auto &g = s.blocks[i];
      const int64_t row = first + i * kBlock<T>;
      g.block.rows.set(p_, s.batch, head, row, std::min(last - row, int64_t{kBlock<T>}));
      g.set();
      from = std::min(from, g.block.sight.first());
      to = std::max(to, g.block.sight.last());
    }
    kernel().take_queries(s, head, first, last);
    if (s.d_query) std::fill_n(s.d_query, (last - first) * size_, T(0));
    const Tiles<T> tiles(std::min(from, to), to);
    for (int64_t t = 0; t < tiles.count; ++t) {
      meet(s, count, tiles.begin(t), tiles.begin(t + 1));
    }
    if (!s.d_query) return;
    for (int64_t i = first; i < last; ++i) {
      this->write_query(s.batch, head, i, s.d_query + (i - first) * size_, careful);
    }
  }

 protected:
  using Base = Pieces<T, Kernel>;
  using Base::g_;
  using Base::p_;
  using Base::scores_;

  // Of a panel, in whole blocks.
  int64_t panel_rows() const {
    return std::min(kPanelRows, round_up(std::max<int64_t>(p_.queries, 1), kBlock<T>));
  }

  void allocate(Work &s, Scratch &scratch) const {
    for (int64_t i = 0; i < panel_rows() / kBlock<T>; ++i) {
      s.blocks[i].allocate(p_, g_, scores_, scratch);
    }
    s.weights = scratch.take<T>(kTileSize<T>);
    s.d_scores = scores_ ? scratch.take<T>(kTileSize<T>) : nullptr;
    s.d_query = g_.d_query.data ? scratch.take<T>(panel_rows() * size_) : nullptr;
  }

  int64_t size_, width_;

 private:
  // One tile of keys and the blocks of a panel.
  template <class KernelWork>
  void meet(KernelWork &s, int64_t count, int64_t first, int64_t last) const {
    bool taken = false;
    for (int64_t i = 0; i < count; ++i) {
      int64_t begin = first, end = last;
      const View view = s.blocks[i].block.sight.look(&begin, &end);
      if (view == View::kNone) continue;
      if (!taken) kernel().take_keys(s, first, last);
      taken = true;
      kernel().tile(s, i, view, begin, end);
    }
  }

  const Kernel &kernel() const { return static_cast<const Kernel &>(*this); }
};

template <class T>
class Backward : public Panels<T, Block<T>, Backward<T>> {
 public:
  struct Work : Panels<T, Block<T>, Backward<T>>::Work {
    T *converted_keys, *converted_values, *converted_queries, *converted_d_outputs;
    Operand<T> keys, values, queries, d_outputs;
    int64_t tile_begin;  // its first key
  };

  using Base = Panels<T, Block<T>, Backward<T>>;
  using Base::Base;

  void allocate(Work &s, Scratch &scratch) const {
    Base::allocate(s, scratch);
    s.converted_keys = scratch.take<T>(kTile<T> * size_);
    s.converted_values = scratch.take<T>(kTile<T> * width_);
    s.converted_queries = scratch.take<T>(this->panel_rows() * size_);
    s.converted_d_outputs = scratch.take<T>(this->panel_rows() * width_);
  }

  void take_queries(Work &s, int64_t head, int64_t first, int64_t last) const {
    s.queries = operand<T>(p_.query, p_.dtype, s.batch, head, first, last - first, p_.head_size,
                           true, s.converted_queries);
    s.d_outputs = operand<T>(g_.d_output, p_.dtype, s.batch, head, first, last - first,
                             p_.value_size, true, s.converted_d_outputs);
  }

  void take_keys(Work &s, int64_t first, int64_t last) const {
    s.tile_begin = first;
    s.keys = operand<T>(p_.key, p_.dtype, s.batch, s.key_head, first, last - first, p_.head_size,
                        true, s.converted_keys);
    s.values = {};
    if (!scores_) return;
    s.values = operand<T>(p_.value, p_.dtype, s.batch, s.value_head, first, last - first,
                          p_.value_size, false, s.converted_values);
  }

  void tile(Work &s, int64_t index, View view, int64_t begin, int64_t end) const {
    auto &g = s.blocks[index];
    const Rows<T> &rows = g.block.rows;
    const int64_t count = end - begin, first_row = index * kBlock<T>;
    const Operand<T> keys = s.keys.from(begin - s.tile_begin);
    g.tile(view, keys, s.values.from(begin - s.tile_begin), begin, end, s.weights, s.d_scores, true,
           s.distances);
    if (s.d_value) {
      product<T, Left::kRows>(s.weights, rows.width, s.d_outputs.from(first_row).data,
                              s.d_outputs.stride, s.d_value + begin * width_, width_, count,
                              width_ / kLanes<T>, rows.count, true);
    }
    T *d_query = s.d_query ? s.d_query + first_row * size_ : nullptr;
    T *d_key = s.d_key ? s.d_key + begin * size_ : nullptr;
    if (scores_ && is_additive(p_)) {
      return g.block.additive.add_gradients(s.d_scores, count, d_query, d_key, s.d_vector);
    }
    if (d_key) {
      product<T, Left::kRows>(s.d_scores, rows.width, s.queries.from(first_row).data,
                              s.queries.stride, d_key, size_, count, size_ / kLanes<T>, rows.count,
                              true);
    }
    if (d_query) {
      product<T, Left::kAcross>(s.d_scores, rows.width, keys.data, keys.stride, d_query, size_,
                                rows.count, size_ / kLanes<T>, count, true);
    }
  }

 private:
  using Base::g_;
  using Base::p_;
  using Base::scores_;
  using Base::size_;
  using Base::width_;
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
