// Outputs and log-sum-exps: blocks of rows in parallel, each over the tiles of keys that it sees.
#ifndef REGARD_KERNEL_FORWARD_H
#define REGARD_KERNEL_FORWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

// Tiles of equal size, as near as may be, that cover the keys [first, last). Of pages, each page is
// cut so, and the first and the last tile are what is left of them.
template <class T>
struct Tiles {
  int64_t first, last, count, page, parts = 1;
  Tiles(int64_t from, int64_t to, int64_t page_size = 0)
      : first(from), last(std::max(from, to)), page(page_size) {
    if (page) {
      parts = (page + kTile<T> - 1) / kTile<T>;
      start_ = tile_of(first);
      count = last > first ? tile_of(last - 1) + 1 - start_ : 0;
    } else {
      count = (last - first + kTile<T> - 1) / kTile<T>;
    }
  }
  int64_t begin(int64_t t) const {
    if (!page) return first + (last - first) * t / count;
    const int64_t tile = start_ + t, at = tile / parts * page + page * (tile % parts) / parts;
    return std::min(std::max(at, first), last);
  }

 private:
  // Of all tiles from key 0 on, the one that a key lies in.
  int64_t tile_of(int64_t key) const {
    return key / page * parts + ((key % page + 1) * parts - 1) / page;
  }
  int64_t start_ = 0;
};

// Where there are few blocks of rows, the keys are cut too, by shape alone: every chunk of them
// leaves its own pivots, sums and outputs, which are then merged in the order of chunks.
template <class T, class RowBlock = Block<T>>
class Forward {
 public:
  Forward(const regard_problem &p, const regard_array &output, void *lse)
      : Forward(p, output, lse, best_rows<T>(p)) {}
  // Blocks have at most `rows` rows.
  Forward(const regard_problem &p, const regard_array &output, void *lse, int64_t rows)
      : p_(p),
        output_(output),
        lse_(static_cast<T *>(lse)),
        rows_(rows),
        cut_(p, rows),
        blocks_(cut_.count(p)),
        width_(padded<T>(p.value_size)) {
    const int64_t wanted = (kItems + blocks_ - 1) / blocks_;
    chunks_ = std::max<int64_t>(1, std::min(wanted, p.keys / kLeastKeys));
  }

  int run() {
    if (!output_.data && !lse_) return REGARD_OK;
    if (chunks_ == 1) return parallel(blocks_, p_.threads, &Forward::task, this);
    Scratch scratch(Scratch::kCall);
    parts_ = scratch.take<T>(blocks_ * chunks_ * part_size());
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const int status = parallel(blocks_ * chunks_, p_.threads, &Forward::task, this);
    return status == REGARD_OK ? parallel(blocks_, p_.threads, &Forward::merge_task, this) : status;
  }

  // One block alone, some of whose hidden values are known to be infinite or NaN.
  int wary_block(int64_t index) {
    chunks_ = 1;
    return piece(index, 0, true);
  }

  // A tile of keys that some row sees.
  struct Span {
    int64_t begin, count;
  };

  // One block of rows: its state while tiles of keys go by.
  struct State {
    RowBlock block;
    Softmax<T> softmax;
    Dropout<T> dropout;
    T *scores, *factors, *keys, *values, *output;
    int width;  // of rows of `scores`
    Wary<T> wary;
    bool fresh;   // nothing is in `output` yet
    bool masked;  // some row could not see some key
    // Final scores [key][row] of all tiles, what these were, and the largest score of each row in
    // each [tile][row], if they are to be kept.
    T *kept = nullptr, *largest;
    Span *spans;
    int64_t span_count;
  };

  // Whether every block of rows belongs to one head and takes all its keys: then `block` may be
  // called from outside, with rows as Cut makes them.
  bool whole() const { return chunks_ == 1 && cut_.heads == 1; }
  int64_t rows() const { return rows_; }

