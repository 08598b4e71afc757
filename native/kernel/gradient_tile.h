// Weights, and gradients of scores, of a block of rows against tiles of keys.
#ifndef REGARD_KERNEL_GRADIENT_TILE_H
#define REGARD_KERNEL_GRADIENT_TILE_H

namespace regard {
namespace REGARD_NAMESPACE {

// `RowBlock` makes scores, as Block does, and says how rows are packed for a product.
template <class T, class RowBlock = Block<T>>
class GradientBlock {
 public:
  RowBlock block;

  // `scores`: gradients of scores are wanted, not the weights alone.
  void allocate(const regard_problem &p, const regard_gradients &g, bool scores, Scratch &scratch) {
    problem_ = &p;
    gradients_ = &g;
    block.allocate(p, scratch);
    if (p.dropout > 0) factors_ = scratch.take<T>(kTileSize<T>);
    if (!scores) return;
    if (p.softcap > 0) slope_ = scratch.take<T>(kTileSize<T>);
    const int64_t size = kBlock<T> * padded<T>(p.value_size);
    d_output_ = scratch.take<T>(size);
    staging_ = scratch.take<T>(size);
  }

  // To be called when block.rows has changed.
  void set() {
    const regard_problem &p = *problem_;
    const Rows<T> &rows = block.rows;
    block.set();
    if (p.dropout > 0) dropout_.set(p, rows);
    if (d_output_) {
      RowBlock::pack(p, rows, gradients_->d_output, p.value_size, T(1), staging_, d_output_);
    }
    const T *lse = static_cast<const T *>(gradients_->lse);
    for (int r = 0; r < rows.width; ++r) {
      const int64_t at = (rows.batch * p.heads + rows.head[r]) * p.queries + rows.query[r];
      // A row that saw nothing has weights 2^(score - inf) = 0.
      shift_[r] = lse[at] == -kInfinity<T> ? lse[at] : -lse[at] * static_cast<T>(kLog2e);
      if (d_output_)
        delta_[r] = delta_of<T>(p, *gradients_, rows.batch, rows.head[r], rows.query[r]);
    }
  }

  // For keys [begin, end) as block.sight.look() left them: weights[key][row] after dropout, and,
  // unless null, d_scores[key][row]; with respect to the scaled product before the soft cap, or,
  // if not `before_cap`, after it. These latter are also added to `distances`, unless null.
  void tile(View view, Operand<T> keys, Operand<T> values, int64_t begin, int64_t end, T *weights,
            T *d_scores, bool before_cap, const DistanceSums<T> *distances = nullptr) {
    const regard_problem &p = *problem_;
    const int64_t count = end - begin;
    const int width = block.rows.width;
    T *slope = d_scores && before_cap ? slope_ : nullptr;
    block.scores(keys, begin, end, weights, slope);
    if (d_scores) {
      using Packed = typename RowBlock::Packed;
      product<T, Left::kRows>(values.data, values.stride,
                              reinterpret_cast<const Packed *>(d_output_), width, d_scores, width,
                              count, width / kLanes<T>, RowBlock::depth(p.value_size), false);
    }
    if (p.dropout > 0) dropout_.fill(begin, count, factors_);
    for (int r = 0; r < width; r += kLanes<T>) {
      if (view == View::kSome) {
        lanes<true>(r, count, weights, d_scores, slope, distances, begin);
      } else {
        lanes<false>(r, count, weights, d_scores, slope, distances, begin);
      }
    }
  }

 private:
  // Scores become weights, gradients of weights those of scores. What is hidden is selected to 0.
  template <bool kSome>
  void lanes(int r, int64_t count, T *weights, T *d_scores, const T *slope,
             const DistanceSums<T> *distances, int64_t begin) const {
    const int width = block.rows.width;
    const Vec<T> unit = broadcast(score_unit<T>(*problem_)), zero = broadcast<T>(0);
    const Vec<T> shift = load(shift_ + r), delta = load(delta_ + r);
    for (int64_t j = 0; j < count; ++j) {
      const int64_t at = j * width + r;
      Vec<T> weight = exp2(fma(load(weights + at), unit, shift));
      if (kSome) weight = select(block.sight.visible(j, r), weight, zero);
      Vec<T> kept = weight;
      if (factors_) kept = weight * load(factors_ + at);
      store(weights + at, kept);
      if (!d_scores) continue;
      Vec<T> d = load(d_scores + at);
      if (factors_) d = d * load(factors_ + at);
      d = weight * (d - delta);
      if (distances) add_distance(r, weight, d, distances->at(block.rows.query[r], begin + j));
      if (slope) d = d * load(slope + at);
      if (kSome) d = select(block.sight.visible(j, r), d, zero);
      store(d_scores + at, d);
    }
  }

  // Lanes that repeat the last row do not count, nor does what is hidden.
  void add_distance(int r, Vec<T> weight, Vec<T> d, T *sum) const {
    const Vec<T> zero = broadcast<T>(0);
    d = select(differ(weight, zero), d, zero);
    if (r + kLanes<T> <= block.rows.count) return store(sum, load(sum) + d);
    T lanes[kLanes<T>];
    store(lanes, d);
    for (int i = 0; r + i < block.rows.count; ++i) sum[i] += lanes[i];
  }

  const regard_problem *problem_ = nullptr;
  const regard_gradients *gradients_ = nullptr;
  Dropout<T> dropout_;
  T *d_output_ = nullptr;  // packed
  T *staging_ = nullptr, *factors_ = nullptr, *slope_ = nullptr;
  T shift_[kBlock<T>], delta_[kBlock<T>];
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
