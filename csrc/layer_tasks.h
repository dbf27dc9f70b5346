// What the launchers of the layers share: weights packed chain by chain, work cut into the same groups
// whatever the threads, the groups' slopes of the weights added in their order.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <utility>

#include "arena.h"
#include "layer_kernels.h"
#include "parallel.h"
#include "partial_sums.h"

namespace thermosphere {

// Groups of a chain's work: a partial gradient each, and how many cores one chain can keep busy.
constexpr int64_t layer_groups = 8;

inline int64_t chunk_count(int64_t rows) { return (rows + chunk_rows - 1) / chunk_rows; }

// Two chunks a group at least: clearing and adding a partial gradient costs about a sixth of a chunk.
inline int64_t groups_of_chunks(int64_t chunks) { return std::clamp<int64_t>(chunks / 2, 1, layer_groups); }

template <class Layout>
ptrdiff_t packed_stride(const Layout& at) {
  return (at.packed_floats + 15) / 16 * 16;
}
template <class Layout>
ptrdiff_t partial_stride(const Layout& at) {
  return (at.gradient_floats + 15) / 16 * 16;
}

// Every chain's packed weights, followed by room for `groups` partial gradients a chain and `more` floats.
template <class Call, class Layout, class Kernels>
float* pack_chains(const Call& call, const Layout& at, const Kernels& kernels, int64_t groups, int threads,
                   ptrdiff_t more = 0) {
  float* packed = call_arena(call.chains * (packed_stride(at) + groups * partial_stride(at)) + more);
  parallel_for(call.chains, threads,
               [&](int64_t chain) { kernels.pack(call, chain, packed + chain * packed_stride(at)); });
  return packed;
}

// body(chain, first, last, partial) for every group of every chain's `tasks`, its partial gradient zero.
template <class Layout, class Body>
void for_groups(int64_t chains, int64_t tasks, int64_t groups, const Layout& at, float* partials, int threads,
                const Body& body) {
  const ptrdiff_t stride = partial_stride(at);
  parallel_for(chains * groups, threads, [&](int64_t task) {
    const int64_t g = task % groups;
    float* partial = partials + task * stride;
    std::memset(partial, 0, sizeof(float) * static_cast<size_t>(stride));
    body(task / groups, tasks * g / groups, tasks * (g + 1) / groups, partial);
  });
}

// Each tensor (C, rows, columns) = its groups' sums.
template <class Layout>
void add_groups(int64_t chains, int64_t groups, const Layout& at, const float* partials, int threads,
                std::initializer_list<std::pair<const EncoderTensor*, float*>> tensors) {
  const ptrdiff_t stride = partial_stride(at);
  parallel_for(chains * chain_pieces, threads, [&](int64_t task) {
    const int64_t chain = task / chain_pieces;
    for (const auto& [tensor, out] : tensors)
      add_partials(*tensor, partials + chain * groups * stride, stride, groups, task % chain_pieces,
                   out + chain * tensor->rows * tensor->columns);
  });
}

}  // namespace thermosphere
