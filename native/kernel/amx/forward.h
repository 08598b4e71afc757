// The bfloat16 forward on the matrix unit. Keys and values are packed once for each head. Blocks of
// rows then take their tiles of keys in three steps, and each round does one step of three tiles:
// products of the next tile, weights of this one, sums of values of the one before. The steps do
// not depend on one another and are cut into pieces that alternate, so that the matrix unit and the
// vector units work at the same time.
#ifndef REGARD_KERNEL_AMX_FORWARD_H
#define REGARD_KERNEL_AMX_FORWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

// Keys in a tile of scores, at most: a multiple of kDepth.
constexpr int64_t kKeys = 64;
static_assert(kKeys <= kTile<float>, "Sight's and Adjust's buffers are as large as that");

// Fewer rows than a tile of the matrix unit leave too much of it empty.
inline bool pays(const regard_problem &p) {
  if (p.dtype != REGARD_BFLOAT16 || !(p.scale > 0) || p.head_size == 0) return false;
  return Cut<float>(p).heads * p.queries >= kTileRows;
}

class Pipeline {
 public:
  Pipeline(const regard_problem &p, const regard_array &output, float *lse)
      : p_(p), output_(output), lse_(lse), cut_(p), shape_(p) {}

  int run() {
    if (p_.batch == 0 || p_.heads == 0 || p_.queries == 0) return REGARD_OK;
    if (!output_.data && !lse_) return REGARD_OK;
    Scratch scratch(Scratch::kCall);
    keys_ = scratch.take<uint16_t>(p_.batch * p_.key_heads * shape_.key_count());
    if (output_.data) {
      values_ = scratch.take<uint16_t>(p_.batch * p_.value_heads * shape_.value_count());
    }
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    slices_ = (shape_.keys + kSlice - 1) / kSlice;
    const int64_t heads = p_.batch * (p_.key_heads + (values_ ? p_.value_heads : 0));
    parallel(heads * slices_, p_.threads, &Pipeline::pack, this);
    return parallel(cut_.count(p_), p_.threads, &Pipeline::task, this);
  }

 private:
  // Keys that are packed at a time.
  static constexpr int64_t kSlice = 512;

  // A tile of keys on its way.
  struct Step {
    bool live = false;
    int64_t base, begin, end;    // what some row sees, and its start rounded down to kDepth
    int64_t first_pair, pairs;   // pairs of keys, counted from `base`, that get weights
    float *scores;               // from `base` on
    uint32_t *weights;           // likewise, in pairs
    bool rescale;                // its largest scores have moved some pivot
  };

  struct State {
    Rows<float> rows;
    Sight<float> sight;
    Adjust<float> adjust;
    Weights weights;
    Dropout<float> dropout;
    uint16_t *queries;
    const uint16_t *keys, *values;
    float *scores[2], *factors, *output;
    uint32_t *pairs[2];
    Step now, before;     // whose weights come next; whose sums of values come next
    int turn = 0;         // of the two buffers
    bool fresh = true;    // nothing is in `output` yet
    bool masked = false;  // some row could not see some key
  };

