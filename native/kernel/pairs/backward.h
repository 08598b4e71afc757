// Gradients of queries, keys and values by products of pairs of bfloat16. Each product sums over
// what its pairs are made of: elements for scores, rows for gradients of keys and values, keys for
// gradients of queries.
#ifndef REGARD_KERNEL_PAIRS_BACKWARD_H
#define REGARD_KERNEL_PAIRS_BACKWARD_H

namespace regard {
namespace REGARD_NAMESPACE {

// Elements of values must lie in whole pairs too.
inline bool backward_pays(const regard_problem &p) {
  return pairs_pay(p) && p.value_size > 0 && p.value_size % 2 == 0 && p.value.row_stride % 2 == 0;
}

class PairBackward : public Panels<float, PairBlock, PairBackward> {
 public:
  struct Work : Panels<float, PairBlock, PairBackward>::Work {
    float *queries, *d_outputs;    // of a panel: pairs of rows [pair][padded size]
    float *keys;                   // of a tile: pairs of keys [pair][padded size]
    float *d_scores_of_keys;       // the same [pair][row]
    int64_t tile_begin, tile_end;  // keys of the tile
  };

  using Base = Panels<float, PairBlock, PairBackward>;
  using Base::Base;

  void allocate(Work &s, Scratch &scratch) const {
    Base::allocate(s, scratch);
    s.queries = scratch.take<float>(panel_rows() / 2 * size_);
    s.d_outputs = scratch.take<float>(panel_rows() / 2 * width_);
    s.keys = scratch.take<float>(kTile<float> / 2 * size_);
    s.d_scores_of_keys = scores_ ? scratch.take<float>(kTileSize<float> / 2) : nullptr;
  }

  void take_queries(Work &s, int64_t head, int64_t first, int64_t last) const {
    join_panel(p_.query, s.batch, head, first, last, p_.head_size, size_, s.queries);
    join_panel(g_.d_output, s.batch, head, first, last, p_.value_size, width_, s.d_outputs);
  }

  void take_keys(Work &s, int64_t first, int64_t last) const {
    s.tile_begin = first;
    s.tile_end = last;
    if (!s.d_query) return;
    join_keys(in_place<uint16_t>(p_.key, s.batch, s.key_head, first), last - first, p_.head_size,
              size_, s.keys);
  }

  void tile(Work &s, int64_t index, View view, int64_t begin, int64_t end) const {
    const bool fits = begin >= s.tile_begin && (begin - s.tile_begin) % 2 == 0;
    if (!fits) take_keys(s, begin, std::max(end, s.tile_end));
    auto &g = s.blocks[index];
    const Rows<float> &rows = g.block.rows;
    const int64_t count = end - begin, first_pair = index * kBlock<float> / 2;
    const auto values = pairs_of(in_place<uint16_t>(p_.value, s.batch, s.value_head, begin));
    g.tile(view, {}, values, begin, end, s.weights, s.d_scores, true, s.distances);

    const int vectors = rows.width / kLanes<float>, pairs = (vectors + 1) / 2 * kLanes<float>;
    if (s.d_value) {
      join_lanes(s.weights, count, vectors);
      product<float, Left::kRows>(s.weights, pairs, of(s.d_outputs + first_pair * width_), width_,
                                  s.d_value + begin * width_, width_, count, width_ / kLanes<float>,
                                  pairs, true);
    }
    if (s.d_query) {
      const PairedWeights to{s.d_scores_of_keys, nullptr, rows.width};
      join_tile(s.d_scores, count, to);
      product<float, Left::kAcross>(s.d_scores_of_keys, rows.width,
                                    of(s.keys + (begin - s.tile_begin) / 2 * size_), size_,
                                    s.d_query + index * kBlock<float> * size_, size_, rows.count,
                                    size_ / kLanes<float>, (count + 1) / 2, true);
    }
    if (s.d_key) {
      join_lanes(s.d_scores, count, vectors);
      product<float, Left::kRows>(s.d_scores, pairs, of(s.queries + first_pair * size_), size_,
                                  s.d_key + begin * size_, size_, count, size_ / kLanes<float>,
                                  pairs, true);
    }
  }

 private:
  static const Pair *of(const float *pairs) { return reinterpret_cast<const Pair *>(pairs); }

  // Rows [first, last) of one head, in pairs of rows as join_lanes() makes them.
  void join_panel(const regard_array &a, int64_t batch, int64_t head, int64_t first, int64_t last,
                  int64_t size, int64_t width, float *to) const {
    constexpr int L = kLanes<float>;
    const auto rows = in_place<uint16_t>(a, batch, head, first);
    const int64_t count = last - first;
    for (int64_t i = 0; i < round_up(count, 2 * L) / 2; ++i, to += width) {
      const int64_t row = i / L * 2 * L + i % L;
      join_rows(row < count ? rows.from(row).data : nullptr,
                row + L < count ? rows.from(row + L).data : nullptr, size, width, to);
    }
  }

  // In place, [key][row] becomes [key][pair of rows that are one vector apart].
  static void join_lanes(float *tile, int64_t count, int vectors) {
    constexpr int L = kLanes<float>;
    float *to = tile;
    for (int64_t j = 0; j < count; ++j, tile += vectors * L) {
      for (int v = 0; v < vectors; v += 2, to += L) {
        const Vec<float> high = v + 1 < vectors ? load(tile + (v + 1) * L) : broadcast(0.0f);
        _mm512_storeu_si512(to, join(load(tile + v * L), high));
      }
    }
  }

  static void join_tile(const float *tile, int64_t count, PairedWeights to) {
    for (int64_t j = 0; j < count; j += 2) {
      for (int r = 0; r < to.width; r += kLanes<float>) {
        const float *at = tile + j * to.width + r;
        to.put(j, r, load(at), j + 1 < count ? load(at + to.width) : broadcast(0.0f));
      }
    }
  }
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
