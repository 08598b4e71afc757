// Read-outs in the forward's own sweep: each tile of scores leaves a tally as it goes by, and when
// a block of rows has seen all its tiles, tallies become read-outs. Few tiles have to be looked at
// again, key by key: those near the query, at borders of bins and cells, and with one of the
// largest weights.
#ifndef REGARD_KERNEL_AMX_WATCHER_H
#define REGARD_KERNEL_AMX_WATCHER_H

namespace regard {
namespace REGARD_NAMESPACE {

class Watcher {
 public:
  static constexpr bool kWatches = true;

  // `lse`: of all rows, written here if `own`, else known when a block is finished.
  Watcher(const regard_problem &p, float *lse, bool own, const Request &q)
      : p_(p), q_(q), lse_(lse), own_(own), unit_(score_unit<float>(p)), gathered_(p, q) {}

  // What it takes: no query shares a block with those of another head, and no read-out needs more
  // of a score than a tally keeps.
  static bool can(const regard_problem &p, const Request &q) {
    const bool viewers = q.received && q.received_reduction == REGARD_MEAN;
    const int64_t kept = capacity(p) * int64_t{sizeof(Tally)};
    return sweeps(q) && !q.top_query_weights && !viewers && p.dropout == 0 && kept <= kKept &&
           Cut<float>(p, kBlockRows).heads == 1;
  }

  // Blocks of rows come in pieces, all of one head, in the order of their indices.
  bool prepare(const Cut<float> &cut, Scratch &scratch) {
    cut_ = &cut;
    pieces_ = std::min(gathered_.best_pieces(), cut.blocks);
    const auto row = [&](int64_t piece, int64_t behind) {
      Rows<float> rows;
      cut.set(p_, first(piece + behind) - behind, &rows);
      return behind ? rows.query[0] : rows.query[rows.count - 1] + 1;
    };
    return gathered_.allocate(
        pieces_, [&](int64_t piece) { return row(piece, 1); },
        [&](int64_t piece) { return row(piece, 0); }, scratch);
  }
  int64_t pieces() const { return pieces_; }
  int64_t first(int64_t piece) const {
    return piece / pieces_ * cut_->blocks + piece % pieces_ * cut_->blocks / pieces_;
  }
  int merge() { return gathered_.merge(); }
  // Whether something was not finite, and nothing is to be trusted.
  bool failed() const { return failed_.load(); }

  // What a task has to do with. Tallies lie in a ring: blocks are finished in the order of their
  // tiles.
  struct Work {
    std::optional<Readers<float>> readers;
    Tally *ring;
    int64_t opened = 0, closed = 0, piece = -1;
    Tally **tallies[kBlocks];  // of each block on its way
    int64_t counts[kBlocks] = {};
    float *largest, *scores, *weights;  // of a tile
  };

  void allocate(Work &w, Scratch &scratch) const {
    w.readers.emplace(p_, lse_, q_, scratch);
    w.ring = scratch.take<Tally>(capacity(p_));
    for (Tally **&list : w.tallies) list = scratch.take<Tally *>(capacity(p_));
    w.largest = scratch.take<float>(capacity(p_) * kTallyRows);
    w.scores = scratch.take<float>(kTallyKeys * kTallyRows);
    w.weights = scratch.take<float>(kTallyKeys * kTallyRows);
  }

  void start(Work &w, int seat) const { w.counts[seat] = 0; }

  // Where the next tile's scores are to be written.
  float *open(Work &w) const {
    w.opened = (w.opened + 1) % capacity(p_);
    return w.ring[w.opened].scores();
  }
  // The scores of keys [begin, end) of the tile that was opened first, and is no longer needed.
  void close(Work &w, int seat, const Rows<float> &rows, int64_t base, int64_t begin, int64_t end,
             bool some) const {
    w.closed = (w.closed + 1) % capacity(p_);
    Tally &tally = w.ring[w.closed];
    w.tallies[seat][w.counts[seat]++] = &tally;
    tally.take(base, begin, end, rows.width, unit_, some, w.ring[(w.opened + 1) % capacity(p_)]);
  }

  // Block `index`; `rescore(begin, end, to)` computes scores again.
  template <class Rescore>
  REGARD_NOINLINE void finish(Work &w, int seat, int64_t index, const Rows<float> &rows,
                              Rescore rescore) const {
    const Block block = {rows, w.tallies[seat], w.counts[seat]};
    turn_to(w, index);
    Readers<float> &readers = *w.readers;
    float pivot[kTallyRows];
    sum(block, pivot);
    readers.start(rows);
    for (int64_t t = 0; t < block.count; ++t) add(w, rows, *block.tallies[t]);
    readers.finish(rows);
    if (readers.top.wanted()) find(w, block, pivot, rescore);
  }

