// The contract between Python and the native core: plain structs, no Python, no framework.
//
// Letters, the same everywhere: B batch, H query heads, K key heads (H divisible by K: head h reads
// key head h / (H / K)), Lq queries, Lk keys, D head size of queries and keys, E head size of
// values. "Accumulation type": float for float16, bfloat16 and float32; double for float64.
#ifndef REGARD_ATTENTION_H
#define REGARD_ATTENTION_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(_WIN32)
#define REGARD_EXPORT __declspec(dllexport)
#else
#define REGARD_EXPORT __attribute__((visibility("default")))
#endif

// Changes whenever a struct below changes; Python refuses a library of another version.
#define REGARD_ABI_VERSION 2

enum regard_dtype {
  REGARD_FLOAT32 = 0,
  REGARD_FLOAT64 = 1,
  REGARD_FLOAT16 = 2,
  REGARD_BFLOAT16 = 3
};

enum regard_status {
  REGARD_OK = 0,
  REGARD_BAD_ARGUMENT = 1,
  REGARD_OUT_OF_MEMORY = 2,
  REGARD_UNKNOWN_ISA = 3,
};

// An array (B, heads, L, size) whose last dimension has stride 1. Strides count elements; 0
// broadcasts.
typedef struct {
  void *data;
  int64_t batch_stride, head_stride, row_stride;
} regard_array;

// An array (B, H, Lq, Lk), broadcast by zero strides. key_stride is 0 or 1. data NULL: absent.
typedef struct {
  void *data;
  int64_t batch_stride, head_stride, query_stride, key_stride;
} regard_grid;

// Query i sees key j only if start <= j < stop for one of its `count` pairs (start, stop) of int32.
// Pairs of a query are disjoint, ascending and lie within [0, Lk]; empty pairs have start == stop
// and may stand anywhere. Strides count int32's; 0 broadcasts. data NULL: every query sees every
// key.
typedef struct {
  const int32_t *data;
  int64_t count;
  int64_t batch_stride, head_stride, query_stride;
} regard_intervals;

// One call, in this order: scores = scale * q k^T; softcap * tanh(scores / softcap); + bias; hidden
// scores selected to -inf (never added); the sink joins the denominator; softmax; dropout; times v.
typedef struct {
  int64_t batch, heads, key_heads, value_heads;  // value_heads: K or H
  int64_t queries, keys, head_size, value_size;
  double scale;
  double softcap;         // 0: none
  double dropout;         // probability that a weight is dropped; 0: none
  uint64_t dropout_seed;  // see native/kernel/dropout.h for the generator
  regard_array query, key, value;
  regard_intervals intervals;
  regard_grid mask;    // uint8: nonzero = may attend; holds in addition to the intervals
  regard_grid bias;    // of type bias_dtype
  const void *sinks;   // (H) of the accumulation type, contiguous; NULL: none
  int32_t dtype;       // of query, key, value, output and their gradients
  int32_t bias_dtype;  // dtype, or REGARD_FLOAT32
  int32_t threads;     // 0: as many as OpenMP would use
  int32_t reserved;
} regard_problem;

// output (B, H, Lq, E) and lse (B, H, Lq), contiguous, of the accumulation type, natural logarithm,
// sink included; -inf where a query sees nothing (its output is 0). Either may be absent (data
// NULL). With output absent, `value` is not read.
REGARD_EXPORT int regard_forward(const regard_problem *problem, const regard_array *output,
                                 void *lse);

// Gradients of sum(output * d_output) + sum(lse * d_lse). Each of those below with data NULL is
// neither wanted nor computed. output and lse as the forward returned them; where the output is 0,
// d_output does not count. lse and d_lse are (B, H, Lq), contiguous, of the accumulation type.
typedef struct {
  regard_array output, d_output;         // (B, H, Lq, E); output absent if d_value alone is wanted
  const void *lse, *d_lse;               // d_lse NULL: 0
  regard_array d_query, d_key, d_value;  // shapes of query, key, value; written, not added to
  regard_grid d_bias;  // float32 (float64 for float64); broadcast dimensions are summed; written
  void *d_sinks;       // (H), accumulation type
} regard_gradients;
REGARD_EXPORT int regard_backward(const regard_problem *problem, const regard_gradients *gradients);

// Final scores (hidden: -inf) of one batch and query head: rows [first, last) into `scores`
// (last - first, Lk_last - Lk_first) for keys [first_key, last_key), accumulation type, rows
// row_stride elements apart. `value`, dropout and sinks play no part.
REGARD_EXPORT int regard_scores(const regard_problem *problem, int64_t batch, int64_t head,
                                int64_t first, int64_t last, int64_t first_key, int64_t last_key,
                                void *scores, int64_t row_stride);

REGARD_EXPORT int regard_abi_version(void);
// Names of the instruction sets compiled in that this machine can run, best first, separated by
// spaces; the one in use; choose one by name (REGARD_UNKNOWN_ISA if it is not among them).
REGARD_EXPORT const char *regard_isa_available(void);
REGARD_EXPORT const char *regard_isa(void);
REGARD_EXPORT int regard_isa_select(const char *name);
// Threads that the next call would use; 1 after a fork.
REGARD_EXPORT int regard_threads(void);

#ifdef __cplusplus
}
#endif
#endif
