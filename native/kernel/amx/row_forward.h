// The forward of bfloat16 on the matrix unit. Queries are left sides as they lie; keys and values
// are packed once for each head. Blocks of 32 rows take their keys in strips of 64, in three steps,
// and each round does one step of three strips: scores of the next one, weights of this one, sums
// of values of a group of those before. The steps do not depend on one another and are cut into
// pieces that alternate, so that the matrix unit and the vector units work at the same time.
//
// Where the keys and values of a head leave the second-level cache, a panel of blocks takes them
// chunk by chunk.
#ifndef REGARD_KERNEL_AMX_ROW_FORWARD_H
#define REGARD_KERNEL_AMX_ROW_FORWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

class RowPipeline {
 public:
  RowPipeline(const regard_problem &p, const regard_array &output, float *lse)
      : p_(p),
        output_(output),
        lse_(lse),
        results_(p, output, lse),
        quick_(!lse && !(p.dropout > 0)),
        cut_(p, kBlockRows),
        sides_(p),
        reach_(p) {
    const int64_t row = 2 * (sides_.depth + sides_.width);
    if (p.keys * row > kWholeHead) {
      chunk_ = std::max<int64_t>(1, kChunk / (row * kGroupKeys)) * kGroupKeys;
      panel_ = kPanel;
    } else {
      chunk_ = std::max<int64_t>(p.keys, 1);
    }
    panels_ = (cut_.blocks + panel_ - 1) / panel_;
  }

  int run() {
    if (p_.batch == 0 || p_.heads == 0 || p_.queries == 0) return REGARD_OK;
    if (!output_.data && !lse_) return REGARD_OK;
    Scratch scratch(Scratch::kCall);
    reach_.allocate(scratch);
    const int64_t blocks = cut_.count(p_);
    outcomes_ = scratch.take<Outcome>(blocks);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    std::fill_n(outcomes_, blocks, Outcome::kGood);
    const int status = all_blocks(scratch);
    if (status != REGARD_OK ||
        std::find(outcomes_, outcomes_ + blocks, Outcome::kSpoilt) == outcomes_ + blocks) {
      return status;
    }
    return parallel(blocks, p_.threads, &RowPipeline::spoilt_task, this);
  }

 private:
  using Block = OpenRows;
  using Packed = PackedSides;
  using Product = TileProduct<1, false, true>;

  static constexpr int64_t kLeastRuns = 32;
  static constexpr int kGroupHalves = 4;
  static constexpr int64_t kGroupKeys = kGroupHalves * kDepth;
  // Bytes of keys and values: up to which they stay in the second-level cache, and of a chunk.
  static constexpr int64_t kWholeHead = 5 << 18, kChunk = 1 << 19;
  // Blocks of a panel, and those on their way where there are no panels.
  static constexpr int kPanel = 16, kBlocks = 3;

