// Scores of very few rows of bfloat16. The matrix unit reads keys where they lie, and though most
// of each tile of scores stays unused, that takes a fraction of the time that vectors take to widen
// keys: reading them is then all that bounds.
#ifndef REGARD_KERNEL_AMX_FEW_H
#define REGARD_KERNEL_AMX_FEW_H

namespace regard {
namespace REGARD_NAMESPACE {

inline bool few_pays(const regard_problem &p) {
  return parts_of(p) == 1 && !p.pages && p.scale > 0 && p.head_size > 0 &&
         p.head_size % kDepth == 0 && p.batch * p.heads * p.queries > 0 && p.keys >= kTileRows &&
         !is_additive(p) && Cut<float>(p).heads * p.queries <= kGroup<float>;
}

class FewBlock : public Block<float> {
 public:
  void allocate(const regard_problem &p, Scratch &scratch) {
    Block<float>::allocate(p, scratch);
    problem_ = &p;
    queries_ = scratch.take<uint16_t>(kLanes<float> * p.head_size);
    scores_ = scratch.take<float>(kTile<float> * kLanes<float>);
  }
  void set() {
    Block<float>::set();
    pack_queries<1>(*problem_, rows, queries_);
  }

  // As Block's, for whole tiles of the matrix unit; the last may overlap the one before.
  void products(int64_t begin, int64_t end, int64_t width, float *to) const {
    const int64_t count = end - begin;
    if (count < kTileRows) return Block<float>::products(begin, end, width, to);
    const regard_problem &p = *problem_;
    const auto keys =
        in_place<BFloat16>(p.key, rows.batch, rows.head[0] / (p.heads / p.key_heads), begin);
    for (int64_t j = 0; j < count; j += kTileRows) {
      multiply(keys, std::min<int64_t>(j, count - kTileRows));
    }
    for (int64_t j = 0; j < count; ++j) {
      for (int64_t r = 0; r < width; ++r) to[j * width + r] = scores_[j * kLanes<float> + r];
    }
  }

 private:
  // One tile of keys; the next one is asked for line by line, so that the processor never waits for
  // room to ask.
  void multiply(Operand<BFloat16> keys, int64_t first) const {
    const int64_t stride = keys.stride * 2;
    const char *key = reinterpret_cast<const char *>(keys.data) + first * stride;
    tile_zero<0>();
    for (int64_t d = 0; d < problem_->head_size; d += kDepth) {
      tile_load<4>(key + d * 2, stride);
      tile_load<6>(queries_ + d * kTileRows, kTileBytes);
#pragma GCC unroll 16
      for (int i = 0; i < kTileRows; ++i) {
        __builtin_prefetch(key + d * 2 + (kTileRows + i) * stride);
      }
      tile_multiply<0, 4, 6>();
    }
    tile_store<0>(scores_ + first * kLanes<float>, kTileBytes);
  }

  MatrixUnit unit_;
  const regard_problem *problem_ = nullptr;
  uint16_t *queries_ = nullptr;  // [pair of elements][row]
  float *scores_ = nullptr;      // [key][row]
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
