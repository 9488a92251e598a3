// The hidden layers of a network of the distance of a pair, with their slope (pair_network.py).
//
// Pairs go through all layers in tiles, whose arrays stay in the cache. Tiles of a part add what
// they give to the weights' gradient in their order, and parts are added in theirs; both depend on
// the number of pairs alone.
#include "products.h"
#include "threads.h"
#include "vectors.h"

namespace {

// exp to the last bit but one: 2^k exp(r) with |r| <= log(2) / 2 and a polynomial for exp(r).
template <typename T>
struct Exponential;
template <>
struct Exponential<double> {
  typedef int64_t Integer;
  static constexpr double kMagic = 0x1.8p52, kHigh = 0x1.62e42fefa38p-1,
                          kLow = 0x1.ef35793c7673p-45, kLimit = 708;
  static constexpr int kBits = 52, kDegree = 13;
};
template <>
struct Exponential<float> {
  typedef int32_t Integer;
  static constexpr float kMagic = 0x1.8p23f, kHigh = 0x1.62e4p-1f, kLow = 0x1.7f7d1cp-20f,
                         kLimit = 87;
  static constexpr int kBits = 23, kDegree = 7;
};
constexpr double kInverseFactorials[] = {1.0,
                                         1.0,
                                         1.0 / 2,
                                         1.0 / 6,
                                         1.0 / 24,
                                         1.0 / 120,
                                         1.0 / 720,
                                         1.0 / 5040,
                                         1.0 / 40320,
                                         1.0 / 362880,
                                         1.0 / 3628800,
                                         1.0 / 39916800,
                                         1.0 / 479001600,
                                         1.0 / 6227020800.0};
Vector exponential(Vector x) {
  typedef Exponential<Real> E;
  typedef typename E::Integer Integers __attribute__((vector_size(kBytes)));
  const Vector zero{}, limit = zero + E::kLimit, magic = zero + E::kMagic;
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  const Vector shifted = x * Real(1.4426950408889634) + magic;
  const Vector k = shifted - magic;
  const Vector r = (x - k * E::kHigh) - k * E::kLow;
  Vector p = zero + Real(kInverseFactorials[E::kDegree]);
#pragma GCC unroll 16
  for (int i = E::kDegree - 1; i >= 0; --i) p = p * r + Real(kInverseFactorials[i]);
  Integers bits, power, base;
  std::memcpy(&bits, &p, sizeof(p));
  std::memcpy(&power, &shifted, sizeof(p));
  std::memcpy(&base, &magic, sizeof(p));
  bits += (power - base) << E::kBits;
  std::memcpy(&p, &bits, sizeof(p));
  return p;
}
Vector logistic(const Vector& z) { return Real(1) / (Real(1) + exponential(-z)); }

struct PairLayer {  // x -> gain silu(norm(scale x W + bias)); weight[i, j] at i row + j column
  int64_t n_in, n_out, row, column;
  const void *weight, *bias, *norm_weight, *norm_bias;  // the last three may be null
  double scale, gain;
};
struct PairNetwork {
  int64_t n_layers, appended;  // appended: a last column of ones
  const PairLayer* layers;
};
constexpr int64_t kPairs = 24;     // of a tile; their slopes are as many rows more
constexpr double kEpsilon = 1e-5;  // torch's LayerNorm

// A matrix in panels of kColumns columns, or its transpose.
class Panels {
 public:
  Panels(const Real* from, int64_t row, int64_t column, int64_t depth, int64_t columns, Real scale)
      : depth_(depth),
        columns_(columns),
        all_(((columns + kColumns - 1) / kColumns) * depth * kColumns) {
    Real* to = &all_[0];
    for (int64_t first = 0; first < columns; first += kColumns)
      for (int64_t k = 0; k < depth; ++k, to += kColumns)
        for (int64_t j = first; j < std::min(columns, first + kColumns); ++j)
          to[j - first] = from[k * row + j * column] * scale;
  }
  void times(int64_t rows, const Real* a, int64_t lda, Real* c, int64_t ldc) const {
    for (int64_t j = 0; j < columns_; j += kColumns) {
      const Real* panel = &all_[j * depth_];
      int64_t i = 0;
      for (; i + kRows <= rows; i += kRows)
        tile<kRows>(depth_, {a + i * lda, lda, 1}, panel, c + i * ldc + j, ldc, columns_ - j,
                    false);
      for (; i < rows; ++i)
        tile<1>(depth_, {a + i * lda, lda, 1}, panel, c + i * ldc + j, ldc, columns_ - j, false);
    }
  }

