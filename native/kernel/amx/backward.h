// The backward on the matrix unit, for elements that are sums of a few bfloat16. Within a piece,
// panels of queries meet groups of keys.
//
// A panel is some blocks of 64 rows. Groups of tiles of 32 keys meet some blocks of it at a time:
// first all their scores, weights and gradients of scores, then what these add to the gradients of
// values, keys and queries. So those sums are deep, and are loaded and stored once a group.
#ifndef REGARD_KERNEL_AMX_BACKWARD_H
#define REGARD_KERNEL_AMX_BACKWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

constexpr int64_t kTileKeys = kDepth;

// Fewer queries or keys leave too much of a tile empty, or do not make up for being split. Six
// products in place of one leave little to gain, which padding to whole tiles must not take away.
inline bool backward_pays(const regard_problem &p) {
  const int parts = parts_of(p);
  if (parts == 0 || !(p.scale > 0)) return false;
  if (p.batch == 0 || p.heads == 0 || p.head_size == 0 || p.value_size == 0) return false;
  const int64_t least = kTileRows * (parts == 1 ? 1 : parts == 2 ? 4 : 8);
  if (p.queries < least || p.keys < least) return false;
  const int64_t whole = round_up(p.queries, kDepth) * round_up(p.keys, kDepth);
  return parts < 3 || 8 * whole <= 9 * p.queries * p.keys;
}

template <int kParts>
class MatrixBackward : public Pieces<float, MatrixBackward<kParts>> {
  using Base = Pieces<float, MatrixBackward>;
  using Base::g_;
  using Base::p_;
  using Base::scores_;
  using Operands = GradientOperands<kParts>;
  using Product = TileProduct<kParts, kParts == 1>;

  static constexpr int64_t kRows = kBlock<float>;
  static constexpr int kPanelBlocks = kParts == 1 ? 16 : 8;
  static constexpr int kBlocks = kParts == 1 ? 4 : 1, kTiles = kParts == 1 ? 4 : 2;
  static constexpr int64_t kGroupRows = kBlocks * kRows, kGroupKeys = kTiles * kTileKeys;

  // A block of rows of a panel.
  struct Queries {
    Rows<float> rows;
    Sight<float> sight;
    Dropout<float> dropout;
    uint16_t *queries, *d_outputs;  // pairs of elements [pair][row]
    float *d_query;                 // [element][row]
    float shift[kRows], delta[kRows];
  };

  // Operands of tile t and block b, and which of them there are.
  struct Group {
    int64_t base;                  // its first key
    int first, count;              // blocks of the panel
    uint16_t *weights, *d_scores;  // [tile][32 rows][part][key][row]
    uint32_t *d_pairs;             // [block][part][tile][pair of keys][row]
    bool live[kTiles][kBlocks];

    Operands at(int t, int b, int width) const {
      constexpr int64_t tile = kParts * kTileKeys * kGroupRows, block = kParts * kTileKeys * kRows;
      Operands to;
      to.weights = weights ? weights + t * tile + b * block : nullptr;
      to.d_scores = d_scores ? d_scores + t * tile + b * block : nullptr;
      to.d_pairs = d_pairs ? d_pairs + b * kTiles * block / 2 + t * kTileKeys / 2 * width : nullptr;
      to.part = kTiles * kTileKeys / 2 * width;
      return to;
    }
  };

  // One tile and one block.
  struct Step {
    int tile, block;
    int64_t base, begin, end;  // its first key, and those that some row sees
  };

 public:
  static constexpr bool kSplit = kParts > 1;
  static constexpr int64_t kPanelRows = kPanelBlocks * kRows;

  struct Work : Piece<float> {
    const MatrixUnit unit;
    int64_t packed_value_head = -1;
    uint16_t *keys, *turned_keys, *values;  // one tile when it is first seen
    bool *packed_keys, *packed_values;
    Queries blocks[kPanelBlocks];
    int count, width;                        // of the panel: blocks, rows
    int64_t rows;                            // for which there is memory
    uint16_t *query_pairs, *d_output_pairs;  // of its rows: [part][pair][element]
    uint16_t *split;                         // a block of queries, or of gradients of outputs
    float *staging;
    GradientScores scores;
    Group group;
  };

