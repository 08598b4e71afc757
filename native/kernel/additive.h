// Additive scores of a block of rows, score_ij = sum_a v_a f(q_ia + k_ja), and their gradients.
#ifndef REGARD_KERNEL_ADDITIVE_H
#define REGARD_KERNEL_ADDITIVE_H

namespace regard {
namespace REGARD_NAMESPACE {

// f in two ways: `of` any number; and `joined`, of a row and a key that `prepare` has seen to, none
// of whose elements is larger than kLimit. `derivative` takes f itself.
//
// tanh(q + k) = 1 - 2 / (1 + e^2q e^2k): a pair costs a reciprocal, exponentials only its sides.
template <class T>
struct Tanh {
  static constexpr T kLimit = 21;  // e^4kLimit is still a float

  REGARD_INLINE Vec<T> of(Vec<T> x) const { return tanh(x); }
  REGARD_INLINE Vec<T> prepare(Vec<T> x) const {
    constexpr T kUnit = T(2 * kLog2e), kRest = T(2 * kLog2e - double(kUnit));
    const Vec<T> power = x * broadcast(kUnit);
    // What rounding took from the power of 2 is given back to first order.
    const Vec<T> lost = fma(x, broadcast(kRest), fma(x, broadcast(kUnit), broadcast<T>(0) - power));
    const Vec<T> e = exp2(power);
    return fma(e, lost * broadcast(T(kLn2)), e);
  }
  REGARD_INLINE Vec<T> joined(Vec<T> q, Vec<T> k) const {
    return fma(broadcast<T>(-2), reciprocal(fma(q, k, broadcast<T>(1))), broadcast<T>(1));
  }
  REGARD_INLINE Vec<T> derivative(Vec<T> y) const {
    return fma(broadcast<T>(0) - y, y, broadcast<T>(1));
  }
};

// x, or slope * x where x is negative; slope >= 0.
template <class T>
struct LeakyRelu {
  static constexpr T kLimit = std::numeric_limits<T>::max() / 2;
  T slope;

  REGARD_INLINE Vec<T> of(Vec<T> x) const {
    return select(less(x, broadcast<T>(0)), x * broadcast(slope), x);
  }
  REGARD_INLINE Vec<T> prepare(Vec<T> x) const { return x; }
  REGARD_INLINE Vec<T> joined(Vec<T> q, Vec<T> k) const { return of(q + k); }
  REGARD_INLINE Vec<T> derivative(Vec<T> y) const {
    return select(less(broadcast<T>(0), y), broadcast<T>(1), broadcast(slope));
  }
};

// Calls visit(f) with the problem's f.
template <class T, class Visit>
REGARD_INLINE auto with_activation(const regard_problem &p, Visit visit) {
  if (p.score == REGARD_ADDITIVE_TANH) return visit(Tanh<T>{});
  return visit(LeakyRelu<T>{static_cast<T>(p.negative_slope)});
}

// v of one head.
template <class T>
inline const T *vector_of(const regard_problem &p, int64_t head) {
  return static_cast<const T *>(p.vector) + head * p.vector_stride;
}

// One score without the scale, for any row and key (padded to whole vectors).
template <class T>
inline T additive_score(const regard_problem &p, int64_t head, const T *query, const T *key) {
  const T *vector = vector_of<T>(p, head);
  return with_activation<T>(p, [&](auto f) {
    Vec<T> sum = broadcast<T>(0);
    for (int64_t a = 0; a < p.head_size; a += kLanes<T>) {
      const Vec<T> v = load_partial(vector + a, p.head_size - a);
      sum = fma(v, f.of(load(query + a) + load(key + a)), sum);
    }
    return sum_lanes(sum);
  });
}

// Rows of queries or of keys, as they are and prepared: [row][padded size].
template <class T>
struct PreparedRows {
  T *given, *prepared;
  bool good[std::max(kBlock<T>, kTile<T>)];  // whether `joined` may take them
  bool all_good;

