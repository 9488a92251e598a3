// Products of matrices, and maps of features in blocks (maps.py) that consist of them.
#include "products.h"

namespace {

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
}  // namespace

// Width of the vectors that all this was compiled for.
extern "C" int vector_bytes() { return kBytes; }

extern "C" void map_blocks(const Map& f, const Real* x, const Real* w, Real* y) {
  each_matrix(f, [&](const MapPart& p, int64_t n, int64_t x0, int64_t y0, int64_t w0, bool) {
    multiply(n, p.n_out, p.n_in, {x + x0, p.n_in, 1}, {w + w0, p.n_elements * p.n_out, 1}, y + y0,
             Real(p.scale));
  });
}
extern "C" void map_blocks_by_input(const Map& f, const Real* g, const Real* w, Real* gx) {
  each_matrix(f, [&](const MapPart& p, int64_t n, int64_t x0, int64_t y0, int64_t w0, bool) {
    multiply(n, p.n_in, p.n_out, {g + y0, p.n_out, 1}, {w + w0, 1, p.n_elements * p.n_out}, gx + x0,
             Real(p.scale));
  });
}
extern "C" void map_blocks_by_weight(const Map& f, const Real* x, const Real* g, Real* gw) {
  for (int64_t p = 0; p < f.n_parts; ++p)
    if (f.parts[p].n_elements > f.n_present)
      std::memset(gw + f.parts[p].weight, 0,
                  sizeof(Real) * f.parts[p].n_in * f.parts[p].n_elements * f.parts[p].n_out);
  each_matrix(f, [&](const MapPart& p, int64_t n, int64_t x0, int64_t y0, int64_t w0, bool first) {
    multiply(p.n_in, p.n_out, n, {x + x0, 1, p.n_in}, {g + y0, p.n_out, 1}, gw + w0, Real(p.scale),
             p.n_elements * p.n_out, !first);
  });
}

extern "C" void multiply(int64_t m, int64_t n, int64_t depth, const Real* a, int64_t a_row,
                         int64_t a_column, const Real* b, int64_t b_row, int64_t b_column,
                         Real* c) {
  multiply(m, n, depth, {a, a_row, a_column}, {b, b_row, b_column}, c);
}