  static int pack(void *context, int64_t index) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    const regard_problem &p = self.p_;
    const int64_t first = index % self.slices_ * kSlice, head = index / self.slices_;
    const int64_t last = std::min(first + kSlice, self.shape_.keys), keys = p.batch * p.key_heads;
    if (head < keys) {
      pack_keys(p, head / p.key_heads, head % p.key_heads, first, last,
                self.keys_ + head * self.shape_.key_count());
    } else {
      const int64_t other = head - keys;
      pack_values(p, other / p.value_heads, other % p.value_heads, first, last,
                  self.values_ + other * self.shape_.value_count());
    }
    return REGARD_OK;
  }

  static int task(void *context, int64_t index) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    const regard_problem &p = self.p_;
    Scratch scratch(Scratch::kTask);
    State s;
    auto *staging = scratch.take<float>(std::max<int64_t>(
        kTileSize<float>, kBlock<float> * std::max(self.shape_.width, self.shape_.depth)));
    s.queries = scratch.take<uint16_t>(kBlock<float> * self.shape_.depth);
    for (int i = 0; i < 2; ++i) {
      s.scores[i] = scratch.take<float>(kKeys * kBlock<float>);
      s.pairs[i] = scratch.take<uint32_t>(kKeys / 2 * kBlock<float>);
    }
    s.factors = p.dropout > 0 ? scratch.take<float>(kKeys * kBlock<float>) : nullptr;
    s.output = scratch.take<float>(kBlock<float> * self.shape_.width);
    s.sight.allocate(p, scratch);
    s.adjust.allocate(p, staging, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    self.cut_.set(p, index, &s.rows);
    self.rows(s, staging);
    return self.finish(s, staging, scratch);
  }

  // All tiles of a block of rows.
  void rows(State &s, float *staging) const {
    const MatrixUnit unit;
    const int64_t b = s.rows.batch, h = s.rows.head[0];
    s.keys = keys_ + (b * p_.key_heads + h / (p_.heads / p_.key_heads)) * shape_.key_count();
    s.values = values_ + (b * p_.value_heads + h / (p_.heads / p_.value_heads)) * shape_.value_count();
    pack_queries(p_, s.rows, reinterpret_cast<uint16_t *>(staging), s.queries);
    s.sight.set(s.rows);
    s.weights.reset(score_unit<float>(p_), s.rows.width);
    if (p_.dropout > 0) s.dropout.set(p_, s.rows);
    const int64_t first = s.sight.first() / kDepth * kDepth;
    for (int64_t begin = first; begin < s.sight.last(); begin += kKeys) {
      tile(s, begin, std::min(begin + kKeys, p_.keys));
    }
    round(s, Step());
    round(s, Step());
  }

  void tile(State &s, int64_t begin, int64_t end) const {
    Step step;
    step.base = begin;
    const int64_t last = end;
    const View view = s.sight.look(&begin, &end);
    s.masked |= view != View::kAll || begin != step.base || end != last;
    if (view == View::kNone) return;
    step.live = true;
    step.base = begin / kDepth * kDepth;
    step.begin = begin;
    step.end = end;
    step.first_pair = (begin - step.base) / 2;
    step.pairs = (end - step.base + 1) / 2 - step.first_pair;
    step.scores = s.scores[s.turn];
    step.weights = s.pairs[s.turn];
    s.turn = 1 - s.turn;
    round(s, step);
    settle(s, view);
  }

  // The products of `next`, the weights of s.now and the sums of values of s.before.
  void round(State &s, const Step &next) const {
    const TileProduct scores = product_of_queries(s, next), sums = product_of_values(s);
    const int blocks = scores.blocks() + sums.blocks();
    const int64_t steps = s.now.live ? s.now.pairs * (s.rows.width / kLanes<float>) : 0;
    int64_t done = 0;
    for (int i = 0; i < blocks; ++i) {
      if (i < scores.blocks()) {
        scores.block(i);
      } else {
        sums.block(i - scores.blocks());
      }
      const int64_t last = steps * (i + 1) / blocks;
      weigh(s, done, last);
      done = last;
    }
    weigh(s, done, steps);
    if (sums.blocks()) s.fresh = false;
    if (s.now.live && s.now.rescale && !s.fresh) rescale(s);
    s.before = s.now;
    s.now = next;
  }

  TileProduct product_of_queries(const State &s, const Step &next) const {
    TileProduct product;
    if (!next.live) return product;
    const int64_t row = shape_.depth * 2;
    product.a = reinterpret_cast<const char *>(s.keys + next.base * shape_.depth);
    product.a_row = row;
    product.a_tile = row * kTileRows;
    product.a_depth = kTileBytes;
    product.b = reinterpret_cast<const char *>(s.queries);
    product.c = reinterpret_cast<char *>(next.scores);
    product.width = s.rows.width * 4;
    product.tiles_m = static_cast<int>((next.end - next.base + kTileRows - 1) / kTileRows);
    product.tiles_n = s.rows.width / kTileRows;
    product.depth = shape_.depth / kDepth;
    return product;
  }

  TileProduct product_of_values(const State &s) const {
    TileProduct product;
    if (!s.before.live || !values_) return product;
    product.a = reinterpret_cast<const char *>(s.values + s.before.base * shape_.width);
    product.a_row = kTileBytes;
    product.a_tile = kTileBytes * kTileRows;
    product.a_depth = kTileBytes * shape_.width;
    product.b = reinterpret_cast<const char *>(s.before.weights);
    product.c = reinterpret_cast<char *>(s.output);
    product.width = s.rows.width * 4;
    product.tiles_m = static_cast<int>(shape_.width / kTileRows);
    product.tiles_n = s.rows.width / kTileRows;
    product.depth = (s.before.end - s.before.base + kDepth - 1) / kDepth;
    product.add = !s.fresh;
    return product;
  }

  void weigh(State &s, int64_t first, int64_t last) const {
    const int width = s.rows.width;
    const Step &now = s.now;
    if (first == last) return;
    const int64_t skip = 2 * now.first_pair * width;
    uint32_t *to = now.weights + now.first_pair * width;
    if (p_.dropout > 0) {
      s.weights.weigh<true>(now.scores + skip, s.factors + skip, width, now.pairs, to, first, last);
    } else {
      s.weights.weigh<false>(now.scores + skip, nullptr, width, now.pairs, to, first, last);
    }
  }

  // What is left to do to the scores of s.now before they can become weights.
  void settle(State &s, View view) const {
    Step &now = s.now;
    const int width = s.rows.width;
    const int64_t lead = now.begin - now.base, count = now.end - now.begin;
    float *scores = now.scores + lead * width;
    s.adjust.apply(s.rows, now.begin, now.end, scores);
    if (view == View::kSome) hide(s.sight, count, width, scores);
    // Weights come in pairs of keys, and are summed up in multiples of kDepth.
    const int64_t first = 2 * now.first_pair, last = first + 2 * now.pairs;
    std::fill(now.scores + first * width, scores, -kInfinity<float>);
    std::fill(scores + count * width, now.scores + last * width, -kInfinity<float>);
    std::fill_n(now.weights, now.first_pair * width, 0u);
    std::fill(now.weights + last / 2 * width,
              now.weights + round_up(now.end - now.base, kDepth) / 2 * width, 0u);
    if (p_.dropout > 0) s.dropout.fill(now.base, last, s.factors);
    now.rescale = s.weights.rise(scores, count, width);
  }

  static void hide(const Sight<float> &sight, int64_t count, int width, float *scores) {
    const F hidden = broadcast(-kInfinity<float>);
    for (int64_t j = 0; j < count; ++j) {
      for (int r = 0; r < width; r += kLanes<float>) {
        float *at = scores + j * width + r;
        store(at, select(sight.visible(j, r), load(at), hidden));
      }
    }
  }

  void rescale(State &s) const {
    const int width = s.rows.width;
    for (int r = 0; r < width; r += kLanes<float>) {
      const F factor = load(s.weights.rescale + r);
      for (int64_t e = 0; e < shape_.width; ++e) {
        float *at = s.output + e * width + r;
        store(at, load(at) * factor);
      }
    }
  }

  void normalise(const State &s, int r, float *factor, float *lse) const {
    const float most = s.weights.pivot[r] * s.weights.unit * static_cast<float>(kLn2),
                sum = s.weights.sum[r];
    const bool blind = sum == 0;
    if (!p_.sinks) {
      *factor = blind ? 0.f : 1 / sum;
      *lse = blind ? -kInfinity<float> : most + std::log(sum);
      return;
    }
    const float sink = static_cast<const float *>(p_.sinks)[s.rows.head[r]];
    if (blind) {
      *factor = 0;
      *lse = sink;
      return;
    }
    const float top = std::max(most, sink), share = std::exp(most - top);
    const float total = sum * share + std::exp(sink - top);
    *factor = share / total;
    *lse = top + std::log(total);
  }

  int finish(State &s, float *staging, Scratch &scratch) const {
    const int64_t size = shape_.width, width = s.rows.width;
    if (s.fresh) std::fill_n(s.output, size * width, 0.f);
    if (output_.data) transpose(s.output, width, staging, size, size, width);
    const regard_array absent = {};
    Careful<float> careful(p_, absent, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    for (int r = 0; r < s.rows.count; ++r) {
      float factor, lse;
      normalise(s, r, &factor, &lse);
      const int64_t b = s.rows.batch, h = s.rows.head[r], i = s.rows.query[r];
      if (lse_) lse_[(b * p_.heads + h) * p_.queries + i] = lse;
      if (!output_.data) continue;
      const float *row = staging + r * size;
      narrow_row(row_of(output_, p_.dtype, b, h, i), row, p_.value_size, p_.dtype, factor);
      if (!s.masked || finite_row(row, p_.value_size, factor)) continue;
      careful.output(b, h, i, lse, output_);
    }
    return REGARD_OK;
  }

  const regard_problem &p_;
  const regard_array &output_;
  float *lse_;
  Cut<float> cut_;
  PackedShape shape_;
  uint16_t *keys_ = nullptr, *values_ = nullptr;
  int64_t slices_ = 0;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
