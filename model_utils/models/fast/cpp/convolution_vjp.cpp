// The VJP of the convolution; rows are gone through in parts (convolution.h).
#include "convolution.h"

namespace {

template <int D1, int D3>
struct Backward {
  static inline void run(const Real* h, int64_t hs, const Real* w, const Real* m, const Real* g,
                         int64_t gs, Real* dh, Real* dw, Vector* dm, bool flipped, int64_t n) {
    if (dm)
      for (int i = 0; i < D1 * D3; ++i) dm[i] = Vector{};
    blocks(n, [&](int64_t c, auto k) {
      const Vector wv = load(w + c, k);
      Vector gv[D3], s{};
      for (int b = 0; b < D3; ++b) gv[b] = load(g + b * gs + c, k);
      for (int a = 0; a < D1; ++a) {
        Vector u{};
        for (int b = 0; b < D3; ++b) u += gv[b] * m[a * D3 + b];
        const Vector hv = load(h + a * hs + c, k);
        s += u * hv;
        add(dh + a * hs + c, u * wv, k);
        if (dm) {
          const Vector hw = hv * wv;
          for (int b = 0; b < D3; ++b) dm[a * D3 + b] += hw * gv[b];
        }
      }
      if (flipped)
        add(dw + c, s, k);
      else
        store(dw + c, s, k);
    });
  }
};

}  // namespace

// gy may be null where nobody asks for it.
extern "C" void convolve_vjp(const Edges& e, const Convolution& f, const Real* h, const Real* y,
                             const Real* w, const Real* g, Real* gh, Real* gy, Real* gw) {
  const int64_t n = f.n_channels, hs = e.n_atoms * n;
  const Parts parts(e);
  Sent sent(parts.n(), f.n_components * hs);
  for (int pass = 0; pass < 2; ++pass) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t part = 0; part < parts.n(); ++part) {
      Real* dh = pass ? sent.again(part) : sent.part(part);
      Real m[kMaxMatrix];
      Vector dm[kMaxPath], dy[kMaxHarmonics];
      for (int64_t place = parts.first[part]; place < parts.first[part + 1]; ++place) {
        const int64_t i = e.rank[place];
        for (int64_t x = e.row_ptr[i]; x < e.row_ptr[i + 1]; ++x) {
          if (!parts.in_pass(pass, part, x)) continue;
          const bool flipped = e.flipped[x];
          const int64_t j = e.sender[x], q = e.pair[x];
          couple(f, y + q * f.n_harmonics, flipped, m);
          for (int64_t k = 0; k < f.n_harmonics; ++k) dy[k] = Vector{};
          const int64_t next = parts.next(pass, part, x);
          for (int64_t p = 0; p < f.n_paths; ++p) {
            const Path& path = f.paths[p];
            fetch(w + (next * f.n_paths + path.weight) * n, n);
            fetch(gw + (next * f.n_paths + path.weight) * n, n);
            const int64_t at = path.m1 * hs + j * n, weight = (q * f.n_paths + path.weight) * n;
            by_path<Backward>(path, h + at, hs, w + weight, m + path.matrix,
                              g + path.out + i * path.atom, path.row, dh + at, gw + weight,
                              gy ? dm : nullptr, flipped, n);
            if (gy) uncouple(f, path, dm, dy);
          }
          if (gy) store_harmonics(f, dy, flipped, gy + q * f.n_harmonics);
        }
      }
    }
  }
  sent.total(gh);
}
