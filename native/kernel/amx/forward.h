// The forward on the matrix unit, for elements that are sums of a few bfloat16. Keys and values are
// packed once for each head. Blocks of rows, several by turns where keys and values are too many
// for the second-level cache, then take their keys in tiles of 64, in three steps, and each round
// does one step of three tiles: products of the next one, weights of this one, sums of values of a
// group of those before. The steps do not depend on one another and are cut into pieces that
// alternate, so that the matrix unit and the vector units work at the same time; all that they
// touch but keys and values stays in the first-level cache. Pieces must be small and even: while
// the matrix unit works, one of the two units for multiplications of vectors rests, and what is not
// interleaved takes twice as long.
#ifndef REGARD_KERNEL_AMX_FORWARD_H
#define REGARD_KERNEL_AMX_FORWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

// Keys of a tile of scores, and tiles whose values are summed up together: their
// sums are then loaded and stored once.
constexpr int64_t kRoundKeys = 2 * kDepth;
constexpr int kGroupRounds = 2;
constexpr int64_t kGroupPart = kGroupRounds * kRoundKeys / 2 * kBlockRows;  // of their weights

// Blocks of rows that take turns at a chunk of keys, and those that may still be on their way when
// the next ones begin: one in each later step.
constexpr int kTurns = 8, kBlocks = kTurns + 2;
// Packed keys and values of a chunk, at most: half of a second-level cache of 2 MiB.
constexpr int64_t kChunkBytes = int64_t{1} << 20;
static_assert(kBlockRows * kRoundKeys * kGroupRounds <= kTileSize<float>, "as Sight's buffers are");

// Scores within so many powers of 2 of 1 need no largest score to be subtracted: their weights and
// sums lie far inside the range of float32 and of bfloat16.
// Three parts are to keep more: products below 1.2e-38 count as zero.
template <int kParts>
constexpr float kBounded = kParts < 3 ? 60 : 30;

// Fewer rows than a tile of the matrix unit leave too much of it empty, and splitting keys and
// values takes more rows to pay. Three parts leave little to gain, which neither padding to whole
// tiles nor splitting many keys for few rows must take away; and a huge scale would show that tiny
// products count as zero.
inline bool pays(const regard_problem &p) {
  const int parts = parts_of(p);
  if (parts == 0 || !(p.scale > 0) || p.head_size == 0) return false;
  const int64_t rows = Cut<float>(p, kBlockRows).heads * p.queries;
  if (parts < 3) return rows >= (parts == 1 ? 1 : 6) * kTileRows;
  if (rows < 12 * kTileRows || p.keys < 8 * kTileRows || p.head_size < kTileRows) return false;
  if (p.scale > 1e9) return false;
  const int64_t whole = round_up(rows, kBlockRows) * round_up(p.keys, kDepth);
  return p.keys <= 16 * rows && 8 * whole <= 9 * rows * p.keys;
}

// Who watches tiles of scores go by: nobody. A watcher may come without output and log-sum-exps.
struct Nobody {
  static constexpr bool kWatches = false;
  struct Work {};
};

template <int kParts, class Watcher = Nobody>
class Pipeline {
 public:
  Pipeline(const regard_problem &p, const regard_array &output, float *lse,
           Watcher *watcher = nullptr)
      : p_(p),
        output_(output),
        lse_(lse),
        watcher_(watcher),
        cut_(p, kBlockRows),
        shape_(p, kParts),
        packer_(p) {
    const int64_t bytes = shape_.keys * (shape_.key_row() + shape_.value_row()) * 2;
    chunks_ = (bytes + kChunkBytes - 1) / kChunkBytes;
    const int64_t few = cut_.count(p) / kLeastTasks;
    // What a watcher keeps of several blocks would leave the cache.
    const bool alone = chunks_ == 1 || Watcher::kWatches;
    turns_ = alone ? 1 : std::max<int64_t>(1, std::min<int64_t>(few, kTurns));
  }

