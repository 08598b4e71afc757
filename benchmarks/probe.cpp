// What this machine can do at most: loops that do one thing as fast as it goes, and nothing else.
//
// probe.py compiles this for the machine that it runs on. Each function does so much of its work on
// so many threads; whoever calls it takes the time. A function returns 0 where the machine lacks
// it.
#include <omp.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#if defined(__AVX512DQ__)
#include <immintrin.h>
#endif
#if defined(__AMX_BF16__) && defined(__AVX512DQ__) && defined(__linux__)
#define PROBE_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif
constexpr int kLanes = kVectorBytes / 4;
typedef float Floats __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));
typedef uint32_t Bits __attribute__((vector_size(kVectorBytes), aligned(4), may_alias));

// The compiler must take the value for used and changed.
template <typename T>
inline void touch(T &value) {
  __asm__ volatile("" : "+m"(value) : : "memory");
}

// 2^x for |x| < 100, to about 3e-6: what lies above the next smaller integer goes through a
// polynomial, and the integer into the exponent.
inline Floats exp2(Floats x) {
#if defined(__AVX512DQ__)
  constexpr int kAboveFloor = 1;
  const Floats rest = (Floats)_mm512_reduce_ps((__m512)x, kAboveFloor);
#else
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const Floats floor = x - 0.5f + magic, rest = x - (floor - magic);
#endif
  Floats power = rest * 0.01353393f + 0.05201124f;
  power = power * rest + 0.2414434f;
  power = power * rest + 0.6930035f;
  power = power * rest + 1.000003f;
#if defined(__AVX512DQ__)
  return (Floats)_mm512_scalef_ps((__m512)power, (__m512)x);
#else
  return (Floats)((Ints)power + ((Ints)floor << 23));
#endif
}

// One thread's part of so many pieces of work.
inline int64_t share(double all, double piece) {
  const int64_t pieces = static_cast<int64_t>(all / piece + 0.5);
  const int64_t threads = omp_get_num_threads(), mine = omp_get_thread_num();
  return pieces * (mine + 1) / threads - pieces * mine / threads;
}

}  // namespace

// Multiplications and additions of float32, two operations a lane, all in registers.
extern "C" int probe_fma(double operations, int threads) {
  constexpr int kSums = 12, kTurns = 64;
#pragma omp parallel num_threads(threads)
  {
    Floats factor, sums[kSums];
    for (int i = 0; i < kLanes; ++i) factor[i] = 0.999f;
    for (int i = 0; i < kSums; ++i) sums[i] = factor + static_cast<float>(i);
    for (int64_t n = share(operations, 2.0 * kLanes * kSums * kTurns); n > 0; --n) {
      for (int turn = 0; turn < kTurns; ++turn) {
#pragma GCC unroll 12
        for (int i = 0; i < kSums; ++i) sums[i] = sums[i] * factor + factor;
      }
    }
    touch(sums);
  }
  return 1;
}

// Powers of 2 of numbers in the first-level cache, summed up and stored.
extern "C" int probe_exp(double count, int threads) {
  constexpr int kCount = 2048;
#pragma omp parallel num_threads(threads)
  {
    alignas(64) float numbers[kCount], powers[kCount];
    for (int i = 0; i < kCount; ++i) numbers[i] = -20.0f * i / kCount;
    Floats sum = {}, other = {};
    for (int64_t n = share(count, kCount); n > 0; --n) {
      touch(numbers);
      for (int i = 0; i < kCount; i += 2 * kLanes) {
        const Floats a = exp2(*reinterpret_cast<Floats *>(numbers + i) * 1.01f);
        const Floats b = exp2(*reinterpret_cast<Floats *>(numbers + i + kLanes) * 1.01f);
        sum += *reinterpret_cast<Floats *>(powers + i) = a;
        other += *reinterpret_cast<Floats *>(powers + i + kLanes) = b;
      }
      touch(powers);
    }
    sum += other;
    touch(sum);
  }
  return 1;
}

