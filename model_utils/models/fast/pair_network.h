// Functions of the distance of a pair: the radial basis, and the hidden layers of a network on top
// of it, each with its slope. The formulas stand in radial.py and pair_network.py; here only loops.
// Included by kernels.cpp.
//
// Pairs go through all layers in tiles, whose arrays stay in the cache. Tiles of a part add what
// they give to the weights' gradient in their order, and parts are added in theirs; both depend on
// the number of pairs alone.

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
template <typename T>
inline Vector<T> exponential(Vector<T> x) {
  typedef Exponential<T> E;
  typedef typename E::Integer Integers __attribute__((vector_size(kBytes)));
  const Vector<T> zero{}, limit = zero + E::kLimit, magic = zero + E::kMagic;
  x = x > limit ? limit : x;
  x = x < -limit ? -limit : x;
  const Vector<T> shifted = x * T(1.4426950408889634) + magic;
  const Vector<T> k = shifted - magic;
  const Vector<T> r = (x - k * E::kHigh) - k * E::kLow;
  Vector<T> p = zero + T(kInverseFactorials[E::kDegree]);
#pragma GCC unroll 16
  for (int i = E::kDegree - 1; i >= 0; --i) p = p * r + T(kInverseFactorials[i]);
  Integers bits, power, base;
  std::memcpy(&bits, &p, sizeof(p));
  std::memcpy(&power, &shifted, sizeof(p));
  std::memcpy(&base, &magic, sizeof(p));
  bits += (power - base) << E::kBits;
  std::memcpy(&p, &bits, sizeof(p));
  return p;
}
template <typename T>
inline Vector<T> logistic(const Vector<T>& z) {
  return T(1) / (T(1) + exponential<T>(-z));
}

struct Basis {
  int64_t n, gaussian, power;  // functions; gaussians or Bessel functions; power of the cutoff
  double r_max, prefactor;     // of a gaussian the factor in its exponent
  double a, p, q;              // of the Agnesi transform
};

// value and slope (pairs, n) of the functions at r or, where scale is given, at the transform of r
// by each pair's own length. The cutoff multiplies them, or is written with its slope to the arrays
// for it.
template <typename T>
void radial_basis(const Basis& b, int64_t pairs, const T* r, const T* scale, const T* numbers,
                  T* value, T* slope, T* cutoff, T* cutoff_slope) {
  const T r_max = T(b.r_max), prefactor = T(b.prefactor), q = T(b.q), difference = T(b.q - b.p);
  const T c0 = T((b.power + 1) * (b.power + 2)) / 2, c1 = T(b.power * (b.power + 2)),
          c2 = T(b.power * (b.power + 1)) / 2;
  each(pairs, pairs > 100, [&](int64_t i) {
    const T u = r[i] / r_max;
    T power = 1;  // u^(p - 1)
    for (int64_t k = 1; k < b.power; ++k) power *= u;
    const bool inside = r[i] < r_max;
    T f = inside ? 1 + power * u * (-c0 + u * (c1 - u * c2)) : T(0);
    T df = inside ? -(c0 * b.power) * power * (1 - u) * (1 - u) / r_max : T(0);
    if (cutoff) {
      cutoff[i] = f;
      cutoff_slope[i] = df;
      f = 1;
      df = 0;
    }
    T x = r[i], dx = 1;
    if (scale) {
      const T reduced = r[i] / scale[i], w = std::pow(reduced, difference),
              a = T(b.a) * std::pow(reduced, q) / (1 + w);
      x = 1 / (1 + a);
      dx = -x * x * a / r[i] * (q - difference * w / (1 + w));
    }
    for (int64_t k = 0; k < b.n; ++k) {
      T wave, slope_of_wave;
      if (b.gaussian) {
        const T distance = x - numbers[k];
        wave = std::exp(prefactor * distance * distance);
        slope_of_wave = 2 * prefactor * distance * wave;
      } else {
        wave = prefactor * std::sin(numbers[k] * x) / x;
        slope_of_wave = (prefactor * numbers[k] * std::cos(numbers[k] * x) - wave) / x;
      }
      value[i * b.n + k] = wave * f;
      slope[i * b.n + k] = slope_of_wave * dx * f + wave * df;
    }
  });
}

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
template <typename T>
class Panels {
 public:
  Panels(const T* from, int64_t row, int64_t column, int64_t depth, int64_t columns, T scale)
      : depth_(depth),
        columns_(columns),
        all_(((columns + kColumns<T> - 1) / kColumns<T>)*depth * kColumns<T>) {
    T* to = &all_[0];
    for (int64_t first = 0; first < columns; first += kColumns<T>)
      for (int64_t k = 0; k < depth; ++k, to += kColumns<T>)
        for (int64_t j = first; j < std::min(columns, first + kColumns<T>); ++j)
          to[j - first] = from[k * row + j * column] * scale;
  }
  void times(int64_t rows, const T* a, int64_t lda, T* c, int64_t ldc) const {
    for (int64_t j = 0; j < columns_; j += kColumns<T>) {
      const T* panel = &all_[j * depth_];
      int64_t i = 0;
      for (; i + kRows <= rows; i += kRows)
        tile<T, kRows>(depth_, {a + i * lda, lda, 1}, panel, c + i * ldc + j, ldc, columns_ - j,
                       false);
      for (; i < rows; ++i)
        tile<T, 1>(depth_, {a + i * lda, lda, 1}, panel, c + i * ldc + j, ldc, columns_ - j, false);
    }
  }

