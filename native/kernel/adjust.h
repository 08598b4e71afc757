// What turns products of queries and keys into scores: scale, soft cap, bias.
#ifndef REGARD_KERNEL_ADJUST_H
#define REGARD_KERNEL_ADJUST_H

namespace regard {
namespace REGARD_NAMESPACE {

// Whether scores are the scaled products themselves: then the scale is left to the exponential.
inline bool plain(const regard_problem &p) { return p.softcap == 0 && !p.bias.data; }

template <class T>
class Adjust {
 public:
  // `staging` holds kTileSize elements.
  void allocate(const regard_problem &p, T *staging, Scratch &scratch) {
    problem_ = &p;
    staging_ = staging;
    if (p.bias.data) bias_ = scratch.take<T>(kTileSize<T>);
  }

  // Products [key][row] of keys [begin, end) become scores. `slope`, if not null, gets the
  // derivative of the soft cap.
  void apply(const Rows<T> &rows, int64_t begin, int64_t end, T *scores, T *slope = nullptr) const {
    if (plain(*problem_)) return;
    if (bias_) pack_bias(rows, begin, end - begin);
    finish((end - begin) * rows.width, scores, slope);
  }

 private:
  void finish(int64_t count, T *scores, T *slope) const {
    const regard_problem &p = *problem_;
    const Vec<T> one = broadcast<T>(1), size = broadcast(static_cast<T>(fabs(p.scale)));
    const Vec<T> cap = broadcast(static_cast<T>(p.softcap));
    const Vec<T> per_cap = broadcast(static_cast<T>(p.softcap > 0 ? fabs(p.scale) / p.softcap : 0));
    for (int64_t i = 0; i < count; i += kLanes<T>) {
      Vec<T> x = load(scores + i);
      if (p.softcap > 0) {
        const Vec<T> bent = tanh(x * per_cap);
        if (slope) store(slope + i, one - bent * bent);
        x = cap * bent;
      } else {
        x = x * size;
      }
      if (bias_) x = x + load(bias_ + i);
      store(scores + i, x);
    }
  }

  // bias_[key][row] for keys from `begin` on.
  void pack_bias(const Rows<T> &rows, int64_t begin, int64_t count) const {
    const regard_grid &b = problem_->bias;
    const int type = problem_->bias_dtype;
    const int64_t stride = padded<T>(count);
    for (int r = 0; r < rows.width; ++r) {
      const int64_t at = rows.batch * b.batch_stride + rows.head[r] * b.head_stride +
                         rows.query[r] * b.query_stride + begin * b.key_stride;
      const char *from = static_cast<const char *>(b.data) + at * element_size(type);
      T *to = staging_ + r * stride;
      if (b.key_stride) {
        widen_row(to, from, count, type);
        // The next tile: rows are too far apart for the processor to see a stream in them.
        const int64_t bytes = count * element_size(type);
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(from + bytes + i);
      } else {
        T value[kLanes<T>];
        widen_row(value, from, 1, type);
        for (int64_t j = 0; j < stride; ++j) to[j] = value[0];
      }
    }
    transpose(staging_, stride, bias_, rows.width, rows.width, stride);
  }

  const regard_problem *problem_ = nullptr;
  T *staging_ = nullptr, *bias_ = nullptr;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