  MatrixBackward(const regard_problem &p, const regard_gradients &g)
      : Base(p, g),
        keys_(round_up(p.keys, kTileKeys)),
        depth_(round_up(p.head_size, kDepth)),
        value_depth_(round_up(p.value_size, kDepth)),
        size_(round_up(p.head_size, kTileRows)),
        width_(round_up(p.value_size, kTileRows)) {}

  void allocate(Work &s, Scratch &scratch) const {
    const int64_t rows = std::min(kPanelRows, round_up(p_.queries, kRows));
    s.rows = rows;
    s.keys = scratch.take<uint16_t>(kParts * keys_ * depth_);
    s.turned_keys = g_.d_query.data ? scratch.take<uint16_t>(kParts * keys_ * size_) : nullptr;
    s.values = scores_ ? scratch.take<uint16_t>(kParts * keys_ * value_depth_) : nullptr;
    s.packed_keys = scratch.take<bool>(keys_ / kTileKeys);
    s.packed_values = scratch.take<bool>(keys_ / kTileKeys);
    s.split = scratch.take<uint16_t>(kParts * kRows * std::max(depth_, value_depth_));
    s.staging = scratch.take<float>(kRows * size_);
    for (int i = 0; i < rows / kRows; ++i) {
      Queries &q = s.blocks[i];
      q.sight.allocate(p_, scratch);
      q.queries = scratch.take<uint16_t>(kParts * kRows * depth_);
      q.d_outputs = scores_ ? scratch.take<uint16_t>(kParts * kRows * value_depth_) : nullptr;
      q.d_query = g_.d_query.data ? scratch.take<float>(kRows * size_) : nullptr;
    }
    s.query_pairs = g_.d_key.data ? scratch.take<uint16_t>(kParts * rows * size_) : nullptr;
    s.d_output_pairs = g_.d_value.data ? scratch.take<uint16_t>(kParts * rows * width_) : nullptr;
    constexpr int64_t tile = kTileKeys * kRows;
    s.scores.scores = scratch.take<float>(tile);
    s.scores.d_weights = scores_ ? scratch.take<float>(tile) : nullptr;
    s.scores.factors = p_.dropout > 0 ? scratch.take<float>(tile) : nullptr;
    s.scores.slope = p_.softcap > 0 && scores_ ? scratch.take<float>(tile) : nullptr;
    constexpr int64_t all = kParts * kGroupKeys * kGroupRows;
    s.group.weights = g_.d_value.data ? scratch.take<uint16_t>(all) : nullptr;
    s.group.d_scores = scores_ ? scratch.take<uint16_t>(all) : nullptr;
    s.group.d_pairs = scores_ ? scratch.take<uint32_t>(all / 2) : nullptr;
    if (!scratch.failed()) std::fill_n(s.packed_keys, keys_ / kTileKeys, false);
  }

  // Queries [first, last) of one head.
  void panel(Work &s, int64_t head, int64_t first, int64_t last, Careful<float> &careful) const {
    if (s.packed_value_head != s.value_head) {
      std::fill_n(s.packed_values, keys_ / kTileKeys, false);
      s.packed_value_head = s.value_head;
    }
    s.count = static_cast<int>((last - first + kRows - 1) / kRows);
    int64_t from = p_.keys, to = 0;
    for (int i = 0; i < s.count; ++i) {
      const int64_t row = first + i * kRows;
      set(s, i, head, row, std::min(last - row, kRows));
      from = std::min(from, s.blocks[i].sight.first());
      to = std::max(to, s.blocks[i].sight.last());
    }
    const Queries &end = s.blocks[s.count - 1];
    s.width = (s.count - 1) * static_cast<int>(kRows) + end.rows.width;
    for (int64_t base = from / kTileKeys * kTileKeys; base < to; base += kGroupKeys) {
      for (int b = 0; b < s.count; b += kBlocks) sweep(s, base, std::min(base + kGroupKeys, to), b);
    }
    if (!g_.d_query.data) return;
    for (int i = 0; i < s.count; ++i) write_queries(s.blocks[i], s.staging, careful);
  }