  // `keep`: to keep the scores of a block.
  void allocate(State &s, bool keep, Scratch &scratch) const {
    s.block.allocate(p_, scratch);
    s.scores = scratch.take<T>(kTileSize<T>);
    const bool drops = p_.dropout > 0 && output_.data;
    s.factors = drops ? scratch.take<T>(kTileSize<T>) : nullptr;
    s.keys = scratch.take<T>(kTile<T> * padded<T>(p_.head_size));
    s.values = scratch.take<T>(kTile<T> * width_);
    s.wary.allocate(width_, scratch);
    if (!parts_) s.output = scratch.take<T>(kBlock<T> * width_);
    if (!keep) return;
    s.kept = scratch.take<T>(kBlock<T> * p_.keys);
    s.spans = scratch.take<Span>(p_.keys / kTile<T> + 1);
    s.largest = scratch.take<T>((p_.keys / kTile<T> + 1) * kBlock<T>);
  }

  // Outputs and log-sum-exps of s.block.rows.
  void block(State &s) const {
    chunk(s, 0, false);
    finish(s.block.rows, s.softmax, s.output);
  }

 private:
  static constexpr int64_t kItems = 64, kLeastKeys = 512;
  // Values that few rows take at a time. Processors with fast pairs want them asked for earlier.
  static constexpr int kStep = RowBlock::kPairs ? 2 * kStepValues : kStepValues;

  // What a chunk of keys leaves of a block of rows.
  struct Part {
    T *pivot, *sum, *output;
  };

  int64_t part_rows() const {
    return padded<T>(std::min<int64_t>(kBlock<T>, cut_.heads * p_.queries));
  }
  int64_t part_size() const { return part_rows() * (2 + width_); }
  Part part(int64_t index) const {
    T *at = parts_ + index * part_size();
    return {at, at + part_rows(), at + 2 * part_rows()};
  }

  static int task(void *context, int64_t index) {
    const Forward &self = *static_cast<Forward *>(context);
    return self.piece(index / self.chunks_, index % self.chunks_, false);
  }

