// Kernels of the fast step for CPUs: the sums of convolution.py, first_layer.py and contraction.py,
// each with its VJP and the VJP of that, and the elementwise parts around them. The formulas stand
// in those modules; here only loops.
//
// Channels are innermost and go through vectors of the CPU's width; what is left over goes through
// masked loads. Nothing here depends on the number of threads: an entry is either summed by one
// thread in the order of its row, or by parts that the batch alone determines, which are then added
// in their order.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <omp.h>
#include <type_traits>
#include <vector>
#if defined(__AVX__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

template <typename T>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kBytes)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;
template <typename T>
constexpr int kLanes = kBytes / sizeof(T);

// The number of channels of a block: known to the compiler for a full one.
template <typename T>
struct Full {
  static constexpr int64_t count() { return kLanes<T>; }
};
struct Part {
  int64_t n;
  int64_t count() const { return n; }
};

template <typename T, typename Count>
inline Vector<T> load(const T* p, Count k) {
  Vector<T> v{};
  std::memcpy(&v, p, sizeof(T) * k.count());
  return v;
}
template <typename T, typename Count>
inline void store(T* p, const Vector<T>& v, Count k) {
  std::memcpy(p, &v, sizeof(T) * k.count());
}
template <typename T, typename Count>
inline void add(T* p, const Vector<T>& v, Count k) {
  store<T>(p, load<T>(p, k) + v, k);
}
// x y + z, rounded once where the processor can: said, and not left to the compiler, where a
// number must not depend on the lines around it.
template <typename V>
inline V fused(const V& x, const V& y, const V& z) {
  constexpr bool is_float = std::is_same<V, Vector<float>>::value;
#if defined(__AVX512F__)
  if constexpr (is_float)
    return V(_mm512_fmadd_ps(x, y, z));
  else
    return V(_mm512_fmadd_pd(x, y, z));
#elif defined(__AVX__) && defined(__FMA__)
  if constexpr (is_float)
    return V(_mm256_fmadd_ps(x, y, z));
  else
    return V(_mm256_fmadd_pd(x, y, z));
#elif defined(__ARM_NEON) && defined(__aarch64__)
  if constexpr (is_float)
    return V(vfmaq_f32(z, x, y));
  else
    return V(vfmaq_f64(z, x, y));
#else
  return x * y + z;
#endif
}
template <typename T>
inline T sum(const Vector<T>& v) {
  T lanes[kLanes<T>];
  std::memcpy(lanes, &v, sizeof(v));
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// body(first channel, count) for all blocks of n channels.
template <typename T, typename Body>
inline void blocks(int64_t n, Body body) {
  int64_t c = 0;
  for (; c + kLanes<T> <= n; c += kLanes<T>) body(c, Full<T>{});
  if (c < n) body(c, Part{n - c});
}

// Whether the caller shares work among threads: where there is much of it and it is not one of
// several threads already. An `if` clause is no way to say so: where it is false there still is a
// region, of one thread. That costs 10 us, and a region within it starts threads of its own and
// ends them, which costs milliseconds.
inline bool shared(bool much) { return much && !omp_in_parallel(); }

// f(i) for i < n.
template <typename F>
inline void each(int64_t n, bool much, F f) {
  if (shared(much)) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; ++i) f(i);
  } else {
    for (int64_t i = 0; i < n; ++i) f(i);
  }
}

struct Edges {  // directed edges sorted by receiver; of a pair, the edge whose receiver comes later
                // in the batch is flipped
  int64_t n_atoms, n_edges, n_pairs;
  const int64_t* rank;   // the atom that is k-th in the batch: rows are gone through in this order,
                         // structure by structure
  const int64_t* order;  // its inverse
  const int64_t* row_ptr;
  const int32_t* sender;
  const int32_t* pair;
  const int8_t* flipped;
};

struct Path {
  int64_t m1, d1, d3;  // first component and number of components of h, components of the output
  int64_t weight;      // place among the pair's path weights
  int64_t matrix;      // first entry of its coupling matrix (d1, d3) among all of an edge
  int64_t out, row, atom;  // output: offset, stride of a component, stride of an atom
  int64_t first, last;     // its couplings
};
struct Coupling {
  int64_t entry, m2;  // entry of the path's matrix, component of the spherical harmonics
  double value;
};
struct Convolution {
  int64_t n_channels, n_paths, n_components, n_matrix, n_harmonics;
  const Path* paths;
  const Coupling* couplings;
  const int8_t* odd;  // per component of the spherical harmonics
};

constexpr int kMaxHarmonics = 25;
constexpr int kMaxMatrix = 1024;  // of l1 <= 3, l2 and l3 <= 4: at most 807
constexpr int kMaxPath = 63;

template <typename T>
inline void signed_harmonics(const T* y, const int8_t* odd, bool flipped, int64_t n, T* out) {
  for (int64_t m = 0; m < n; ++m) out[m] = flipped && odd[m] ? -y[m] : y[m];
}

// The coupling matrices sum_m2 C[m1, m2, m3] Y[m2] of all paths of an edge.
template <typename T>
inline void couple(const Convolution& f, const T* y, bool flipped, T* matrix) {
  T s[kMaxHarmonics];
  signed_harmonics(y, f.odd, flipped, f.n_harmonics, s);
  for (int64_t i = 0; i < f.n_matrix; ++i) matrix[i] = 0;
  for (int64_t p = 0; p < f.n_paths; ++p)
    for (int64_t k = f.paths[p].first; k < f.paths[p].last; ++k)
      matrix[f.paths[p].matrix + f.couplings[k].entry] +=
          T(f.couplings[k].value) * s[f.couplings[k].m2];
}

