// Attention along the edges of a graph: every query reads its neighbours, wherever they lie.
//
// Outputs and gradients of queries go by query, gradients of keys and values by key; in both each
// row meets the rows at the other ends of its edges, so both are the same few loops.
#ifndef REGARD_KERNEL_GRAPH_H
#define REGARD_KERNEL_GRAPH_H

namespace regard {
namespace REGARD_NAMESPACE {

// T: what sums are held in. S: elements of query, key, value and their gradients.
template <class T, class S>
class Graph {
 public:
  Graph(const regard_problem &p, const regard_edges &edges)
      : p_(p),
        edges_(edges),
        by_query_{edges.query_starts, edges.query_keys, edges.query_edges, p.queries},
        by_key_{edges.key_starts, edges.key_queries, edges.key_edges, p.keys},
        factor_(is_additive(p) ? T(1) : static_cast<T>(p.scale)),
        stride_(padded<T>(p.head_size)) {}

  int forward(const regard_array &output, void *lse, void *weights) {
    output_ = output;
    lse_ = static_cast<T *>(lse);
    weights_ = static_cast<T *>(weights);
    Scratch scratch(Scratch::kCall);
    if (!take_vectors(scratch)) return REGARD_OUT_OF_MEMORY;
    return each_piece(by_query_, &Graph::forward_task);
  }

  int backward(const regard_gradients &g) {
    Scratch scratch(Scratch::kCall);
    gradients_ = &g;
    delta_ = scratch.take<T>(p_.batch * p_.heads * p_.queries);
    if (g.d_vector) d_vectors_ = scratch.take<T>(pieces(by_query_) * vector_sums());
    if (!take_vectors(scratch) || scratch.failed()) return REGARD_OUT_OF_MEMORY;
    int status = each_piece(by_query_, &Graph::query_task);
    if (status == REGARD_OK && (g.d_key.data || g.d_value.data)) {
      status = each_piece(by_key_, &Graph::key_task);
    }
    if (status == REGARD_OK && g.d_sinks) sink_gradients(static_cast<T *>(g.d_sinks));
    if (status == REGARD_OK && g.d_vector) vector_gradients(static_cast<T *>(g.d_vector));
    return status;
  }

 private:
  static constexpr int L = kLanes<T>;
  static constexpr int64_t kPieceEdges = 4096;

  // The graph from one end: row r has edges [starts[r], starts[r + 1]), which lead to the rows
  // `others` of the other end and stand at `edge` in the caller's order.
  struct End {
    const int64_t *starts;
    const int32_t *others, *edge;
    int64_t rows;
  };

  // A row and its edges.
  struct Row {
    int64_t index, count;
    const int32_t *others, *edge;
  };

  // What one thread needs: rows as T, and a number for every edge of a row.
  struct Work {
    T *own, *own_value, *sum, *sum_value;
    T *scores, *d_scores, *slope;
  };

  Row row(const End &end, int64_t r) const {
    const int64_t at = end.starts[r];
    return {r, end.starts[r + 1] - at, end.others + at, end.edge + at};
  }

