// Scores become weights, and gradients of weights those of scores, in bfloat16, laid out for the
// matrix unit.
#ifndef REGARD_KERNEL_AMX_GRADIENTS_H
#define REGARD_KERNEL_AMX_GRADIENTS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Of a tile of keys and a block of rows, in float32, all [key][row].
struct GradientScores {
  float *scores, *d_weights;
  float *factors, *slope;  // of the dropout and of the soft cap, or null
  // Where gradients of scores after the soft cap are added, or null; for `rows` queries from
  // `query` on, and keys from `key` on.
  const DistanceSums<float> *distances;
  int64_t query, key;
  int rows;
};

// The same as sums of bfloat16. `weights` and `d_scores` are left sides, [32 rows][part][key][row];
// `d_pairs` is a right side, [pair of keys][row], its parts `part` elements apart.
template <int kParts>
struct GradientOperands {
  uint16_t *weights, *d_scores;
  uint32_t *d_pairs;
  int64_t part;

  // Nothing for pairs [first, last) of keys.
  void clear(int64_t first, int64_t last, int width) const {
    const int64_t count = last - first;
    for (int64_t at = 0; at < width * kParts; at += kDepth) {
      const int64_t from = at * kDepth + 2 * first * kDepth;
      if (weights) std::fill_n(weights + from, 2 * count * kDepth, uint16_t{0});
      if (d_scores) std::fill_n(d_scores + from, 2 * count * kDepth, uint16_t{0});
    }
    for (int i = 0; i < kParts && d_pairs; ++i) {
      std::fill_n(d_pairs + i * part + first * width, count * width, 0u);
    }
  }
};

// What makes the one from the other.
template <int kParts>
class GradientMaker {
 public:
  // A row's weights are 2^(unit * score + shift).
  GradientMaker(const GradientScores &from, const GradientOperands<kParts> &to, const float *shift,
                const float *delta, float unit, int width)
      : from_(from), to_(to), shift_(shift), delta_(delta), unit_(unit), width_(width) {}

  // Pairs [first, last) of keys.
  void make(int64_t first, int64_t last) const {
    const bool plain = !from_.factors && !from_.slope && to_.weights && to_.d_scores;
    for (int row = 0; row < width_; row += kDepth) {
      if (from_.distances && plain) {
        rows<true, true>(row, first, last);
      } else if (from_.distances) {
        rows<false, true>(row, first, last);
      } else if (plain) {
        rows<true, false>(row, first, last);
      } else {
        rows<false, false>(row, first, last);
      }
    }
  }

 private:
  // 32 rows. `kPlain`: no dropout, no soft cap, and both gradients are wanted.
  template <bool kPlain, bool kDistances>
  REGARD_NOINLINE void rows(int row, int64_t first, int64_t last) const {
    constexpr int L = kLanes<float>;
    const __m512i low = pair_order(0), high = pair_order(16);
    const int64_t width = width_;
    const F unit = broadcast(unit_);
    const F shift[2] = {load(shift_ + row), load(shift_ + row + L)};
    const F delta[2] = {load(delta_ + row), load(delta_ + row + L)};
    const GradientScores from = from_;
    const GradientOperands<kParts> to = to_;
    for (int64_t pair = first; pair < last; ++pair) {
      Parts<kParts> kept[2], grad[2];
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        const int64_t at = (2 * pair + k) * width + row;
        F w[2], d[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const F weight = power_of_2<kParts>(fma(load(from.scores + at + i * L), unit, shift[i]));
          F factor = broadcast(1.f);
          if (!kPlain && from.factors) factor = load(from.factors + at + i * L);
          w[i] = kPlain ? weight : weight * factor;
          if (!kPlain && !to.d_scores) continue;
          d[i] = load(from.d_weights + at + i * L);
          if (!kPlain) d[i] = d[i] * factor;
          d[i] = weight * (d[i] - delta[i]);
          if (kDistances) add_distance(2 * pair + k, row + i * L, weight, d[i]);
          if (!kPlain && from.slope) d[i] = d[i] * load(from.slope + at + i * L);
        }
        kept[k] = split<kParts>(w[0], w[1]);
        if (kPlain || to.d_scores) grad[k] = split<kParts>(d[0], d[1]);
      }
      const int64_t at = (row * kParts + 2 * pair) * kDepth, part = kDepth * kDepth;
#pragma GCC unroll 3
      for (int i = 0; i < kParts; ++i) {
        if (kPlain || to.weights) {
          _mm512_store_si512(to.weights + i * part + at, kept[0].part[i]);
          _mm512_store_si512(to.weights + i * part + at + kDepth, kept[1].part[i]);
        }
        if (!kPlain && !to.d_scores) continue;
        const __m512i even = grad[0].part[i], odd = grad[1].part[i];
        _mm512_store_si512(to.d_scores + i * part + at, even);
        _mm512_store_si512(to.d_scores + i * part + at + kDepth, odd);
        uint32_t *pairs = to.d_pairs + i * to.part + pair * width + row;
        _mm512_store_si512(pairs, _mm512_permutex2var_epi16(even, low, odd));
        _mm512_store_si512(pairs + L, _mm512_permutex2var_epi16(even, high, odd));
      }
    }
  }

  // Rows that there are not, and what is hidden, do not count.
  REGARD_INLINE void add_distance(int64_t j, int row, F weight, F d) const {
    float *sum = from_.distances->at(from_.query + row, from_.key + j);
    const __mmask16 counts =
        differ(weight, broadcast(0.f)) & first16(std::max(from_.rows - row, 0));
    const __m512 before = _mm512_load_ps(sum);
    _mm512_store_ps(sum, _mm512_mask_add_ps(before, counts, before, d.v));
  }

  GradientScores from_;
  GradientOperands<kParts> to_;
  const float *shift_, *delta_;
  float unit_;
  int width_;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
