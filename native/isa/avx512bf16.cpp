// AVX-512 with products of pairs of bfloat16 (AVX512_BF16). All other types are left to AVX-512.
#include "isa/prelude.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")
#endif

#define REGARD_NAMESPACE avx512bf16

#include "isa/avx512.h"
#include "kernel/kernel.h"
#include "kernel/pairs/pairs.h"
#include "kernel/pairs/block.h"
#include "kernel/pairs/backward.h"

namespace regard {
namespace avx512bf16 {

int forward_or_avx512(const regard_problem &p, const regard_array &output, void *lse) {
  if (!pairs_pay(p)) return avx512_kernels.forward(p, output, lse);
  if (p.batch == 0 || p.heads == 0 || p.queries == 0) return REGARD_OK;
  return Forward<float, PairBlock>(p, output, lse).run();
}
int backward_or_avx512(const regard_problem &p, const regard_gradients &gradients) {
  if (!backward_pays(p)) return avx512_kernels.backward(p, gradients);
  const int status = PairBackward(p, gradients).run();
  if (status != REGARD_OK) return status;
  // Gradients of other biases and of sinks are left to AVX-512.
  return avx512_kernels.backward(p, but_for_arrays(gradients));
}
int scores_by_avx512(const regard_problem &p, const ScoresRequest &request) {
  return avx512_kernels.scores(p, request);
}
int readouts_or_avx512(const regard_problem &p, const regard_array &output, void *lse,
                       const regard_readouts_request &request) {
  if (!pairs_pay(p)) return avx512_kernels.readouts(p, output, lse, request);
  return read_out<float, PairBlock>(p, output, lse, request);
}
int graph_forward_by_avx512(const regard_problem &p, const regard_edges &edges,
                            const regard_array &output, void *lse, void *weights) {
  return avx512_kernels.graph_forward(p, edges, output, lse, weights);
}
int graph_backward_by_avx512(const regard_problem &p, const regard_edges &edges,
                             const regard_gradients &gradients) {
  return avx512_kernels.graph_backward(p, edges, gradients);
}

}  // namespace avx512bf16
}  // namespace regard

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace regard {
const Kernels avx512bf16_kernels = {"avx512bf16",
                                    avx512bf16::forward_or_avx512,
                                    avx512bf16::backward_or_avx512,
                                    avx512bf16::scores_by_avx512,
                                    avx512bf16::readouts_or_avx512,
                                    avx512bf16::graph_forward_by_avx512,
                                    avx512bf16::graph_backward_by_avx512};
}
#endif
