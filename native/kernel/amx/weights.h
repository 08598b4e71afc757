// Scores become weights, sums of parts in bfloat16, laid out for the matrix unit.
#ifndef REGARD_KERNEL_AMX_WEIGHTS_H
#define REGARD_KERNEL_AMX_WEIGHTS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Rows of a block: two vectors at most.
constexpr int kBlockRows = 2 * kLanes<float>;

// 2^r on [0, 1] with the least relative error: 2.6e-6, against 2e-3 of bfloat16. Log-sum-exps are
// made of these too, before they are rounded.
constexpr float kShortExp2[] = {1.00000259337069f, 0.69300384446999f, 0.24144275689141f,
                                0.0520114606104612f, 0.013534167916049f};

REGARD_INLINE F short_exp2(F x) { return scale_exp2(polynomial(kShortExp2, fraction(x)), x); }

// 2^x, as exact as elements of so many parts.
template <int kParts>
REGARD_INLINE F power_of_2(F x) {
  return kParts > 2 ? exp2(x) : short_exp2(x);
}

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

// Powers of 2 in bfloat16, by integers of 16 bits: x = e + f, counted in steps of 2^-8 from -127
// on, is twice the bits of (1 + f) 2^e. What 1 + f has too much is looked up by the first 6 bits of
// f. With the rounding of x and of the result that makes a relative error of 2^-7 at most.
//
// Adding to x a float whose last bit is worth 2^-8 is what counts the steps; half a step of the
// result makes halving round to nearest.
constexpr float kStepsFrom = 32768;
constexpr float kStepsBias = kStepsFrom + 127 + 1 / 256.f;

struct alignas(64) Excess {
  uint8_t steps[64];
};
constexpr Excess excess() {
  Excess excess = {};
  for (int i = 0; i < 64; ++i) {
    const double f = (i + 0.125) / 64;  // the middle of four steps, one behind because of the half
    double power = 0;
    for (int k = 4; k >= 0; --k) power = power * f + kShortExp2[k];
    excess.steps[i] = static_cast<uint8_t>(256 * (1 + f - power) + 0.5);
  }
  return excess;
}
constexpr Excess kExcess = excess();

// Of steps in the lower halves of lanes: pairs of bfloat16.
REGARD_INLINE __m512i powers_of_steps(__m512i even, __m512i odd) {
  constexpr int kFirstOrBothOthers = 0xf8;
  constexpr __mmask64 kLowerBytes = 0x5555555555555555;
  const __m512i steps = _mm512_ternarylogic_epi32(_mm512_slli_epi32(odd, 16), even,
                                                  _mm512_set1_epi32(0xffff), kFirstOrBothOthers);
  const __m512i too_much = _mm512_maskz_permutexvar_epi8(kLowerBytes, _mm512_srli_epi16(steps, 2),
                                                         _mm512_load_si512(kExcess.steps));
  return _mm512_srli_epi16(_mm512_sub_epi16(steps, too_much), 1);
}

REGARD_INLINE F whole(F x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}

// The online softmax in two steps: first the pivots of a tile, from its scores alone; then its
// weights, piece by piece.
struct Weights : Softmax<float> {
  float raised[kBlock<float>];  // pivots times unit: whole numbers, or -inf
  float shift[kBlock<float>];   // to be added to unit * score
  float lost[kBlock<float>];    // what `sum` has too much because it was rounded
  bool bounded = false;         // scores are known to be finite and small: pivots stay at 0

  void reset(float score_unit, int width) {
    Softmax<float>::reset(score_unit, width);
    const float start = bounded ? 0 : -kInfinity<float>;
    std::fill_n(pivot, width, start);
    std::fill_n(raised, width, start);
    std::fill_n(shift, width, 0.f);
    std::fill_n(lost, width, 0.f);
  }

  // The weights of a tile to the sums of rows r … r + 15 (after Kahan).
  REGARD_INLINE void add(int r, F weights) {
    const F before = load(sum + r), more = weights - load(lost + r), after = before + more;
    store(sum + r, after);
    store(lost + r, (after - before) - more);
  }

