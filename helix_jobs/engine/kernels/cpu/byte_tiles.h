// Sixteen rows of a weight in blocks, taken apart into bytes and scales for products with bytes.

#pragma once

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

// Takes columns of `count` rows apart. Rows behind the last stay what they were.
template <typename Block>
void unpack_rows(const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t columns, Tile &tile) {
    for (int64_t row = 0; row < count; row++)
        unpack_row<Block>(rows + row * row_bytes, columns, tile.rows[row], tile.row_factors[row]);
    constexpr int kFactors = (Block::kHasOffsets ? 2 : 1) * kChunk / Block::kSame;
    for (int i = 0; i < kFactors; i += kPanel)
        transpose_words(&tile.row_factors[0][i], sizeof tile.row_factors[0], tile.factors + i * kPanel);
}
inline void transpose_levels(int64_t columns, Tile &tile) {
    for (int64_t k = 0; k < columns; k += 64) transpose_words(&tile.rows[0][k], kChunk, tile.words + k / 4 * kWord);
}

}  // namespace
