// Work shared among threads. No result depends on their number: an entry is either summed by one
// thread in the order of its row, or by parts that the batch alone determines, which are then added
// in their order.
#pragma once

#include <cstdint>
#include <omp.h>

namespace {  // nothing of this is seen outside the library

// Whether the caller shares work among threads: where there is much of it and it is not one of
// several threads already. An `if` clause is no way to say so: where it is false there still is a
// region, of one thread. That costs 10 us, and a region within it starts threads of its own and
// ends them, which costs milliseconds.
inline bool shared(bool much) { return much && !omp_in_parallel(); }

// f(i) for i < n.
template <typename F>
inline void each(int64_t n, bool much, F f) {
  if (shared(much)) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) f(i);
  } else {
    for (int64_t i = 0; i < n; ++i) f(i);
  }
}

}  // namespace
