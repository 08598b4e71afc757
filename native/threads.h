// Threads and memory for the kernels.
#ifndef REGARD_THREADS_H
#define REGARD_THREADS_H

#include <stddef.h>
#include <stdint.h>

namespace regard {

// One piece of work; returns a regard_status.
using Task = int (*)(void *context, int64_t index);

// Threads for a call that asks for `requested` (0: what OpenMP would use); 1 after a fork.
int thread_count(int requested);

// Runs task(context, i) for 0 <= i < count on up to `threads` threads, in any order. Tasks must not
// depend on one another. Returns REGARD_OK, or the status of one that failed.
int parallel(int64_t count, int threads, Task task, void *context);

// Memory of the calling thread, kept between calls because fresh pages are expensive. What `take`
// returns is 64-byte aligned, uninitialised, and valid until the Scratch is destroyed.
class Scratch {
 public:
  // Memory of one task, or of a whole call (whose thread runs tasks too).
  enum Purpose { kTask, kCall };

  explicit Scratch(Purpose purpose);
  ~Scratch();
  Scratch(const Scratch &) = delete;
  Scratch &operator=(const Scratch &) = delete;

  template <class T>
  T *take(int64_t count) {
    return static_cast<T *>(bytes(static_cast<size_t>(count) * sizeof(T)));
  }
  // Whether a take() found no memory; its result was null.
  bool failed() const { return failed_; }

 private:
  void *bytes(size_t size);

  Purpose purpose_;
  bool failed_ = false;
};

}  // namespace regard
#endif
