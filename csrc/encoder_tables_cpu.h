// One block: attention without X. Every query sits at a mask, x_i = E[mask] + PE_i, so with q_i = x_i Wqkᵀ
// log2(e) / √d, a row of a table of n sites,
//
//   S_ij = q_i·PE_j + q_i·E[s_j]        two look-ups instead of a product with Xᵀ;  A_ij = 2^S_ij / Σ_j
//   2^S_ij A X  = A PE + P E,   P_ia = Σ_j A_ij [s_j = a]
//
// and a sequence's embedded X is not formed where a gradient follows. All products are over the rows of the
// whole pack; slopes of the two tables are gathered over the batch and turned into those of Wqk and E once a
// chain (finish_tables). Exact; 1.2 times fewer operations for tf1.
#pragma once

#include "encoder_rows_cpu.h"
#include "token_sums_cpu.h"

namespace thermosphere {
namespace {

THERMOSPHERE_ALWAYS float score_scale(int d) { return log2_of_e / __builtin_sqrtf(static_cast<float>(d)); }

THERMOSPHERE_ALWAYS float largest_of(const float* x, int size) {
  float top = x[0];
  for (int i = 1; i < size; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// Of the sites `own`.
void make_tables(const EncoderLayout& at, const EncoderShape& s, const PositionalCodes& codes, float* packed,
                 PieceRows own) {
  const int n = s.length, d = s.embedding, wide = padded(d), mask = s.tokens - 1,
            sites = own.last - own.first;
  const EncoderTables& t = at.tables;
  const float* mask_row = packed + at.embedding_rows + static_cast<ptrdiff_t>(mask) * wide;
  const float scale = score_scale(d);
  const ptrdiff_t first = own.first;
  float* rows = packed + t.rows + first * wide;
  float* queries = packed + t.queries + first * wide;
  for (int i = 0; i < sites; ++i)
    for (int k = 0; k < wide; k += lanes)
      store(rows + i * wide + k, load(mask_row + k) + load(codes.embedding + (first + i) * wide + k));
  multiply(sites, wide, d, rows_of(rows, wide), Right{packed + at.block[0].query_key.forward, 32, 32L * d},
           queries, wide);
  for (int i = 0; i < sites * wide; i += lanes) store(queries + i, load(queries + i) * scale);
  float* by_site = packed + t.by_site + first * padded(n);
  multiply(sites, padded(n), d, rows_of(queries, wide), Right{packed + t.code, 32, 32L * d}, by_site,
           padded(n));
  for (int i = 0; i < sites; ++i)  // no key in the padding: 2^-1e30 is 0
    for (int j = n; j < padded(n); ++j) by_site[i * padded(n) + j] = -1e30f;
  const int classes = padded(s.tokens);
  float* by_token = packed + t.by_token + first * classes;
  multiply(sites, classes, d, rows_of(queries, wide), Right{packed + at.embedding.forward, 32, 32L * d},
           by_token, classes);
  for (int i = 0; i < sites; ++i)
    packed[t.bound + first + i] =
        largest_of(by_site + i * padded(n), n) + largest_of(by_token + i * classes, s.tokens);
}

// table[token_j] for the sites of a sequence, lanes at a time. Up to 32 tokens fit two AVX-512 registers, and
// a look-up is one permutation of them; elsewhere it is a load an element.
struct TokenLookup {
  IntVec index[encoder_length_max / lanes];
  const uint8_t* tokens;

  void read(const uint8_t* sequence, [[maybe_unused]] int n) {
    tokens = sequence;
#if defined(__AVX512F__)
    int32_t wide[encoder_length_max];
    for (int j = 0; j < n; ++j) wide[j] = sequence[j];
    for (int j = n; j < padded(n); ++j) wide[j] = 0;
    for (int j = 0; j < padded(n); j += lanes) __builtin_memcpy(&index[j / lanes], wide + j, sizeof(IntVec));
#endif
  }

  // take(j, base_j + table[token_j], …) a vector of sites at a time; in the padding base_j, and perhaps
  // table[0]. `room`: padded(n), may be `base`.
  template <class Take>
  THERMOSPHERE_METHOD void add(const float* table, int classes, int n, const float* base, float* room,
                               const Take& take) const {
#if defined(__AVX512F__)
    if (classes == 32) {
      const Vec low = load(table), high = load(table + 16);
      for (int j = 0; j < padded(n); j += lanes) {
        const __m512i at = reinterpret_cast<__m512i>(index[j / lanes]);
        take(j, load(base + j) + reinterpret_cast<Vec>(_mm512_permutex2var_ps(low, at, high)));
      }
      return;
    }
#endif
    (void)classes;
    for (int j = 0; j < n; ++j) room[j] = base[j] + table[tokens[j]];
    for (int j = n; j < padded(n); ++j) room[j] = base[j];
    for (int j = 0; j < padded(n); j += lanes) take(j, load(room + j));
  }
};

// 2^(S - b) (rows × padded(n)) of a sequence's rows, and 1/Σ of each. b is a bound of S for any sequence, the
// largest of one table and that of the other: there is nothing to look for first. Where it is so far above S
// that exponentials are lost, b is the largest S.
void table_scores(const Model& model, const TokenLookup& lookup, int rows, const int* site, float* a,
                  float* share) {
  const EncoderTables& t = model.at.tables;
  const int n = model.s.length, width = padded(n), classes = padded(model.s.tokens);
  for (int i = 0; i < rows; ++i) {
    float* ai = a + static_cast<ptrdiff_t>(i) * width;
    const float* by_site = model.packed + t.by_site + static_cast<ptrdiff_t>(site[i]) * width;
    const float* by_token = model.packed + t.by_token + static_cast<ptrdiff_t>(site[i]) * classes;
    const auto exponentials = [&](float bound) __attribute__((always_inline)) {
      Vec total{};
      lookup.add(by_token, classes, n, by_site, ai, [&](int j, Vec score) __attribute__((always_inline)) {
        const Vec e = exp2_nonpositive(score - bound);
        store(ai + j, e);
        total += e;
      });
      return sum(total);
    };
    float total = exponentials(model.packed[t.bound + site[i]]);
    if (!(total > 0x1p-60f)) {
      Vec top = splat(-__builtin_inff());
      lookup.add(by_token, classes, n, by_site, ai,
                 [&](int, Vec score) __attribute__((always_inline)) { top = larger(top, score); });
      total = exponentials(largest(top));
    }
    share[i] = 1.0f / total;
  }
}

// A and P (rows × padded(V)), for the backward pass too, and A X of a pack's sequences.
void table_attention(const Model& model, const Pack& pack, const int* site, float* a, float* p, float* share,
                     float* mixed) {
  const int n = model.s.length, width = padded(n), classes = padded(model.s.tokens), wide = model.wide();
  for (int q = 0; q < pack.sequences; ++q) {
    const int first = pack.first_row[q], rows = pack.first_row[q + 1] - first;
    TokenLookup lookup;
    lookup.read(pack.tokens[q], n);
    float* own = a + static_cast<ptrdiff_t>(first) * width;
    float* by_token = p + static_cast<ptrdiff_t>(first) * classes;
    table_scores(model, lookup, rows, site + first, own, share + first);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < width; j += lanes)
        store(own + i * width + j, load(own + i * width + j) * share[first + i]);
    for (int i = 0; i < rows * classes; i += lanes) store(by_token + i, Vec{});
    TokenSums sums;
    for (int i = 0; i < rows; i += lanes) {
      const int few = rows - i < lanes ? rows - i : lanes;
      sums.add(pack.tokens[q], n, classes, few, own + static_cast<ptrdiff_t>(i) * width, width);
      sums.write(classes, few, [&](int r) { return by_token + static_cast<ptrdiff_t>(i + r) * classes; });
    }
  }
  multiply(pack.rows, wide, n, rows_of(a, width), plain(model.codes.embedding, wide), mixed, wide);
  multiply_add(pack.rows, wide, model.s.tokens, rows_of(p, classes), model.backward(model.at.embedding),
               mixed, wide);
}

// A X alone: where nothing is asked of P, a sequence's X is made sooner than P is. x: n × wide.
void table_mixed(const Model& model, const Pack& pack, const int* site, float* a, float* x, float* share,
                 float* mixed) {
  const int n = model.s.length, width = padded(n), wide = model.wide();
  for (int q = 0; q < pack.sequences; ++q) {
    const int first = pack.first_row[q], rows = pack.first_row[q + 1] - first;
    TokenLookup lookup;
    lookup.read(pack.tokens[q], n);
    table_scores(model, lookup, rows, site + first, a, share);
    embed(model, pack.tokens[q], x);
    multiply(rows, wide, n, rows_of(a, width), plain(x, wide),
             ScaleRows{mixed + static_cast<ptrdiff_t>(first) * wide, wide, share});
  }
}

// From dA without its token part (rows × padded(n), overwritten) and that part by token (rows × padded(V)):
// the slopes of the tables.
void table_attention_backward(const Model& model, const uint8_t* tokens, int rows, const int* site,
                              const float* a, float* slope, const float* token_slope) {
  TokenLookup lookup;
  lookup.read(tokens, model.s.length);
  const int n = model.s.length, width = padded(n), classes = padded(model.s.tokens);
  float* by_site = model.gradient + model.at.tables.by_site_slope;
  float* by_token = model.gradient + model.at.tables.by_token_slope;
  for (int i = 0; i < rows; ++i) {
    const float* ai = a + static_cast<ptrdiff_t>(i) * width;
    float* si = slope + static_cast<ptrdiff_t>(i) * width;
    const float* ti = token_slope + static_cast<ptrdiff_t>(i) * classes;
    Vec dot{};
    lookup.add(ti, classes, n, si, si, [&](int j, Vec slope_j) __attribute__((always_inline)) {
      store(si + j, slope_j);
      dot += load(ai + j) * slope_j;  // A is 0 in the padding, whatever slope there is
    });
    const float mean = sum(dot);
    float* own = by_site + static_cast<ptrdiff_t>(site[i]) * width;
    for (int j = 0; j < width; j += lanes) {
      const Vec ds = load(ai + j) * ((load(si + j) - mean) * (1.0f / log2_of_e));
      store(si + j, ds);
      store(own + j, load(own + j) + ds);
    }
  }
  TokenSums sums;
  for (int i = 0; i < rows; i += lanes) {
    const int few = rows - i < lanes ? rows - i : lanes;
    sums.add(tokens, n, classes, few, slope + static_cast<ptrdiff_t>(i) * width, width);
    sums.write(classes, few, [&](int r) { return by_token + static_cast<ptrdiff_t>(site[i + r]) * classes; });
  }
}

void one_block_pack(const Model& model, const Pack& pack, const int* site, const int32_t* target,
                    const float* row_weight, Arena arena, RowLoss& total) {
  const EncoderShape& s = model.s;
  const EncoderBlock& w = model.at.block[0];
  const int n = s.length, d = s.embedding, wide = model.wide(), width = padded(n), classes = padded(s.tokens);
  const int rows = pack.rows;
  BlockState b = make_block(arena, s, rows, 0);
  float* a = arena.take(static_cast<ptrdiff_t>(rows) * width);
  float* p = arena.take(static_cast<ptrdiff_t>(rows) * classes);
  float* share = arena.take(padded(rows));
  const float* table = model.packed + model.at.tables.rows;
  for (int i = 0; i < rows; ++i)
    for (int k = 0; k < wide; k += lanes)
      store(b.x + static_cast<ptrdiff_t>(i) * wide + k,
            load(table + static_cast<ptrdiff_t>(site[i]) * wide + k));
  if (model.gradient == nullptr)
    table_mixed(model, pack, site, a, arena.take(static_cast<ptrdiff_t>(n) * wide), share, b.mixed);
  else
    table_attention(model, pack, site, a, p, share, b.mixed);
  block_rows(model, w, b, rows, site);
  float* logits = arena.take(static_cast<ptrdiff_t>(rows) * classes);
  const RowLoss loss = head_rows(model, b.out, wide, rows, target, row_weight, logits);
  total.loss += loss.loss;
  total.error += loss.error;
  if (model.gradient == nullptr) return;

  float* slope = arena.take(static_cast<ptrdiff_t>(rows) * wide);
  float* mixed_slope = arena.take(static_cast<ptrdiff_t>(rows) * wide);
  float* hidden_work = arena.take(static_cast<ptrdiff_t>(rows) * model.hidden_stride());
  head_rows_backward(model, b.out, wide, rows, logits, slope);
  block_rows_backward(model, w, b, rows, slope, mixed_slope, hidden_work);
  float* embedding_slope = model.slope(model.at.embedding);
  multiply_add(s.tokens, wide, rows, transposed(p, classes), plain(mixed_slope, wide), embedding_slope, wide);
  add_columns(rows, wide, slope, wide, embedding_slope + static_cast<ptrdiff_t>(s.tokens - 1) * wide);
  float* a_slope = arena.take(static_cast<ptrdiff_t>(rows) * width);
  float* token_slope = arena.take(static_cast<ptrdiff_t>(rows) * classes);
  multiply(rows, width, d, rows_of(mixed_slope, wide),
           Right{model.packed + model.at.tables.code, 32, 32L * d}, a_slope, width);
  multiply(rows, classes, d, rows_of(mixed_slope, wide), model.forward(model.at.embedding), token_slope,
           classes);
  for (int q = 0; q < pack.sequences; ++q) {
    const ptrdiff_t first = pack.first_row[q];
    table_attention_backward(model, pack.tokens[q], pack.first_row[q + 1] - pack.first_row[q], site + first,
                             a + first * width, a_slope + first * width, token_slope + first * classes);
  }
}

// out (rows `own` of a table, `width` wide) += the same of the other groups.
void add_table_groups(PieceRows own, int width, ptrdiff_t stride, int64_t groups, float* table) {
  for (int64_t g = 1; g < groups; ++g)
    for (ptrdiff_t i = static_cast<ptrdiff_t>(own.first) * width;
         i < static_cast<ptrdiff_t>(own.last) * width; i += lanes)
      store(table + i, load(table + i) + load(table + g * stride + i));
}

// With s = log2(e) / √d, at some of the sites: dq = s (dS_site PE + dS_token E), dx = dq Wqk.
void attention_table_slopes(const EncoderLayout& at, const EncoderShape& s, const PositionalCodes& codes,
                            float* packed, float* partials, ptrdiff_t stride, int64_t groups, int64_t piece) {
  const int n = s.length, d = s.embedding, wide = padded(d), width = padded(n), classes = padded(s.tokens);
  const EncoderTables& t = at.tables;
  const PieceRows own = piece_rows(n, piece);
  const int sites = own.last - own.first;
  const ptrdiff_t first = own.first;
  add_table_groups(own, width, stride, groups, partials + t.by_site_slope);
  add_table_groups(own, classes, stride, groups, partials + t.by_token_slope);
  float* query_slope = packed + t.query_slope + first * wide;
  multiply(sites, wide, n, rows_of(partials + t.by_site_slope + first * width, width),
           plain(codes.embedding, wide), query_slope, wide);
  multiply_add(sites, wide, s.tokens, rows_of(partials + t.by_token_slope + first * classes, classes),
               Right{packed + at.embedding.backward, 32, 32L * s.tokens}, query_slope, wide);
  const float scale = score_scale(d);
  for (int i = 0; i < sites * wide; i += lanes) store(query_slope + i, load(query_slope + i) * scale);
  multiply(sites, wide, d, rows_of(query_slope, wide),
           Right{packed + at.block[0].query_key.backward, 32, 32L * d}, packed + t.row_slope + first * wide,
           wide);
}

// dE += dS_tokenᵀ q, dWqk += dqᵀ x, dE[mask] += Σ_i dx_i: some rows of each.
void finish_tables(const EncoderLayout& at, const EncoderShape& s, const float* packed, float* partials,
                   int64_t piece) {
  const int n = s.length, d = s.embedding, wide = padded(d), classes = padded(s.tokens);
  const EncoderTables& t = at.tables;
  const PieceRows tokens = piece_rows(s.tokens, piece), features = piece_rows(d, piece);
  float* embedding_slope = partials + at.embedding.gradient;
  multiply_add(tokens.last - tokens.first, wide, n,
               transposed(partials + t.by_token_slope + tokens.first, classes),
               plain(packed + t.queries, wide), embedding_slope + tokens.first * wide, wide);
  multiply_add(features.last - features.first, wide, n,
               transposed(packed + t.query_slope + features.first, wide), plain(packed + t.rows, wide),
               partials + at.block[0].query_key.gradient + features.first * wide, wide);
  if (tokens.last == s.tokens)
    add_columns(n, wide, packed + t.row_slope, wide, embedding_slope + (s.tokens - 1) * wide);
}

}  // namespace
}  // namespace thermosphere
