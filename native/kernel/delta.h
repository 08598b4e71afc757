// delta, what all gradients of a row's weights are measured from: the gradient of a score is its
// weight * (gradient of the weight - delta).
#ifndef REGARD_KERNEL_DELTA_H
#define REGARD_KERNEL_DELTA_H

namespace regard {
namespace REGARD_NAMESPACE {

// sum_e y * dy. Where the output y is 0 its gradient does not count: a query that sees nothing may
// well be padding, with a gradient that was never written.
template <class T, class S>
REGARD_INLINE T dot_where_nonzero(const S *y, const S *dy, int64_t n) {
  const Vec<T> zero = broadcast<T>(0);
  Vec<T> sum = zero;
  for (int64_t i = 0; i < n; i += kLanes<T>) {
    const bool whole = n - i >= kLanes<T>;
    const Vec<T> a = whole ? load_as(y + i) : load_as_partial(y + i, n - i);
    const Vec<T> b = whole ? load_as(dy + i) : load_as_partial(dy + i, n - i);
    sum = select(differ(a, zero), fma(a, b, sum), sum);
  }
  return sum_lanes(sum);
}

// sum_e(output * d_output) - d_lse of query i. Either may be absent.
template <class T>
inline T delta_of(const regard_problem &p, const regard_gradients &g, int64_t b, int64_t h,
                  int64_t i) {
  T delta = 0;
  if (g.output.data) {
    const void *y = row_of(g.output, p.dtype, b, h, i);
    const void *dy = row_of(g.d_output, p.dtype, b, h, i);
    const auto dot = [&](auto element) {
      using S = decltype(element);
      return dot_where_nonzero<T>(static_cast<const S *>(y), static_cast<const S *>(dy),
                                  p.value_size);
    };
    if constexpr (std::is_same_v<T, double>) {
      delta = dot(double{});
    } else if (p.dtype == REGARD_FLOAT32) {
      delta = dot(float{});
    } else if (p.dtype == REGARD_FLOAT16) {
      delta = dot(Float16{});
    } else {
      delta = dot(BFloat16{});
    }
  }
  if (!g.d_lse) return delta;
  return delta - static_cast<const T *>(g.d_lse)[(b * p.heads + h) * p.queries + i];
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
