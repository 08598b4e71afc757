// What read-outs see: scores of a block of rows of one head against a tile of keys, which then
// become weights; and what is often done with them.
#ifndef REGARD_KERNEL_READOUTS_TILE_H
#define REGARD_KERNEL_READOUTS_TILE_H

namespace regard {
namespace REGARD_NAMESPACE {

using Request = regard_readouts_request;

template <class T>
struct Tile {
  const Rows<T> &rows;
  int64_t begin, count;  // keys [begin, begin + count)
  T *values;             // [key][row]

  const T *of(int64_t j) const { return values + j * rows.width; }
};

// What a tile's weights are for each row: their sum, the sum of all sums so far, key after key,
// those of p log2 p and p^2, and the largest.
template <class T>
struct TileSums {
  T sum[kBlock<T>], behind[kBlock<T>], logarithms[kBlock<T>], squares[kBlock<T>], most[kBlock<T>];
};

// Where the read-outs of a row begin in an array (B, H, Lq, size).
template <class T>
inline int64_t row_index(const regard_problem &p, const Rows<T> &rows, int r) {
  return (rows.batch * p.heads + rows.head[r]) * p.queries + rows.query[r];
}

// sums[row] += the values of some keys.
template <class T>
REGARD_INLINE void add_keys(const T *values, int64_t keys, int width, T *sums) {
  for (int r = 0; r < width; r += kLanes<T>) {
    Vec<T> total[4] = {load(sums + r), broadcast<T>(0), broadcast<T>(0), broadcast<T>(0)};
    int64_t j = 0;
    for (; j + 4 <= keys; j += 4) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) total[i] = total[i] + load(values + (j + i) * width + r);
    }
    for (; j < keys; ++j) total[0] = total[0] + load(values + j * width + r);
    store(sums + r, (total[0] + total[1]) + (total[2] + total[3]));
  }
}

// The same for the largest.
template <class T>
REGARD_INLINE void raise_keys(const T *values, int64_t keys, int width, T *most) {
  for (int r = 0; r < width; r += kLanes<T>) {
    Vec<T> top[2] = {load(most + r), load(most + r)};
    for (int64_t j = 0; j + 2 <= keys; j += 2) {
      top[0] = max(load(values + j * width + r), top[0]);
      top[1] = max(load(values + (j + 1) * width + r), top[1]);
    }
    if (keys % 2) top[0] = max(load(values + (keys - 1) * width + r), top[0]);
    store(most + r, max(top[0], top[1]));
  }
}

// Calls visit(lane) for each lane in which mask holds, in their order.
template <class M, class Visit>
REGARD_INLINE void each_lane(M mask, Visit visit) {
  for (unsigned left = bits(mask); left; left &= left - 1) visit(__builtin_ctz(left));
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
