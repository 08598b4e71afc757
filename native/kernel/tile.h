// Scores of a block of rows against tiles of keys, transposed: scores[key][row].
#ifndef REGARD_KERNEL_TILE_H
#define REGARD_KERNEL_TILE_H

namespace regard {
namespace REGARD_NAMESPACE {

// Queries are multiplied by the sign of the scale, the products by its size.
template <class T>
inline T query_factor(const regard_problem &p) {
  const T scale = static_cast<T>(p.scale);
  return scale > 0 ? T(1) : scale < 0 ? T(-1) : T(0);
}
// What makes powers of 2 of scores as `Block::scores` leaves them. Not 0 (-inf must stay -inf):
// when the scale is 0, so are the queries.
template <class T>
inline T score_unit(const regard_problem &p) {
  const bool scaled = plain(p) && static_cast<T>(p.scale) != 0;
  return static_cast<T>(scaled ? fabs(p.scale) * kLog2e : kLog2e);
}

// Products [key][row] of keys with packed queries [depth][row], whose elements may be of a type S
// that says how they are multiplied.
template <class T, class S>
inline void packed_products(Operand<T> keys, const S *queries, int64_t depth, int64_t count,
                            const Rows<T> &rows, T *to) {
  const int64_t step = rows.count <= kStepRows ? kStepKeys : count;
  for (int64_t j = 0; j < count; j += step) {
    for (int64_t i = j; step < count && i < j + step; ++i) prefetch_row(keys, i + step, depth);
    product<T, Left::kRows>(keys.data + j * keys.stride, keys.stride, queries, rows.width,
                            to + j * rows.width, rows.width, std::min(step, count - j),
                            rows.width / kLanes<T>, depth, false);
  }
}

template <class T>
class Block {
 public:
  static constexpr bool kPairs = false;  // whether weights and values go into pairs of keys
  using Packed = T;                      // elements of packed rows
  Rows<T> rows;
  Sight<T> sight;
  Additive<T> additive;  // if scores are not dot products

  void allocate(const regard_problem &p, Scratch &scratch) {
    problem_ = &p;
    sight.allocate(p, scratch);
    if (is_additive(p)) return additive.allocate(p, scratch);
    const int64_t size = kBlock<T> * padded<T>(p.head_size);
    queries_ = scratch.take<T>(size);
    staging_ = scratch.take<T>(size);
  }

  // Few rows read keys in another order, and whatever type they have.
  bool few() const { return rows.count <= kFew; }

  // To be called when `rows` has changed.
  void set() {
    const regard_problem &p = *problem_;
    const T factor = query_factor<T>(p);
    if (is_additive(p)) {
      additive.set(rows);
    } else if (few()) {
      widen_rows(rows, p.query, p.dtype, p.head_size, factor, queries_);
    } else {
      pack(p, rows, p.query, p.head_size, factor, staging_, queries_);
    }
    sight.set(rows);
  }

  // Rows of an array, times `factor`, for the right side of a product: to[element][row].
  static void pack(const regard_problem &p, const Rows<T> &rows, const regard_array &a,
                   int64_t size, T factor, T *staging, T *to) {
    pack_rows(rows, a, p.dtype, size, factor, staging, to);
  }
  // Of such a product.
  static int64_t depth(int64_t size) { return size; }

  // Scores of keys [begin, end), whose rows are given; hidden ones not yet hidden. `slope`, if not
  // null, gets the derivative of the soft cap.
  void scores(Operand<T> keys, int64_t begin, int64_t end, T *to, T *slope = nullptr) {
    if (is_additive(*problem_)) {
      additive.scores(keys, end - begin, query_factor<T>(*problem_), to);
    } else if (few()) {
      few_products(keys, end - begin, rows.width, to);
    } else {
      packed_products(keys, queries_, problem_->head_size, end - begin, rows, to);
    }
    adjust(*problem_, rows, begin, end, to, slope);
  }

  // The same, keys read from their array; `scratch` holds a tile of them.
  void scores(int64_t begin, int64_t end, T *scratch, T *to) {
    const regard_problem &p = *problem_;
    if (few() && !is_additive(p)) {
      products(begin, end, rows.width, to);
      return adjust(p, rows, begin, end, to);
    }
    const int64_t head = rows.head[0] / (p.heads / p.key_heads);
    const regard_array key = array_at(p, p.key, rows.batch, begin);
    const auto keys =
        operand<T>(key, p.dtype, rows.batch, head, begin, end - begin, p.head_size, false, scratch);
    scores(keys, begin, end, to);
  }

  // Products of few rows and keys read from their array, `width` elements from key to key.
  void products(int64_t begin, int64_t end, int64_t width, T *to) const {
    const regard_problem &p = *problem_;
    if constexpr (std::is_same_v<T, float>) {
      if (p.dtype == REGARD_FLOAT16) return few_products<Float16>(begin, end, width, to);
      if (p.dtype == REGARD_BFLOAT16) return few_products<BFloat16>(begin, end, width, to);
    }
    few_products<T>(begin, end, width, to);
  }

 private:
  template <class S>
  void few_products(int64_t begin, int64_t end, int64_t width, T *to) const {
    const regard_problem &p = *problem_;
    const int64_t head = rows.head[0] / (p.heads / p.key_heads);
    const int64_t next = end < sight.last() ? end : -1;
    const auto keys = streamed<S>(p, p.key, rows.batch, head, begin, next, kKeysAhead<S>);
    few_products(keys, end - begin, width, to);
  }
  template <class S>
  void few_products(Operand<S> keys, int64_t count, int64_t width, T *to) const {
    few_dots(keys, queries_, problem_->head_size, count, rows.count, to, width);
  }

  const regard_problem *problem_ = nullptr;
  T *queries_ = nullptr;  // [head_size][width], or, if there are few rows, [row][head_size], padded
  T *staging_ = nullptr;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