 private:
  struct Block {
    const Rows<float> &rows;
    Tally **tallies;
    int64_t count;
  };

  // Tiles of a block of rows, and those of others that are on their way.
  static int64_t capacity(const regard_problem &p) { return p.keys / kTallyKeys + 12; }

  void turn_to(Work &w, int64_t index) const {
    const int64_t head = index / cut_->blocks;
    int64_t piece = head * pieces_;
    while (first(piece + 1) <= index) ++piece;
    if (piece == w.piece) return;
    w.piece = piece;
    gathered_.clear(piece);
    w.readers->turn_to(gathered_, piece);
  }

  // Log-sum-exps, and the highest pivots.
  void sum(const Block &block, float *pivot) const {
    const Rows<float> &rows = block.rows;
    double sums[kTallyRows] = {};
    std::fill_n(pivot, rows.width, -kInfinity<float>);
    const F zero = broadcast(0.f);
    for (int64_t t = 0; t < block.count; ++t) {
      const Tally &tally = *block.tallies[t];
      for (int r = 0; r < rows.width; r += kLanes<float>) {
        const auto seen = less(zero, load(tally.sum + r));
        const F at = select(seen, load(tally.pivot + r), broadcast(-kInfinity<float>));
        store(pivot + r, max(at, load(pivot + r)));
      }
    }
    for (int r = 0; r < rows.width; ++r) {
      if (pivot[r] == -kInfinity<float>) pivot[r] = 0;
    }
    for (int64_t t = 0; t < block.count; ++t) {
      const Tally &tally = *block.tallies[t];
      float share[kTallyRows];
      for (int r = 0; r < rows.width; r += kLanes<float>) {
        const F behind = load(tally.pivot + r) - load(pivot + r);
        store(share + r, scale_exp2(load(tally.sum + r), behind));
      }
      for (int r = 0; r < rows.width; ++r) sums[r] += share[r];
    }
    bool good = true;
    for (int r = 0; r < rows.count; ++r) {
      good &= std::isfinite(sums[r]);
      if (!own_) continue;
      float factor;
      normalise(p_, pivot[r] * static_cast<float>(kLn2), static_cast<float>(sums[r]), rows.head[r],
                &factor, lse_ + row_index(p_, rows, r));
    }
    if (!good) failed_.store(true, std::memory_order_relaxed);
  }

  // What one tile adds.
  void add(Work &w, const Rows<float> &rows, const Tally &tally) const {
    Readers<float> &readers = *w.readers;
    float factors[kTallyRows];
    TileSums<float> sums;
    normalise_sums(readers.sums.shift(), tally, rows.width, factors, &sums);
    bool made = false;
    const auto weights = [&] {
      if (!made) scale(tally, factors, rows.width, w.weights);
      made = true;
      return Tile<float>{rows, tally.begin, tally.count, w.weights};
    };
    if (readers.sums.largest()) {
      float largest[kTallyRows];
      for (int r = 0; r < rows.width; r += kLanes<float>) store(largest + r, tally.most(r));
      readers.sums.look({rows, 0, 1, largest});
    }
    if (readers.sums.wanted()) readers.sums.add(rows, tally.begin, tally.count, sums, weights);
    share_out(readers, rows, tally, factors, sums, weights);
  }

  template <class Weights>
  void share_out(Readers<float> &readers, const Rows<float> &rows, const Tally &tally,
                 const float *factors, const TileSums<float> &sums, Weights weights) const {
    const int64_t begin = tally.begin, count = tally.count;
    if (readers.mass.wanted() && readers.mass.touches(begin, count)) readers.mass.take(weights());
    if (readers.offsets.wanted() && readers.offsets.touches(rows, begin, count)) {
      readers.offsets.take(weights());
    }
    if (readers.bins.wanted()) {
      const int bin = readers.bins.common(begin, count);
      if (bin < 0) {
        readers.bins.take(weights());
      } else {
        readers.bins.add(bin, sums.sum, rows.width);
      }
    }
    if (readers.edges.wanted() && readers.edges.reached(sums.most, rows.width)) {
      readers.edges.take(weights());
    }
    if (q_.received && readers.columns.sums()) {
      readers.columns.take({rows, begin, count, tally.weights}, factors);
    } else if (q_.received) {
      readers.columns.take(weights());
    }
    if (readers.pooled.wanted() && readers.pooled.joins(begin, count)) {
      readers.pooled.add(rows, begin, sums);
    } else if (readers.pooled.wanted()) {
      readers.pooled.take(weights());
    }
  }

