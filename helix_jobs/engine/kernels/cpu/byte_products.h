// Products of a tile of weights with rounded activations.
//
// The levels of a group are summed exactly, as whole numbers; the groups of a row are summed in float32, in their order.
// So a token's sums are the same bits in whichever way, and beside whichever tokens, they are computed.

#pragma once

#include "byte_tiles.h"

namespace {

// One register of numbers, of which a tile's rows fill one or several; and the tokens whose sums stay in registers.
#if HAS_VNNI
constexpr int kWide = 16, kTokens = 8;
#elif defined(__AVX2__)
constexpr int kWide = 8, kTokens = 4;
#else
constexpr int kWide = 4, kTokens = 4;
#endif
typedef float Sums __attribute__((vector_size(4 * kWide)));
typedef int32_t Wholes __attribute__((vector_size(4 * kWide)));
inline Sums load_sums(const float *p) {
    Sums v;
    std::memcpy(&v, p, sizeof v);
    return v;
}

// Products of some rows as numbers: times the scales of the weights and that of the activations.
inline Sums add_products(Sums sums, Wholes products, Sums scales, float of_block) {
    return sums + __builtin_convertvector(products, Sums) * (scales * of_block);
}

// What a shift of all levels has taken from the products, with the sum of the activations.
template <int kTaken>
inline Wholes given_back(int32_t whole) {
    if constexpr (kTaken == 0) return Wholes{};
#if HAS_VNNI
    __m512i taken = _mm512_set1_epi32(kTaken & 0xffff), none = _mm512_setzero_si512();
    return (Wholes)_mm512_dpwssd_epi32(none, taken, _mm512_set1_epi32(whole));
#else
    return Wholes{} + kTaken * whole;
#endif
}

// Four values of a token, as they are multiplied with four columns of each row.
inline Wholes four_values(const int8_t *p) {
    int32_t word;
    std::memcpy(&word, p, sizeof word);
    return Wholes{} + word;
}

// How many products of pairs are summed in sixteen bits: as many as do not overflow.
template <typename Block>
constexpr int kSummed = is_signed<Block> ? 1 : 32767 / (2 * 127 * kMost<Block>);

// Adds the products of one group of kWide rows with kT tokens, whose chunks follow each other.
template <typename Block, int kT>
inline void group_products(const uint8_t *words, const RoundedChunk *x, int64_t column, Wholes *products) {
    constexpr int kSteps = Block::kSame / 4;
#if HAS_VNNI
#pragma GCC unroll 8
    for (int step = 0; step < kSteps; step++) {
        __m512i levels = _mm512_load_si512(words + step * kWord);
#pragma GCC unroll 8
        for (int t = 0; t < kT; t++) {
            __m512i some = (__m512i)four_values(x[t].values + column + 4 * step);
            products[t] = (Wholes)_mm512_dpbusd_epi32((__m512i)products[t], levels, some);
        }
    }
#elif defined(__AVX2__)
    constexpr int kPower = kSummed<Block> >= 8 ? 8 : kSummed<Block> >= 4 ? 4 : kSummed<Block> >= 2 ? 2 : 1;
    constexpr int kRun = std::min(kSteps, kPower);
    const __m256i ones = _mm256_set1_epi16(1);
#pragma GCC unroll 8
    for (int first = 0; first < kSteps; first += kRun) {
        __m256i pairs[kT];
#pragma GCC unroll 8
        for (int step = first; step < first + kRun; step++) {
            __m256i levels = _mm256_load_si256(reinterpret_cast<const __m256i *>(words + step * kWord));
#pragma GCC unroll 8
            for (int t = 0; t < kT; t++) {
                __m256i some = (__m256i)four_values(x[t].values + column + 4 * step);
                __m256i more = is_signed<Block>
                                   ? _mm256_maddubs_epi16(_mm256_abs_epi8(levels), _mm256_sign_epi8(some, levels))
                                   : _mm256_maddubs_epi16(levels, some);
                pairs[t] = step == first ? more : _mm256_add_epi16(pairs[t], more);
            }
        }
#pragma GCC unroll 8
        for (int t = 0; t < kT; t++) products[t] += (Wholes)_mm256_madd_epi16(pairs[t], ones);
    }
#else
    // Four products of each row lie side by side. Two products of eight bits fit into sixteen, and are summed in pairs.
    typedef int8_t Few __attribute__((vector_size(4 * kWide)));
    typedef int16_t Products __attribute__((vector_size(8 * kWide)));
    typedef int32_t Pairs __attribute__((vector_size(8 * kWide)));
    Pairs sums[kT] = {};
    for (int step = 0; step < kSteps; step++) {
        Few levels;
        std::memcpy(&levels, words + step * kWord, sizeof levels);
        Products wide = __builtin_convertvector(levels, Products);
        for (int t = 0; t < kT; t++) {
            Few some = (Few)four_values(x[t].values + column + 4 * step);
            Pairs both = (Pairs)(wide * __builtin_convertvector(some, Products));
            sums[t] += (both >> 16) + (both << 16 >> 16);
        }
    }
    for (int t = 0; t < kT; t++)
        for (int row = 0; row < kWide; row++) products[t][row] += sums[t][2 * row] + sums[t][2 * row + 1];
#endif
}

// Goes on with the sums of kT tokens, [token][row], for a tile of so many columns.
template <typename Block, int kT>
__attribute__((noinline)) void add_tile(const Tile &tile, const RoundedChunk *x, int64_t columns,
                                        float (*sums)[kPanel]) {
    constexpr int kGroups = kChunk / Block::kSame, kEach = kBlock / Block::kSame;
    for (int row = 0; row < kPanel; row += kWide) {
        Sums own[kT];
#pragma GCC unroll 8
        for (int t = 0; t < kT; t++) own[t] = load_sums(sums[t] + row);
        for (int64_t k = 0; k < columns; k += kBlock)
#pragma GCC unroll 2
            for (int part = 0; part < kEach; part++) {
                int64_t block = k / kBlock, group = k / Block::kSame + part, column = k + part * Block::kSame;
                Wholes products[kT];
#pragma GCC unroll 8
                for (int t = 0; t < kT; t++)
                    products[t] =
                        given_back<kShift<Block>>(kEach == 1 ? x[t].block_wholes[block] : x[t].part_wholes[group]);
                group_products<Block, kT>(tile.words + column / 4 * kWord + 4 * row, x, column, products);
                Sums scales = load_sums(tile.factors + group * kPanel + row);
#pragma GCC unroll 8
                for (int t = 0; t < kT; t++) own[t] = add_products(own[t], products[t], scales, x[t].scales[block]);
                if constexpr (Block::kHasOffsets) {
                    Sums offsets = load_sums(tile.factors + (kGroups + group) * kPanel + row);
#pragma GCC unroll 8
                    for (int t = 0; t < kT; t++)
                        own[t] += offsets * (kEach == 1 ? x[t].block_sums[block] : x[t].part_sums[group]);
                }
            }
#pragma GCC unroll 8
        for (int t = 0; t < kT; t++) std::memcpy(sums[t] + row, &own[t], sizeof own[t]);
    }
}

#if HAS_VNNI
// Four vectors of sixteen numbers become one: for each part of four numbers, their sums in each of the four.
inline __m512i sums_of_fours(const __m512i four[4]) {
    __m512i first = _mm512_add_epi32(_mm512_unpacklo_epi32(four[0], four[1]), _mm512_unpackhi_epi32(four[0], four[1]));
    __m512i second = _mm512_add_epi32(_mm512_unpacklo_epi32(four[2], four[3]), _mm512_unpackhi_epi32(four[2], four[3]));
    return _mm512_add_epi32(_mm512_unpacklo_epi64(first, second), _mm512_unpackhi_epi64(first, second));
}

// What `group_products` gives for one token, for 64 columns of rows that are not transposed. Whole sums are exact, so
// these are the same. Transposing takes longer than the products of a token or two.
template <typename Block>
inline void row_products(const Tile &tile, const RoundedChunk &x, int64_t k, int64_t columns, Wholes *products) {
    __mmask64 there = columns - k >= 64 ? ~0ULL : (1ULL << (columns - k)) - 1;
    __m512i some = _mm512_maskz_loadu_epi8(there, x.values + k), quarters[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        __m512i four[4];
#pragma GCC unroll 4
        for (int row = 0; row < 4; row++)
            four[row] = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_load_si512(tile.rows[4 * i + row] + k), some);
        quarters[i] = sums_of_fours(four);
    }
    // Each quarter has four rows of four parts of sixteen columns.
    if constexpr (Block::kSame == kBlock) {
        __m512i halves[2];
        for (int i = 0; i < 2; i++)
            halves[i] = _mm512_add_epi32(_mm512_shuffle_i32x4(quarters[2 * i], quarters[2 * i + 1], 0x88),
                                         _mm512_shuffle_i32x4(quarters[2 * i], quarters[2 * i + 1], 0xdd));
        products[0] += (Wholes)_mm512_shuffle_i32x4(halves[0], halves[1], 0x88);
        products[1] += (Wholes)_mm512_shuffle_i32x4(halves[0], halves[1], 0xdd);
    } else {
        __m512i low[2], high[2];
        for (int i = 0; i < 2; i++) {
            low[i] = _mm512_shuffle_i32x4(quarters[2 * i], quarters[2 * i + 1], 0x44);
            high[i] = _mm512_shuffle_i32x4(quarters[2 * i], quarters[2 * i + 1], 0xee);
        }
        products[0] += (Wholes)_mm512_shuffle_i32x4(low[0], low[1], 0x88);
        products[1] += (Wholes)_mm512_shuffle_i32x4(low[0], low[1], 0xdd);
        products[2] += (Wholes)_mm512_shuffle_i32x4(high[0], high[1], 0x88);
        products[3] += (Wholes)_mm512_shuffle_i32x4(high[0], high[1], 0xdd);
    }
}

