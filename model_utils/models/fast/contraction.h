// The symmetric contraction (formulas in contraction.py): a polynomial in the features of one atom
// and channel, whose coefficients are those of the atom's element. Included by kernels.cpp, whose
// vectors, loads and stores it takes.
//
// Entries are read through tables, a few of them for each product; so an entry, its coefficient and
// the branches that lead to it are read once for several atoms. Every atom has sums of its own, and
// what they give to a coefficient is added in their order: the bits are those of one atom at a
// time.
#pragma once

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
constexpr int kTogether = 2;  // atoms

// One block of channels of A atoms.
template <typename T, int A>
struct Together {
  Vector<T> of[A];

  template <typename Count>
  static Together load(const T* p, int64_t n_channels, Count k) {
    Together v;
    for (int u = 0; u < A; ++u) v.of[u] = ::load<T>(p + u * n_channels, k);
    return v;
  }
  template <typename Count>
  void store(T* p, int64_t n_channels, Count k) const {
    for (int u = 0; u < A; ++u) ::store<T>(p + u * n_channels, of[u], k);
  }
  static Together all(const Vector<T>& v) {
    Together many;
    for (int u = 0; u < A; ++u) many.of[u] = v;
    return many;
  }
  Together operator*(const Together& v) const {
    Together product;
    for (int u = 0; u < A; ++u) product.of[u] = of[u] * v.of[u];
    return product;
  }
  Together operator*(const Vector<T>& v) const { return *this * all(v); }
  Together operator+(const Together& v) const {
    Together sum;
    for (int u = 0; u < A; ++u) sum.of[u] = of[u] + v.of[u];
    return sum;
  }
  void operator+=(const Together& v) { *this = *this + v; }
  void add_to(Vector<T>& sum) const {
    for (int u = 0; u < A; ++u) sum += of[u];
  }
};

// The coefficients of one element for one block of channels, or the gradient by them. They lie one
// after the other here: a stride of all channels would have them share a few lines of the cache.
template <typename T>
struct Coefficients {
  std::vector<Vector<T>> of;

  explicit Coefficients(int64_t n_terms) : of(n_terms, Vector<T>{}) {}
  template <typename Count>
  Coefficients(int64_t n_terms, const T* t, int64_t n_channels, Count k) : of(n_terms) {
    for (int64_t e = 0; e < n_terms; ++e) of[e] = load<T>(t + e * n_channels, k);
  }
  template <typename Count>
  void store_to(T* t, int64_t n_channels, Count k) const {
    for (size_t e = 0; e < of.size(); ++e) store<T>(t + e * n_channels, of[e], k);
  }
  Vector<T> operator[](int32_t term) const { return term >= 0 ? of[term] : Vector<T>{}; }
  template <int A>
  void add(int32_t term, const Together<T, A>& v) {
    if (term >= 0) v.add_to(of[term]);
  }
};

// body(element, first channel, count) for all blocks of channels of all elements.
template <typename T, typename Body>
void by_element_and_block(const Polynomial& f, const Atoms& atoms, Body body) {
  const int64_t lanes = kLanes<T>, n_blocks = (f.n_channels + lanes - 1) / lanes;
#pragma omp parallel for collapse(2) schedule(dynamic, 1)
  for (int64_t b = 0; b < n_blocks; ++b)
    for (int64_t z = 0; z < atoms.n_present; ++z) {
      const int64_t c = b * lanes;
      if (c + lanes <= f.n_channels)
        body(z, c, Full<T>{});
      else
        body(z, c, Part{f.n_channels - c});
    }
}

// body(first atom, number of atoms) for all atoms of an element.
template <typename Body>
void several_at_once(const Atoms& atoms, int64_t z, Body body) {
  const int64_t end = atoms.species_ptr[z + 1];
  int64_t i = atoms.species_ptr[z];
  for (; i + kTogether <= end; i += kTogether) body(i, std::integral_constant<int, kTogether>{});
  for (; i < end; ++i) body(i, std::integral_constant<int, 1>{});
}

