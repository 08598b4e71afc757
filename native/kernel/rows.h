// Blocks of rows: a row is one query of one head, and lies in one lane of the vectors.
#ifndef REGARD_KERNEL_ROWS_H
#define REGARD_KERNEL_ROWS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Rows in a block and keys in a tile, at most. Their scores stay in the first-level cache.
template <class T>
constexpr int kBlock = 64;
template <class T>
constexpr int kTile = sizeof(T) == 4 ? 96 : 64;
template <class T>
constexpr int kTileSize = kTile<T> * kBlock<T>;

template <class T>
struct Rows {
  int64_t batch;
  int count;  // of rows
  int width;  // count, rounded up to whole vectors: lanes beyond it repeat the last row
  int64_t head[kBlock<T>], query[kBlock<T>];

  // Rows [first, first + rows) of the queries of `head_0`, then of the next head, and so on.
  void set(const regard_problem &p, int64_t b, int64_t head_0, int64_t first, int64_t rows) {
    batch = b;
    count = static_cast<int>(rows);
    width = static_cast<int>(padded<T>(rows));
    int64_t h = head_0 + first / p.queries, i = first % p.queries;
    for (int r = 0; r < width; ++r) {
      head[r] = h;
      query[r] = i;
      if (r + 1 >= count || ++i < p.queries) continue;
      i = 0;
      ++h;
    }
  }
};

// Scores that are no dot products.
inline bool is_additive(const regard_problem &p) { return p.score != REGARD_DOT; }

// How the rows of one batch are cut into blocks of at most `most` rows, by shape alone: heads that
// share keys and values share blocks where the queries of one head do not fill a block. Additive
// scores need one head a block, for its v.
template <class T>
struct Cut {
  int64_t heads;   // of a group that share blocks
  int64_t blocks;  // of a group

  explicit Cut(const regard_problem &p, int64_t most = kBlock<T>) {
    const int64_t shared = p.value_heads == p.key_heads ? p.heads / p.key_heads : 1;
    heads = p.queries < most && !is_additive(p) ? shared : 1;
    rows_ = heads * p.queries;
    vectors_ = (rows_ + kLanes<T> - 1) / kLanes<T>;
    blocks = (vectors_ * kLanes<T> + most - 1) / most;
  }

  int64_t count(const regard_problem &p) const { return p.batch * (p.heads / heads) * blocks; }

  // Later blocks come first: under a causal mask they take longest.
  void set(const regard_problem &p, int64_t index, Rows<T> *rows) const {
    const int64_t block = blocks - 1 - index % blocks, group = index / blocks;
    const int64_t groups = p.heads / heads;
    const int64_t first = vectors_ * block / blocks * kLanes<T>;
    const int64_t last = std::min(rows_, vectors_ * (block + 1) / blocks * kLanes<T>);
    rows->set(p, group / groups, group % groups * heads, first, last - first);
  }

 private:
  int64_t rows_, vectors_;
};

// Pairs of a query and a key, of the first head, that blocks of so many rows go through.
inline int64_t pairs_seen(const regard_problem &p, int64_t rows) {
  const regard_intervals &v = p.intervals;
  int64_t pairs = 0;
  for (int64_t first = 0; first < p.queries; first += rows) {
    const int64_t last = std::min(p.queries, first + rows);
    int64_t least = p.keys, most = 0;
    for (int64_t i = first; i < last; ++i) {
      const int32_t *pair = v.data + i * v.query_stride;
      for (int64_t c = 0; c < v.count; ++c) {
        if (pair[2 * c] >= pair[2 * c + 1]) continue;
        least = std::min<int64_t>(least, pair[2 * c]);
        most = std::max<int64_t>(most, pair[2 * c + 1]);
      }
    }
    pairs += (last - first) * std::max<int64_t>(0, most - least);
  }
  return pairs;
}

// Rows of a block: half as many where that saves much, as under a window.
template <class T>
inline int64_t best_rows(const regard_problem &p) {
  constexpr int64_t kHalf = kBlock<T> / 2;
  if (!p.intervals.data || p.queries < kBlock<T>) return kBlock<T>;
  return 20 * pairs_seen(p, kHalf) < 19 * pairs_seen(p, kBlock<T>) ? kHalf : kBlock<T>;
}

// Rows of queries (or of gradients of outputs), times `factor`: to[row][d], padded.
template <class T>
inline void widen_rows(const Rows<T> &rows, const regard_array &a, int dtype, int64_t size,
                       T factor, T *to) {
  const int64_t stride = padded<T>(size);
  for (int r = 0; r < rows.width; ++r) {
    T *row = to + r * stride;
    widen_row(row, row_of(a, dtype, rows.batch, rows.head[r], rows.query[r]), size, dtype);
    if (factor == 1) continue;
    const Vec<T> f = broadcast(factor);
    for (int64_t i = 0; i < stride; i += kLanes<T>) store(row + i, load(row + i) * f);
  }
}

// The same, transposed: to[d][row]. `staging` holds width x padded(size).
template <class T>
inline void pack_rows(const Rows<T> &rows, const regard_array &a, int dtype, int64_t size, T factor,
                      T *staging, T *to) {
  const int64_t stride = padded<T>(size);
  widen_rows(rows, a, dtype, size, factor, staging);
  transpose(staging, stride, to, rows.width, rows.width, stride);
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
