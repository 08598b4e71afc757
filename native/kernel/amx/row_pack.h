// Keys and values as right sides of products whose left sides are queries and weights as they lie,
// a row each. Both are made of whole tiles, one after another, padded with zeros.
#ifndef REGARD_KERNEL_AMX_ROW_PACK_H
#define REGARD_KERNEL_AMX_ROW_PACK_H

namespace regard {
namespace REGARD_NAMESPACE {

constexpr int64_t kTileElements = kTileRows * kDepth;
// Keys whose scores are made at a time.
constexpr int64_t kStripKeys = 2 * kDepth;

// Sizes of one head's packed keys [16 keys][32 elements] and values [32 keys][16 elements], in
// tiles; the shortest step is a strip of keys.
struct RightSides {
  int64_t keys, depth, width;

  explicit RightSides(const regard_problem &p)
      : keys(round_up(p.keys, kDepth)),
        depth(round_up(p.head_size, kDepth)),
        width(round_up(p.value_size, kTileRows)) {}
  int64_t key_count() const { return keys * depth; }
  int64_t value_count() const { return keys * width; }
  int64_t slices() const { return (keys + kSlice - 1) / kSlice; }
  int64_t strips() const { return (keys + kStripKeys - 1) / kStripKeys; }
};

// Rows from `first` on of one head: element pairs of 16 rows, transposed. Returns the squares of
// their lengths.
inline F pack_key_tiles(const regard_problem &p, int64_t batch, int64_t head, int64_t first,
                        int64_t depth, uint16_t *to) {
  const char *rows[kTileRows];
  for (int i = 0; i < kTileRows; ++i) {
    rows[i] = static_cast<const char *>(
        row_of(p.key, p.dtype, batch, head, std::min(first + i, p.keys - 1)));
  }
  const int64_t there = p.keys - first;
  __m512 lengths = _mm512_setzero_ps();
  for (int64_t d = 0; d < depth; d += kDepth, to += kTileElements) {
    F square[kTileRows];
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      const auto *row = reinterpret_cast<const uint16_t *>(rows[i]) + d;
      square[i] = {_mm512_castsi512_ps(load_elements(row, i < there ? p.head_size - d : 0))};
    }
    transpose_registers<float>(square);
#pragma GCC unroll 16
    for (int i = 0; i < kTileRows; ++i) {
      store(reinterpret_cast<float *>(to) + i * kTileRows, square[i]);
      const auto pairs = (__m512bh)square[i].v;
      lengths = _mm512_dpbf16_ps(lengths, pairs, pairs);
    }
  }
  return {lengths};
}

// Keys [first, last) of one head, `first` a multiple of kStripKeys. lengths[strip]: the square of
// the length of its longest key; NaN if there is one.
inline void pack_right_keys(const regard_problem &p, int64_t batch, int64_t head, int64_t first,
                            int64_t last, uint16_t *to, float *lengths) {
  const RightSides sides(p);
  for (int64_t j = first; j < last; j += kStripKeys) {
    F longest = broadcast(0.f);
    for (int64_t k = j; k < std::min(j + kStripKeys, last); k += kTileRows) {
      longest =
          longer(pack_key_tiles(p, batch, head, k, sides.depth, to + k * sides.depth), longest);
    }
    lengths[j / kStripKeys] = longest_of(longest);
  }
}

// Values of keys [first, last), multiples of kDepth. Rows i and i + 16 of 32 make pairs, as
// weights do.
inline void pack_right_values(const regard_problem &p, int64_t batch, int64_t head, int64_t first,
                              int64_t last, uint16_t *to) {
  const RightSides sides(p);
  const __m512i low = pair_order(0), high = pair_order(16);
  for (int64_t j = first; j < last; j += kDepth) {
    for (int i = 0; i < kTileRows; ++i) {
      const uint16_t *rows[2];
      int64_t sizes[2];
      for (int k = 0; k < 2; ++k) {
        const int64_t key = j + i + k * kTileRows;
        const bool there = key < p.keys;
        rows[k] =
            static_cast<const uint16_t *>(row_of(p.value, p.dtype, batch, head, there ? key : 0));
        sizes[k] = there ? p.value_size : 0;
      }
      uint16_t *tile = to + j * sides.width + i * kDepth;
      for (int64_t e = 0; e < sides.width; e += kDepth, tile += 2 * kTileElements) {
        const __m512i x = load_elements(rows[0] + e, sizes[0] - e);
        const __m512i y = load_elements(rows[1] + e, sizes[1] - e);
        _mm512_store_si512(tile, _mm512_permutex2var_epi16(x, low, y));
        if (e + kTileRows >= sides.width) continue;
        _mm512_store_si512(tile + kTileElements, _mm512_permutex2var_epi16(x, high, y));
      }
    }
  }
}

// The queries of a block, copied: [row][depth]. Returns the square of the length of the longest;
// NaN if there is one.
inline float copy_queries(const regard_problem &p, const Rows<float> &rows, int64_t depth,
                          uint16_t *to) {
  F longest = broadcast(0.f);
  for (int r = 0; r < rows.width; ++r) {
    copy_padded<1>(row_of(p.query, p.dtype, rows.batch, rows.head[r], rows.query[r]), p.head_size,
                   p.dtype, to + r * depth, depth);
    if (r % kTileRows != kTileRows - 1) continue;
    longest = longer(square_lengths(to + (r - kTileRows + 1) * depth, depth, depth), longest);
  }
  return longest_of(longest);
}

// The right sides of heads one after another.
struct PackedSides {
  uint16_t *keys = nullptr, *values = nullptr;
  float *lengths = nullptr;
  bool *there = nullptr;  // slices of one head; null: all that are seen

  PackedSides() = default;
  PackedSides(const RightSides &sides, int64_t key_heads, int64_t value_heads, Scratch &scratch)
      : keys(scratch.take<uint16_t>(key_heads * sides.key_count())),
        lengths(scratch.take<float>(key_heads * sides.strips())) {
    if (value_heads) values = scratch.take<uint16_t>(value_heads * sides.value_count());
  }
};

// Rows that will be read soon, asked for while others are computed.
class RowsAhead {
 public:
  void set(const void *first, int64_t row_bytes, int64_t stride, int64_t rows) {
    at_ = static_cast<const char *>(first);
    bytes_ = row_bytes;
    stride_ = stride;
    left_ = rows;
  }
  void rows(int64_t most) {
    for (; most > 0 && left_ > 0; --most, --left_, at_ += stride_) {
      for (int64_t i = 0; i < bytes_; i += 64) __builtin_prefetch(at_ + i, 0, 2);
    }
  }

 private:
  const char *at_ = nullptr;
  int64_t bytes_ = 0, stride_ = 0, left_ = 0;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
