// Queries, keys and values as the matrix unit wants them, padded with zeros to whole tiles. Scores
// are computed transposed, keys x queries, so that a query is a lane: keys are the left side as
// they lie, queries the right side. Outputs come transposed too: values, transposed, are the left
// side.
#ifndef REGARD_KERNEL_AMX_PACK_H
#define REGARD_KERNEL_AMX_PACK_H

namespace regard {
namespace REGARD_NAMESPACE {

// Depth of a tile: elements of a row of the left side.
constexpr int64_t kDepth = kTileBytes / sizeof(uint16_t);

// Keys that are packed at a time.
constexpr int64_t kSlice = 512;

// Sizes of one head's packed keys [key][depth] and values [key / 32][value size][32 keys].
struct PackedShape {
  int64_t keys, depth, width;

  explicit PackedShape(const regard_problem &p)
      : keys(round_up(p.keys, kDepth)),
        depth(round_up(p.head_size, kDepth)),
        width(round_up(p.value_size, kTileRows)) {}
  int64_t key_count() const { return keys * depth; }
  int64_t value_count() const { return keys * width; }
  int64_t slices() const { return (keys + kSlice - 1) / kSlice; }
};

// n elements at `from`, then zeros up to kDepth.
REGARD_INLINE __m512i load_elements(const uint16_t *from, int64_t n) {
  if (n >= kDepth) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi16((1u << std::max<int64_t>(n, 0)) - 1, from);
}

// Where _mm512_permutex2var_epi16 finds elements first, first + 1, … of two vectors, interleaved.
REGARD_INLINE __m512i pair_order(int first) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_add_epi16(order, _mm512_set1_epi16(static_cast<short>(first)));
}

REGARD_INLINE void copy_padded(const uint16_t *from, int64_t size, uint16_t *to, int64_t padded) {
  for (int64_t d = 0; d < padded; d += kDepth) {
    _mm512_storeu_si512(to + d, load_elements(from + d, size - d));
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
inline float largest(F a) {
  float lanes[kLanes<float>];
  store(lanes, a);
  return *std::max_element(lanes, lanes + kLanes<float>);
}

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
  const __m512i low = pair_order(0), high = pair_order(16);
  alignas(64) float pairs[2][16][16];
  for (int64_t j = first; j < last; j += kDepth) {
    for (int64_t e = 0; e < shape.width; e += kDepth) {
      for (int64_t i = 0; i < kDepth; i += 2) {
        __m512i rows[2];
        for (int64_t k = 0; k < 2; ++k) {
          const bool there = j + i + k < p.keys;
          const void *row = row_of(p.value, REGARD_BFLOAT16, batch, head, there ? j + i + k : 0);
          rows[k] =
              load_elements(static_cast<const uint16_t *>(row) + e, there ? p.value_size - e : 0);
        }
        _mm512_store_si512(pairs[0][i / 2], _mm512_permutex2var_epi16(rows[0], low, rows[1]));
        _mm512_store_si512(pairs[1][i / 2], _mm512_permutex2var_epi16(rows[0], high, rows[1]));
      }
      // Moving bits about: the type does not matter.
      for (int64_t k = 0; k < 2 && e + k * kTileRows < shape.width; ++k) {
        auto *tile = reinterpret_cast<float *>(to + j * shape.width + (e + k * kTileRows) * kDepth);
        transpose_square(pairs[k][0], 16, tile, 16);
      }
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
