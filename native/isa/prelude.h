// What every instruction set's file includes before it opens its target region: nothing from a
// system header may be compiled inside one.
#ifndef REGARD_ISA_PRELUDE_H
#define REGARD_ISA_PRELUDE_H

#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>

#include "isa/kernels.h"
#include "regard/attention.h"
#include "threads.h"

#define REGARD_INLINE inline __attribute__((always_inline))
#define REGARD_NOINLINE __attribute__((noinline))

// The vocabulary of each instruction set, in its own namespace, for T = float and double:
//   Vec<T>, kLanes<T>, Mask<T> (one truth value a lane)
//   load, store, load_partial, store_partial (first n lanes; the others 0, or untouched)
//   broadcast<T>(x), + - * /, fma(a, b, c) = a * b + c
//   max(a, b), min(a, b): b where either is NaN
//   less(a, b), less_equal(a, b), differ(a, b) (NaN differs from itself), a & b, a | b, any(mask)
//   select(mask, a, b): a where mask holds, else b
//   bits(mask): lane i as bit i
//   nonzero<T>(bytes): which of kLanes<T> bytes are not zero
//   fraction(x) = x - floor(x) and scale_exp2(p, x) = p * 2^floor(x), for p in [1, 2]: 0 once the
//     result underflows, x = -inf included; NaN stays NaN
//   reciprocal(x): 1 / x for x in [1, 2^125], off by 2e-7 of it at most (float)
//   zip_low(a, b), zip_high(a, b): the lower (upper) halves of a and b interleaved
//   kRegisterRows[n]: rows of the register tile of a product whose rows have n vectors
#endif
