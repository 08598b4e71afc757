// Gradients of queries, keys, values and sinks.
#ifndef REGARD_KERNEL_BACKWARD_H
#define REGARD_KERNEL_BACKWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

// Work is cut into (batch, key head, chunk of queries). Each piece sums gradients of keys and
// values over its queries; with several chunks the sums are added up afterwards, in the order of
// chunks. Within a piece, panels of queries meet tiles of keys: keys outside, blocks of the panel
// inside.
template <class T>
class Backward {
 public:
  Backward(const regard_problem &p, const regard_gradients &g)
      : p_(p),
        g_(g),
        group_(p.heads / p.key_heads),
        size_(padded<T>(p.head_size)),
        width_(padded<T>(p.value_size)),
        scores_(g.d_query.data || g.d_key.data) {
    const int64_t pieces = std::max<int64_t>(1, p.batch * p.key_heads);
    const int64_t rows = group_ * p.queries;
    chunks_ = std::max<int64_t>(1, std::min((kPieces + pieces - 1) / pieces, rows / kLeastRows));
    chunks_ = std::min(chunks_, std::max<int64_t>(1, p.queries / kBlock<T>));
  }

  int run() {
    if (!scores_ && !g_.d_value.data) return REGARD_OK;
    Scratch scratch(Scratch::kCall);
    const int64_t pieces = p_.batch * p_.key_heads * chunks_;
    if (chunks_ > 1) {
      const int64_t values = p_.batch * p_.value_heads * chunks_;
      if (g_.d_key.data) d_keys_ = scratch.take<T>(pieces * p_.keys * size_);
      if (g_.d_value.data) d_values_ = scratch.take<T>(values * p_.keys * width_);
      if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    }
    const int status = parallel(pieces, p_.threads, &Backward::piece_task, this);
    if (status != REGARD_OK || chunks_ == 1) return status;
    const int64_t blocks = (p_.keys + kBlock<T> - 1) / kBlock<T>;
    return parallel(p_.batch * p_.value_heads * blocks, p_.threads, &Backward::add_task, this);
  }

 private:
  static constexpr int64_t kPieces = 16, kLeastRows = 256;
  static constexpr int kPanelBlocks = 8;
  static constexpr int64_t kPanelRows = kPanelBlocks * kBlock<T>;

  struct Piece {
    int64_t batch, key_head, chunk;
    GradientBlock<T> blocks[kPanelBlocks];
    T *weights, *d_scores;                   // tiles
    T *keys, *values, *queries, *d_outputs;  // converted
    T *d_query, *d_key, *d_value;            // sums: of a panel, of all keys
  };

  static int piece_task(void *context, int64_t index) {
    const Backward &self = *static_cast<Backward *>(context);
    Scratch scratch(Scratch::kTask);
    Piece s;
    // Later queries come first: under a causal mask they take longest.
    s.chunk = self.chunks_ - 1 - index % self.chunks_;
    s.key_head = index / self.chunks_ % self.p_.key_heads;
    s.batch = index / self.chunks_ / self.p_.key_heads;
    self.allocate(s, scratch);
    Careful<T> careful(self.p_, self.g_.d_output, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    self.piece(s, careful);
    return REGARD_OK;
  }

  void allocate(Piece &s, Scratch &scratch) const {
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
    s.d_key = s.d_value = nullptr;
    if (g_.d_key.data) s.d_key = d_keys_ ? d_keys_ : scratch.take<T>(p_.keys * size_);
    if (g_.d_value.data) s.d_value = d_values_ ? d_values_ : scratch.take<T>(p_.keys * width_);
  }

  void piece(Piece &s, Careful<T> &careful) const {
    if (d_keys_) {
      s.d_key += ((s.batch * p_.key_heads + s.key_head) * chunks_ + s.chunk) * p_.keys * size_;
    }
    if (s.d_key) std::fill_n(s.d_key, p_.keys * size_, T(0));
    T *const d_values = s.d_value;
    const int64_t heads_per_value = p_.heads / p_.value_heads;
    const int64_t first = p_.queries * s.chunk / chunks_;
    const int64_t last = p_.queries * (s.chunk + 1) / chunks_;
    for (int64_t h = s.key_head * group_; h < (s.key_head + 1) * group_; ++h) {
      const int64_t value_head = h / heads_per_value;
      if (s.d_value && h % heads_per_value == 0) {
        if (d_values_) {
          const int64_t at = (s.batch * p_.value_heads + value_head) * chunks_ + s.chunk;
          s.d_value = d_values + at * p_.keys * width_;
        }
        std::fill_n(s.d_value, p_.keys * width_, T(0));
      }
      for (int64_t row = first; row < last; row += kPanelRows) {
        panel(s, h, row, std::min(last, row + kPanelRows), careful);
      }
      if (s.d_value && chunks_ == 1 && (h + 1) % heads_per_value == 0) {
        for (int64_t j = 0; j < p_.keys; ++j) {
          write_value(s.batch, value_head, j, s.d_value + j * width_, careful);
        }
      }
    }
    if (!s.d_key || chunks_ > 1) return;
    for (int64_t j = 0; j < p_.keys; ++j) {
      write_key(s.batch, s.key_head, j, s.d_key + j * size_, careful);
    }
  }

  // Queries [first, last) of one head.
  void panel(Piece &s, int64_t head, int64_t first, int64_t last, Careful<T> &careful) const {
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
      tile(s, head, count, tiles.begin(t), tiles.begin(t + 1), queries, d_outputs);
    }
    if (!s.d_query) return;
    for (int64_t i = first; i < last; ++i) {
      const T *row = s.d_query + (i - first) * size_;
      narrow_row(row_of(g_.d_query, p_.dtype, s.batch, head, i), row, p_.head_size, p_.dtype,
                 T(p_.scale));
      if (suspect(row, p_.head_size, T(p_.scale))) {
        careful.d_query(s.batch, head, i, g_);
      }
    }
  }

