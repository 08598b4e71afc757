// One sweep over the scores for all read-outs that are wanted. Each head's queries are cut into
// pieces, by shape alone; a piece takes its blocks of rows one after another and gathers what
// belongs to keys and cells in memory of its own, which is put together at the end.
#ifndef REGARD_KERNEL_READOUTS_SWEEP_H
#define REGARD_KERNEL_READOUTS_SWEEP_H

namespace regard {
namespace REGARD_NAMESPACE {

// `Scorer` makes scores of a block of rows, as Block does; with a forward, that has made them, and
// the log-sum-exps too.
template <class T, class Scorer, class Before = Forward<T>>
class Sweep {
 public:
  Sweep(const regard_problem &p, const T *lse, const Request &q, const Before *forward)
      : p_(p),
        q_(q),
        lse_(lse),
        forward_(forward),
        vectors_(padded<T>(p.queries) / kLanes<T>),
        gathered_(p, q) {
    const int64_t rows = forward ? forward->rows() : kBlock<T>;
    blocks_ = (padded<T>(p.queries) + rows - 1) / rows;
    pieces_ = std::max<int64_t>(1, std::min(gathered_.best_pieces(), blocks_));
  }

  int run() {
    Scratch scratch(Scratch::kCall);
    const auto first = [&](int64_t piece) { return first_row(first_block(piece)); };
    const auto last = [&](int64_t piece) { return first_row(first_block(piece + 1)); };
    if (!gathered_.allocate(pieces_, first, last, scratch)) return REGARD_OUT_OF_MEMORY;
    const int64_t items = p_.batch * p_.heads * pieces_;
    const int status = parallel(items, p_.threads, &Sweep::task, this);
    return status == REGARD_OK ? gathered_.merge() : status;
  }

 private:
  int64_t first_block(int64_t piece) const { return blocks_ * piece / pieces_; }
  int64_t first_row(int64_t block) const {
    return std::min(p_.queries, vectors_ * block / std::max<int64_t>(1, blocks_) * kLanes<T>);
  }

  // What one piece needs while tiles go by.
  struct State {
    Scorer scorer;
    typename Before::State forward;
    Readers<T> readers;
    T *values, *keys;

    State(const Sweep &sweep, Scratch &scratch)
        : readers(sweep.p_, sweep.lse_, sweep.q_, scratch),
          values(scratch.take<T>(kTileSize<T>)),
          keys(scratch.take<T>(kTile<T> * padded<T>(sweep.p_.head_size))) {
      if (sweep.forward_) {
        sweep.forward_->allocate(forward, true, scratch);
      } else {
        scorer.allocate(sweep.p_, scratch);
      }
    }
  };