 private:
  int64_t depth_, columns_;
  std::vector<Real> all_;
};

// c += aᵀ b for row-major a (rows, n) and b (rows, columns), whose rows may be read kColumns
// numbers too far.
void add_transposed(int64_t rows, const Real* a, int64_t n, const Real* b, int64_t columns,
                    Real* c) {
  for (int64_t j = 0; j < columns; j += kColumns) {
    int64_t i = 0;
    for (; i + kRows <= n; i += kRows)
      tile<kRows>(rows, {a + i, 1, n}, b + j, c + i * columns + j, columns, columns - j, true,
                  columns);
    for (; i + 4 <= n; i += 4)
      tile<4>(rows, {a + i, 1, n}, b + j, c + i * columns + j, columns, columns - j, true, columns);
    for (; i < n; ++i)
      tile<1>(rows, {a + i, 1, n}, b + j, c + i * columns + j, columns, columns - j, true, columns);
  }
}

Real mean_of(const Real* a, const Real* b, int64_t n) {  // of a b, or of a
  Vector total{};
  blocks(n,
         [&](int64_t c, auto k) { total += b ? load(a + c, k) * load(b + c, k) : load(a + c, k); });
  return sum(total) / Real(n);
}

// u = (z - mean) / deviation and its slope v for a row of n numbers; the reciprocal of the
// deviation.
Real normalised(int64_t n, const Real* z, const Real* dz, Real* u, Real* v) {
  const Real mean = mean_of(z, nullptr, n), slope = mean_of(dz, nullptr, n);
  blocks(n, [&](int64_t c, auto k) { store(u + c, load(z + c, k) - mean, k); });
  const Real reciprocal = 1 / std::sqrt(mean_of(u, u, n) + Real(kEpsilon));
  blocks(n, [&](int64_t c, auto k) { store(u + c, load(u + c, k) * reciprocal, k); });
  const Real along = mean_of(u, dz, n);
  blocks(n, [&](int64_t c, auto k) {
    store(v + c, (load(dz + c, k) - slope - load(u + c, k) * along) * reciprocal, k);
  });
  return reciprocal;
}

// One layer of a tile behind its product: rows of z with rows of its slope below them.
struct Activated {
  int64_t n;
  std::vector<Real> normed, x;             // (2 kPairs, n) each: behind a norm, and the result
  const Real *y = nullptr, *dy = nullptr;  // what silu gets, (kPairs, n), and its slope
  const Real* s = nullptr;                 // (kPairs, n), the logistic function
  explicit Activated(int64_t width)
      : n(width), normed(2 * kPairs * n), x(2 * kPairs * n + kColumns) {}

  // logistic_of is written, or read again where known.
  void run(const PairLayer& f, int64_t rows, const Real* z, const Real* dz, Real* logistic_of,
           bool known) {
    y = f.norm_weight ? &normed[0] : z;
    dy = f.norm_weight ? &normed[rows * n] : dz;
    s = logistic_of;
    if (f.norm_weight) norm(f, rows, z, dz);
    const Real gain = Real(f.gain);
    for (int64_t i = 0; i < rows; ++i) {
      // pointers of their own: those behind `this` would be read again after each store
      const Real *yi = y + i * n, *dyi = dy + i * n;
      Real *xi = &x[i * n], *dxi = &x[(rows + i) * n], *si = logistic_of + i * n;
      blocks(n, [=](int64_t c, auto k) {
        const Vector v = load(yi + c, k), l = known ? load(si + c, k) : logistic(v);
        if (!known) store(si + c, l, k);
        store(xi + c, v * l * gain, k);
        store(dxi + c, load(dyi + c, k) * (l * (Real(1) + v * (Real(1) - l)) * gain), k);
      });
    }
  }

