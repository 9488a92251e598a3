// Products of matrices in tiles that stay in registers.
#pragma once

#include "threads.h"
#include "vectors.h"

namespace {  // nothing of this is seen outside the library

// C = A B for matrices of any strides; C has contiguous rows. Tiles of kRows x kColumns stay in
// registers; a panel of B is packed for each block of rows. An entry of C is summed in the order of
// k whatever the number of threads.
constexpr int kRows = kBytes == 64 ? 12 : 6;
constexpr int kColumns = 2 * kLanes;
constexpr int64_t kDepth = 256;

struct Matrix {
  const Real* at;
  int64_t row, column;  // strides
};

template <int Rows>
inline void tile(int64_t depth, const Matrix& a, const Real* panel, Real* c, int64_t ldc,
                 int64_t columns, bool add_to, int64_t stride = kColumns) {
  Vector sums[Rows][2];
#pragma GCC unroll 12
  for (int i = 0; i < Rows; ++i) sums[i][0] = sums[i][1] = Vector{};
  for (int64_t k = 0; k < depth; ++k) {
    const Vector b0 = load(panel + k * stride, Full{});
    const Vector b1 = load(panel + k * stride + kLanes, Full{});
    const Real* ak = a.at + k * a.column;
#pragma GCC unroll 12
    for (int i = 0; i < Rows; ++i) {
      const Real value = ak[i * a.row];
      sums[i][0] += b0 * value;
      sums[i][1] += b1 * value;
    }
  }
  auto put = [&](int i, int half, auto count) {
    Real* to = c + i * ldc + half * kLanes;
    const Vector value = add_to ? load(to, count) + sums[i][half] : sums[i][half];
    store(to, value, count);
  };
#pragma GCC unroll 12  // else the sums go through the stack
  for (int i = 0; i < Rows; ++i) {
    if (columns >= kColumns) {
      put(i, 0, Full{});
      put(i, 1, Full{});
    } else if (columns >= kLanes) {
      put(i, 0, Full{});
      if (columns > kLanes) put(i, 1, Part{columns - kLanes});
    } else {
      put(i, 0, Part{columns});
    }
  }
}

// Where c has rows of another length than n, its stride is given; scale multiplies the product,
// which may be added to c.
inline void multiply(int64_t m, int64_t n, int64_t depth, Matrix a, Matrix b, Real* c,
                     Real scale = 1, int64_t stride = 0, bool add_to = false) {
  const int64_t ldc = stride ? stride : n, width = kColumns, panels = (n + width - 1) / width;
  const int64_t rows = std::clamp<int64_t>((m / 16 + kRows) / kRows * kRows, 240, 480);
  each((m + rows - 1) / rows * panels, m * n * depth > 100000, [&](int64_t task) {
    const int64_t first = task / panels * rows, last = std::min(m, first + rows);
    const int64_t p = task % panels, columns = std::min(width, n - p * width);
    alignas(64) Real panel[kDepth * kColumns];
    for (int64_t k0 = 0; k0 < std::max<int64_t>(depth, 1); k0 += kDepth) {
      const int64_t deep = std::min(kDepth, depth - k0);
      const Real* from = b.at + k0 * b.row + p * width * b.column;
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
        return Matrix{a.at + row * a.row + k0 * a.column, a.row, a.column};
      };
      for (; i + kRows <= last; i += kRows)
        tile<kRows>(deep, at(i), panel, c + i * ldc + p * width, ldc, columns, add_to || k0 > 0);
      for (; i + 4 <= last; i += 4)
        tile<4>(deep, at(i), panel, c + i * ldc + p * width, ldc, columns, add_to || k0 > 0);
      for (; i < last; ++i)
        tile<1>(deep, at(i), panel, c + i * ldc + p * width, ldc, columns, add_to || k0 > 0);
    }
  });
}

}  // namespace
