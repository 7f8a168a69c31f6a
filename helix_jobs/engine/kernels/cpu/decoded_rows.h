// Rows of a weight, stored densely or in blocks, decoded to the numbers that they are multiplied as.

#pragma once

#include <type_traits>

#include "level_blocks.h"
#include "pairs.h"

namespace {

constexpr int64_t kChunk = 256;  // columns that hold whole blocks of every layout
constexpr int64_t kLine = 32;    // neighbouring weights that are stored together

// What decoded weights are multiplied as. They are rounded to the dtype of the activations, T, as a dense layer's are.
#if HAS_BF16_DOT
template <typename T>
using Multiplied = T;
#else
template <typename T>
using Multiplied = float;
#endif

// A line of weights, rounded to bfloat16.
#if HAS_BF16_DOT
inline void round_line(const float *weights, bf16 *out) {
    store_line(out, _mm512_loadu_ps(weights), _mm512_loadu_ps(weights + 16));
}
#else
inline void round_line(const float *weights, float *out) {
    for (int64_t i = 0; i < kLine; i++) {
        uint32_t bits;
        std::memcpy(&bits, weights + i, sizeof bits);
        bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;  // to the nearest, or the even of two
        std::memcpy(out + i, &bits, sizeof bits);
    }
}
#endif

// The float32 weights of a block: levels of eight bits scaled, or what the layout decodes by itself.
template <typename Block, typename = void>
constexpr bool has_decode = false;
template <typename Block>
constexpr bool has_decode<Block, std::void_t<decltype(&Block::decode)>> = true;
template <typename Block>
inline void decode_block(const uint8_t *block, float *out) {
    if constexpr (has_decode<Block>) {
        Block::decode(block, out);
    } else {
        constexpr int kGroups = Block::kWeights / Block::kSame;
        float scales[kGroups], offsets[kGroups] = {};
        Block::factors(block, scales, offsets);
        int group = 0;
        Block::levels(block, [&](Levels levels) {
            int8_t bytes[32];
            std::memcpy(bytes, &levels, sizeof bytes);
            constexpr int kSecond = 32 / Block::kSame - 1;
            store_weights(out, bytes, scales[group], offsets[group]);
            store_weights(out + 16, bytes + 16, scales[group + kSecond], offsets[group + kSecond]);
            out += 32, group += 1 + kSecond;
        });
    }
}

#if HAS_BF16_DOT
// Sixteen weights of two groups, rounded: a table of what four bits stand for in each of both.
inline __m512i two_tables(const int8_t *table, const float *scales, const float *offsets, int first, int second) {
    __m512 levels = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(table))));
    __m512 low = _mm512_fmadd_ps(levels, _mm512_set1_ps(scales[first]), _mm512_set1_ps(offsets[first]));
    __m512 high = _mm512_fmadd_ps(levels, _mm512_set1_ps(scales[second]), _mm512_set1_ps(offsets[second]));
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
}
// Where the lowest four bits of words stand in two tables; `added` is sixteen for the second.
inline __m512i places_of(__m512i words, __m512i added) {
    return _mm512_ternarylogic_epi32(words, _mm512_set1_epi16(15), added, 0xea);  // words & 15 | added
}

// Layouts of four bits whose lines are sixteen bytes: the lower halves, then the upper halves.
template <typename Block>
inline void decode_nibbles(const uint8_t *blocks, int64_t columns, bf16 *out, int64_t step) {
    constexpr int64_t kLines = Block::kWeights / kLine;
    const __m512i halves = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
    const __m512i sixteen = _mm512_set1_epi16(16), none = _mm512_setzero_si512();
    int64_t lines = columns / kLine;
    float scales[kChunk / kLine + 1] = {}, offsets[kChunk / kLine + 1] = {};
    for (int64_t i = 0; i < lines; i += kLines)
        Block::factors(blocks + i / kLines * Block::kBytes, scales + i, offsets + i);
    __asm__("" : "+m"(scales), "+m"(offsets));  // broadcast from memory, which costs no shuffle
    auto put = [&](int64_t line, __m512i table, __m512i added) {
        const uint8_t *from = blocks + line / kLines * Block::kBytes + Block::kNibbles + line % kLines * 16;
        __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
        __m512i words = _mm512_srlv_epi16(_mm512_cvtepu8_epi16(both), halves);
        _mm512_storeu_si512(out + line * step, _mm512_permutexvar_epi16(places_of(words, added), table));
    };
    for (int64_t line = 0; line < lines; line += 2) {
        __m512i table = two_tables(Block::kTable, scales + line, offsets + line, 0, 1);
        put(line, table, none);
        if (line + 1 < lines) put(line + 1, table, sixteen);
    }
}