// F<T, d1, d3>::run for the d1 and d3 of a path, so that the loops over components are unrolled.
template <template <typename, int, int> class F, typename T, int D1, typename... A>
inline void by_d3(int64_t d3, A&&... a) {
  switch (d3) {
    case 1:
      F<T, D1, 1>::run(a...);
      break;
    case 3:
      F<T, D1, 3>::run(a...);
      break;
    case 5:
      F<T, D1, 5>::run(a...);
      break;
    case 7:
      F<T, D1, 7>::run(a...);
      break;
    default:
      F<T, D1, 9>::run(a...);
      break;
  }
}
template <template <typename, int, int> class F, typename T, typename... A>
inline void by_path(const Path& p, A&&... a) {
  switch (p.d1) {
    case 1:
      by_d3<F, T, 1>(p.d3, a...);
      break;
    case 3:
      by_d3<F, T, 3>(p.d3, a...);
      break;
    case 5:
      by_d3<F, T, 5>(p.d3, a...);
      break;
    default:
      by_d3<F, T, 7>(p.d3, a...);
      break;
  }
}

// Ask for the channels of an edge to come: path weights are most of what these loops read, each
// pair's far from the last.
template <typename T>
inline void fetch(const T* p, int64_t n) {
  for (int64_t c = 0; c < n; c += 64 / int64_t(sizeof(T))) __builtin_prefetch(p + c);
}

template <typename T, int D1, int D3>
struct Forward {
  static inline void run(const T* h, int64_t hs, const T* w, const T* m, T* out, int64_t os,
                         int64_t n) {
    blocks<T>(n, [&](int64_t c, auto k) {
      Vector<T> u[D1];
      const Vector<T> wv = load<T>(w + c, k);
      for (int a = 0; a < D1; ++a) u[a] = load<T>(h + a * hs + c, k) * wv;
      for (int b = 0; b < D3; ++b) {
        Vector<T> t = load<T>(out + b * os + c, k);
        for (int a = 0; a < D1; ++a) t += u[a] * m[a * D3 + b];
        store<T>(out + b * os + c, t, k);
      }
    });
  }
};

template <typename T>
void convolve(const Edges& e, const Convolution& f, const T* h, const T* y, const T* w, T* out) {
  const int64_t n = f.n_channels, hs = e.n_atoms * n;
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t place = 0; place < e.n_atoms; ++place) {
    const int64_t i = e.rank[place];
    for (int64_t p = 0; p < f.n_paths; ++p)
      for (int64_t b = 0; b < f.paths[p].d3; ++b)
        std::memset(out + f.paths[p].out + b * f.paths[p].row + i * f.paths[p].atom, 0,
                    sizeof(T) * n);
    T m[kMaxMatrix];
    for (int64_t x = e.row_ptr[i]; x < e.row_ptr[i + 1]; ++x) {
      const int64_t j = e.sender[x], q = e.pair[x];
      couple(f, y + q * f.n_harmonics, e.flipped[x], m);
      const int64_t next = e.pair[std::min(x + 1, e.n_edges - 1)];
      for (int64_t p = 0; p < f.n_paths; ++p) {
        const Path& path = f.paths[p];
        fetch(w + (next * f.n_paths + path.weight) * n, n);
        by_path<Forward, T>(path, h + path.m1 * hs + j * n, hs,
                            w + (q * f.n_paths + path.weight) * n, m + path.matrix,
                            out + path.out + i * path.atom, path.row, n);
      }
    }
  }
}

// Rows of edges in parts of about equal size that depend on the batch alone, in the order of the
// batch; every part sums what it sends to other atoms into an array of its own. Both edges of a
// pair write to the pair's entry: the first one stores, the flipped one adds, in the same pass
// where both are of one part, else in a second pass.
struct Parts {
  const Edges& e;
  std::vector<int64_t> first;
  explicit Parts(const Edges& edges) : e(edges) {
    const int64_t n = std::clamp<int64_t>(e.n_edges / (4 * std::max<int64_t>(e.n_atoms, 1)), 8, 16);
    int64_t before = 0;
    for (int64_t place = 0; place < e.n_atoms; ++place) {
      while (int64_t(first.size()) < n && before >= int64_t(first.size()) * e.n_edges / n)
        first.push_back(place);
      before += e.row_ptr[e.rank[place] + 1] - e.row_ptr[e.rank[place]];
    }
    while (int64_t(first.size()) <= n) first.push_back(e.n_atoms);
  }
  int64_t n() const { return int64_t(first.size()) - 1; }
  bool in_pass(int pass, int64_t part, int64_t edge) const {
    const int64_t place = e.order[e.sender[edge]];
    const bool later = e.flipped[edge] && (place < first[part] || place >= first[part + 1]);
    return later == (pass == 1);
  }
  int64_t next(int pass, int64_t part,
               int64_t edge) const {  // the pair of the row's next edge in a pass
    for (int64_t x = edge + 1; x < std::min(edge + 8, e.n_edges); ++x)
      if (in_pass(pass, part, x)) return e.pair[x];
    return e.pair[edge];
  }
};

template <typename T>
class Sent {
 public:
  Sent(int64_t parts, int64_t size) : size_(size), all_(parts * size) {}
  T* part(int64_t k) {
    std::memset(data() + k * size_, 0, sizeof(T) * size_);
    return data() + k * size_;
  }
  T* again(int64_t k) { return data() + k * size_; }
  void total(T* out) {
    const int64_t parts = int64_t(all_.size()) / std::max<int64_t>(size_, 1);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < size_; b += 512) {
      const int64_t n = std::min<int64_t>(512, size_ - b);
      std::memcpy(out + b, data() + b, sizeof(T) * n);
      for (int64_t k = 1; k < parts; ++k)
        for (int64_t x = b; x < b + n; ++x) out[x] += data()[k * size_ + x];
    }
  }

 private:
  struct Raw {  // not set to zero by the vector that holds it
    T value;
    Raw() {}
  };
  T* data() { return &all_[0].value; }
  int64_t size_;
  std::vector<Raw> all_;
};

