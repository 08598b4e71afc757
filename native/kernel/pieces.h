// How the backward is cut into pieces, and what becomes of their sums.
#ifndef REGARD_KERNEL_PIECES_H
#define REGARD_KERNEL_PIECES_H

namespace regard {
namespace REGARD_NAMESPACE {

// One batch, one key head, one chunk of the queries. Kernels add what else they work on.
template <class T>
struct Piece {
  int64_t batch, key_head, value_head, chunk;
  int64_t first_key, last_key;  // what its queries see lies in between, in whole blocks
  T *d_key, *d_value;           // sums over its queries [key][padded size]; null if not wanted
  T *d_vector;                  // the same [padded size], of the head at hand
  DistanceSums<T> *distances;   // where gradients of scores are to be added; null if not wanted
};

// Each piece sums gradients of keys and values over its queries; with several chunks the sums are
// added up afterwards, in the order of chunks. A kernel derives from this and has
//
//   struct Work : Piece<T>
//   void allocate(Work &, Scratch &) const
//   kPanelRows, and void panel(Work &, head, first, last, careful) const: for so many queries
//   of one head at most, writes their gradients and adds to the sums
//   kSplit: elements are split into parts. Those of something infinite do not add up to it, and
//   then no row that comes out as NaN is to be trusted.
template <class T, class Kernel>
class Pieces {
 public:
  Pieces(const regard_problem &p, const regard_gradients &g)
      : p_(p),
        g_(g),
        keys_{g.d_key, p.key_heads, p.head_size, padded<T>(p.head_size), static_cast<T>(p.scale)},
        values_{g.d_value, p.value_heads, p.value_size, padded<T>(p.value_size), T(1)},
        by_distance_(g.d_bias.data && by_distance(g.d_bias)),
        scores_(g.d_query.data || g.d_key.data || g.d_vector || by_distance_),
        group_(p.heads / p.key_heads),
        rows_(round_up(p.keys, kBlock<T>)) {
    const int64_t pieces = std::max<int64_t>(1, p.batch * p.key_heads);
    const int64_t queries = group_ * p.queries;
    chunks_ = std::min((kPieces + pieces - 1) / pieces, queries / kLeastRows);
    chunks_ = std::max<int64_t>(1, std::min(chunks_, p.queries / kBlock<T>));
  }

  int run() {
    if (!scores_ && !g_.d_value.data) return REGARD_OK;
    Scratch scratch(Scratch::kCall);
    const int64_t pieces = p_.batch * p_.key_heads * chunks_;
    if (chunks_ > 1) {
      seen_ = scratch.take<Range>(pieces);
      for (Side *side : {&keys_, &values_}) {
        if (!side->to.data) continue;
        side->chunks = scratch.take<T>(p_.batch * side->heads * chunks_ * rows_ * side->stride);
      }
    }
    if (g_.d_vector) vectors_ = scratch.take<T>(pieces * group_ * keys_.stride);
    if (by_distance_) {
      distances_ = scratch.take<T>(pieces * group_ * DistanceSums<T>::finished(p_));
    }
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    int status = parallel(pieces, p_.threads, &Pieces::piece_task, this);
    if (status == REGARD_OK && vectors_) add_vectors();
    if (status == REGARD_OK && by_distance_) {
      const regard_grid &d = g_.d_bias;
      const int64_t tables = (d.batch_stride ? p_.batch : 1) * (d.head_stride ? p_.heads : 1);
      status = parallel(tables, p_.threads, &Pieces::distances_task, this);
    }
    if (status != REGARD_OK || chunks_ == 1) return status;
    const int64_t blocks = rows_ / kBlock<T>;
    return parallel(p_.batch * p_.value_heads * blocks, p_.threads, &Pieces::add_task, this);
  }

  // Whether all is to be done again by another kernel (kSplit).
  bool spoilt() const { return spoilt_.load(); }

 protected:
  // Whether something hidden may have spoilt a row that can be done again by itself.
  bool suspect(const T *row, int64_t n, T factor) const {
    if (!Kernel::kSplit && !p_.intervals.data && !p_.mask.data) return false;
    if (finite_row(row, n, factor)) return false;
    if (Kernel::kSplit) spoilt_.store(true, std::memory_order_relaxed);
    return !Kernel::kSplit;
  }

  void write_query(int64_t b, int64_t h, int64_t i, const T *row, Careful<T> &careful) const {
    const T scale = static_cast<T>(p_.scale);
    narrow_row(row_of(g_.d_query, p_.dtype, b, h, i), row, p_.head_size, p_.dtype, scale);
    if (suspect(row, p_.head_size, scale)) careful.d_query(b, h, i, g_);
  }

  const regard_problem &p_;
  const regard_gradients &g_;

 private:
  static constexpr int64_t kPieces = 16, kLeastRows = 512;

  // Gradients of keys, or of values.
  struct Side {
    const regard_array &to;
    int64_t heads, size, stride;  // stride: the padded size
    T factor;
    T *chunks = nullptr;  // sums [batch][head][chunk][key][stride], if there are several