  int run() {
    if (p_.batch == 0 || p_.heads == 0 || p_.queries == 0) return REGARD_OK;
    if (!output_.data && !lse_ && !Watcher::kWatches) return REGARD_OK;
    Scratch scratch(Scratch::kCall);
    packer_.allocate(scratch);
    const int64_t blocks = cut_.count(p_);
    spoilt_ = scratch.take<uint8_t>(blocks);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    if constexpr (Watcher::kWatches) {
      if (!watcher_->prepare(cut_, scratch)) return REGARD_OUT_OF_MEMORY;
    }
    packer_.look();
    std::fill_n(spoilt_, blocks, uint8_t{0});
    const int status = all_blocks(scratch);
    good_ = std::find(spoilt_, spoilt_ + blocks, 1) == spoilt_ + blocks;
    if constexpr (Watcher::kWatches) {
      if (status == REGARD_OK && good_) return watcher_->merge();
    }
    if (status != REGARD_OK || good_) return status;
    return parallel(blocks, p_.threads, &Pipeline::spoilt_task, this);
  }

  // Whether no block of rows had to be left to AVX-512.
  bool good() const { return good_; }

 private:
  static constexpr int64_t kLeastRuns = 64, kLeastTasks = 64;
  // Output of a single part comes by rows (row_forward.h), and here its scores are watched alone: a
  // watcher makes weights of its own.
  static constexpr bool kWeighs = kParts > 1;
  static_assert(kWeighs || Watcher::kWatches);

  int all_blocks(Scratch &scratch) {
    // A thread that has packed a head finds it in its cache, if there are heads enough for all.
    const bool alike = p_.value_heads == p_.key_heads || !output_.data;
    const int64_t heads = p_.batch * p_.key_heads;
    run_ = std::max<int64_t>(1, heads / kLeastRuns);
    if (alike && heads >= 4 * thread_count(p_.threads)) {
      return parallel((heads + run_ - 1) / run_, p_.threads, &Pipeline::head_task, this);
    }
    packed_ = PackedHeads(shape_, heads, output_.data ? p_.batch * p_.value_heads : 0, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const int64_t all = heads + (packed_.values ? p_.batch * p_.value_heads : 0);
    const int status = parallel(all * shape_.slices(), p_.threads, &Pipeline::pack_task, this);
    if (status != REGARD_OK) return status;
    const int64_t groups = p_.heads / cut_.heads * p_.batch;
    return parallel(groups * turns(), p_.threads, &Pipeline::turn_task, this);
  }

  // A block of rows. It is spoilt if a row may have come out as NaN that should not: products of
  // tiles multiply hidden weights, which are 0, by hidden values, which may be infinite or NaN; and
  // parts of something infinite, visible or not, do not add up to it.
  struct Block {
    int64_t index;
    Rows<float> rows;
    Sight<float> sight;
    Weights weights;
    Dropout<float> dropout;
    const uint16_t *keys, *values;
    uint16_t *queries;
    float *output;
    bool fresh;         // nothing is in `output` yet
    bool swept = true;  // all its tiles are on their way
    int tiles = 0;      // that are on their way
  };

  // A tile of keys on its way.
  struct Step {
    Block *block = nullptr;
    int64_t base, begin, end;  // what some row sees, and its start rounded down to kRoundKeys
    float *scores;             // from `base` on
    bool some = false;         // there may be -inf among them
  };

  // Tiles next to one another whose weights are there, or on their way.
  struct Group {
    Block *block;
    int64_t base;
    int64_t keys = 0;  // a multiple of kDepth
    int tiles = 0;
    uint32_t *weights;  // in pairs of keys
    bool add;           // to sums that are there
    int done = 0;       // blocks of its product
  };

  struct State {
    Block blocks[kBlocks];
    float *scores[2], *factors;
    float *staging;  // of kParts > 2: sums of values of one group
    Step now;        // whose weights come next
    Group filling, summing;
    Unstored sums;
    int block = 0, turn = 0;  // the next of the blocks, and of the two buffers of scores
    typename Watcher::Work watch;
  };

  static int pack_task(void *context, int64_t index) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    const int64_t slices = self.shape_.slices(), head = index / slices;
    const int64_t keys = self.p_.batch * self.p_.key_heads;
    if (head < keys) {
      self.packer_.keys(head, index % slices, self.packed_, head);
    } else {
      self.packer_.values(head - keys, index % slices, self.packed_, head - keys);
    }
    return REGARD_OK;
  }

  // Tasks of the blocks of a group. A watcher takes several blocks for a piece of what it gathers.
  int64_t turns() const {
    if constexpr (Watcher::kWatches) {
      return watcher_->pieces();
    } else {
      return (cut_.blocks + turns_ - 1) / turns_;
    }
  }

