// What belongs to keys and cells, gathered by pieces of each head's queries in memory of their own,
// and put together at the end, in the order of pieces.
#ifndef REGARD_KERNEL_READOUTS_GATHERED_H
#define REGARD_KERNEL_READOUTS_GATHERED_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
class Gathered {
 public:
  Gathered(const regard_problem &p, const Request &q) : p_(p), q_(q) {}

  // Into how many pieces a head's queries are best cut, by shape alone.
  int64_t best_pieces() const {
    const int64_t heads = std::max<int64_t>(1, p_.batch * p_.heads);
    // Lists of queries take memory, and each has to find its own first.
    const int64_t items = q_.top_query_weights ? kItems / 4 : kItems;
    return (items + heads - 1) / heads;
  }

  // Pieces of each head; piece n of all heads has queries [first(n), last(n)), none if empty.
  template <class First, class Last>
  bool allocate(int64_t pieces, First first, Last last, Scratch &scratch) {
    pieces_ = pieces;
    const int64_t items = p_.batch * p_.heads * pieces;
    column_size_ = ColumnSums::size(p_, q_);
    columns_ = scratch.take<double>(items * column_size_);
    ranking_size_ = q_.top_query_weights ? p_.keys * q_.top_query_count : 0;
    ranked_ = scratch.take<T>(items * ranking_size_);
    places_ = scratch.take<int64_t>(items * ranking_size_);
    pooled_ = scratch.take<PooledPart>(items);
    if (scratch.failed()) return false;
    for (int64_t i = 0; i < items; ++i) {
      pooled_[i] = pooled_part(first(i % pieces), last(i % pieces), scratch);
    }
    return !scratch.failed();
  }

  // To be called before piece `index` of all heads gathers anything.
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

  ColumnSums columns(int64_t index) const { return {p_, q_, columns_ + index * column_size_}; }
  TopQueries<T> top_queries(int64_t index) const {
    return {q_, ranked_ + index * ranking_size_, places_ + index * ranking_size_};
  }
  const PooledPart &pooled(int64_t index) const { return pooled_[index]; }

  int merge() { return parallel(p_.batch * p_.heads, p_.threads, &Gathered::merge_task, this); }

 private:
  static constexpr int64_t kItems = 64;

  PooledPart pooled_part(int64_t first, int64_t last, Scratch &scratch) const {
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

  static int merge_task(void *context, int64_t head) {
    const Gathered &self = *static_cast<Gathered *>(context);
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
  int64_t pieces_ = 1;
  // Of all pieces, one after another.
  double *columns_ = nullptr;
  T *ranked_ = nullptr;
  int64_t *places_ = nullptr;
  PooledPart *pooled_ = nullptr;
  int64_t column_size_ = 0, ranking_size_ = 0;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
