// Queries, keys and values as the matrix unit wants them, padded with zeros to whole tiles. Scores
// are computed transposed, keys x queries, so that a query is a lane: keys are the left side as they
// lie, queries the right side. Outputs come transposed too: values, transposed, are the left side.
#ifndef REGARD_KERNEL_AMX_PACK_H
#define REGARD_KERNEL_AMX_PACK_H

namespace regard {
namespace REGARD_NAMESPACE {

// Depth of a tile: elements of a row of the left side.
constexpr int64_t kDepth = kTileBytes / sizeof(uint16_t);

// Sizes of one head's packed keys [key][depth] and values [key / 32][value size][32 keys].
struct PackedShape {
  int64_t keys, depth, width;

  explicit PackedShape(const regard_problem &p)
      : keys(round_up(p.keys, kDepth)),
        depth(round_up(p.head_size, kDepth)),
        width(round_up(p.value_size, kTileRows)) {}
  int64_t key_count() const { return keys * depth; }
  int64_t value_count() const { return keys * width; }
};

REGARD_INLINE void copy_padded(const uint16_t *from, int64_t size, uint16_t *to, int64_t padded) {
  for (int64_t d = 0; d < padded; d += kDepth) {
    const int64_t n = std::max<int64_t>(0, std::min(kDepth, size - d));
    const __mmask32 there = n == kDepth ? ~0u : (1u << n) - 1;
    _mm512_storeu_si512(to + d, _mm512_maskz_loadu_epi16(there, from + d));
  }
}

// Squares of the lengths of 16 rows of `depth` elements.
REGARD_INLINE F square_lengths(const uint16_t *rows, int64_t depth) {
  F parts[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < depth; d += kDepth) {
      const auto x = (__m512bh)_mm512_loadu_si512(rows + i * depth + d);
      sum = _mm512_dpbf16_ps(sum, x, x);
    }
    parts[i] = {sum};
  }
  return sum_each<float>(parts);
}
REGARD_INLINE float largest(F a) { return _mm512_reduce_max_ps(a.v); }

// Keys [first, last) of one head; `first` is a multiple of kDepth. Returns the square of the length
// of the longest, NaN left out.
inline float pack_keys(const regard_problem &p, int64_t batch, int64_t head, int64_t first,
                       int64_t last, uint16_t *to) {
  const PackedShape shape(p);
  F longest = broadcast(0.f);
  for (int64_t j = first; j < round_up(last, kDepth); ++j) {
    const bool there = j < p.keys;
    const void *row = row_of(p.key, REGARD_BFLOAT16, batch, head, there ? j : 0);
    copy_padded(static_cast<const uint16_t *>(row), there ? p.head_size : 0, to + j * shape.depth,
                shape.depth);
    if (j % 16 == 15) {
      longest = max(square_lengths(to + (j - 15) * shape.depth, shape.depth), longest);
    }
  }
  return largest(longest);
}

inline void pack_values(const regard_problem &p, int64_t batch, int64_t head, int64_t first,
                        int64_t last, uint16_t *to) {
  const PackedShape shape(p);
  alignas(64) uint32_t pairs[16][16];
  for (int64_t j = first; j < last; j += kDepth) {
    for (int64_t e = 0; e < shape.width; e += kTileRows) {
      const __mmask16 columns = first16(p.value_size - e);
      for (int64_t i = 0; i < kDepth; ++i) {
        const bool there = j + i < p.keys;
        const auto *row = static_cast<const uint16_t *>(
            row_of(p.value, REGARD_BFLOAT16, batch, head, there ? j + i : 0));
        const __m512i half = _mm512_cvtepu16_epi32(
            _mm256_maskz_loadu_epi16(there ? columns : __mmask16{0}, row + e));
        const __m512i other = _mm512_slli_epi32(half, 16);
        uint32_t *pair = pairs[i / 2];
        const __m512i old = _mm512_load_si512(pair);
        _mm512_store_si512(pair, i % 2 ? _mm512_or_si512(old, other) : half);
      }
      // Moving bits about: the type does not matter.
      auto *tile = reinterpret_cast<float *>(to + j * shape.width + e * kDepth);
      transpose_square(reinterpret_cast<const float *>(pairs), 16, tile, 16);
    }
  }
}

// Pairs of a query's elements to [pair][row], for the rows of a block. `staging` holds 16 padded
// queries. Returns the square of the length of the longest, NaN left out.
inline float pack_queries(const regard_problem &p, const Rows<float> &rows, uint16_t *staging,
                          uint16_t *to) {
  const int64_t depth = PackedShape(p).depth;
  auto *pairs = reinterpret_cast<float *>(to);
  F longest = broadcast(0.f);
  for (int r = 0; r < rows.width; r += kTileRows) {
    for (int i = 0; i < kTileRows; ++i) {
      const void *row =
          row_of(p.query, REGARD_BFLOAT16, rows.batch, rows.head[r + i], rows.query[r + i]);
      copy_padded(static_cast<const uint16_t *>(row), p.head_size, staging + i * depth, depth);
    }
    longest = max(square_lengths(staging, depth), longest);
    for (int64_t d = 0; d < depth / 2; d += kTileRows) {
      transpose_square(reinterpret_cast<const float *>(staging) + d, depth / 2,
                       pairs + d * rows.width + r, rows.width);
    }
  }
  return largest(longest);
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
