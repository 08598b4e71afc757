// The map of weights, summed and maximised into cells.
#ifndef REGARD_KERNEL_READOUTS_POOLED_H
#define REGARD_KERNEL_READOUTS_POOLED_H

namespace regard {
namespace REGARD_NAMESPACE {

// Cells of `length` positions: position i is in cell i * count / length.
struct Cells {
  int64_t count, length;
  int64_t of(int64_t i) const { return i * count / length; }
  int64_t end(int64_t cell) const { return ((cell + 1) * length + count - 1) / count; }
};

// Rows of cells that a piece of the queries touches; pieces share those at their borders.
struct PooledPart {
  int64_t first = 0, rows = 0;
  double *sum = nullptr, *most = nullptr;  // [row][column]
};

template <class T>
class Pooled {
 public:
  Pooled(const regard_problem &p, const Request &q)
      : q_(q), rows_{q.pooled_rows, p.queries}, keys_{q.pooled_columns, p.keys} {}
  bool wanted() const { return q_.pooled_sum || q_.pooled_max; }

  void turn_to(const PooledPart &to) { to_ = to; }

  // Whether keys [begin, begin + count) lie in one cell.
  bool joins(int64_t begin, int64_t count) const {
    return keys_.of(begin) == keys_.of(begin + count - 1);
  }
  // What the rows have on such keys.
  void add(const Rows<T> &rows, int64_t begin, const TileSums<T> &tile) const {
    add(rows, keys_.of(begin), tile.sum, tile.most);
  }

  void take(const Tile<T> &tile) const {
    for (int64_t j = 0, stop; j < tile.count; j = stop) {
      const int64_t column = keys_.of(tile.begin + j);
      stop = std::min(tile.count, keys_.end(column) - tile.begin);
      T sum[kBlock<T>], most[kBlock<T>];
      std::fill_n(sum, tile.rows.width, T(0));
      std::fill_n(most, tile.rows.width, T(0));
      if (q_.pooled_sum) add_keys(tile.of(j), stop - j, tile.rows.width, sum);
      if (q_.pooled_max) raise_keys(tile.of(j), stop - j, tile.rows.width, most);
      add(tile.rows, column, sum, most);
    }
  }

 private:
  // What the rows have in one column of cells.
  void add(const Rows<T> &rows, int64_t column, const T *sum, const T *most) const {
    for (int r = 0, stop; r < rows.count; r = stop) {
      const int64_t cell = rows_.of(rows.query[r]);
      stop = static_cast<int>(std::min<int64_t>(rows.count, r + rows_.end(cell) - rows.query[r]));
      const int64_t at = (cell - to_.first) * q_.pooled_columns + column;
      Vec<T> total = broadcast<T>(0), top = total;
      for (int i = r; i < stop; i += kLanes<T>) {
        total = total + load_partial(sum + i, stop - i);
        top = max(load_partial(most + i, stop - i), top);
      }
      if (q_.pooled_sum) to_.sum[at] += join_lanes(total, [](T a, T b) { return a + b; });
      if (!q_.pooled_max) continue;
      to_.most[at] =
          std::max<double>(to_.most[at], join_lanes(top, [](T a, T b) { return std::max(a, b); }));
    }
  }

  const Request &q_;
  PooledPart to_;
  Cells rows_, keys_;
};

// Puts together what the pieces of one head have gathered, into `to`, [row][column].
template <class T>
inline void merge_pooled(const Request &q, const PooledPart *parts, int64_t count, T *sum,
                         T *most) {
  const int64_t columns = q.pooled_columns;
  for (int64_t row = 0; row < q.pooled_rows; ++row) {
    for (int64_t c = 0; c < columns; ++c) {
      double total = 0, top = 0;
      for (int64_t n = 0; n < count; ++n) {
        const PooledPart &part = parts[n];
        if (row < part.first || row >= part.first + part.rows) continue;
        const int64_t at = (row - part.first) * columns + c;
        if (sum) total += part.sum[at];
        if (most) top = std::max(top, part.most[at]);
      }
      if (sum) sum[row * columns + c] = static_cast<T>(total);
      if (most) most[row * columns + c] = static_cast<T>(top);
    }
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