// couplings[k].value of the derivative by the coupling matrix, summed over channels, into the
// harmonics' derivative.
template <typename T>
inline void uncouple(const Convolution& f, const Path& path, const Vector<T>* m, Vector<T>* y) {
  for (int64_t k = path.first; k < path.last; ++k)
    y[f.couplings[k].m2] += m[f.couplings[k].entry] * T(f.couplings[k].value);
}
template <typename T>
inline void store_harmonics(const Convolution& f, const Vector<T>* y, bool flipped, T* out) {
  for (int64_t m = 0; m < f.n_harmonics; ++m) {
    const T value = sum<T>(y[m]);
    if (flipped)
      out[m] += f.odd[m] ? -value : value;
    else
      out[m] = value;
  }
}

template <typename T, int D1, int D3>
struct Backward {
  static inline void run(const T* h, int64_t hs, const T* w, const T* m, const T* g, int64_t gs,
                         T* dh, T* dw, Vector<T>* dm, bool flipped, int64_t n) {
    if (dm)
      for (int i = 0; i < D1 * D3; ++i) dm[i] = Vector<T>{};
    blocks<T>(n, [&](int64_t c, auto k) {
      const Vector<T> wv = load<T>(w + c, k);
      Vector<T> gv[D3], s{};
      for (int b = 0; b < D3; ++b) gv[b] = load<T>(g + b * gs + c, k);
      for (int a = 0; a < D1; ++a) {
        Vector<T> u{};
        for (int b = 0; b < D3; ++b) u += gv[b] * m[a * D3 + b];
        const Vector<T> hv = load<T>(h + a * hs + c, k);
        s += u * hv;
        add<T>(dh + a * hs + c, u * wv, k);
        if (dm) {
          const Vector<T> hw = hv * wv;
          for (int b = 0; b < D3; ++b) dm[a * D3 + b] += hw * gv[b];
        }
      }
      if (flipped)
        add<T>(dw + c, s, k);
      else
        store<T>(dw + c, s, k);
    });
  }
};

// gy may be null where nobody asks for it.
template <typename T>
void convolve_vjp(const Edges& e, const Convolution& f, const T* h, const T* y, const T* w,
                  const T* g, T* gh, T* gy, T* gw) {
  const int64_t n = f.n_channels, hs = e.n_atoms * n;
  const Parts parts(e);
  Sent<T> sent(parts.n(), f.n_components * hs);
  for (int pass = 0; pass < 2; ++pass) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t part = 0; part < parts.n(); ++part) {
      T* dh = pass ? sent.again(part) : sent.part(part);
      T m[kMaxMatrix];
      Vector<T> dm[kMaxPath], dy[kMaxHarmonics];
      for (int64_t place = parts.first[part]; place < parts.first[part + 1]; ++place) {
        const int64_t i = e.rank[place];
        for (int64_t x = e.row_ptr[i]; x < e.row_ptr[i + 1]; ++x) {
          if (!parts.in_pass(pass, part, x)) continue;
          const bool flipped = e.flipped[x];
          const int64_t j = e.sender[x], q = e.pair[x];
          couple(f, y + q * f.n_harmonics, flipped, m);
          for (int64_t k = 0; k < f.n_harmonics; ++k) dy[k] = Vector<T>{};
          const int64_t next = parts.next(pass, part, x);
          for (int64_t p = 0; p < f.n_paths; ++p) {
            const Path& path = f.paths[p];
            fetch(w + (next * f.n_paths + path.weight) * n, n);
            fetch(gw + (next * f.n_paths + path.weight) * n, n);
            const int64_t at = path.m1 * hs + j * n, weight = (q * f.n_paths + path.weight) * n;
            by_path<Backward, T>(path, h + at, hs, w + weight, m + path.matrix,
                                 g + path.out + i * path.atom, path.row, dh + at, gw + weight,
                                 gy ? dm : nullptr, flipped, n);
            if (gy) uncouple<T>(f, path, dm, dy);
          }
          if (gy) store_harmonics<T>(f, dy, flipped, gy + q * f.n_harmonics);
        }
      }
    }
  }
  sent.total(gh);
}

template <typename T, int D1, int D3>
struct BackwardTwice {
  static inline void run(const T* h, const T* ah, int64_t hs, const T* w, const T* aw, const T* m,
                         const T* am, const T* g, int64_t gs, T* dh, T* dw, T* dg, Vector<T>* dm,
                         bool flipped, int64_t n) {
    if (dm)
      for (int i = 0; i < D1 * D3; ++i) dm[i] = Vector<T>{};
    blocks<T>(n, [&](int64_t c, auto k) {
      const Vector<T> wv = load<T>(w + c, k), awv = load<T>(aw + c, k);
      Vector<T> gv[D3], dgv[D3], s{};
      for (int b = 0; b < D3; ++b) {
        gv[b] = load<T>(g + b * gs + c, k);
        dgv[b] = load<T>(dg + b * gs + c, k);
      }
      for (int a = 0; a < D1; ++a) {
        const Vector<T> hv = load<T>(h + a * hs + c, k), ahv = load<T>(ah + a * hs + c, k);
        const Vector<T> mixed = ahv * wv + hv * awv, plain = hv * wv;
        Vector<T> u{}, au{};
        for (int b = 0; b < D3; ++b) {
          const T mv = m[a * D3 + b], amv = am[a * D3 + b];
          u += gv[b] * mv;
          au += gv[b] * amv;
          dgv[b] += mixed * mv + plain * amv;
          if (dm) dm[a * D3 + b] += mixed * gv[b];
        }
        add<T>(dh + a * hs + c, au * wv + u * awv, k);
        s += u * ahv + au * hv;
      }
      for (int b = 0; b < D3; ++b) store<T>(dg + b * gs + c, dgv[b], k);
      if (flipped)
        add<T>(dw + c, s, k);
      else
        store<T>(dw + c, s, k);
    });
  }
};