  // Pieces have about as many edges and rows each: cut by the graph alone.
  int64_t pieces(const End &end) const {
    return (end.starts[end.rows] + end.rows + kPieceEdges - 1) / kPieceEdges;
  }
  int64_t piece_begin(const End &end, int64_t piece) const {
    const int64_t wanted = (end.starts[end.rows] + end.rows) * piece / pieces(end);
    int64_t low = 0, high = end.rows;
    while (low < high) {
      const int64_t middle = (low + high) / 2;
      if (end.starts[middle] + middle < wanted) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  }

  int each_piece(const End &end, int (*task)(void *, int64_t)) {
    most_ = 0;
    for (int64_t r = 0; r < end.rows; ++r) {
      most_ = std::max(most_, end.starts[r + 1] - end.starts[r]);
    }
    return parallel(pieces(end), p_.threads, task, this);
  }

  bool allocate(Work &w, Scratch &scratch) const {
    const int64_t size = padded<T>(p_.head_size), width = padded<T>(p_.value_size);
    w.own = scratch.take<T>(size);
    w.sum = scratch.take<T>(size);
    w.own_value = scratch.take<T>(width);
    w.sum_value = scratch.take<T>(width);
    w.scores = scratch.take<T>(padded<T>(most_));
    w.d_scores = scratch.take<T>(padded<T>(most_));
    w.slope = scratch.take<T>(padded<T>(most_));
    return !scratch.failed();
  }

  // Calls act(b, h, row, work) for all rows of a piece.
  template <class Act>
  int rows_of(int64_t piece, const End &end, Act act) {
    Scratch scratch(Scratch::kTask);
    Work w;
    if (!allocate(w, scratch)) return REGARD_OUT_OF_MEMORY;
    const int64_t last = piece_begin(end, piece + 1);
    for (int64_t b = 0; b < p_.batch; ++b) {
      for (int64_t r = piece_begin(end, piece); r < last; ++r) act(b, row(end, r), w);
    }
    return REGARD_OK;
  }

  static int forward_task(void *context, int64_t piece) {
    Graph &self = *static_cast<Graph *>(context);
    return self.rows_of(piece, self.by_query_, [&](int64_t b, const Row &row, Work &w) {
      for (int64_t h = 0; h < self.p_.heads; ++h) self.attend(b, h, row, w);
    });
  }

  // Output, log-sum-exp and weights of one query.
  void attend(int64_t b, int64_t h, const Row &row, Work &w) const {
    const Operand<S> keys = rows_at(p_.key, b, key_head(h));
    take(p_.query, b, h, row.index, p_.head_size, factor_, w.own);
    ahead(row, by_query_, keys, p_.head_size);
    compare(h, keys, row, w);
    adjust(b, h, row, w.scores, nullptr);
    T most = p_.sinks ? sink(h) : -kInfinity<T>;
    for (int64_t e = 0; e < row.count; ++e) most = w.scores[e] < most ? most : w.scores[e];
    const T shift = most == -kInfinity<T> ? T(0) : most;
    T sum = p_.sinks ? std::exp(sink(h) - shift) : T(0);
    exponentials(w.scores, row.count, -shift);
    for (int64_t e = 0; e < row.count; ++e) sum += w.scores[e];
    const int64_t at = (b * p_.heads + h) * p_.queries + row.index;
    if (lse_) lse_[at] = shift + std::log(sum);
    const T factor = sum == 0 ? T(0) : T(1) / sum;
    if (weights_) {
      T *to = weights_ + (b * p_.heads + h) * edges_.count;
      for (int64_t e = 0; e < row.count; ++e) to[row.edge[e]] = w.scores[e] * factor;
    }
    if (!output_.data) return;
    drop(b, h, row, by_query_, w.scores);
    const Operand<S> values = rows_at(p_.value, b, value_head(h));
    ahead(row, by_query_, values, p_.value_size);
    sum_rows(values, row, w.scores, p_.value_size, w.sum_value, false, RowItself{});
    give(output_, b, h, row.index, w.sum_value, p_.value_size, factor);
  }

  static int query_task(void *context, int64_t piece) {
    Graph &self = *static_cast<Graph *>(context);
    T *d_vectors = self.d_vectors_;
    if (d_vectors) std::fill_n(d_vectors += piece * self.vector_sums(), self.vector_sums(), T(0));
    return self.rows_of(piece, self.by_query_, [&](int64_t b, const Row &row, Work &w) {
      self.clear_bias(b, row);
      for (int64_t h = 0; h < self.p_.heads; ++h) self.query_gradient(b, h, row, w, d_vectors);
    });
  }

  // delta, and the gradients of one query and of the biases of its edges; and what these edges add
  // to the gradients of the additive scores' vectors.
  void query_gradient(int64_t b, int64_t h, const Row &row, Work &w, T *d_vectors) const {
    const regard_gradients &g = *gradients_;
    const int64_t at = (b * p_.heads + h) * p_.queries + row.index;
    delta_[at] = delta_of<T>(p_, g, b, h, row.index);
    if (!g.d_query.data && !g.d_bias.data && !d_vectors) return;
    const Operand<S> keys = rows_at(p_.key, b, key_head(h));
    take(p_.query, b, h, row.index, p_.head_size, factor_, w.own);
    take(g.d_output, b, h, row.index, p_.value_size, T(1), w.own_value);
    ahead(row, by_query_, keys, p_.head_size);
    compare(h, keys, row, w);
    const Operand<S> values = rows_at(p_.value, b, value_head(h));
    ahead(row, by_query_, values, p_.value_size);
    dots(values, row, w.own_value, p_.value_size, w.d_scores, DotProduct{});
    gradients_of_scores(b, h, row, by_query_, w);
    if (g.d_bias.data) add_bias_gradient(b, h, row, w.d_scores);
    if (!g.d_query.data && !d_vectors) return;
    bend_back(row, w);
    if (d_vectors) add_vector_gradient(h, keys, row, w, d_vectors + (b * p_.heads + h) * stride_);
    if (!g.d_query.data) return;
    sum_slopes(h, keys, row, w, false);
    give(g.d_query, b, h, row.index, w.sum, p_.head_size, factor_);
  }

  static int key_task(void *context, int64_t piece) {
    Graph &self = *static_cast<Graph *>(context);
    return self.rows_of(piece, self.by_key_, [&](int64_t b, const Row &row, Work &w) {
      for (int64_t h = 0; h < self.p_.heads; ++h) self.key_gradient(b, h, row, w);
    });
  }

  // What query head h adds to the gradients of one key and value; the last of a group writes them.
  void key_gradient(int64_t b, int64_t h, const Row &row, Work &w) const {
    const regard_gradients &g = *gradients_;
    const int64_t group = p_.heads / p_.key_heads, shared = p_.heads / p_.value_heads;
    const Operand<S> queries = rows_at(p_.query, b, h), d_outputs = rows_at(g.d_output, b, h);
    take(p_.key, b, key_head(h), row.index, p_.head_size, factor_, w.own);
    ahead(row, by_key_, queries, p_.head_size);
    compare(h, queries, row, w);
    if (g.d_key.data) {
      take(p_.value, b, value_head(h), row.index, p_.value_size, T(1), w.own_value);
      dots(d_outputs, row, w.own_value, p_.value_size, w.d_scores, DotProduct{});
    }
    ahead(row, by_key_, d_outputs, p_.value_size);
    gradients_of_scores(b, h, row, by_key_, w);
    if (g.d_value.data) {
      sum_rows(d_outputs, row, w.scores, p_.value_size, w.sum_value, h % shared != 0, RowItself{});
      if ((h + 1) % shared == 0) {
        give(g.d_value, b, value_head(h), row.index, w.sum_value, p_.value_size, T(1));
      }
    }
    if (!g.d_key.data) return;
    bend_back(row, w);
    sum_slopes(h, queries, row, w, h % group != 0);
    if ((h + 1) % group == 0) {
      give(g.d_key, b, key_head(h), row.index, w.sum, p_.head_size, factor_);
    }
  }

  // From products of queries and keys, and of values and output gradients: the weights after
  // dropout in `scores`, the gradients of the scores as biased in `d_scores`.
  void gradients_of_scores(int64_t b, int64_t h, const Row &row, const End &end, Work &w) const {
    adjust(b, h, row, w.scores, w.slope);
    const int64_t first = (b * p_.heads + h) * p_.queries;
    const T *lse = static_cast<const T *>(gradients_->lse) + first, *delta = delta_ + first;
    const bool by_query = &end == &by_query_;
    for (int64_t e = 0; e < row.count; ++e) {
      const T total = lse[by_query ? row.index : row.others[e]];
      w.scores[e] = total == -kInfinity<T> ? total : w.scores[e] - total;
    }
    exponentials(w.scores, row.count, T(0));
    for (int64_t e = 0; e < row.count; ++e) {
      const int64_t i = by_query ? row.index : row.others[e];
      const T factor = p_.dropout > 0 ? drop_factor(b, h, row, by_query, e) : T(1);
      w.d_scores[e] = w.scores[e] * (w.d_scores[e] * factor - delta[i]);
      w.scores[e] *= factor;
    }
  }

  // Gradients of scores before the soft cap.
  void bend_back(const Row &row, Work &w) const {
    if (p_.softcap == 0) return;
    for (int64_t e = 0; e < row.count; ++e) w.d_scores[e] *= w.slope[e];
  }

  // Soft cap and bias of scaled products. `slope`, if not null, gets the cap's derivative.
  void adjust(int64_t b, int64_t h, const Row &row, T *scores, T *slope) const {
    if (p_.softcap > 0) {
      const Vec<T> cap = broadcast(static_cast<T>(p_.softcap)), one = broadcast<T>(1);
      for (int64_t e = 0; e < row.count; e += L) {
        const Vec<T> bent = tanh(load(scores + e) / cap);
        if (slope) store(slope + e, one - bent * bent);
        store(scores + e, cap * bent);
      }
    }
    if (!p_.bias.data) return;
    const int64_t size = element_size(p_.bias_dtype);
    const char *bias = static_cast<const char *>(p_.bias.data) +
                       (b * p_.bias.batch_stride + h * p_.bias.head_stride) * size;
    for (int64_t e = 0; e < row.count; ++e) {
      T lanes[L];
      const char *at = bias + row.edge[e] * p_.bias.key_stride * size;
      store(lanes, widen<T>(at, 1, p_.bias_dtype));
      scores[e] += lanes[0];
    }
    for (int64_t e = 0; e < row.count; e += L) store(scores + e, raised<T>(load(scores + e)));
  }

  void clear_bias(int64_t b, const Row &row) const {
    if (!gradients_->d_bias.data || (b > 0 && gradients_->d_bias.batch_stride == 0)) return;
    for (int64_t h = 0; h < p_.heads; ++h) {
      for (int64_t e = 0; e < row.count; ++e) *bias_gradient(b, h, row.edge[e]) = 0;
    }
  }
  void add_bias_gradient(int64_t b, int64_t h, const Row &row, const T *d_scores) const {
    for (int64_t e = 0; e < row.count; ++e) *bias_gradient(b, h, row.edge[e]) += d_scores[e];
  }
  T *bias_gradient(int64_t b, int64_t h, int64_t edge) const {
    const regard_grid &d = gradients_->d_bias;
    return static_cast<T *>(d.data) + b * d.batch_stride + h * d.head_stride + edge * d.key_stride;
  }

  void sink_gradients(T *to) const {
    const T *lse = static_cast<const T *>(gradients_->lse);
    for (int64_t h = 0; h < p_.heads; ++h) {
      double sum = 0;
      for (int64_t b = 0; b < p_.batch; ++b) {
        const int64_t first = (b * p_.heads + h) * p_.queries;
        for (int64_t i = first; i < first + p_.queries; ++i) {
          sum -= std::exp(sink(h) - lse[i]) * delta_[i];
        }
      }
      to[h] = static_cast<T>(sum);
    }
  }

  void drop(int64_t b, int64_t h, const Row &row, const End &end, T *weights) const {
    if (p_.dropout == 0) return;
    for (int64_t e = 0; e < row.count; ++e) {
      weights[e] *= drop_factor(b, h, row, &end == &by_query_, e);
    }
  }
  T drop_factor(int64_t b, int64_t h, const Row &row, bool by_query, int64_t e) const {
    const int64_t i = by_query ? row.index : row.others[e];
    const int64_t j = by_query ? row.others[e] : row.index;
    return dropout_factor<T>(row_key(p_, b, h, i), static_cast<uint32_t>(j), drop_below(p_),
                             static_cast<T>(1 / (1 - p_.dropout)));
  }

  // e^(x + shift) of `count` numbers; up to whole vectors are written.
  static void exponentials(T *x, int64_t count, T shift) {
    const Vec<T> unit = broadcast(static_cast<T>(kLog2e)), by = broadcast(shift);
    for (int64_t e = 0; e < count; e += L) store(x + e, exp2((load(x + e) + by) * unit));
  }

  // The scores of `own` and the rows at the other ends, without soft cap and bias.
  void compare(int64_t h, Operand<S> rows, const Row &row, const Work &w) const {
    if (!is_additive(p_)) return dots(rows, row, w.own, p_.head_size, w.scores, DotProduct{});
    with_activation<T>(p_, [&](auto f) {
      const AdditiveTerm<T, decltype(f)> join{{f, w.own, vector(h)}};
      dots(rows, row, w.own, p_.head_size, w.scores, join);
    });
  }

  // w.sum (+)= what the gradients of these scores make of `own`.
  void sum_slopes(int64_t h, Operand<S> rows, const Row &row, const Work &w, bool add) const {
    const int64_t size = p_.head_size;
    if (!is_additive(p_)) return sum_rows(rows, row, w.d_scores, size, w.sum, add, RowItself{});
    with_activation<T>(p_, [&](auto f) {
      const SlopeOfRows<T, decltype(f)> slope{{f, w.own, vector(h)}};
      sum_rows(rows, row, w.d_scores, size, w.sum, add, slope);
    });
  }

  void add_vector_gradient(int64_t h, Operand<S> rows, const Row &row, const Work &w, T *to) const {
    with_activation<T>(p_, [&](auto f) {
      const SlopeOfVector<T, decltype(f)> slope{{f, w.own, vector(h)}};
      sum_rows(rows, row, w.d_scores, p_.head_size, to, true, slope);
    });
  }

  // The vectors of additive scores, one after another, times the scale, padded with zeros.
  bool take_vectors(Scratch &scratch) {
    if (!is_additive(p_)) return true;
    vectors_ = scratch.take<T>(p_.heads * stride_);
    if (scratch.failed()) return false;
    std::fill_n(vectors_, p_.heads * stride_, T(0));
    for (int64_t h = 0; h < p_.heads; ++h) {
      for (int64_t a = 0; a < p_.head_size; ++a) {
        vectors_[h * stride_ + a] = static_cast<T>(p_.scale) * vector_of<T>(p_, h)[a];
      }
    }
    return true;
  }
  const T *vector(int64_t h) const { return vectors_ + h * stride_; }
  int64_t vector_sums() const { return p_.batch * p_.heads * stride_; }

  void vector_gradients(T *to) const {
    for (int64_t n = 0; n < p_.batch * p_.heads; ++n) {
      for (int64_t a = 0; a < p_.head_size; ++a) {
        double sum = 0;
        for (int64_t piece = 0; piece < pieces(by_query_); ++piece) {
          sum += d_vectors_[piece * vector_sums() + n * stride_ + a];
        }
        to[n * p_.head_size + a] = static_cast<T>(p_.scale * sum);
      }
    }
  }

  // to[e] = own and rows[others[e]] joined; up to whole vectors are written.
  template <class Join>
  static void dots(Operand<S> rows, const Row &row, const T *own, int64_t size, T *to, Join join) {
    constexpr int kStep = std::min(4, L);
    for (int64_t e = 0; e < row.count; e += L) {
      Vec<T> parts[L];
      for (int i = 0; i < L; i += kStep) {
        const S *at[kStep];
        for (int n = 0; n < kStep; ++n) {
          at[n] = rows.data + row.others[std::min(e + i + n, row.count - 1)] * rows.stride;
        }
        if (e + i < row.count) {
          add_dots<T, kStep, 1>(at, 0, own, size, parts + i, join);
        } else {
          std::fill_n(parts + i, kStep, broadcast<T>(0));
        }
      }
      store(to + e, sum_each<T>(parts));
    }
  }

  // sum (+)= the sum of factors[e] * term(rows[others[e]]).
  template <class Term>
  static void sum_rows(Operand<S> rows, const Row &row, const T *factors, int64_t size, T *sum,
                       bool add, Term term) {
    int64_t c = 0;
    for (; size - c >= 4 * L; c += 4 * L) sum_panel<4>(rows, row, factors, c, L, sum, add, term);
    for (; size - c >= L; c += L) sum_panel<1>(rows, row, factors, c, L, sum, add, term);
    if (c < size) sum_panel<1>(rows, row, factors, c, size - c, sum, add, term);
  }
  // N vectors of columns from c on; the last has `there` elements.
  template <int N, class Term>
  static void sum_panel(Operand<S> rows, const Row &row, const T *factors, int64_t c, int64_t there,
                        T *sum, bool add, Term term) {
    Vec<T> total[N];
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) total[n] = add ? load(sum + c + n * L) : broadcast<T>(0);
    for (int64_t e = 0; e < row.count; ++e) {
      if (Term::kSkipsZeros && factors[e] == 0) continue;
      const S *at = rows.data + row.others[e] * rows.stride + c;
      const Vec<T> factor = broadcast(factors[e]);
#pragma GCC unroll 4
      for (int n = 0; n < N; ++n) {
        const Vec<T> x = there == L ? load_as(at + n * L) : load_as_partial(at, there);
        total[n] = fma(factor, term(x, c + n * L), total[n]);
      }
    }
#pragma GCC unroll 4
    for (int n = 0; n < N; ++n) store(sum + c + n * L, total[n]);
  }

