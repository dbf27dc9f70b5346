// What becomes of the sums of a tile before they leave its registers. Each finish hands out a functor for one
// vector of columns, which takes the rows in their order: a pass over memory less than a loop after the
// product (5 % of a gradient). One that has `fetch` is told of the tile before its sums are made.
#pragma once

#include <stddef.h>

#include "vector_math.h"

namespace thermosphere {
namespace {

constexpr int padding = 16;  // every row of a matrix is padded to this many floats

constexpr int padded(int size) { return (size + padding - 1) / padding * padding; }

// C = A B.
struct Overwrite {
  float* c;
  ptrdiff_t row;
  struct Rows {
    float* c;
    ptrdiff_t row;
    THERMOSPHERE_METHOD void operator()(Vec sum) {
      store(c, sum);
      c += row;
    }
    THERMOSPHERE_METHOD void end() {}
  };
  THERMOSPHERE_METHOD Rows rows_from(int first, int column) const { return {c + first * row + column, row}; }
};

// C += A B. A weight's slope was last touched a sequence ago, and is not in the first-level cache.
struct Add {
  float* c;
  ptrdiff_t row;
  THERMOSPHERE_METHOD void fetch(int first, int rows, int column, int columns) const {
    for (int i = first; i < first + rows; ++i)
      for (int j = column; j < column + columns; j += 16) __builtin_prefetch(c + i * row + j, 1);
  }
  struct Rows {
    float* c;
    ptrdiff_t row;
    THERMOSPHERE_METHOD void operator()(Vec sum) {
      store(c, load(c) + sum);
      c += row;
    }
    THERMOSPHERE_METHOD void end() {}
  };
  THERMOSPHERE_METHOD Rows rows_from(int first, int column) const { return {c + first * row + column, row}; }
};

// C = R + A B + bias: a residual before its norm. R's rows are as far apart as C's.
struct Residual {
  float* c;
  const float* residual;
  ptrdiff_t row;
  const float* bias;  // null: none
  struct Rows {
    float* c;
    const float* residual;
    ptrdiff_t row;
    Vec bias;
    THERMOSPHERE_METHOD void operator()(Vec sum) {
      store(c, sum + load(residual) + bias);
      c += row;
      residual += row;
    }
    THERMOSPHERE_METHOD void end() {}
  };
  THERMOSPHERE_METHOD Rows rows_from(int first, int column) const {
    const ptrdiff_t at = first * row + column;
    return {c + at, residual + at, row, bias != nullptr ? load(bias + column) : Vec{}};
  }
};

// C = R + k ∘ (A B + bias), k dropout's factors. The rows of all three are as far apart.
struct DroppedResidual {
  float* c;
  const float *residual, *kept;
  ptrdiff_t row;
  const float* bias;  // null: none
  struct Rows {
    float* c;
    const float *residual, *kept;
    ptrdiff_t row;
    Vec bias;
    THERMOSPHERE_METHOD void operator()(Vec sum) {
      store(c, load(residual) + (sum + bias) * load(kept));
      c += row;
      residual += row;
      kept += row;
    }
    THERMOSPHERE_METHOD void end() {}
  };
  THERMOSPHERE_METHOD Rows rows_from(int first, int column) const {
    const ptrdiff_t at = first * row + column;
    return {c + at, residual + at, kept + at, row, bias != nullptr ? load(bias + column) : Vec{}};
  }
};

// C = relu(A B + bias), D = C + table[site of the row].
struct Rectify {
  float* c;
  ptrdiff_t row;
  float* d;
  ptrdiff_t d_row;
  const float *bias, *table;
  ptrdiff_t table_row;
  const int* site;
  struct Rows {
    float* c;
    ptrdiff_t row;
    float* d;
    ptrdiff_t d_row;
    const float* table;  // at the column
    ptrdiff_t table_row;
    const int* site;  // of the next row
    Vec bias;
    THERMOSPHERE_METHOD void operator()(Vec sum) {
      const Vec positive = relu(sum + bias);
      store(c, positive);
      store(d, positive + load(table + *site * table_row));
      c += row;
      d += d_row;
      ++site;
    }
    THERMOSPHERE_METHOD void end() {}
  };
  THERMOSPHERE_METHOD Rows rows_from(int first, int column) const {
    return {c + first * row + column,
            row,
            d + first * d_row + column,
            d_row,
            table + column,
            table_row,
            site + first,
            load(bias + column)};
  }
};

// C = A B where `active` > 0, else 0: the slope before a relu; its column sums are added to `total`.
struct Gate {
  float* c;
  ptrdiff_t row;
  const float* active;
  ptrdiff_t active_row;
  float* total;
  struct Rows {
    float* c;
    ptrdiff_t row;
    const float* active;
    ptrdiff_t active_row;
    float* into;
    Vec total;
    THERMOSPHERE_METHOD void operator()(Vec sum) {
      const Vec own = load(active) > 0.0f ? sum : Vec{};
      store(c, own);
      total += own;
      c += row;
      active += active_row;
    }
    THERMOSPHERE_METHOD void end() { store(into, load(into) + total); }
  };
  THERMOSPHERE_METHOD Rows rows_from(int first, int column) const {
    return {c + first * row + column, row,  active + first * active_row + column, active_row,
            total + column,           Vec{}};
  }
};

// C = s_row A B.
struct ScaleRows {
  float* c;
  ptrdiff_t row;
  const float* scale;
  struct Rows {
    float* c;
    ptrdiff_t row;
    const float* scale;
    THERMOSPHERE_METHOD void operator()(Vec sum) {
      store(c, sum * *scale++);
      c += row;
    }
    THERMOSPHERE_METHOD void end() {}
  };
  THERMOSPHERE_METHOD Rows rows_from(int first, int column) const {
    return {c + first * row + column, row, scale + first};
  }
};

// C = A B, and the largest of each column so far in `top`, which begins at -infinity.
struct KeepLargest {
  float* c;
  ptrdiff_t row;
  float* top;
  struct Rows {
    float* c;
    ptrdiff_t row;
    float* into;
    Vec top;
    THERMOSPHERE_METHOD void operator()(Vec sum) {
      store(c, sum);
      top = larger(top, sum);
      c += row;
    }
    THERMOSPHERE_METHOD void end() { store(into, top); }
  };
  THERMOSPHERE_METHOD Rows rows_from(int first, int column) const {
    return {c + first * row + column, row, top + column, load(top + column)};
  }
};

}  // namespace
}  // namespace thermosphere
