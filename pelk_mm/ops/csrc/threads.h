// Running independent items of work on several threads.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <new>
#include <thread>
#include <vector>

namespace pelk {

// The signature of GCC's OpenMP runtime: runs a function on a team of threads.
using Parallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

// Runs work(i) for i in [0, count) on `threads` threads, this one among them. Which
// thread takes an item has no influence on results. `parallel` borrows torch's own
// threads; null starts new ones, which a forked process can do safely. Returns 1 if an
// item ran out of memory, else 0.
template <class Work>
int run(int64_t count, int threads, Parallel parallel, const Work& work) {
  struct Shared {
    const Work* work;
    int64_t count;
    std::atomic<int64_t> next{0};
    std::atomic<int> failed{0};

    void drain() {
      try {
        for (int64_t i; (i = next.fetch_add(1)) < count;) (*work)(i);
      } catch (const std::bad_alloc&) {
        failed = 1;
      }
    }
    static void entry(void* self) { static_cast<Shared*>(self)->drain(); }
  } shared;
  shared.work = &work;
  shared.count = count;
  if (threads > count) threads = int(count);
  if (threads <= 1) {
    shared.drain();
  } else if (parallel) {
    parallel(&Shared::entry, &shared, unsigned(threads), 0);
  } else {
    std::vector<std::thread> team;
    try {
      for (int t = 1; t < threads; ++t) team.emplace_back(&Shared::entry, &shared);
    } catch (const std::exception&) {
      // Fewer threads than asked for do the same work.
    }
    shared.drain();
    for (std::thread& thread : team) thread.join();
  }
  return shared.failed;
}

}  // namespace pelk
