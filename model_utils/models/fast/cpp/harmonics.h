// Spherical harmonics are stored once for a pair of atoms; those of odd order have the other sign
// for the edge that is flipped.
#pragma once

#include <type_traits>

#include "vectors.h"

namespace {  // nothing of this is seen outside the library

constexpr int kMaxHarmonics = 25;

inline void signed_harmonics(const Real* y, const int8_t* odd, bool flipped, int64_t n, Real* out) {
  for (int64_t m = 0; m < n; ++m) out[m] = flipped && odd[m] ? -y[m] : y[m];
}

// f(n) with a number of harmonics that the compiler knows.
template <typename F>
inline void by_harmonics(int64_t n, F f) {
  switch (n) {
    case 4:
      f(std::integral_constant<int, 4>{});
      break;
    case 9:
      f(std::integral_constant<int, 9>{});
      break;
    case 16:
      f(std::integral_constant<int, 16>{});
      break;
    default:
      f(std::integral_constant<int, 25>{});
      break;
  }
}

}  // namespace