  // One tile of keys against the blocks of a panel.
  void tile(Piece &s, int64_t head, int64_t count, int64_t first, int64_t last, Operand<T> queries,
            Operand<T> d_outputs) const {
    bool loaded = false;
    Operand<T> keys{}, values{};
    for (int64_t i = 0; i < count; ++i) {
      GradientBlock<T> &g = s.blocks[i];
      int64_t begin = first, end = last;
      const View view = g.block.sight.look(&begin, &end);
      if (view == View::kNone) continue;
      if (!loaded) {
        const int64_t value_head = head / (p_.heads / p_.value_heads);
        keys = operand<T>(p_.key, p_.dtype, s.batch, s.key_head, first, last - first, p_.head_size,
                          true, s.keys);
        if (scores_) {
          values = operand<T>(p_.value, p_.dtype, s.batch, value_head, first, last - first,
                              p_.value_size, false, s.values);
        }
        loaded = true;
      }
      const Operand<T> k{keys.data + (begin - first) * keys.stride, keys.stride};
      const Operand<T> v{scores_ ? values.data + (begin - first) * values.stride : nullptr,
                         values.stride};
      g.tile(view, k, v, begin, end, s.weights, s.d_scores, true);
      add_products(s, i * kBlock<T>, g.block.rows, k, begin, end - begin, queries, d_outputs);
    }
  }

  void add_products(Piece &s, int64_t first_row, const Rows<T> &rows, Operand<T> keys,
                    int64_t begin, int64_t count, Operand<T> queries, Operand<T> d_outputs) const {
    if (s.d_value) {
      product<T, Left::kRows>(s.weights, rows.width, d_outputs.data + first_row * d_outputs.stride,
                              d_outputs.stride, s.d_value + begin * width_, width_, count,
                              width_ / kLanes<T>, rows.count, true);
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

  // Adds up the chunks of a block of keys of one value head (and of its key head, if it is the
  // first of its value heads).
  static int add_task(void *context, int64_t index) {
    const Backward &self = *static_cast<Backward *>(context);
    const regard_problem &p = self.p_;
    const int64_t blocks = (p.keys + kBlock<T> - 1) / kBlock<T>;
    const int64_t first = index % blocks * kBlock<T>, last = std::min(p.keys, first + kBlock<T>);
    const int64_t b = index / blocks / p.value_heads, head = index / blocks % p.value_heads;
    const int64_t per_key = p.value_heads / p.key_heads, key_head = head / per_key;
    Scratch scratch(Scratch::kTask);
    T *sum = scratch.take<T>(std::max(self.size_, self.width_));
    Careful<T> careful(p, self.g_.d_output, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    for (int64_t j = first; j < last; ++j) {
      if (self.d_values_) {
        self.add_chunks(self.d_values_, b * p.value_heads + head, j, self.width_, sum);
        self.write_value(b, head, j, sum, careful);
      }
      if (self.d_keys_ && head % per_key == 0) {
        self.add_chunks(self.d_keys_, b * p.key_heads + key_head, j, self.size_, sum);
        self.write_key(b, key_head, j, sum, careful);
      }
    }
    return REGARD_OK;
  }

  void add_chunks(const T *parts, int64_t head, int64_t j, int64_t size, T *sum) const {
    std::fill_n(sum, size, T(0));
    for (int64_t c = 0; c < chunks_; ++c) {
      add_scaled(sum, parts + ((head * chunks_ + c) * p_.keys + j) * size, T(1), size);
    }
  }

  void write_key(int64_t b, int64_t head, int64_t j, const T *row, Careful<T> &careful) const {
    const T scale = static_cast<T>(p_.scale);
    narrow_row(row_of(g_.d_key, p_.dtype, b, head, j), row, p_.head_size, p_.dtype, scale);
    if (suspect(row, p_.head_size, scale)) careful.d_key(b, head, j, g_);
  }
  void write_value(int64_t b, int64_t head, int64_t j, const T *row, Careful<T> &careful) const {
    narrow_row(row_of(g_.d_value, p_.dtype, b, head, j), row, p_.value_size, p_.dtype, T(1));
    if (suspect(row, p_.value_size, T(1))) careful.d_value(b, head, j, g_);
  }

  // Whether something hidden may have spoilt a row.
  bool suspect(const T *row, int64_t n, T factor) const {
    return (p_.intervals.data || p_.mask.data) && !finite_row(row, n, factor);
  }

  const regard_problem &p_;
  const regard_gradients &g_;
  int64_t group_, size_, width_, chunks_;
  bool scores_;
  T *d_keys_ = nullptr, *d_values_ = nullptr;  // sums of every chunk, if there are several
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
