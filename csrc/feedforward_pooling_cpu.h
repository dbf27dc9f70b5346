// The mean over visible sites of U = LN1(E[s] + PE) without forming a row of U. With E', PE' the rows less
// their means and r_ja = 1/σ of E[a] + PE_j, a table of n × V numbers made once a chain,
//
//   Σ_j x̂_j = Σ_a (Σ_j r_ja [s_j = a]) E'_a + Σ_j r_ja PE'_j        a row of V + n numbers times [E'; PE']
//
// a sequence, and slopes go the same way back: to E', and to r, whose share in E' is added once a chain
// (finish_pooling). A table of U would be 0.46 MB a chain at the published size, and its slope as much a
// group; r is 11 kB.
#pragma once

#include "encoder_tables_cpu.h"

namespace thermosphere {
namespace {

// out = row less its mean.
void centre(int size, const float* row, float* out) {
  float total = 0.0f;
  for (int k = 0; k < size; ++k) total += row[k];
  const float mean = total / static_cast<float>(size);
  for (int k = 0; k < size; ++k) out[k] = row[k] - mean;
  for (int k = size; k < padded(size); ++k) out[k] = 0.0f;
}

// E' and PE', and both transposed. embedding: E, its rows d floats apart.
void centre_rows(const EncoderLayout& at, const EncoderShape& s, const PositionalCodes& codes,
                 const float* embedding, float* packed) {
  const int n = s.length, d = s.embedding, wide = padded(d);
  float* centred = packed + at.feedforward_tables.centred;
  for (int a = 0; a < s.tokens; ++a) centre(d, embedding + a * d, centred + a * wide);
  for (int j = 0; j < n; ++j) centre(d, codes.embedding + j * wide, centred + (s.tokens + j) * wide);
  pack_transposed(s.tokens + n, d, centred, wide, packed + at.feedforward_tables.centred_t);
}

// r at the sites `own`.
void make_pooling_table(const EncoderLayout& at, const EncoderShape& s, float* packed, PieceRows own) {
  const int d = s.embedding, wide = padded(d), classes = padded(s.tokens);
  const FeedForwardTables& t = at.feedforward_tables;
  const float* code = packed + t.centred + s.tokens * wide;
  const float share = 1.0f / static_cast<float>(d);
  for (int j = own.first; j < own.last; ++j)
    for (int a = 0; a < classes; a += lanes) {  // what falls beyond V is finite and never read
      const float* column = packed + t.centred_t + a / 32 * 32 * d + a % 32;
      Vec squares{};
      for (int k = 0; k < d; ++k) {
        const Vec x = load(column + 32 * k) + code[j * wide + k];
        squares += x * x;
      }
      float variance[lanes];
      store(variance, squares * share + norm_epsilon);
      float* scale = packed + t.scale + j * classes + a;
      for (int i = 0; i < lanes; ++i) scale[i] = 1.0f / __builtin_sqrtf(variance[i]);
    }
}

// A pack's sequences, one a row.
struct Pooling {
  float* mix;     // (· × padded(V + n)), the row of the formula above over the number of visible sites
  float* normal;  // (· × padded(d)), mean of x̂
  float* pooled;  // (· × padded(d)), g; 0 where no site is visible
  float share[encoder_sequences_max];  // 1 / visible sites; 0 where there is none
};

Pooling make_pooling(Arena& arena, const EncoderShape& s, int sequences) {
  Pooling p{};
  p.mix = arena.take(static_cast<ptrdiff_t>(sequences) * padded(s.tokens + s.length));
  p.normal = arena.take(static_cast<ptrdiff_t>(sequences) * padded(s.embedding));
  p.pooled = arena.take(static_cast<ptrdiff_t>(sequences) * padded(s.embedding));
  return p;
}

void pool(const Model& model, const Pack& pack, Pooling& p) {
  const EncoderShape& s = model.s;
  const FeedForwardTables& t = model.at.feedforward_tables;
  const int wide = model.wide(), width = padded(s.tokens + s.length), classes = padded(s.tokens);
  const float* scale = model.packed + t.scale;
  for (int q = 0; q < pack.sequences; ++q) {
    float* mix = p.mix + q * width;
    for (int k = 0; k < width; k += lanes) store(mix + k, Vec{});
    int visible = 0;
    for (int j = 0; j < s.length; ++j) {
      const int token = pack.tokens[q][j];
      if (token == s.tokens - 1) continue;
      const float r = scale[j * classes + token];
      mix[token] += r;
      mix[s.tokens + j] = r;
      ++visible;
    }
    p.share[q] = visible > 0 ? 1.0f / static_cast<float>(visible) : 0.0f;
    for (int k = 0; k < width; k += lanes) store(mix + k, load(mix + k) * p.share[q]);
  }
  multiply(pack.sequences, wide, s.tokens + s.length, rows_of(p.mix, width),
           plain(model.packed + t.centred, wide), p.normal, wide);
  const float* gain = model.vector(model.at.feedforward.gain1);
  const float* bias = model.vector(model.at.feedforward.bias1);
  for (int q = 0; q < pack.sequences; ++q)
    for (int k = 0; k < wide; k += lanes) {
      const Vec g = load(p.normal + q * wide + k) * load(gain + k) + load(bias + k);
      store(p.pooled + q * wide + k, p.share[q] > 0.0f ? g : Vec{});
    }
}

// From dg (· × padded(d), overwritten) to the slopes of γ, β, E' and r. `work` as mix.
void pool_backward(const Model& model, const Pack& pack, const Pooling& p, float* slope, float* work) {
  const EncoderShape& s = model.s;
  const FeedForwardTables& t = model.at.feedforward_tables;
  const int wide = model.wide(), both = s.tokens + s.length, width = padded(both), classes = padded(s.tokens);
  const float* gain = model.vector(model.at.feedforward.gain1);
  float* gain_slope = model.slope(model.at.feedforward.gain1);
  float* bias_slope = model.slope(model.at.feedforward.bias1);
  for (int q = 0; q < pack.sequences; ++q)
    for (int k = 0; k < wide; k += lanes) {
      float* at = slope + q * wide + k;
      const Vec dg = p.share[q] > 0.0f ? load(at) : Vec{};
      store(gain_slope + k, load(gain_slope + k) + dg * load(p.normal + q * wide + k));
      store(bias_slope + k, load(bias_slope + k) + dg);
      store(at, dg * load(gain + k));
    }
  multiply_add(s.tokens, wide, pack.sequences, transposed(p.mix, width), plain(slope, wide),
               model.gradient + t.centred_slope, wide);
  multiply(pack.sequences, width, s.embedding, rows_of(slope, wide),
           Right{model.packed + t.centred_t, 32, 32L * s.embedding}, work, width);
  float* scale_slope = model.gradient + t.scale_slope;
  for (int q = 0; q < pack.sequences; ++q) {
    const float* dot = work + q * width;
    for (int j = 0; j < s.length; ++j) {
      const int token = pack.tokens[q][j];
      if (token == s.tokens - 1) continue;
      scale_slope[j * classes + token] += p.share[q] * (dot[token] + dot[s.tokens + j]);
    }
  }
}

// r = (|x'|²/d + eps)^-½ of x' = E'_a + PE'_j, so dE'_a += Σ_j c_ja x' with c = -dr r³/d, here in the place
// of dr at the sites `own`;
void pooling_coefficients(const EncoderLayout& at, const EncoderShape& s, const float* packed,
                          float* gradient, PieceRows own) {
  const int classes = padded(s.tokens);
  const FeedForwardTables& t = at.feedforward_tables;
  const float* scale = packed + t.scale;
  float* coefficient = gradient + t.scale_slope;
  for (int i = own.first * classes; i < own.last * classes; i += lanes) {
    const Vec r = load(scale + i);
    store(coefficient + i, load(coefficient + i) * r * r * r * (-1.0f / static_cast<float>(s.embedding)));
  }
}

// then dE_a is dE'_a less its mean, for some of the residues.
void finish_pooling(const EncoderLayout& at, const EncoderShape& s, const float* packed, float* gradient,
                    int64_t piece) {
  const int n = s.length, d = s.embedding, wide = padded(d), classes = padded(s.tokens);
  const FeedForwardTables& t = at.feedforward_tables;
  const PieceRows own = piece_rows(s.tokens, piece);
  const float* coefficient = gradient + t.scale_slope;
  float* centred_slope = gradient + t.centred_slope;
  multiply_add(own.last - own.first, wide, n, transposed(coefficient + own.first, classes),
               plain(packed + t.centred + s.tokens * wide, wide), centred_slope + own.first * wide, wide);
  for (int a = own.first; a < own.last; ++a) {
    float total = 0.0f;
    for (int j = 0; j < n; ++j) total += coefficient[j * classes + a];
    float* slope = centred_slope + a * wide;
    for (int k = 0; k < wide; k += lanes)
      store(slope + k, load(slope + k) + load(packed + t.centred + a * wide + k) * total);
    float row[encoder_embedding_max];
    centre(d, slope, row);
    float* out = gradient + at.embedding.gradient + a * wide;
    for (int k = 0; k < wide; k += lanes) store(out + k, load(out + k) + load(row + k));
  }
}

}  // namespace
}  // namespace thermosphere