// Layouts of four bits of which 32 bytes are a line in the lower halves, and the next line in the upper halves.
template <typename Block, typename = void>
constexpr bool has_pairs = false;
template <typename Block>
constexpr bool has_pairs<Block, std::void_t<decltype(Block::kPairs)>> = true;
template <typename Block>
inline void decode_pairs(const uint8_t *block, bf16 *out, int64_t step) {
    float scales[Block::kWeights / kLine], offsets[Block::kWeights / kLine];
    Block::factors(block, scales, offsets);
    __asm__("" : "+m"(scales), "+m"(offsets));
    const __m512i sixteen = _mm512_set1_epi16(16);
#pragma GCC unroll 4
    for (int64_t line = 0; line < Block::kWeights / kLine; line += 2, out += 2 * step) {
        // The second line's table comes first: what is shifted down is a place in it as it is.
        __m512i table = two_tables(Block::kTable, scales + line, offsets + line, 1, 0);
        const __m256i *from = reinterpret_cast<const __m256i *>(block + Block::kPairs + line * 16);
        __m512i words = _mm512_cvtepu8_epi16(_mm256_loadu_si256(from));
        __m512i low = places_of(words, sixteen), high = _mm512_srli_epi16(words, 4);
        _mm512_storeu_si512(out, _mm512_permutexvar_epi16(low, table));
        _mm512_storeu_si512(out + step, _mm512_permutexvar_epi16(high, table));
    }
}

// Layouts that write their lines themselves.
template <typename Block, typename = void>
constexpr bool has_lines = false;
template <typename Block>
constexpr bool has_lines<Block, std::void_t<decltype(&Block::lines)>> = true;

// A line of levels, scaled. A group of weights is a line or half a line.
template <int kSame>
inline void store_scaled(const int8_t *levels, const float *scales, const float *offsets, bf16 *out) {
    constexpr int kSecond = 32 / kSame - 1;
    auto scaled = [&](int half, int group) {
        __m128i bytes = _mm_load_si128(reinterpret_cast<const __m128i *>(levels) + half);
        __m512 numbers = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
        return _mm512_fmadd_ps(numbers, _mm512_set1_ps(scales[group]), _mm512_set1_ps(offsets[group]));
    };
    store_line(out, scaled(0, 0), scaled(1, kSecond));
}
template <typename Block>
inline void decode_levels(const uint8_t *block, bf16 *out, int64_t step) {
    constexpr int kGroups = Block::kWeights / Block::kSame, kEach = kLine / Block::kSame;
    float scales[kGroups], offsets[kGroups] = {};
    Block::factors(block, scales, offsets);
    alignas(64) int8_t levels[Block::kWeights];
    int8_t *place = levels;
    Block::levels(block, [&](Levels some) {
        std::memcpy(place, &some, sizeof some);
        place += sizeof some;
    });
    __asm__("" : "+m"(scales), "+m"(offsets), "+m"(levels));
#pragma GCC unroll 8
    for (int64_t line = 0; line < Block::kWeights / kLine; line++)
        store_scaled<Block::kSame>(levels + line * kLine, scales + line * kEach, offsets + line * kEach,
                                   out + line * step);
}
#endif

