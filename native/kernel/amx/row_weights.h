// Scores become weights row by row: strips of scores [row][64 keys] make left sides of products.
#ifndef REGARD_KERNEL_AMX_ROW_WEIGHTS_H
#define REGARD_KERNEL_AMX_ROW_WEIGHTS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Sums of weights are healthy in this range: all that pivots cut off above and below is nothing
// beside them.
constexpr float kLeastSum = 0x1p-60f, kMostSum = 0x1p90f;

// The softmax of a block of rows. Pivots stay at 0, and whether that was right the sums say when
// all is done; if not, the largest scores are looked for first.
struct StripSums {
  float unit;                                  // scores times unit are powers of 2
  alignas(64) float shift[kBlockRows];         // minus pivots, whole numbers
  alignas(64) float sum[kBlockRows * 16];      // of weights, lane by lane
  alignas(64) float rounded[kBlockRows * 16];  // the same of weights as they are multiplied
  alignas(64) float largest[kBlockRows * 16];  // scores
  alignas(64) uint32_t wild[16];               // what could not be counted leaves high bits
  bool exact;                                  // outputs are divided by `sum`, not `rounded`

  void reset(float score_unit) {
    unit = score_unit;
    std::fill_n(shift, kBlockRows, 0.f);
    clear();
  }
  void clear() {
    std::fill_n(sum, kBlockRows * 16, 0.f);
    if (!exact) std::fill_n(rounded, kBlockRows * 16, 0.f);
    std::fill_n(wild, 16, 0u);
  }
  bool is_wild() const { return *std::max_element(wild, wild + 16) > 0xffff; }

  // Lanes added up, of 16 rows from r on.
  static F total(const float *lanes, int r) {
    F parts[16];
    for (int i = 0; i < 16; ++i) parts[i] = load(lanes + (r + i) * 16);
    return sum_each<float>(parts);
  }

  // Pivots from the largest scores.
  void settle(int width) {
    for (int r = 0; r < width; ++r) {
      const float top = _mm512_reduce_max_ps(load(largest + r * 16).v) * unit;
      shift[r] = top > -kInfinity<float> ? -std::nearbyint(top) : 0;
    }
  }
};

// A strip of scores on its way.
struct Strip {
  int64_t base = 0;             // its first key
  int first = 0, last = 0;      // halves of 32 keys that some row sees
  float *scores = nullptr;      // [row][64]
  uint64_t *visible = nullptr;  // of each row
  bool all = true;              // all rows see all keys of these halves
  bool bounded = true;          // scores are known to be finite and small
};

// A piece of work that others interrupt: `run` does some rows at a time.
template <class Row>
class RowByRow {
 public:
  RowByRow(Row row, int rows) : row_(row), left_(rows) {}

  // Spreads the rows over so many calls of run().
  REGARD_INLINE void spread(int64_t pauses) {
    if (pauses) rate_ = left_ * kWhole / pauses;
  }
  REGARD_INLINE void run() {
    credit_ += rate_;
    while (credit_ >= kWhole) {
      credit_ -= kWhole;
      step();
    }
  }
  REGARD_INLINE void finish() {
    while (left_ > 0) step();
    row_.done();
  }

 private:
  static constexpr int64_t kWhole = 1 << 16;

  REGARD_INLINE void step() {
    row_.next();
    --left_;
  }

  Row row_;
  int64_t left_, rate_ = 0, credit_ = 0;
};

struct NoRow {
  REGARD_INLINE void next() {}
  REGARD_INLINE void done() {}
};

// Where weights of a row go: half by half, whole tiles.
REGARD_INLINE uint16_t *weights_of_row(uint16_t *to, int row, int half, int width) {
  return to + (half * width + row) * kDepth;
}

// Sums of pairs of bfloat16.
REGARD_INLINE F sum_of_pairs(__m512i pairs) { return even_of(pairs) + odd_of(pairs); }