  void allocate(int64_t rows, int64_t size, Scratch &scratch) {
    given = scratch.take<T>(rows * padded<T>(size));
    prepared = scratch.take<T>(rows * padded<T>(size));
  }

  template <class F>
  void prepare(F f, int64_t rows, int64_t stride) {
    const Vec<T> zero = broadcast<T>(0), one = broadcast<T>(1), limit = broadcast(F::kLimit);
    all_good = true;
    for (int64_t i = 0; i < rows; ++i) {
      Vec<T> outside = zero;
      for (int64_t a = i * stride; a < (i + 1) * stride; a += kLanes<T>) {
        const Vec<T> x = load(given + a), size = max(zero - x, x);
        outside = select(less_equal(size, limit), outside, one);  // NaN is outside, too
        store(prepared + a, f.prepare(x));
      }
      good[i] = !any(less(zero, outside));
      all_good &= good[i];
    }
  }
};

// The rows of a block are of one head; keys come tile by tile.
template <class T>
class Additive {
 public:
  void allocate(const regard_problem &p, Scratch &scratch) {
    problem_ = &p;
    size_ = padded<T>(p.head_size);
    queries_.allocate(kBlock<T>, size_, scratch);
    keys_.allocate(kTile<T>, size_, scratch);
    vector_ = scratch.take<T>(size_);
    unwanted_ = scratch.take<T>(std::max(kBlock<T>, kTile<T>) * size_);
  }

  void set(const Rows<T> &rows) {
    const regard_problem &p = *problem_;
    rows_ = &rows;
    const T *from = vector_of<T>(p, rows.head[0]);
    for (int64_t a = 0; a < size_; ++a) vector_[a] = a < p.head_size ? from[a] : T(0);
    widen_rows(rows, p.query, p.dtype, p.head_size, T(1), queries_.given);
    with_activation<T>(p, [&](auto f) { queries_.prepare(f, rows.count, size_); });
  }

  // `sign` times the scores of some keys: to[key][row].
  void scores(Operand<T> keys, int64_t count, T sign, T *to) {
    const regard_problem &p = *problem_;
    for (int64_t j = 0; j < count; ++j) {
      widen_row(keys_.given + j * size_, keys.data + j * keys.stride, p.head_size, kType<T>);
    }
    with_activation<T>(p, [&](auto f) {
      keys_.prepare(f, count, size_);
      const auto join = [f, v = vector_](Vec<T> key, Vec<T> query, Vec<T> sum, int64_t a) {
        return fma(load(v + a), f.joined(query, key), sum);
      };
      few_dots(Operand<T>{keys_.prepared, size_}, queries_.prepared, size_, count, rows_->count, to,
               rows_->width, join);
    });
    each_bad_pair(count, [&](int r, int64_t j) {
      to[j * rows_->width + r] =
          additive_score(p, rows_->head[0], queries_.given + r * size_, keys_.given + j * size_);
    });
    const Vec<T> factor = broadcast(sign);
    for (int64_t i = 0; sign != 1 && i < count * rows_->width; i += kLanes<T>) {
      store(to + i, load(to + i) * factor);
    }
  }

  // Adds to gradients what d_scores[key][row] of the keys that `scores` saw last make of them:
  // d_query[row] and d_key[key] of padded size, and d_vector; null: not wanted. Where a gradient of
  // a score is 0, as all hidden ones are, nothing that is infinite or NaN comes in.
  void add_gradients(const T *d_scores, int64_t count, T *d_query, T *d_key, T *d_vector) {
    const Sums to = {d_query ? d_query : unwanted_, d_key ? d_key : unwanted_,
                     d_vector ? d_vector : unwanted_};
    with_activation<T>(*problem_, [&](auto f) {
      constexpr int kRows = 4;
      int r = 0;
      for (; r + kRows <= rows_->count; r += kRows) add_rows<kRows>(f, r, d_scores, count, to);
      for (; r < rows_->count; ++r) add_rows<1>(f, r, d_scores, count, to);
    });
  }