  static int turn_task(void *context, int64_t index) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    const regard_problem &p = self.p_;
    Scratch scratch(Scratch::kTask);
    State s;
    self.allocate(s, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const MatrixUnit unit;
    const int64_t group = index / self.turns(), turn = index % self.turns();
    const int64_t head = group * self.cut_.heads, blocks = self.cut_.blocks;
    const int64_t first = group * blocks + blocks * turn / self.turns();
    const int64_t last = group * blocks + blocks * (turn + 1) / self.turns();
    const int64_t step = Watcher::kWatches ? 1 : last - first;
    for (int64_t i = first; i < last; i += step) {
      self.blocks(s, i, i + step, self.packed_, head / (p.heads / p.key_heads),
                  head / (p.heads / p.value_heads));
    }
    self.drain(s);
    return REGARD_OK;
  }

  // All that a run of key heads has to do with.
  static int head_task(void *context, int64_t index) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    const regard_problem &p = self.p_;
    Scratch scratch(Scratch::kTask);
    State s;
    self.allocate(s, scratch);
    const PackedHeads packed(self.shape_, 1, self.output_.data ? 1 : 0, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const int64_t blocks = self.cut_.count(p) / (p.batch * p.key_heads);
    const int64_t first = index * self.run_;
    const int64_t last = std::min(first + self.run_, p.batch * p.key_heads);
    const MatrixUnit unit;
    for (int64_t head = first; head < last; ++head) {
      for (int64_t slice = 0; slice < self.shape_.slices(); ++slice) {
        self.packer_.keys(head, slice, packed, 0);
        if (packed.values) self.packer_.values(head, slice, packed, 0);
      }
      for (int64_t i = 0; i < blocks; i += self.turns_) {
        self.blocks(s, head * blocks + i, head * blocks + std::min(i + self.turns_, blocks), packed,
                    0, 0);
      }
      self.drain(s);
    }
    return REGARD_OK;
  }

  static int spoilt_task(void *context, int64_t index) {
    const Pipeline &self = *static_cast<Pipeline *>(context);
    if (!self.spoilt_[index]) return REGARD_OK;
    return avx512_forward_block(self.p_, self.output_, self.lse_, kBlockRows, index);
  }

  void allocate(State &s, Scratch &scratch) const {
    constexpr int64_t tile = kRoundKeys * kBlockRows;
    for (float *&scores : s.scores) scores = scratch.take<float>(tile);
    s.filling.weights = scratch.take<uint32_t>(kParts * kGroupPart);
    s.summing.weights = scratch.take<uint32_t>(kParts * kGroupPart);
    s.factors = p_.dropout > 0 ? scratch.take<float>(tile) : nullptr;
    s.staging = kParts > 2 ? scratch.take<float>(kBlockRows * shape_.width) : nullptr;
    for (Block &b : s.blocks) {
      b.queries = scratch.take<uint16_t>(kParts * kBlockRows * shape_.depth);
      b.output = scratch.take<float>(kBlockRows * shape_.width);
      b.sight.allocate(p_, scratch);
    }
    if constexpr (Watcher::kWatches) watcher_->allocate(s.watch, scratch);
  }

  // Blocks [first, last), all of one head's keys; kTurns at most.
  void blocks(State &s, int64_t first, int64_t last, const PackedHeads &packed, int64_t key_head,
              int64_t value_head) const {
    const int place = s.block;
    for (int64_t i = first; i < last; ++i) {
      Block &b = s.blocks[(place + i - first) % kBlocks];
      if (b.tiles) drain(s);
      b.index = i;
      cut_.set(p_, i, &b.rows);
      b.keys = packed.keys + key_head * shape_.key_count();
      b.values = packed.values + value_head * shape_.value_count();
      if constexpr (Watcher::kWatches) watcher_->start(s.watch, seat(s, b));
      start(b, packed.lengths + key_head * shape_.slices());
    }
    for (int64_t chunk = 0; chunk < chunks_; ++chunk) {
      for (int64_t i = first; i < last; ++i) {
        Block &b = s.blocks[(place + i - first) % kBlocks];
        sweep(s, b, edge(chunk), edge(chunk + 1));
        b.swept = chunk + 1 == chunks_;
        if (b.swept && !b.tiles) finish(s, b);
      }
    }
    s.block = static_cast<int>((place + last - first) % kBlocks);
  }
  // Where a chunk of keys begins: with a group of tiles.
  int64_t edge(int64_t chunk) const {
    constexpr int64_t group = kGroupRounds * kRoundKeys;
    return chunk == chunks_ ? p_.keys : p_.keys * chunk / chunks_ / group * group;
  }

