// What the convolution and its derivatives share: edges, paths, coupling matrices, and parts of a
// batch. The formulas stand in convolution.py.
#pragma once

#include "harmonics.h"
#include "threads.h"
#include "vectors.h"

namespace {  // nothing of this is seen outside the library

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

constexpr int kMaxMatrix = 1024;  // of l1 <= 3, l2 and l3 <= 4: at most 807
constexpr int kMaxPath = 63;

// The coupling matrices sum_m2 C[m1, m2, m3] Y[m2] of all paths of an edge.
inline void couple(const Convolution& f, const Real* y, bool flipped, Real* matrix) {
  Real s[kMaxHarmonics];
  signed_harmonics(y, f.odd, flipped, f.n_harmonics, s);
  for (int64_t i = 0; i < f.n_matrix; ++i) matrix[i] = 0;
  for (int64_t p = 0; p < f.n_paths; ++p)
    for (int64_t k = f.paths[p].first; k < f.paths[p].last; ++k)
      matrix[f.paths[p].matrix + f.couplings[k].entry] +=
          Real(f.couplings[k].value) * s[f.couplings[k].m2];
}

// F<d1, d3>::run for the d1 and d3 of a path, so that the loops over components are unrolled.
template <template <int, int> class F, int D1, typename... A>
inline void by_d3(int64_t d3, A&&... a) {
  switch (d3) {
    case 1:
      F<D1, 1>::run(a...);
      break;
    case 3:
      F<D1, 3>::run(a...);
      break;
    case 5:
      F<D1, 5>::run(a...);
      break;
    case 7:
      F<D1, 7>::run(a...);
      break;
    default:
      F<D1, 9>::run(a...);
      break;
  }
}
template <template <int, int> class F, typename... A>
inline void by_path(const Path& p, A&&... a) {
  switch (p.d1) {
    case 1:
      by_d3<F, 1>(p.d3, a...);
      break;
    case 3:
      by_d3<F, 3>(p.d3, a...);
      break;
    case 5:
      by_d3<F, 5>(p.d3, a...);
      break;
    default:
      by_d3<F, 7>(p.d3, a...);
      break;
  }
}

// Ask for the channels of an edge to come: path weights are most of what these loops read, each
// pair's far from the last.
inline void fetch(const Real* p, int64_t n) {
  for (int64_t c = 0; c < n; c += 64 / int64_t(sizeof(Real))) __builtin_prefetch(p + c);
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

class Sent {
 public:
  Sent(int64_t parts, int64_t size) : size_(size), all_(parts * size) {}
  Real* part(int64_t k) {
    std::memset(data() + k * size_, 0, sizeof(Real) * size_);
    return data() + k * size_;
  }
  Real* again(int64_t k) { return data() + k * size_; }
  void total(Real* out) {
    const int64_t parts = int64_t(all_.size()) / std::max<int64_t>(size_, 1);
#pragma omp parallel for schedule(static)
    for (int64_t b = 0; b < size_; b += 512) {
      const int64_t n = std::min<int64_t>(512, size_ - b);
      std::memcpy(out + b, data() + b, sizeof(Real) * n);
      for (int64_t k = 1; k < parts; ++k)
        for (int64_t x = b; x < b + n; ++x) out[x] += data()[k * size_ + x];
    }
  }

 private:
  struct Raw {  // not set to zero by the vector that holds it
    Real value;
    Raw() {}
  };
  Real* data() { return &all_[0].value; }
  int64_t size_;
  std::vector<Raw> all_;
};

// couplings[k].value of the derivative by the coupling matrix, summed over channels, into the
// harmonics' derivative.
inline void uncouple(const Convolution& f, const Path& path, const Vector* m, Vector* y) {
  for (int64_t k = path.first; k < path.last; ++k)
    y[f.couplings[k].m2] += m[f.couplings[k].entry] * Real(f.couplings[k].value);
}
inline void store_harmonics(const Convolution& f, const Vector* y, bool flipped, Real* out) {
  for (int64_t m = 0; m < f.n_harmonics; ++m) {
    const Real value = sum(y[m]);
    if (flipped)
      out[m] += f.odd[m] ? -value : value;
    else
      out[m] = value;
  }
}

}  // namespace