  int all_blocks(Scratch &scratch) {
    // A thread that has packed a head finds it in its cache, if there are heads enough for all.
    const bool alike = p_.value_heads == p_.key_heads || !output_.data;
    const int64_t heads = p_.batch * p_.key_heads;
    run_ = std::max<int64_t>(1, heads / kLeastRuns);
    if (alike && heads >= 4 * thread_count(p_.threads)) {
      return parallel((heads + run_ - 1) / run_, p_.threads, &RowPipeline::head_task, this);
    }
    reach_.look();
    const int64_t value_heads = output_.data ? p_.batch * p_.value_heads : 0;
    packed_ = Packed(sides_, heads, value_heads, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const int status = parallel((heads + value_heads) * sides_.slices(), p_.threads,
                                &RowPipeline::pack_task, this);
    if (status != REGARD_OK) return status;
    return parallel(cut_.count(p_) / cut_.blocks * panels_, p_.threads, &RowPipeline::panel_task,
                    this);
  }

  // Strips next to one another whose weights are there, or on their way.
  struct Group {
    Block *block;
    int64_t first;  // half
    int halves = 0, strips = 0;
    uint16_t *weights;  // [half][row][32 keys]
    bool add;           // to sums that are there
    int done = 0;       // blocks of its product
  };

  struct State {
    Block blocks[kPanel];
    RowsAhead queries, keys, values;
    Rows<float> next;
    Strip strips[2];
    Strip *now = nullptr;  // whose weights come next
    Block *of_now;
    Group filling, summing;
    Unstored unstored;
    int block = 0, turn = 0;  // of the blocks, and of the two strips
  };

  void pack(int64_t batch, int64_t key_head, int64_t slice, const Packed &to) const {
    const int64_t first = slice * kSlice, last = std::min(first + kSlice, sides_.keys);
    pack_right_keys(p_, batch, key_head, first, last, to.keys, to.lengths);
  }
  void pack_values(int64_t batch, int64_t head, int64_t slice, uint16_t *to) const {
    const int64_t first = slice * kSlice, last = std::min(first + kSlice, sides_.keys);
    pack_right_values(p_, batch, head, first, last, to);
  }

  static int pack_task(void *context, int64_t index) {
    const RowPipeline &self = *static_cast<RowPipeline *>(context);
    const regard_problem &p = self.p_;
    const int64_t slices = self.sides_.slices(), keys = p.batch * p.key_heads;
    const int64_t slice = index % slices, head = index / slices;
    const int64_t heads = head < keys ? p.key_heads : p.value_heads;
    const int64_t of_side = head < keys ? head : head - keys, batch = of_side / heads;
    if (!self.reach_.seen(batch, slice * kSlice, (slice + 1) * kSlice)) return REGARD_OK;
    if (head < keys) {
      self.pack(batch, of_side % heads, slice, self.head(self.packed_, of_side, 0));
    } else {
      self.pack_values(batch, of_side % heads, slice,
                       self.packed_.values + of_side * self.sides_.value_count());
    }
    return REGARD_OK;
  }

  Packed head(const Packed &all, int64_t key_head, int64_t value_head) const {
    Packed one = all;
    one.keys += key_head * sides_.key_count();
    one.lengths += key_head * sides_.strips();
    if (one.values) one.values += value_head * sides_.value_count();
    return one;
  }

  static int panel_task(void *context, int64_t index) {
    const RowPipeline &self = *static_cast<RowPipeline *>(context);
    const regard_problem &p = self.p_;
    Scratch scratch(Scratch::kTask);
    State s;
    self.allocate(s, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const MatrixUnit unit;
    const int64_t head = index / self.panels_ * self.cut_.heads;
    const Packed packed =
        self.head(self.packed_, head / (p.heads / p.key_heads), head / (p.heads / p.value_heads));
    self.panel(s, index, packed);
    self.drain(s);
    self.settle(s, index, packed);
    return REGARD_OK;
  }

  // All that a run of key heads has to do with.
  static int head_task(void *context, int64_t index) {
    const RowPipeline &self = *static_cast<RowPipeline *>(context);
    const regard_problem &p = self.p_;
    Scratch scratch(Scratch::kTask);
    State s;
    self.allocate(s, scratch);
    Packed packed(self.sides_, 1, self.output_.data ? 1 : 0, scratch);
    packed.there = scratch.take<bool>(self.sides_.slices());
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const int64_t panels =
        self.cut_.count(p) / self.cut_.blocks * self.panels_ / (p.batch * p.key_heads);
    const int64_t first = index * self.run_;
    const int64_t last = std::min(first + self.run_, p.batch * p.key_heads);
    const MatrixUnit unit;
    for (int64_t head = first; head < last; ++head) {
      std::fill_n(packed.there, self.sides_.slices(), false);
      if (head + 1 < last && self.sides_.slices() == 1) {
        self.expect(s, (head + 1) / p.key_heads, (head + 1) % p.key_heads, 0);
      }
      for (int64_t i = 0; i < panels; ++i) self.panel(s, head * panels + i, packed);
      self.drain(s);
      for (int64_t i = 0; i < panels; ++i) self.settle(s, head * panels + i, packed);
    }
    return REGARD_OK;
  }

  // Keys and values that are packed next.
  void expect(State &s, int64_t batch, int64_t head, int64_t slice) const {
    const int64_t first = slice * kSlice, rows = std::min(kSlice, p_.keys - first);
    s.keys.set(row_of(p_.key, p_.dtype, batch, head, first), p_.head_size * 2,
               p_.key.row_stride * 2, rows);
    if (!output_.data) return;
    s.values.set(row_of(p_.value, p_.dtype, batch, head, first), p_.value_size * 2,
                 p_.value.row_stride * 2, rows);
  }

  static int spoilt_task(void *context, int64_t index) {
    const RowPipeline &self = *static_cast<RowPipeline *>(context);
    if (self.outcomes_[index] != Outcome::kSpoilt) return REGARD_OK;
    return avx512_forward_block(self.p_, self.output_, self.lse_, kBlockRows, index);
  }

  void allocate(State &s, Scratch &scratch) const {
    for (Strip &strip : s.strips) {
      strip.scores = scratch.take<float>(kStripKeys * kBlockRows);
      strip.visible = scratch.take<uint64_t>(kBlockRows);
    }
    s.filling.weights = scratch.take<uint16_t>(kGroupKeys * kBlockRows);
    s.summing.weights = scratch.take<uint16_t>(kGroupKeys * kBlockRows);
    for (int i = 0; i < std::max<int>(panel_, kBlocks); ++i) {
      Block &b = s.blocks[i];
      b.queries = scratch.take<uint16_t>(kBlockRows * sides_.depth);
      b.output = scratch.take<float>(kBlockRows * sides_.width);
      b.sight.allocate(p_, scratch);
    }
  }

  // Blocks of one panel.
  struct Range {
    int64_t first, count;
  };
  Range blocks_of(int64_t panel) const {
    const int64_t first = panel % panels_ * panel_;
    return {panel / panels_ * cut_.blocks + first, std::min(panel_, cut_.blocks - first)};
  }

  void panel(State &s, int64_t index, const Packed &packed) const {
    const Range range = blocks_of(index);
    if (panel_ == 1) {
      s.block = (s.block + 1) % kBlocks;
    } else {
      s.block = 0;
    }
    Block *blocks = s.blocks + s.block;
    for (int64_t i = 0; i < range.count; ++i) {
      if (blocks[i].strips) drain(s);
      set(blocks[i], range.first + i, packed);
      start(blocks[i]);
    }
    if (panel_ == 1) expect_queries(s, range.first + 1);
    for (int64_t first = 0; first < p_.keys; first += chunk_) {
      for (int64_t i = 0; i < range.count; ++i) {
        sweep(s, blocks[i], first, std::min(first + chunk_, p_.keys));
      }
    }
    for (int64_t i = 0; i < range.count; ++i) {
      blocks[i].swept = true;
      if (!blocks[i].strips) finish(blocks[i]);
    }
  }

  void expect_queries(State &s, int64_t block) const {
    if (block >= cut_.count(p_)) return;
    cut_.set(p_, block, &s.next);
    s.queries.set(row_of(p_.query, p_.dtype, s.next.batch, s.next.head[0], s.next.query[0]),
                  p_.head_size * 2, p_.query.row_stride * 2, s.next.count);
  }

  // The blocks of a panel whose sums are not healthy once more, from their largest scores on.
  void settle(State &s, int64_t index, const Packed &packed) const {
    const Range range = blocks_of(index);
    for (int64_t i = range.first; i < range.first + range.count; ++i) {
      if (outcomes_[i] != Outcome::kUnhealthy) continue;
      Block &b = s.blocks[0];
      set(b, i, packed);
      start(b);
      rank(s, b);
      b.sums.settle(b.rows.width);
      b.settled = true;
      b.sight.set(b.rows);
      sweep(s, b, 0, p_.keys);
      b.swept = true;
      drain(s);
      if (outcomes_[i] == Outcome::kUnhealthy) finish(b);
    }
  }

  void set(Block &b, int64_t index, const Packed &packed) const {
    b.index = index;
    cut_.set(p_, index, &b.rows);
    b.batch = b.rows.batch;
    b.key_head = b.rows.head[0] / (p_.heads / p_.key_heads);
    b.packed = packed;
    b.length = copy_queries(p_, b.rows, sides_.depth, b.queries);
    b.sight.set(b.rows);
    if (p_.dropout > 0) b.dropout.set(p_, b.rows);
    if (p_.bias.data) set_bias(b);
  }

  void set_bias(Block &b) const {
    const regard_grid &bias = p_.bias;
    b.bias.size = element_size(p_.bias_dtype);
    b.bias.step = bias.key_stride;
    b.bias.wide = p_.bias_dtype == REGARD_FLOAT32;
    for (int r = 0; r < b.rows.width; ++r) {
      const int64_t at = b.rows.batch * bias.batch_stride + b.rows.head[r] * bias.head_stride +
                         b.rows.query[r] * bias.query_stride;
      b.bias.rows[r] = static_cast<const char *>(bias.data) + at * b.bias.size;
    }
  }

  void start(Block &b) const {
    b.fresh = true;
    b.masked = b.swept = b.settled = false;
    b.sums.exact = quick_ || p_.dropout > 0;
    b.sums.reset(score_unit<float>(p_));
  }

  // Strips of a block among keys [first, last).
  void sweep(State &s, Block &b, int64_t first, int64_t last) const {
    const int64_t from = std::max(first, b.sight.first()), to = std::min(last, b.sight.last());
    b.masked |= b.sight.first() > 0 || b.sight.last() < p_.keys;
    if (from >= to) return;
    ensure(s, b, from, to);
    for (int64_t j = from / kStripKeys * kStripKeys; j < to; j += kStripKeys) {
      if (!look(b, j, s.strips[1 - s.turn])) continue;
      s.turn = 1 - s.turn;
      ++b.strips;
      round(s, &b, &s.strips[s.turn]);
    }
  }

  // Slices that are needed first now.
  void ensure(State &s, const Block &b, int64_t from, int64_t to) const {
    if (!b.packed.there) return;
    for (int64_t slice = from / kSlice; slice * kSlice < to; ++slice) {
      if (b.packed.there[slice]) continue;
      b.packed.there[slice] = true;
      pack(b.batch, b.key_head, slice, b.packed);
      if (b.packed.values) pack_values(b.batch, b.key_head, slice, b.packed.values);
      // Later keys of this block come next, then those of blocks before.
      const bool more = (slice + 1) * kSlice < std::min(b.sight.last(), p_.keys);
      const int64_t next = more ? slice + 1 : slice - 1;
      if (next >= 0 && !b.packed.there[next]) expect(s, b.batch, b.key_head, next);
    }
  }

  // Whether a block sees anything of the strip from `base` on.
  bool look(Block &b, int64_t base, Strip &strip) const {
    const int64_t stop = std::min(base + kStripKeys, p_.keys);
    int64_t begin = base, end = stop;
    const View view = b.sight.look(&begin, &end, strip.visible);
    b.masked |= view != View::kAll || begin != base || end != stop;
    if (view == View::kNone) return false;
    strip.base = base;
    strip.first = static_cast<int>((begin - base) / kDepth);
    strip.last = static_cast<int>((end - base + kDepth - 1) / kDepth);
    const bool halves = begin == base + strip.first * kDepth && end == base + strip.last * kDepth;
    strip.all = view == View::kAll && halves;
    if (view == View::kAll && !halves) {
      const uint64_t bits = RowSight::bits_below(end - base) & ~RowSight::bits_below(begin - base);
      std::fill_n(strip.visible, b.rows.width, bits);
    }
    const float most = std::sqrt(b.length * b.packed.lengths[base / kStripKeys]);
    strip.bounded = most * b.sums.unit <= kBounded<1> && !b.settled;
    return true;
  }

  // Whatever is on its way.
  void drain(State &s) const {
    if (s.now) round(s, nullptr, nullptr);
    close(s);
    close(s);
  }

  // The scores of `next`, the weights of s.now and some of the sums of values of s.summing.
  void round(State &s, Block *block, Strip *next) const {
    if (!s.now) {
      work(s, block, next, RowByRow<NoRow>(NoRow(), 0));
    } else {
      Block &b = *s.of_now;
      uint16_t *to = place(s);
      weigh(s, b, to, block, next);
    }
    s.now = next;
    s.of_now = block;
  }

  void weigh(State &s, Block &b, uint16_t *to, const Block *block, const Strip *next) const {
    const Strip &strip = *s.now;
    const bool ends = strip.base + kStripKeys > p_.keys && p_.bias.data;
    if (p_.softcap > 0 || p_.dropout > 0 || ends) {
      const AnyRow any(p_, b.rows, p_.dropout > 0 ? &b.dropout : nullptr, b.sums, strip, to,
                       quick_);
      return work(s, block, next, RowByRow<AnyRow>(any, b.rows.width));
    }
    const bool whole = strip.all && strip.last - strip.first == 2;
    const bool free = p_.bias.data || !strip.bounded;
    if (!whole) {
      if (strip.all) std::fill_n(strip.visible, b.rows.width, ~uint64_t{0});
      if (!quick_) return weigh<false, true, true>(s, b, to, block, next);
      if (free) return weigh<true, true, true>(s, b, to, block, next);
      return weigh<true, true, false>(s, b, to, block, next);
    }
    if (quick_ && free) return weigh<true, false, true>(s, b, to, block, next);
    if (quick_) return weigh<true, false, false>(s, b, to, block, next);
    if (p_.bias.data) return weigh<false, false, true>(s, b, to, block, next);
    weigh<false, false, false>(s, b, to, block, next);
  }
  template <bool kQuick, bool kMasked, bool kFree>
  void weigh(State &s, Block &b, uint16_t *to, const Block *block, const Strip *next) const {
    using Row = InnerRow<kQuick, kMasked, kFree>;
    const Row row(b.sums, *s.now, p_.bias.data ? &b.bias : nullptr,
                  static_cast<float>(fabs(p_.scale)), to, b.rows.width);
    work(s, block, next, RowByRow<Row>(row, b.rows.width));
  }

  template <class Between>
  REGARD_NOINLINE void work(State &s, const Block *block, const Strip *next,
                            Between between) const {
    const Product sums = product_of_values(s.summing);
    const int each = (sums.blocks() + 1) / 2;
    const int stop = std::min(s.summing.done + each, sums.blocks());
    if (next) {
      const Product products = product_of_queries(*block, *next);
      between.spread(products.blocks() * products.pauses() +
                     (stop - s.summing.done) * sums.pauses());
      for (int i = 0; i < products.blocks(); ++i) {
        s.queries.rows(4);
        s.keys.rows(4);
        s.values.rows(4);
        products.block(i, between, s.unstored);
      }
    }
    for (; s.summing.done < stop; ++s.summing.done) {
      sums.block(s.summing.done, between, s.unstored);
    }
    s.unstored.store_all();
    between.finish();
  }

  // Where the weights of s.now go.
  uint16_t *place(State &s) const {
    const Strip &now = *s.now;
    const int64_t half = now.base / kDepth + now.first;
    const int halves = now.last - now.first;
    if (s.filling.halves + halves > kGroupHalves || s.of_now != s.filling.block ||
        half != s.filling.first + s.filling.halves) {
      close(s);
    }
    Group &group = s.filling;
    if (!group.strips) {
      group.block = s.of_now;
      group.first = half;
    }
    uint16_t *to = weights_of_row(group.weights, 0, group.halves, s.of_now->rows.width);
    group.halves += halves;
    ++group.strips;
    return to;
  }

  // Ends the group that is being filled; its sums come next, and those before it are finished.
  REGARD_NOINLINE void close(State &s) const {
    Group &group = s.summing;
    if (group.strips) {
      product_of_values(group).compute(group.done);
      Block &b = *group.block;
      b.strips -= group.strips;
      if (b.swept && !b.strips) finish(b);
    }
    std::swap(s.filling, s.summing);
    s.filling.halves = s.filling.strips = s.filling.done = 0;
    if (!group.strips) return;
    group.add = !group.block->fresh;
    group.block->fresh = false;
  }

  void finish(Block &b) const { outcomes_[b.index] = results_.finish(b); }

  REGARD_INLINE Product product_of_queries(const Block &b, const Strip &strip) const {
    Product product;
    const int64_t row = sides_.depth * 2;
    product.a = reinterpret_cast<const char *>(b.queries);
    product.a_row = row;
    product.a_tile = row * kTileRows;
    product.a_depth = kTileBytes;
    product.b = reinterpret_cast<const char *>(b.packed.keys +
                                               (strip.base + strip.first * kDepth) * sides_.depth);
    product.b_tile = row * kTileRows;
    product.b_depth = kTileElements * 2;
    product.c = reinterpret_cast<char *>(strip.scores + strip.first * kDepth);
    product.width = kStripKeys * 4;
    product.tiles_m = b.rows.width / kTileRows;
    product.tiles_n = 2 * (strip.last - strip.first);
    product.depth = sides_.depth / kDepth;
    return product;
  }

  REGARD_INLINE Product product_of_values(const Group &group) const {
    Product product;
    if (!output_.data || !group.strips) return product;
    const Block &b = *group.block;
    product.a = reinterpret_cast<const char *>(group.weights);
    product.a_row = kTileBytes;
    product.a_tile = kTileBytes * kTileRows;
    product.a_depth = kTileBytes * b.rows.width;
    product.b =
        reinterpret_cast<const char *>(b.packed.values + group.first * kDepth * sides_.width);
    product.b_tile = kTileElements * 2;
    product.b_depth = kTileBytes * sides_.width;
    product.c = reinterpret_cast<char *>(b.output);
    product.width = sides_.width * 4;
    product.tiles_m = b.rows.width / kTileRows;
    product.tiles_n = static_cast<int>(sides_.width / kTileRows);
    product.depth = group.halves;
    product.add = group.add;
    return product;
  }

  // The largest scores of all rows.
  void rank(State &s, Block &b) const {
    Strip &strip = s.strips[0];
    const int64_t from = b.sight.first(), to = b.sight.last();
    ensure(s, b, from, to);
    std::fill_n(b.sums.largest, kBlockRows * 16, -kInfinity<float>);
    for (int64_t j = from / kStripKeys * kStripKeys; j < to; j += kStripKeys) {
      if (!look(b, j, strip)) continue;
      product_of_queries(b, strip).compute();
      const AnyRow any(p_, b.rows, nullptr, b.sums, strip, nullptr, quick_);
      for (int r = 0; r < b.rows.width; ++r) any.rank(r);
    }
  }

  const regard_problem &p_;
  const regard_array &output_;
  float *lse_;
  RowResults results_;
  bool quick_;  // weights need no more than bfloat16
  Cut<float> cut_;
  RightSides sides_;
  HeadPacker<1> reach_;
  Packed packed_;
  int64_t chunk_, panel_ = 1, panels_;  // keys of a chunk, blocks of a panel, panels of a group
  int64_t run_ = 1;                     // heads of a task
  Outcome *outcomes_ = nullptr;         // of each block
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
