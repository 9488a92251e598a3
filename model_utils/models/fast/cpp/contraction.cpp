// The symmetric contraction (formulas in contraction.py): a polynomial in the features of one atom
// and channel, whose coefficients are those of the atom's element.
//
// Entries are read through tables, a few of them for each product; so an entry, its coefficient and
// the branches that lead to it are read once for two atoms. Each has sums of its own, and what they
// give to a coefficient is added in their order. An atom that is left over has one of zeros beside
// it: the same instructions give it the same bits, whatever batch it is in.
#include "fused.h"
#include "threads.h"
#include "vectors.h"

namespace {

// The polynomial in nested form: per output component a list of a, per a one of b, per b one of d.
struct Outer {
  int32_t a, term, first, last;
};  // term of degree 1 or -1; its range of Inner
struct Inner {
  int32_t b, term, first, last, cubic;
};  // term of degree 2 or -1; its range of d; first term of degree 3
struct Deep {
  int32_t term, first, last, quartic;
};  // term of degree 3 or -1; its range of e; first term of degree 4
struct Polynomial {
  int64_t n_channels, n_in, n_out, n_terms;
  const int32_t* outer_ptr;
  const Outer* outer;
  const Inner* inner;
  const int32_t* d;
  const Deep* deep;  // beside every d; null where there is no degree 4, and terms of degree 3
                     // follow one another
  const int32_t* e;
};
struct Atoms {  // sorted by element
  int64_t n_atoms, n_present;
  const int64_t* species_ptr;
};
constexpr int kMaxIn = 25;

// Two atoms of an element whose features lie side by side, or one and nothing.
struct Pair {
  int64_t first;
  bool both;
};

// One block of channels of both.
struct Two {
  Vector a, b;

  template <typename Count>
  static Two load(const Real* p, int64_t n_channels, Pair atoms, Count k) {
    p += atoms.first * n_channels;
    return {::load(p, k), atoms.both ? ::load(p + n_channels, k) : Vector{}};
  }
  template <typename Count>
  void store(Real* p, int64_t n_channels, Pair atoms, Count k) const {
    p += atoms.first * n_channels;
    ::store(p, a, k);
    if (atoms.both) ::store(p + n_channels, b, k);
  }
  static Two same(const Vector& v) { return {v, v}; }
  Two operator*(const Two& v) const { return {a * v.a, b * v.b}; }
  // v w + x y
  static Two sum(const Two& v, const Two& w, const Two& x, const Two& y) {
    return {fused(x.a, y.a, v.a * w.a), fused(x.b, y.b, v.b * w.b)};
  }
  void add(const Two& v, const Two& w) {  // v w
    a = fused(v.a, w.a, a);
    b = fused(v.b, w.b, b);
  }
  void add(const Two& v, const Vector& w) { add(v, same(w)); }
};

// The coefficients of one element for one block of channels, or the gradient by them. They lie one
// after the other here: a stride of all channels would have them share a few lines of the cache.
struct Coefficients {
  std::vector<Vector> of;

  explicit Coefficients(int64_t n_terms) : of(n_terms, Vector{}) {}
  template <typename Count>
  Coefficients(int64_t n_terms, const Real* t, int64_t n_channels, Count k) : of(n_terms) {
    for (int64_t e = 0; e < n_terms; ++e) of[e] = load(t + e * n_channels, k);
  }
  template <typename Count>
  void store_to(Real* t, int64_t n_channels, Count k) const {
    for (size_t e = 0; e < of.size(); ++e) store(t + e * n_channels, of[e], k);
  }
  Vector operator[](int32_t term) const { return term >= 0 ? of[term] : Vector{}; }
  void add(int32_t term, const Two& v) {
    if (term >= 0) of[term] = of[term] + v.a + v.b;
  }
  void add(int32_t term, const Two& v, const Two& w) {  // v w
    of[term] = fused(v.b, w.b, fused(v.a, w.a, of[term]));
  }
};

// body(element, first channel, count) for all blocks of channels of all elements.
template <typename Body>
void by_element_and_block(const Polynomial& f, const Atoms& atoms, Body body) {
  const int64_t lanes = kLanes, n_blocks = (f.n_channels + lanes - 1) / lanes;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int64_t b = 0; b < n_blocks; ++b)
    for (int64_t z = 0; z < atoms.n_present; ++z) {
      const int64_t c = b * lanes;
      if (c + lanes <= f.n_channels)
        body(z, c, Full{});
      else
        body(z, c, Part{f.n_channels - c});
    }
}

// body(two atoms) for all atoms of an element.
template <typename Body>
void two_by_two(const Atoms& atoms, int64_t z, Body body) {
  const int64_t end = atoms.species_ptr[z + 1];
  for (int64_t i = atoms.species_ptr[z]; i < end; i += 2) body(Pair{i, i + 1 < end});
}

