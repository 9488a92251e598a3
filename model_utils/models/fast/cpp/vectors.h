// Numbers of the precision for which the kernels are compiled, and vectors of them as wide as the
// CPU's. Channels are innermost and go through vectors; what is left over goes through masked
// loads.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

namespace {  // nothing of this is seen outside the library

typedef REAL Real;  // float or double; a library has one of them

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
constexpr int kLanes = kBytes / sizeof(Real);

typedef Real Vector __attribute__((vector_size(kBytes)));

// The number of channels of a block: known to the compiler for a full one.
struct Full {
  static constexpr int64_t count() { return kLanes; }
};
struct Part {
  int64_t n;
  int64_t count() const { return n; }
};

template <typename Count>
inline Vector load(const Real* p, Count k) {
  Vector v{};
  std::memcpy(&v, p, sizeof(Real) * k.count());
  return v;
}
template <typename Count>
inline void store(Real* p, const Vector& v, Count k) {
  std::memcpy(p, &v, sizeof(Real) * k.count());
}
template <typename Count>
inline void add(Real* p, const Vector& v, Count k) {
  store(p, load(p, k) + v, k);
}

inline Real sum(const Vector& v) {
  Real lanes[kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// body(first channel, count) for all blocks of n channels.
template <typename Body>
inline void blocks(int64_t n, Body body) {
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) body(c, Full{});
  if (c < n) body(c, Part{n - c});
}

}  // namespace