 private:
  // The tile of keys, and of values, from `first` on. Tiles that nothing sees are never read.
  void pack(Work &s, int64_t first) const {
    const int64_t last = std::min(first + kTileKeys, p_.keys), t = first / kTileKeys;
    const int64_t at = kParts * first;
    if (!s.packed_keys[t]) {
      uint16_t *keys = s.keys + at * depth_;
      split_rows<kParts>(p_.key, p_.dtype, s.batch, s.key_head, first, last, kTileKeys,
                         p_.head_size, depth_, keys);
      if (s.turned_keys) {
        turn_rows<kParts>(keys, depth_, size_, s.split, s.turned_keys + at * size_);
      }
      s.packed_keys[t] = true;
    }
    if (s.values && !s.packed_values[t]) {
      split_rows<kParts>(p_.value, p_.dtype, s.batch, s.value_head, first, last, kTileKeys,
                         p_.value_size, value_depth_, s.values + at * value_depth_);
      s.packed_values[t] = true;
    }
  }

  // Keys [base, stop) and the blocks from `first` on.
  void sweep(Work &s, int64_t base, int64_t stop, int first) const {
    Group &group = s.group;
    group.base = base;
    group.first = first;
    group.count = std::min(s.count - first, kBlocks);
    std::fill_n(group.live[0], kTiles * kBlocks, false);
    bool any = false;
    for (int t = 0; base + t * kTileKeys < stop; ++t) {
      for (int b = 0; b < group.count; ++b) any |= tile(s, t, b);
    }
    if (any) sum(s);
  }

  // Rows of block i of a panel.
  void set(Work &s, int i, int64_t head, int64_t first, int64_t count) const {
    Queries &q = s.blocks[i];
    Rows<float> &rows = q.rows;
    rows.set(p_, s.batch, head, first, count);
    // Whole pairs of tiles: sums over rows are so deep.
    for (; rows.width % kDepth; ++rows.width) {
      rows.head[rows.width] = head;
      rows.query[rows.width] = first + count - 1;
    }
    q.sight.set(rows);
    if (p_.dropout > 0) q.dropout.set(p_, rows);
    const int64_t end = first + count, at = i * kRows;
    split_rows<kParts>(p_.query, p_.dtype, s.batch, head, first, end, rows.width, p_.head_size,
                       depth_, s.split);
    pair_elements<kParts>(s.split, rows.width, depth_, q.queries);
    if (s.query_pairs) {
      pair_rows<kParts>(s.split, rows.width, depth_, size_, s.rows * size_,
                        s.query_pairs + at * size_);
    }
    split_rows<kParts>(g_.d_output, p_.dtype, s.batch, head, first, end, rows.width, p_.value_size,
                       value_depth_, s.split);
    if (scores_) pair_elements<kParts>(s.split, rows.width, value_depth_, q.d_outputs);
    if (s.d_output_pairs) {
      pair_rows<kParts>(s.split, rows.width, value_depth_, width_, s.rows * width_,
                        s.d_output_pairs + at * width_);
    }
    if (q.d_query) std::fill_n(q.d_query, size_ * rows.width, 0.f);
    const float *lse = static_cast<const float *>(g_.lse);
    lse += (s.batch * p_.heads + head) * p_.queries + first;
    for (int r = 0; r < rows.width; ++r) {
      const bool there = r < rows.count;
      const float total = there ? lse[r] : -kInfinity<float>;
      // A row that saw nothing has weights 2^(score - inf) = 0.
      q.shift[r] = total == -kInfinity<float> ? total : -total * static_cast<float>(kLog2e);
      q.delta[r] = there && scores_ ? delta_of<float>(p_, g_, s.batch, head, first + r) : 0;
    }
  }

