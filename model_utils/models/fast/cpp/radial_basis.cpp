// The radial basis with its slope, and the cutoff with its own (radial.py).
#include "threads.h"
#include "vectors.h"

namespace {

struct Basis {
  int64_t n, gaussian, power;  // functions; gaussians or Bessel functions; power of the cutoff
  double r_max, prefactor;     // of a gaussian the factor in its exponent
  double a, p, q;              // of the Agnesi transform
};

}  // namespace

// value and slope (pairs, n) of the functions at r or, where scale is given, at the transform of r
// by each pair's own length. The cutoff multiplies them, or is written with its slope to the arrays
// for it.
extern "C" void radial_basis(const Basis& b, int64_t pairs, const Real* r, const Real* scale,
                             const Real* numbers, Real* value, Real* slope, Real* cutoff,
                             Real* cutoff_slope) {
  const Real r_max = Real(b.r_max), prefactor = Real(b.prefactor), q = Real(b.q),
             difference = Real(b.q - b.p);
  const Real c0 = Real((b.power + 1) * (b.power + 2)) / 2, c1 = Real(b.power * (b.power + 2)),
             c2 = Real(b.power * (b.power + 1)) / 2;
  each(pairs, pairs > 100, [&](int64_t i) {
    const Real u = r[i] / r_max;
    Real power = 1;  // u^(p - 1)
    for (int64_t k = 1; k < b.power; ++k) power *= u;
    const bool inside = r[i] < r_max;
    Real f = inside ? 1 + power * u * (-c0 + u * (c1 - u * c2)) : Real(0);
    Real df = inside ? -(c0 * b.power) * power * (1 - u) * (1 - u) / r_max : Real(0);
    if (cutoff) {
      cutoff[i] = f;
      cutoff_slope[i] = df;
      f = 1;
      df = 0;
    }
    Real x = r[i], dx = 1;
    if (scale) {
      const Real reduced = r[i] / scale[i], w = std::pow(reduced, difference),
                 a = Real(b.a) * std::pow(reduced, q) / (1 + w);
      x = 1 / (1 + a);
      dx = -x * x * a / r[i] * (q - difference * w / (1 + w));
    }
    for (int64_t k = 0; k < b.n; ++k) {
      Real wave, slope_of_wave;
      if (b.gaussian) {
        const Real distance = x - numbers[k];
        wave = std::exp(prefactor * distance * distance);
        slope_of_wave = 2 * prefactor * distance * wave;
      } else {
        wave = prefactor * std::sin(numbers[k] * x) / x;
        slope_of_wave = (prefactor * numbers[k] * std::cos(numbers[k] * x) - wave) / x;
      }
      value[i * b.n + k] = wave * f;
      slope[i * b.n + k] = slope_of_wave * dx * f + wave * df;
    }
  });
}
