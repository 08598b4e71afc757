// The bfloat16 forward on the matrix unit. Keys and values are packed once for each head. Blocks of
// rows then take their keys in tiles of 32, in three steps, and each round does one step of three
// tiles: products of the next one, weights of this one, sums of values of a group of those before.
// The steps do not depend on one another and are cut into pieces that alternate, so that the matrix
// unit and the vector units work at the same time; all that they touch but keys and values stays in
// the first-level cache.
#ifndef REGARD_KERNEL_AMX_FORWARD_H
#define REGARD_KERNEL_AMX_FORWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

// Rows of a block, keys of a tile of scores, and tiles whose values are summed up together: their
// sums are then loaded and stored once.
constexpr int kBlockRows = 2 * kTileRows;
constexpr int64_t kTileKeys = kDepth;
constexpr int kGroupTiles = 4;
static_assert(kBlockRows * kTileKeys * kGroupTiles <= kTileSize<float>, "as Sight's buffers are");

// Scores within so many powers of 2 of 1 need no largest score to be subtracted: their weights and
// sums lie far inside the range of float32 and of bfloat16.
constexpr float kBounded = 60;

// Fewer rows than a tile of the matrix unit leave too much of it empty.
inline bool pays(const regard_problem &p) {
  if (p.dtype != REGARD_BFLOAT16 || !(p.scale > 0) || p.head_size == 0) return false;
  return Cut<float>(p, kBlockRows).heads * p.queries >= kTileRows;
}

class Pipeline {
 public:
  Pipeline(const regard_problem &p, const regard_array &output, float *lse)
      : p_(p), output_(output), lse_(lse), cut_(p, kBlockRows), shape_(p) {}

  int run() {
    if (p_.batch == 0 || p_.heads == 0 || p_.queries == 0) return REGARD_OK;
    if (!output_.data && !lse_) return REGARD_OK;
    Scratch scratch(Scratch::kCall);
    keys_ = scratch.take<uint16_t>(p_.batch * p_.key_heads * shape_.key_count());
    if (output_.data) {
      values_ = scratch.take<uint16_t>(p_.batch * p_.value_heads * shape_.value_count());
    }
    slices_ = (shape_.keys + kSlice - 1) / kSlice;
    lengths_ = scratch.take<float>(p_.batch * p_.key_heads * slices_);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
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
    int64_t base, begin, end;  // what some row sees, and its start rounded down to kTileKeys
    float *scores;             // from `base` on
  };

  // Tiles next to one another whose weights are there, or on their way.
  struct Group {
    int64_t base;
    int tiles = 0;
    uint32_t *weights;  // in pairs of keys
    bool add;           // to sums that are there
    int done = 0;       // blocks of its product
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
    Step now;               // whose weights come next
    Group filling, summing;
    int turn = 0;           // of the two buffers of scores
    bool bounded;
    bool fresh = true;      // nothing is in `output` yet
    bool masked = false;    // some row could not see some key
  };