  // `factors` make weights of those of the tally.
  void normalise_sums(const float *shifts, const Tally &tally, int width, float *factors,
                      TileSums<float> *to) const {
    const F unit = broadcast(unit_);
    for (int r = 0; r < width; r += kLanes<float>) {
      const F shift = load(shifts + r), behind = load(tally.pivot + r) + shift;
      const F factor = exp2(behind), sum = load(tally.sum + r) * factor;
      store(factors + r, factor);
      store(to->sum + r, sum);
      store(to->behind + r, load(tally.behind + r) * factor);
      store(to->squares + r, load(tally.squares + r) * factor * factor);
      store(to->logarithms + r, fma(sum, behind, load(tally.logarithms + r) * factor));
      store(to->most + r, exp2(fma(tally.most(r), unit, shift)));
    }
  }

  static void scale(const Tally &tally, const float *factors, int width, float *to) {
    for (int64_t i = 0; i < tally.count * width; i += width) {
      for (int r = 0; r < width; r += kLanes<float>) {
        store(to + i + r, load(tally.weights + i + r) * load(factors + r));
      }
    }
  }

  // The largest weights. Weights are compared, relative to the highest pivot of their row; where
  // one that counts is too small for that, or keys are too few, scores are computed again.
  template <class Rescore>
  void find(Work &w, const Block &block, const float *pivot, Rescore rescore) const {
    TopKeys<float> &top = w.readers->top;
    const RowSums<float> &sums = w.readers->sums;
    const Rows<float> &rows = block.rows;
    top.exceed(0, rows.width);
    for (int64_t t = 0; t < block.count; ++t) {
      const Tally &tally = *block.tallies[t];
      for (int r = 0; r < rows.width; r += kLanes<float>) {
        store(w.largest + t * rows.width + r, compared(tally.most(r), tally, load(pivot + r), r));
      }
    }
    top.expect({rows, 0, block.count, w.largest});
    for (int64_t t = 0; t < block.count; ++t) {
      for (int r = 0; r < rows.width; r += kLanes<float>) {
        const F largest = load(w.largest + t * rows.width + r);
        if (any(less(top.limit(rows.width, r), largest))) {
          look(top, rows, *block.tallies[t], load(pivot + r), r);
        }
      }
    }
    const float *least = top.least(rows.width);
    if (std::all_of(least, least + rows.count, [](float value) { return value > kDeep; })) {
      top.finish(rows,
                 [&](float value, int r) { return value * std::exp2(pivot[r] + sums.shift()[r]); });
      return;
    }
    top.start(rows);
    for (int64_t t = 0; t < block.count; ++t) {
      const Tally &tally = *block.tallies[t];
      rescore(tally.begin, tally.begin + tally.count, w.scores);
      top.look({rows, tally.begin, tally.count, w.scores});
    }
    w.readers->finish_top(rows);
  }

  // The weight of a score, the same as in the tally, relative to the highest pivot.
  F compared(F score, const Tally &tally, F pivot, int r) const {
    const F own = load(tally.pivot + r);
    return scale_exp2(exp2(fma(score, broadcast(unit_), broadcast(0.f) - own)), own - pivot);
  }

  void look(TopKeys<float> &top, const Rows<float> &rows, const Tally &tally, F pivot,
            int r) const {
    const F behind = load(tally.pivot + r) - pivot;
    for (int part = 0; part * kPartKeys < tally.count; ++part) {
      const F largest = compared(load(tally.largest[part] + r), tally, pivot, r);
      if (!any(less(top.limit(rows.width, r), largest))) continue;
      const int64_t first = part * kPartKeys, count = std::min(kPartKeys, tally.count - first);
      float *values = tally.weights + first * rows.width;
      top.look({rows, tally.begin + first, count, values}, r,
               [&](F weight) { return scale_exp2(weight, behind); });
    }
  }

  static constexpr float kDeep = 1e-30f;

  const regard_problem &p_;
  const Request &q_;
  float *lse_;
  bool own_;
  float unit_;
  const Cut<float> *cut_ = nullptr;
  int64_t pieces_ = 1;  // of each head
  Gathered<float> gathered_;
  mutable std::atomic<bool> failed_{false};
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
