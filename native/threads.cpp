#include "threads.h"

#include <omp.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if !defined(_WIN32)
#include <pthread.h>
#endif

#include "regard/attention.h"

namespace regard {
namespace {

// OpenMP's pool does not survive a fork: its threads are gone, and a parallel region would wait for
// them for ever.
std::atomic<bool> forked{false};

void after_fork() { forked.store(true); }

#if !defined(_WIN32)
const int registered = pthread_atfork(nullptr, nullptr, after_fork);
#endif

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
// How often a thread comes for more work, about.
constexpr int64_t kTurns = 16;
// What a thread keeps between calls at most.
constexpr size_t kKeep = size_t{64} << 20;

void *allocate(size_t size) {
  const bool huge = size >= kHugePage;
  const size_t alignment = huge ? kHugePage : kAlignment;
  size = (size + alignment - 1) / alignment * alignment;
  void *memory = aligned_alloc(alignment, size);
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  if (memory && huge) madvise(memory, size, MADV_HUGEPAGE);
#endif
  return memory;
}

// One block, used from its start. What does not fit goes into blocks of its own, and the next use
// begins with one block large enough for all.
class Arena {
 public:
  ~Arena() {
    release_spilled();
    free(base_);
  }

  void *take(size_t size) {
    size = (std::max<size_t>(size, 1) + kAlignment - 1) / kAlignment * kAlignment;
    wanted_ += size;
    if (size_ - used_ >= size) {
      void *memory = base_ + used_;
      used_ += size;
      return memory;
    }
    auto *block = static_cast<Spilled *>(allocate(size + kAlignment));
    if (!block) return nullptr;
    block->next = spilled_;
    spilled_ = block;
    return reinterpret_cast<char *>(block) + kAlignment;
  }

  void reset() {
    release_spilled();
    if (wanted_ > size_) {
      free(base_);
      base_ = wanted_ <= kKeep ? static_cast<char *>(allocate(wanted_)) : nullptr;
      size_ = base_ ? wanted_ : 0;
    }
    used_ = wanted_ = 0;
  }

 private:
  struct Spilled {
    Spilled *next;
  };

  void release_spilled() {
    while (spilled_) {
      Spilled *next = spilled_->next;
      free(spilled_);
      spilled_ = next;
    }
  }

  char *base_ = nullptr;
  size_t size_ = 0, used_ = 0, wanted_ = 0;
  Spilled *spilled_ = nullptr;
};

thread_local Arena arenas[2];

// While it lives, results below the smallest normal number are 0. Weights far behind the largest
// are such numbers, and processors take a hundred times as long over them.
class Flushing {
#if defined(__SSE2__)
 public:
  Flushing() : before_(_mm_getcsr()) { _mm_setcsr(before_ | _MM_FLUSH_ZERO_ON); }
  ~Flushing() { _mm_setcsr(before_); }
  Flushing(const Flushing &) = delete;
  Flushing &operator=(const Flushing &) = delete;

 private:
  unsigned before_;
#endif
};

int run_task(Task task, void *context, int64_t index) {
  [[maybe_unused]] const Flushing flushing;
  return task(context, index);
}

}  // namespace

int thread_count(int requested) {
  if (forked.load(std::memory_order_relaxed)) return 1;
  return requested > 0 ? requested : std::max(1, omp_get_max_threads());
}

int parallel(int64_t count, int threads, Task task, void *context) {
  threads = static_cast<int>(std::min<int64_t>(thread_count(threads), count));
  if (threads <= 1) {
    int status = REGARD_OK;
    for (int64_t i = 0; i < count && status == REGARD_OK; ++i) status = run_task(task, context, i);
    return status;
  }
  std::atomic<int> status{REGARD_OK};
  // Several at a time where there are many: neighbours write neighbouring memory.
  const int64_t together = std::max<int64_t>(1, count / (threads * kTurns));
#pragma omp parallel for num_threads(threads) schedule(dynamic, together)
  for (int64_t i = 0; i < count; ++i) {
    if (status.load(std::memory_order_relaxed) != REGARD_OK) continue;
    const int result = run_task(task, context, i);
    if (result != REGARD_OK) status.store(result, std::memory_order_relaxed);
  }
  return status.load();
}

Scratch::Scratch(Purpose purpose) : purpose_(purpose) {}

Scratch::~Scratch() { arenas[purpose_].reset(); }

void *Scratch::bytes(size_t size) {
  void *memory = arenas[purpose_].take(size);
  if (!memory) failed_ = true;
  return memory;
}

}  // namespace regard
