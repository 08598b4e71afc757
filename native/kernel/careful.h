// Gradients one row at a time, over only what it may see. Products of tiles multiply hidden
// weights, which are 0, by hidden values; where those are infinite or NaN the row comes out as NaN
// and is done again here. A visible NaN comes out again.
#ifndef REGARD_KERNEL_CAREFUL_H
#define REGARD_KERNEL_CAREFUL_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
REGARD_INLINE T dot(const T *a, const T *b, int64_t n) {
  Vec<T> sum = broadcast<T>(0);
  for (int64_t i = 0; i < n; i += kLanes<T>) sum = fma(load(a + i), load(b + i), sum);
  return sum_lanes(sum);
}
template <class T>
REGARD_INLINE void add_scaled(T *to, const T *from, T factor, int64_t n) {
  const Vec<T> f = broadcast(factor);
  for (int64_t i = 0; i < n; i += kLanes<T>) store(to + i, fma(load(from + i), f, load(to + i)));
}

template <class T>
class Careful {
 public:
  Careful(const regard_problem &p, const regard_array &d_output, Scratch &scratch)
      : p_(p), d_output_(d_output), size_(padded<T>(p.head_size)), width_(padded<T>(p.value_size)) {
    query_ = scratch.take<T>(size_);
    key_ = scratch.take<T>(size_);
    value_ = scratch.take<T>(width_);
    grad_ = scratch.take<T>(width_);
    sum_ = scratch.take<T>(std::max(size_, width_));
  }

  void d_query(int64_t b, int64_t h, int64_t i, const regard_gradients &g) {
    if (is_additive(p_)) return;  // nothing hidden comes in there
    clear();
    load_query(b, h, i);
    for (int64_t j = 0; j < p_.keys; ++j) {
      if (!sees(p_, b, h, i, j)) continue;
      load_key(b, h, j);
      add_scaled(sum_, key_, d_score(b, h, i, j, g), size_);
    }
    narrow_row(row_of(g.d_query, p_.dtype, b, h, i), sum_, p_.head_size, p_.dtype, T(p_.scale));
  }

  // for a key head, over the queries of its whole group
  void d_key(int64_t b, int64_t key_head, int64_t j, const regard_gradients &g) {
    if (is_additive(p_)) return;
    clear();
    const int64_t group = p_.heads / p_.key_heads;
    for (int64_t h = key_head * group; h < (key_head + 1) * group; ++h) {
      load_key(b, h, j);
      for (int64_t i = 0; i < p_.queries; ++i) {
        if (!sees(p_, b, h, i, j)) continue;
        load_query(b, h, i);
        add_scaled(sum_, query_, d_score(b, h, i, j, g), size_);
      }
    }
    narrow_row(row_of(g.d_key, p_.dtype, b, key_head, j), sum_, p_.head_size, p_.dtype,
               T(p_.scale));
  }

  void d_value(int64_t b, int64_t value_head, int64_t j, const regard_gradients &g) {
    clear();
    const int64_t group = p_.heads / p_.value_heads;
    for (int64_t h = value_head * group; h < (value_head + 1) * group; ++h) {
      load_key(b, h, j);
      for (int64_t i = 0; i < p_.queries; ++i) {
        if (!sees(p_, b, h, i, j)) continue;
        load_query(b, h, i);
        const T p = weight(b, h, i, j, lse_of(g, b, h, i));
        add_scaled(sum_, grad_, p * factor(b, h, i, j), width_);
      }
    }
    narrow_row(row_of(g.d_value, p_.dtype, b, value_head, j), sum_, p_.value_size, p_.dtype, T(1));
  }

 private:
  void clear() { std::fill(sum_, sum_ + std::max(size_, width_), T(0)); }

  void load_query(int64_t b, int64_t h, int64_t i) {
    widen_row(query_, row_of(p_.query, p_.dtype, b, h, i), p_.head_size, p_.dtype);
    widen_row(grad_, row_of(d_output_, p_.dtype, b, h, i), p_.value_size, p_.dtype);
  }
  void load_key(int64_t b, int64_t h, int64_t j) {
    const int64_t key_head = h / (p_.heads / p_.key_heads);
    const int64_t value_head = h / (p_.heads / p_.value_heads);
    widen_row(key_, row_of(p_.key, p_.dtype, b, key_head, j), p_.head_size, p_.dtype);
    if (!p_.value.data) return;
    widen_row(value_, row_of(p_.value, p_.dtype, b, value_head, j), p_.value_size, p_.dtype);
  }

  T factor(int64_t b, int64_t h, int64_t i, int64_t j) const {
    if (p_.dropout == 0) return 1;
    return dropout_factor(row_key(p_, b, h, i), static_cast<uint32_t>(j), drop_below(p_),
                          static_cast<T>(1 / (1 - p_.dropout)));
  }

  // The weight before dropout; keeps the derivative of the soft cap.
  T weight(int64_t b, int64_t h, int64_t i, int64_t j, T lse) {
    T score = static_cast<T>(p_.scale) *
              (is_additive(p_) ? additive_score(p_, h, query_, key_) : dot(query_, key_, size_));
    slope_ = 1;
    if (p_.softcap > 0) {
      const T bent = std::tanh(score / static_cast<T>(p_.softcap));
      slope_ = 1 - bent * bent;
      score = static_cast<T>(p_.softcap) * bent;
    }
    if (p_.bias.data) {
      const regard_grid &g = p_.bias;
      const int64_t at =
          b * g.batch_stride + h * g.head_stride + i * g.query_stride + j * g.key_stride;
      T value[kLanes<T>];
      widen_row(value, static_cast<const char *>(g.data) + at * element_size(p_.bias_dtype), 1,
                p_.bias_dtype);
      score += value[0];
    }
    return lse == -kInfinity<T> ? 0 : std::exp(score - lse);
  }

  T d_score(int64_t b, int64_t h, int64_t i, int64_t j, const regard_gradients &g) {
    const T p = weight(b, h, i, j, lse_of(g, b, h, i)), delta = delta_of<T>(p_, g, b, h, i);
    return p * (dot(grad_, value_, width_) * factor(b, h, i, j) - delta) * slope_;
  }

  T lse_of(const regard_gradients &g, int64_t b, int64_t h, int64_t i) const {
    return static_cast<const T *>(g.lse)[(b * p_.heads + h) * p_.queries + i];
  }

  const regard_problem &p_;
  const regard_array &d_output_;
  int64_t size_, width_;
  T *query_, *key_, *value_, *grad_, *sum_;
  T slope_ = 1;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
