// Sums of values when some hidden value is infinite or NaN: a hidden weight is 0, but 0 x NaN is
// NaN. Such keys are left out of the product, and then added to those rows alone that see them.
#ifndef REGARD_KERNEL_WARY_H
#define REGARD_KERNEL_WARY_H

namespace regard {
namespace REGARD_NAMESPACE {

template <class T>
struct Wary {
  bool on = false;

  void allocate(int64_t width, Scratch &scratch) { row_ = scratch.take<T>(width); }

  // The values of a tile, in `to`, spoilt ones replaced by 0.
  Operand<T> clean(Operand<T> values, int64_t count, int64_t width, T *to) {
    spoilt_ = 0;
    for (int64_t j = 0; j < count; ++j) {
      const T *from = values.data + j * values.stride;
      const bool good = finite_row(from, width, T(1));
      if (!good) spoilt_keys_[spoilt_++] = static_cast<int>(j);
      for (int64_t e = 0; e < width; e += kLanes<T>) {
        store(to + j * width + e, good ? load(from + e) : broadcast<T>(0));
      }
    }
    return {to, width};
  }

  // After clean(), for the keys from `begin` on.
  void add_spoilt(const regard_problem &p, const regard_array &values, const Rows<T> &rows,
                  int64_t value_head, int64_t begin, const T *weights, T *output,
                  int64_t width) const {
    for (int i = 0; i < spoilt_; ++i) {
      const int64_t key = begin + spoilt_keys_[i];
      widen_row(row_, row_of(values, p.dtype, rows.batch, value_head, key), p.value_size, p.dtype);
      const T *weight = weights + spoilt_keys_[i] * rows.width;
      for (int r = 0; r < rows.count; ++r) {
        if (!sees(p, rows.batch, rows.head[r], rows.query[r], key)) continue;
        add_scaled(output + r * width, row_, weight[r], width);
      }
    }
  }

 private:
  int spoilt_ = 0, spoilt_keys_[kTile<T>];
  T *row_ = nullptr;
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