  // Asks for what the next row's edges lead to: the processor sees no order in them.
  void ahead(const Row &row, const End &end, Operand<S> rows, int64_t size) const {
    if (row.index + 1 == end.rows) return;
    const int64_t next = end.starts[row.index + 1], last = end.starts[row.index + 2];
    for (int64_t e = next; e < last; ++e) prefetch_row(rows, end.others[e], size);
  }

  // A row as T, times a factor, padded with zeros.
  void take(const regard_array &a, int64_t b, int64_t head, int64_t index, int64_t size, T factor,
            T *to) const {
    widen_row(to, row_of(a, p_.dtype, b, head, index), size, p_.dtype);
    const Vec<T> f = broadcast(factor);
    for (int64_t i = 0; i < size; i += L) store(to + i, load(to + i) * f);
  }
  void give(const regard_array &a, int64_t b, int64_t head, int64_t index, const T *row,
            int64_t size, T factor) const {
    narrow_row(row_of(a, p_.dtype, b, head, index), row, size, p_.dtype, factor);
  }

  Operand<S> rows_at(const regard_array &a, int64_t b, int64_t head) const {
    return in_place<S>(a, b, head, 0);
  }
  int64_t key_head(int64_t h) const { return h / (p_.heads / p_.key_heads); }
  int64_t value_head(int64_t h) const { return h / (p_.heads / p_.value_heads); }
  T sink(int64_t h) const { return static_cast<const T *>(p_.sinks)[h]; }

