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

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace regard {
const Kernels avx512_kernels = {"avx512", avx512::forward, avx512::backward, avx512::scores};
}
#endif