 private:
  int64_t depth_, columns_;
  std::vector<T> all_;
};

// c += aᵀ b for row-major a (rows, n) and b (rows, columns), whose rows may be read kColumns
// numbers too far.
template <typename T>
void add_transposed(int64_t rows, const T* a, int64_t n, const T* b, int64_t columns, T* c) {
  for (int64_t j = 0; j < columns; j += kColumns<T>) {
    int64_t i = 0;
    for (; i + kRows <= n; i += kRows)
      tile<T, kRows>(rows, {a + i, 1, n}, b + j, c + i * columns + j, columns, columns - j, true,
                     columns);
    for (; i + 4 <= n; i += 4)
      tile<T, 4>(rows, {a + i, 1, n}, b + j, c + i * columns + j, columns, columns - j, true,
                 columns);
    for (; i < n; ++i)
      tile<T, 1>(rows, {a + i, 1, n}, b + j, c + i * columns + j, columns, columns - j, true,
                 columns);
  }
}

template <typename T>
inline T mean_of(const T* a, const T* b, int64_t n) {  // of a b, or of a
  Vector<T> total{};
  blocks<T>(n, [&](int64_t c, auto k) {
    total += b ? load<T>(a + c, k) * load<T>(b + c, k) : load<T>(a + c, k);
  });
  return sum<T>(total) / T(n);
}

// u = (z - mean) / deviation and its slope v for a row of n numbers; the reciprocal of the
// deviation.
template <typename T>
inline T normalised(int64_t n, const T* z, const T* dz, T* u, T* v) {
  const T mean = mean_of<T>(z, nullptr, n), slope = mean_of<T>(dz, nullptr, n);
  blocks<T>(n, [&](int64_t c, auto k) { store<T>(u + c, load<T>(z + c, k) - mean, k); });
  const T reciprocal = 1 / std::sqrt(mean_of<T>(u, u, n) + T(kEpsilon));
  blocks<T>(n, [&](int64_t c, auto k) { store<T>(u + c, load<T>(u + c, k) * reciprocal, k); });
  const T along = mean_of<T>(u, dz, n);
  blocks<T>(n, [&](int64_t c, auto k) {
    store<T>(v + c, (load<T>(dz + c, k) - slope - load<T>(u + c, k) * along) * reciprocal, k);
  });
  return reciprocal;
}

// One layer of a tile behind its product: rows of z with rows of its slope below them.
template <typename T>
struct Activated {
  int64_t n;
  std::vector<T> y, x;  // (2 kPairs, n) each: what silu gets, and the result
  const T* s;           // (kPairs, n), the logistic function
  explicit Activated(int64_t width)
      : n(width), y(2 * kPairs * n), x(2 * kPairs * n + kColumns<T>), s(nullptr) {}

