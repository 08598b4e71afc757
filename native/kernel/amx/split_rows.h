// Rows of queries, keys, values and gradients of outputs as the products of the backward want them:
// split into parts once, then laid out in each of the ways that are needed. Split rows are
// [row][part][depth], zeros up to whole tiles: the left side of products over elements.
#ifndef REGARD_KERNEL_AMX_SPLIT_ROWS_H
#define REGARD_KERNEL_AMX_SPLIT_ROWS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Rows [first, last) of one head, then zeros up to `whole` rows.
template <int kParts>
inline void split_rows(const regard_array &a, int dtype, int64_t batch, int64_t head, int64_t first,
                       int64_t last, int64_t whole, int64_t size, int64_t depth, uint16_t *to) {
  for (int64_t i = 0; i < whole; ++i) {
    const bool there = first + i < last;
    const void *row = row_of(a, dtype, batch, head, there ? first + i : first);
    copy_padded<kParts>(row, there ? size : 0, dtype, to + i * kParts * depth, depth);
  }
}

// The right side of products over elements: [part][pair of elements][row].
template <int kParts>
inline void pair_elements(const uint16_t *split, int64_t rows, int64_t depth, uint16_t *to) {
  // Moving bits about: the type does not matter.
  const int64_t pairs = depth / 2;
  const auto *from = reinterpret_cast<const float *>(split);
  for (int64_t i = 0; i < kParts; ++i) {
    transpose(from + i * pairs, kParts * pairs, reinterpret_cast<float *>(to) + i * pairs * rows,
              rows, rows, pairs);
  }
}

// The right side of products over rows: [part][pair of rows][element], for `size` elements (a
// multiple of kTileRows); parts lie `part` apart.
template <int kParts>
inline void pair_rows(const uint16_t *split, int64_t rows, int64_t depth, int64_t size,
                      int64_t part, uint16_t *to) {
  const __m512i low = pair_order(0), high = pair_order(16);
  for (int64_t r = 0; r < rows; r += 2) {
    for (int64_t i = 0; i < kParts; ++i) {
      const uint16_t *row = split + (r * kParts + i) * depth;
      for (int64_t d = 0; d < size; d += kDepth) {
        const __m512i x = _mm512_loadu_si512(row + d);
        const __m512i y = _mm512_loadu_si512(row + kParts * depth + d);
        uint16_t *pairs = to + i * part + r * size + 2 * d;
        _mm512_storeu_si512(pairs, _mm512_permutex2var_epi16(x, low, y));
        if (d + kTileRows >= size) continue;
        _mm512_storeu_si512(pairs + kDepth, _mm512_permutex2var_epi16(x, high, y));
      }
    }
  }
}

// The left side of products over rows, of kDepth rows: [part][element][row]. `pairs` holds as much.
template <int kParts>
inline void turn_rows(const uint16_t *split, int64_t depth, int64_t size, uint16_t *pairs,
                      uint16_t *to) {
  pair_rows<kParts>(split, kDepth, depth, size, kDepth * size, pairs);
  for (int64_t i = 0; i < kParts; ++i) {
    const int64_t at = i * kDepth * size;
    transpose(reinterpret_cast<const float *>(pairs + at), size, reinterpret_cast<float *>(to + at),
              kTileRows, kTileRows, size);
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
