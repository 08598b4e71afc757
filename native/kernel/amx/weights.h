// Scores become weights, sums of parts in bfloat16, laid out for the matrix unit.
#ifndef REGARD_KERNEL_AMX_WEIGHTS_H
#define REGARD_KERNEL_AMX_WEIGHTS_H

namespace regard {
namespace REGARD_NAMESPACE {

// 2^r on [0, 1] with the least relative error: 2.6e-6, against 2e-3 of bfloat16. Log-sum-exps are
// made of these too, before they are rounded.
constexpr float kShortExp2[] = {1.00000259337069f, 0.69300383446999f, 0.24144275689141f,
                                0.0520114606104612f, 0.013534167916049f};

REGARD_INLINE F short_exp2(F x) { return scale_exp2(polynomial(kShortExp2, fraction(x)), x); }

// Two vectors rounded to nearest even, interleaved: a pair in each lane.
REGARD_INLINE __m512i pair_bfloat16(F even, F odd) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512bh both = _mm512_cvtne2ps_pbh(odd.v, even.v);
  return _mm512_permutexvar_epi16(order, (__m512i)both);
}

// The bfloat16 next to 0. Relative errors are spread as widely as those of rounding, but not about
// 0: their mean goes away when sums of values are divided by sums of such weights.
REGARD_INLINE F truncate(F x) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), high))};
}

// The online softmax in two steps: first the pivots of a tile, from its scores alone; then its
// weights, piece by piece.
struct Weights : Softmax<float> {
  float shift[kBlock<float>];
  float rounded[kBlock<float>];  // `sum` of the upper parts
  bool exact = false;            // outputs are divided by `sum`, not by `rounded`

  void reset(float score_unit, int width) {
    Softmax<float>::reset(score_unit, width);
    std::fill_n(rounded, width, 0.f);
  }

  // For scores that are known to be small: pivots stay at 0.
  void reset_bounded(float score_unit, int width) {
    reset(score_unit, width);
    std::fill_n(pivot, width, 0.f);
    std::fill_n(shift, width, 0.f);
  }

  // What the sums of values of rows r … r + 15 are multiplied by. An output is the mean of values
  // by the weights that multiplied them: those of a single key make exactly that key's value.
  F factor(int r) const {
    const F zero = broadcast(0.f), total = load((exact ? sum : rounded) + r);
    return select(differ(total, zero), broadcast(1.f) / total, zero);
  }
  // What rounding added to a row's sum.
  float missing(int r) const { return exact ? 0 : rounded[r] - sum[r]; }

  // Returns whether some row must be rescaled.
  bool rise(const float *scores, int64_t keys, int width) {
    bool rises = false;
    for (int r = 0; r < width; r += kLanes<float>) {
      const Rise risen = Softmax<float>::rise(largest(scores + r, keys, width), r);
      store(sum + r, load(sum + r) * risen.factor);
      store(rounded + r, load(rounded + r) * risen.factor);
      store(shift + r, risen.shift);
      rises |= risen.any;
    }
    return rises;
  }
};

// The second step, which other work interrupts: `run` makes a few weights at a time.
template <int kParts>
class Weigher {
 public:
  Weigher() = default;
  // Of `pairs` pairs of keys. `factors`: of the dropout, laid out as the scores, or null. Parts of
  // weights lie `part` elements apart.
  Weigher(Weights *weights, const float *scores, const float *factors, int64_t pairs, int width,
          uint32_t *to, int64_t part)
      : weights_(weights),
        scores_(scores),
        factors_(factors),
        to_(to),
        part_(part),
        pairs_(pairs),
        pair_(pairs),
        width_(width),
        left_(pairs * (width / kLanes<float>)),
        unit_(broadcast(weights->unit)) {
    if (left_) begin();
  }

  // Spreads what there is over so many calls of run().
  REGARD_INLINE void spread(int pauses) { rate_ = (left_ * kWhole + pauses - 1) / pauses; }
  REGARD_INLINE void run() {
    credit_ += rate_;
    if (credit_ < kWhole || left_ <= 0) return;
    credit_ -= kWhole;
    step();
  }
  REGARD_INLINE void finish() {
    while (left_ > 0) step();
  }

 private:
  static constexpr int64_t kWhole = 64;

  REGARD_INLINE void begin() {
    even_ = load(weights_->sum + row_);
    odd_ = broadcast(0.f);
    rounded_ = load(weights_->rounded + row_);
    rounded_odd_ = broadcast(0.f);
    shift_ = load(weights_->shift + row_);
  }

  REGARD_INLINE void step() {
    F even = load(scores_), odd = load(scores_ + width_);
    even = short_exp2(fma(even, unit_, shift_));
    odd = short_exp2(fma(odd, unit_, shift_));
    even_ = even_ + even;
    odd_ = odd_ + odd;
    if (factors_) {
      even = even * load(factors_);
      odd = odd * load(factors_ + width_);
      factors_ += 2 * width_;
    }
    if (kParts > 1 || factors_) {
      const __m512i pairs = pair_bfloat16(even, odd);
      _mm512_storeu_si512(to_, pairs);
      if constexpr (kParts > 1) {
        const __m512i rest = pair_bfloat16(even - even_of(pairs), odd - odd_of(pairs));
        _mm512_storeu_si512(to_ + part_, rest);
      }
    } else {
      even = truncate(even);
      odd = truncate(odd);
      rounded_ = rounded_ + even;
      rounded_odd_ = rounded_odd_ + odd;
      const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.v), 16);
      _mm512_storeu_si512(to_, _mm512_or_si512(low, _mm512_castps_si512(odd.v)));
    }
    scores_ += 2 * width_;
    to_ += width_;
    --left_;
    if (--pair_ == 0) next_rows();
  }

  // The next vector of rows.
  REGARD_INLINE void next_rows() {
    store(weights_->sum + row_, even_ + odd_);
    store(weights_->rounded + row_, rounded_ + rounded_odd_);
    row_ += kLanes<float>;
    scores_ += kLanes<float> - 2 * pairs_ * width_;
    if (factors_) factors_ += kLanes<float> - 2 * pairs_ * width_;
    to_ += kLanes<float> - pairs_ * width_;
    pair_ = pairs_;
    if (left_) begin();
  }

  Weights *weights_ = nullptr;
  const float *scores_ = nullptr, *factors_ = nullptr;
  uint32_t *to_ = nullptr;
  int64_t part_ = 0, pairs_ = 0, pair_ = 0, width_ = 0, left_ = 0;
  int64_t rate_ = kWhole, credit_ = 0;
  int row_ = 0;
  // Sums so far, and what is added, for the vector of rows at hand.
  F unit_, even_, odd_, rounded_, rounded_odd_, shift_;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