  // logistic_of is written, or read again where known.
  void run(const PairLayer& f, int64_t rows, const T* z, const T* dz, T* logistic_of, bool known) {
    s = logistic_of;
    const T gain = T(f.gain);
    for (int64_t i = 0; i < rows; ++i) {
      T *to = &y[i * n], *dto = &y[(rows + i) * n];
      if (f.norm_weight) {
        normalised<T>(n, z + i * n, dz + i * n, to, dto);
        const T *weight = static_cast<const T*>(f.norm_weight),
                *bias = static_cast<const T*>(f.norm_bias);
        blocks<T>(n, [&](int64_t c, auto k) {
          const Vector<T> w = load<T>(weight + c, k);
          store<T>(to + c, load<T>(to + c, k) * w + load<T>(bias + c, k), k);
          store<T>(dto + c, load<T>(dto + c, k) * w, k);
        });
      } else {
        std::memcpy(to, z + i * n, sizeof(T) * n);
        std::memcpy(dto, dz + i * n, sizeof(T) * n);
      }
      blocks<T>(n, [&](int64_t c, auto k) {
        const Vector<T> v = load<T>(to + c, k),
                        l = known ? load<T>(s + i * n + c, k) : logistic<T>(v);
        if (!known) store<T>(logistic_of + i * n + c, l, k);
        store<T>(&x[i * n + c], v * l * gain, k);
        store<T>(&x[(rows + i) * n + c], load<T>(dto + c, k) * (l * (T(1) + v * (T(1) - l)) * gain),
                 k);
      });
    }
  }

  // Gradients by z and its slope, in place of those by x and its slope; what they give to the
  // norm's weight and bias.
  void back(const PairLayer& f, int64_t rows, const T* z, const T* dz, T* g, T* u, T* weight,
            T* bias) {
    const T gain = T(f.gain);
    for (int64_t i = 0; i < rows; ++i) {
      T *gi = g + i * n, *dgi = g + (rows + i) * n;
      blocks<T>(n, [&](int64_t c, auto k) {
        const Vector<T> v = load<T>(&y[i * n + c], k), dv = load<T>(&y[(rows + i) * n + c], k),
                        l = load<T>(&s[i * n + c], k);
        const Vector<T> rest = T(1) - l, first = l * (T(1) + v * rest) * gain;
        const Vector<T> second = l * rest * (T(2) + v * (rest - l)) * gain;
        const Vector<T> gx = load<T>(gi + c, k), dgx = load<T>(dgi + c, k);
        store<T>(gi + c, gx * first + dgx * second * dv, k);
        store<T>(dgi + c, dgx * first, k);
      });
      if (f.norm_weight) norm_back(f, z + i * n, dz + i * n, gi, dgi, u, weight, bias);
    }
  }

 private:
  void norm_back(const PairLayer& f, const T* z, const T* dz, T* g, T* dg, T* u, T* weight,
                 T* bias) const {
    T* v = u + n;
    const T *w = static_cast<const T*>(f.norm_weight), reciprocal = normalised<T>(n, z, dz, u, v);
    blocks<T>(n, [&](int64_t c, auto k) {
      const Vector<T> gv = load<T>(g + c, k), dgv = load<T>(dg + c, k), wv = load<T>(w + c, k);
      add<T>(weight + c, gv * load<T>(u + c, k) + dgv * load<T>(v + c, k), k);
      add<T>(bias + c, gv, k);
      store<T>(g + c, gv * wv, k);
      store<T>(dg + c, dgv * wv, k);
    });
    const T along = mean_of<T>(u, dz, n), mean_dg = mean_of<T>(dg, nullptr, n),
            by_u = mean_of<T>(dg, u, n);
    const T by_v = mean_of<T>(dg, v, n);
    blocks<T>(n, [&](int64_t c, auto k) {  // by u
      const Vector<T> dgv = load<T>(dg + c, k);
      store<T>(g + c, load<T>(g + c, k) - (dgv * along + load<T>(dz + c, k) * by_u) * reciprocal,
               k);
    });
    const T mean_g = mean_of<T>(g, nullptr, n), g_u = mean_of<T>(g, u, n);
    blocks<T>(n, [&](int64_t c, auto k) {
      const Vector<T> uv = load<T>(u + c, k);
      store<T>(g + c, (load<T>(g + c, k) - mean_g - uv * (g_u + by_v)) * reciprocal, k);
      store<T>(dg + c, (load<T>(dg + c, k) - mean_dg - uv * by_u) * reciprocal, k);
    });
  }
};