  static int pack(void *context, int64_t index) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    const regard_problem &p = self.p_;
    const int64_t first = index % self.slices_ * kSlice, head = index / self.slices_;
    const int64_t last = std::min(first + kSlice, self.shape_.keys), keys = p.batch * p.key_heads;
    if (head < keys) {
      self.lengths_[index] = pack_keys(p, head / p.key_heads, head % p.key_heads, first, last,
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
    constexpr int64_t tile = kTileKeys * kBlockRows;
    Scratch scratch(Scratch::kTask);
    State s;
    auto *staging = scratch.take<float>(
        std::max(kTileKeys, kBlockRows * std::max(self.shape_.width, self.shape_.depth)));
    s.queries = scratch.take<uint16_t>(kBlockRows * self.shape_.depth);
    for (float *&scores : s.scores) scores = scratch.take<float>(tile);
    s.filling.weights = scratch.take<uint32_t>(kGroupTiles * tile / 2);
    s.summing.weights = scratch.take<uint32_t>(kGroupTiles * tile / 2);
    s.factors = p.dropout > 0 ? scratch.take<float>(tile) : nullptr;
    s.output = scratch.take<float>(kBlockRows * self.shape_.width);
    s.sight.allocate(p, scratch);
    s.adjust.allocate(p, staging, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    self.cut_.set(p, index, &s.rows);
    self.start(s, staging);
    self.sweep(s);
    return self.finish(s, staging, scratch);
  }

  void start(State &s, float *staging) const {
    const int64_t b = s.rows.batch, h = s.rows.head[0];
    const int64_t key_head = b * p_.key_heads + h / (p_.heads / p_.key_heads);
    const int64_t value_head = b * p_.value_heads + h / (p_.heads / p_.value_heads);
    s.keys = keys_ + key_head * shape_.key_count();
    s.values = values_ + value_head * shape_.value_count();
    const float length =
        pack_queries(p_, s.rows, reinterpret_cast<uint16_t *>(staging), s.queries);
    s.sight.set(s.rows);
    if (p_.dropout > 0) s.dropout.set(p_, s.rows);
    const float *lengths = lengths_ + key_head * slices_;
    const float unit = score_unit<float>(p_);
    const float longest = slices_ ? *std::max_element(lengths, lengths + slices_) : 0;
    const float largest = p_.softcap > 0 ? static_cast<float>(p_.softcap) : std::sqrt(length * longest);
    s.bounded = !p_.bias.data && largest * unit <= kBounded;
    if (s.bounded) {
      s.weights.reset_bounded(unit, s.rows.width);
    } else {
      s.weights.reset(unit, s.rows.width);
    }
  }

  // All tiles of a block of rows.
  void sweep(State &s) const {
    const MatrixUnit unit;
    const bool hides = p_.intervals.data || p_.mask.data;
    const int64_t first = s.sight.first() / kTileKeys * kTileKeys;
    for (int64_t g = first; g < s.sight.last(); g += kGroupTiles * kTileKeys) {
      const int64_t stop = std::min(g + kGroupTiles * kTileKeys, p_.keys);
      int64_t begin = g, end = stop;
      bool whole = !hides;
      // Looks at a dense mask are dear, and are left to the tiles.
      if (p_.intervals.data && !p_.mask.data) {
        const View view = s.sight.look(&begin, &end);
        whole = view == View::kAll && begin == g && end == stop;
        s.masked |= !whole;
        if (view == View::kNone) continue;
      }
      for (int64_t j = begin / kTileKeys * kTileKeys; j < end; j += kTileKeys) {
        tile(s, j, std::min(j + kTileKeys, p_.keys), whole);
      }
    }
    round(s, Step());
    close(s);
    close(s);
  }

  void tile(State &s, int64_t begin, int64_t end, bool whole) const {
    const int64_t base = begin, last = end;
    const View view = whole ? View::kAll : s.sight.look(&begin, &end);
    s.masked |= view != View::kAll || begin != base || end != last;
    if (view == View::kNone) return;
    s.turn = 1 - s.turn;
    round(s, {true, base, begin, end, s.scores[s.turn]});
    settle(s, view);
  }

  // The products of `next`, the weights of s.now and some of the sums of values of s.summing.
  void round(State &s, const Step &next) const {
    Weigher weigher = s.now.live ? start_weights(s) : Weigher();
    if (next.live) {
      const TileProduct products = product_of_queries(s, next);
      for (int i = 0; i < products.blocks(); ++i) products.block(i, weigher);
    }
    if (s.summing.tiles) {
      const TileProduct sums = product_of_values(s, s.summing);
      const int stop = s.summing.done + (sums.blocks() + kGroupTiles - 1) / kGroupTiles;
      sum(s, sums, std::min(stop, sums.blocks()), weigher);
    }
    weigher.finish();
    s.now = next;
  }

  Weigher start_weights(State &s) const {
    const Step &now = s.now;
    const int width = s.rows.width;
    Group &group = s.filling;
    if (group.tiles == kGroupTiles || now.base != group.base + group.tiles * kTileKeys) close(s);
    if (!group.tiles) group.base = now.base;
    uint32_t *to = group.weights + group.tiles++ * kTileKeys / 2 * width;
    // Pairs of keys that nothing sees weigh nothing.
    const int64_t first = (now.begin - now.base) / 2, last = (now.end - now.base + 1) / 2;
    std::fill(to, to + first * width, 0u);
    std::fill(to + last * width, to + kTileKeys / 2 * width, 0u);
    const int64_t skip = 2 * first * width;
    return Weigher(&s.weights, now.scores + skip, s.factors ? s.factors + skip : nullptr,
                   last - first, width, to + first * width);
  }

  // Ends the group that is being filled; its sums come next, and those before it are finished.
  void close(State &s) const {
    Weigher nothing;
    if (s.summing.tiles) {
      const TileProduct sums = product_of_values(s, s.summing);
      sum(s, sums, sums.blocks(), nothing);
    }
    std::swap(s.filling, s.summing);
    s.filling.tiles = s.filling.done = 0;
    s.summing.add = !s.fresh;
    if (s.summing.tiles) s.fresh = false;
  }

  void sum(State &s, const TileProduct &sums, int stop, Weigher &weigher) const {
    for (; s.summing.done < stop; ++s.summing.done) sums.block(s.summing.done, weigher);
  }

  TileProduct product_of_queries(const State &s, const Step &next) const {
    TileProduct product;
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

  TileProduct product_of_values(const State &s, const Group &group) const {
    TileProduct product;
    if (!values_) return product;
    product.a = reinterpret_cast<const char *>(s.values + group.base * shape_.width);
    product.a_row = kTileBytes;
    product.a_tile = kTileBytes * kTileRows;
    product.a_depth = kTileBytes * shape_.width;
    product.b = reinterpret_cast<const char *>(group.weights);
    product.c = reinterpret_cast<char *>(s.output);
    product.width = s.rows.width * 4;
    product.tiles_m = static_cast<int>(shape_.width / kTileRows);
    product.tiles_n = s.rows.width / kTileRows;
    product.depth = group.tiles;
    product.add = group.add;
    return product;
  }

  // What is left to do to the scores of s.now before they can become weights.
  void settle(State &s, View view) const {
    const Step &now = s.now;
    const int width = s.rows.width;
    const int64_t lead = now.begin - now.base, count = now.end - now.begin;
    float *scores = now.scores + lead * width;
    s.adjust.apply(s.rows, now.begin, now.end, scores);
    if (view == View::kSome) hide(s.sight, count, width, scores);
    // Weights come in pairs of keys.
    if (lead % 2) std::fill(scores - width, scores, -kInfinity<float>);
    if ((lead + count) % 2) std::fill_n(scores + count * width, width, -kInfinity<float>);
    if (p_.dropout > 0) s.dropout.fill(now.base, round_up(lead + count, 2), s.factors);
    if (s.bounded || !s.weights.rise(scores, count, width)) return;
    close(s);
    close(s);
    if (!s.fresh) rescale(s);
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
  float *lengths_ = nullptr;  // squared, of the longest key of each slice
  int64_t slices_ = 0;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