  // Whether there is anything to see.
  bool tile(Work &s, int t, int b) const {
    Group &group = s.group;
    const Queries &q = s.blocks[group.first + b];
    Step now = {t, b, group.base + t * kTileKeys, 0, 0};
    now.begin = now.base;
    now.end = std::min(now.base + kTileKeys, p_.keys);
    const View view = s.blocks[group.first + b].sight.look(&now.begin, &now.end);
    if (view == View::kNone) return false;
    pack(s, now.base);
    multiply(now, q, s.keys, depth_, q.queries, s.scores.scores);
    if (scores_) {
      multiply(now, q, s.values, value_depth_, q.d_outputs, s.scores.d_weights);
    }
    settle(s, now, q, view);
    const int width = q.rows.width;
    const int64_t first = (now.begin - now.base) / 2, last = (now.end - now.base + 1) / 2;
    const Operands to = group.at(t, b, width);
    if (first > 0) to.clear(0, first, width);
    if (last < kTileKeys / 2) to.clear(last, kTileKeys / 2, width);
    s.scores.distances = s.distances;
    s.scores.query = q.rows.query[0];
    s.scores.key = now.base;
    s.scores.rows = q.rows.count;
    GradientMaker<kParts>(s.scores, to, q.shift, q.delta, score_unit<float>(p_), width)
        .make(first, last);
    group.live[t][b] = true;
    return true;
  }

  static void compute(const Product &product) { product.compute(); }

  // Products of keys (or values) with the queries (or gradients of outputs) of a block.
  static void multiply(const Step &now, const Queries &q, const uint16_t *left, int64_t depth,
                       const uint16_t *right, float *to) {
    Product product;
    const int64_t width = q.rows.width;
    product.a = reinterpret_cast<const char *>(left + kParts * now.base * depth);
    product.a_row = kParts * depth * 2;
    product.a_tile = product.a_row * kTileRows;
    product.a_depth = kTileBytes;
    product.a_part = depth * 2;
    product.b = reinterpret_cast<const char *>(right);
    product.b_part = depth * width * 2;
    product.c = reinterpret_cast<char *>(to);
    product.width = width * 4;
    product.tiles_m = static_cast<int>((now.end - now.base + kTileRows - 1) / kTileRows);
    product.tiles_n = static_cast<int>(width / kTileRows);
    product.depth = depth / kDepth;
    compute(product);
  }

  // What is left to do to the products before they can become operands.
  void settle(Work &s, const Step &now, const Queries &q, View view) const {
    const int width = q.rows.width;
    const int64_t lead = now.begin - now.base, count = now.end - now.begin;
    float *slope = s.scores.slope;
    adjust(p_, q.rows, now.begin, now.end, s.scores.scores + lead * width,
           slope ? slope + lead * width : nullptr);
    if (view == View::kSome) hide(q, s.scores, lead, count);
    // Operands come in pairs of keys.
    if (lead % 2) hide_key(s.scores, lead - 1, width);
    if ((lead + count) % 2) hide_key(s.scores, lead + count, width);
    if (p_.dropout > 0) q.dropout.fill(now.base, round_up(lead + count, 2), s.scores.factors);
  }

  static void hide_key(const GradientScores &s, int64_t j, int width) {
    std::fill_n(s.scores + j * width, width, -kInfinity<float>);
    if (s.d_weights) std::fill_n(s.d_weights + j * width, width, 0.f);
    if (s.slope) std::fill_n(s.slope + j * width, width, 0.f);
  }

  static void hide(const Queries &q, const GradientScores &s, int64_t lead, int64_t count) {
    const F hidden = broadcast(-kInfinity<float>), zero = broadcast(0.f);
    for (int64_t j = 0; j < count; ++j) {
      for (int r = 0; r < q.rows.width; r += kLanes<float>) {
        const int64_t at = (lead + j) * q.rows.width + r;
        const auto seen = q.sight.visible(j, r);
        store(s.scores + at, select(seen, load(s.scores + at), hidden));
        for (float *other : {s.d_weights, s.slope}) {
          if (other) store(other + at, select(seen, load(other + at), zero));
        }
      }
    }
  }