  // One block over one chunk of its keys.
  int piece(int64_t index, int64_t chunk, bool wary) const {
    Scratch scratch(Scratch::kTask);
    State s;
    allocate(s, false, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    cut_.set(p_, index, &s.block.rows);
    if (!parts_) {
      this->chunk(s, chunk, wary);
      finish(s.block.rows, s.softmax, s.output);
      return REGARD_OK;
    }
    const Part part = this->part(index * chunks_ + chunk);
    s.output = part.output;
    this->chunk(s, chunk, wary);
    std::copy_n(s.softmax.pivot, s.block.rows.width, part.pivot);
    std::copy_n(s.softmax.sum, s.block.rows.width, part.sum);
    return REGARD_OK;
  }

  void chunk(State &s, int64_t index, bool wary) const {
    s.block.set();
    s.wary.on = wary;
    if (p_.dropout > 0) s.dropout.set(p_, s.block.rows);
    sweep(s, index);
    if (wary || !output_.data || !s.masked || finite(s)) return;
    s.wary.on = true;
    sweep(s, index);
  }

  // The tiles of one chunk of what the block sees.
  void sweep(State &s, int64_t chunk) const {
    s.softmax.reset(score_unit<T>(p_), s.block.rows.width);
    s.fresh = true;
    s.masked = false;
    s.span_count = 0;
    const int64_t page = p_.pages ? p_.page_size : 0;
    const Tiles<T> tiles(s.block.sight.first(), s.block.sight.last(), page);
    const int64_t last = tiles.count * (chunk + 1) / chunks_;
    for (int64_t t = tiles.count * chunk / chunks_; t < last; ++t) {
      tile(s, tiles.begin(t), tiles.begin(t + 1));
    }
    if (s.fresh) std::fill_n(s.output, s.block.rows.count * width_, T(0));
  }

  void tile(State &s, int64_t begin, int64_t end) const {
    const View view = s.block.sight.look(&begin, &end);
    s.masked |= view != View::kAll;
    if (view == View::kNone) return;
    const int64_t count = end - begin;
    if (s.factors) s.dropout.fill(begin, count, s.factors);
    const bool rescale = close(s, view) ? take_group(s, begin, count) : take(s, view, begin, count);
    if (s.kept) {
      std::copy_n(s.softmax.most, s.block.rows.width,
                  s.largest + s.span_count * s.block.rows.width);
      s.spans[s.span_count++] = {begin, count};
    }
    if (!output_.data) return;

    if (rescale && !s.fresh) rescale_rows(s);
    add_values(s, view, begin, count);
    s.fresh = false;
  }

  // Whether weights and values of a tile go into pairs.
  bool paired(const State &s) const {
    return RowBlock::kPairs && s.block.rows.count > kStepRows && !s.wary.on;
  }

  // Scores of a tile become weights. Returns whether some row must be rescaled.
  bool take(State &s, View view, int64_t begin, int64_t count) const {
    s.width = s.block.rows.width;
    T *scores = s.kept ? s.kept + begin * s.width : s.scores;
    s.block.scores(begin, begin + count, s.keys, scores);
    if (view == View::kSome) s.block.sight.hide(count, scores);
    if constexpr (RowBlock::kPairs) {
      const typename RowBlock::Weights pairs{s.scores, s.factors, s.width};
      if (paired(s)) return s.softmax.take(scores, count, s.width, pairs);
    }
    const bool rescale = s.softmax.take(scores, count, s.width, PlainWeights<T>{s.scores, s.width});
    for (int64_t i = 0; s.factors && i < count * s.width; i += kLanes<T>) {
      store(s.scores + i, load(s.scores + i) * load(s.factors + i));
    }
    return rescale;
  }

  // Of very few rows the scores of several keys share a vector, if nothing but products is in them.
  bool close(const State &s, View view) const {
    return s.block.rows.count <= kGroup<T> && view == View::kAll && plain(p_) && !is_additive(p_) &&
           p_.dropout == 0;
  }
  bool take_group(State &s, int64_t begin, int64_t count) const {
    const Rows<T> &rows = s.block.rows;
    s.width = group_of<T>(rows.count);
    s.block.products(begin, begin + count, s.width, s.scores);
    for (int64_t j = 0; s.kept && j < count; ++j) {
      T *kept = s.kept + (begin + j) * rows.width;
      std::fill_n(std::copy_n(s.scores + j * s.width, rows.count, kept), rows.width - rows.count,
                  T(0));
    }
    if (output_.data) await_values(s, begin);
    return s.softmax.take_group(s.scores, count, s.width);
  }
  // The first values of a tile, on their way while weights are made.
  void await_values(const State &s, int64_t begin) const {
    const Rows<T> &rows = s.block.rows;
    const int64_t head = rows.head[0] / (p_.heads / p_.value_heads), size = element_size(p_.dtype);
    const regard_array value = array_at(p_, p_.value, rows.batch, begin);
    const void *first = row_of(value, p_.dtype, rows.batch, head, begin);
    const Operand<char> values{static_cast<const char *>(first), value.row_stride * size};
    for (int64_t j = 0; j < kStep; ++j) prefetch_row(values, j, p_.value_size * size);
  }

  // output (+)= weights x values
  void add_values(State &s, View view, int64_t begin, int64_t count) const {
    const Rows<T> &rows = s.block.rows;
    const int64_t head = rows.head[0] / (p_.heads / p_.value_heads);
    const regard_array value = array_at(p_, p_.value, rows.batch, begin);
    if constexpr (RowBlock::kPairs) {
      if (paired(s)) {
        const auto pairs = s.block.pair_values(value, head, begin, count, s.values);
        return add<false>(s, pairs, 0, (count + 1) / 2);
      }
    }
    if (rows.count <= kStepRows && !s.wary.on && p_.value_size == width_) {
      if constexpr (std::is_same_v<T, float>) {
        if (p_.dtype == REGARD_FLOAT16) return add_streamed<Float16>(s, head, begin, count);
        if (p_.dtype == REGARD_BFLOAT16) return add_streamed<BFloat16>(s, head, begin, count);
      }
      return add_streamed<T>(s, head, begin, count);
    }
    auto values =
        operand<T>(value, p_.dtype, rows.batch, head, begin, count, p_.value_size, true, s.values);
    const bool some = s.wary.on && view == View::kSome;
    if (some) values = s.wary.clean(values, count, width_, s.values);
    add_all<false>(s, values, count);
    if (some) s.wary.add_spoilt(p_, value, rows, head, begin, s.scores, s.output, width_);
  }

  // The same, of values that lie in memory and are read once.
  template <class S>
  void add_streamed(State &s, int64_t head, int64_t begin, int64_t count) const {
    const int64_t next = begin + count < s.block.sight.last() ? begin + count : -1;
    const auto values = streamed<S>(p_, p_.value, s.block.rows.batch, head, begin, next, kStep);
    add_all<true>(s, values, count);
  }
  // With few rows all columns of some keys are read before the next keys, which are on their way.
  template <bool kAsks, class S>
  void add_all(State &s, Operand<S> values, int64_t count) const {
    const int64_t step = s.block.rows.count > kStepRows ? count : kStep;
    for (int64_t j = 0; j < count; j += step) add<kAsks>(s, values, j, std::min(step, count - j));
  }
  template <bool kAsks, class S>
  void add(State &s, Operand<S> values, int64_t first, int64_t count) const {
    product<T, Left::kAcross, kAsks>(s.scores + first * s.width, s.width,
                                     values.data + first * values.stride, values.stride, s.output,
                                     width_, s.block.rows.count, width_ / kLanes<T>, count,
                                     first > 0 || !s.fresh, values.ahead);
  }

  void rescale_rows(State &s) const {
    for (int r = 0; r < s.block.rows.count; ++r) {
      if (s.softmax.rescale[r] == 1) continue;
      const Vec<T> factor = broadcast(s.softmax.rescale[r]);
      T *row = s.output + r * width_;
      for (int64_t e = 0; e < width_; e += kLanes<T>) store(row + e, load(row + e) * factor);
    }
  }

  bool finite(const State &s) const {
    for (int r = 0; r < s.block.rows.count; ++r) {
      if (!finite_row(s.output + r * width_, p_.value_size, T(1))) return false;
    }
    return true;
  }

  static int merge_task(void *context, int64_t index) {
    const Forward &self = *static_cast<Forward *>(context);
    Scratch scratch(Scratch::kTask);
    T *output = scratch.take<T>(kBlock<T> * self.width_);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    Rows<T> rows;
    self.cut_.set(self.p_, index, &rows);
    Softmax<T> softmax;
    softmax.reset(score_unit<T>(self.p_), rows.width);
    std::fill_n(output, rows.count * self.width_, T(0));
    for (int r = 0; r < rows.count; ++r) self.merge(index, r, softmax, output + r * self.width_);
    self.finish(rows, softmax, output);
    return REGARD_OK;
  }

  // One row of a block, over its chunks.
  void merge(int64_t block, int r, Softmax<T> &softmax, T *output) const {
    T top = -kInfinity<T>;
    for (int64_t c = 0; c < chunks_; ++c) {
      top = std::max(top, part(block * chunks_ + c).pivot[r]);
    }
    softmax.pivot[r] = top;
    for (int64_t c = 0; c < chunks_; ++c) {
      const Part from = part(block * chunks_ + c);
      const T behind = from.pivot[r] == top ? T(0) : (from.pivot[r] - top) * softmax.unit;
      const T share = std::exp2(behind);
      softmax.sum[r] += share * from.sum[r];
      if (output_.data) add_scaled(output, from.output + r * width_, share, width_);
    }
  }

  void finish(const Rows<T> &rows, const Softmax<T> &softmax, const T *output) const {
    for (int r = 0; r < rows.count; ++r) {
      const int64_t b = rows.batch, h = rows.head[r], i = rows.query[r];
      T factor;
      normalise(p_, softmax, h, r, &factor,
                lse_ ? lse_ + (b * p_.heads + h) * p_.queries + i : nullptr);
      if (!output_.data) continue;
      narrow_row(row_of(output_, p_.dtype, b, h, i), output + r * width_, p_.value_size, p_.dtype,
                 factor);
    }
  }

  const regard_problem &p_;
  const regard_array &output_;
  T *lse_;
  int64_t rows_;  // of a block, at most
  Cut<T> cut_;
  int64_t blocks_, width_, chunks_;
  T *parts_ = nullptr;  // of every block, of every chunk, if there are several
};

inline int forward(const regard_problem &p, const regard_array &output, void *lse) {
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return REGARD_OK;
  if (p.dtype == REGARD_FLOAT64) return Forward<double>(p, output, lse).run();
  return Forward<float>(p, output, lse).run();
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
