// What is left of a tile of scores when it has gone by: its weights, not normalised, and for each
// row sums of them. Each tile has pivots of its own, its largest scores rounded to whole powers of
// 2, so that nothing ever has to be rescaled, and the weights that count are near 1.
#ifndef REGARD_KERNEL_AMX_TALLY_H
#define REGARD_KERNEL_AMX_TALLY_H

namespace regard {
namespace REGARD_NAMESPACE {

// Keys of a tile at most, and of the parts whose largest scores are kept; rows of a block.
constexpr int64_t kTallyKeys = 64, kPartKeys = 16;
constexpr int kTallyRows = 32, kTallyParts = kTallyKeys / kPartKeys;

struct Tally {
  int64_t begin, count;  // keys [begin, begin + count)
  float *weights;        // 2^(unit * score - pivot), [key][row]
  alignas(
      64) float largest[kTallyParts][kTallyRows];  // scores of each part; -inf where there are none
  float pivot[kTallyRows];                         // whole; 0 where nothing is seen
  float sum[kTallyRows], behind[kTallyRows];       // `behind`: of all sums so far, key after key
  float logarithms[kTallyRows], squares[kTallyRows];  // p log2 p and p^2

  // Where scores of a whole tile are to be written.
  float *scores() { return tile_; }

  F most(int r) const {
    return max(max(load(largest[0] + r), load(largest[1] + r)),
               max(load(largest[2] + r), load(largest[3] + r)));
  }

  // The scores of keys [first, last) of the tile that starts with key `base` become weights.
  // `some`: there may be -inf among them.
  // `ahead` is written next: what waits for a line of memory would make tiles wait.
  REGARD_NOINLINE void take(int64_t base, int64_t first, int64_t last, int width, float unit,
                            bool some, const Tally &ahead) {
    begin = first;
    count = last - first;
    weights = tile_ + (first - base) * width;
    for (int r = 0; r < width; r += kLanes<float>) {
      look(width, r);
      if (some) {
        weigh<true>(width, unit, r, ahead.tile_ + r);
      } else {
        weigh<false>(width, unit, r, ahead.tile_ + r);
      }
    }
  }

 private:
  REGARD_INLINE void look(int width, int r) {
    const float *scores = weights + r;
    for (int part = 0; part < kTallyParts; ++part) {
      const int64_t last = std::min(count, (part + 1) * kPartKeys);
      F top[2] = {broadcast(-kInfinity<float>), broadcast(-kInfinity<float>)};
      int64_t j = part * kPartKeys;
      for (; j + 2 <= last; j += 2) {
        top[0] = max(load(scores + j * width), top[0]);
        top[1] = max(load(scores + (j + 1) * width), top[1]);
      }
      if (j < last) top[0] = max(load(scores + j * width), top[0]);
      store(largest[part] + r, max(top[0], top[1]));
    }
  }

  template <bool kSome>
  REGARD_INLINE void weigh(int width, float unit_of_scores, int r, const float *ahead) {
    const F zero = broadcast(0.f), unit = broadcast(unit_of_scores), top = most(r) * unit;
    const F at = select(less(broadcast(-kInfinity<float>), top), whole(top), zero);
    const F shift = zero - at, least = broadcast(kLeast);
    store(pivot + r, at);
    F total = zero, totals = zero, logarithm = zero, square = zero;
    float *values = weights + r;
    for (int64_t j = 0; j < count; ++j) {
      F power = fma(load(values + j * width), unit, shift);
      const F weight = exp2(power);
      __builtin_prefetch(ahead + j * width, 1);
      store(values + j * width, weight);
      // A weight that is 0 has no logarithm: 0 * kLeast is 0 all the same.
      if (kSome) power = max(power, least);
      total = total + weight;
      totals = totals + total;
      logarithm = fma(weight, power, logarithm);
      square = fma(weight, weight, square);
    }
    store(sum + r, total);
    store(behind + r, totals);
    store(logarithms + r, logarithm);
    store(squares + r, square);
  }

  static constexpr float kLeast = -2000;

  alignas(64) float tile_[kTallyKeys * kTallyRows];
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