// Adjoints ah, ay, aw of gh, gy, gw; dy may be null where nobody asks for it.
template <typename T>
void convolve_vjp_vjp(const Edges& e, const Convolution& f, const T* h, const T* y, const T* w,
                      const T* g, const T* ah, const T* ay, const T* aw, T* dh, T* dy, T* dw,
                      T* dg) {
  const int64_t n = f.n_channels, hs = e.n_atoms * n;
  const Parts parts(e);
  Sent<T> sent(parts.n(), f.n_components * hs);
  for (int pass = 0; pass < 2; ++pass) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t part = 0; part < parts.n(); ++part) {
      T* to = pass ? sent.again(part) : sent.part(part);
      T m[kMaxMatrix], am[kMaxMatrix];
      Vector<T> dm[kMaxPath], dyv[kMaxHarmonics];
      for (int64_t place = parts.first[part]; place < parts.first[part + 1]; ++place) {
        const int64_t i = e.rank[place];
        if (!pass)
          for (int64_t p = 0; p < f.n_paths; ++p)
            for (int64_t b = 0; b < f.paths[p].d3; ++b)
              std::memset(dg + f.paths[p].out + b * f.paths[p].row + i * f.paths[p].atom, 0,
                          sizeof(T) * n);
        for (int64_t x = e.row_ptr[i]; x < e.row_ptr[i + 1]; ++x) {
          if (!parts.in_pass(pass, part, x)) continue;
          const bool flipped = e.flipped[x];
          const int64_t j = e.sender[x], q = e.pair[x];
          couple(f, y + q * f.n_harmonics, flipped, m);
          couple(f, ay + q * f.n_harmonics, flipped, am);
          for (int64_t k = 0; k < f.n_harmonics; ++k) dyv[k] = Vector<T>{};
          const int64_t next = parts.next(pass, part, x);
          for (int64_t p = 0; p < f.n_paths; ++p) {
            const Path& path = f.paths[p];
            fetch(w + (next * f.n_paths + path.weight) * n, n);
            fetch(aw + (next * f.n_paths + path.weight) * n, n);
            fetch(dw + (next * f.n_paths + path.weight) * n, n);
            const int64_t at = path.m1 * hs + j * n, weight = (q * f.n_paths + path.weight) * n;
            const int64_t out = path.out + i * path.atom;
            by_path<BackwardTwice, T>(path, h + at, ah + at, hs, w + weight, aw + weight,
                                      m + path.matrix, am + path.matrix, g + out, path.row, to + at,
                                      dw + weight, dg + out, dy ? dm : nullptr, flipped, n);
            if (dy) uncouple<T>(f, path, dm, dyv);
          }
          if (dy) store_harmonics<T>(f, dyv, flipped, dy + q * f.n_harmonics);
        }
      }
    }
  }
  sent.total(dh);
}

struct Segments {  // runs of edges of one receiver and one element of senders
  int64_t n_segments, n_edges;
  const int64_t* ptr;
  const int32_t* pair;
  const int8_t* flipped;
  const int8_t* odd;
};

// sums[m, s, k] = sum over edges of y[m] r[k] or, where ar and ay are given, of y[m] ar[k] + ay[m]
// r[k].
template <typename T, int M>
void segment_sums(const Segments& s, int64_t n_radial, const T* r, const T* y, const T* ar,
                  const T* ay, T* sums) {
#pragma omp parallel for schedule(dynamic, 4)
  for (int64_t i = 0; i < s.n_segments; ++i) {
    const int64_t first = s.ptr[i], n = s.ptr[i + 1] - first;
    std::vector<T> ys(2 * n * M);
    for (int64_t x = 0; x < n; ++x) {
      const int64_t q = s.pair[first + x];
      signed_harmonics(y + q * M, s.odd, s.flipped[first + x], M, &ys[2 * x * M]);
      if (ay) signed_harmonics(ay + q * M, s.odd, s.flipped[first + x], M, &ys[(2 * x + 1) * M]);
    }
    blocks<T>(n_radial, [&](int64_t c, auto k) {
      Vector<T> total[M];
      for (int m = 0; m < M; ++m) total[m] = Vector<T>{};
      for (int64_t x = 0; x < n; ++x) {
        const int64_t at = int64_t(s.pair[first + x]) * n_radial + c;
        const T* yx = &ys[2 * x * M];
        if (ay) {
          const Vector<T> rv = load<T>(r + at, k), arv = load<T>(ar + at, k);
          for (int m = 0; m < M; ++m) total[m] += arv * yx[m] + rv * yx[M + m];
        } else {
          const Vector<T> rv = load<T>(r + at, k);
          for (int m = 0; m < M; ++m) total[m] += rv * yx[m];
        }
      }
      for (int m = 0; m < M; ++m)
        store<T>(sums + (m * s.n_segments + i) * n_radial + c, total[m], k);
    });
  }
}

