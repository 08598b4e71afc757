// One sweep over the scores for all read-outs that are wanted. Each head's queries are cut into
// pieces, by shape alone; a piece takes its blocks of rows one after another and gathers what
// belongs to keys and cells in memory of its own, which is put together at the end.
#ifndef REGARD_KERNEL_READOUTS_SWEEP_H
#define REGARD_KERNEL_READOUTS_SWEEP_H

namespace regard {
namespace REGARD_NAMESPACE {

// `Scorer` makes scores of a block of rows, as Block does; with a forward, that has made them, and
// the log-sum-exps too.
template <class T, class Scorer>
class Sweep {
 public:
  Sweep(const regard_problem &p, const T *lse, const Request &q, const Forward<T> *forward)
      : p_(p), q_(q), lse_(lse), forward_(forward), vectors_(padded<T>(p.queries) / kLanes<T>) {
    blocks_ = (padded<T>(p.queries) + kBlock<T> - 1) / kBlock<T>;
    const int64_t heads = std::max<int64_t>(1, p.batch * p.heads);
    // Lists of queries take memory, and each has to find its own first.
    const int64_t items = q.top_query_weights ? kItems / 4 : kItems;
    pieces_ = std::max<int64_t>(1, std::min((items + heads - 1) / heads, blocks_));
  }