  // Gradients by z and its slope, in place of those by x and its slope; what they give to the
  // norm's weight and bias.
  void back(const PairLayer& f, int64_t rows, const Real* z, const Real* dz, Real* g, Real* u,
            Real* weight, Real* bias) {
    const Real gain = Real(f.gain);
    for (int64_t i = 0; i < rows; ++i) {
      Real *gi = g + i * n, *dgi = g + (rows + i) * n;
      const Real *yi = y + i * n, *dyi = dy + i * n, *si = s + i * n;
      blocks(n, [=](int64_t c, auto k) {
        const Vector v = load(yi + c, k), dv = load(dyi + c, k), l = load(si + c, k);
        const Vector rest = Real(1) - l, first = l * (Real(1) + v * rest) * gain;
        const Vector second = l * rest * (Real(2) + v * (rest - l)) * gain;
        const Vector gx = load(gi + c, k), dgx = load(dgi + c, k);
        store(gi + c, gx * first + dgx * second * dv, k);
        store(dgi + c, dgx * first, k);
      });
      if (f.norm_weight) norm_back(f, z + i * n, dz + i * n, gi, dgi, u, weight, bias);
    }
  }

 private:
  void norm(const PairLayer& f, int64_t rows, const Real* z, const Real* dz) {
    const Real *weight = static_cast<const Real*>(f.norm_weight),
               *bias = static_cast<const Real*>(f.norm_bias);
    for (int64_t i = 0; i < rows; ++i) {
      Real *to = &normed[i * n], *dto = &normed[(rows + i) * n];
      normalised(n, z + i * n, dz + i * n, to, dto);
      blocks(n, [=](int64_t c, auto k) {
        const Vector w = load(weight + c, k);
        store(to + c, load(to + c, k) * w + load(bias + c, k), k);
        store(dto + c, load(dto + c, k) * w, k);
      });
    }
  }

  void norm_back(const PairLayer& f, const Real* z, const Real* dz, Real* g, Real* dg, Real* u,
                 Real* weight, Real* bias) const {
    Real* v = u + n;
    const Real *w = static_cast<const Real*>(f.norm_weight),
               reciprocal = normalised(n, z, dz, u, v);
    blocks(n, [&](int64_t c, auto k) {
      const Vector gv = load(g + c, k), dgv = load(dg + c, k), wv = load(w + c, k);
      add(weight + c, gv * load(u + c, k) + dgv * load(v + c, k), k);
      add(bias + c, gv, k);
      store(g + c, gv * wv, k);
      store(dg + c, dgv * wv, k);
    });
    const Real along = mean_of(u, dz, n), mean_dg = mean_of(dg, nullptr, n),
               by_u = mean_of(dg, u, n);
    const Real by_v = mean_of(dg, v, n);
    blocks(n, [&](int64_t c, auto k) {  // by u
      const Vector dgv = load(dg + c, k);
      store(g + c, load(g + c, k) - (dgv * along + load(dz + c, k) * by_u) * reciprocal, k);
    });
    const Real mean_g = mean_of(g, nullptr, n), g_u = mean_of(g, u, n);
    blocks(n, [&](int64_t c, auto k) {
      const Vector uv = load(u + c, k);
      store(g + c, (load(g + c, k) - mean_g - uv * (g_u + by_v)) * reciprocal, k);
      store(dg + c, (load(dg + c, k) - mean_dg - uv * by_u) * reciprocal, k);
    });
  }
};

// Where a layer's z lies among what is kept of a forward pass: (n, n_out), then its slope and the
// logistic function.
int64_t kept_before(const PairNetwork& f, int64_t layer) {
  int64_t total = 0;
  for (int64_t l = 0; l < layer; ++l) total += 3 * f.layers[l].n_out;
  return total;
}

// Numbers of a layer's gradients: of its weight (n_in, n_out), of bias, of the norm's weight and
// bias where there are any.
int64_t gradients_of(const PairLayer& f) {
  return f.n_in * f.n_out + (f.bias ? f.n_out : 0) + (f.norm_weight ? 2 * f.n_out : 0);
}

}  // namespace

