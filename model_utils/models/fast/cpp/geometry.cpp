// Lengths and spherical harmonics of vectors (geometry.py), their VJP and their derivative along a
// direction.
#include "harmonics.h"
#include "threads.h"
#include "vectors.h"

namespace {

// A number with its derivatives by N others; products and sums carry them along.
template <int N>
struct Dual {
  Real value;
  Real by[N];
  Dual operator+(const Dual& o) const {
    Dual r{value + o.value, {}};
    for (int i = 0; i < N; ++i) r.by[i] = by[i] + o.by[i];
    return r;
  }
  Dual operator-(const Dual& o) const {
    Dual r{value - o.value, {}};
    for (int i = 0; i < N; ++i) r.by[i] = by[i] - o.by[i];
    return r;
  }
  Dual operator*(const Dual& o) const {
    Dual r{value * o.value, {}};
    for (int i = 0; i < N; ++i) r.by[i] = by[i] * o.value + value * o.by[i];
    return r;
  }
  Dual operator*(Real c) const {
    Dual r{value * c, {}};
    for (int i = 0; i < N; ++i) r.by[i] = by[i] * c;
    return r;
  }
};

// The polynomials of geometry.spherical_harmonics at a unit vector, without the constant order 0.
template <typename S>
inline void harmonics(const S& x, const S& y, const S& z, int64_t n, S* out) {
  const Real r3 = std::sqrt(Real(3)), r5 = std::sqrt(Real(5)), r7 = std::sqrt(Real(7));
  out[0] = x * r3;
  out[1] = y * r3;
  out[2] = z * r3;
  if (n < 9) return;
  const S xx = x * x, yy = y * y, zz = z * z, xz = xx + zz;
  const S a = x * z * r3, d = (zz - xx) * (r3 / 2);
  out[3] = a * r5;
  out[4] = x * y * (r3 * r5);
  out[5] = (yy - xz * Real(0.5)) * r5;
  out[6] = y * z * (r3 * r5);
  out[7] = d * r5;
  if (n < 16) return;
  const Real r56 = std::sqrt(Real(5) / Real(6)) * r7, r38 = std::sqrt(Real(3) / Real(8)) * r7;
  const S four = yy * Real(4) - xz;
  out[8] = (a * z + d * x) * r56;
  out[9] = a * y * (r5 * r7);
  out[10] = four * x * r38;
  out[11] = y * (yy * Real(2) - xz * Real(3)) * (r7 / 2);
  out[12] = z * four * r38;
  out[13] = d * y * (r5 * r7);
  out[14] = (d * z - a * x) * r56;
  if (n < 25) return;
  const S* t = out + 8;
  const Real k = 3 / r7, c1 = k * std::sqrt(Real(1) / 32), c3 = k * std::sqrt(Real(3) / 32),
             c7 = k * std::sqrt(Real(7) / 8);
  const Real c14 = k * std::sqrt(Real(7) / 16), c15 = k * std::sqrt(Real(15) / 32),
             c21 = k * std::sqrt(Real(21) / 32);
  const Real c24 = k * std::sqrt(Real(3) / 4), c30 = k * std::sqrt(Real(15) / 16),
             c20 = k * std::sqrt(Real(5) / 8);
  out[15] = (t[0] * z + t[6] * x) * c7;
  out[16] = t[0] * y * c14 + (t[1] * z + t[5] * x) * c21;
  out[17] = (t[6] * x - t[0] * z) * c1 + t[1] * y * c24 + (t[2] * z + t[4] * x) * c15;
  out[18] = (t[5] * x - t[1] * z) * c3 + t[2] * y * c30 + t[3] * x * c20;
  out[19] = t[3] * y * k - (t[2] * x + t[4] * z) * (k * std::sqrt(Real(3) / 8));
  out[20] = t[3] * z * c20 + t[4] * y * c30 - (t[1] * x + t[5] * z) * c3;
  out[21] = (t[4] * z - t[2] * x) * c15 + t[5] * y * c24 - (t[0] * x + t[6] * z) * c1;
  out[22] = (t[5] * z - t[1] * x) * c21 + t[6] * y * c14;
  out[23] = (t[6] * z - t[0] * x) * c7;
}

}  // namespace

// Lengths of vectors and spherical harmonics of their directions, n = (max_ell + 1)^2 of them.
extern "C" void directions(int64_t pairs, int64_t n, const Real* v, Real* r, Real* y) {
  each(pairs, pairs > 500, [&](int64_t q) {
    const Real *p = v + 3 * q, length = std::sqrt(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]);
    r[q] = length;
    y[q * n] = 1;
    harmonics(p[0] / length, p[1] / length, p[2] / length, n, y + q * n + 1);
  });
}

// gv of gr and gy: u = v / r gives gv = (gu - u (u gu)) / r + gr u.
extern "C" void directions_vjp(int64_t pairs, int64_t n, const Real* v, const Real* r,
                               const Real* gr, const Real* gy, Real* gv) {
  each(pairs, pairs > 500, [&](int64_t q) {
    Dual<3> u[3], y[kMaxHarmonics];
    for (int i = 0; i < 3; ++i) {
      u[i] = Dual<3>{v[3 * q + i] / r[q], {0, 0, 0}};
      u[i].by[i] = 1;
    }
    harmonics(u[0], u[1], u[2], n, y);
    Real gu[3] = {0, 0, 0}, along = 0;
    for (int64_t m = 1; m < n; ++m)
      for (int i = 0; i < 3; ++i) gu[i] += gy[q * n + m] * y[m - 1].by[i];
    for (int i = 0; i < 3; ++i) along += gu[i] * u[i].value;
    for (int i = 0; i < 3; ++i)
      gv[3 * q + i] = (gu[i] - u[i].value * along) / r[q] + gr[q] * u[i].value;
  });
}

// dgr and dgy of the adjoint a of gv: the derivatives of r and y along a.
extern "C" void directions_jvp(int64_t pairs, int64_t n, const Real* v, const Real* r,
                               const Real* a, Real* dr, Real* dy) {
  each(pairs, pairs > 500, [&](int64_t q) {
    Dual<1> u[3], y[kMaxHarmonics];
    Real along = 0;
    for (int i = 0; i < 3; ++i) along += a[3 * q + i] * v[3 * q + i] / r[q];
    for (int i = 0; i < 3; ++i) {
      const Real direction = v[3 * q + i] / r[q];
      u[i] = Dual<1>{direction, {(a[3 * q + i] - direction * along) / r[q]}};
    }
    harmonics(u[0], u[1], u[2], n, y);
    dr[q] = along;
    dy[q * n] = 0;
    for (int64_t m = 1; m < n; ++m) dy[q * n + m] = y[m - 1].by[0];
  });
}
