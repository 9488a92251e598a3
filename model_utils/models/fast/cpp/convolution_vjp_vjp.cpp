// The VJP of the convolution's VJP; rows are gone through in parts (convolution.h).
#include "convolution.h"

namespace {

template <int D1, int D3>
struct BackwardTwice {
  static inline void run(const Real* h, const Real* ah, int64_t hs, const Real* w, const Real* aw,
                         const Real* m, const Real* am, const Real* g, int64_t gs, Real* dh,
                         Real* dw, Real* dg, Vector* dm, bool flipped, int64_t n) {
    if (dm)
      for (int i = 0; i < D1 * D3; ++i) dm[i] = Vector{};
    blocks(n, [&](int64_t c, auto k) {
      const Vector wv = load(w + c, k), awv = load(aw + c, k);
      Vector gv[D3], dgv[D3], s{};
      for (int b = 0; b < D3; ++b) {
        gv[b] = load(g + b * gs + c, k);
        dgv[b] = load(dg + b * gs + c, k);
      }
      for (int a = 0; a < D1; ++a) {
        const Vector hv = load(h + a * hs + c, k), ahv = load(ah + a * hs + c, k);
        const Vector mixed = ahv * wv + hv * awv, plain = hv * wv;
        Vector u{}, au{};
        for (int b = 0; b < D3; ++b) {
          const Real mv = m[a * D3 + b], amv = am[a * D3 + b];
          u += gv[b] * mv;
          au += gv[b] * amv;
          dgv[b] += mixed * mv + plain * amv;
          if (dm) dm[a * D3 + b] += mixed * gv[b];
        }
        add(dh + a * hs + c, au * wv + u * awv, k);
        s += u * ahv + au * hv;
      }
      for (int b = 0; b < D3; ++b) store(dg + b * gs + c, dgv[b], k);
      if (flipped)
        add(dw + c, s, k);
      else
        store(dw + c, s, k);
    });
  }
};

}  // namespace

// Adjoints ah, ay, aw of gh, gy, gw; dy may be null where nobody asks for it.
extern "C" void convolve_vjp_vjp(const Edges& e, const Convolution& f, const Real* h, const Real* y,
                                 const Real* w, const Real* g, const Real* ah, const Real* ay,
                                 const Real* aw, Real* dh, Real* dy, Real* dw, Real* dg) {
  const int64_t n = f.n_channels, hs = e.n_atoms * n;
  const Parts parts(e);
  Sent sent(parts.n(), f.n_components * hs);
  for (int pass = 0; pass < 2; ++pass) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t part = 0; part < parts.n(); ++part) {
      Real* to = pass ? sent.again(part) : sent.part(part);
      Real m[kMaxMatrix], am[kMaxMatrix];
      Vector dm[kMaxPath], dyv[kMaxHarmonics];
      for (int64_t place = parts.first[part]; place < parts.first[part + 1]; ++place) {
        const int64_t i = e.rank[place];
        if (!pass)
          for (int64_t p = 0; p < f.n_paths; ++p)
            for (int64_t b = 0; b < f.paths[p].d3; ++b)
              std::memset(dg + f.paths[p].out + b * f.paths[p].row + i * f.paths[p].atom, 0,
                          sizeof(Real) * n);
        for (int64_t x = e.row_ptr[i]; x < e.row_ptr[i + 1]; ++x) {
          if (!parts.in_pass(pass, part, x)) continue;
          const bool flipped = e.flipped[x];
          const int64_t j = e.sender[x], q = e.pair[x];
          couple(f, y + q * f.n_harmonics, flipped, m);
          couple(f, ay + q * f.n_harmonics, flipped, am);
          for (int64_t k = 0; k < f.n_harmonics; ++k) dyv[k] = Vector{};
          const int64_t next = parts.next(pass, part, x);
          for (int64_t p = 0; p < f.n_paths; ++p) {
            const Path& path = f.paths[p];
            fetch(w + (next * f.n_paths + path.weight) * n, n);
            fetch(aw + (next * f.n_paths + path.weight) * n, n);
            fetch(dw + (next * f.n_paths + path.weight) * n, n);
            const int64_t at = path.m1 * hs + j * n, weight = (q * f.n_paths + path.weight) * n;
            const int64_t out = path.out + i * path.atom;
            by_path<BackwardTwice>(path, h + at, ah + at, hs, w + weight, aw + weight,
                                   m + path.matrix, am + path.matrix, g + out, path.row, to + at,
                                   dw + weight, dg + out, dy ? dm : nullptr, flipped, n);
            if (dy) uncouple(f, path, dm, dyv);
          }
          if (dy) store_harmonics(f, dyv, flipped, dy + q * f.n_harmonics);
        }
      }
    }
  }
  sent.total(dh);
}