template <typename T, bool Quartic>
void contract(const Polynomial& f, const Atoms& atoms, const T* x, const T* t, T* y) {
  const int64_t n = f.n_channels, stride = atoms.n_atoms * n;
  by_element_and_block<T>(f, atoms, [&](int64_t z, int64_t c, auto k) {
    const Coefficients<T> tz(f.n_terms, t + z * f.n_terms * n + c, n, k);
    several_at_once(atoms, z, [&](int64_t i, auto many) {
      using V = Together<T, decltype(many)::value>;
      V xv[kMaxIn];
      for (int64_t m = 0; m < f.n_in; ++m) xv[m] = V::load(x + m * stride + i * n + c, n, k);
      for (int64_t w = 0; w < f.n_out; ++w) {
        V total{};
        for (int32_t o = f.outer_ptr[w]; o < f.outer_ptr[w + 1]; ++o) {
          const Outer& a = f.outer[o];
          V av = V::all(tz[a.term]);
          for (int32_t p = a.first; p < a.last; ++p) {
            const Inner& b = f.inner[p];
            V bv = V::all(tz[b.term]);
            for (int32_t q = b.first; q < b.last; ++q) {
              if constexpr (Quartic) {
                const Deep& d = f.deep[q];
                V tv = V::all(tz[d.term]);
                for (int32_t r = d.first; r < d.last; ++r)
                  tv += xv[f.e[r]] * tz[d.quartic + r - d.first];
                bv += tv * xv[f.d[q]];
              } else {
                bv += xv[f.d[q]] * tz.of[b.cubic + q - b.first];
              }
            }
            av += bv * xv[b.b];
          }
          total += av * xv[a.a];
        }
        total.store(y + w * stride + i * n + c, n, k);
      }
    });
  });
}

template <typename T, bool ByTerms, bool Quartic>
void contract_vjp(const Polynomial& f, const Atoms& atoms, const T* x, const T* t, const T* g,
                  T* gx, T* gt) {
  const int64_t n = f.n_channels, stride = atoms.n_atoms * n;
  by_element_and_block<T>(f, atoms, [&](int64_t z, int64_t c, auto k) {
    const int64_t of_element = z * f.n_terms * n + c;
    const Coefficients<T> tz(f.n_terms, t + of_element, n, k);
    Coefficients<T> gz(ByTerms ? f.n_terms : 0);
    several_at_once(atoms, z, [&](int64_t i, auto many) {
      using V = Together<T, decltype(many)::value>;
      V xv[kMaxIn], dv[kMaxIn];
      for (int64_t m = 0; m < f.n_in; ++m) {
        xv[m] = V::load(x + m * stride + i * n + c, n, k);
        dv[m] = V{};
      }
      for (int64_t w = 0; w < f.n_out; ++w) {
        const V gw = V::load(g + w * stride + i * n + c, n, k);
        for (int32_t o = f.outer_ptr[w]; o < f.outer_ptr[w + 1]; ++o) {
          const Outer& a = f.outer[o];
          V av = V::all(tz[a.term]);
          const V ga = gw * xv[a.a];
          if (ByTerms) gz.add(a.term, ga);
          for (int32_t p = a.first; p < a.last; ++p) {
            const Inner& b = f.inner[p];
            V bv = V::all(tz[b.term]);
            const V gb = ga * xv[b.b];
            if (ByTerms) gz.add(b.term, gb);
            for (int32_t q = b.first; q < b.last; ++q) {
              const int32_t d = f.d[q];
              if constexpr (Quartic) {
                const Deep& deep = f.deep[q];
                const V gd = gb * xv[d];
                V tv = V::all(tz[deep.term]);
                if (ByTerms) gz.add(deep.term, gd);
                for (int32_t r = deep.first; r < deep.last; ++r) {
                  const int32_t term = deep.quartic + r - deep.first;
                  tv += xv[f.e[r]] * tz.of[term];
                  dv[f.e[r]] += gd * tz.of[term];
                  if (ByTerms) gz.add(term, gd * xv[f.e[r]]);
                }
                bv += tv * xv[d];
                dv[d] += gb * tv;
              } else {
                const int32_t term = b.cubic + q - b.first;
                const Vector<T> tv = tz.of[term];
                if (ByTerms) gz.add(term, gb * xv[d]);
                bv += xv[d] * tv;
                dv[d] += gb * tv;
              }
            }
            av += bv * xv[b.b];
            dv[b.b] += ga * bv;
          }
          dv[a.a] += gw * av;
        }
      }
      for (int64_t m = 0; m < f.n_in; ++m) dv[m].store(gx + m * stride + i * n + c, n, k);
    });
    if (ByTerms) gz.store_to(gt + of_element, n, k);
  });
}

