// Keys and values of whole heads, packed for the matrix unit slice by slice.
#ifndef REGARD_KERNEL_AMX_HEADS_H
#define REGARD_KERNEL_AMX_HEADS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Heads one after another; `lengths`: squared, of the longest key of each slice.
struct PackedHeads {
  uint16_t *keys = nullptr, *values = nullptr;
  float *lengths = nullptr;

  PackedHeads() = default;
  PackedHeads(const PackedShape &shape, int64_t key_heads, int64_t value_heads, Scratch &scratch)
      : keys(scratch.take<uint16_t>(key_heads * shape.key_count())),
        lengths(scratch.take<float>(key_heads * shape.slices())) {
    if (value_heads) values = scratch.take<uint16_t>(value_heads * shape.value_count());
  }
};

// Leaves slices that nothing sees as they are: nothing will use them.
template <int kParts>
class HeadPacker {
 public:
  explicit HeadPacker(const regard_problem &p) : p_(p), shape_(p, kParts) {}

  void allocate(Scratch &scratch) { reaches_ = scratch.take<Reach>(p_.batch); }
  void look() {
    for (int64_t b = 0; b < p_.batch; ++b) reaches_[b] = reach(b);
  }

  // Whether some query of a batch element may see one of the keys [first, last).
  bool seen(int64_t batch, int64_t first, int64_t last) const {
    return reaches_[batch].touches(first, last);
  }

  // A slice of head number `head` of all batch elements, as the head number `at` of `to`.
  void keys(int64_t head, int64_t slice, const PackedHeads &to, int64_t at) const {
    const int64_t first = slice * kSlice, last = std::min(first + kSlice, shape_.keys);
    float &length = to.lengths[at * shape_.slices() + slice];
    length = 0;
    if (!reaches_[head / p_.key_heads].touches(first, last)) return;
    length = pack_keys<kParts>(p_, head / p_.key_heads, head % p_.key_heads, first, last,
                               to.keys + at * shape_.key_count());
  }
  void values(int64_t head, int64_t slice, const PackedHeads &to, int64_t at) const {
    const int64_t first = slice * kSlice, last = std::min(first + kSlice, shape_.keys);
    if (!reaches_[head / p_.value_heads].touches(first, last)) return;
    pack_values<kParts>(p_, head / p_.value_heads, head % p_.value_heads, first, last,
                        to.values + at * shape_.value_count());
  }

 private:
  // All keys that some query of a batch element sees lie within.
  struct Reach {
    int64_t first, last;
    bool touches(int64_t begin, int64_t end) const { return begin < last && first < end; }
  };

  Reach reach(int64_t batch) const {
    const regard_intervals &v = p_.intervals;
    if (!v.data) return {0, p_.keys};
    Reach all = {p_.keys, 0};
    for (int64_t h = 0; h < (v.head_stride ? p_.heads : 1); ++h) {
      for (int64_t i = 0; i < (v.query_stride ? p_.queries : 1); ++i) {
        const int32_t *pair =
            v.data + batch * v.batch_stride + h * v.head_stride + i * v.query_stride;
        for (int64_t c = 0; c < v.count; ++c) {
          if (pair[2 * c] >= pair[2 * c + 1]) continue;
          all.first = std::min<int64_t>(all.first, pair[2 * c]);
          all.last = std::max<int64_t>(all.last, pair[2 * c + 1]);
        }
      }
    }
    return all;
  }

  const regard_problem &p_;
  PackedShape shape_;
  Reach *reaches_ = nullptr;  // of each batch element
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