// gr[q, k] = sum_m y[q, m] g[m, s, k] and, where gy is given, gy[q, m] = sum_k r[q, k] g[m, s, k],
// over both edges of q.
template <typename T, int M>
void segment_sums_vjp(const Segments& s, int64_t n_radial, const T* r, const T* y, const T* g,
                      T* gr, T* gy) {
  for (int flipped = 0; flipped < 2; ++flipped) {
#pragma omp parallel for schedule(dynamic, 4)
    for (int64_t i = 0; i < s.n_segments; ++i)
      for (int64_t x = s.ptr[i]; x < s.ptr[i + 1]; ++x) {
        if (s.flipped[x] != flipped) continue;
        const int64_t q = s.pair[x];
        T ys[M];
        signed_harmonics(y + q * M, s.odd, flipped, M, ys);
        Vector<T> by_y[M];
        for (int m = 0; m < M; ++m) by_y[m] = Vector<T>{};
        blocks<T>(n_radial, [&](int64_t c, auto k) {
          Vector<T> total{};
          if (gy) {
            const Vector<T> rv = load<T>(r + q * n_radial + c, k);
            for (int m = 0; m < M; ++m) {
              const Vector<T> gv = load<T>(g + (m * s.n_segments + i) * n_radial + c, k);
              total += gv * ys[m];
              by_y[m] += gv * rv;
            }
          } else {
            for (int m = 0; m < M; ++m)
              total += load<T>(g + (m * s.n_segments + i) * n_radial + c, k) * ys[m];
          }
          if (flipped)
            add<T>(gr + q * n_radial + c, total, k);
          else
            store<T>(gr + q * n_radial + c, total, k);
        });
        if (gy)
          for (int m = 0; m < M; ++m) {
            const T value = sum<T>(by_y[m]);
            if (flipped)
              gy[q * M + m] += s.odd[m] ? -value : value;
            else
              gy[q * M + m] = value;
          }
      }
  }
}

// silu and its slopes from z and s = 1/(1 + exp(-z)), all times gain.
template <typename T>
void silu_vjp(int64_t n, T gain, const T* z, const T* s, const T* g, T* gz) {
  each(n, n > 8192, [=](int64_t i) { gz[i] = g[i] * (gain * s[i] * (1 + z[i] * (1 - s[i]))); });
}
template <typename T>
void silu_vjp_vjp(int64_t n, T gain, const T* z, const T* s, const T* g, const T* a, T* dz, T* dg) {
  each(n, n > 8192, [=](int64_t i) {
    const T rest = 1 - s[i], scaled = gain * s[i] * a[i];
    dg[i] = scaled * (1 + z[i] * rest);
    dz[i] = g[i] * (scaled * rest * (2 + z[i] * (rest - s[i])));
  });
}

// A number with its derivatives by N others; products and sums carry them along.
template <typename T, int N>
struct Dual {
  T value;
  T by[N];
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
  Dual operator*(T c) const {
    Dual r{value * c, {}};
    for (int i = 0; i < N; ++i) r.by[i] = by[i] * c;
    return r;
  }
};

// The polynomials of geometry.spherical_harmonics at a unit vector, without the constant order 0.
template <typename T, typename S>
inline void harmonics(const S& x, const S& y, const S& z, int64_t n, S* out) {
  const T r3 = std::sqrt(T(3)), r5 = std::sqrt(T(5)), r7 = std::sqrt(T(7));
  out[0] = x * r3;
  out[1] = y * r3;
  out[2] = z * r3;
  if (n < 9) return;
  const S xx = x * x, yy = y * y, zz = z * z, xz = xx + zz;
  const S a = x * z * r3, d = (zz - xx) * (r3 / 2);
  out[3] = a * r5;
  out[4] = x * y * (r3 * r5);
  out[5] = (yy - xz * T(0.5)) * r5;
  out[6] = y * z * (r3 * r5);
  out[7] = d * r5;
  if (n < 16) return;
  const T r56 = std::sqrt(T(5) / T(6)) * r7, r38 = std::sqrt(T(3) / T(8)) * r7;
  const S four = yy * T(4) - xz;
  out[8] = (a * z + d * x) * r56;
  out[9] = a * y * (r5 * r7);
  out[10] = four * x * r38;
  out[11] = y * (yy * T(2) - xz * T(3)) * (r7 / 2);
  out[12] = z * four * r38;
  out[13] = d * y * (r5 * r7);
  out[14] = (d * z - a * x) * r56;
  if (n < 25) return;
  const S* t = out + 8;
  const T k = 3 / r7, c1 = k * std::sqrt(T(1) / 32), c3 = k * std::sqrt(T(3) / 32),
          c7 = k * std::sqrt(T(7) / 8);
  const T c14 = k * std::sqrt(T(7) / 16), c15 = k * std::sqrt(T(15) / 32),
          c21 = k * std::sqrt(T(21) / 32);
  const T c24 = k * std::sqrt(T(3) / 4), c30 = k * std::sqrt(T(15) / 16),
          c20 = k * std::sqrt(T(5) / 8);
  out[15] = (t[0] * z + t[6] * x) * c7;
  out[16] = t[0] * y * c14 + (t[1] * z + t[5] * x) * c21;
  out[17] = (t[6] * x - t[0] * z) * c1 + t[1] * y * c24 + (t[2] * z + t[4] * x) * c15;
  out[18] = (t[5] * x - t[1] * z) * c3 + t[2] * y * c30 + t[3] * x * c20;
  out[19] = t[3] * y * k - (t[2] * x + t[4] * z) * (k * std::sqrt(T(3) / 8));
  out[20] = t[3] * z * c20 + t[4] * y * c30 - (t[1] * x + t[5] * z) * c3;
  out[21] = (t[4] * z - t[2] * x) * c15 + t[5] * y * c24 - (t[0] * x + t[6] * z) * c1;
  out[22] = (t[5] * z - t[1] * x) * c21 + t[6] * y * c14;
  out[23] = (t[6] * z - t[0] * x) * c7;
}

// Lengths of vectors and spherical harmonics of their directions, n = (max_ell + 1)^2 of them.
template <typename T>
void directions(int64_t pairs, int64_t n, const T* v, T* r, T* y) {
  each(pairs, pairs > 500, [&](int64_t q) {
    const T *p = v + 3 * q, length = std::sqrt(p[0] * p[0] + p[1] * p[1] + p[2] * p[2]);
    r[q] = length;
    y[q * n] = 1;
    harmonics<T, T>(p[0] / length, p[1] / length, p[2] / length, n, y + q * n + 1);
  });
}

