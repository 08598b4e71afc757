// The matrix unit: eight tiles of 16 rows of 64 bytes, and products of them.
//
// TDPBF16PS takes subnormal inputs for zero, flushes subnormal sums to zero and rounds to nearest
// even, whatever the control register says. So bfloat16 subnormals (below 1.2e-38) in queries, keys
// and values count as zero here.
#ifndef REGARD_KERNEL_AMX_UNIT_H
#define REGARD_KERNEL_AMX_UNIT_H

namespace regard {
namespace REGARD_NAMESPACE {

constexpr int kTileRows = 16, kTileBytes = 64;

// All tiles whole, for as long as it lives. Other threads have settings of their own.
class MatrixUnit {
 public:
  MatrixUnit() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) {
      config.bytes[i] = kTileBytes;
      config.rows[i] = kTileRows;
    }
    __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
  }
  ~MatrixUnit() { __asm__ volatile("tilerelease" : : : "memory"); }
  MatrixUnit(const MatrixUnit &) = delete;
  MatrixUnit &operator=(const MatrixUnit &) = delete;
};

// The compiler's own intrinsics do not say that they touch memory: stores that a tile is about to
// load could move behind them.
template <int kReg>
REGARD_INLINE void tile_load(const void *from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(stride), "n"(kReg)
                   : "memory");
}
// The same for what goes by once: it should not push other things out of the first-level cache.
template <int kReg>
REGARD_INLINE void tile_stream(const void *from, int64_t stride) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(stride), "n"(kReg)
                   : "memory");
}
template <int kReg>
REGARD_INLINE void tile_store(void *to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "n"(kReg) : "memory");
}
template <int kReg>
REGARD_INLINE void tile_zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "n"(kReg));
}
template <int kC, int kA, int kB>
REGARD_INLINE void tile_multiply() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "n"(kC), "n"(kA), "n"(kB));
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
