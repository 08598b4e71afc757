// The forward on the matrix unit, for elements that are sums of a few bfloat16. Keys and values are
// packed once for each head. Blocks of rows then take their keys in tiles of 32, in three steps,
// and each round does one step of three tiles: products of the next one, weights of this one, sums
// of values of a group of those before. The steps do not depend on one another and are cut into
// pieces that alternate, so that the matrix unit and the vector units work at the same time; all
// that they touch but keys and values stays in the first-level cache.
#ifndef REGARD_KERNEL_AMX_FORWARD_H
#define REGARD_KERNEL_AMX_FORWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

// Rows of a block, keys of a tile of scores, and tiles whose values are summed up together: their
// sums are then loaded and stored once.
constexpr int kBlockRows = 2 * kTileRows;
constexpr int64_t kTileKeys = kDepth;
constexpr int kGroupTiles = 4;
constexpr int64_t kGroupPart = kGroupTiles * kTileKeys / 2 * kBlockRows;  // of their weights
static_assert(kBlockRows * kTileKeys * kGroupTiles <= kTileSize<float>, "as Sight's buffers are");

// Scores within so many powers of 2 of 1 need no largest score to be subtracted: their weights and
// sums lie far inside the range of float32 and of bfloat16.
constexpr float kBounded = 60;

// Fewer rows than a tile of the matrix unit leave too much of it empty.
inline bool pays(const regard_problem &p) {
  if ((p.dtype != REGARD_BFLOAT16 && p.dtype != REGARD_FLOAT16) || !(p.scale > 0) ||
      p.head_size == 0)
    return false;
  return Cut<float>(p, kBlockRows).heads * p.queries >= kTileRows;
}

template <int kParts>
class Pipeline {
 public:
  Pipeline(const regard_problem &p, const regard_array &output, float *lse)
      : p_(p), output_(output), lse_(lse), cut_(p, kBlockRows), shape_(p, kParts) {}

  int run() {
    if (p_.batch == 0 || p_.heads == 0 || p_.queries == 0) return REGARD_OK;
    if (!output_.data && !lse_) return REGARD_OK;
    Scratch scratch(Scratch::kCall);
    reaches_ = scratch.take<Reach>(p_.batch);
    const int64_t blocks = cut_.count(p_);
    spoilt_ = scratch.take<uint8_t>(blocks);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    for (int64_t b = 0; b < p_.batch; ++b) reaches_[b] = reach(b);
    std::fill_n(spoilt_, blocks, uint8_t{0});
    const int status = all_blocks(scratch);
    const bool good = std::find(spoilt_, spoilt_ + blocks, 1) == spoilt_ + blocks;
    if (status != REGARD_OK || good) return status;
    return parallel(blocks, p_.threads, &Pipeline::spoilt_task, this);
  }

 private:
  int all_blocks(Scratch &scratch) {
    // A thread that has packed a head finds it in its cache, if there are heads enough for all.
    const bool alike = p_.value_heads == p_.key_heads || !output_.data;
    const int64_t heads = p_.batch * p_.key_heads;
    if (alike && heads >= 4 * thread_count(p_.threads)) {
      return parallel(heads, p_.threads, &Pipeline::head_task, this);
    }
    packed_ = Packed(shape_, heads, output_.data ? p_.batch * p_.value_heads : 0, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const int64_t all = heads + (packed_.values ? p_.batch * p_.value_heads : 0);
    parallel(all * shape_.slices(), p_.threads, &Pipeline::pack_task, this);
    return parallel(cut_.count(p_), p_.threads, &Pipeline::block_task, this);
  }

  // All keys that some query of a batch element sees lie within.
  struct Reach {
    int64_t first, last;
    bool touches(int64_t begin, int64_t end) const { return begin < last && first < end; }
  };

  // Heads one after another; `lengths`: squared, of the longest key of each slice.
  struct Packed {
    uint16_t *keys = nullptr, *values = nullptr;
    float *lengths = nullptr;

    Packed() = default;
    Packed(const PackedShape &shape, int64_t key_heads, int64_t value_heads, Scratch &scratch)
        : keys(scratch.take<uint16_t>(key_heads * shape.key_count())),
          lengths(scratch.take<float>(key_heads * shape.slices())) {
      if (value_heads) values = scratch.take<uint16_t>(value_heads * shape.value_count());
    }
  };

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
    float *scores[2], *factors, *output, *staging;
    Step now;  // whose weights come next
    Group filling, summing;
    int turn = 0;  // of the two buffers of scores
    bool bounded;
    bool fresh = true;    // nothing is in `output` yet
    bool masked = false;  // some row could not see some key
  };