// R and its slope from the basis x and its slope dx: see pair_network.py. offset, (n, width of the
// first layer), cutoff and its slope may be null; kept gets what the reverse pass wants again.
extern "C" void pair_network(const PairNetwork& f, int64_t n, const Real* x, const Real* dx,
                             const Real* offset, const Real* cutoff, const Real* cutoff_slope,
                             Real* kept, Real* out, Real* slope) {
  std::vector<Panels> matrices;
  for (int64_t l = 0; l < f.n_layers; ++l) {
    const PairLayer& w = f.layers[l];
    matrices.emplace_back(static_cast<const Real*>(w.weight), w.row, w.column, w.n_in, w.n_out,
                          Real(w.scale));
  }
  const int64_t n_basis = f.layers[0].n_in, n_last = f.layers[f.n_layers - 1].n_out,
                width = n_last + f.appended;
  const int64_t tiles = (n + kPairs - 1) / kPairs;
  auto run = [&] {
    std::vector<Activated> layers;
    for (int64_t l = 0; l < f.n_layers; ++l) layers.emplace_back(f.layers[l].n_out);
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = t * kPairs, rows = std::min(kPairs, n - first);
      const Real *input = x + first * n_basis, *slope_of_input = dx + first * n_basis;
      for (int64_t l = 0; l < f.n_layers; ++l) {
        const PairLayer& layer = f.layers[l];
        const int64_t h = layer.n_out;
        Real *z = kept + kept_before(f, l) * n + first * h, *dz = z + n * h;
        matrices[l].times(rows, input, layer.n_in, z, h);
        matrices[l].times(rows, slope_of_input, layer.n_in, dz, h);
        const Real *bias = static_cast<const Real*>(layer.bias),
                   *row = l == 0 && offset ? offset + first * h : nullptr;
        if (bias || row)
          for (int64_t i = 0; i < rows; ++i)
            blocks(h, [&](int64_t c, auto k) {
              Vector v = load(z + i * h + c, k);
              if (bias) v += load(bias + c, k);
              if (row) v += load(row + i * h + c, k);
              store(z + i * h + c, v, k);
            });
        layers[l].run(layer, rows, z, dz, dz + n * h, false);
        input = &layers[l].x[0];
        slope_of_input = &layers[l].x[rows * h];
      }
      for (int64_t i = 0; i < rows; ++i) {
        Real *to = out + (first + i) * width, *dto = slope + (first + i) * width;
        const Real a = cutoff ? cutoff[first + i] : Real(1),
                   da = cutoff ? cutoff_slope[first + i] : Real(0);
        for (int64_t c = 0; c < n_last; ++c) {
          const Real v = input[i * n_last + c];
          to[c] = v * a;
          dto[c] = slope_of_input[i * n_last + c] * a + v * da;
        }
        if (f.appended) {
          to[n_last] = a;
          dto[n_last] = da;
        }
      }
    }
  };
  if (shared(tiles > 2)) {
#pragma omp parallel
    run();
  } else {
    run();
  }
}

