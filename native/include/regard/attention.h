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
#define REGARD_ABI_VERSION 4

enum regard_dtype {
  REGARD_FLOAT32 = 0,
  REGARD_FLOAT64 = 1,
  REGARD_FLOAT16 = 2,
  REGARD_BFLOAT16 = 3
};

// How float32 is multiplied; other types take no notice. High: products may be off by about 2^-16
// of their size, as sums of three products of bfloat16, where that is faster. Highest: no less
// exact than float32, except that products below 1.2e-38 may count as 0.
enum regard_precision { REGARD_HIGHEST = 0, REGARD_HIGH = 1 };

// How a query and a key are compared: q . k, or sum_a v_a f(q_a + k_a) with f = tanh, or
// f(x) = x for x > 0 and negative_slope * x below.
enum regard_score { REGARD_DOT = 0, REGARD_ADDITIVE_TANH = 1, REGARD_ADDITIVE_LEAKY_RELU = 2 };

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
// A bias by distance has query_stride -1 and key_stride 1: all pairs with the same j - i share an
// entry. Its Lq + Lk - 1 entries (of the accumulation type) stand for the distances
// -(Lq - 1) ... Lk - 1, and data points to that of distance 0.
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

// One call, in this order: scores = scale * q k^T (or as regard_score says); softcap * tanh(scores
// / softcap); + bias; hidden scores selected to -inf (never added); the sink joins the denominator;
// softmax; dropout; times v.
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
  regard_grid bias;    // of type bias_dtype; may be by distance
  const void *sinks;   // (H) of the accumulation type, contiguous; NULL: none
  int32_t dtype;       // of query, key, value, output and their gradients
  int32_t bias_dtype;  // dtype, or REGARD_FLOAT32
  int32_t threads;     // 0: as many as OpenMP would use
  int32_t precision;   // regard_precision
  int32_t score;       // regard_score; what follows is read if it is not REGARD_DOT
  // v, (H, D) of the accumulation type: rows vector_stride elements apart, 0 if heads share one.
  const void *vector;
  int64_t vector_stride;
  double negative_slope;  // 0 or more
  // Keys and values in pages, of the forward alone: key j of batch element b is row j % page_size
  // of page pages[b * pages_stride + j / page_size], and batch strides of keys and values go from
  // page to page. What entries for keys that no query sees lead to is not read. NULL: not in pages.
  const int32_t *pages;
  int64_t pages_stride, page_size;
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
  // float32 (float64 for float64); broadcast dimensions are summed, and so are the pairs of each
  // distance if it is by distance, as the bias is then; written
  regard_grid d_bias;
  void *d_sinks;   // (H), accumulation type
  void *d_vector;  // (B, H, D), contiguous, accumulation type: for each head of each batch
} regard_gradients;
REGARD_EXPORT int regard_backward(const regard_problem *problem, const regard_gradients *gradients);

// A sparse mask: query i sees key j only where an edge leads from i to j. Edges are numbered as the
// caller has them; all batch elements and heads share them, and no pair has two.
typedef struct {
  int64_t count;
  const int64_t *query_starts;  // (Lq + 1): the edges of query i are [starts[i], starts[i + 1])
  const int32_t *query_keys;    // (count): their keys
  const int32_t *query_edges;   // (count): their numbers
  const int64_t *key_starts;    // (Lk + 1), and likewise from the other end
  const int32_t *key_queries, *key_edges;
} regard_edges;
// As regard_forward and regard_backward, in memory linear in the edges. The problem's intervals and
// mask play no part. Of its bias, and of d_bias, key_stride goes from edge to edge and query_stride
// plays no part. weights (B, H, count), of the accumulation type: before dropout, or NULL.
REGARD_EXPORT int regard_graph_forward(const regard_problem *problem, const regard_edges *edges,
                                       const regard_array *output, void *lse, void *weights);
REGARD_EXPORT int regard_graph_backward(const regard_problem *problem, const regard_edges *edges,
                                        const regard_gradients *gradients);

// Final scores (hidden: -inf) of one batch and query head: rows [first, last) into `scores`
// (last - first, Lk_last - Lk_first) for keys [first_key, last_key), accumulation type, rows
// row_stride elements apart. `value`, dropout and sinks play no part.
REGARD_EXPORT int regard_scores(const regard_problem *problem, int64_t batch, int64_t head,
                                int64_t first, int64_t last, int64_t first_key, int64_t last_key,
                                void *scores, int64_t row_stride);

// Read-outs of the weights p_ij = exp(score_ij - lse_i), i a query, j a key: what has a NULL
// pointer is not wanted and costs nothing. Arrays are contiguous; void * is the accumulation type.
enum regard_reduction { REGARD_SUM = 0, REGARD_MEAN = 1, REGARD_MAX = 2 };
typedef struct {
  // Of each query, (B, H, Lq): entropy -sum p log p, effective keys 1 / sum p^2 (0 where nothing is
  // seen), distance sum p |j - (i + distance_offset)|.
  void *max_score, *max_weight, *entropy, *effective_keys, *distance;
  int64_t distance_offset;
  // (B, H, Lq, bin_count): weight by distance |j - (i + bin_offset)|. Bin 0 is distance 0, bin n
  // the distances 2^(n-1) ... 2^n - 1; no distance may lie beyond the last.
  void *bins;
  int64_t bin_count, bin_offset;
  // (B, H, Lq, top_count): the largest weights, falling, and their keys; ties to the lower key;
  // missing ones are -1 with weight 0.
  void *top_weights;
  int64_t *top_keys;
  int64_t top_count;
  // (B, H, Lq, offset_count): p of j = i + offset, 0 outside.
  void *offset_weights;
  const int64_t *offsets;
  int64_t offset_count;
  // (B, H, Lq, mass_count): weight on the keys of each group; key_groups has a group for each of
  // the keys of a batch element, negative: none.
  void *mass;
  const int32_t *key_groups;
  int64_t key_groups_stride, mass_count;
  // Weights of at least edge_least: how many there are, (B, H, Lq); or, with edge_starts (where the
  // first of each query goes), their keys and weights.
  double edge_least;
  int64_t *edge_counts;
  const int64_t *edge_starts;
  int64_t *edge_keys;
  void *edge_weights;
  // (B, H, received_count, Lk): what a key receives from the queries of each group, by a
  // regard_reduction; the mean is over those that can see it.
  void *received;
  const int32_t *query_groups;
  int64_t received_count, received_reduction;
  // (B, H, Lk, top_query_count): the largest weights on a key and their queries, as above.
  void *top_query_weights;
  int64_t *top_queries;
  int64_t top_query_count;
  // (B, H, pooled_rows, pooled_columns): query i falls in row i * rows / Lq, key j in column
  // j * columns / Lk.
  void *pooled_sum, *pooled_max;
  int64_t pooled_rows, pooled_columns;
  // (B, H, H): sum_ij of the products of the weights of two heads.
  void *products;
} regard_readouts_request;
// `output` absent (NULL or data NULL): `lse` is read, as the forward returned it. Else both are
// written: the output has the bits that regard_forward would write without lse; lse may differ from
// what it would write by rounding.
REGARD_EXPORT int regard_readouts(const regard_problem *problem, const regard_array *output,
                                  void *lse, const regard_readouts_request *request);

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
