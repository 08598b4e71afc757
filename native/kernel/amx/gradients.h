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
};

// The same in bfloat16. `weights` and `d_scores` are left sides, [32 rows][key][row]; `d_pairs` is
// a right side, [pair of keys][row].
struct GradientOperands {
  uint16_t *weights, *d_scores;
  uint32_t *d_pairs;

  // Nothing for pairs [first, last) of keys.
  void clear(int64_t first, int64_t last, int width) const {
    for (int64_t at = 0; at < width * kDepth; at += kDepth * kDepth) {
      const int64_t from = at + 2 * first * kDepth, count = 2 * (last - first) * kDepth;
      if (weights) std::fill_n(weights + from, count, uint16_t{0});
      if (d_scores) std::fill_n(d_scores + from, count, uint16_t{0});
    }
    if (d_pairs) std::fill_n(d_pairs + first * width, (last - first) * width, 0u);
  }
};

// What makes the one from the other.
class GradientMaker {
 public:
  // A row's weights are 2^(unit * score + shift).
  GradientMaker(const GradientScores &from, const GradientOperands &to, const float *shift,
                const float *delta, float unit, int width)
      : from_(from), to_(to), shift_(shift), delta_(delta), unit_(unit), width_(width) {}

  // Pairs [first, last) of keys.
  void make(int64_t first, int64_t last) const {
    const bool plain = !from_.factors && !from_.slope && to_.weights && to_.d_scores;
    for (int row = 0; row < width_; row += kDepth) {
      if (plain) {
        rows<true>(row, first, last);
      } else {
        rows<false>(row, first, last);
      }
    }
  }

 private:
  // 32 rows. `kPlain`: no dropout, no soft cap, and both gradients are wanted.
  template <bool kPlain>
  REGARD_NOINLINE void rows(int row, int64_t first, int64_t last) const {
    constexpr int L = kLanes<float>;
    const __m512i low = pair_order(0), high = pair_order(16);
    const int64_t width = width_;
    const F unit = broadcast(unit_);
    const F shift[2] = {load(shift_ + row), load(shift_ + row + L)};
    const F delta[2] = {load(delta_ + row), load(delta_ + row + L)};
    const GradientScores from = from_;
    const GradientOperands to = to_;
    for (int64_t pair = first; pair < last; ++pair) {
      __m512i kept[2], grad[2];
#pragma GCC unroll 2
      for (int k = 0; k < 2; ++k) {
        const int64_t at = (2 * pair + k) * width + row;
        F w[2], d[2];
#pragma GCC unroll 2
        for (int i = 0; i < 2; ++i) {
          const F weight = short_exp2(fma(load(from.scores + at + i * L), unit, shift[i]));
          F factor = broadcast(1.f);
          if (!kPlain && from.factors) factor = load(from.factors + at + i * L);
          w[i] = kPlain ? weight : weight * factor;
          if (!kPlain && !to.d_scores) continue;
          d[i] = load(from.d_weights + at + i * L);
          if (!kPlain) d[i] = d[i] * factor;
          d[i] = weight * (d[i] - delta[i]);
          if (!kPlain && from.slope) d[i] = d[i] * load(from.slope + at + i * L);
        }
        kept[k] = (__m512i)_mm512_cvtne2ps_pbh(w[1].v, w[0].v);
        if (kPlain || to.d_scores) grad[k] = (__m512i)_mm512_cvtne2ps_pbh(d[1].v, d[0].v);
      }
      const int64_t at = (row + 2 * pair) * kDepth;
      if (kPlain || to.weights) {
        _mm512_store_si512(to.weights + at, kept[0]);
        _mm512_store_si512(to.weights + at + kDepth, kept[1]);
      }
      if (!kPlain && !to.d_scores) continue;
      _mm512_store_si512(to.d_scores + at, grad[0]);
      _mm512_store_si512(to.d_scores + at + kDepth, grad[1]);
      uint32_t *pairs = to.d_pairs + pair * width + row;
      _mm512_store_si512(pairs, _mm512_permutex2var_epi16(grad[0], low, grad[1]));
      _mm512_store_si512(pairs + L, _mm512_permutex2var_epi16(grad[0], high, grad[1]));
    }
  }

  GradientScores from_;
  GradientOperands to_;
  const float *shift_, *delta_;
  float unit_;
  int width_;
};

// Rows of queries, or of gradients of outputs, as the right side of a product over rows: pairs of
// rows [pair][element], `size` (a multiple of kTileRows) elements wide. Rows beyond the last are 0.
inline void pack_row_pairs(const regard_array &a, const Rows<float> &rows, int64_t used,
                           int64_t size, uint16_t *to) {
  const __m512i low = pair_order(0), high = pair_order(16);
  for (int r = 0; r < rows.width; r += 2) {
    const uint16_t *row[2];
    for (int k = 0; k < 2; ++k) {
      row[k] = static_cast<const uint16_t *>(
          row_of(a, REGARD_BFLOAT16, rows.batch, rows.head[r + k], rows.query[r + k]));
    }
    for (int64_t d = 0; d < size; d += kDepth) {
      const __m512i x = load_elements(row[0] + d, r < rows.count ? used - d : 0);
      const __m512i y = load_elements(row[1] + d, r + 1 < rows.count ? used - d : 0);
      uint16_t *pairs = to + (r / 2 * size + d) * 2;
      _mm512_store_si512(pairs, _mm512_permutex2var_epi16(x, low, y));
      if (d + kTileRows >= size) continue;
      _mm512_store_si512(pairs + kDepth, _mm512_permutex2var_epi16(x, high, y));
    }
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