  static int task(void *context, int64_t item) {
    const Sweep &self = *static_cast<Sweep *>(context);
    const regard_problem &p = self.p_;
    // Later pieces come first: under a causal mask they take longest.
    const int64_t head = item / self.pieces_, piece = self.pieces_ - 1 - item % self.pieces_;
    const int64_t index = head * self.pieces_ + piece;
    Scratch scratch(Scratch::kTask);
    State s(self, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    self.gathered_.clear(index);
    s.readers.turn_to(self.gathered_, index);
    for (int64_t b = self.first_block(piece); b < self.first_block(piece + 1); ++b) {
      const int64_t first = self.first_row(b), last = self.first_row(b + 1);
      Rows<T> &rows = self.forward_ ? s.forward.block.rows : s.scorer.rows;
      rows.set(p, head / p.heads, head % p.heads, first, last - first);
      if (self.forward_) {
        self.forward_->block(s.forward);
      } else {
        s.scorer.set();
      }
      self.block(s, rows);
    }
    return REGARD_OK;
  }

  void block(State &s, const Rows<T> &rows) const {
    s.readers.start(rows);
    if (forward_) {
      look_ahead(s, rows);
      const auto &f = s.forward;
      for (int64_t t = 0; t < f.span_count; ++t) s.readers.take(kept(f, t));
    } else {
      const Tiles<T> tiles(s.scorer.sight.first(), s.scorer.sight.last());
      for (int64_t t = 0; t < tiles.count; ++t) tile(s, tiles.begin(t), tiles.begin(t + 1));
    }
    s.readers.finish(rows);
    s.readers.finish_top(rows);
  }

  static Tile<T> kept(const typename Before::State &f, int64_t t) {
    const auto [begin, count] = f.spans[t];
    return {f.block.rows, begin, count, f.kept + begin * f.block.rows.width};
  }

  // The largest scores of all tiles are known before any of them is looked at.
  void look_ahead(State &s, const Rows<T> &rows) const {
    const Tile<T> largest = {rows, 0, s.forward.span_count, s.forward.largest};
    if (s.readers.sums.largest()) s.readers.sums.look(largest);
    if (s.readers.top.wanted()) s.readers.top.expect(largest);
  }

  void tile(State &s, int64_t begin, int64_t end) const {
    const View view = s.scorer.sight.look(&begin, &end);
    if (view == View::kNone) return;
    s.scorer.scores(begin, end, s.keys, s.values);
    if (view == View::kSome) s.scorer.sight.hide(end - begin, s.values);
    const Tile<T> tile = {s.scorer.rows, begin, end - begin, s.values};
    if (s.readers.sums.largest()) s.readers.sums.look(tile);
    s.readers.take(tile);
  }

  const regard_problem &p_;
  const Request &q_;
  const T *lse_;
  const Before *forward_;              // or null
  int64_t vectors_, blocks_, pieces_;  // of a head's queries
  Gathered<T> gathered_;
};

// Whether anything but products of heads is wanted.
inline bool sweeps(const Request &q) {
  return q.max_score || q.max_weight || q.entropy || q.effective_keys || q.distance || q.bins ||
         q.top_weights || q.offset_weights || q.mass || q.edge_counts || q.edge_starts ||
         q.received || q.top_query_weights || q.pooled_sum || q.pooled_max;
}

// Products of heads, if they are wanted.
template <class T>
inline int similarity(const regard_problem &p, const T *lse, const Request &q) {
  return q.products ? Similarity<T>(p, lse, static_cast<T *>(q.products)).run() : REGARD_OK;
}

template <class T, class Scorer, class Before = Forward<T>>
inline int sweep(const regard_problem &p, const T *lse, const Request &q,
                 const Before *forward = nullptr) {
  if (p.batch == 0 || p.heads == 0) return REGARD_OK;
  if (forward || sweeps(q)) {
    const int status = Sweep<T, Scorer, Before>(p, lse, q, forward).run();
    if (status != REGARD_OK) return status;
  }
  return similarity(p, lse, q);
}

// Scores of a block of rows that the forward keeps for read-outs take so much memory at most.
constexpr int64_t kKept = int64_t{64} << 20;

template <class T, class RowBlock = Block<T>>
inline int read_out(const regard_problem &p, const regard_array &output, void *lse,
                    const Request &q) {
  const T *known = static_cast<const T *>(lse);
  const bool empty = p.batch == 0 || p.heads == 0 || p.queries == 0;
  if (!output.data || empty) return sweep<T, RowBlock>(p, known, q);
  Forward<T, RowBlock> forward(p, output, lse);
  const bool fits = kBlock<T> * p.keys * int64_t{sizeof(T)} <= kKept;
  if (forward.whole() && fits && sweeps(q)) return sweep<T, RowBlock>(p, known, q, &forward);
  const int status = forward.run();
  return status == REGARD_OK ? sweep<T, RowBlock>(p, known, q) : status;
}

inline int readouts(const regard_problem &p, const regard_array &output, void *lse,
                    const Request &q) {
  if (p.dtype == REGARD_FLOAT64) return read_out<double>(p, output, lse, q);
  return read_out<float>(p, output, lse, q);
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
