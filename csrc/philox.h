// Philox4x32-10 (Salmon, Moraes, Dror, Shaw, SC'11): a counter in, four independent 32-bit words out.
// No state: the words depend on (seed, stream, chain, step, index) alone, so any grid of threads makes the
// same noise.
#pragma once

#include "host_device.h"

namespace thermosphere {

// What the words are for. The stream sits in the top byte of the step, which leaves 2^56 steps.
enum class Stream : uint32_t {
  noise = 0,           // η, the white noise of a step
  momentum_noise = 1,  // η', the noise of full-step momenta
  redraw = 2,          // thermal momenta at a start or a reset
  minibatch = 3,       // the mini-batch at the start of a step
  minibatch_end = 4,   // the second mini-batch of the paper's scheme
  estimate = 5,        // mini-batches that measure the gradient noise
  decision = 6,        // whether an adaptation resets
  trajectory = 7,      // momenta of a hybrid Monte Carlo trajectory
  acceptance = 8,      // whether its end is accepted
  length = 9,          // how many steps it has
  curvature = 10,      // where a search for the stiffest direction starts
  probe = 11,          // directions that measure rows of the Hessian
  subset = 12,         // examples whose Hessian gives the stiffest directions
  dropout = 13,        // what training drops
};

struct Words {
  uint32_t word[4];
};

THERMOSPHERE_INLINE Words philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                                     uint32_t k1) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t high0 = static_cast<uint32_t>(product0 >> 32);
    const uint32_t high1 = static_cast<uint32_t>(product1 >> 32);
    c0 = high1 ^ c1 ^ k0;
    c2 = high0 ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return Words{{c0, c1, c2, c3}};
}

// Everything of a draw but the index, split into words once.
struct Draw {
  uint32_t key0, key1;    // seed
  uint32_t chain;         // chain identity, not its row
  uint32_t step0, step1;  // step, with the stream in the top byte
};

THERMOSPHERE_INLINE Draw make_draw(uint64_t seed, Stream stream, uint32_t chain, uint64_t step) {
  return Draw{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32), chain,
              static_cast<uint32_t>(step),
              (static_cast<uint32_t>(step >> 32) & 0x00FFFFFFu) | (static_cast<uint32_t>(stream) << 24)};
}

// Words of elements 4 * quad ... 4 * quad + 3.
THERMOSPHERE_INLINE Words draw_words(const Draw& draw, uint32_t quad) {
  return philox4x32(quad, draw.chain, draw.step0, draw.step1, draw.key0, draw.key1);
}

}  // namespace thermosphere
