// Products of tiles, in blocks of 2 x 2 of them.
#ifndef REGARD_KERNEL_AMX_TILES_H
#define REGARD_KERNEL_AMX_TILES_H

namespace regard {
namespace REGARD_NAMESPACE {

// Sums of a block that still lie in tiles 0 to 3. They are stored while the next block is computed:
// a store waits for the sum, and other products wait for the store.
class Unstored {
 public:
  template <int kC>
  REGARD_INLINE void put(char *to, int64_t width) {
    to_[kC] = to;
    width_[kC] = width;
  }
  template <int kC>
  REGARD_INLINE void store() {
    if (!to_[kC]) return;
    tile_store<kC>(to_[kC], width_[kC]);
    to_[kC] = nullptr;
  }
  REGARD_INLINE void store_all() {
    store<0>();
    store<1>();
    store<2>();
    store<3>();
  }

 private:
  char *to_[4] = {};
  int64_t width_[4] = {};
};

// c (+)= a b of tiles_m x tiles_n tiles, in blocks of 2 x 2. Rows of b hold pairs of rows of the
// matrix that it stands for. Both sides are sums of kParts parts, the highest first; products of
// parts that are less than the last bit of the whole are left out. kOnce: a goes by once; kTiled: b
// does, and is made of whole tiles. All distances are in bytes.
template <int kParts, bool kOnce = true, bool kTiled = false>
struct TileProduct {
  const char *a;
  int64_t a_row, a_tile, a_depth;  // from row to row, tile to tile, and along the depth
  int64_t a_part = 0, b_part = 0;  // from part to part
  const char *b;
  int64_t b_tile = 0, b_depth = 0;  // kTiled: from tile to tile, and along the depth
  char *c;
  int64_t width;  // of rows of c and, if not kTiled, of b
  int tiles_m = 0, tiles_n = 0;
  int64_t depth = 0;
  bool add = false;

  int blocks() const { return (tiles_m + 1) / 2 * ((tiles_n + 1) / 2); }

  // How often a whole block pauses for other work.
  int64_t pauses() const { return (kParts == 1 ? 4 : kParts == 2 ? 12 : 24) * depth; }

  // `between.run()` is called after each product of tiles, to do some other work meanwhile; at the
  // edges, where blocks are not whole, it is not. `sums`: of the block before; then of this.
  template <class Between>
  REGARD_INLINE void block(int index, Between &between, Unstored &sums) const {
    const int across = (tiles_n + 1) / 2, m = index / across * 2, n = index % across * 2;
    const char *left = a + m * a_tile, *right = b + n * next_right();
    char *sum = c + m * kTileRows * width + n * kTileBytes;
    if (m + 1 < tiles_m && n + 1 < tiles_n) {
      multiply<2, 2>(left, right, sum, between, sums);
    } else if (kTiled && n + 1 < tiles_n) {
      multiply<1, 2>(left, right, sum, between, sums);
    } else {
      edge(m, n, left, right, sum, sums);
    }
  }
  // What is left from block `first` on, and nothing else meanwhile.
  void compute(int first = 0) const {
    Nothing nothing;
    Unstored sums;
    for (int i = first; i < blocks(); ++i) block(i, nothing, sums);
    sums.store_all();
  }

 private:
  // Tiles 0 to 3 hold c, 4 and 5 a, 6 and 7 b.
  struct Nothing {
    void run() {}
  };

  REGARD_NOINLINE void edge(int m, int n, const char *left, const char *right, char *sum,
                            Unstored &sums) const {
    Nothing nothing;
    sums.store_all();
    if (m + 1 < tiles_m) {
      multiply<2, 1>(left, right, sum, nothing, sums);
    } else if (n + 1 < tiles_n) {
      multiply<1, 2>(left, right, sum, nothing, sums);
    } else {
      multiply<1, 1>(left, right, sum, nothing, sums);
    }
  }

  template <int kReg>
  REGARD_INLINE void load_left(const char *left) const {
    if constexpr (kOnce) {
      tile_stream<kReg>(left, a_row);
    } else {
      tile_load<kReg>(left, a_row);
    }
  }

  int64_t next_right() const { return kTiled ? b_tile : kTileBytes; }
  template <int kReg>
  REGARD_INLINE void load_right(const char *right) const {
    if constexpr (kTiled) {
      tile_stream<kReg>(right, kTileBytes);
    } else {
      tile_load<kReg>(right, width);
    }
  }

  // One tile deep. Sides that the step before has loaded need not be loaded again.
  template <int kM, int kN, bool kFirst, bool kLoadLeft, bool kLoadRight, class Between>
  REGARD_INLINE void step(const char *left, const char *right, char *sum, Between &between,
                          Unstored &sums) const {
    if constexpr (kLoadLeft) load_left<4>(left);
    if constexpr (kLoadRight) load_right<6>(right);
    add_product<kFirst, 0, 4, 6>(sum, between, sums);
    if constexpr (kN > 1) {
      if constexpr (kLoadRight) load_right<7>(right + next_right());
      add_product<kFirst, 1, 4, 7>(sum + kTileBytes, between, sums);
    }
    if constexpr (kM > 1) {
      const int64_t down = kTileRows * width;
      if constexpr (kLoadLeft) load_left<5>(left + a_tile);
      add_product<kFirst, 2, 5, 6>(sum + down, between, sums);
      if constexpr (kN > 1) {
        add_product<kFirst, 3, 5, 7>(sum + down + kTileBytes, between, sums);
      }
    }
  }

  template <bool kFirst, int kC, int kA, int kB, class Between>
  REGARD_INLINE void add_product(char *sum, Between &between, Unstored &sums) const {
    if constexpr (kFirst) {
      sums.store<kC>();
      if (add) {
        tile_load<kC>(sum, width);
      } else {
        tile_zero<kC>();
      }
      sums.put<kC>(sum, width);
    }
    tile_multiply<kC, kA, kB>();
    between.run();
  }

  template <int kM, int kN, class Between>
  REGARD_INLINE void multiply(const char *left, const char *right, char *sum, Between &between,
                              Unstored &sums) const {
    deepen<kM, kN, true>(left, right, sum, between, sums);
    for (int64_t k = 1; k < depth; ++k) {
      left += a_depth;
      right += kTiled ? b_depth : kTileRows * width;
      deepen<kM, kN, false>(left, right, sum, between, sums);
    }
  }

  // One tile deep, of all parts.
  template <int kM, int kN, bool kFirst, class Between>
  REGARD_INLINE void deepen(const char *left, const char *right, char *sum, Between &between,
                            Unstored &sums) const {
    if constexpr (kParts == 1) {
      step<kM, kN, kFirst, true, true>(left, right, sum, between, sums);
    } else if constexpr (kParts == 2) {
      step<kM, kN, kFirst, true, true>(left + a_part, right, sum, between, sums);
      step<kM, kN, false, true, false>(left, right, sum, between, sums);
      step<kM, kN, false, false, true>(left, right + b_part, sum, between, sums);
    } else {
      step<kM, kN, kFirst, true, true>(left + 2 * a_part, right, sum, between, sums);
      step<kM, kN, false, true, false>(left + a_part, right, sum, between, sums);
      step<kM, kN, false, false, true>(left + a_part, right + b_part, sum, between, sums);
      step<kM, kN, false, true, false>(left, right + b_part, sum, between, sums);
      step<kM, kN, false, false, true>(left, right + 2 * b_part, sum, between, sums);
      step<kM, kN, false, false, true>(left, right, sum, between, sums);
    }
  }
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
