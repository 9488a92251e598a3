// The sums of convolution.py over the edges of each receiver.
#include "convolution.h"

namespace {

template <int D1, int D3>
struct Forward {
  static inline void run(const Real* h, int64_t hs, const Real* w, const Real* m, Real* out,
                         int64_t os, int64_t n) {
    blocks(n, [&](int64_t c, auto k) {
      Vector u[D1];
      const Vector wv = load(w + c, k);
      for (int a = 0; a < D1; ++a) u[a] = load(h + a * hs + c, k) * wv;
      for (int b = 0; b < D3; ++b) {
        Vector t = load(out + b * os + c, k);
        for (int a = 0; a < D1; ++a) t += u[a] * m[a * D3 + b];
        store(out + b * os + c, t, k);
      }
    });
  }
};

}  // namespace

extern "C" void convolve(const Edges& e, const Convolution& f, const Real* h, const Real* y,
                         const Real* w, Real* out) {
  const int64_t n = f.n_channels, hs = e.n_atoms * n;
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t place = 0; place < e.n_atoms; ++place) {
    const int64_t i = e.rank[place];
    for (int64_t p = 0; p < f.n_paths; ++p)
      for (int64_t b = 0; b < f.paths[p].d3; ++b)
        std::memset(out + f.paths[p].out + b * f.paths[p].row + i * f.paths[p].atom, 0,
                    sizeof(Real) * n);
    Real m[kMaxMatrix];
    for (int64_t x = e.row_ptr[i]; x < e.row_ptr[i + 1]; ++x) {
      const int64_t j = e.sender[x], q = e.pair[x];
      couple(f, y + q * f.n_harmonics, e.flipped[x], m);
      const int64_t next = e.pair[std::min(x + 1, e.n_edges - 1)];
      for (int64_t p = 0; p < f.n_paths; ++p) {
        const Path& path = f.paths[p];
        fetch(w + (next * f.n_paths + path.weight) * n, n);
        by_path<Forward>(path, h + path.m1 * hs + j * n, hs, w + (q * f.n_paths + path.weight) * n,
                         m + path.matrix, out + path.out + i * path.atom, path.row, n);
      }
    }
  }
}
