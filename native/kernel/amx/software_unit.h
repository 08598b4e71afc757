// What unit.h offers, in software: to test everything around the matrix unit on processors without
// one, built with REGARD_SOFTWARE_TILES. It rounds and flushes as the unit does.
#ifndef REGARD_KERNEL_AMX_SOFTWARE_UNIT_H
#define REGARD_KERNEL_AMX_SOFTWARE_UNIT_H

namespace regard {
namespace REGARD_NAMESPACE {

constexpr int kTileRows = 16, kTileBytes = 64;

struct SoftwareTile {
  __m512i rows[kTileRows];
};
// Both elements of pairs of bfloat16, widened.
inline __m512 even_element(__m512i pairs) { return (__m512)_mm512_slli_epi32(pairs, 16); }
inline __m512 odd_element(__m512i pairs) {
  return (__m512)_mm512_and_si512(pairs, _mm512_set1_epi32(static_cast<int>(0xffff0000u)));
}
inline thread_local SoftwareTile software_tiles[8];

class MatrixUnit {
 public:
  MatrixUnit() { memset(software_tiles, 0, sizeof software_tiles); }
  ~MatrixUnit() {}
  MatrixUnit(const MatrixUnit &) = delete;
  MatrixUnit &operator=(const MatrixUnit &) = delete;
};

template <int kReg>
inline void tile_load(const void *from, int64_t stride) {
  for (int i = 0; i < kTileRows; ++i) {
    software_tiles[kReg].rows[i] = _mm512_loadu_si512(static_cast<const char *>(from) + i * stride);
  }
}
template <int kReg>
inline void tile_stream(const void *from, int64_t stride) {
  tile_load<kReg>(from, stride);
}
template <int kReg>
inline void tile_store(void *to, int64_t stride) {
  for (int i = 0; i < kTileRows; ++i) {
    _mm512_storeu_si512(static_cast<char *>(to) + i * stride, software_tiles[kReg].rows[i]);
  }
}
template <int kReg>
inline void tile_zero() {
  memset(&software_tiles[kReg], 0, sizeof(SoftwareTile));
}
// Sums of a tile's depth, of even and of odd elements, start at 0 and are added to c together.
template <int kC, int kA, int kB>
inline void tile_multiply() {
  constexpr unsigned kFlush = 0x8040;  // subnormal inputs and results
  const unsigned control = _mm_getcsr();
  _mm_setcsr(control | kFlush);
  for (int m = 0; m < kTileRows; ++m) {
    int32_t pairs[kTileRows];
    memcpy(pairs, &software_tiles[kA].rows[m], sizeof pairs);
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int k = 0; k < kTileRows; ++k) {
      const __m512i a = _mm512_set1_epi32(pairs[k]), b = software_tiles[kB].rows[k];
      even = _mm512_fmadd_ps(even_element(a), even_element(b), even);
      odd = _mm512_fmadd_ps(odd_element(a), odd_element(b), odd);
    }
    const auto before = (__m512)software_tiles[kC].rows[m];
    software_tiles[kC].rows[m] = (__m512i)_mm512_add_ps(before, _mm512_add_ps(even, odd));
  }
  _mm_setcsr(control);
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
