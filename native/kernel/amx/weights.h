// Scores become weights in bfloat16, laid out for the matrix unit.
#ifndef REGARD_KERNEL_AMX_WEIGHTS_H
#define REGARD_KERNEL_AMX_WEIGHTS_H

namespace regard {
namespace REGARD_NAMESPACE {

// 2^r on [0, 1] with the least relative error: 2.6e-6, against 2e-3 of bfloat16. Log-sum-exps are made
// of these too, before they are rounded.
constexpr float kShortExp2[] = {1.00000259337069f, 0.69300383446999f, 0.24144275689141f,
                               0.0520114606104612f, 0.013534167916049f};

REGARD_INLINE F short_exp2(F x) { return scale_exp2(polynomial(kShortExp2, fraction(x)), x); }

// Two vectors rounded to nearest even, interleaved: a pair in each lane.
REGARD_INLINE __m512i pair_bfloat16(F even, F odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512bh both = _mm512_cvtne2ps_pbh(odd.v, even.v);
  return _mm512_permutexvar_epi16(order, reinterpret_cast<__m512i>(both));
}

// The online softmax in two steps: first the pivots of a tile, from its scores alone; then its
// weights, piece by piece.
struct Weights : Softmax<float> {
  float shift[kBlock<float>];

  // Returns whether some row must be rescaled.
  bool rise(const float *scores, int64_t keys, int width) {
    bool rises = false;
    for (int r = 0; r < width; r += kLanes<float>) {
      F top[4];
      for (F &t : top) t = broadcast(-kInfinity<float>);
      int64_t j = 0;
      for (; j + 4 <= keys; j += 4) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; ++i) top[i] = max(load(scores + (j + i) * width + r), top[i]);
      }
      for (; j < keys; ++j) top[0] = max(load(scores + j * width + r), top[0]);
      rises |= rise_lanes(max(max(top[0], top[1]), max(top[2], top[3])), r);
    }
    return rises;
  }

  // Steps [first, last) of `pairs` steps per vector of rows; a step is a pair of keys.
  template <bool kDropout>
  REGARD_INLINE void weigh(const float *scores, const float *factors, int width, int64_t pairs,
                           uint32_t *to, int64_t first, int64_t last) {
    while (first < last) {
      const int64_t r = first / pairs * kLanes<float>, begin = first % pairs;
      const int64_t end = std::min(pairs, begin + last - first);
      weigh_lanes<kDropout>(scores + r, factors + r, width, to + r, static_cast<int>(r), begin,
                            end);
      first += end - begin;
    }
  }

 private:
  bool rise_lanes(F most, int r) {
    const F lowest = broadcast(-kInfinity<float>), zero = broadcast(0.f), u = broadcast(unit);
    const F old = load(pivot + r);
    const auto rises = less(fma(old, u, broadcast(8.f)), most * u);
    const F now = select(rises, most, old);
    const F down = zero - select(differ(now, lowest), now, zero) * u;
    const F factor = select(rises, exp2(fma(old, u, down)), broadcast(1.f));
    store(rescale + r, factor);
    store(sum + r, load(sum + r) * factor);
    store(pivot + r, now);
    store(shift + r, down);
    return any(rises);
  }

  template <bool kDropout>
  REGARD_INLINE void weigh_lanes(const float *scores, const float *factors, int width, uint32_t *to,
                                 int r, int64_t begin, int64_t end) {
    const F u = broadcast(unit), down = load(shift + r);
    F total = load(sum + r), other = broadcast(0.f);
    for (int64_t i = begin; i < end; ++i) {
      const float *at = scores + 2 * i * width;
      F even = short_exp2(fma(load(at), u, down));
      F odd = short_exp2(fma(load(at + width), u, down));
      total = total + even;
      other = other + odd;
      if (kDropout) {
        even = even * load(factors + 2 * i * width);
        odd = odd * load(factors + (2 * i + 1) * width);
      }
      _mm512_storeu_si512(to + i * width, pair_bfloat16(even, odd));
    }
    store(sum + r, total + other);
  }
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
