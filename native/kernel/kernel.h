// The algorithm, written once and compiled per instruction set: an isa/ file defines the vocabulary
// in its namespace, then includes this. In the order in which the parts need one another.
#ifndef REGARD_KERNEL_KERNEL_H
#define REGARD_KERNEL_KERNEL_H

#include "kernel/math.h"
#include "kernel/convert.h"
#include "kernel/transpose.h"
#include "kernel/product.h"
#include "kernel/dots.h"
#include "kernel/rows.h"
#include "kernel/mask.h"
#include "kernel/dropout.h"
#include "kernel/adjust.h"
#include "kernel/additive.h"
#include "kernel/tile.h"
#include "kernel/softmax.h"
#include "kernel/delta.h"
#include "kernel/careful.h"
#include "kernel/wary.h"
#include "kernel/forward.h"
#include "kernel/scores.h"
#include "kernel/readouts/tile.h"
#include "kernel/readouts/rows.h"
#include "kernel/readouts/groups.h"
#include "kernel/readouts/distance.h"
#include "kernel/readouts/top.h"
#include "kernel/readouts/edges.h"
#include "kernel/readouts/columns.h"
#include "kernel/readouts/pooled.h"
#include "kernel/readouts/similarity.h"
#include "kernel/readouts/sweep.h"
#include "kernel/gradient_tile.h"
#include "kernel/pieces.h"
#include "kernel/backward.h"
#include "kernel/bias_gradient.h"
#include "kernel/graph.h"

#endif