// As `add_tile` for one token, whose tile is not transposed.
template <typename Block>
void add_rows(const Tile &tile, const RoundedChunk &x, int64_t columns, float *sums) {
    constexpr int kGroups = kChunk / Block::kSame, kEach = kBlock / Block::kSame, kStep = 64 / Block::kSame;
    Sums own = load_sums(sums);
    for (int64_t k = 0; k < columns; k += 64) {
        int64_t first = k / Block::kSame, there = std::min<int64_t>(kStep, (columns - k) / Block::kSame);
        Wholes products[kStep];
#pragma GCC unroll 4
        for (int i = 0; i < kStep; i++)
            products[i] = given_back<kShift<Block>>(kEach == 1 ? x.block_wholes[first + i] : x.part_wholes[first + i]);
        row_products<Block>(tile, x, k, columns, products);
#pragma GCC unroll 4
        for (int i = 0; i < kStep; i++) {
            if (i >= there) break;
            int64_t group = first + i;
            own = add_products(own, products[i], load_sums(tile.factors + group * kPanel), x.scales[group / kEach]);
            if constexpr (Block::kHasOffsets)
                own += load_sums(tile.factors + (kGroups + group) * kPanel) *
                       (kEach == 1 ? x.block_sums[group] : x.part_sums[group]);
        }
    }
    std::memcpy(sums, &own, sizeof own);
}
#endif

// A tile that is to be multiplied with so many tokens has to be transposed first.
inline bool needs_transposing(int64_t tokens) { return !HAS_VNNI || tokens > 2; }

template <typename Block>
void multiply_tile(const Tile &tile, const RoundedChunk *x, int64_t tokens, int64_t columns, float (*sums)[kPanel]) {
    int64_t t = 0;
#if HAS_VNNI
    if (!needs_transposing(tokens))
        for (; t < tokens; t++) add_rows<Block>(tile, x[t], columns, sums[t]);
#endif
    for (; t + kTokens <= tokens; t += kTokens) add_tile<Block, kTokens>(tile, x + t, columns, sums + t);
    if constexpr (kTokens > 4)
        for (; t + 4 <= tokens; t += 4) add_tile<Block, 4>(tile, x + t, columns, sums + t);
    for (; t + 2 <= tokens; t += 2) add_tile<Block, 2>(tile, x + t, columns, sums + t);
    for (; t < tokens; t++) add_tile<Block, 1>(tile, x + t, columns, sums + t);
}

}  // namespace
