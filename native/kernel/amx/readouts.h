// Scores for read-outs of bfloat16 on the matrix unit.
#ifndef REGARD_KERNEL_AMX_READOUTS_H
#define REGARD_KERNEL_AMX_READOUTS_H

namespace regard {
namespace REGARD_NAMESPACE {

// Fewer rows than a tile of the matrix unit leave too much of it empty.
inline bool scores_pay(const regard_problem &p) {
  return p.dtype == REGARD_BFLOAT16 && p.scale > 0 && p.head_size > 0 && p.queries >= kTileRows;
}

// As Block, for the rows of one head. Keys are packed slice by slice when they are first seen.
class MatrixBlock {
 public:
  Rows<float> rows;
  Sight<float> sight;

  void allocate(const regard_problem &p, Scratch &scratch) {
    problem_ = &p;
    const PackedShape shape(p);
    depth_ = shape.depth;
    // The last tile of keys may begin anywhere and is read whole.
    keys_ = scratch.take<uint16_t>((shape.keys + kTileRows) * depth_);
    packed_ = scratch.take<bool>(shape.slices());
    queries_ = scratch.take<uint16_t>(kBlock<float> * depth_);
    sight.allocate(p, scratch);
    if (packed_) std::fill_n(packed_, shape.slices(), false);
  }

  void set() {
    pack_queries<1>(*problem_, rows, queries_);
    sight.set(rows);
  }

  void scores(int64_t begin, int64_t end, float *, float *to) {
    for (int64_t slice = begin / kSlice; slice * kSlice < end; ++slice) pack(slice);
    TileProduct<1> product;
    product.a_row = depth_ * 2;
    product.a = reinterpret_cast<const char *>(keys_) + begin * product.a_row;
    product.a_tile = product.a_row * kTileRows;
    product.a_depth = kTileBytes;
    product.b = reinterpret_cast<const char *>(queries_);
    product.c = reinterpret_cast<char *>(to);
    product.width = rows.width * 4;
    product.tiles_m = static_cast<int>((end - begin + kTileRows - 1) / kTileRows);
    product.tiles_n = rows.width / kTileRows;
    product.depth = depth_ / kDepth;
    product.compute();
    adjust(*problem_, rows, begin, end, to);
  }

 private:
  void pack(int64_t slice) {
    if (packed_[slice]) return;
    const regard_problem &p = *problem_;
    const int64_t first = slice * kSlice, head = rows.head[0] / (p.heads / p.key_heads);
    pack_keys<1>(p, rows.batch, head, first, std::min(first + kSlice, round_up(p.keys, kDepth)),
                 keys_);
    packed_[slice] = true;
  }

  const regard_problem *problem_ = nullptr;
  MatrixUnit unit_;
  uint16_t *keys_ = nullptr, *queries_ = nullptr;
  bool *packed_ = nullptr;  // of each slice of the keys
  int64_t depth_ = 0;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