    T *sums(int64_t b, int64_t head, int64_t count, int64_t chunk, int64_t rows) const {
      return chunks + ((b * heads + head) * count + chunk) * rows * stride;
    }
  };

  struct Range {
    int64_t first, last;
    bool has(int64_t j) const { return first <= j && j < last; }
  };

  static int piece_task(void *context, int64_t index) {
    const Pieces &self = *static_cast<Pieces *>(context);
    const regard_problem &p = self.p_;
    Scratch scratch(Scratch::kTask);
    typename Kernel::Work s;
    // Later queries come first: under a causal mask they take longest.
    s.chunk = self.chunks_ - 1 - index % self.chunks_;
    s.key_head = index / self.chunks_ % p.key_heads;
    s.batch = index / self.chunks_ / p.key_heads;
    self.kernel().allocate(s, scratch);
    T *sums[2] = {};
    if (self.chunks_ == 1) {
      if (self.keys_.to.data) sums[0] = scratch.take<T>(self.rows_ * self.keys_.stride);
      if (self.values_.to.data) sums[1] = scratch.take<T>(self.rows_ * self.values_.stride);
    }
    T *zeros = self.zero_row(scratch);
    DistanceSums<T> distances;
    if (self.by_distance_) {
      const int64_t rows = round_up(p.queries / self.chunks_ + 1, kBlock<T>);
      distances.allocate(p, rows, scratch);
    }
    s.distances = self.by_distance_ ? &distances : nullptr;
    Careful<T> careful(p, self.g_.d_output, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    self.piece(s, sums[0], sums[1], zeros, careful);
    return REGARD_OK;
  }

  T *zero_row(Scratch &scratch) const {
    const int64_t size = std::max(keys_.stride, values_.stride);
    T *row = scratch.take<T>(size);
    if (row) std::fill_n(row, size, T(0));
    return row;
  }

  // `d_keys` and `d_values`: memory for the sums, if there is one chunk.
  template <class Work>
  void piece(Work &s, T *d_keys, T *d_values, const T *zeros, Careful<T> &careful) const {
    const int64_t first = p_.queries * s.chunk / chunks_;
    const int64_t last = p_.queries * (s.chunk + 1) / chunks_;
    const Range seen = see(s.batch, s.key_head, first, last);
    if (seen_) seen_[(s.batch * p_.key_heads + s.key_head) * chunks_ + s.chunk] = seen;
    s.first_key = seen.first;
    s.last_key = seen.last;
    s.d_key = start(keys_, s, s.key_head, d_keys);
    for (int64_t h = s.key_head * group_; h < (s.key_head + 1) * group_; ++h) {
      const int64_t shared = p_.heads / p_.value_heads;
      s.value_head = h / shared;
      if (h % shared == 0) s.d_value = start(values_, s, s.value_head, d_values);
      s.d_vector = vectors_ ? vector_sums(s.batch, h, s.chunk) : nullptr;
      if (s.d_vector) std::fill_n(s.d_vector, keys_.stride, T(0));
      if (s.distances) s.distances->start(first);
      for (int64_t row = first; row < last; row += Kernel::kPanelRows) {
        kernel().panel(s, h, row, std::min(last, row + Kernel::kPanelRows), careful);
      }
      if (s.distances) s.distances->finish(p_, distance_sums(s.batch, h, s.chunk));
      if ((h + 1) % shared == 0) finish(values_, s, s.value_head, s.d_value, zeros, careful);
    }
    finish(keys_, s, s.key_head, s.d_key, zeros, careful);
  }

  // Whole blocks of keys, with all that queries [first, last) see.
  Range see(int64_t batch, int64_t key_head, int64_t first, int64_t last) const {
    const regard_intervals &v = p_.intervals;
    if (!v.data) return {0, rows_};
    int64_t least = p_.keys, most = 0;
    for (int64_t h = key_head * group_; h < (key_head + 1) * group_; ++h) {
      for (int64_t i = first; i < last; ++i) {
        const int32_t *pair =
            v.data + batch * v.batch_stride + h * v.head_stride + i * v.query_stride;
        for (int64_t c = 0; c < v.count; ++c) {
          if (pair[2 * c] >= pair[2 * c + 1]) continue;
          least = std::min<int64_t>(least, pair[2 * c]);
          most = std::max<int64_t>(most, pair[2 * c + 1]);
        }
      }
    }
    if (least >= most) return {0, 0};
    return {std::max<int64_t>(least, 0) / kBlock<T> * kBlock<T>,
            round_up(std::min(most, p_.keys), kBlock<T>)};
  }

  // Sums for one head, 0 where anything will be added. `own`: their memory if there is one chunk.
  T *start(const Side &side, const Piece<T> &s, int64_t head, T *own) const {
    if (!side.to.data) return nullptr;
    T *sums = side.chunks ? side.sums(s.batch, head, chunks_, s.chunk, rows_) : own;
    std::fill(sums + s.first_key * side.stride, sums + s.last_key * side.stride, T(0));
    return sums;
  }

  // Nothing is left to add if there is one chunk.
  void finish(const Side &side, const Piece<T> &s, int64_t head, const T *sums, const T *zeros,
              Careful<T> &careful) const {
    if (!sums || chunks_ > 1) return;
    const Range seen{s.first_key, s.last_key};
    for (int64_t j = 0; j < p_.keys; ++j) {
      write(side, s.batch, head, j, seen.has(j) ? sums + j * side.stride : zeros, careful);
    }
  }

  T *vector_sums(int64_t b, int64_t head, int64_t chunk) const {
    return vectors_ + ((b * p_.heads + head) * chunks_ + chunk) * keys_.stride;
  }

  void add_vectors() const {
    T *to = static_cast<T *>(g_.d_vector);
    for (int64_t row = 0; row < p_.batch * p_.heads; ++row) {
      for (int64_t a = 0; a < p_.head_size; ++a) {
        T sum = 0;
        for (int64_t c = 0; c < chunks_; ++c) {
          sum += vector_sums(row / p_.heads, row % p_.heads, c)[a];
        }
        to[row * p_.head_size + a] = keys_.factor * sum;
      }
    }
  }

  T *distance_sums(int64_t b, int64_t head, int64_t chunk) const {
    return distances_ + ((b * p_.heads + head) * chunks_ + chunk) * DistanceSums<T>::finished(p_);
  }

  // The gradient of one table of a bias by distance, over all that share it.
  static int distances_task(void *context, int64_t index) {
    const Pieces &self = *static_cast<Pieces *>(context);
    const regard_problem &p = self.p_;
    const regard_grid &d = self.g_.d_bias;
    const int64_t heads = d.head_stride ? p.heads : 1, b = index / heads, h = index % heads;
    T *to = static_cast<T *>(d.data) + b * d.batch_stride + h * d.head_stride - (p.queries - 1);
    std::fill_n(to, distances(p), T(0));
    for (int64_t batch = b; batch < (d.batch_stride ? b + 1 : p.batch); ++batch) {
      for (int64_t head = h; head < (d.head_stride ? h + 1 : p.heads); ++head) {
        for (int64_t c = 0; c < self.chunks_; ++c) {
          const T *sums = self.distance_sums(batch, head, c);
          for (int64_t n = 0; n < distances(p); ++n) {
            to[n] += DistanceSums<T>::finished_at(sums, p, n);
          }
        }
      }
    }
    return REGARD_OK;
  }

  // Adds up the chunks of a block of keys of one value head (and of its key head, if it is the
  // first of its value heads).
  static int add_task(void *context, int64_t index) {
    const Pieces &self = *static_cast<Pieces *>(context);
    const regard_problem &p = self.p_;
    const int64_t blocks = self.rows_ / kBlock<T>;
    const int64_t first = index % blocks * kBlock<T>;
    const int64_t b = index / blocks / p.value_heads, head = index / blocks % p.value_heads;
    const int64_t per_key = p.value_heads / p.key_heads, key_head = head / per_key;
    Scratch scratch(Scratch::kTask);
    T *sum = self.zero_row(scratch);
    Careful<T> careful(p, self.g_.d_output, scratch);
    if (scratch.failed()) return REGARD_OUT_OF_MEMORY;
    self.add(self.values_, b, head, key_head, first, sum, careful);
    if (head % per_key == 0) self.add(self.keys_, b, key_head, key_head, first, sum, careful);
    return REGARD_OK;
  }

  void add(const Side &side, int64_t b, int64_t head, int64_t key_head, int64_t first, T *sum,
           Careful<T> &careful) const {
    if (!side.chunks) return;
    const Range *seen = seen_ + (b * p_.key_heads + key_head) * chunks_;
    for (int64_t j = first; j < std::min(p_.keys, first + kBlock<T>); ++j) {
      std::fill_n(sum, side.stride, T(0));
      for (int64_t c = 0; c < chunks_; ++c) {
        if (!seen[c].has(j)) continue;
        add_scaled(sum, side.sums(b, head, chunks_, c, rows_) + j * side.stride, T(1), side.stride);
      }
      write(side, b, head, j, sum, careful);
    }
  }

  void write(const Side &side, int64_t b, int64_t head, int64_t j, const T *row,
             Careful<T> &careful) const {
    narrow_row(row_of(side.to, p_.dtype, b, head, j), row, side.size, p_.dtype, side.factor);
    if (!suspect(row, side.size, side.factor)) return;
    if (&side == &keys_) {
      careful.d_key(b, head, j, g_);
    } else {
      careful.d_value(b, head, j, g_);
    }
  }

  const Kernel &kernel() const { return static_cast<const Kernel &>(*this); }

  Side keys_, values_;
  bool by_distance_;  // a bias by distance wants a gradient

 protected:
  bool scores_;  // gradients of scores are wanted, not the weights alone

 private:
  mutable std::atomic<bool> spoilt_{false};
  int64_t group_, rows_, chunks_;
  Range *seen_ = nullptr;   // [batch][key head][chunk], if there are several chunks
  T *distances_ = nullptr;  // DistanceSums of [batch][head][chunk], if wanted
  T *vectors_ = nullptr;    // sums of gradients of v [batch][head][chunk][padded size], if wanted
};

}  // namespace REGARD_NAMESPACE
}  // namespace regard
#endif