// The rows of biases of a block, and how far apart elements are; 0: all of a row are the same.
struct BiasRows {
  const char *rows[kBlockRows];
  int64_t size, step;  // bytes of an element, and to the next one
  bool wide;           // elements are float32
};

// Weights of a row without dropout and soft cap. kQuick: by powers_of_steps(), where nobody asks
// for more than bfloat16. kMasked: some keys may be hidden. kFree: scores may be of any size, and
// have biases, if there are any.
template <bool kQuick, bool kMasked, bool kFree>
class InnerRow {
 public:
  InnerRow(StripSums &sums, const Strip &strip, const BiasRows *bias, float scale, uint16_t *to,
           int width)
      : block_(&sums),
        scores_(strip.scores + strip.first * kDepth),
        shift_(sums.shift),
        visible_(strip.visible),
        to_(to),
        half_(width * kDepth),
        hide_(strip.first * kDepth),
        halves_(strip.last - strip.first),
        unit_(broadcast(sums.unit)),
        wild_(_mm512_setzero_si512()) {
    if (!kFree || !bias) return;
    bias_ = bias;
    at_ = (strip.base + strip.first * kDepth) * bias->size;
    scale_ = broadcast(scale);
  }

  REGARD_INLINE void next() {
    const F shift = broadcast(shift_[row_] + (kQuick ? kStepsBias : 0.f));
    const uint64_t seen = kMasked ? visible_[row_] >> hide_ : 0;
    float *sum = block_->sum + row_ * 16;
    F total = load(sum), rounded = broadcast(0.f);
    half<0>(shift, seen, &total, &rounded);
    if (!kMasked || halves_ > 1) half<1>(shift, seen, &total, &rounded);
    store(sum, total);
    if (!kQuick) {
      float *upper = block_->rounded + row_ * 16;
      store(upper, load(upper) + rounded);
    }
    scores_ += kStripKeys;
    to_ += kDepth;
    ++row_;
  }
  REGARD_INLINE void done() {
    if (!kQuick || !kFree) return;
    _mm512_store_si512(block_->wild, _mm512_or_si512(wild_, _mm512_load_si512(block_->wild)));
  }

 private:
  template <int kHalf>
  REGARD_INLINE void half(F shift, uint64_t seen, F *total, F *rounded) {
    __m512i bits[2];
    F low = scaled<kHalf, 0>(shift), high = scaled<kHalf, 1>(shift);
    const auto first = static_cast<__mmask16>(seen >> (kHalf * kDepth));
    const auto second = static_cast<__mmask16>(seen >> (kHalf * kDepth + 16));
    uint16_t *to = to_ + kHalf * half_;
    if constexpr (kQuick) {
      bits[0] = counted(low, first);
      bits[1] = counted(high, second);
      const __m512i pairs = powers_of_steps(bits[0], bits[1]);
      _mm512_store_si512(to, pairs);
      *total = *total + sum_of_pairs(pairs);
    } else {
      low = short_exp2(low);
      high = short_exp2(high);
      if (kMasked) {
        low = {_mm512_maskz_mov_ps(first, low.v)};
        high = {_mm512_maskz_mov_ps(second, high.v)};
      }
      *total = *total + (low + high);
      *rounded = *rounded + (truncate(low) + truncate(high));
      _mm512_store_si512(to, upper_pairs(_mm512_castps_si512(low.v), _mm512_castps_si512(high.v)));
    }
  }

  template <int kHalf, int kPart>
  REGARD_INLINE F scaled(F shift) const {
    constexpr int kAt = kHalf * kDepth + kPart * 16;
    F score = load(scores_ + kAt);
    if (kFree && bias_) score = biased<float>(score, scale_, bias<kAt>());
    return fma(score, unit_, shift);
  }