  void start(Block &s, const float *lengths) const {
    s.fresh = true;
    s.swept = false;
    const float length = pack_queries<kParts>(p_, s.rows, s.queries);
    s.sight.set(s.rows);
    if (p_.dropout > 0) s.dropout.set(p_, s.rows);
    const float unit = score_unit<float>(p_);
    const float cap = static_cast<float>(p_.softcap);
    // Behind a mask, the longest key may be one that a query must not notice.
    bool bounded = !(p_.intervals.data || p_.mask.data || p_.bias.data);
    for (int64_t i = 0; i < shape_.slices(); ++i) {
      const float largest = std::sqrt(length * lengths[i]);
      bounded &= cap > 0 ? largest < kInfinity<float> && cap * unit <= kBounded<kParts>
                         : largest * unit <= kBounded<kParts>;
    }
    s.weights.bounded = bounded;
    s.weights.reset(unit, s.rows.width);
  }

  // All tiles of a block of rows that lie within keys [from, to).
  void sweep(State &s, Block &b, int64_t from, int64_t to) const {
    const bool hides = p_.intervals.data || p_.mask.data;
    const int64_t first = std::max(from, b.sight.first() / kRoundKeys * kRoundKeys);
    const int64_t last = std::min(to, b.sight.last());
    for (int64_t g = first; g < last; g += kGroupRounds * kRoundKeys) {
      const int64_t stop = std::min(g + kGroupRounds * kRoundKeys, to);
      int64_t begin = g, end = stop;
      bool whole = !hides;
      // Looks at a dense mask are dear, and are left to the tiles.
      if (p_.intervals.data && !p_.mask.data) {
        const View view = b.sight.look(&begin, &end);
        whole = view == View::kAll && begin == g && end == stop;
        if (view == View::kNone) continue;
      }
      for (int64_t j = begin / kRoundKeys * kRoundKeys; j < end; j += kRoundKeys) {
        tile(s, b, j, std::min(j + kRoundKeys, to), whole);
      }
    }
  }

  void tile(State &s, Block &b, int64_t begin, int64_t end, bool whole) const {
    const int64_t base = begin;
    const View view = whole ? View::kAll : b.sight.look(&begin, &end);
    if (view == View::kNone) return;
    s.turn = 1 - s.turn;
    ++b.tiles;
    float *scores = s.scores[s.turn];
    if constexpr (Watcher::kWatches) scores = watcher_->open(s.watch);
    round(s, {&b, base, begin, end, scores});
    settle(s, b, view);
  }

  // Whatever is on its way.
  void drain(State &s) const {
    if (s.now.block) round(s, Step());
    close(s);
    close(s);
  }

  // The products of `next`, the weights of s.now and some of the sums of values of s.summing.
  void round(State &s, const Step &next) const {
    Weigher<kParts> weigher;
    if (s.now.block) weigher = start_weights(s);
    const TileProduct<kParts> sums = product_of_values(s);
    const int blocks = (sums.blocks() + kGroupRounds - 1) / kGroupRounds;
    const int stop = std::min(s.summing.done + blocks, sums.blocks());
    if (next.block) {
      const TileProduct<kParts> products = product_of_queries(next);
      weigher.spread(products.blocks() * products.pauses() +
                     (stop - s.summing.done) * sums.pauses());
      for (int i = 0; i < products.blocks(); ++i) products.block(i, weigher, s.sums);
    }
    for (; s.summing.done < stop; ++s.summing.done) sums.block(s.summing.done, weigher, s.sums);
    s.sums.store_all();
    weigher.finish();
    if constexpr (Watcher::kWatches) {
      const Step &now = s.now;
      if (now.block) {
        watcher_->close(s.watch, seat(s, *now.block), now.block->rows, now.base, now.begin, now.end,
                        now.some);
      }
    }
    s.now = next;
  }