// Read these buffers once, each cut among the threads.
extern "C" int probe_read(const void *const *buffers, const int64_t *bytes, int count,
                          int threads) {
  constexpr int64_t kStep = 512, kAhead = 4096;
#pragma omp parallel num_threads(threads)
  {
    Floats sums[8] = {};
    for (int b = 0; b < count; ++b) {
      const int64_t steps = bytes[b] / kStep, mine = omp_get_thread_num();
      const int64_t all = omp_get_num_threads();
      const char *from = static_cast<const char *>(buffers[b]) + steps * mine / all * kStep;
      const char *to = static_cast<const char *>(buffers[b]) + steps * (mine + 1) / all * kStep;
      for (; from < to; from += kStep) {
#pragma GCC unroll 8
        for (int64_t i = 0; i < kStep; i += 64) __builtin_prefetch(from + kAhead + i);
#pragma GCC unroll 32
        for (int64_t i = 0; i < kStep; i += kVectorBytes) {
          sums[i / kVectorBytes % 8] += *reinterpret_cast<const Floats *>(from + i);
        }
      }
    }
    touch(sums);
  }
  return 1;
}

#ifdef PROBE_AMX
namespace {

constexpr int kRows = 16, kRowBytes = 64;  // of a tile

template <int kTile>
inline void load(const void *from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(stride), "n"(kTile)
                   : "memory");
}
template <int kTile>
inline void stream(const void *from, int64_t stride) {
  __asm__ volatile("tileloaddt1 (%0,%1,1), %%tmm%c2"
                   :
                   : "r"(from), "r"(stride), "n"(kTile)
                   : "memory");
}
template <int kTile>
inline void store(void *to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)"
                   :
                   : "r"(to), "r"(stride), "n"(kTile)
                   : "memory");
}
template <int kTile>
inline void zero() {
  __asm__ volatile("tilezero %%tmm%c0" : : "n"(kTile) : "memory");
}
template <int kC, int kA, int kB>
inline void multiply() {
  __asm__ volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0"
                   :
                   : "n"(kC), "n"(kA), "n"(kB)
                   : "memory");
}

bool permitted() {
  constexpr int kRequest = 0x1023, kTileData = 18;
  static const bool granted = syscall(SYS_arch_prctl, kRequest, kTileData) == 0;
  return granted;
}

void configure() {
  alignas(64) uint8_t config[64] = {1};
  for (int i = 0; i < 8; ++i) {
    config[16 + 2 * i] = kRowBytes;
    config[48 + i] = kRows;
  }
  __asm__ volatile("ldtilecfg %0" : : "m"(config) : "memory");
}

void release() { __asm__ volatile("tilerelease" : : : "memory"); }

// bfloat16 between -1 and 1.
void fill(uint16_t *to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const float value = static_cast<float>(std::rand()) / RAND_MAX * 2 - 1;
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    to[i] = static_cast<uint16_t>(bits >> 16);
  }
}

// Attention of 32 queries at a time, all operands packed already, in three steps that alternate
// instruction by instruction: scores of the next 64 keys, weights of these, and sums of the values
// of the 128 keys before. Nothing is masked, scaled again, divided or written out.
template <int kSize>
class Fused {
 public:
  static constexpr int64_t kKeys = 1024, kQueries = 32;

  Fused() {
    fill(keys_, kKeys * kSize);
    fill(values_, kKeys * kSize);
    fill(queries_, kQueries * kSize);
    std::memset(scores_, 0, sizeof scores_);
    std::memset(weights_, 0, sizeof weights_);
    std::memset(sums_, 0, sizeof sums_);
  }

  // All keys once. The pipeline never runs empty: what comes first is of the call before.
  void run() {
    for (int64_t key = 0; key < kKeys; key += kGroup) {
      round<0>(key);
      round<1>(key + kRound);
      group_ ^= 1;
    }
  }