  // What the group adds to the gradients.
  void sum(Work &s) const {
    const Group &group = s.group;
    int low[kTiles + kBlocks],
        high[kTiles + kBlocks] = {};  // what is live of tiles, then of blocks
    std::fill_n(low, kTiles + kBlocks, kTiles + kBlocks);
    for (int t = 0; t < kTiles; ++t) {
      for (int b = 0; b < group.count; ++b) {
        if (!group.live[t][b]) continue;
        low[t] = std::min(low[t], b);
        high[t] = std::max(high[t], b + 1);
        low[kTiles + b] = std::min(low[kTiles + b], t);
        high[kTiles + b] = std::max(high[kTiles + b], t + 1);
      }
    }
    for (int t = 0; t < kTiles; ++t) {
      for (int b = 0; b < group.count; ++b) {
        const bool inside =
            (low[t] <= b && b < high[t]) || (low[kTiles + b] <= t && t < high[kTiles + b]);
        const int width = s.blocks[group.first + b].rows.width;
        if (!inside || group.live[t][b]) continue;
        group.at(t, b, width).clear(0, kTileKeys / 2, width);
        pack(s, group.base + t * kTileKeys);
      }
    }
    for (int t = 0; t < kTiles; ++t) {
      if (low[t] >= high[t]) continue;
      if (s.d_value) {
        compute(
            sum_of_keys(s, group.weights, t, low[t], high[t], s.d_output_pairs, s.d_value, width_));
      }
      if (s.d_key) {
        compute(sum_of_keys(s, group.d_scores, t, low[t], high[t], s.query_pairs, s.d_key, size_));
      }
    }
    for (int b = 0; b < group.count && g_.d_query.data; ++b) {
      const int from = low[kTiles + b], to = high[kTiles + b];
      if (from < to) compute(sum_of_queries(s, b, from, to));
    }
  }

  // Gradients of keys or values of tile t, over the rows of blocks [from, to).
  static Product sum_of_keys(const Work &s, const uint16_t *left, int t, int from, int to,
                             const uint16_t *right, float *sums, int64_t size) {
    const Group &group = s.group;
    const int64_t row = group.first * kRows, first = from * kRows;
    const int64_t last = std::min<int64_t>(to * kRows, s.width - row);
    Product product;
    product.a =
        reinterpret_cast<const char *>(left + kParts * (t * kGroupRows + first) * kTileKeys);
    product.a_row = kTileBytes;
    product.a_tile = kTileBytes * kTileRows;
    product.a_depth = kParts * kTileBytes * kTileKeys;
    product.a_part = kTileBytes * kTileKeys;
    product.b = reinterpret_cast<const char *>(right + (row + first) * size);
    product.b_part = s.rows * size * 2;
    product.c = reinterpret_cast<char *>(sums + (group.base + t * kTileKeys) * size);
    product.width = size * 4;
    product.tiles_m = kTileKeys / kTileRows;
    product.tiles_n = static_cast<int>(size / kTileRows);
    product.depth = (last - first) / kDepth;
    product.add = true;
    return product;
  }

  // Gradients of the queries of block b, over tiles [from, to).
  Product sum_of_queries(const Work &s, int b, int from, int to) const {
    const Group &group = s.group;
    const Queries &q = s.blocks[group.first + b];
    const int width = q.rows.width;
    Product product;
    product.a = reinterpret_cast<const char *>(s.turned_keys +
                                               kParts * (group.base + from * kTileKeys) * size_);
    product.a_row = kTileBytes;
    product.a_tile = kTileBytes * kTileRows;
    product.a_depth = kParts * kTileBytes * size_;
    product.a_part = kTileBytes * size_;
    const Operands right = group.at(from, b, width);
    product.b = reinterpret_cast<const char *>(right.d_pairs);
    product.b_part = right.part * 4;
    product.c = reinterpret_cast<char *>(q.d_query);
    product.width = width * 4;
    product.tiles_m = static_cast<int>(size_ / kTileRows);
    product.tiles_n = width / kTileRows;
    product.depth = to - from;
    product.add = true;
    return product;
  }

  void write_queries(const Queries &q, float *turned, Careful<float> &careful) const {
    const Rows<float> &rows = q.rows;
    transpose(q.d_query, rows.width, turned, size_, size_, rows.width);
    for (int r = 0; r < rows.count; ++r) {
      this->write_query(rows.batch, rows.head[r], rows.query[r], turned + r * size_, careful);
    }
  }

  // Keys, and sizes of theirs and of values, in whole tiles: as depth of products, and as width.
  int64_t keys_, depth_, value_depth_, size_, width_;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
