// Sums of products of the weights of every two heads of a batch element: the weights of all heads
// for some rows and keys lie side by side.
#ifndef REGARD_KERNEL_READOUTS_SIMILARITY_H
#define REGARD_KERNEL_READOUTS_SIMILARITY_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
class Similarity {
 public:
  Similarity(const regard_problem &p, const T *lse, T *products)
      : p_(p), lse_(lse), products_(products) {
    blocks_ = (p.queries + kBlock<T> - 1) / kBlock<T>;
    const int64_t wanted = (kItems + p.batch - 1) / p.batch;
    pieces_ = std::max<int64_t>(1, std::min(wanted, blocks_));
  }

  int run() {
    Scratch scratch(Scratch::kCall);
    const int64_t size = p_.heads * p_.heads, items = p_.batch * pieces_;
    sums_ = scratch.take<double>(items * size);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    std::fill_n(sums_, items * size, 0.0);
    const int status = parallel(items, p_.threads, &Similarity::task, this);
    if (status != REGARD_OK) return status;
    for (int64_t b = 0; b < p_.batch; ++b) {
      for (int64_t i = 0; i < size; ++i) {
        double sum = 0;
        for (int64_t n = 0; n < pieces_; ++n) sum += sums_[(b * pieces_ + n) * size + i];
        products_[b * size + i] = static_cast<T>(sum);
      }
    }
    return REGARD_OK;
  }

 private:
  // Tiles of keys whose weights are held at once, so that queries are packed less often.
  static constexpr int64_t kItems = 64, kTiles = 4, kSize = kTiles * kTileSize<T>;

  struct State {
    Block<T> block;
    T *values, *keys;
    double *sums;
  };

  static int task(void *context, int64_t index) {
    const Similarity &self = *static_cast<Similarity *>(context);
    const regard_problem &p = self.p_;
    Scratch scratch(Scratch::kTask);
    State s;
    s.block.allocate(p, scratch);
    s.values = scratch.take<T>(p.heads * kSize);
    s.keys = scratch.take<T>(kTile<T> * padded<T>(p.head_size));
    s.sums = self.sums_ + index * p.heads * p.heads;
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    const int64_t b = index / self.pieces_, piece = index % self.pieces_;
    const int64_t last = self.blocks_ * (piece + 1) / self.pieces_;
    for (int64_t block = self.blocks_ * piece / self.pieces_; block < last; ++block) {
      for (int64_t j = 0; j < p.keys; j += kTiles * kTile<T>) {
        self.step(s, b, block, j, std::min(p.keys, j + kTiles * kTile<T>));
      }
    }
    return REGARD_OK;
  }

  // All heads for one block of rows and some keys.
  void step(State &s, int64_t batch, int64_t block, int64_t begin, int64_t end) const {
    Rows<T> &rows = s.block.rows;
    const int64_t first = block * kBlock<T>;
    bool seen = false;
    for (int64_t h = 0; h < p_.heads; ++h) {
      rows.set(p_, batch, h, first, std::min<int64_t>(kBlock<T>, p_.queries - first));
      seen |= weigh(s, begin, end, s.values + h * kSize);
    }
    if (!seen) return;
    const int64_t size = (end - begin) * rows.width;
    for (int64_t g = 0; g < p_.heads; ++g) {
      for (int64_t h = 0; h <= g; ++h) {
        const double sum = dot(s.values + g * kSize, s.values + h * kSize, size);
        s.sums[g * p_.heads + h] += sum;
        if (g != h) s.sums[h * p_.heads + g] += sum;
      }
    }
  }

  // Weights [key][row] of one head, 0 where nothing is seen and in lanes beyond the rows. Returns
  // whether there are any.
  bool weigh(State &s, int64_t first, int64_t last, T *values) const {
    const Rows<T> &rows = s.block.rows;
    const int width = rows.width;
    std::fill_n(values, (last - first) * width, T(0));
    s.block.set();
    bool seen = false;
    for (int64_t t = first; t < last; t += kTile<T>) {
      int64_t begin = t, end = std::min(last, t + kTile<T>);
      const View view = s.block.sight.look(&begin, &end);
      if (view == View::kNone) continue;
      T *to = values + (begin - first) * width;
      s.block.scores(begin, end, s.keys, to);
      if (view == View::kSome) s.block.sight.hide(end - begin, to);
      RowSums<T> sums(p_, lse_, kNothing);
      sums.start(rows);
      sums.take({rows, begin, end - begin, to}, true);
      for (int64_t j = 0; rows.count < width && j < end - begin; ++j) {
        std::fill(to + j * width + rows.count, to + (j + 1) * width, T(0));
      }
      seen = true;
    }
    return seen;
  }

  static constexpr Request kNothing = {};

  const regard_problem &p_;
  const T *lse_;
  T *products_;
  int64_t blocks_, pieces_;
  double *sums_ = nullptr;  // [piece][head][head]
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
