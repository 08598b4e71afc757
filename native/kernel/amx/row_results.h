// A block of rows while its strips of keys go by, and what is written when they have gone.
#ifndef REGARD_KERNEL_AMX_ROW_RESULTS_H
#define REGARD_KERNEL_AMX_ROW_RESULTS_H

namespace regard {
namespace REGARD_NAMESPACE {

struct OpenRows {
  int64_t index, batch, key_head;
  Rows<float> rows;
  RowSight sight;
  StripSums sums;
  Dropout<float> dropout;
  BiasRows bias;
  PackedSides packed;  // its own head alone
  uint16_t *queries;
  float length;       // squared, of the longest query
  float *output;      // [row][width]
  bool fresh;         // nothing is in `output` yet
  bool masked;        // some row could not see some key
  bool settled;       // pivots come from the largest scores
  bool swept = true;  // all its strips are on their way
  int strips = 0;     // that are on their way
};

// What became of a block of rows. Of one whose sums are not healthy the largest scores are to be
// looked for. One is spoilt if a row may have come out as NaN that should not: products of tiles
// multiply hidden weights, which are 0, by hidden values, which may be infinite or NaN.
enum class Outcome : uint8_t { kGood, kUnhealthy, kSpoilt };

class RowResults {
 public:
  RowResults(const regard_problem &p, const regard_array &output, float *lse)
      : p_(p), output_(output), lse_(lse), width_(RightSides(p).width) {}

  // Writes a block whose sums are complete.
  Outcome finish(OpenRows &b) const {
    alignas(64) float sums[kBlockRows], factors[kBlockRows];
    const float *used = b.sums.exact ? b.sums.sum : b.sums.rounded;
    for (int r = 0; r < b.rows.width; r += 16) {
      const F zero = broadcast(0.f), total = StripSums::total(used, r);
      store(factors + r, select(differ(total, zero), broadcast(1.f) / total, zero));
      store(sums + r, StripSums::total(b.sums.sum, r));
    }
    if (!healthy(b, sums)) return b.settled ? Outcome::kSpoilt : Outcome::kUnhealthy;
    if (p_.sinks || lse_) add_sinks(b, sums, factors);
    return !output_.data || write(b, factors) ? Outcome::kGood : Outcome::kSpoilt;
  }

 private:
  bool healthy(const OpenRows &b, const float *sums) const {
    bool good = !b.sums.is_wild();
    for (int r = 0; r < b.rows.count; ++r) {
      const bool blind = sums[r] == 0 && (b.settled || !b.sight.saw(r));
      good &= blind || (sums[r] >= kLeastSum && sums[r] <= kMostSum);
    }
    return good;
  }

  // A sink joins the sum.
  void add_sinks(const OpenRows &b, const float *sums, float *factors) const {
    Softmax<float> softmax;
    softmax.unit = 1;
    for (int r = 0; r < b.rows.count; ++r) {
      softmax.pivot[r] = -b.sums.shift[r];
      softmax.sum[r] = sums[r];
      const int64_t h = b.rows.head[r], row = (b.rows.batch * p_.heads + h) * p_.queries;
      float factor, lse;
      normalise<float>(p_, softmax, h, r, &factor, &lse);
      if (lse_) lse_[row + b.rows.query[r]] = lse;
      // Relative to what outputs are divided by.
      if (p_.sinks) factors[r] = factor > 0 ? 1 / (1 / factor + (1 / factors[r] - sums[r])) : 0;
    }
  }

  // Whether all is as it should be.
  bool write(const OpenRows &b, const float *factors) const {
    if (b.fresh) std::fill_n(b.output, width_ * b.rows.width, 0.f);
    F probe = broadcast(0.f);
    for (int r = 0; r < b.rows.count; ++r) {
      const F factor = broadcast(factors[r]);
      const float *from = b.output + r * width_;
      auto *to = static_cast<uint16_t *>(
          row_of(output_, p_.dtype, b.rows.batch, b.rows.head[r], b.rows.query[r]));
      for (int64_t e = 0; e < width_; e += kDepth) {
        const F low = load(from + e) * factor;
        // The last tile may stand alone.
        const F high = e + kTileRows < width_ ? load(from + e + kTileRows) * factor : low;
        probe = fma(low, broadcast(0.f), fma(high, broadcast(0.f), probe));
        const int64_t there = std::min<int64_t>(p_.value_size - e, kDepth);
        const auto both = (__m512i)_mm512_cvtne2ps_pbh(high.v, low.v);
        if (there == kDepth) {
          _mm512_storeu_si512(to + e, both);
        } else {
          _mm512_mask_storeu_epi16(to + e, (1u << there) - 1, both);
        }
      }
    }
    return !b.masked || !any(differ(probe, probe));
  }

  const regard_problem &p_;
  const regard_array &output_;
  float *lse_;
  int64_t width_;  // of rows of outputs until they are written
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
