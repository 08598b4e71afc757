// Dropout: a counter-based generator, so that forward, backward and every backend drop the same
// weights. All arithmetic wraps.
//
//   mix64(x):   x ^= x >> 30; x *= 0xBF58476D1CE4E5B9; x ^= x >> 27; x *= 0x94D049BB133111EB;
//               x ^= x >> 31                                        (splitmix64's finaliser)
//   fmix32(x):  x ^= x >> 16; x *= 0x85EBCA6B; x ^= x >> 13; x *= 0xC2B2AE35; x ^= x >> 16
//                                                                   (murmur3's finaliser)
//   z  = mix64(mix64(seed) + (b * H + h) * 0x9E3779B97F4A7C15)      for batch b and query head h
//   r  = mix64(z + i * 0x9E3779B97F4A7C15)                          for query i
//   u  = fmix32(fmix32(j ^ low32(r)) + high32(r))                   for key j
//
// The weight of (b, h, i, j) is dropped if u < floor(p * 2^32), and multiplied by 1 / (1 - p) if
// not.
#ifndef REGARD_KERNEL_DROPOUT_H
#define REGARD_KERNEL_DROPOUT_H

namespace regard {
namespace REGARD_NAMESPACE {

REGARD_INLINE uint64_t mix64(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}
REGARD_INLINE uint32_t fmix32(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x85EBCA6B;
  x = (x ^ (x >> 13)) * 0xC2B2AE35;
  return x ^ (x >> 16);
}

REGARD_INLINE uint64_t row_key(const regard_problem &p, int64_t batch, int64_t head,
                               int64_t query) {
  constexpr uint64_t step = 0x9E3779B97F4A7C15;
  const uint64_t index = static_cast<uint64_t>(batch * p.heads + head);
  const uint64_t z = mix64(mix64(p.dropout_seed) + index * step);
  return mix64(z + static_cast<uint64_t>(query) * step);
}
REGARD_INLINE uint32_t drop_below(const regard_problem &p) {
  return static_cast<uint32_t>(p.dropout * 4294967296.0);
}
// What one weight is multiplied by.
template <class T>
REGARD_INLINE T dropout_factor(uint64_t key, uint32_t j, uint32_t below, T kept) {
  const uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
  return fmix32(fmix32(j ^ low) + high) < below ? T(0) : kept;
}

// The factors of a block of rows.
template <class T>
class Dropout {
 public:
  void set(const regard_problem &p, const Rows<T> &rows) {
    width_ = rows.width;
    below_ = drop_below(p);
    kept_ = static_cast<T>(1 / (1 - p.dropout));
    for (int r = 0; r < width_; ++r) {
      const uint64_t key = row_key(p, rows.batch, rows.head[r], rows.query[r]);
      low_[r] = static_cast<uint32_t>(key);
      high_[r] = static_cast<uint32_t>(key >> 32);
    }
  }

  // factors[j][row] for keys begin + j.
  void fill(int64_t begin, int64_t keys, T *factors) const {
    // Copies, lest the compiler fear that factors overlap them.
    const int width = width_;
    const uint32_t below = below_;
    const T kept = kept_;
    for (int64_t j = 0; j < keys; ++j, factors += width) {
      const uint32_t key = static_cast<uint32_t>(begin + j);
      for (int r = 0; r < width; ++r) {
        factors[r] = fmix32(fmix32(key ^ low_[r]) + high_[r]) < below ? T(0) : kept;
      }
    }
  }

  // factors[j] of one row.
  void fill_row(int row, int64_t begin, int64_t keys, T *factors) const {
    const uint32_t below = below_, low = low_[row], high = high_[row];
    const T kept = kept_;
    for (int64_t j = 0; j < keys; ++j) {
      const uint32_t key = static_cast<uint32_t>(begin + j);
      factors[j] = fmix32(fmix32(key ^ low) + high) < below ? T(0) : kept;
    }
  }

 private:
  uint32_t low_[kBlock<T>], high_[kBlock<T>], below_;
  int width_;
  T kept_;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