  Reach reach(int64_t batch) const {
    const regard_intervals &v = p_.intervals;
    if (!v.data) return {0, p_.keys};
    Reach all = {p_.keys, 0};
    for (int64_t h = 0; h < (v.head_stride ? p_.heads : 1); ++h) {
      for (int64_t i = 0; i < (v.query_stride ? p_.queries : 1); ++i) {
        const int32_t *pair =
            v.data + batch * v.batch_stride + h * v.head_stride + i * v.query_stride;
        for (int64_t c = 0; c < v.count; ++c) {
          if (pair[2 * c] >= pair[2 * c + 1]) continue;
          all.first = std::min<int64_t>(all.first, pair[2 * c]);
          all.last = std::max<int64_t>(all.last, pair[2 * c + 1]);
        }
      }
    }
    return all;
  }

  // Slices that nothing sees are left as they are: nothing will use them.
  void pack_key_slice(int64_t head, int64_t slice, const Packed &to, int64_t at) const {
    const int64_t first = slice * kSlice, last = std::min(first + kSlice, shape_.keys);
    float &length = to.lengths[at * shape_.slices() + slice];
    length = 0;
    if (!reaches_[head / p_.key_heads].touches(first, last)) return;
    length = pack_keys<kParts>(p_, head / p_.key_heads, head % p_.key_heads, first, last,
                               to.keys + at * shape_.key_count());
  }
  void pack_value_slice(int64_t head, int64_t slice, const Packed &to, int64_t at) const {
    const int64_t first = slice * kSlice, last = std::min(first + kSlice, shape_.keys);
    if (!reaches_[head / p_.value_heads].touches(first, last)) return;
    pack_values<kParts>(p_, head / p_.value_heads, head % p_.value_heads, first, last,
                        to.values + at * shape_.value_count());
  }

