// The exported functions: arguments are checked and an instruction set is chosen here.
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <string>

#include "isa/kernels.h"
#include "regard/attention.h"
#include "threads.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace regard {
namespace {

#if defined(__x86_64__)
struct Features {
  bool avx2, avx512, avx512bf16, amx;
};

#if defined(REGARD_SOFTWARE_TILES)
constexpr bool kSoftwareTiles = true;
#else
constexpr bool kSoftwareTiles = false;
#endif

// The registers of AMX are large: Linux saves them only for a process that has asked.
bool permitted_amx() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// AMD multiplies pairs of bfloat16 at the speed of single float32; Intel, at the time of writing,
// at a quarter of it, where widening them first is faster.
bool pairs_are_fast() {
  unsigned highest, b, c, d;
  return __get_cpuid(0, &highest, &b, &c, &d) && b == signature_AMD_ebx && c == signature_AMD_ecx &&
         d == signature_AMD_edx;
}

// From the processor's feature bits, and what the operating system saves of its registers.
Features detect() {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return {};
  const bool fma = c & bit_FMA, f16c = c & bit_F16C, osxsave = c & bit_OSXSAVE;
  if (!osxsave || !fma || !f16c) return {};
  unsigned saved, high;
  __asm__ volatile("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
  const bool ymm = (saved & 0x06) == 0x06, zmm = (saved & 0xe6) == 0xe6;
  const bool tiles = (saved & 0x60000) == 0x60000;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return {};
  const unsigned wide = bit_AVX512F | bit_AVX512BW | bit_AVX512DQ | bit_AVX512VL;
  const bool avx2 = ymm && (b & bit_AVX2);
  const bool avx512 = avx2 && zmm && (b & wide) == wide;
  constexpr unsigned kAmxBf16 = 1u << 22, kAmxTile = 1u << 24, kAvx512Bf16 = 1u << 5;
  const bool bytes = c & bit_AVX512VBMI;
  const bool unit = tiles && (d & kAmxBf16) && (d & kAmxTile);
  const bool bf16 = __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & kAvx512Bf16);
  const bool amx = avx512 && bytes && bf16 && (kSoftwareTiles || (unit && permitted_amx()));
  return {avx2, avx512, avx512 && bf16, amx};
}
#endif

// Those that this machine can run, best first; null ends the list.
const Kernels *const *available() {
  static const Kernels *list[6] = {};
  static const bool filled = [] {
    int n = 0;
#if defined(__x86_64__)
    const Features features = detect();
    if (features.amx) list[n++] = &amx_kernels;
    const bool pairs_first = pairs_are_fast();
    if (features.avx512bf16 && pairs_first) list[n++] = &avx512bf16_kernels;
    if (features.avx512) list[n++] = &avx512_kernels;
    if (features.avx512bf16 && !pairs_first) list[n++] = &avx512bf16_kernels;
    if (features.avx2) list[n++] = &avx2_kernels;
#endif
    list[n++] = &baseline_kernels;
    return true;
  }();
  (void)filled;
  return list;
}

const Kernels *find(const char *name) {
  for (auto list = available(); *list; ++list) {
    if (strcmp((*list)->name, name) == 0) return *list;
  }
  return nullptr;
}

// REGARD_ISA forces an instruction set; one that is not to be had leaves null, and calls then fail
// rather than run something else.
std::atomic<const Kernels *> &chosen() {
  static std::atomic<const Kernels *> kernels{[] {
    const char *forced = getenv("REGARD_ISA");
    return forced && *forced ? find(forced) : available()[0];
  }()};
  return kernels;
}

bool floating(int dtype) { return dtype >= REGARD_FLOAT32 && dtype <= REGARD_BFLOAT16; }

// Whether a bias by distance, if it is one, is as the contract has it.
bool valid_distances(const regard_problem &p) {
  const int dtype = p.dtype == REGARD_FLOAT64 ? REGARD_FLOAT64 : REGARD_FLOAT32;
  const regard_grid &b = p.bias;
  return !b.data || b.query_stride >= 0 ||
         (b.query_stride == -1 && b.key_stride == 1 && p.bias_dtype == dtype);
}

bool valid(const regard_problem *p) {
  if (!p || p->batch < 0 || p->heads < 0 || p->queries < 0 || p->keys < 0) return false;
  if (p->key_heads <= 0 || p->heads % p->key_heads != 0) return false;
  if (p->value_heads != p->key_heads && p->value_heads != p->heads) return false;
  if (p->head_size < 0 || p->value_size < 0 || p->keys > INT32_MAX) return false;
  if (!floating(p->dtype)) return false;
  if (p->precision != REGARD_HIGHEST && p->precision != REGARD_HIGH) return false;
  if (p->bias.data && p->bias_dtype != p->dtype && p->bias_dtype != REGARD_FLOAT32) return false;
  if (!valid_distances(*p)) return false;
  if (p->intervals.data && p->intervals.count < 1) return false;
  if (p->pages && p->page_size < 1) return false;
  if (!(p->softcap >= 0) || !(p->dropout >= 0 && p->dropout < 1) || p->threads < 0) return false;
  if (p->score < REGARD_DOT || p->score > REGARD_ADDITIVE_LEAKY_RELU) return false;
  const bool empty = p->batch == 0 || p->heads == 0 || p->queries == 0;
  if (empty || p->head_size == 0) return true;
  if (p->score != REGARD_DOT && (!p->vector || !(p->negative_slope >= 0))) return false;
  return p->query.data && (p->key.data || p->keys == 0);
}

bool needs_value(const regard_problem &p) {
  return p.batch && p.heads && p.queries && p.keys && p.value_size;
}

bool valid(const regard_problem &p, const regard_gradients &g) {
  if (needs_value(p)) {
    if (!p.value.data || !g.d_output.data) return false;
    const bool scores = g.d_query.data || g.d_key.data || g.d_bias.data || g.d_sinks || g.d_vector;
    if (!g.lse || (scores && !g.output.data)) return false;
  }
  if (g.d_vector && p.score == REGARD_DOT) return false;
  const bool by_distance = p.bias.data && p.bias.query_stride < 0;
  if (g.d_bias.data && by_distance != (g.d_bias.query_stride < 0)) return false;
  return (!g.d_sinks || p.sinks) && (!g.d_bias.data || p.bias.data);
}

bool valid(const regard_edges *e) {
  if (!e || e->count < 0 || e->count > INT32_MAX || !e->query_starts || !e->key_starts)
    return false;
  const bool listed = e->query_keys && e->query_edges && e->key_queries && e->key_edges;
  return e->count == 0 || listed;
}

bool valid_graph(const regard_problem *p, const regard_edges *edges) {
  if (!valid(p) || p->pages || !valid(edges)) return false;
  return !p->bias.data || p->bias.query_stride >= 0;
}

bool valid(const regard_readouts_request &q) {
  if (q.bins && q.bin_count < 1) return false;
  if (q.top_weights && (q.top_count < 1 || !q.top_keys)) return false;
  if (q.offset_weights && (q.offset_count < 0 || !q.offsets)) return false;
  if (q.mass && (q.mass_count < 0 || !q.key_groups)) return false;
  if (q.edge_starts && (!q.edge_keys || !q.edge_weights)) return false;
  if (q.received && (q.received_count < 0 || !q.query_groups)) return false;
  if (q.top_query_weights && (q.top_query_count < 1 || !q.top_queries)) return false;
  const bool pooled = q.pooled_sum || q.pooled_max;
  return !pooled || (q.pooled_rows > 0 && q.pooled_columns > 0);
}

}  // namespace
}  // namespace regard

