// Additive scores along edges, element by element: a row `own` meets the rows x at the other ends
// of its edges, score = sum_a v_a f(own_a + x_a), with the scale as a part of v. An edge's two rows
// meet once in each direction, so nothing is prepared for many pairs as additive.h does.
#ifndef REGARD_KERNEL_EDGE_SCORE_H
#define REGARD_KERNEL_EDGE_SCORE_H

namespace regard {
namespace REGARD_NAMESPACE {

// Rows of padded size.
template <class T, class F>
struct AdditiveEdge {
  F f;
  const T *own, *vector;

  REGARD_INLINE Vec<T> value(Vec<T> x, int64_t a) const { return f.of(load(own + a) + x); }
};

// Joins the score, as DotProduct does.
template <class T, class F>
struct AdditiveTerm : AdditiveEdge<T, F> {
  REGARD_INLINE Vec<T> operator()(Vec<T> x, Vec<T>, Vec<T> sum, int64_t a) const {
    return fma(load(this->vector + a), this->value(x, a), sum);
  }
};

// What is summed up over the edges of a row, each times a factor: a row itself; or what an additive
// score changes by with either of its rows, or with v. Where the factor is 0 nothing that is
// infinite or NaN comes in, unless rows are summed up themselves: there it has to.
struct RowItself {
  static constexpr bool kSkipsZeros = false;
  template <class V>
  REGARD_INLINE V operator()(V x, int64_t) const {
    return x;
  }
};
template <class T, class F>
struct SlopeOfRows : AdditiveEdge<T, F> {
  static constexpr bool kSkipsZeros = true;
  REGARD_INLINE Vec<T> operator()(Vec<T> x, int64_t a) const {
    return this->f.derivative(this->value(x, a)) * load(this->vector + a);
  }
};
template <class T, class F>
struct SlopeOfVector : AdditiveEdge<T, F> {
  static constexpr bool kSkipsZeros = true;
  REGARD_INLINE Vec<T> operator()(Vec<T> x, int64_t a) const { return this->value(x, a); }
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