// Where a layer's z lies among what is kept of a forward pass: (n, n_out), then its slope and the
// logistic function.
inline int64_t kept_before(const PairNetwork& f, int64_t layer) {
  int64_t total = 0;
  for (int64_t l = 0; l < layer; ++l) total += 3 * f.layers[l].n_out;
  return total;
}

// R and its slope from the basis x and its slope dx: see pair_network.py. offset, (n, width of the
// first layer), cutoff and its slope may be null; kept gets what the reverse pass wants again.
template <typename T>
void pair_network(const PairNetwork& f, int64_t n, const T* x, const T* dx, const T* offset,
                  const T* cutoff, const T* cutoff_slope, T* kept, T* out, T* slope) {
  std::vector<Panels<T>> matrices;
  for (int64_t l = 0; l < f.n_layers; ++l) {
    const PairLayer& w = f.layers[l];
    matrices.emplace_back(static_cast<const T*>(w.weight), w.row, w.column, w.n_in, w.n_out,
                          T(w.scale));
  }
  const int64_t n_basis = f.layers[0].n_in, n_last = f.layers[f.n_layers - 1].n_out,
                width = n_last + f.appended;
  const int64_t tiles = (n + kPairs - 1) / kPairs;
  auto run = [&] {
    std::vector<Activated<T>> layers;
    for (int64_t l = 0; l < f.n_layers; ++l) layers.emplace_back(f.layers[l].n_out);
    std::vector<T> basis(2 * kPairs * n_basis), product;
#pragma omp for schedule(static)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = t * kPairs, rows = std::min(kPairs, n - first);
      std::memcpy(&basis[0], x + first * n_basis, sizeof(T) * rows * n_basis);
      std::memcpy(&basis[rows * n_basis], dx + first * n_basis, sizeof(T) * rows * n_basis);
      const T* input = &basis[0];
      for (int64_t l = 0; l < f.n_layers; ++l) {
        const PairLayer& layer = f.layers[l];
        const int64_t h = layer.n_out;
        T *z = kept + kept_before(f, l) * n + first * h, *dz = z + n * h;
        product.resize(2 * kPairs * h);
        matrices[l].times(2 * rows, input, layer.n_in, &product[0], h);
        const T *bias = static_cast<const T*>(layer.bias),
                *row = l == 0 && offset ? offset + first * h : nullptr;
        for (int64_t i = 0; i < rows; ++i)
          blocks<T>(h, [&](int64_t c, auto k) {
            Vector<T> v = load<T>(&product[i * h + c], k);
            if (bias) v += load<T>(bias + c, k);
            if (row) v += load<T>(row + i * h + c, k);
            store<T>(z + i * h + c, v, k);
          });
        std::memcpy(dz, &product[rows * h], sizeof(T) * rows * h);
        layers[l].run(layer, rows, z, dz, dz + n * h, false);
        input = &layers[l].x[0];
      }
      for (int64_t i = 0; i < rows; ++i) {
        T *to = out + (first + i) * width, *dto = slope + (first + i) * width;
        const T a = cutoff ? cutoff[first + i] : T(1), da = cutoff ? cutoff_slope[first + i] : T(0);
        for (int64_t c = 0; c < n_last; ++c) {
          const T v = input[i * n_last + c];
          to[c] = v * a;
          dto[c] = input[(rows + i) * n_last + c] * a + v * da;
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

// Numbers of a layer's gradients: of its weight (n_in, n_out), of bias, of the norm's weight and
// bias where there are any.
inline int64_t gradients_of(const PairLayer& f) {
  return f.n_in * f.n_out + (f.bias ? f.n_out : 0) + (f.norm_weight ? 2 * f.n_out : 0);
}

// Gradients by all weights, layer after layer, and by the offset, from those by R and its slope, of
// which one may be null.
template <typename T>
void pair_network_vjp(const PairNetwork& f, int64_t n, const T* x, const T* dx, const T* cutoff,
                      const T* cutoff_slope, T* kept, const T* g, const T* dg, T* by_weights,
                      T* by_offset) {
  std::vector<Panels<T>> transposed;
  int64_t size = 0;
  for (int64_t l = 0; l < f.n_layers; ++l) {
    const PairLayer& w = f.layers[l];
    transposed.emplace_back(static_cast<const T*>(w.weight), w.column, w.row, w.n_out, w.n_in,
                            T(w.scale));
    size += gradients_of(w);
  }
  const int64_t n_basis = f.layers[0].n_in, n_last = f.layers[f.n_layers - 1].n_out,
                width = n_last + f.appended;
  const int64_t tiles = (n + kPairs - 1) / kPairs, parts = std::clamp<int64_t>(tiles / 2, 1, 16);
  std::vector<T> all(parts * size);
  auto run = [&] {
    std::vector<Activated<T>> layers;
    for (int64_t l = 0; l < f.n_layers; ++l) layers.emplace_back(f.layers[l].n_out);
    std::vector<T> input(2 * kPairs * n_basis), gradient, next, scratch;
#pragma omp for schedule(static)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t t = part * tiles / parts; t < (part + 1) * tiles / parts; ++t) {
        const int64_t first = t * kPairs, rows = std::min(kPairs, n - first);
        std::memcpy(&input[0], x + first * n_basis, sizeof(T) * rows * n_basis);
        std::memcpy(&input[rows * n_basis], dx + first * n_basis, sizeof(T) * rows * n_basis);
        gradient.assign(2 * kPairs * n_last + kColumns<T>, T(0));
        for (int64_t i = 0; i < rows; ++i) {
          const T a = cutoff ? cutoff[first + i] : T(1),
                  da = cutoff ? cutoff_slope[first + i] : T(0);
          const int64_t at = (first + i) * width;
          for (int64_t c = 0; c < n_last; ++c) {
            const T gv = g ? g[at + c] : T(0), dgv = dg ? dg[at + c] : T(0);
            gradient[i * n_last + c] = gv * a + dgv * da;
            gradient[(rows + i) * n_last + c] = dgv * a;
          }
        }
        for (int64_t l = 0; l < f.n_layers; ++l) {
          const int64_t h = f.layers[l].n_out;
          T* z = kept + kept_before(f, l) * n + first * h;
          layers[l].run(f.layers[l], rows, z, z + n * h, z + 2 * n * h, true);
        }
        T* to = &all[part * size] + size;
        for (int64_t l = f.n_layers - 1; l >= 0; --l) {
          const PairLayer& layer = f.layers[l];
          const int64_t h = layer.n_out;
          const T* z = kept + kept_before(f, l) * n + first * h;
          to -= gradients_of(layer);
          T* by_bias = to + layer.n_in * h;
          T* by_norm = by_bias + (layer.bias ? h : 0);
          scratch.resize(2 * h);
          layers[l].back(layer, rows, z, z + n * h, &gradient[0], &scratch[0], by_norm,
                         by_norm + h);
          add_transposed<T>(2 * rows, l ? &layers[l - 1].x[0] : &input[0], layer.n_in, &gradient[0],
                            h, to);
          if (layer.bias)
            for (int64_t i = 0; i < rows; ++i)
              blocks<T>(h, [&](int64_t c, auto k) {
                add<T>(by_bias + c, load<T>(&gradient[i * h + c], k), k);
              });
          if (l == 0) {
            if (by_offset) std::memcpy(by_offset + first * h, &gradient[0], sizeof(T) * rows * h);
          } else {
            next.assign(2 * kPairs * layer.n_in + kColumns<T>, T(0));
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
  std::memcpy(by_weights, &all[0], sizeof(T) * size);
  for (int64_t part = 1; part < parts; ++part)
    for (int64_t k = 0; k < size; ++k) by_weights[k] += all[part * size + k];
  for (int64_t l = 0; l < f.n_layers; ++l) {
    const int64_t n_weights = f.layers[l].n_in * f.layers[l].n_out;
    if (f.layers[l].scale != 1)
      for (int64_t k = 0; k < n_weights; ++k) by_weights[k] *= T(f.layers[l].scale);
    by_weights += gradients_of(f.layers[l]);
  }
}