  // Moves the pivots of rows whose largest scores have left them behind. Returns whether some row
  // must be rescaled. All factors are powers of 2.
  bool rise(const float *scores, int64_t keys, int width) {
    const F zero = broadcast(0.f), lowest = broadcast(-kInfinity<float>), u = broadcast(unit);
    bool rises = false;
    for (int r = 0; r < width; r += kLanes<float>) {
      const F old = load(raised + r), top = largest(scores + r, keys, width) * u;
      const auto behind = less(old + broadcast(kSlack), top);
      const F now = select(behind, whole(top), old);
      const F below = zero - select(differ(now, lowest), now, zero);
      const F factor = select(behind, exp2(old + below), broadcast(1.f));
      store(raised + r, now);
      store(pivot + r, now / u);
      store(shift + r, below);
      store(rescale + r, factor);
      store(sum + r, load(sum + r) * factor);
      store(lost + r, load(lost + r) * factor);
      rises |= any(behind);
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
        left_(pairs),
        width_(width),
        wide_(width > kLanes<float>),
        unit_(broadcast(weights->unit)) {
    for (int i = 0; i < kVectors; ++i) {
      const int r = i * kLanes<float>;
      even_[i] = odd_[i] = broadcast(0.f);
      shift_[i] = load(weights->shift + r);
    }
  }

  // Spreads what there is over so many calls of run().
  REGARD_INLINE void spread(int64_t pauses) {
    if (pauses) rate_ = left_ * kWhole / pauses;
  }
  REGARD_INLINE void run() {
    credit_ += rate_;
    if (credit_ < kWhole) return;
    credit_ -= kWhole;
    step();
  }
  REGARD_INLINE void finish() {
    if (!weights_) return;
    while (left_ > 0) step();
    for (int i = 0; i < kVectors; ++i) weights_->add(i * kLanes<float>, even_[i] + odd_[i]);
  }

 private:
  static constexpr int64_t kWhole = 1 << 16;
  static constexpr int kVectors = kBlockRows / kLanes<float>;

  // A pair of keys.
  REGARD_INLINE void step() {
    make<0>();
    if (wide_) make<1>();
    scores_ += 2 * width_;
    if (factors_) factors_ += 2 * width_;
    to_ += width_;
    --left_;
  }

  template <int kVector>
  REGARD_INLINE void make() {
    const int r = kVector * kLanes<float>;
    F even = power_of_2<kParts>(fma(load(scores_ + r), unit_, shift_[kVector]));
    F odd = power_of_2<kParts>(fma(load(scores_ + r + width_), unit_, shift_[kVector]));
    even_[kVector] = even_[kVector] + even;
    odd_[kVector] = odd_[kVector] + odd;
    if (factors_) {
      even = even * load(factors_ + r);
      odd = odd * load(factors_ + r + width_);
    }
    split(even, odd, to_ + r);
  }

  // Upper parts are cut, which takes fewer instructions than to round them. What is left for the
  // last of three has no more bits than it; that of two is rounded.
  REGARD_INLINE void split(F even, F odd, uint32_t *to) const {
#pragma GCC unroll 2
    for (int i = 0; i + 1 < kParts; ++i) {
      const __m512i e = _mm512_castps_si512(even.v), o = _mm512_castps_si512(odd.v);
      _mm512_storeu_si512(to + i * part_, upper_pairs(e, o));
      even = even - odd_of(e);
      odd = odd - odd_of(o);
    }
    const __m512i half = _mm512_set1_epi32(kParts == 2 ? 0x8000 : 0);
    _mm512_storeu_si512(to + (kParts - 1) * part_,
                        upper_pairs(_mm512_add_epi32(_mm512_castps_si512(even.v), half),
                                    _mm512_add_epi32(_mm512_castps_si512(odd.v), half)));
  }

  Weights *weights_ = nullptr;
  const float *scores_ = nullptr, *factors_ = nullptr;
  uint32_t *to_ = nullptr;
  int64_t part_ = 0, left_ = 0, rate_ = 0, credit_ = 0;
  int width_ = 0;
  bool wide_ = false;
  // Sums of these weights, and what is added to scores, for each vector of rows.
  F unit_, even_[kVectors], odd_[kVectors], shift_[kVectors];
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
