// Attention as XLA calls it: buffers become the structs of the C contract, where they lie.
//
// Arguments, in this order; one that is absent is a vector of no elements:
//
//   query (B, H, Lq, D)  key (B|1, K, Lk, D)  value (B|1, K | H, Lk, E)
//   intervals (B|1, H|1, Lq|1, n, 2) int32    mask (B|1, H|1, Lq|1, Lk|1) boolean
//   bias (B|1, H|1, Lq|1, Lk|1), or by distance (B|1, H|1, 1, Lq + Lk - 1)
//   sinks (H) of the accumulation type
//   seed (2) uint32: the low word, the high word
//   vector (H|1, D) of the accumulation type, of additive scores
//
// and for the backward output (B, H, Lq, E), lse (B, H, Lq), d_output, d_lse. Results: output and
// lse; or d_query, d_key, d_value, d_bias and d_vector (B, H, D). Attributes: blhd (int64: arrays
// are (B, L, heads, size)), by_distance (int64: the bias is), score (int64: a regard_score),
// dropout, negative_slope, scale and softcap (float64).
#include "regard/attention.h"

#include <string.h>

#include <atomic>

#include "xla/ffi.h"

namespace regard {
namespace {

using xla::Buffer;
using xla::CallFrame;

enum Argument {
  kQuery,
  kKey,
  kValue,
  kIntervals,
  kMask,
  kBias,
  kSinks,
  kSeed,
  kVector,
  kForwardArguments
};
enum { kOutput = kForwardArguments, kLse, kDOutput, kDLse, kBackwardArguments };

// What is answered when XLA asks for which minor version of its interface we were made.
std::atomic<int> minor_version{0};

bool absent(const Buffer &b) { return b.rank == 1 && b.dims[0] == 0; }

int dtype_of(const Buffer &b) {
  switch (b.dtype) {
    case xla::kFloat16:
      return REGARD_FLOAT16;
    case xla::kBfloat16:
      return REGARD_BFLOAT16;
    case xla::kFloat32:
      return REGARD_FLOAT32;
    case xla::kFloat64:
      return REGARD_FLOAT64;
    default:
      return -1;
  }
}

// Reads one call; anything that does not fit leaves ok() false.
class Call {
 public:
  Call(const CallFrame &frame, int64_t arguments, int64_t results) : frame_(frame) {
    ok_ = frame.arguments.size == arguments && frame.results.size == results &&
          attribute("blhd", &blhd_) && attribute("by_distance", &by_distance_) &&
          attribute("scale", &problem_.scale) && attribute("softcap", &problem_.softcap) &&
          attribute("dropout", &problem_.dropout) && attribute("score", &score_) &&
          attribute("negative_slope", &problem_.negative_slope);
    if (ok_) read();
  }

  bool ok() const { return ok_; }
  const regard_problem &problem() const { return problem_; }
  const Buffer &argument(int i) const { return *frame_.arguments.items[i]; }
  const Buffer &result(int i) const { return *frame_.results.items[i]; }
  void *data(const Buffer &b) const { return absent(b) ? nullptr : b.data; }

  // (B|1, heads, L, size), or (B|1, L, heads, size).
  regard_array array(const Buffer &b) {
    if (absent(b) || !has_rank(b, 4)) return {};
    const int64_t size = b.dims[3], whole = b.dims[1] * b.dims[2] * size;
    const int64_t outer = b.dims[2] * size;
    return {b.data, b.dims[0] == 1 ? 0 : whole, blhd_ ? size : outer, blhd_ ? outer : size};
  }

  // (B|1, H|1, Lq|1, Lk|1).
  regard_grid grid(const Buffer &b) {
    if (absent(b) || !has_rank(b, 4)) return {};
    int64_t strides[4], stride = 1;
    for (int n = 3; n >= 0; --n) {
      strides[n] = b.dims[n] == 1 ? 0 : stride;
      stride *= b.dims[n];
    }
    return {b.data, strides[0], strides[1], strides[2], strides[3]};
  }

  // A bias or its gradient.
  regard_grid bias(const Buffer &b) {
    regard_grid found = grid(b);
    if (!by_distance_ || !found.data) return found;
    const bool wide = b.dtype == xla::kFloat64;
    if (problem_.queries > 0) {
      found.data = static_cast<char *>(found.data) + (problem_.queries - 1) * (wide ? 8 : 4);
    }
    found.query_stride = -1, found.key_stride = 1;
    return found;
  }

