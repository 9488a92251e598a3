// Derivatives of silu, element by element.
#include "threads.h"
#include "vectors.h"

// silu and its slopes from z and s = 1/(1 + exp(-z)), all times gain.
extern "C" void silu_vjp(int64_t n, double gain, const Real* z, const Real* s, const Real* g,
                         Real* gz) {
  const Real factor = Real(gain);
  each(n, n > 8192, [=](int64_t i) { gz[i] = g[i] * (factor * s[i] * (1 + z[i] * (1 - s[i]))); });
}
extern "C" void silu_vjp_vjp(int64_t n, double gain, const Real* z, const Real* s, const Real* g,
                             const Real* a, Real* dz, Real* dg) {
  const Real factor = Real(gain);
  each(n, n > 8192, [=](int64_t i) {
    const Real rest = 1 - s[i], scaled = factor * s[i] * a[i];
    dg[i] = scaled * (1 + z[i] * rest);
    dz[i] = g[i] * (scaled * rest * (2 + z[i] * (rest - s[i])));
  });
}