  int run() {
    Scratch scratch(Scratch::kCall);
    const int64_t items = p_.batch * p_.heads * pieces_;
    column_size_ = ColumnSums::size(p_, q_);
    columns_ = scratch.take<double>(items * column_size_);
    ranking_size_ = q_.top_query_weights ? p_.keys * q_.top_query_count : 0;
    ranked_ = scratch.take<T>(items * ranking_size_);
    places_ = scratch.take<int64_t>(items * ranking_size_);
    pooled_ = scratch.take<PooledPart>(items);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    for (int64_t i = 0; i < items; ++i) pooled_[i] = pooled_part(i, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const int status = parallel(items, p_.threads, &Sweep::task, this);
    if (status != REGARD_OK) return status;
    return parallel(p_.batch * p_.heads, p_.threads, &Sweep::merge_task, this);
  }

 private:
  static constexpr int64_t kItems = 64;

  int64_t first_block(int64_t piece) const { return blocks_ * piece / pieces_; }
  int64_t first_row(int64_t block) const {
    return std::min(p_.queries, vectors_ * block / std::max<int64_t>(1, blocks_) * kLanes<T>);
  }

  PooledPart pooled_part(int64_t index, Scratch &scratch) const {
    const int64_t piece = index % pieces_;
    const int64_t first = first_row(first_block(piece)), last = first_row(first_block(piece + 1));
    PooledPart part;
    if ((!q_.pooled_sum && !q_.pooled_max) || first >= last) return part;
    const Cells cells = {q_.pooled_rows, p_.queries};
    part.first = cells.of(first);
    part.rows = cells.of(last - 1) + 1 - part.first;
    const int64_t size = part.rows * q_.pooled_columns;
    if (q_.pooled_sum) part.sum = scratch.take<double>(size);
    if (q_.pooled_max) part.most = scratch.take<double>(size);
    return part;
  }

  ColumnSums columns(int64_t index) const { return {p_, q_, columns_ + index * column_size_}; }
  TopQueries<T> top_queries(int64_t index) const {
    return {q_, ranked_ + index * ranking_size_, places_ + index * ranking_size_};
  }

  // What one piece needs while tiles go by.
  struct State {
    Scorer scorer;
    typename Forward<T>::State forward;
    RowSums<T> sums;
    TopKeys<T> top;
    Mass<T> mass;
    Offsets<T> offsets;
    DistanceBins<T> bins;
    Edges<T> edges;
    Columns<T> columns;
    TopQueries<T> queries;
    Pooled<T> pooled;
    T *values, *keys, *largest;

    State(const Sweep &sweep, int64_t index, Scratch &scratch)
        : sums(sweep.p_, sweep.lse_, sweep.q_),
          top(sweep.p_, sweep.q_, scratch),
          mass(sweep.p_, sweep.q_, scratch),
          offsets(sweep.p_, sweep.q_),
          bins(sweep.p_, sweep.q_, scratch),
          edges(sweep.p_, sweep.q_),
          columns(sweep.p_, sweep.q_, sweep.columns(index), scratch),
          queries(sweep.top_queries(index)),
          pooled(sweep.p_, sweep.q_, sweep.pooled_[index]),
          values(scratch.take<T>(kTileSize<T>)),
          keys(scratch.take<T>(kTile<T> * padded<T>(sweep.p_.head_size))) {
      if (sweep.forward_) {
        sweep.forward_->allocate(forward, true, scratch);
        largest = scratch.take<T>((sweep.p_.keys / kTile<T> + 1) * kBlock<T>);
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
    State s(self, index, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    self.clear(index);
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

  void clear(int64_t index) const {
    std::fill_n(columns_ + index * column_size_, column_size_, 0.0);
    if (q_.top_query_weights) {
      for (int64_t j = 0; j < p_.keys; ++j) top_queries(index).of(j).clear();
    }
    const PooledPart &part = pooled_[index];
    const int64_t size = part.rows * q_.pooled_columns;
    if (part.sum) std::fill_n(part.sum, size, 0.0);
    if (part.most) std::fill_n(part.most, size, 0.0);
  }

  void block(State &s, const Rows<T> &rows) const {
    s.sums.start(rows);
    if (s.top.wanted()) s.top.start(rows);
    if (s.mass.wanted()) s.mass.start(rows);
    if (s.offsets.wanted()) s.offsets.start(rows);
    if (s.bins.wanted()) s.bins.start(rows);
    if (s.edges.wanted()) s.edges.start(rows);
    if (q_.received) s.columns.start(rows);
    if (q_.top_query_weights) s.queries.start(rows, s.sums);

    if (forward_) {
      look_ahead(s, rows);
      const auto &f = s.forward;
      for (int64_t t = 0; t < f.span_count; ++t) take(s, kept(f, t));
    } else {
      const Tiles<T> tiles(s.scorer.sight.first(), s.scorer.sight.last());
      for (int64_t t = 0; t < tiles.count; ++t) tile(s, tiles.begin(t), tiles.begin(t + 1));
    }

    s.sums.finish(rows);
    if (s.top.wanted()) s.top.finish(rows, s.sums);
    if (s.mass.wanted()) s.mass.finish(rows);
    if (s.bins.wanted()) s.bins.finish(rows);
    if (s.edges.wanted()) s.edges.finish(rows);
  }

  static Tile<T> kept(const typename Forward<T>::State &f, int64_t t) {
    const auto [begin, count] = f.spans[t];
    return {f.block.rows, begin, count, f.kept + begin * f.block.rows.width};
  }

  // The largest scores of all tiles, while none of them has become weights.
  void look_ahead(State &s, const Rows<T> &rows) const {
    if (!s.top.wanted() && !s.sums.largest()) return;
    const int64_t tiles = s.forward.span_count;
    std::fill_n(s.largest, tiles * rows.width, -kInfinity<T>);
    for (int64_t t = 0; t < tiles; ++t) {
      const Tile<T> tile = kept(s.forward, t);
      raise_keys(tile.values, tile.count, rows.width, s.largest + t * rows.width);
    }
    const Tile<T> largest = {rows, 0, tiles, s.largest};
    if (s.sums.largest()) s.sums.look(largest);
    if (s.top.wanted()) s.top.expect(largest);
  }

  void tile(State &s, int64_t begin, int64_t end) const {
    const View view = s.scorer.sight.look(&begin, &end);
    if (view == View::kNone) return;
    s.scorer.scores(begin, end, s.keys, s.values);
    if (view == View::kSome) s.scorer.sight.hide(end - begin, s.values);
    const Tile<T> tile = {s.scorer.rows, begin, end - begin, s.values};
    if (s.sums.largest()) s.sums.look(tile);
    take(s, tile);
  }

  void take(State &s, const Tile<T> &tile) const {
    if (s.top.wanted()) s.top.look(tile);
    if (q_.received) s.columns.look(tile);
    if (q_.top_query_weights) s.queries.look(tile);

    const bool pooled = q_.pooled_sum || q_.pooled_max;
    const bool of_weights = s.mass.wanted() || s.offsets.wanted() || s.bins.wanted() ||
                            s.edges.wanted() || q_.received || pooled;
    if (!of_weights && !s.sums.wanted()) return;
    s.sums.take(tile);
    if (s.mass.wanted()) s.mass.take(tile);
    if (s.offsets.wanted()) s.offsets.take(tile);
    if (s.bins.wanted()) s.bins.take(tile);
    if (s.edges.wanted()) s.edges.take(tile);
    if (q_.received) s.columns.take(tile);
    if (pooled) s.pooled.take(tile);
  }

  static int merge_task(void *context, int64_t head) {
    const Sweep &self = *static_cast<Sweep *>(context);
    if (self.q_.received) self.merge_received(head);
    if (self.q_.top_query_weights) self.merge_top_queries(head);
    if (self.q_.pooled_sum || self.q_.pooled_max) self.merge_pooled_parts(head);
    return REGARD_OK;
  }

  void merge_received(int64_t head) const {
    T *to = static_cast<T *>(q_.received) + head * q_.received_count * p_.keys;
    for (int64_t i = 0; i < q_.received_count * p_.keys; ++i) {
      double sum = 0, viewers = 0;
      for (int64_t n = 0; n < pieces_; ++n) {
        const ColumnSums piece = columns(head * pieces_ + n);
        const double value = piece.sums[i];
        sum = q_.received_reduction == REGARD_MAX ? std::max(sum, value) : sum + value;
        if (q_.received_reduction == REGARD_MEAN) viewers += piece.viewers[i];
      }
      to[i] = static_cast<T>(viewers > 0 ? sum / viewers : sum);
    }
  }

  void merge_top_queries(int64_t head) const {
    const int64_t count = q_.top_query_count;
    for (int64_t j = 0; j < p_.keys; ++j) {
      const int64_t at = (head * p_.keys + j) * count;
      const Ranking<T> top = {static_cast<T *>(q_.top_query_weights) + at, q_.top_queries + at,
                              count};
      top.clear();
      for (int64_t n = 0; n < pieces_; ++n) {
        const Ranking<T> part = top_queries(head * pieces_ + n).of(j);
        for (int64_t i = 0; i < count && part.values[i] > top.least(); ++i) {
          top.insert(part.values[i], part.places[i]);
        }
      }
      for (int64_t i = 0; i < count; ++i) top.values[i] = std::exp2(top.values[i]);
    }
  }

  void merge_pooled_parts(int64_t head) const {
    const int64_t size = q_.pooled_rows * q_.pooled_columns;
    T *sum = static_cast<T *>(q_.pooled_sum), *most = static_cast<T *>(q_.pooled_max);
    merge_pooled(q_, pooled_ + head * pieces_, pieces_, sum ? sum + head * size : nullptr,
                 most ? most + head * size : nullptr);
  }

  const regard_problem &p_;
  const Request &q_;
  const T *lse_;
  const Forward<T> *forward_;          // or null
  int64_t vectors_, blocks_, pieces_;  // of a head's queries
  // Of all pieces, one after another.
  double *columns_ = nullptr;
  T *ranked_ = nullptr;
  int64_t *places_ = nullptr;
  PooledPart *pooled_ = nullptr;
  int64_t column_size_ = 0, ranking_size_ = 0;
};

// Whether anything but products of heads is wanted.
inline bool sweeps(const Request &q) {
  return q.max_score || q.max_weight || q.entropy || q.effective_keys || q.distance || q.bins ||
         q.top_weights || q.offset_weights || q.mass || q.edge_counts || q.edge_starts ||
         q.received || q.top_query_weights || q.pooled_sum || q.pooled_max;
}

template <class T, class Scorer>
inline int sweep(const regard_problem &p, const T *lse, const Request &q,
                 const Forward<T> *forward = nullptr) {
  if (p.batch == 0 || p.heads == 0) return REGARD_OK;
  if (forward || sweeps(q)) {
    const int status = Sweep<T, Scorer>(p, lse, q, forward).run();
    if (status != REGARD_OK) return status;
  }
  return q.products ? Similarity<T>(p, lse, static_cast<T *>(q.products)).run() : REGARD_OK;
}

// Scores of a block of rows that the forward keeps for read-outs take so much memory at most.
constexpr int64_t kKept = int64_t{64} << 20;

template <class T>
inline int read_out(const regard_problem &p, const regard_array &output, void *lse,
                    const Request &q) {
  const T *known = static_cast<const T *>(lse);
  const bool empty = p.batch == 0 || p.heads == 0 || p.queries == 0;
  if (!output.data || empty) return sweep<T, Block<T>>(p, known, q);
  const Forward<T> together(p, output, lse);
  const bool fits = kBlock<T> * p.keys * int64_t{sizeof(T)} <= kKept;
  if (together.whole() && fits && sweeps(q)) return sweep<T, Block<T>>(p, known, q, &together);
  const int status = forward(p, output, lse);
  return status == REGARD_OK ? sweep<T, Block<T>>(p, known, q) : status;
}

inline int readouts(const regard_problem &p, const regard_array &output, void *lse,
                    const Request &q) {
  if (p.dtype == REGARD_FLOAT64) return read_out<double>(p, output, lse, q);
  return read_out<float>(p, output, lse, q);
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