  static int pack_task(void *context, int64_t index) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    const int64_t slices = self.shape_.slices(), head = index / slices;
    const int64_t keys = self.p_.batch * self.p_.key_heads;
    if (head < keys) {
      self.pack_key_slice(head, index % slices, self.packed_, head);
    } else {
      self.pack_value_slice(head - keys, index % slices, self.packed_, head - keys);
    }
    return REGARD_OK;
  }

  static int block_task(void *context, int64_t index) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    const regard_problem &p = self.p_;
    Scratch scratch(Scratch::kTask);
    State s;
    self.allocate(s, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const MatrixUnit unit;
    self.cut_.set(p, index, &s.rows);
    const int64_t b = s.rows.batch, h = s.rows.head[0];
    self.spoilt_[index] =
        !self.block(s, self.packed_, b * p.key_heads + h / (p.heads / p.key_heads),
                    b * p.value_heads + h / (p.heads / p.value_heads));
    return REGARD_OK;
  }

  // All that one key head has to do with.
  static int head_task(void *context, int64_t head) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    const regard_problem &p = self.p_;
    Scratch scratch(Scratch::kTask);
    State s;
    self.allocate(s, scratch);
    const Packed packed(self.shape_, 1, self.output_.data ? 1 : 0, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const int64_t blocks = self.cut_.count(p) / (p.batch * p.key_heads);
    for (int64_t slice = 0; slice < self.shape_.slices(); ++slice) {
      self.pack_key_slice(head, slice, packed, 0);
      if (packed.values) self.pack_value_slice(head, slice, packed, 0);
    }
    const MatrixUnit unit;
    for (int64_t i = head * blocks; i < (head + 1) * blocks; ++i) {
      self.cut_.set(p, i, &s.rows);
      self.spoilt_[i] = !self.block(s, packed, 0, 0);
    }
    return REGARD_OK;
  }

  static int spoilt_task(void *context, int64_t index) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    if (!self.spoilt_[index]) return REGARD_OK;
    return avx512_forward_block(self.p_, self.output_, self.lse_, kBlockRows, index);
  }

  void allocate(State &s, Scratch &scratch) const {
    constexpr int64_t tile = kTileKeys * kBlockRows;
    s.staging =
        scratch.take<float>(std::max(tile, kBlockRows * std::max(shape_.width, shape_.depth)));
    s.queries = scratch.take<uint16_t>(kParts * kBlockRows * shape_.depth);
    for (float *&scores : s.scores) scores = scratch.take<float>(tile);
    s.filling.weights = scratch.take<uint32_t>(kParts * kGroupPart);
    s.summing.weights = scratch.take<uint32_t>(kParts * kGroupPart);
    s.factors = p_.dropout > 0 ? scratch.take<float>(tile) : nullptr;
    s.output = scratch.take<float>(kBlockRows * shape_.width);
    s.sight.allocate(p_, scratch);
    s.adjust.allocate(p_, s.staging, scratch);
  }

  // Returns false if a row may have come out as NaN that should not: products of tiles multiply
  // hidden weights, which are 0, by hidden values, which may be infinite or NaN; and parts of
  // something infinite, visible or not, do not add up to it.
  bool block(State &s, const Packed &packed, int64_t key_head, int64_t value_head) const {
    s.keys = packed.keys + key_head * shape_.key_count();
    s.values = packed.values + value_head * shape_.value_count();
    start(s, packed.lengths + key_head * shape_.slices());
    sweep(s);
    return finish(s);
  }

  void start(State &s, const float *lengths) const {
    s.fresh = true;
    s.masked = false;
    s.now.live = false;
    s.filling.tiles = s.summing.tiles = 0;
    const float length =
        pack_queries<kParts>(p_, s.rows, reinterpret_cast<uint16_t *>(s.staging), s.queries);
    s.sight.set(s.rows);
    if (p_.dropout > 0) s.dropout.set(p_, s.rows);
    const float unit = score_unit<float>(p_);
    float longest = 0;
    for (int64_t i = 0; i < shape_.slices(); ++i) longest = std::max(longest, lengths[i]);
    const float cap = static_cast<float>(p_.softcap);
    const float largest = cap > 0 ? cap : std::sqrt(length * longest);
    // Behind a mask, the longest key may be one that a query must not notice.
    const bool known = cap > 0 || !(p_.intervals.data || p_.mask.data);
    s.bounded = known && !p_.bias.data && largest * unit <= kBounded;
    if (s.bounded) {
      s.weights.reset_bounded(unit, s.rows.width);
    } else {
      s.weights.reset(unit, s.rows.width);
    }
  }

  // All tiles of a block of rows.
  void sweep(State &s) const {
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
    Weigher<kParts> weigher = s.now.live ? start_weights(s) : Weigher<kParts>();
    if (next.live) {
      const TileProduct<kParts> products = product_of_queries(s, next);
      for (int i = 0; i < products.blocks(); ++i) products.block(i, weigher);
    }
    if (s.summing.tiles) {
      const TileProduct<kParts> sums = product_of_values(s, s.summing);
      const int stop = s.summing.done + (sums.blocks() + kGroupTiles - 1) / kGroupTiles;
      sum(s, sums, std::min(stop, sums.blocks()), weigher);
    }
    weigher.finish();
    s.now = next;
  }

  REGARD_INLINE Weigher<kParts> start_weights(State &s) const {
    const Step &now = s.now;
    const int width = s.rows.width;
    Group &group = s.filling;
    if (group.tiles == kGroupTiles || now.base != group.base + group.tiles * kTileKeys) close(s);
    if (!group.tiles) group.base = now.base;
    uint32_t *to = group.weights + group.tiles++ * kTileKeys / 2 * width;
    // Pairs of keys that nothing sees weigh nothing.
    const int64_t first = (now.begin - now.base) / 2, last = (now.end - now.base + 1) / 2;
    for (uint32_t *part = to; part < to + kParts * kGroupPart; part += kGroupPart) {
      if (first > 0) std::fill_n(part, first * width, 0u);
      if (last < kTileKeys / 2) std::fill(part + last * width, part + kTileKeys / 2 * width, 0u);
    }
    const int64_t skip = 2 * first * width;
    return Weigher<kParts>(&s.weights, now.scores + skip, s.factors ? s.factors + skip : nullptr,
                           last - first, width, to + first * width, kGroupPart);
  }

  // Ends the group that is being filled; its sums come next, and those before it are finished.
  REGARD_NOINLINE void close(State &s) const {
    if (s.summing.tiles) {
      Weigher<kParts> nothing;
      const TileProduct<kParts> sums = product_of_values(s, s.summing);
      sum(s, sums, sums.blocks(), nothing);
    }
    std::swap(s.filling, s.summing);
    s.filling.tiles = s.filling.done = 0;
    s.summing.add = !s.fresh;
    if (s.summing.tiles) s.fresh = false;
  }

  REGARD_INLINE void sum(State &s, const TileProduct<kParts> &sums, int stop,
                         Weigher<kParts> &weigher) const {
    for (; s.summing.done < stop; ++s.summing.done) sums.block(s.summing.done, weigher);
  }

  REGARD_INLINE TileProduct<kParts> product_of_queries(const State &s, const Step &next) const {
    TileProduct<kParts> product;
    const int64_t row = shape_.key_row() * 2;
    product.a = reinterpret_cast<const char *>(s.keys + next.base * shape_.key_row());
    product.a_row = row;
    product.a_tile = row * kTileRows;
    product.a_depth = kTileBytes;
    product.a_part = shape_.depth * 2;
    product.b = reinterpret_cast<const char *>(s.queries);
    product.b_part = shape_.depth * 2 * s.rows.width;
    product.c = reinterpret_cast<char *>(next.scores);
    product.width = s.rows.width * 4;
    product.tiles_m = static_cast<int>((next.end - next.base + kTileRows - 1) / kTileRows);
    product.tiles_n = s.rows.width / kTileRows;
    product.depth = shape_.depth / kDepth;
    return product;
  }

  REGARD_INLINE TileProduct<kParts> product_of_values(const State &s, const Group &group) const {
    TileProduct<kParts> product;
    if (!output_.data) return product;
    product.a = reinterpret_cast<const char *>(s.values + group.base * shape_.value_row());
    product.a_row = kTileBytes;
    product.a_tile = kTileBytes * kTileRows;
    product.a_depth = kTileBytes * shape_.value_row();
    product.a_part = kTileBytes * shape_.width;
    product.b = reinterpret_cast<const char *>(group.weights);
    product.b_part = kGroupPart * 4;
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
    if (view == View::kSome) s.sight.hide(count, scores);
    // Weights come in pairs of keys.
    if (lead % 2) std::fill(scores - width, scores, -kInfinity<float>);
    if ((lead + count) % 2) std::fill_n(scores + count * width, width, -kInfinity<float>);
    if (p_.dropout > 0) s.dropout.fill(now.base, round_up(lead + count, 2), s.factors);
    if (s.bounded || !s.weights.rise(scores, count, width)) return;
    close(s);
    close(s);
    if (!s.fresh) rescale(s);
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

  bool finish(State &s) const {
    const int64_t size = shape_.width, width = s.rows.width;
    bool good = true;
    if (output_.data) {
      if (s.fresh) std::fill_n(s.output, size * width, 0.f);
      transpose(s.output, width, s.staging, size, size, width);
    }
    for (int r = 0; r < s.rows.count; ++r) {
      float factor, lse;
      const int64_t b = s.rows.batch, h = s.rows.head[r], i = s.rows.query[r];
      normalise<float>(p_, s.weights, h, r, &factor, &lse);
      // An output is the mean of values by the weights that multiplied them: those of a single key
      // make exactly that key's value.
      if (kParts == 1 && factor > 0 && p_.dropout == 0) {
        factor = 1 / (1 / factor + s.weights.rounded[r] - s.weights.sum[r]);
      }
      if (lse_) lse_[(b * p_.heads + h) * p_.queries + i] = lse;
      if (kParts > 1) good &= lse < kInfinity<float>;
      if (!output_.data) continue;
      const float *row = s.staging + r * size;
      narrow_row(row_of(output_, p_.dtype, b, h, i), row, p_.value_size, p_.dtype, factor);
      good &= (kParts == 1 && !s.masked) || finite_row(row, p_.value_size, factor);
    }
    return good;
  }

  const regard_problem &p_;
  const regard_array &output_;
  float *lse_;
  Cut<float> cut_;
  PackedShape shape_;
  Packed packed_;
  Reach *reaches_ = nullptr;   // of each batch element
  uint8_t *spoilt_ = nullptr;  // which blocks are
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