// gv of gr and gy: u = v / r gives gv = (gu - u (u gu)) / r + gr u.
template <typename T>
void directions_vjp(int64_t pairs, int64_t n, const T* v, const T* r, const T* gr, const T* gy,
                    T* gv) {
  each(pairs, pairs > 500, [&](int64_t q) {
    Dual<T, 3> u[3], y[kMaxHarmonics];
    for (int i = 0; i < 3; ++i) {
      u[i] = Dual<T, 3>{v[3 * q + i] / r[q], {0, 0, 0}};
      u[i].by[i] = 1;
    }
    harmonics<T>(u[0], u[1], u[2], n, y);
    T gu[3] = {0, 0, 0}, along = 0;
    for (int64_t m = 1; m < n; ++m)
      for (int i = 0; i < 3; ++i) gu[i] += gy[q * n + m] * y[m - 1].by[i];
    for (int i = 0; i < 3; ++i) along += gu[i] * u[i].value;
    for (int i = 0; i < 3; ++i)
      gv[3 * q + i] = (gu[i] - u[i].value * along) / r[q] + gr[q] * u[i].value;
  });
}

// dgr and dgy of the adjoint a of gv: the derivatives of r and y along a.
template <typename T>
void directions_jvp(int64_t pairs, int64_t n, const T* v, const T* r, const T* a, T* dr, T* dy) {
  each(pairs, pairs > 500, [&](int64_t q) {
    Dual<T, 1> u[3], y[kMaxHarmonics];
    T along = 0;
    for (int i = 0; i < 3; ++i) along += a[3 * q + i] * v[3 * q + i] / r[q];
    for (int i = 0; i < 3; ++i) {
      const T direction = v[3 * q + i] / r[q];
      u[i] = Dual<T, 1>{direction, {(a[3 * q + i] - direction * along) / r[q]}};
    }
    harmonics<T>(u[0], u[1], u[2], n, y);
    dr[q] = along;
    dy[q * n] = 0;
    for (int64_t m = 1; m < n; ++m) dy[q * n + m] = y[m - 1].by[0];
  });
}

// C = A B for matrices of any strides; C has contiguous rows. Tiles of kRows x kColumns stay in
// registers; a panel of B is packed for each block of rows. An entry of C is summed in the order of
// k whatever the number of threads.
constexpr int kRows = kBytes == 64 ? 12 : 6;
template <typename T>
constexpr int kColumns = 2 * kLanes<T>;
constexpr int64_t kDepth = 256;

template <typename T>
struct Matrix {
  const T* at;
  int64_t row, column;  // strides
};

template <typename T, int Rows>
inline void tile(int64_t depth, const Matrix<T>& a, const T* panel, T* c, int64_t ldc,
                 int64_t columns, bool add_to, int64_t stride = kColumns<T>) {
  Vector<T> sums[Rows][2];
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i) sums[i][0] = sums[i][1] = Vector<T>{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector<T> b0 = load<T>(panel + k * stride, Full<T>{});
    const Vector<T> b1 = load<T>(panel + k * stride + kLanes<T>, Full<T>{});
    const T* ak = a.at + k * a.column;
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) {
      const T value = ak[i * a.row];
      sums[i][0] += b0 * value;
      sums[i][1] += b1 * value;
    }
  }
  for (int i = 0; i < Rows; ++i)
    for (int half = 0; half < 2; ++half) {
      const int64_t left = columns - half * kLanes<T>;
      T* to = c + i * ldc + half * kLanes<T>;
      if (left >= kLanes<T>)
        add_to ? add<T>(to, sums[i][half], Full<T>{}) : store<T>(to, sums[i][half], Full<T>{});
      else if (left > 0)
        add_to ? add<T>(to, sums[i][half], Part{left}) : store<T>(to, sums[i][half], Part{left});
    }
}

// Where c has rows of another length than n, its stride is given; scale multiplies the product,
// which may be added to c.
template <typename T>
void multiply(int64_t m, int64_t n, int64_t depth, Matrix<T> a, Matrix<T> b, T* c, T scale = 1,
              int64_t stride = 0, bool add_to = false) {
  const int64_t ldc = stride ? stride : n, width = kColumns<T>, panels = (n + width - 1) / width;
  const int64_t rows = std::clamp<int64_t>((m / 16 + kRows) / kRows * kRows, 96, 480);
  each((m + rows - 1) / rows * panels, m * n * depth > 100000, [&](int64_t task) {
    const int64_t first = task / panels * rows, last = std::min(m, first + rows);
    const int64_t p = task % panels, columns = std::min(width, n - p * width);
    alignas(64) T panel[kDepth * kColumns<T>];
    for (int64_t k0 = 0; k0 < std::max<int64_t>(depth, 1); k0 += kDepth) {
      const int64_t deep = std::min(kDepth, depth - k0);
      const T* from = b.at + k0 * b.row + p * width * b.column;
      if (columns < width) std::memset(panel, 0, sizeof(panel));
      if (b.column == 1)
        for (int64_t k = 0; k < deep; ++k)
          for (int64_t j = 0; j < columns; ++j) panel[k * width + j] = from[k * b.row + j] * scale;
      else
        for (int64_t j = 0; j < columns; ++j)
          for (int64_t k = 0; k < deep; ++k)
            panel[k * width + j] = from[k * b.row + j * b.column] * scale;
      int64_t i = first;
      auto at = [&](int64_t row) {
        return Matrix<T>{a.at + row * a.row + k0 * a.column, a.row, a.column};
      };
      for (; i + kRows <= last; i += kRows)
        tile<T, kRows>(deep, at(i), panel, c + i * ldc + p * width, ldc, columns, add_to || k0 > 0);
      for (; i + 4 <= last; i += 4)
        tile<T, 4>(deep, at(i), panel, c + i * ldc + p * width, ldc, columns, add_to || k0 > 0);
      for (; i < last; ++i)
        tile<T, 1>(deep, at(i), panel, c + i * ldc + p * width, ldc, columns, add_to || k0 > 0);
    }
  });
}

