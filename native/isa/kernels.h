// What one instruction set offers to the dispatcher.
#ifndef REGARD_ISA_KERNELS_H
#define REGARD_ISA_KERNELS_H

#include "regard/attention.h"

namespace regard {

// Rows [first, last) and keys [first_key, last_key) of one batch and head.
struct ScoresRequest {
  int64_t batch, head, first, last, first_key, last_key;
  void *scores;
  int64_t row_stride;
};

struct Kernels {
  const char *name;
  int (*forward)(const regard_problem &problem, const regard_array &output, void *lse);
  int (*backward)(const regard_problem &problem, const regard_gradients &gradients);
  int (*scores)(const regard_problem &problem, const ScoresRequest &request);
  int (*readouts)(const regard_problem &problem, const regard_array &output, void *lse,
                  const regard_readouts_request &request);
  int (*graph_forward)(const regard_problem &problem, const regard_edges &edges,
                       const regard_array &output, void *lse, void *weights);
  int (*graph_backward)(const regard_problem &problem, const regard_edges &edges,
                        const regard_gradients &gradients);
};

extern const Kernels baseline_kernels;
#if defined(__x86_64__)
extern const Kernels avx2_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512bf16_kernels;
extern const Kernels amx_kernels;

// One block of rows alone, the index-th where a block has at most `rows` rows (at most 64), for
// what the matrix unit cannot do: values that are not finite, among them hidden ones.
int avx512_forward_block(const regard_problem &problem, const regard_array &output, void *lse,
                         int64_t rows, int64_t index);
#endif

}  // namespace regard
#endif
