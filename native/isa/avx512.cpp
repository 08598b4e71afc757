// AVX-512: F, BW, DQ and VL.
#include "isa/prelude.h"

#if defined(__x86_64__)
#include <immintrin.h>

#if defined(__clang__)
#pragma clang attribute push(                                                    \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#define REGARD_NAMESPACE avx512

#include "isa/avx512.h"
#include "kernel/kernel.h"

namespace regard {
int avx512_forward_block(const regard_problem &p, const regard_array &output, void *lse,
                         int64_t rows, int64_t index) {
  return avx512::Forward<float>(p, output, lse, rows).wary_block(index);
}
}  // namespace regard

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace regard {
const Kernels avx512_kernels = {
    "avx512",         avx512::forward,       avx512::backward,      avx512::scores,
    avx512::readouts, avx512::graph_forward, avx512::graph_backward};
}
#endif