// Columns of a row, whole blocks. Line i is written to out + i * step; float32 lines lie together, `step` is their length.
template <typename T, typename Block>
void decode_row(const uint8_t *blocks, int64_t columns, Multiplied<T> *out, int64_t step) {
    if constexpr (std::is_same_v<T, float>) {
        for (int64_t k = 0; k < columns; k += Block::kWeights, blocks += Block::kBytes)
            decode_block<Block>(blocks, out + k);
#if HAS_BF16_DOT
    } else if constexpr (has_nibbles<Block>) {
        for (int64_t k = 0; k < columns; k += kChunk, out += kChunk / kLine * step)
            decode_nibbles<Block>(blocks + k / Block::kWeights * Block::kBytes, std::min(kChunk, columns - k), out,
                                  step);
    } else if constexpr (has_pairs<Block>) {
        for (int64_t k = 0; k < columns; k += Block::kWeights, blocks += Block::kBytes)
            decode_pairs<Block>(blocks, out + k / kLine * step, step);
    } else if constexpr (has_lines<Block>) {
        for (int64_t k = 0; k < columns; k += Block::kWeights, blocks += Block::kBytes)
            Block::lines(blocks, out + k / kLine * step, step);
    } else if constexpr (!has_decode<Block>) {
        for (int64_t k = 0; k < columns; k += Block::kWeights, blocks += Block::kBytes)
            decode_levels<Block>(blocks, out + k / kLine * step, step);
#endif
    } else {
        for (int64_t k = 0; k < columns; k += Block::kWeights, blocks += Block::kBytes) {
            float weights[Block::kWeights];
            decode_block<Block>(blocks, weights);
            for (int64_t i = 0; i < Block::kWeights; i += kLine, out += step) round_line(weights + i, out);
        }
    }
}
// Dense weights, widened where the processor multiplies floats only.
template <typename T>
void copy_row(const uint8_t *weights, int64_t columns, Multiplied<T> *out, int64_t step) {
    const T *in = reinterpret_cast<const T *>(weights);
    for (int64_t k = 0; k < columns; k += kLine, in += kLine, out += step) {
        int64_t count = std::min(kLine, columns - k);
        if constexpr (std::is_same_v<T, Multiplied<T>>)
            std::memcpy(out, in, count * sizeof(T));
        else
            for_lanes(count, [&](int64_t i, int64_t n) { store_some(out + i, load_some(in + i, n), n); });
    }
}
// A layout: how a row is decoded, the bytes that `weights` weights take, and whether they are multiplied as they lie.
template <typename T>
struct Layout {
    void (*decode)(const uint8_t *, int64_t, Multiplied<T> *, int64_t);
    int64_t weights, bytes;
    bool is_plain;
};
template <typename T, typename Block>
constexpr Layout<T> layout_of() {
    static_assert(kChunk % Block::kWeights == 0, "a chunk is made of whole blocks");
    return {decode_row<T, Block>, Block::kWeights, Block::kBytes, false};
}
// In the order of `BLOCK_LAYOUTS`, `LEVEL_LAYOUTS` and `FLOAT_LAYOUTS` (`engine/weights`), dense weights of type T last;
// `kernels.py` hands over a place in it.
template <typename T>
const Layout<T> kLayouts[] = {
    layout_of<T, Q4_0>(),  layout_of<T, Q4_1>(),  layout_of<T, Q5_0>(), layout_of<T, Q5_1>(), layout_of<T, Q8_0>(),
    layout_of<T, Iq4Nl>(), layout_of<T, Mxfp4>(), layout_of<T, Q2K>(),  layout_of<T, Q3K>(),  layout_of<T, Q4K>(),
    layout_of<T, Q5K>(),   layout_of<T, Q6K>(),   layout_of<T, Iq4Xs>(),
    layout_of<T, Int4<128, false>>(), layout_of<T, Int4<64, false>>(), layout_of<T, Int4<32, false>>(),
    layout_of<T, Int4<128, true>>(),  layout_of<T, Int4<64, true>>(),  layout_of<T, Int4<32, true>>(),
    layout_of<T, Int8<128, false>>(), layout_of<T, Int8<64, false>>(), layout_of<T, Int8<32, false>>(),
    layout_of<T, Int8<128, true>>(),  layout_of<T, Int8<64, true>>(),  layout_of<T, Int8<32, true>>(),
    layout_of<T, Fp8<128>>(),         layout_of<T, Fp8<64>>(),         layout_of<T, Fp8<32>>(),
    layout_of<T, BFloat16>(),         layout_of<T, Float16>(),
    {copy_row<T>, 1, sizeof(T), std::is_same_v<T, Multiplied<T>>},
};

// Rows that are next, as a rule. They are read a few columns of each at a time, in an order that no processor foresees.
inline void fetch(const uint8_t *from, int64_t nbytes) {
    for (int64_t i = 0; i < nbytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

}  // namespace
