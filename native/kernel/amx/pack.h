// Queries, keys and values as the matrix unit wants them, padded with zeros to whole tiles. Scores
// are computed transposed, keys x queries, so that a query is a lane: keys are the left side as
// they lie, queries the right side. Outputs come transposed too: values, transposed, are the left
// side. Where elements are sums of parts, each part is a matrix of its own.
#ifndef REGARD_KERNEL_AMX_PACK_H
#define REGARD_KERNEL_AMX_PACK_H

namespace regard {
namespace REGARD_NAMESPACE {

// Keys that are packed at a time.
constexpr int64_t kSlice = 512;

// Sizes of one head's packed keys [key][part][depth] and values [key / 32][part][value size][32
// keys].
struct PackedShape {
  int64_t parts, keys, depth, width;

  explicit PackedShape(const regard_problem &p, int parts_of_elements = 1)
      : parts(parts_of_elements),
        keys(round_up(p.keys, kDepth)),
        depth(round_up(p.head_size, kDepth)),
        width(round_up(p.value_size, kTileRows)) {}
  int64_t key_count() const { return keys * key_row(); }
  int64_t value_count() const { return keys * value_row(); }
  int64_t key_row() const { return parts * depth; }
  int64_t value_row() const { return parts * width; }
  int64_t slices() const { return (keys + kSlice - 1) / kSlice; }
};

// Where _mm512_permutex2var_epi16 finds elements first, first + 1, … of two vectors, interleaved.
REGARD_INLINE __m512i pair_order(int first) {
  const __m512i order = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40,
                                         8, 39, 7, 38, 6, 37, 5, 36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  return _mm512_add_epi16(order, _mm512_set1_epi16(static_cast<short>(first)));
}

// A row as [part][padded].
template <int kParts>
REGARD_INLINE void copy_padded(const void *from, int64_t size, int dtype, uint16_t *to,
                               int64_t padded) {
  const char *row = static_cast<const char *>(from);
  for (int64_t d = 0; d < padded; d += kDepth) {
    const auto parts = load_parts<kParts>(row + d * element_size(dtype), size - d, dtype);
    for (int i = 0; i < kParts; ++i) _mm512_storeu_si512(to + i * padded + d, parts.part[i]);
  }
}

// Squares of the lengths of 16 rows of `depth` elements, `stride` apart.
REGARD_INLINE F square_lengths(const uint16_t *rows, int64_t stride, int64_t depth) {
  F parts[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {
    __m512 sum = _mm512_setzero_ps();
    for (int64_t d = 0; d < depth; d += kDepth) {
      const auto x = (__m512bh)_mm512_loadu_si512(rows + i * stride + d);
      sum = _mm512_dpbf16_ps(sum, x, x);
    }
    parts[i] = {sum};
  }
  return sum_each<float>(parts);
}
// The larger of numbers that are not negative; NaN is larger than all others.
REGARD_INLINE F longer(F a, F b) {
  return {
      _mm512_castsi512_ps(_mm512_max_epu32(_mm512_castps_si512(a.v), _mm512_castps_si512(b.v)))};
}
inline float longest_of(F a) {
  uint32_t lanes[kLanes<float>];
  memcpy(lanes, &a, sizeof lanes);
  float longest;
  memcpy(&longest, std::max_element(lanes, lanes + kLanes<float>), sizeof longest);
  return longest;
}

// Keys [first, last) of one head; `first` is a multiple of kDepth. Returns the square of the length
// of the longest, lower parts left out; NaN if there is one.
template <int kParts>
inline float pack_keys(const regard_problem &p, int64_t batch, int64_t head, int64_t first,
                       int64_t last, uint16_t *to) {
  const PackedShape shape(p, kParts);
  const int64_t stride = shape.key_row();
  F longest = broadcast(0.f);
  for (int64_t j = first; j < round_up(last, kDepth); ++j) {
    const bool there = j < p.keys;
    const void *row = row_of(p.key, p.dtype, batch, head, there ? j : 0);
    copy_padded<kParts>(row, there ? p.head_size : 0, p.dtype, to + j * stride, shape.depth);
    if (j % 16 == 15) {
      longest = longer(square_lengths(to + (j - 15) * stride, stride, shape.depth), longest);
    }
  }
  return longest_of(longest);
}

template <int kParts>
inline void pack_values(const regard_problem &p, int64_t batch, int64_t head, int64_t first,
                        int64_t last, uint16_t *to) {
  const PackedShape shape(p, kParts);
  const __m512i low = pair_order(0), high = pair_order(16);
  alignas(64) float pairs[kParts][2][16][16];
  for (int64_t j = first; j < last; j += kDepth) {
    for (int64_t e = 0; e < shape.width; e += kDepth) {
      for (int64_t i = 0; i < kDepth; i += 2) {
        Parts<kParts> rows[2];
        for (int64_t k = 0; k < 2; ++k) {
          const bool there = j + i + k < p.keys;
          const void *row = row_of(p.value, p.dtype, batch, head, there ? j + i + k : 0);
          rows[k] = load_parts<kParts>(static_cast<const char *>(row) + e * element_size(p.dtype),
                                       there ? p.value_size - e : 0, p.dtype);
        }
        for (int n = 0; n < kParts; ++n) {
          const __m512i x = rows[0].part[n], y = rows[1].part[n];
          _mm512_store_si512(pairs[n][0][i / 2], _mm512_permutex2var_epi16(x, low, y));
          _mm512_store_si512(pairs[n][1][i / 2], _mm512_permutex2var_epi16(x, high, y));
        }
      }
      // Moving bits about: the type does not matter.
      for (int n = 0; n < kParts; ++n) {
        uint16_t *rows = to + j * shape.value_row() + (n * shape.width + e) * kDepth;
        for (int64_t k = 0; k < 2 && e + k * kTileRows < shape.width; ++k) {
          auto *tile = reinterpret_cast<float *>(rows + k * kTileRows * kDepth);
          transpose_square(pairs[n][k][0], 16, tile, 16);
        }
      }
    }
  }
}

// Pairs of a query's elements to [part][pair][row], for the rows of a block. Returns the square of
// the length of the longest, lower parts left out; NaN if there is one.
template <int kParts>
inline float pack_queries(const regard_problem &p, const Rows<float> &rows, uint16_t *to) {
  const int64_t depth = PackedShape(p).depth;
  auto *pairs = reinterpret_cast<float *>(to);
  F longest = broadcast(0.f);
  for (int r = 0; r < rows.width; r += kTileRows) {
    const char *from[kTileRows];
    for (int i = 0; i < kTileRows; ++i) {
      from[i] = static_cast<const char *>(
          row_of(p.query, p.dtype, rows.batch, rows.head[r + i], rows.query[r + i]));
    }
    __m512 lengths = _mm512_setzero_ps();  // a query in each lane
    for (int64_t d = 0; d < depth; d += kDepth) {
      F square[kParts][kTileRows];
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        const char *at = from[i] + d * element_size(p.dtype);
        const auto parts = load_parts<kParts>(at, p.head_size - d, p.dtype);
        for (int n = 0; n < kParts; ++n) square[n][i] = {_mm512_castsi512_ps(parts.part[n])};
      }
#pragma GCC unroll 3
      for (int n = 0; n < kParts; ++n) {
        transpose_registers<float>(square[n]);
        float *at = pairs + (n * depth + d) / 2 * rows.width + r;
#pragma GCC unroll 16
        for (int i = 0; i < kTileRows; ++i) {
          const F pair = square[n][i];
          store(at + i * rows.width, pair);
          if (n == 0) lengths = _mm512_dpbf16_ps(lengths, (__m512bh)pair.v, (__m512bh)pair.v);
        }
      }
    }
    longest = longer(F{lengths}, longest);
  }
  return longest_of(longest);
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