using namespace regard;

extern "C" {

int regard_forward(const regard_problem *problem, const regard_array *output, void *lse) {
  const Kernels *kernels = chosen().load();
  if (!kernels) return REGARD_UNKNOWN_ISA;
  if (!valid(problem)) return REGARD_BAD_ARGUMENT;
  const regard_array absent = {};
  const regard_array &y = output ? *output : absent;
  if (y.data && !problem->value.data && needs_value(*problem)) return REGARD_BAD_ARGUMENT;
  return kernels->forward(*problem, y, lse);
}

int regard_backward(const regard_problem *problem, const regard_gradients *gradients) {
  const Kernels *kernels = chosen().load();
  if (!kernels) return REGARD_UNKNOWN_ISA;
  if (!valid(problem) || !gradients || !valid(*problem, *gradients)) return REGARD_BAD_ARGUMENT;
  if (problem->pages) return REGARD_BAD_ARGUMENT;
  return kernels->backward(*problem, *gradients);
}

int regard_scores(const regard_problem *problem, int64_t batch, int64_t head, int64_t first,
                  int64_t last, int64_t first_key, int64_t last_key, void *scores,
                  int64_t row_stride) {
  const Kernels *kernels = chosen().load();
  if (!kernels) return REGARD_UNKNOWN_ISA;
  if (!valid(problem) || problem->pages) return REGARD_BAD_ARGUMENT;
  if (batch < 0 || batch >= problem->batch || head < 0 || head >= problem->heads || first < 0 ||
      first > last || last > problem->queries || first_key < 0 || first_key > last_key ||
      last_key > problem->keys) {
    return REGARD_BAD_ARGUMENT;
  }
  if (first == last || first_key == last_key) return REGARD_OK;
  if (!scores || row_stride < last_key - first_key) return REGARD_BAD_ARGUMENT;
  return kernels->scores(*problem,
                         {batch, head, first, last, first_key, last_key, scores, row_stride});
}

int regard_readouts(const regard_problem *problem, const regard_array *output, void *lse,
                    const regard_readouts_request *request) {
  const Kernels *kernels = chosen().load();
  if (!kernels) return REGARD_UNKNOWN_ISA;
  if (!valid(problem) || problem->pages || !request || !valid(*request)) return REGARD_BAD_ARGUMENT;
  if (!lse && problem->batch && problem->heads && problem->queries) return REGARD_BAD_ARGUMENT;
  const regard_array absent = {};
  const regard_array &y = output ? *output : absent;
  if (y.data && !problem->value.data && needs_value(*problem)) return REGARD_BAD_ARGUMENT;
  return kernels->readouts(*problem, y, lse, *request);
}

int regard_graph_forward(const regard_problem *problem, const regard_edges *edges,
                         const regard_array *output, void *lse, void *weights) {
  const Kernels *kernels = chosen().load();
  if (!kernels) return REGARD_UNKNOWN_ISA;
  if (!valid_graph(problem, edges)) return REGARD_BAD_ARGUMENT;
  const regard_array absent = {};
  const regard_array &y = output ? *output : absent;
  if (y.data && !problem->value.data && needs_value(*problem)) return REGARD_BAD_ARGUMENT;
  return kernels->graph_forward(*problem, *edges, y, lse, weights);
}

int regard_graph_backward(const regard_problem *problem, const regard_edges *edges,
                          const regard_gradients *gradients) {
  const Kernels *kernels = chosen().load();
  if (!kernels) return REGARD_UNKNOWN_ISA;
  if (!valid_graph(problem, edges)) return REGARD_BAD_ARGUMENT;
  if (!gradients || !valid(*problem, *gradients)) return REGARD_BAD_ARGUMENT;
  const regard_grid &bias = gradients->d_bias;
  if (bias.data && !bias.key_stride && edges->count > 1) return REGARD_BAD_ARGUMENT;
  return kernels->graph_backward(*problem, *edges, *gradients);
}

int regard_abi_version(void) { return REGARD_ABI_VERSION; }

const char *regard_isa_available(void) {
  static const std::string names = [] {
    std::string text;
    for (auto list = available(); *list; ++list)
      text += (text.empty() ? "" : " ") + std::string((*list)->name);
    return text;
  }();
  return names.c_str();
}

const char *regard_isa(void) {
  const Kernels *kernels = chosen().load();
  return kernels ? kernels->name : "";
}

int regard_isa_select(const char *name) {
  const Kernels *kernels = name ? find(name) : nullptr;
  if (!kernels) return REGARD_UNKNOWN_ISA;
  chosen().store(kernels);
  return REGARD_OK;
}

int regard_threads(void) { return thread_count(0); }

}  // extern "C"