  REGARD_INLINE Weigher<kParts> start_weights(State &s) const {
    const Step &now = s.now;
    const int width = now.block->rows.width;
    Group &group = s.filling;
    if (group.keys == kGroupRounds * kRoundKeys || now.block != group.block ||
        now.base != group.base + group.keys) {
      close(s);
    }
    if (!group.tiles) {
      group.block = now.block;
      group.base = now.base;
    }
    uint32_t *to = group.weights + group.keys / 2 * width;
    // Pairs of keys that nothing sees weigh nothing.
    const int64_t keys = std::min(kRoundKeys, shape_.keys - now.base);
    const int64_t first = (now.begin - now.base) / 2, last = (now.end - now.base + 1) / 2;
    for (uint32_t *part = to; part < to + kParts * kGroupPart; part += kGroupPart) {
      if (first > 0) std::fill_n(part, first * width, 0u);
      if (last < keys / 2) std::fill(part + last * width, part + keys / 2 * width, 0u);
    }
    group.keys += keys;
    ++group.tiles;
    const int64_t skip = 2 * first * width;
    return Weigher<kParts>(&now.block->weights, now.scores + skip,
                           s.factors ? s.factors + skip : nullptr, kWeighs ? last - first : 0,
                           width, to + first * width, kGroupPart);
  }

  // Ends the group that is being filled; its sums come next, and those before it are finished.
  REGARD_NOINLINE void close(State &s) const {
    Group &group = s.summing;
    if (group.tiles) {
      product_of_values(s).compute(group.done);
      Block &b = *group.block;
      if (kParts > 2 && group.add) add_sums(b, s.staging);
      b.tiles -= group.tiles;
      if (b.swept && !b.tiles) finish(s, b);
    }
    std::swap(s.filling, s.summing);
    s.filling.keys = s.filling.tiles = s.filling.done = 0;
    if (!group.tiles) return;
    group.add = !group.block->fresh;
    group.block->fresh = false;
  }

  REGARD_INLINE TileProduct<kParts> product_of_queries(const Step &next) const {
    TileProduct<kParts> product;
    const Block &b = *next.block;
    const int64_t row = shape_.key_row() * 2;
    product.a = reinterpret_cast<const char *>(b.keys + next.base * shape_.key_row());
    product.a_row = row;
    product.a_tile = row * kTileRows;
    product.a_depth = kTileBytes;
    product.a_part = shape_.depth * 2;
    product.b = reinterpret_cast<const char *>(b.queries);
    product.b_part = shape_.depth * 2 * b.rows.width;
    product.c = reinterpret_cast<char *>(next.scores);
    product.width = b.rows.width * 4;
    product.tiles_m = static_cast<int>(round_up(next.end - next.base, kDepth) / kTileRows);
    product.tiles_n = b.rows.width / kTileRows;
    product.depth = shape_.depth / kDepth;
    return product;
  }

  REGARD_INLINE TileProduct<kParts> product_of_values(const State &s) const {
    TileProduct<kParts> product;
    const Group &group = s.summing;
    if (!output_.data || !group.tiles) return product;
    const Block &b = *group.block;
    product.a = reinterpret_cast<const char *>(b.values + group.base * shape_.value_row());
    product.a_row = kTileBytes;
    product.a_tile = kTileBytes * kTileRows;
    product.a_depth = kTileBytes * shape_.value_row();
    product.a_part = kTileBytes * shape_.width;
    product.b = reinterpret_cast<const char *>(group.weights);
    product.b_part = kGroupPart * 4;
    product.c = reinterpret_cast<char *>(kParts > 2 && group.add ? s.staging : b.output);
    product.width = b.rows.width * 4;
    product.tiles_m = static_cast<int>(shape_.width / kTileRows);
    product.tiles_n = b.rows.width / kTileRows;
    product.depth = group.keys / kDepth;
    product.add = kParts < 3 && group.add;
    return product;
  }

  // Long sums in float32 are exact only if made of short ones.
  void add_sums(const Block &b, const float *sums) const {
    if (!output_.data) return;
    const int64_t count = shape_.width * b.rows.width;
    for (int64_t i = 0; i < count; i += kLanes<float>) {
      store(b.output + i, load(b.output + i) + load(sums + i));
    }
  }

