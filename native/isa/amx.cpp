// AVX-512 with AMX: the matrix unit multiplies tiles of bfloat16, and of what is a sum of few of
// them. All else is left to AVX-512.
#include "isa/prelude.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((                                                                         \
        target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16")
#endif

#define REGARD_NAMESPACE amx

#include "isa/avx512.h"
#include "kernel/kernel.h"
#if defined(REGARD_SOFTWARE_TILES)
#include "kernel/amx/software_unit.h"
#else
#include "kernel/amx/unit.h"
#endif
#include "kernel/amx/tiles.h"
#include "kernel/amx/parts.h"
#include "kernel/amx/pack.h"
#include "kernel/amx/heads.h"
#include "kernel/amx/weights.h"
#include "kernel/amx/tally.h"
#include "kernel/amx/forward.h"
#include "kernel/amx/row_pack.h"
#include "kernel/amx/row_sight.h"
#include "kernel/amx/row_weights.h"
#include "kernel/amx/row_results.h"
#include "kernel/amx/row_forward.h"
#include "kernel/amx/few.h"
#include "kernel/amx/split_rows.h"
#include "kernel/amx/gradients.h"
#include "kernel/amx/backward.h"
#include "kernel/amx/readouts.h"
#include "kernel/amx/watcher.h"

namespace regard {
namespace amx {

int forward_or_avx512(const regard_problem &p, const regard_array &output, void *lse) {
  auto *sums = static_cast<float *>(lse);
  if (few_pays(p)) return Forward<float, FewBlock>(p, output, sums).run();
  if (is_additive(p) || p.pages || !pays(p)) return avx512_kernels.forward(p, output, lse);
  switch (parts_of(p)) {
    case 1:
      return RowPipeline(p, output, sums).run();
    case 2:
      return Pipeline<2>(p, output, sums).run();
    default:
      return Pipeline<3>(p, output, sums).run();
  }
}
template <int kParts>
int matrix_backward(const regard_problem &p, const regard_gradients &gradients) {
  MatrixBackward<kParts> kernel(p, gradients);
  const int status = kernel.run();
  if (status != REGARD_OK) return status;
  if (kernel.spoilt()) return avx512_kernels.backward(p, gradients);
  // Gradients of other biases and of sinks are left to AVX-512.
  return avx512_kernels.backward(p, but_for_arrays(gradients));
}
int backward_or_avx512(const regard_problem &p, const regard_gradients &gradients) {
  if (is_additive(p) || !backward_pays(p)) return avx512_kernels.backward(p, gradients);
  switch (parts_of(p)) {
    case 1:
      return matrix_backward<1>(p, gradients);
    case 2:
      return matrix_backward<2>(p, gradients);
    default:
      return matrix_backward<3>(p, gradients);
  }
}
int scores_by_avx512(const regard_problem &p, const ScoresRequest &request) {
  return avx512_kernels.scores(p, request);
}

int graph_forward_by_avx512(const regard_problem &p, const regard_edges &edges,
                            const regard_array &output, void *lse, void *weights) {
  return avx512_kernels.graph_forward(p, edges, output, lse, weights);
}
int graph_backward_by_avx512(const regard_problem &p, const regard_edges &edges,
                             const regard_gradients &gradients) {
  return avx512_kernels.graph_backward(p, edges, gradients);
}

// Output, log-sum-exps and read-outs in one sweep, but for bfloat16: its output comes by rows, and
// read-outs in a sweep without it. Returns REGARD_OK, an error, or kNot if that cannot be.
constexpr int kNot = -1;
template <int kParts>
int together(const regard_problem &p, const regard_array &output, float *lse,
             const regard_readouts_request &request) {
  const bool apart = kParts == 1;
  int status = REGARD_OK;
  if (apart && p.value_size > 0) status = forward_or_avx512(p, output, nullptr);
  if (status != REGARD_OK) return status;
  regard_array left = output;
  if (apart) left.data = nullptr;
  Watcher watcher(p, lse, apart, request);
  Pipeline<kParts, Watcher> sweep(p, left, apart ? nullptr : lse, &watcher);
  status = sweep.run();
  if (status != REGARD_OK) return status;
  return sweep.good() && !watcher.failed() ? similarity<float>(p, lse, request) : kNot;
}

int readouts_or_avx512(const regard_problem &p, const regard_array &output, void *lse,
                       const regard_readouts_request &request) {
  if (is_additive(p)) return avx512_kernels.readouts(p, output, lse, request);
  if (output.data && !p.pages && pays(p) && Watcher::can(p, request)) {
    auto *sums = static_cast<float *>(lse);
    const int parts = parts_of(p);
    const int status = parts == 1   ? together<1>(p, output, sums, request)
                       : parts == 3 ? together<3>(p, output, sums, request)
                                    : kNot;
    if (status != kNot) return status;
  }
  const bool own = scores_pay(p);
  regard_array left = output;
  if (output.data && (own || pays(p) || few_pays(p))) {
    // Log-sum-exps take weights that are more exact: for the bits of an output alone they come
    // apart.
    const bool apart = parts_of(p) == 1 && p.dropout == 0;
    int status = forward_or_avx512(p, output, apart ? nullptr : lse);
    left.data = nullptr;
    if (status == REGARD_OK && apart) status = forward_or_avx512(p, left, lse);
    if (status != REGARD_OK) return status;
  }
  if (!own) return avx512_kernels.readouts(p, left, lse, request);
  return sweep<float, MatrixBlock>(p, static_cast<const float *>(lse), request);
}

}  // namespace amx
}  // namespace regard

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace regard {
const Kernels amx_kernels = {"amx",
                             amx::forward_or_avx512,
                             amx::backward_or_avx512,
                             amx::scores_by_avx512,
                             amx::readouts_or_avx512,
                             amx::graph_forward_by_avx512,
                             amx::graph_backward_by_avx512};
}
#endif
