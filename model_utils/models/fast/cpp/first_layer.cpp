// The sums of first_layer.py over runs of edges, and their VJP.
#include "harmonics.h"
#include "threads.h"
#include "vectors.h"

namespace {

struct Segments {  // runs of edges of one receiver and one element of senders
  int64_t n_segments, n_edges;
  const int64_t* ptr;
  const int32_t* pair;
  const int8_t* flipped;
  const int8_t* odd;
};

template <int M>
void sums_of(const Segments& s, int64_t n_radial, const Real* r, const Real* y, const Real* ar,
             const Real* ay, Real* sums) {
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t i = 0; i < s.n_segments; ++i) {
    const int64_t first = s.ptr[i], n = s.ptr[i + 1] - first;
    std::vector<Real> ys(2 * n * M);
    for (int64_t x = 0; x < n; ++x) {
      const int64_t q = s.pair[first + x];
      signed_harmonics(y + q * M, s.odd, s.flipped[first + x], M, &ys[2 * x * M]);
      if (ay) signed_harmonics(ay + q * M, s.odd, s.flipped[first + x], M, &ys[(2 * x + 1) * M]);
    }
    blocks(n_radial, [&](int64_t c, auto k) {
      Vector total[M];
      for (int m = 0; m < M; ++m) total[m] = Vector{};
      for (int64_t x = 0; x < n; ++x) {
        const int64_t at = int64_t(s.pair[first + x]) * n_radial + c;
        const Real* yx = &ys[2 * x * M];
        if (ay) {
          const Vector rv = load(r + at, k), arv = load(ar + at, k);
          for (int m = 0; m < M; ++m) total[m] += arv * yx[m] + rv * yx[M + m];
        } else {
          const Vector rv = load(r + at, k);
          for (int m = 0; m < M; ++m) total[m] += rv * yx[m];
        }
      }
      for (int m = 0; m < M; ++m) store(sums + (m * s.n_segments + i) * n_radial + c, total[m], k);
    });
  }
}

template <int M>
void vjp_of(const Segments& s, int64_t n_radial, const Real* r, const Real* y, const Real* g,
            Real* gr, Real* gy) {
  for (int flipped = 0; flipped < 2; ++flipped) {
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t i = 0; i < s.n_segments; ++i)
      for (int64_t x = s.ptr[i]; x < s.ptr[i + 1]; ++x) {
        if (s.flipped[x] != flipped) continue;
        const int64_t q = s.pair[x];
        Real ys[M];
        signed_harmonics(y + q * M, s.odd, flipped, M, ys);
        Vector by_y[M];
        for (int m = 0; m < M; ++m) by_y[m] = Vector{};
        blocks(n_radial, [&](int64_t c, auto k) {
          Vector total{};
          if (gy) {
            const Vector rv = load(r + q * n_radial + c, k);
            for (int m = 0; m < M; ++m) {
              const Vector gv = load(g + (m * s.n_segments + i) * n_radial + c, k);
              total += gv * ys[m];
              by_y[m] += gv * rv;
            }
          } else {
            for (int m = 0; m < M; ++m)
              total += load(g + (m * s.n_segments + i) * n_radial + c, k) * ys[m];
          }
          if (flipped)
            add(gr + q * n_radial + c, total, k);
          else
            store(gr + q * n_radial + c, total, k);
        });
        if (gy)
          for (int m = 0; m < M; ++m) {
            const Real value = sum(by_y[m]);
            if (flipped)
              gy[q * M + m] += s.odd[m] ? -value : value;
            else
              gy[q * M + m] = value;
          }
      }
  }
}

}  // namespace

// sums[m, s, k] = sum over edges of y[m] r[k] or, where ar and ay are given, of y[m] ar[k] + ay[m]
// r[k].
extern "C" void segment_sums(const Segments& s, int64_t n_harmonics, int64_t n_radial,
                             const Real* r, const Real* y, const Real* ar, const Real* ay,
                             Real* sums) {
  by_harmonics(n_harmonics,
               [&](auto m) { sums_of<decltype(m)::value>(s, n_radial, r, y, ar, ay, sums); });
}

// gr[q, k] = sum_m y[q, m] g[m, s, k] and, where gy is given, gy[q, m] = sum_k r[q, k] g[m, s, k],
// over both edges of q.
extern "C" void segment_sums_vjp(const Segments& s, int64_t n_harmonics, int64_t n_radial,
                                 const Real* r, const Real* y, const Real* g, Real* gr, Real* gy) {
  by_harmonics(n_harmonics,
               [&](auto m) { vjp_of<decltype(m)::value>(s, n_radial, r, y, g, gr, gy); });
}