struct MapPart {
  int64_t rows, x, y, weight;  // components; where its block of x and of y and its matrices begin
  int64_t n_in, n_out, n_elements;  // matrix of element z: (n_in, n_out) from weight + z n_out,
                                    // rows n_elements n_out apart
  double scale;
};
struct Map {
  int64_t n_parts, n_atoms, n_present;
  const MapPart* parts;
  const int64_t *species_ptr, *present;  // first atom of each element that occurs, and the element
};

// body(part, n, x, y, weight, first) for all runs of n rows that share a matrix; runs of one matrix
// come one after the other, the first of them marked. Matrices are computed by one thread each
// where there are many.
template <typename Body>
void each_matrix(const Map& f, Body body) {
  struct Task {
    const MapPart* part;
    int64_t element;
  };
  std::vector<Task> tasks;
  int64_t largest = 0;
  for (int64_t p = 0; p < f.n_parts; ++p) {
    const int64_t n = f.parts[p].n_elements > 1 ? f.n_present : 1;
    for (int64_t k = 0; k < n; ++k) tasks.push_back({f.parts + p, k});
    largest =
        std::max(largest, f.parts[p].rows * f.n_atoms / n * f.parts[p].n_in * f.parts[p].n_out);
  }
  const int64_t n = tasks.size();
  auto one = [&](int64_t t) {
    const MapPart& p = *tasks[t].part;
    if (p.n_elements == 1) {
      body(p, p.rows * f.n_atoms, p.x, p.y, p.weight, true);
    } else {
      const int64_t k = tasks[t].element, begin = f.species_ptr[k];
      for (int64_t m = 0; m < p.rows; ++m) {
        const int64_t atom = m * f.n_atoms + begin;
        body(p, f.species_ptr[k + 1] - begin, p.x + atom * p.n_in, p.y + atom * p.n_out,
             p.weight + f.present[k] * p.n_out, m == 0);
      }
    }
  };
  if (shared(n > 1 && largest > 10000 && largest < 1000000)) {
#pragma omp parallel for schedule(dynamic, 1)
    for (int64_t t = 0; t < n; ++t) one(t);
  } else {
    for (int64_t t = 0; t < n; ++t) one(t);
  }
}
template <typename T>
void map_blocks(const Map& f, const T* x, const T* w, T* y) {
  each_matrix(f, [&](const MapPart& p, int64_t n, int64_t x0, int64_t y0, int64_t w0, bool) {
    multiply<T>(n, p.n_out, p.n_in, {x + x0, p.n_in, 1}, {w + w0, p.n_elements * p.n_out, 1},
                y + y0, T(p.scale));
  });
}
template <typename T>
void map_blocks_by_input(const Map& f, const T* g, const T* w, T* gx) {
  each_matrix(f, [&](const MapPart& p, int64_t n, int64_t x0, int64_t y0, int64_t w0, bool) {
    multiply<T>(n, p.n_in, p.n_out, {g + y0, p.n_out, 1}, {w + w0, 1, p.n_elements * p.n_out},
                gx + x0, T(p.scale));
  });
}
template <typename T>
void map_blocks_by_weight(const Map& f, const T* x, const T* g, T* gw) {
  for (int64_t p = 0; p < f.n_parts; ++p)
    if (f.parts[p].n_elements > f.n_present)
      std::memset(gw + f.parts[p].weight, 0,
                  sizeof(T) * f.parts[p].n_in * f.parts[p].n_elements * f.parts[p].n_out);
  each_matrix(f, [&](const MapPart& p, int64_t n, int64_t x0, int64_t y0, int64_t w0, bool first) {
    multiply<T>(p.n_in, p.n_out, n, {x + x0, 1, p.n_in}, {g + y0, p.n_out, 1}, gw + w0, T(p.scale),
                p.n_elements * p.n_out, !first);
  });
}

#include "contraction.h"
#include "pair_network.h"