// Adjoint ax of gx: dg, dx and dt of sum ax gx.
template <typename T, bool Quartic>
void contract_vjp_vjp(const Polynomial& f, const Atoms& atoms, const T* x, const T* t, const T* g,
                      const T* ax, T* dx, T* dt, T* dg) {
  const int64_t n = f.n_channels, stride = atoms.n_atoms * n;
  by_element_and_block<T>(f, atoms, [&](int64_t z, int64_t c, auto k) {
    const int64_t of_element = z * f.n_terms * n + c;
    const Coefficients<T> tz(f.n_terms, t + of_element, n, k);
    Coefficients<T> gz(f.n_terms);
    several_at_once(atoms, z, [&](int64_t i, auto many) {
      using V = Together<T, decltype(many)::value>;
      V xv[kMaxIn], av[kMaxIn], dv[kMaxIn];
      for (int64_t m = 0; m < f.n_in; ++m) {
        xv[m] = V::load(x + m * stride + i * n + c, n, k);
        av[m] = V::load(ax + m * stride + i * n + c, n, k);
        dv[m] = V{};
      }
      for (int64_t w = 0; w < f.n_out; ++w) {
        const V gw = V::load(g + w * stride + i * n + c, n, k);
        V dgw{};
        for (int32_t o = f.outer_ptr[w]; o < f.outer_ptr[w + 1]; ++o) {
          const Outer& a = f.outer[o];
          const V xa = xv[a.a], aa = av[a.a];
          V pa = V::all(tz[a.term]), dpa{};
          const V ga = gw * xa, dga = gw * aa;
          gz.add(a.term, dga);
          for (int32_t p = a.first; p < a.last; ++p) {
            const Inner& b = f.inner[p];
            const V xb = xv[b.b], ab = av[b.b];
            V pb = V::all(tz[b.term]), dpb{};
            const V gb = ga * xb, dgb = ga * ab + dga * xb;
            gz.add(b.term, dgb);
            for (int32_t q = b.first; q < b.last; ++q) {
              const int32_t d = f.d[q];
              const V xd = xv[d], ad = av[d], dgd = gb * ad + dgb * xd;
              if constexpr (Quartic) {
                const Deep& deep = f.deep[q];
                const V gd = gb * xd;
                V tv = V::all(tz[deep.term]), dtv{};
                gz.add(deep.term, dgd);
                for (int32_t r = deep.first; r < deep.last; ++r) {
                  const int32_t term = deep.quartic + r - deep.first;
                  const V xe = xv[f.e[r]], ae = av[f.e[r]];
                  tv += xe * tz.of[term];
                  dtv += ae * tz.of[term];
                  dv[f.e[r]] += dgd * tz.of[term];
                  gz.add(term, gd * ae + dgd * xe);
                }
                pb += tv * xd;
                dpb += tv * ad + dtv * xd;
                dv[d] += dgb * tv + gb * dtv;
              } else {
                const int32_t term = b.cubic + q - b.first;
                const Vector<T> tv = tz.of[term];
                pb += xd * tv;
                dpb += ad * tv;
                dv[d] += dgb * tv;
                gz.add(term, dgd);
              }
            }
            pa += pb * xb;
            dpa += pb * ab + dpb * xb;
            dv[b.b] += ga * dpb + dga * pb;
          }
          dgw += aa * pa + xa * dpa;
          dv[a.a] += gw * dpa;
        }
        dgw.store(dg + w * stride + i * n + c, n, k);
      }
      for (int64_t m = 0; m < f.n_in; ++m) dv[m].store(dx + m * stride + i * n + c, n, k);
    });
    gz.store_to(dt + of_element, n, k);
  });
}
