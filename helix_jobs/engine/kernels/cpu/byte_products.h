// Products of a tile of weights with rounded activations.
//
// The levels of a group are summed exactly, as whole numbers; the groups of a row are summed in float32, in their order.
// So a token's sums are the same bits in whichever way, and beside whichever tokens, they are computed.

#pragma once

#include "byte_tiles.h"

namespace {

// Products of sixteen rows as numbers: times the scales of the weights and that of the activations.
inline vf add_products(vf sum, vi products, vf scales, float of_block) {
#if defined(__AVX512F__)
    __m512 both = _mm512_mul_ps((__m512)scales, _mm512_set1_ps(of_block));
    return (vf)_mm512_fmadd_ps(_mm512_cvtepi32_ps((__m512i)products), both, (__m512)sum);
#else
    return sum + __builtin_convertvector(products, vf) * (scales * of_block);
#endif
}

// What a shift of all levels has taken from the products, with the sum of the activations.
template <int kTaken>
inline vi given_back(int32_t whole) {
    if constexpr (kTaken == 0) return vi{};
#if HAS_VNNI
    __m512i taken = _mm512_set1_epi32(kTaken & 0xffff), none = _mm512_setzero_si512();
    return (vi)_mm512_dpwssd_epi32(none, taken, _mm512_set1_epi32(whole));
#else
    return vi{} + kTaken * whole;
#endif
}

inline uint32_t word_at(const int8_t *p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

// How many products of pairs are summed in sixteen bits: as many as do not overflow.
template <typename Block>
constexpr int kSummed = is_signed<Block> ? 1 : 32767 / (2 * 127 * kMost<Block>);

#if HAS_VNNI
constexpr int kTokens = 8;
#elif defined(__AVX2__)
constexpr int kTokens = 2;
#else
constexpr int kTokens = 1;
#endif

// Adds the products of one group of a tile's rows with kT tokens, whose chunks follow each other.
template <typename Block, int kT>
inline void group_products(const uint8_t *words, const RoundedChunk *x, int64_t column, vi *products) {
    constexpr int kSteps = Block::kSame / 4;
#if HAS_VNNI
    __m512i sums[kT];
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++) sums[t] = (__m512i)products[t];
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; step++) {
        __m512i levels = _mm512_load_si512(words + step * kWord);
#pragma GCC unroll 8
        for (int t = 0; t < kT; t++) {
            __m512i some = _mm512_set1_epi32(static_cast<int>(word_at(x[t].values + column + 4 * step)));
            sums[t] = _mm512_dpbusd_epi32(sums[t], levels, some);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++) products[t] = (vi)sums[t];
#elif defined(__AVX2__)
    constexpr int kRun = kSummed<Block> > kSteps ? kSteps : kSummed<Block>;
    const __m256i ones = _mm256_set1_epi16(1);
    for (int half = 0; half < 2; half++) {
        __m256i sums[kT];
        for (int t = 0; t < kT; t++) std::memcpy(sums + t, reinterpret_cast<char *>(products + t) + 32 * half, 32);
        for (int first = 0; first < kSteps; first += kRun) {
            __m256i pairs[kT];
            for (int t = 0; t < kT; t++) pairs[t] = _mm256_setzero_si256();
            for (int step = first; step < std::min(kSteps, first + kRun); step++) {
                __m256i levels = _mm256_load_si256(reinterpret_cast<const __m256i *>(words + step * kWord + 32 * half));
                for (int t = 0; t < kT; t++) {
                    __m256i some = _mm256_set1_epi32(static_cast<int>(word_at(x[t].values + column + 4 * step)));
                    __m256i more = is_signed<Block>
                                       ? _mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(some, levels))
                                       : _mm256_maddubs_epi16(levels, some);
                    pairs[t] = _mm256_add_epi16(pairs[t], more);
                }
            }
            for (int t = 0; t < kT; t++) sums[t] = _mm256_add_epi32(sums[t], _mm256_madd_epi16(pairs[t], ones));
        }
        for (int t = 0; t < kT; t++) std::memcpy(reinterpret_cast<char *>(products + t) + 32 * half, sums + t, 32);
    }
#else
    for (int t = 0; t < kT; t++) {
        vi sums = products[t];
        for (int step = 0; step < kSteps; step++)
            for (int row = 0; row < kPanel; row++)
                for (int i = 0; i < 4; i++)
                    sums[row] += static_cast<int8_t>(words[step * kWord + 4 * row + i]) * x[t].values[column + 4 * step + i];
        products[t] = sums;
    }
#endif
}

// Goes on with the sums of kT tokens, [token][row], for a tile of so many columns.
template <typename Block, int kT>
__attribute__((noinline)) void add_tile(const Tile &tile, const RoundedChunk *x, int64_t columns,
                                        float (*sums)[kPanel]) {
    constexpr int kGroups = kChunk / Block::kSame, kEach = kBlock / Block::kSame;
    vf own[kT];
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++) own[t] = load16(sums[t]);
    for (int64_t k = 0; k < columns; k += kBlock)
#pragma GCC unroll 2
        for (int part = 0; part < kEach; part++) {
            int64_t group = k / Block::kSame + part, column = k + part * Block::kSame;
            vi products[kT];
#pragma GCC unroll 8
            for (int t = 0; t < kT; t++)
                products[t] =
                    given_back<kShift<Block>>(kEach == 1 ? x[t].block_wholes[k / kBlock] : x[t].part_wholes[group]);
            group_products<Block, kT>(tile.words + column / 4 * kWord, x, column, products);
            vf scales = load16(tile.factors + group * kPanel);
#pragma GCC unroll 8
            for (int t = 0; t < kT; t++) own[t] = add_products(own[t], products[t], scales, x[t].scales[k / kBlock]);
            if constexpr (Block::kHasOffsets) {
                vf offsets = load16(tile.factors + (kGroups + group) * kPanel);
#pragma GCC unroll 8
                for (int t = 0; t < kT; t++)
                    own[t] += offsets * (kEach == 1 ? x[t].block_sums[k / kBlock] : x[t].part_sums[group]);
            }
        }
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++) store16(sums[t], own[t]);
}

template <typename Block>
void multiply_tile(const Tile &tile, const RoundedChunk *x, int64_t tokens, int64_t columns, float (*sums)[kPanel]) {
    int64_t t = 0;
    for (; t + kTokens <= tokens; t += kTokens) add_tile<Block, kTokens>(tile, x + t, columns, sums + t);
    if constexpr (kTokens > 4)
        for (; t + 4 <= tokens; t += 4) add_tile<Block, 4>(tile, x + t, columns, sums + t);
    for (; t < tokens; t++) add_tile<Block, 1>(tile, x + t, columns, sums + t);
}

}  // namespace