 private:
  static constexpr int64_t kRound = 64, kGroup = 2 * kRound;
  static constexpr int kProducts = 2 * 4 * (kSize / 32) + kSize / 64 * 4 * 4;  // in a round
  static constexpr int kPieces = kRound / 2 * (kQueries / 16);

  // Weights of two keys and 16 queries, cut to bfloat16 side by side.
  inline void piece(const float *scores, uint32_t *weights, int at) {
    const int key = at / 2, half = at % 2;
    const float *from = scores + 2 * key * kQueries + 16 * half;
    const Ints first = power(from, half), second = power(from + kQueries, half);
    *reinterpret_cast<Ints *>(weights + key * kQueries + 16 * half) =
        (second & static_cast<int>(0xffff0000)) | (Ints)((Bits)first >> 16);
  }
  inline Ints power(const float *from, int half) {
    const Floats result = exp2(*reinterpret_cast<const Floats *>(from) * scale_ - 1.0f);
    total_[half] += result;
    return (Ints)result;
  }

  // The pieces that fall behind one product of tiles.
  inline void pause(const float *scores, uint32_t *weights, int *product) {
    const int first = *product * kPieces / kProducts, last = ++*product * kPieces / kProducts;
    for (int at = first; at < last; ++at) piece(scores, weights, at);
  }

  // 2 x 2 tiles of scores or of sums: a is read by rows of 64 bytes, `depth` steps of 32.
  template <bool kAdd, typename Pause>
  inline void block(const uint16_t *a, int64_t a_step, const void *b, int64_t b_step, float *c,
                    int depth, Pause pause) {
    constexpr int64_t kWide = kQueries * 4;
    float *below = c + kRows * kQueries;
    if (kAdd) {
      load<0>(c, kWide), load<1>(c + 16, kWide), load<2>(below, kWide), load<3>(below + 16, kWide);
    } else {
      zero<0>(), zero<1>(), zero<2>(), zero<3>();
    }
#pragma GCC unroll 4
    for (int step = 0; step < depth; ++step) {
      const uint16_t *left = a + step * a_step;
      const char *right = static_cast<const char *>(b) + step * b_step;
      load<6>(right, kWide), stream<4>(left, kRowBytes);
      multiply<0, 4, 6>(), pause();
      load<7>(right + 64, kWide);
      multiply<1, 4, 7>(), pause();
      stream<5>(left + kRows * 32, kRowBytes);
      multiply<2, 5, 6>(), pause();
      multiply<3, 5, 7>(), pause();
    }
    store<0>(c, kWide), store<1>(c + 16, kWide);
    store<2>(below, kWide), store<3>(below + 16, kWide);
  }

  // One of the two rounds of a group.
  template <int kHalf>
  __attribute__((noinline)) void round(int64_t key) {
    const float *scores = scores_[1 - kHalf];  // made in the round before
    uint32_t *weights = weights_[kHalf ? group_ : 1 - group_] + (1 - kHalf) * kRound / 2 * kQueries;
    int product = 0;
    const auto pause_here = [&] { pause(scores, weights, &product); };
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      block<false>(keys_ + (key + 32 * half) * 32, kKeys * 32, queries_, 16 * kQueries * 4,
                   scores_[kHalf] + 32 * half * kQueries, kSize / 32, pause_here);
    }
#pragma GCC unroll 2
    for (int part = 0; part < kSize / 64; ++part) {
      const int rows = 32 * (kHalf * (kSize / 64) + part);
      block<true>(values_ + (key - kHalf * kRound) * kSize + rows * 32, kSize * 32,
                  weights_[group_], 16 * kQueries * 4, sums_ + rows * kQueries, 4, pause_here);
    }
  }

  alignas(64) uint16_t keys_[kKeys * kSize];        // (size / 32, keys, 32)
  alignas(64) uint16_t values_[kKeys * kSize];      // (keys / 32, size, 32)
  alignas(64) uint16_t queries_[kQueries * kSize];  // (size / 2, queries, 2)
  alignas(64) float scores_[2][kRound * kQueries];
  alignas(64) uint32_t weights_[2][kGroup / 2 * kQueries];
  alignas(64) float sums_[kSize * kQueries];
  Floats total_[2] = {};
  float scale_ = 0.18f;
  int group_ = 0;
};