 private:
  struct Sums {
    T *d_query, *d_key, *d_vector;
  };

  template <class Visit>
  void each_bad_pair(int64_t count, Visit visit) const {
    if (queries_.all_good && keys_.all_good) return;
    for (int64_t j = 0; j < count; ++j) {
      for (int r = 0; r < rows_->count; ++r) {
        if (!keys_.good[j] || !queries_.good[r]) visit(r, j);
      }
    }
  }

  template <int R, class F>
  void add_rows(F f, int first, const T *d_scores, int64_t count, const Sums &to) const {
    bool good = keys_.all_good;
    for (int i = 0; i < R; ++i) good &= queries_.good[first + i];
    if (good) return add_good_rows<R>(f, first, d_scores, count, to);
    for (int i = first; i < first + R; ++i) add_any_row(f, i, d_scores, count, to);
  }

  // Element by element (a vector of them at a time): v_a is left out until all keys, or all rows,
  // are summed up.
  template <int R, class F>
  REGARD_NOINLINE void add_good_rows(F f, int first, const T *d_scores, int64_t count,
                                     const Sums &to) const {
    const int width = rows_->width;
    for (int64_t a = 0; a < size_; a += kLanes<T>) {
      const Vec<T> v = load(vector_ + a);
      Vec<T> query[R], d_query[R], d_vector = broadcast<T>(0);
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        query[i] = load(queries_.prepared + (first + i) * size_ + a);
        d_query[i] = broadcast<T>(0);
      }
      for (int64_t j = 0; j < count; ++j) {
        const Vec<T> key = load(keys_.prepared + j * size_ + a);
        Vec<T> d_key = broadcast<T>(0);
#pragma GCC unroll 4
        for (int i = 0; i < R; ++i) {
          const Vec<T> d = broadcast(d_scores[j * width + first + i]);
          const Vec<T> y = f.joined(query[i], key), inner = d * f.derivative(y);
          d_query[i] = d_query[i] + inner;
          d_key = d_key + inner;
          d_vector = fma(d, y, d_vector);
        }
        T *at = to.d_key + j * size_ + a;
        store(at, fma(d_key, v, load(at)));
      }
#pragma GCC unroll 4
      for (int i = 0; i < R; ++i) {
        T *at = to.d_query + (first + i) * size_ + a;
        store(at, fma(d_query[i], v, load(at)));
      }
      store(to.d_vector + a, load(to.d_vector + a) + d_vector);
    }
  }

  template <class F>
  REGARD_NOINLINE void add_any_row(F f, int row, const T *d_scores, int64_t count,
                                   const Sums &to) const {
    for (int64_t j = 0; j < count; ++j) {
      const T d_score = d_scores[j * rows_->width + row];
      if (d_score == 0) continue;
      for (int64_t a = 0; a < size_; a += kLanes<T>) {
        const Vec<T> d = broadcast(d_score);
        const Vec<T> x = load(queries_.given + row * size_ + a) + load(keys_.given + j * size_ + a);
        const Vec<T> y = f.of(x), inner = d * f.derivative(y) * load(vector_ + a);
        T *d_query = to.d_query + row * size_ + a, *d_key = to.d_key + j * size_ + a;
        store(d_query, load(d_query) + inner);
        store(d_key, load(d_key) + inner);
        store(to.d_vector + a, fma(d, y, load(to.d_vector + a)));
      }
    }
  }

  const regard_problem *problem_ = nullptr;
  const Rows<T> *rows_ = nullptr;
  int64_t size_ = 0;  // padded
  PreparedRows<T> queries_, keys_;
  T *vector_ = nullptr;    // v, then zeros
  T *unwanted_ = nullptr;  // where sums go that nobody asked for
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