// Gradients by all weights, layer after layer, and by the offset, from those by R and its slope, of
// which one may be null.
extern "C" void pair_network_vjp(const PairNetwork& f, int64_t n, const Real* x, const Real* dx,
                                 const Real* cutoff, const Real* cutoff_slope, Real* kept,
                                 const Real* g, const Real* dg, Real* by_weights, Real* by_offset) {
  std::vector<Panels> transposed;
  int64_t size = 0, widest = 0;
  for (int64_t l = 0; l < f.n_layers; ++l) {
    const PairLayer& w = f.layers[l];
    widest = std::max({widest, w.n_in, w.n_out});
    transposed.emplace_back(static_cast<const Real*>(w.weight), w.column, w.row, w.n_out, w.n_in,
                            Real(w.scale));
    size += gradients_of(w);
  }
  const int64_t n_basis = f.layers[0].n_in, n_last = f.layers[f.n_layers - 1].n_out,
                width = n_last + f.appended;
  const int64_t tiles = (n + kPairs - 1) / kPairs, parts = std::clamp<int64_t>(tiles / 2, 1, 16);
  std::vector<Real> all(parts * size);
  auto run = [&] {
    std::vector<Activated> layers;
    for (int64_t l = 0; l < f.n_layers; ++l) layers.emplace_back(f.layers[l].n_out);
    std::vector<Real> input(2 * kPairs * n_basis), scratch;
    std::vector<Real> gradient(2 * kPairs * widest + kColumns), next(gradient.size());
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t t = part * tiles / parts; t < (part + 1) * tiles / parts; ++t) {
        const int64_t first = t * kPairs, rows = std::min(kPairs, n - first);
        std::memcpy(&input[0], x + first * n_basis, sizeof(Real) * rows * n_basis);
        std::memcpy(&input[rows * n_basis], dx + first * n_basis, sizeof(Real) * rows * n_basis);
        for (int64_t i = 0; i < rows; ++i) {
          const Real a = cutoff ? cutoff[first + i] : Real(1),
                     da = cutoff ? cutoff_slope[first + i] : Real(0);
          const int64_t at = (first + i) * width;
          Real *gi = &gradient[i * n_last], *dgi = &gradient[(rows + i) * n_last];
          for (int64_t c = 0; c < n_last; ++c) {
            const Real gv = g ? g[at + c] : Real(0), dgv = dg ? dg[at + c] : Real(0);
            gi[c] = gv * a + dgv * da;
            dgi[c] = dgv * a;
          }
        }
        for (int64_t l = 0; l < f.n_layers; ++l) {
          const int64_t h = f.layers[l].n_out;
          Real* z = kept + kept_before(f, l) * n + first * h;
          layers[l].run(f.layers[l], rows, z, z + n * h, z + 2 * n * h, true);
        }
        Real* to = &all[part * size] + size;
        for (int64_t l = f.n_layers - 1; l >= 0; --l) {
          const PairLayer& layer = f.layers[l];
          const int64_t h = layer.n_out;
          const Real* z = kept + kept_before(f, l) * n + first * h;
          to -= gradients_of(layer);
          Real* by_bias = to + layer.n_in * h;
          Real* by_norm = by_bias + (layer.bias ? h : 0);
          scratch.resize(2 * h);
          layers[l].back(layer, rows, z, z + n * h, &gradient[0], &scratch[0], by_norm,
                         by_norm + h);
          add_transposed(2 * rows, l ? &layers[l - 1].x[0] : &input[0], layer.n_in, &gradient[0], h,
                         to);
          if (layer.bias)
            for (int64_t i = 0; i < rows; ++i)
              blocks(h, [&](int64_t c, auto k) {
                add(by_bias + c, load(&gradient[i * h + c], k), k);
              });
          if (l == 0) {
            if (by_offset)
              std::memcpy(by_offset + first * h, &gradient[0], sizeof(Real) * rows * h);
          } else {
            transposed[l].times(2 * rows, &gradient[0], h, &next[0], layer.n_in);
            gradient.swap(next);
          }
        }
      }
  };
  if (shared(parts > 1)) {
#pragma omp parallel
    run();
  } else {
    run();
  }
  std::memcpy(by_weights, &all[0], sizeof(Real) * size);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t k = 0; k < size; ++k) by_weights[k] += all[part * size + k];
  for (int64_t l = 0; l < f.n_layers; ++l) {
    const int64_t n_weights = f.layers[l].n_in * f.layers[l].n_out;
    if (f.layers[l].scale != 1)
      for (int64_t k = 0; k < n_weights; ++k) by_weights[k] *= Real(f.layers[l].scale);
    by_weights += gradients_of(f.layers[l]);
  }
}