  // What is left to do to the scores of s.now before they can become weights.
  void settle(State &s, Block &b, View view) const {
    const Step &now = s.now;
    const int width = b.rows.width;
    const int64_t lead = now.begin - now.base, count = now.end - now.begin;
    float *scores = now.scores + lead * width;
    adjust(p_, b.rows, now.begin, now.end, scores);
    if (view == View::kSome) b.sight.hide(count, scores);
    s.now.some = view == View::kSome || p_.bias.data;
    // Weights come in pairs of keys.
    if (lead % 2) std::fill(scores - width, scores, -kInfinity<float>);
    if ((lead + count) % 2) std::fill_n(scores + count * width, width, -kInfinity<float>);
    if (p_.dropout > 0) b.dropout.fill(now.base, round_up(lead + count, 2), s.factors);
    if (!kWeighs || b.weights.bounded || !b.weights.rise(scores, count, width)) return;
    if (b.tiles == 1 && b.fresh) return;
    close(s);
    close(s);
    rescale(b);
  }

  void rescale(Block &b) const {
    const int width = b.rows.width;
    for (int r = 0; r < width; r += kLanes<float>) {
      const F factor = load(b.weights.rescale + r);
      for (int64_t e = 0; e < shape_.width; ++e) {
        float *at = b.output + e * width + r;
        store(at, load(at) * factor);
      }
    }
  }

  static int seat(const State &s, const Block &b) { return static_cast<int>(&b - s.blocks); }

  // Scores of keys [begin, end) again, which lie in one tile.
  void rescore(Block &b, int64_t begin, int64_t end, float *to) const {
    const int width = b.rows.width;
    const View view = b.sight.look(&begin, &end);
    alignas(64) float tile[kRoundKeys * kBlockRows];
    const Step step = {&b, begin / kRoundKeys * kRoundKeys, begin, end, tile};
    product_of_queries(step).compute();
    const float *first = tile + (begin - step.base) * width;
    std::copy(first, first + (end - begin) * width, to);
    adjust(p_, b.rows, begin, end, to);
    if (view == View::kSome) b.sight.hide(end - begin, to);
  }

  void finish(State &s, Block &b) const {
    if (kWeighs) finish(b);
    if constexpr (Watcher::kWatches) {
      watcher_->finish(s.watch, seat(s, b), b.index, b.rows,
                       [&](int64_t begin, int64_t end, float *to) { rescore(b, begin, end, to); });
    }
  }

  void finish(const Block &b) const {
    alignas(64) float factors[kBlockRows];
    std::fill_n(factors, kBlockRows, 0.f);
    bool good = true;
    for (int r = 0; r < b.rows.count; ++r) {
      const int64_t h = b.rows.head[r], row = (b.rows.batch * p_.heads + h) * p_.queries;
      float lse;
      normalise<float>(p_, b.weights, h, r, factors + r, &lse);
      if (lse_) lse_[row + b.rows.query[r]] = lse;
      good &= lse < kInfinity<float>;
    }
    if (output_.data) {
      if (b.fresh) std::fill_n(b.output, shape_.width * b.rows.width, 0.f);
      for (int r = 0; r < b.rows.count; r += kTileRows) {
        F probe = broadcast(0.f);
        for (int64_t e = 0; e < shape_.width; e += kTileRows) {
          write(b, r, e, load(factors + r), &probe);
        }
        good &= !any(differ(probe, probe));
      }
    }
    spoilt_[b.index] = !good;
  }

  // Columns e … e + 15 of the outputs of rows r … r + 15. `probe` becomes NaN where one is not
  // finite.
  void write(const Block &b, int r, int64_t e, F factor, F *probe) const {
    F square[kTileRows];
    const int64_t width = b.rows.width;
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      square[i] = load(b.output + (e + i) * width + r) * factor;
      *probe = fma(square[i], broadcast(0.f), *probe);
    }
    transpose_registers<float>(square);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      if (r + i >= b.rows.count) break;
      void *to = row_of(output_, p_.dtype, b.rows.batch, b.rows.head[r + i], b.rows.query[r + i]);
      const F row = square[i];
      if (p_.dtype == REGARD_FLOAT16) {
        store_float16(static_cast<uint16_t *>(to) + e, row, p_.value_size - e);
      } else {
        store_partial(static_cast<float *>(to) + e, row, p_.value_size - e);
      }
    }
  }

  const regard_problem &p_;
  const regard_array &output_;
  float *lse_;
  Watcher *watcher_;
  bool good_ = true;
  Cut<float> cut_;
  PackedShape shape_;
  HeadPacker<kParts> packer_;
  PackedHeads packed_;
  int64_t run_ = 1;            // heads of a task
  int64_t chunks_, turns_;     // of keys; blocks that take turns at them
  uint8_t *spoilt_ = nullptr;  // which blocks are
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
