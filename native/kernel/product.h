// The one matrix product: c[i][j] (+)= sum_k a(i, k) * b[k][j]. The elements of b may be of another
// type S than T, and are converted as they are read; S may also say how elements are multiplied.
#ifndef REGARD_KERNEL_PRODUCT_H
#define REGARD_KERNEL_PRODUCT_H

namespace regard {
namespace REGARD_NAMESPACE {

// How the left side lies: a(i, k) = a[i * stride + k], or, across, a[k * stride + i].
enum class Left { kRows, kAcross };

// sum + a * b
template <class S, class T>
REGARD_INLINE Vec<T> add_product(S, Vec<T> a, Vec<T> b, Vec<T> sum) {
  return fma(a, b, sum);
}

// A tile of M rows and N vectors, held in registers: elements of a are broadcast, rows of b are
// loaded as they lie.
template <class T, class S, Left kLeft, bool kAsks, int N, int M>
REGARD_NOINLINE void product_tile(const T *a, int64_t a_stride, const S *b, int64_t b_stride, T *c,
                                  int64_t c_stride, int64_t depth, bool add, int64_t ahead) {
  constexpr int L = kLanes<T>;
  Vec<T> sum[M][N];
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) sum[i][j] = broadcast<T>(0);
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> row[N];
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) row[j] = load_as(b + j * L);
    if constexpr (kAsks) {
      constexpr int kLine = 64 / sizeof(S);
#pragma GCC unroll 4
      for (int j = 0; j < N * L; j += kLine) __builtin_prefetch(b + ahead + j);
    }
#pragma GCC unroll 16
    for (int i = 0; i < M; ++i) {
      const Vec<T> x = broadcast<T>(kLeft == Left::kRows ? a[i * a_stride] : a[i]);
#pragma GCC unroll 4
      for (int j = 0; j < N; ++j) sum[i][j] = add_product(S(), x, row[j], sum[i][j]);
    }
    a += kLeft == Left::kRows ? 1 : a_stride;
    b += b_stride;
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; ++i) {
#pragma GCC unroll 4
    for (int j = 0; j < N; ++j) {
      T *at = c + i * c_stride + j * L;
      store(at, add ? load(at) + sum[i][j] : sum[i][j]);
    }
  }
}

template <class T, class S>
using ProductTile = void (*)(const T *, int64_t, const S *, int64_t, T *, int64_t, int64_t, bool,
                             int64_t);

template <class T, class S, Left kLeft, bool kAsks, int N, int... M>
REGARD_INLINE ProductTile<T, S> tile_of(int rows, std::integer_sequence<int, M...>) {
  static constexpr ProductTile<T, S> tiles[] = {&product_tile<T, S, kLeft, kAsks, N, M + 1>...};
  return tiles[rows - 1];
}

// All rows for one panel of N vectors; rows are spread evenly over register tiles.
template <class T, class S, Left kLeft, bool kAsks, int N>
REGARD_INLINE void product_panel(const T *a, int64_t a_stride, const S *b, int64_t b_stride, T *c,
                                 int64_t c_stride, int64_t rows, int64_t depth, bool add,
                                 int64_t ahead) {
  constexpr int most = kRegisterRows[N];
  const int64_t tiles = (rows + most - 1) / most;
  for (int64_t t = 0, first = 0; t < tiles; ++t) {
    const int64_t count = (rows - first + tiles - t - 1) / (tiles - t);
    const T *left = a + (kLeft == Left::kRows ? first * a_stride : first);
    const auto tile = tile_of<T, S, kLeft, kAsks, N>(static_cast<int>(count),
                                                     std::make_integer_sequence<int, most>());
    tile(left, a_stride, b, b_stride, c + first * c_stride, c_stride, depth, add, ahead);
    first += count;
  }
}

constexpr int kPanel = sizeof(kRegisterRows) / sizeof(int) - 1;

// c has `rows` rows of `vectors` vectors; without `add` it is overwritten. kAsks: rows of b
// come from memory, and each element asks for the one `ahead` elements behind it.
template <class T, Left kLeft, bool kAsks = false, class S>
REGARD_NOINLINE void product(const T *a, int64_t a_stride, const S *b, int64_t b_stride, T *c,
                             int64_t c_stride, int64_t rows, int64_t vectors, int64_t depth,
                             bool add, int64_t ahead = 0) {
  const int64_t panels = (vectors + kPanel - 1) / kPanel;
  for (int64_t p = 0; p < panels; ++p) {
    const int64_t width = (vectors + panels - p - 1) / (panels - p);
    if (width == 1) {
      product_panel<T, S, kLeft, kAsks, 1>(a, a_stride, b, b_stride, c, c_stride, rows, depth, add,
                                           ahead);
    } else if (width == 2) {
      product_panel<T, S, kLeft, kAsks, 2>(a, a_stride, b, b_stride, c, c_stride, rows, depth, add,
                                           ahead);
    } else if constexpr (kPanel >= 4) {
      if (width == 3) {
        product_panel<T, S, kLeft, kAsks, 3>(a, a_stride, b, b_stride, c, c_stride, rows, depth,
                                             add, ahead);
      } else {
        product_panel<T, S, kLeft, kAsks, 4>(a, a_stride, b, b_stride, c, c_stride, rows, depth,
                                             add, ahead);
      }
    }
    vectors -= width;
    b += width * kLanes<T>;
    c += width * kLanes<T>;
  }
}

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