template <bool Quartic>
void contract_as(const Polynomial& f, const Atoms& atoms, const Real* x, const Real* t, Real* y) {
  const int64_t n = f.n_channels, stride = atoms.n_atoms * n;
  by_element_and_block(f, atoms, [&](int64_t z, int64_t c, auto k) {
    const Coefficients tz(f.n_terms, t + z * f.n_terms * n + c, n, k);
    two_by_two(atoms, z, [&](Pair i) {
      using V = Two;
      V xv[kMaxIn];
      for (int64_t m = 0; m < f.n_in; ++m) xv[m] = V::load(x + m * stride + c, n, i, k);
      for (int64_t w = 0; w < f.n_out; ++w) {
        V total{};
        for (int32_t o = f.outer_ptr[w]; o < f.outer_ptr[w + 1]; ++o) {
          const Outer& a = f.outer[o];
          V av = V::same(tz[a.term]);
          for (int32_t p = a.first; p < a.last; ++p) {
            const Inner& b = f.inner[p];
            V bv = V::same(tz[b.term]);
            for (int32_t q = b.first; q < b.last; ++q) {
              if constexpr (Quartic) {
                const Deep& d = f.deep[q];
                V tv = V::same(tz[d.term]);
                for (int32_t r = d.first; r < d.last; ++r)
                  tv.add(xv[f.e[r]], tz.of[d.quartic + r - d.first]);
                bv.add(tv, xv[f.d[q]]);
              } else {
                bv.add(xv[f.d[q]], tz.of[b.cubic + q - b.first]);
              }
            }
            av.add(bv, xv[b.b]);
          }
          total.add(av, xv[a.a]);
        }
        total.store(y + w * stride + c, n, i, k);
      }
    });
  });
}

template <bool ByTerms, bool Quartic>
void contract_vjp_as(const Polynomial& f, const Atoms& atoms, const Real* x, const Real* t,
                     const Real* g, Real* gx, Real* gt) {
  const int64_t n = f.n_channels, stride = atoms.n_atoms * n;
  by_element_and_block(f, atoms, [&](int64_t z, int64_t c, auto k) {
    const int64_t of_element = z * f.n_terms * n + c;
    const Coefficients tz(f.n_terms, t + of_element, n, k);
    Coefficients gz(ByTerms ? f.n_terms : 0);
    two_by_two(atoms, z, [&](Pair i) {
      using V = Two;
      V xv[kMaxIn], dv[kMaxIn];
      for (int64_t m = 0; m < f.n_in; ++m) {
        xv[m] = V::load(x + m * stride + c, n, i, k);
        dv[m] = V{};
      }
      for (int64_t w = 0; w < f.n_out; ++w) {
        const V gw = V::load(g + w * stride + c, n, i, k);
        for (int32_t o = f.outer_ptr[w]; o < f.outer_ptr[w + 1]; ++o) {
          const Outer& a = f.outer[o];
          V av = V::same(tz[a.term]);
          const V ga = gw * xv[a.a];
          if (ByTerms) gz.add(a.term, ga);
          for (int32_t p = a.first; p < a.last; ++p) {
            const Inner& b = f.inner[p];
            V bv = V::same(tz[b.term]);
            const V gb = ga * xv[b.b];
            if (ByTerms) gz.add(b.term, gb);
            for (int32_t q = b.first; q < b.last; ++q) {
              const int32_t d = f.d[q];
              if constexpr (Quartic) {
                const Deep& deep = f.deep[q];
                const V gd = gb * xv[d];
                V tv = V::same(tz[deep.term]);
                if (ByTerms) gz.add(deep.term, gd);
                for (int32_t r = deep.first; r < deep.last; ++r) {
                  const int32_t term = deep.quartic + r - deep.first;
                  tv.add(xv[f.e[r]], tz.of[term]);
                  dv[f.e[r]].add(gd, tz.of[term]);
                  if (ByTerms) gz.add(term, gd, xv[f.e[r]]);
                }
                bv.add(tv, xv[d]);
                dv[d].add(gb, tv);
              } else {
                const int32_t term = b.cubic + q - b.first;
                const Vector tv = tz.of[term];
                if (ByTerms) gz.add(term, gb, xv[d]);
                bv.add(xv[d], tv);
                dv[d].add(gb, tv);
              }
            }
            av.add(bv, xv[b.b]);
            dv[b.b].add(ga, bv);
          }
          dv[a.a].add(gw, av);
        }
      }
      for (int64_t m = 0; m < f.n_in; ++m) dv[m].store(gx + m * stride + c, n, i, k);
    });
    if (ByTerms) gz.store_to(gt + of_element, n, k);
  });
}

