// Outputs and log-sum-exps: blocks of rows in parallel, each over the tiles of keys that it sees.
#ifndef REGARD_KERNEL_FORWARD_H
#define REGARD_KERNEL_FORWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

// Tiles of equal size, as near as may be, that cover the keys [first, last).
template <class T>
struct Tiles {
  int64_t first, last, count;
  Tiles(int64_t from, int64_t to)
      : first(from), last(to), count((to - from + kTile<T> - 1) / kTile<T>) {}
  int64_t begin(int64_t t) const { return first + (last - first) * t / count; }
};

template <class T>
class Forward {
 public:
  Forward(const regard_problem &p, const regard_array &output, void *lse)
      : p_(p), output_(output), lse_(static_cast<T *>(lse)), cut_(p) {}

  int run() {
    if (p_.batch == 0 || p_.heads == 0 || p_.queries == 0) return REGARD_OK;
    if (!output_.data && !lse_) return REGARD_OK;
    return parallel(cut_.count(p_), p_.threads, &Forward::task, this);
  }

 private:
  // One block of rows: its state while tiles of keys go by.
  struct State {
    Block<T> block;
    Softmax<T> softmax;
    Dropout<T> dropout;
    T *scores, *factors, *keys, *values, *output;
    bool fresh = true;    // nothing is in `output` yet
    bool masked = false;  // some row could not see some key
  };

  static int task(void *context, int64_t index) {
    const Forward &self = *static_cast<Forward *>(context);
    const regard_problem &p = self.p_;
    Scratch scratch(Scratch::kTask);
    State s;
    s.block.allocate(p, scratch);
    const int64_t width = padded<T>(p.value_size);
    s.scores = scratch.take<T>(kTileSize<T>);
    s.factors = p.dropout > 0 ? scratch.take<T>(kTileSize<T>) : nullptr;
    s.keys = scratch.take<T>(kTile<T> * padded<T>(p.head_size));
    s.values = scratch.take<T>(kTile<T> * width);
    s.output = scratch.take<T>(kBlock<T> * width);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;

    self.cut_.set(p, index, &s.block.rows);
    s.block.set();
    s.softmax.reset(score_unit<T>(p), s.block.rows.width);
    if (p.dropout > 0) s.dropout.set(p, s.block.rows);
    const Tiles<T> tiles(s.block.sight.first(), s.block.sight.last());
    for (int64_t t = 0; t < tiles.count; ++t) self.tile(s, tiles.begin(t), tiles.begin(t + 1));
    return self.finish(s, scratch);
  }

  void tile(State &s, int64_t begin, int64_t end) const {
    const View view = s.block.sight.look(&begin, &end);
    s.masked |= view != View::kAll;
    if (view == View::kNone) return;
    const Rows<T> &rows = s.block.rows;
    const int64_t count = end - begin, head = rows.head[0];
    const int64_t key_head = head / (p_.heads / p_.key_heads);
    const auto keys = operand<T>(p_.key, p_.dtype, rows.batch, key_head, begin, count, p_.head_size,
                                 false, s.keys);
    s.block.scores(keys, begin, end, s.scores);
    if (view == View::kSome) s.block.hide(count, s.scores);
    const bool rescale = s.softmax.take(s.scores, count, rows.width);
    if (!output_.data) return;

    const int64_t width = padded<T>(p_.value_size);
    if (rescale && !s.fresh) rescale_rows(s, width);
    if (p_.dropout > 0) {
      s.dropout.fill(begin, count, s.factors);
      for (int64_t i = 0; i < count * rows.width; i += kLanes<T>) {
        store(s.scores + i, load(s.scores + i) * load(s.factors + i));
      }
    }
    const int64_t value_head = head / (p_.heads / p_.value_heads);
    const auto values = operand<T>(p_.value, p_.dtype, rows.batch, value_head, begin, count,
                                   p_.value_size, true, s.values);
    product<T, Left::kAcross>(s.scores, rows.width, values.data, values.stride, s.output, width,
                              rows.count, width / kLanes<T>, count, !s.fresh);
    s.fresh = false;
  }

  static void rescale_rows(State &s, int64_t width) {
    for (int r = 0; r < s.block.rows.count; ++r) {
      if (s.softmax.rescale[r] == 1) continue;
      const Vec<T> factor = broadcast(s.softmax.rescale[r]);
      T *row = s.output + r * width;
      for (int64_t e = 0; e < width; e += kLanes<T>) store(row + e, load(row + e) * factor);
    }
  }

  // What a row's sum of values is multiplied by; its log-sum-exp, the sink included.
  void normalise(const State &s, int r, T *factor, T *lse) const {
    const T most = s.softmax.pivot[r] * s.softmax.unit * static_cast<T>(kLn2),
            sum = s.softmax.sum[r];
    const bool blind = sum == 0;
    if (!p_.sinks) {
      *factor = blind ? T(0) : 1 / sum;
      *lse = blind ? -kInfinity<T> : most + std::log(sum);
      return;
    }
    const T sink = static_cast<const T *>(p_.sinks)[s.block.rows.head[r]];
    if (blind) {
      *factor = 0;
      *lse = sink;
      return;
    }
    const T top = std::max(most, sink), share = std::exp(most - top);
    const T total = sum * share + std::exp(sink - top);
    *factor = share / total;
    *lse = top + std::log(total);
  }

  int finish(State &s, Scratch &scratch) const {
    const Rows<T> &rows = s.block.rows;
    const int64_t width = padded<T>(p_.value_size);
    if (s.fresh) std::fill(s.output, s.output + rows.count * width, T(0));
    const regard_array absent = {};
    Careful<T> careful(p_, absent, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    for (int r = 0; r < rows.count; ++r) {
      T factor, lse;
      normalise(s, r, &factor, &lse);
      const int64_t b = rows.batch, h = rows.head[r], i = rows.query[r];
      if (lse_) lse_[(b * p_.heads + h) * p_.queries + i] = lse;
      if (!output_.data) continue;
      const T *row = s.output + r * width;
      narrow_row(row_of(output_, p_.dtype, b, h, i), row, p_.value_size, p_.dtype, factor);
      if (!s.masked || finite_row(row, p_.value_size, factor)) continue;
      careful.output(b, h, i, lse, output_);
    }
    return REGARD_OK;
  }

  const regard_problem &p_;
  const regard_array &output_;
  T *lse_;
  Cut<T> cut_;
};

inline int forward(const regard_problem &p, const regard_array &output, void *lse) {
  if (p.dtype == REGARD_FLOAT64) return Forward<double>(p, output, lse).run();
  return Forward<float>(p, output, lse).run();
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
