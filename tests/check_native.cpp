// Checks the native core against the definition in double, for machines that tests can only
// emulate: attention and its gradients in float32, float64 and bfloat16, few queries and many.
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <algorithm>
#include <vector>

#include "regard/attention.h"

namespace {

struct Shape {
  int64_t heads, key_heads, queries, keys, head_size, value_size;
};

template <class T>
struct Type {
  static constexpr int kCode = sizeof(T) == 8 ? REGARD_FLOAT64 : REGARD_FLOAT32;
  static constexpr double kTolerance = sizeof(T) == 8 ? 1e-11 : 2e-5;
  using Wide = T;
  static double get(T x) { return static_cast<double>(x); }
  static T make(double x) { return static_cast<T>(x); }
};
template <>
struct Type<uint16_t> {  // bfloat16
  static constexpr int kCode = REGARD_BFLOAT16;
  static constexpr double kTolerance = 2e-2;
  using Wide = float;
  static double get(uint16_t x) {
    const uint32_t bits = uint32_t(x) << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return static_cast<double>(value);
  }
  static uint16_t make(double x) {
    const float value = static_cast<float>(x);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return static_cast<uint16_t>(bits >> 16);
  }
};

uint64_t state = 1;
double random_number() {
  state = state * 6364136223846793005u + 1442695040888963407u;
  return static_cast<double>(state >> 40) / (1 << 23) - 1;
}

template <class T>
struct Tensor {
  std::vector<T> data;
  int64_t heads, rows, size;
  Tensor(int64_t h, int64_t l, int64_t d) : data(h * l * d), heads(h), rows(l), size(d) {
    for (T &x : data) x = Type<T>::make(random_number());
  }
  regard_array array() { return {data.data(), heads * rows * size, rows * size, size}; }
  double at(int64_t h, int64_t i, int64_t d) const {
    return Type<T>::get(data[(h * rows + i) * size + d]);
  }
};

template <class T>
double worst(const Tensor<T> &found, const std::vector<double> &wanted) {
  double most = 0;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double error = fabs(Type<T>::get(found.data[i]) - wanted[i]);
    // NaN is the worst error of all.
    most = error <= most ? most : error;
  }
  return most;
}

// Returns the largest error of the output and the gradients.
template <class T>
double check(const Shape &s, bool causal) {
  using Wide = typename Type<T>::Wide;
  Tensor<T> q(s.heads, s.queries, s.head_size), k(s.key_heads, s.keys, s.head_size);
  Tensor<T> v(s.key_heads, s.keys, s.value_size), dy(s.heads, s.queries, s.value_size);
  Tensor<T> y = dy, dq = q, dk = k, dv = v;
  const int64_t group = s.heads / s.key_heads, rows = s.heads * s.queries;
  std::vector<int32_t> seen(2 * s.queries);
  for (int64_t i = 0; i < s.queries; ++i) {
    const int64_t stop = causal ? std::max<int64_t>(0, s.keys - s.queries + i + 1) : s.keys;
    seen[2 * i + 1] = static_cast<int32_t>(stop);
  }
  regard_problem p = {};
  p.batch = 1;
  p.heads = s.heads;
  p.key_heads = p.value_heads = s.key_heads;
  p.queries = s.queries;
  p.keys = s.keys;
  p.head_size = s.head_size;
  p.value_size = s.value_size;
  p.scale = 0.7;
  p.query = q.array();
  p.key = k.array();
  p.value = v.array();
  p.intervals = {seen.data(), 1, 0, 0, 2};
  p.dtype = Type<T>::kCode;
  std::vector<Wide> lse(rows);
  const regard_array output = y.array();
  if (regard_forward(&p, &output, lse.data()) != REGARD_OK) return INFINITY;

  std::vector<double> truth(y.data.size()), t_dq(q.data.size()), t_dk(k.data.size()),
      t_dv(v.data.size()), weight(s.keys);
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t h = row / s.queries, i = row % s.queries, kh = h / group, n = seen[2 * i + 1];
    double most = -INFINITY, sum = 0, total = 0;
    for (int64_t j = 0; j < n; ++j) {
      weight[j] = 0;
      for (int64_t d = 0; d < s.head_size; ++d)
        weight[j] += p.scale * q.at(h, i, d) * k.at(kh, j, d);
      most = std::max(most, weight[j]);
    }
    for (int64_t j = 0; j < n; ++j) sum += weight[j] = exp(weight[j] - most);
    double *out = &truth[row * s.value_size];
    for (int64_t j = 0; j < n; ++j) {
      weight[j] /= sum;
      for (int64_t e = 0; e < s.value_size; ++e) out[e] += weight[j] * v.at(kh, j, e);
    }
    for (int64_t e = 0; e < s.value_size; ++e) total += out[e] * dy.at(h, i, e);
    for (int64_t j = 0; j < n; ++j) {
      double slope = -total;
      for (int64_t e = 0; e < s.value_size; ++e) {
        slope += dy.at(h, i, e) * v.at(kh, j, e);
        t_dv[(kh * s.keys + j) * s.value_size + e] += weight[j] * dy.at(h, i, e);
      }
      slope *= weight[j] * p.scale;
      for (int64_t d = 0; d < s.head_size; ++d) {
        t_dq[row * s.head_size + d] += slope * k.at(kh, j, d);
        t_dk[(kh * s.keys + j) * s.head_size + d] += slope * q.at(h, i, d);
      }
    }
  }
  regard_gradients g = {};
  g.output = output;
  g.d_output = dy.array();
  g.lse = lse.data();
  g.d_query = dq.array();
  g.d_key = dk.array();
  g.d_value = dv.array();
  if (regard_backward(&p, &g) != REGARD_OK) return INFINITY;
  return std::max({worst(y, truth), worst(dq, t_dq), worst(dk, t_dk), worst(dv, t_dv)});
}

template <class T>
int failures(const char *name) {
  constexpr Shape shapes[] = {{2, 1, 33, 70, 40, 24}, {4, 2, 1, 1300, 64, 32}, {1, 1, 7, 5, 3, 1}};
  int failed = 0;
  for (const Shape &s : shapes) {
    for (const bool causal : {false, true}) {
      const double error = check<T>(s, causal);
      const bool good = error <= Type<T>::kTolerance * std::max<int64_t>(1, s.queries / 4);
      if (!good) failed += printf("%s, %d queries: error %g\n", name, int(s.queries), error) > 0;
    }
  }
  return failed;
}

}  // namespace

int main() {
  const int failed =
      failures<float>("float32") + failures<double>("float64") + failures<uint16_t>("bfloat16");
  printf("%s: %d failures\n", regard_isa(), failed);
  return failed != 0;
}
