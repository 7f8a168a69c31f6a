// Sixteen rows of a weight in blocks, taken apart into bytes and scales for products with bytes.

#pragma once

#include <array>

#include "level_blocks.h"
#include "rounded_blocks.h"
#include "transpose.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#define HAS_VNNI 1
#else
#define HAS_VNNI 0
#endif

namespace {

constexpr int kPanel = 16;  // rows of a tile: one for each lane
constexpr int kWords = kChunk / 4, kWord = 4 * kPanel;

// How the levels of a layout are multiplied. VNNI takes bytes without sign. The others take bytes without sign up to 127,
// and signed ones where a level needs all eight bits.
template <typename Block>
constexpr int kMost = Block::kHighest - Block::kLowest;
template <typename Block>
constexpr bool is_signed = !HAS_VNNI && kMost<Block> > 127;

// What is taken from levels for that, and given back once their products are summed.
template <typename Block>
constexpr int kShift = is_signed<Block> ? 0 : Block::kLowest;

// weight = factors[group] * (level + kShift) + factors[groups + group], the second for layouts that have offsets.
struct alignas(64) Tile {
    uint8_t rows[kPanel][kChunk];          // as they are taken out of the blocks
    float row_factors[kPanel][2 * kParts]; // scales of each group of a row, then its offsets
    uint8_t words[kWords * kWord];         // four columns of each row at a time
    float factors[2 * kParts * kPanel];    // scales of each group of all rows, then its offsets
};

// Takes a piece of a row apart, at most kChunk columns of whole blocks.
template <typename Block>
inline void unpack_row(const uint8_t *blocks, int64_t columns, uint8_t *levels, float *factors) {
    float *scales = factors, *offsets = factors + kChunk / Block::kSame;
    for (int64_t k = 0; k < columns; k += Block::kWeights, blocks += Block::kBytes) {
        Block::levels(blocks, [&](Levels some) {
            Levels shifted = some - static_cast<int8_t>(kShift<Block>);
            std::memcpy(levels, &shifted, sizeof shifted);
            levels += sizeof shifted;
        });
        Block::factors(blocks, scales, offsets);
        scales += Block::kWeights / Block::kSame, offsets += Block::kWeights / Block::kSame;
    }
}

#if defined(__AVX2__) && defined(__F16C__)
// What four bits stand for, as it is multiplied.
template <typename Block>
inline Lanes levels_of(Lanes places) {
    alignas(16) static constexpr std::array<int8_t, 16> kLevels = [] {
        std::array<int8_t, 16> levels{};
        for (int i = 0; i < 16; i++) levels[i] = static_cast<int8_t>(Block::kTable[i] - kShift<Block>);
        return levels;
    }();
    constexpr bool is_place = [] {
        for (int i = 0; i < 16; i++)
            if (Block::kTable[i] - kShift<Block> != i) return false;
        return true;
    }();
    if constexpr (is_place) return places;
    __m256i table = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i *>(kLevels.data())));
#if defined(__AVX512F__)
    __m256i low = _mm256_shuffle_epi8(table, _mm512_castsi512_si256(places));
    __m256i high = _mm256_shuffle_epi8(table, _mm512_extracti64x4_epi64(places, 1));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
#else
    return _mm256_shuffle_epi8(table, places);
#endif
}

// Where sixteen rows of a weight lie. Rows behind the last are the last again: their sums go nowhere.
struct Rows {
    const uint8_t *first;
    int64_t row_bytes, count;
    const uint8_t *operator[](int64_t row) const { return first + std::min(row, count - 1) * row_bytes; }
};

// The levels of all rows in words. Levels of four bits are transposed before they are taken apart: two words at a time.
// A line is sixteen bytes: four words of its first columns are in the lower halves, four in the upper halves.
template <typename Block>
inline void transpose_nibbles(const Rows &rows, int64_t columns, uint8_t *words) {
    constexpr int kLine = 32, kBeside = sizeof(Lanes) / 4;
    static_assert(Block::kWeights == kLine, "a block is a line");
    typedef uint16_t Pairs __attribute__((vector_size(sizeof(Lanes))));
    for (int64_t k = 0; k < columns; k += kLine, words += kLine / 4 * kWord) {
        int64_t place = k / kLine * Block::kBytes + Block::kNibbles;
        for (int row = 0; row < kPanel; row += kBeside) {
            Lanes both[4];
            transpose_fours([&](int i) { return rows[row + i] + place; }, both);
            for (int i = 0; i < 4; i++) {
                Lanes lower = levels_of<Block>((Lanes)((Pairs)both[i] & 0x0f0f));
                Lanes upper = levels_of<Block>((Lanes)((Pairs)both[i] >> 4 & 0x0f0f));
                std::memcpy(words + i * kWord + 4 * row, &lower, sizeof lower);
                std::memcpy(words + (4 + i) * kWord + 4 * row, &upper, sizeof upper);
            }
        }
    }
}

// The scales of all rows, then their offsets, of blocks that begin with them.
template <typename Block>
inline void transpose_halves(const Rows &rows, int64_t columns, float *factors) {
    static_assert(Block::kWeights == Block::kSame, "a block has one scale");
    constexpr int kGroups = kChunk / Block::kSame;
    alignas(64) uint32_t heads[kGroups][kPanel];
    int64_t groups = columns / Block::kWeights;
    for (int64_t row = 0; row < kPanel; row++)
        for (int64_t group = 0; group < groups; group++)
            std::memcpy(&heads[group][row], rows[row] + group * Block::kBytes, sizeof heads[group][row]);
    for (int64_t i = 0; i < groups * kPanel; i += kLanes) {
        vu both;
        std::memcpy(&both, heads[0] + i, sizeof both);
        store16(factors + i, widened(__builtin_convertvector(both & 0xffff, vh)));
        if constexpr (Block::kHalves == 2)
            store16(factors + kGroups * kPanel + i, widened(__builtin_convertvector(both >> 16, vh)));
    }
}

// Whether a layout's levels become words without lying in rows before.
template <typename Block>
constexpr bool makes_words = has_nibbles<Block> && has_halves<Block>;
#endif

// Takes columns of `count` rows apart, at most kChunk. Rows behind the last stay what they were.
template <typename Block>
void unpack_rows(const uint8_t *first, int64_t row_bytes, int64_t count, int64_t columns, Tile &tile) {
    for (int64_t row = 0; row < count; row++)
        unpack_row<Block>(first + row * row_bytes, columns, tile.rows[row], tile.row_factors[row]);
    constexpr int kFactors = (Block::kHasOffsets ? 2 : 1) * kChunk / Block::kSame;
    for (int i = 0; i < kFactors; i += kPanel)
        transpose_words(&tile.row_factors[0][i], sizeof tile.row_factors[0], tile.factors + i * kPanel);
}
inline void transpose_levels(int64_t columns, Tile &tile) {
    for (int64_t k = 0; k < columns; k += 64) transpose_words(&tile.rows[0][k], kChunk, tile.words + k / 4 * kWord);
}
// Both, one after the other or at once. In the second case rows behind the last are the last again.
template <typename Block>
void unpack_words(const uint8_t *first, int64_t row_bytes, int64_t count, int64_t columns, Tile &tile) {
#if defined(__AVX2__) && defined(__F16C__)
    if constexpr (makes_words<Block>) {
        Rows rows{first, row_bytes, count};
        transpose_halves<Block>(rows, columns, tile.factors);
        return transpose_nibbles<Block>(rows, columns, tile.words);
    }
#endif
    unpack_rows<Block>(first, row_bytes, count, columns, tile);
    transpose_levels(columns, tile);
}

}  // namespace