  const regard_problem &p_;
  const regard_edges &edges_;
  const End by_query_, by_key_;
  const T factor_;        // of rows before they are compared, and of their gradients
  const int64_t stride_;  // of a row of head size, padded
  regard_array output_ = {};
  T *lse_ = nullptr, *weights_ = nullptr;
  const regard_gradients *gradients_ = nullptr;
  T *delta_ = nullptr;      // (B, H, Lq)
  T *vectors_ = nullptr;    // (H, stride), of additive scores
  T *d_vectors_ = nullptr;  // (pieces, B, H, stride)
  int64_t most_ = 0;        // edges of a row
};

// Calls act(graph) with the graph of the problem's types.
template <class Act>
inline int with_graph(const regard_problem &p, const regard_edges &edges, Act act) {
  switch (p.dtype) {
    case REGARD_FLOAT64:
      return act(Graph<double, double>(p, edges));
    case REGARD_FLOAT16:
      return act(Graph<float, Float16>(p, edges));
    case REGARD_BFLOAT16:
      return act(Graph<float, BFloat16>(p, edges));
    default:
      return act(Graph<float, float>(p, edges));
  }
}

inline int graph_forward(const regard_problem &p, const regard_edges &edges,
                         const regard_array &output, void *lse, void *weights) {
  return with_graph(p, edges, [&](auto graph) { return graph.forward(output, lse, weights); });
}
inline int graph_backward(const regard_problem &p, const regard_edges &edges,
                          const regard_gradients &g) {
  return with_graph(p, edges, [&](auto graph) { return graph.backward(g); });
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