template <int kSize>
void fused(double pairs, int threads) {
#pragma omp parallel num_threads(threads)
  {
    static thread_local Fused<kSize> work;
    configure();
    for (int64_t n = share(pairs, Fused<kSize>::kKeys * Fused<kSize>::kQueries); n > 0; --n) {
      work.run();
    }
    release();
  }
}

}  // namespace

// Products of bfloat16 tiles in registers, two operations for each pair of elements.
extern "C" int probe_amx(double operations, int threads) {
  if (!permitted()) return 0;
#pragma omp parallel num_threads(threads)
  {
    constexpr int kTurns = 64;
    alignas(64) uint16_t numbers[kRows * 32];
    fill(numbers, kRows * 32);
    configure();
    zero<0>(), zero<1>(), zero<2>(), zero<3>();
    load<4>(numbers, kRowBytes), load<5>(numbers, kRowBytes);
    load<6>(numbers, kRowBytes), load<7>(numbers, kRowBytes);
    for (int64_t n = share(operations, 2.0 * 16 * 16 * 32 * 4 * kTurns); n > 0; --n) {
      for (int turn = 0; turn < kTurns; ++turn) {
        multiply<0, 4, 6>(), multiply<1, 4, 7>(), multiply<2, 5, 6>(), multiply<3, 5, 7>();
      }
    }
    release();
  }
  return 1;
}

// Attention's forward in bfloat16 for so many pairs of a query and a key, heads of 64 or 128.
extern "C" int probe_fused(double pairs, int size, int threads) {
  if (!permitted() || (size != 64 && size != 128)) return 0;
  size == 64 ? fused<64>(pairs, threads) : fused<128>(pairs, threads);
  return 1;
}
#else
extern "C" int probe_amx(double, int) { return 0; }
#ifdef __AVX512BF16__
namespace {

// What attention does at least for vectors of pairs of a query and a key, all in registers: for
// each the products of `kSize` pairs of elements, half of them for its score and half for its
// value, and one vector of exponentials.
template <int kSize>
void fused(double pairs, int threads) {
#pragma omp parallel num_threads(threads)
  {
    constexpr int kSums = 16, kTurns = 64;
    Floats sums[kSums], number, total = {};
    const __m512bh factor = (__m512bh)_mm512_set1_epi16(0x3c00);
    for (int i = 0; i < kLanes; ++i) number[i] = -20.0f * i / kLanes;
    for (int i = 0; i < kSums; ++i) sums[i] = number;
    for (int64_t n = share(pairs, kLanes * kTurns); n > 0; --n) {
      for (int turn = 0; turn < kTurns; ++turn) {
        for (int step = 0; step < kSize; step += kSums) {
#pragma GCC unroll 16
          for (int i = 0; i < kSums; ++i) {
            sums[i] = (Floats)_mm512_dpbf16_ps((__m512)sums[i], factor, factor);
          }
        }
        total += exp2(number * 1.01f - 1.0f);
        __asm__ volatile("" : "+v"(number));
      }
    }
    for (int i = 0; i < kSums; ++i) total += sums[i];
    touch(total);
  }
}

}  // namespace

extern "C" int probe_fused(double pairs, int size, int threads) {
  if (size != 64 && size != 128) return 0;
  size == 64 ? fused<64>(pairs, threads) : fused<128>(pairs, threads);
  return 1;
}
#else
extern "C" int probe_fused(double, int, int) { return 0; }
#endif
#endif