 private:
  void read() {
    const Buffer &q = argument(kQuery), &k = argument(kKey), &v = argument(kValue);
    if (!has_rank(q, 4) || !has_rank(k, 4) || (!absent(v) && !has_rank(v, 4))) return;
    const int heads = blhd_ ? 2 : 1, length = blhd_ ? 1 : 2;
    regard_problem &p = problem_;
    p.batch = q.dims[0], p.heads = q.dims[heads], p.queries = q.dims[length];
    p.key_heads = k.dims[heads], p.keys = k.dims[length], p.head_size = q.dims[3];
    p.value_heads = absent(v) ? p.key_heads : v.dims[heads];
    p.value_size = absent(v) ? 0 : v.dims[3];
    p.query = array(q), p.key = array(k), p.value = array(v);
    p.intervals = intervals(argument(kIntervals));
    p.mask = grid(argument(kMask)), p.bias = bias(argument(kBias));
    p.sinks = data(argument(kSinks));
    p.score = static_cast<int32_t>(score_);
    if ((p.vector = data(argument(kVector))) && has_rank(argument(kVector), 2)) {
      p.vector_stride = argument(kVector).dims[0] == 1 ? 0 : p.head_size;
    }
    p.dtype = dtype_of(q);
    p.bias_dtype = absent(argument(kBias)) ? 0 : dtype_of(argument(kBias));
    if (void *seed = data(argument(kSeed))) {
      uint32_t words[2];
      memcpy(words, seed, sizeof words);
      p.dropout_seed = words[0] | static_cast<uint64_t>(words[1]) << 32;
    }
  }

  regard_intervals intervals(const Buffer &b) {
    if (absent(b) || !has_rank(b, 5)) return {};
    const int64_t *d = b.dims, row = d[3] * d[4];
    return {static_cast<const int32_t *>(b.data), d[3], d[0] == 1 ? 0 : d[1] * d[2] * row,
            d[1] == 1 ? 0 : d[2] * row, d[2] == 1 ? 0 : row};
  }

  bool has_rank(const Buffer &b, int64_t rank) { return ok_ = ok_ && b.rank == rank; }

  template <class T>
  bool attribute(const char *name, T *value) const {
    const xla::Attributes &all = frame_.attributes;
    for (int64_t i = 0; i < all.size; ++i) {
      const xla::Text &text = *all.names[i];
      if (text.size == strlen(name) && memcmp(text.data, name, text.size) == 0) {
        memcpy(value, all.items[i]->value, sizeof *value);
        return true;
      }
    }
    return false;
  }

  const CallFrame &frame_;
  regard_problem problem_ = {};
  int64_t blhd_ = 0, by_distance_ = 0, score_ = REGARD_DOT;
  bool ok_;
};

int run_forward(const CallFrame &frame) {
  Call call(frame, kForwardArguments, 2);
  const regard_array output = call.ok() ? call.array(call.result(0)) : regard_array{};
  if (!call.ok()) return REGARD_BAD_ARGUMENT;
  return regard_forward(&call.problem(), &output, call.result(1).data);
}

int run_backward(const CallFrame &frame) {
  Call call(frame, kBackwardArguments, 5);
  if (!call.ok()) return REGARD_BAD_ARGUMENT;
  regard_gradients g = {};
  g.output = call.array(call.argument(kOutput));
  g.d_output = call.array(call.argument(kDOutput));
  g.lse = call.data(call.argument(kLse)), g.d_lse = call.data(call.argument(kDLse));
  g.d_query = call.array(call.result(0)), g.d_key = call.array(call.result(1));
  g.d_value = call.array(call.result(2)), g.d_bias = call.bias(call.result(3));
  g.d_vector = call.data(call.result(4));
  if (!call.ok()) return REGARD_BAD_ARGUMENT;
  return regard_backward(&call.problem(), &g);
}

// XLA asks for the version when a handler is registered.
bool answered_metadata(const CallFrame &frame) {
  xla::Extension *extension = frame.extensions;
  if (!extension || extension->type != xla::kMetadata) return false;
  xla::Metadata &metadata = *reinterpret_cast<xla::MetadataExtension *>(extension)->metadata;
  metadata.version.major_version = 0;
  metadata.version.minor_version = minor_version.load();
  metadata.traits = 0;
  return true;
}

xla::Error *handle(CallFrame *frame, int (*run)(const CallFrame &)) {
  if (answered_metadata(*frame) || frame->stage != xla::kExecute) return nullptr;
  const int status = run(*frame);
  if (status == REGARD_OK) return nullptr;
  const bool memory = status == REGARD_OUT_OF_MEMORY;
  xla::ErrorArguments error = {sizeof error, nullptr,
                               memory ? "regard: no memory for the kernel's scratch"
                                      : "regard: the native core refused a call",
                               memory ? xla::kResourceExhausted : xla::kInvalidArgument};
  return frame->api->create_error(&error);
}

}  // namespace
}  // namespace regard

extern "C" {

// To be called before the functions below are registered: some versions of XLA accept only their
// own minor version, though all of them lay out alike what we use.
REGARD_EXPORT void regard_xla_set_minor_version(int minor) { regard::minor_version = minor; }

REGARD_EXPORT void *regard_xla_forward(void *frame) {
  return regard::handle(static_cast<regard::CallFrame *>(frame), regard::run_forward);
}

REGARD_EXPORT void *regard_xla_backward(void *frame) {
  return regard::handle(static_cast<regard::CallFrame *>(frame), regard::run_backward);
}

}  // extern "C"
