// Scores of bfloat16 by products of pairs of elements. Keys are read where they lie: two elements
// of a key at a time meet as many of the queries, one query a lane.
#ifndef REGARD_KERNEL_PAIRS_BLOCK_H
#define REGARD_KERNEL_PAIRS_BLOCK_H

namespace regard {
namespace REGARD_NAMESPACE {

// Elements of keys must lie in whole pairs.
inline bool pairs_pay(const regard_problem &p) {
  return p.dtype == REGARD_BFLOAT16 && !is_additive(p) && p.head_size > 0 && p.head_size % 2 == 0 &&
         p.key.row_stride % 2 == 0;
}

// As Block.
class PairBlock {
 public:
  static constexpr bool kPairs = true;
  using Weights = PairedWeights;
  using Packed = Pair;
  Rows<float> rows;
  Sight<float> sight;

  void allocate(const regard_problem &p, Scratch &scratch) {
    problem_ = &p;
    const int64_t size = kBlock<float> * padded<float>(depth(p.head_size));
    queries_ = scratch.take<float>(size);
    staging_ = scratch.take<float>(size);
    sight.allocate(p, scratch);
  }

  void set() {
    const regard_problem &p = *problem_;
    const float factor = query_factor<float>(p);
    if (few()) {
      copy(p, rows, p.query, p.head_size, factor, queries_);
    } else {
      pack(p, rows, p.query, p.head_size, factor, staging_, queries_);
    }
    sight.set(rows);
  }

  // to[pair of elements][row]
  static void pack(const regard_problem &p, const Rows<float> &rows, const regard_array &a,
                   int64_t size, float factor, float *staging, float *to) {
    const int64_t stride = padded<float>(depth(size));
    copy(p, rows, a, size, factor, staging);
    transpose(staging, stride, to, rows.width, rows.width, stride);
  }
  static int64_t depth(int64_t size) { return (size + 1) / 2; }

  void scores(int64_t begin, int64_t end, float *, float *to) {
    scores(Operand<float>{}, begin, end, to);
  }
  // Keys are read from their array all the same.
  void scores(Operand<float>, int64_t begin, int64_t end, float *to, float *slope = nullptr) {
    products(begin, end, rows.width, to);
    adjust(*problem_, rows, begin, end, to, slope);
  }

  // Products, `width` elements from key to key.
  void products(int64_t begin, int64_t end, int64_t width, float *to) const {
    const regard_problem &p = *problem_;
    const int64_t head = rows.head[0] / (p.heads / p.key_heads), pairs = depth(p.head_size);
    const int64_t next = end < sight.last() ? end : -1;
    const auto keys =
        pairs_of(streamed<uint16_t>(p, p.key, rows.batch, head, begin, next, kKeysAhead<Pair>));
    if (few()) {
      const Operand<Pair> left{reinterpret_cast<const Pair *>(keys.data), keys.stride, keys.ahead};
      few_dots(left, queries_, pairs, end - begin, rows.count, to, width, PairProduct());
    } else {
      packed_products(keys, reinterpret_cast<const Pair *>(queries_), pairs, end - begin, rows, to);
    }
  }

  // Values in pairs of keys.
  Operand<Pair> pair_values(const regard_array &value, int64_t head, int64_t begin, int64_t count,
                            float *to) const {
    const int64_t size = problem_->value_size, width = padded<float>(size);
    join_keys(in_place<uint16_t>(value, rows.batch, head, begin), count, size, width, to);
    return {reinterpret_cast<const Pair *>(to), width};
  }

 private:
  bool few() const { return rows.count <= kFew; }

  // to[row][pair of elements]
  static void copy(const regard_problem &p, const Rows<float> &rows, const regard_array &a,
                   int64_t size, float factor, float *to) {
    const int64_t stride = padded<float>(depth(size));
    for (int r = 0; r < rows.width; ++r) {
      const void *row = row_of(a, p.dtype, rows.batch, rows.head[r], rows.query[r]);
      copy_pairs(row, size, factor, to + r * stride);
    }
  }

  const regard_problem *problem_ = nullptr;
  float *queries_ = nullptr;  // pairs [pair][width], or, if there are few rows, [row][pair]
  float *staging_ = nullptr;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