template <typename T, typename F>
void by_harmonics(int64_t n, F f) {
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

#define KERNELS(T, name)                                                                           \
  extern "C" void convolve_##name(const Edges* e, const Convolution* f, const T* h, const T* y,    \
                                  const T* w, T* out) {                                            \
    convolve<T>(*e, *f, h, y, w, out);                                                             \
  }                                                                                                \
  extern "C" void convolve_vjp_##name(const Edges* e, const Convolution* f, const T* h,            \
                                      const T* y, const T* w, const T* g, T* gh, T* gy, T* gw) {   \
    convolve_vjp<T>(*e, *f, h, y, w, g, gh, gy, gw);                                               \
  }                                                                                                \
  extern "C" void convolve_vjp_vjp_##name(const Edges* e, const Convolution* f, const T* h,        \
                                          const T* y, const T* w, const T* g, const T* ah,         \
                                          const T* ay, const T* aw, T* dh, T* dy, T* dw, T* dg) {  \
    convolve_vjp_vjp<T>(*e, *f, h, y, w, g, ah, ay, aw, dh, dy, dw, dg);                           \
  }                                                                                                \
  extern "C" void segment_sums_##name(const Segments* s, int64_t m, int64_t n, const T* r,         \
                                      const T* y, const T* ar, const T* ay, T* sums) {             \
    by_harmonics<T>(                                                                               \
        m, [&](auto k) { segment_sums<T, decltype(k)::value>(*s, n, r, y, ar, ay, sums); });       \
  }                                                                                                \
  extern "C" void segment_sums_vjp_##name(const Segments* s, int64_t m, int64_t n, const T* r,     \
                                          const T* y, const T* g, T* gr, T* gy) {                  \
    by_harmonics<T>(                                                                               \
        m, [&](auto k) { segment_sums_vjp<T, decltype(k)::value>(*s, n, r, y, g, gr, gy); });      \
  }                                                                                                \
  extern "C" void contract_##name(const Polynomial* f, const Atoms* a, const T* x, const T* t,     \
                                  T* y) {                                                          \
    if (f->deep)                                                                                   \
      contract<T, true>(*f, *a, x, t, y);                                                          \
    else                                                                                           \
      contract<T, false>(*f, *a, x, t, y);                                                         \
  }                                                                                                \
  extern "C" void contract_vjp_##name(const Polynomial* f, const Atoms* a, const T* x, const T* t, \
                                      const T* g, T* gx, T* gt) {                                  \
    if (gt)                                                                                        \
      f->deep ? contract_vjp<T, true, true>(*f, *a, x, t, g, gx, gt)                               \
              : contract_vjp<T, true, false>(*f, *a, x, t, g, gx, gt);                             \
    else                                                                                           \
      f->deep ? contract_vjp<T, false, true>(*f, *a, x, t, g, gx, gt)                              \
              : contract_vjp<T, false, false>(*f, *a, x, t, g, gx, gt);                            \
  }                                                                                                \
  extern "C" void contract_vjp_vjp_##name(const Polynomial* f, const Atoms* a, const T* x,         \
                                          const T* t, const T* g, const T* ax, T* dx, T* dt,       \
                                          T* dg) {                                                 \
    f->deep ? contract_vjp_vjp<T, true>(*f, *a, x, t, g, ax, dx, dt, dg)                           \
            : contract_vjp_vjp<T, false>(*f, *a, x, t, g, ax, dx, dt, dg);                         \
  }                                                                                                \
  extern "C" void directions_##name(int64_t pairs, int64_t n, const T* v, T* r, T* y) {            \
    directions<T>(pairs, n, v, r, y);                                                              \
  }                                                                                                \
  extern "C" void directions_vjp_##name(int64_t pairs, int64_t n, const T* v, const T* r,          \
                                        const T* gr, const T* gy, T* gv) {                         \
    directions_vjp<T>(pairs, n, v, r, gr, gy, gv);                                                 \
  }                                                                                                \
  extern "C" void directions_jvp_##name(int64_t pairs, int64_t n, const T* v, const T* r,          \
                                        const T* a, T* dr, T* dy) {                                \
    directions_jvp<T>(pairs, n, v, r, a, dr, dy);                                                  \
  }                                                                                                \
  extern "C" void map_blocks_##name(const Map* f, const T* x, const T* w, T* y) {                  \
    map_blocks<T>(*f, x, w, y);                                                                    \
  }                                                                                                \
  extern "C" void map_blocks_by_input_##name(const Map* f, const T* g, const T* w, T* gx) {        \
    map_blocks_by_input<T>(*f, g, w, gx);                                                          \
  }                                                                                                \
  extern "C" void map_blocks_by_weight_##name(const Map* f, const T* x, const T* g, T* gw) {       \
    map_blocks_by_weight<T>(*f, x, g, gw);                                                         \
  }                                                                                                \
  extern "C" void radial_basis_##name(const Basis* b, int64_t n, const T* r, const T* scale,       \
                                      const T* numbers, T* value, T* slope, T* cutoff,             \
                                      T* cutoff_slope) {                                           \
    radial_basis<T>(*b, n, r, scale, numbers, value, slope, cutoff, cutoff_slope);                 \
  }                                                                                                \
  extern "C" void pair_network_##name(const PairNetwork* f, int64_t n, const T* x, const T* dx,    \
                                      const T* offset, const T* cutoff, const T* cutoff_slope,     \
                                      T* kept, T* out, T* slope) {                                 \
    pair_network<T>(*f, n, x, dx, offset, cutoff, cutoff_slope, kept, out, slope);                 \
  }                                                                                                \
  extern "C" void pair_network_vjp_##name(                                                         \
      const PairNetwork* f, int64_t n, const T* x, const T* dx, const T* cutoff,                   \
      const T* cutoff_slope, T* kept, const T* g, const T* dg, T* by_weights, T* by_offset) {      \
    pair_network_vjp<T>(*f, n, x, dx, cutoff, cutoff_slope, kept, g, dg, by_weights, by_offset);   \
  }                                                                                                \
  extern "C" void multiply_##name(int64_t m, int64_t n, int64_t depth, const T* a, int64_t a_row,  \
                                  int64_t a_column, const T* b, int64_t b_row, int64_t b_column,   \
                                  T* c) {                                                          \
    multiply<T>(m, n, depth, {a, a_row, a_column}, {b, b_row, b_column}, c);                       \
  }                                                                                                \
  extern "C" void silu_vjp_##name(int64_t n, double gain, const T* z, const T* s, const T* g,      \
                                  T* gz) {                                                         \
    silu_vjp<T>(n, T(gain), z, s, g, gz);                                                          \
  }                                                                                                \
  extern "C" void silu_vjp_vjp_##name(int64_t n, double gain, const T* z, const T* s, const T* g,  \
                                      const T* a, T* dz, T* dg) {                                  \
    silu_vjp_vjp<T>(n, T(gain), z, s, g, a, dz, dg);                                               \
  }

#ifndef DOUBLE_ALONE  // the two precisions are compiled side by side, each by a process of its own
KERNELS(float, f32)
extern "C" int vector_bytes() { return kBytes; }
#endif
#ifndef FLOAT_ALONE
KERNELS(double, f64)
#endif