template <bool Quartic>
void contract_vjp_vjp_as(const Polynomial& f, const Atoms& atoms, const Real* x, const Real* t,
                         const Real* g, const Real* ax, Real* dx, Real* dt, Real* dg) {
  const int64_t n = f.n_channels, stride = atoms.n_atoms * n;
  by_element_and_block(f, atoms, [&](int64_t z, int64_t c, auto k) {
    const int64_t of_element = z * f.n_terms * n + c;
    const Coefficients tz(f.n_terms, t + of_element, n, k);
    Coefficients gz(f.n_terms);
    two_by_two(atoms, z, [&](Pair i) {
      using V = Two;
      V xv[kMaxIn], av[kMaxIn], dv[kMaxIn];
      for (int64_t m = 0; m < f.n_in; ++m) {
        xv[m] = V::load(x + m * stride + c, n, i, k);
        av[m] = V::load(ax + m * stride + c, n, i, k);
        dv[m] = V{};
      }
      for (int64_t w = 0; w < f.n_out; ++w) {
        const V gw = V::load(g + w * stride + c, n, i, k);
        V dgw{};
        for (int32_t o = f.outer_ptr[w]; o < f.outer_ptr[w + 1]; ++o) {
          const Outer& a = f.outer[o];
          const V xa = xv[a.a], aa = av[a.a];
          V pa = V::same(tz[a.term]), dpa{};
          const V ga = gw * xa, dga = gw * aa;
          gz.add(a.term, dga);
          for (int32_t p = a.first; p < a.last; ++p) {
            const Inner& b = f.inner[p];
            const V xb = xv[b.b], ab = av[b.b];
            V pb = V::same(tz[b.term]), dpb{};
            const V gb = ga * xb, dgb = V::sum(ga, ab, dga, xb);
            gz.add(b.term, dgb);
            for (int32_t q = b.first; q < b.last; ++q) {
              const int32_t d = f.d[q];
              const V xd = xv[d], ad = av[d], dgd = V::sum(gb, ad, dgb, xd);
              if constexpr (Quartic) {
                const Deep& deep = f.deep[q];
                const V gd = gb * xd;
                V tv = V::same(tz[deep.term]), dtv{};
                gz.add(deep.term, dgd);
                for (int32_t r = deep.first; r < deep.last; ++r) {
                  const int32_t term = deep.quartic + r - deep.first;
                  const V xe = xv[f.e[r]], ae = av[f.e[r]];
                  tv.add(xe, tz.of[term]);
                  dtv.add(ae, tz.of[term]);
                  dv[f.e[r]].add(dgd, tz.of[term]);
                  gz.add(term, V::sum(gd, ae, dgd, xe));
                }
                pb.add(tv, xd);
                dpb.add(tv, ad);
                dpb.add(dtv, xd);
                dv[d].add(dgb, tv);
                dv[d].add(gb, dtv);
              } else {
                const int32_t term = b.cubic + q - b.first;
                const Vector tv = tz.of[term];
                pb.add(xd, tv);
                dpb.add(ad, tv);
                dv[d].add(dgb, tv);
                gz.add(term, dgd);
              }
            }
            pa.add(pb, xb);
            dpa.add(pb, ab);
            dpa.add(dpb, xb);
            dv[b.b].add(ga, dpb);
            dv[b.b].add(dga, pb);
          }
          dgw.add(aa, pa);
          dgw.add(xa, dpa);
          dv[a.a].add(gw, dpa);
        }
        dgw.store(dg + w * stride + c, n, i, k);
      }
      for (int64_t m = 0; m < f.n_in; ++m) dv[m].store(dx + m * stride + c, n, i, k);
    });
    gz.store_to(dt + of_element, n, k);
  });
}
}  // namespace

extern "C" void contract(const Polynomial& f, const Atoms& atoms, const Real* x, const Real* t,
                         Real* y) {
  f.deep ? contract_as<true>(f, atoms, x, t, y) : contract_as<false>(f, atoms, x, t, y);
}

// gt may be null where nobody asks for it.
extern "C" void contract_vjp(const Polynomial& f, const Atoms& atoms, const Real* x, const Real* t,
                             const Real* g, Real* gx, Real* gt) {
  if (gt)
    f.deep ? contract_vjp_as<true, true>(f, atoms, x, t, g, gx, gt)
           : contract_vjp_as<true, false>(f, atoms, x, t, g, gx, gt);
  else
    f.deep ? contract_vjp_as<false, true>(f, atoms, x, t, g, gx, gt)
           : contract_vjp_as<false, false>(f, atoms, x, t, g, gx, gt);
}

// Adjoint ax of gx: dg, dx and dt of sum ax gx.
extern "C" void contract_vjp_vjp(const Polynomial& f, const Atoms& atoms, const Real* x,
                                 const Real* t, const Real* g, const Real* ax, Real* dx, Real* dt,
                                 Real* dg) {
  f.deep ? contract_vjp_vjp_as<true>(f, atoms, x, t, g, ax, dx, dt, dg)
         : contract_vjp_vjp_as<false>(f, atoms, x, t, g, ax, dx, dt, dg);
}