  template <int kAt>
  REGARD_INLINE F bias() const {
    const char *row = bias_->rows[row_];
    if (!bias_->step) {
      return bias_->wide ? broadcast(*reinterpret_cast<const float *>(row))
                         : even_of(_mm512_set1_epi16(*reinterpret_cast<const short *>(row)));
    }
    row += at_ + kAt * bias_->size;
    // Rows are too far apart for the processor to see a stream in them.
    __builtin_prefetch(row + 2 * kStripKeys * bias_->size);
    return bias_->wide ? load(reinterpret_cast<const float *>(row))
                       : load_bfloat16(reinterpret_cast<const uint16_t *>(row), 16);
  }

  // Steps; hidden ones are 0. None is below the first step, which makes 0. NaN stays.
  REGARD_INLINE __m512i counted(F steps, __mmask16 seen) {
    constexpr int kFirstOrOthersDiffer = 0xf6;
    if (kFree) {
      const F from = broadcast(kStepsFrom);
      steps = max(from, steps);
      if (kMasked) steps = select(seen, steps, from);
      wild_ = _mm512_ternarylogic_epi32(wild_, _mm512_castps_si512(steps.v),
                                        _mm512_castps_si512(from.v), kFirstOrOthersDiffer);
    } else if (kMasked) {
      steps = {_mm512_maskz_mov_ps(seen, steps.v)};
    }
    return _mm512_castps_si512(steps.v);
  }

  StripSums *block_;
  const float *scores_, *shift_;
  const uint64_t *visible_;
  const BiasRows *bias_ = nullptr;
  uint16_t *to_;
  int64_t half_, at_ = 0;
  int row_ = 0, hide_, halves_;
  F unit_, scale_;
  __m512i wild_;
};

// What else there may be: soft caps, dropout, biases at the end of a row.
class AnyRow {
 public:
  AnyRow(const regard_problem &p, const Rows<float> &rows, const Dropout<float> *dropout,
         StripSums &sums, const Strip &strip, uint16_t *to, bool quick)
      : p_(p), rows_(rows), dropout_(dropout), sums_(sums), strip_(strip), to_(to), quick_(quick) {}

  // The weights of the next row.
  REGARD_INLINE void next() { weigh(row_++); }
  REGARD_INLINE void done() {}

  // Its largest scores, instead.
  REGARD_NOINLINE void rank(int row) const {
    F top = load(sums_.largest + row * 16);
    for (int half = strip_.first; half < strip_.last; ++half) {
      F x[2];
      scores(row, half, x);
      for (int i = 0; i < 2; ++i) {
        const F seen = select(visible(row, half, i), x[i], broadcast(-kInfinity<float>));
        top = max(seen, top);
      }
    }
    store(sums_.largest + row * 16, top);
  }

 private:
  REGARD_NOINLINE void weigh(int row) const {
    for (int half = strip_.first; half < strip_.last; ++half) {
      F x[2];
      scores(row, half, x);
      uint16_t *to = weights_of_row(to_, row, half - strip_.first, rows_.width);
      const F unit = broadcast(sums_.unit);
      if (quick_) {
        quick(row, half, x, unit, to);
      } else {
        exact(row, half, x, unit, to);
      }
    }
  }

  REGARD_INLINE __mmask16 visible(int row, int half, int i) const {
    return strip_.all ? 0xffff
                      : static_cast<__mmask16>(strip_.visible[row] >> (half * kDepth + i * 16));
  }

