// A caller's rows (without padding) as the products read and write them.
#pragma once

#include "arena.h"
#include "packed_weights_cpu.h"

namespace thermosphere {
namespace {

// rows × padded(columns): the rows themselves where nothing has to be padded, else a copy.
static const float* padded_rows(Arena& arena, const float* rows, ptrdiff_t count, int columns) {
  if (padded(columns) == columns) return rows;
  float* copy = arena.take(count * padded(columns));
  pad_rows(count, columns, rows, columns, copy);
  return copy;
}

// Where to write rows that `return_rows` then hands to the caller.
static float* room_for_rows(Arena& arena, float* rows, ptrdiff_t count, int columns) {
  return padded(columns) == columns ? rows : arena.take(count * padded(columns));
}

static void return_rows(const float* room, ptrdiff_t count, int columns, float* rows) {
  if (room == rows) return;
  const int width = padded(columns);
  for (ptrdiff_t i = 0; i < count; ++i)
    for (int j = 0; j < columns; ++j) rows[i * columns + j] = room[i * width + j];
}

// What backward reads: in the caller's memory, or for this task only.
static float* kept(Arena& arena, float* all, ptrdiff_t at, ptrdiff_t count) {
  return all != nullptr ? all + at : arena.take(count);
}

}  // namespace
}  // namespace thermosphere