  // Scores of 2 x 16 keys as they are to be multiplied by unit.
  REGARD_INLINE void scores(int row, int half, F x[2]) const {
    for (int i = 0; i < 2; ++i) {
      const int64_t at = half * kDepth + i * 16;
      x[i] = load(strip_.scores + row * kStripKeys + at);
    }
    if (plain(p_)) return;
    F factor = broadcast(static_cast<float>(fabs(p_.scale)));
    if (p_.softcap > 0) {
      const F cap = broadcast(static_cast<float>(p_.softcap));
      const F per_cap = broadcast(static_cast<float>(fabs(p_.scale) / p_.softcap));
      for (int i = 0; i < 2; ++i) x[i] = cap * tanh(x[i] * per_cap);
      factor = broadcast(1.f);
    }
    if (!p_.bias.data) return;
    const regard_grid &b = p_.bias;
    const int64_t first = strip_.base + half * kDepth, size = element_size(p_.bias_dtype);
    const int64_t row_at = rows_.batch * b.batch_stride + rows_.head[row] * b.head_stride +
                           rows_.query[row] * b.query_stride;
    const auto *from = static_cast<const char *>(b.data) + row_at * size;
    if (!b.key_stride) {
      const F all = widen<float>(from, 1, p_.bias_dtype);
      const F same = {_mm512_broadcastss_ps(_mm512_castps512_ps128(all.v))};
      for (int i = 0; i < 2; ++i) x[i] = biased<float>(x[i], factor, same);
      return;
    }
    for (int i = 0; i < 2; ++i) {
      const int64_t key = first + i * 16, there = std::max<int64_t>(p_.keys - key, 0);
      const char *at = from + std::min(key, p_.keys) * size;
      x[i] = biased<float>(x[i], factor,
                           widen<float>(at, std::min<int64_t>(there, 16), p_.bias_dtype));
      // Rows are too far apart for the processor to see a stream in them.
      __builtin_prefetch(at + 2 * kStripKeys * size);
    }
  }

  REGARD_INLINE void quick(int row, int half, const F x[2], F unit, uint16_t *to) const {
    constexpr int kFirstOrOthersDiffer = 0xf6;
    const F shift = broadcast(sums_.shift[row] + kStepsBias), from = broadcast(kStepsFrom);
    __m512i wild = _mm512_load_si512(sums_.wild), steps[2];
    for (int i = 0; i < 2; ++i) {
      // None below the first step, which makes 0. NaN stays.
      const F counted = select(visible(row, half, i), max(from, fma(x[i], unit, shift)), from);
      steps[i] = _mm512_castps_si512(counted.v);
      wild = _mm512_ternarylogic_epi32(wild, steps[i], _mm512_castps_si512(from.v),
                                       kFirstOrOthersDiffer);
    }
    _mm512_store_si512(sums_.wild, wild);
    const __m512i pairs = powers_of_steps(steps[0], steps[1]);
    _mm512_store_si512(to, pairs);
    store(sums_.sum + row * 16, load(sums_.sum + row * 16) + sum_of_pairs(pairs));
  }

  REGARD_INLINE void exact(int row, int half, const F x[2], F unit, uint16_t *to) const {
    const F shift = broadcast(sums_.shift[row]), hidden = broadcast(-kInfinity<float>);
    F w[2];
    for (int i = 0; i < 2; ++i) {
      w[i] = short_exp2(select(visible(row, half, i), fma(x[i], unit, shift), hidden));
    }
    store(sums_.sum + row * 16, load(sums_.sum + row * 16) + (w[0] + w[1]));
    if (dropout_) {
      alignas(64) float factors[kDepth];
      dropout_->fill_row(row, strip_.base + half * kDepth, kDepth, factors);
      w[0] = w[0] * load(factors);
      w[1] = w[1] * load(factors + 16);
      _mm512_store_si512(to, pair_bfloat16(w[0], w[1]));
      return;
    }
    store(sums_.rounded + row * 16,
          load(sums_.rounded + row * 16) + (truncate(w[0]) + truncate(w[1])));
    _mm512_store_si512(to, upper_pairs(_mm512_castps_si512(w[0].v), _mm512_castps_si512(w[1].v)));
  }

  const regard_problem &p_;
  const Rows<float> &rows_;
  const Dropout<float> *dropout_;  // null: none
  StripSums &sums_;
  const Strip &strip_;
  uint16_t *to_;
  bool quick_;
  int row_ = 0;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
