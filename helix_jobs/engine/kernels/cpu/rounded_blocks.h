// Activations rounded to eight bits in blocks of 32 columns, each block with a scale of its own.
//
// As ggml's Q8_0, but for the scale, which stays float32. What is rounded depends on the token alone.

#pragma once

#include "lanes.h"

namespace {

constexpr int kChunk = 256;        // columns of a token that lie together
constexpr int kBlock = 32;         // neighbours that share a scale
constexpr int kBlocks = kChunk / kBlock;
constexpr int kSmallest = 16;      // the smallest group of weights that share a scale
constexpr int kParts = kChunk / kSmallest;

// A chunk of a token: x = scale * value. The last chunk of a row may be filled in part.
struct alignas(64) RoundedChunk {
    int8_t values[kChunk];
    float scales[kBlocks];
    // Whole numbers of at most sixteen bits.
    int32_t block_wholes[kBlocks];  // the sum of the values of each block, and of each half of it
    int32_t part_wholes[kParts];
    float block_sums[kBlocks];      // the same, scaled
    float part_sums[kParts];
};

// Whole numbers as bytes.
inline void store_bytes(int8_t *p, vi v) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i *>(p), _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(v)));
#else
    typedef int8_t vb __attribute__((vector_size(kLanes)));
    vb bytes = __builtin_convertvector(v, vb);
    std::memcpy(p, &bytes, sizeof bytes);
#endif
}

// Rounds `count` columns, whole blocks, of one token.
template <typename T>
inline void round_chunk(const T *x, int64_t count, RoundedChunk &out) {
    for (int64_t i = 0; i < count; i += kBlock) {
        constexpr int kVectors = kBlock / kLanes;
        vf some[kVectors], highest = {}, probe = {};
        for (int n = 0; n < kVectors; n++) {
            some[n] = load16(x + i + n * kLanes);
            highest = max16(highest, max16(some[n], -some[n]));
            probe += some[n] * 0.0f;
        }
        float top = 1e-12f;
        for (int lane = 0; lane < kLanes; lane++) top = std::max(top, highest[lane]);
        // Not finite if the block is not: its products must not look finite.
        float scale = top / 127.0f + sum16(probe);
        float inverse = 127.0f / top;
        float sums[2];
        for (int half = 0; half < 2; half++) {
            vf total = {};
            for (int n = half * kVectors / 2; n < (half + 1) * kVectors / 2; n++) {
                vf shifted = some[n] * inverse + 12582912.0f;  // rounds to nearest even, as in exp16
                vf whole = shifted - 12582912.0f;
                store_bytes(out.values + i + n * kLanes, __builtin_convertvector(whole, vi));
                total += whole;
            }
            sums[half] = sum16(total);  // exact
            out.part_wholes[i / kSmallest + half] = static_cast<int32_t>(sums[half]);
            out.part_sums[i / kSmallest + half] = scale * sums[half];
        }
        out.scales[i / kBlock] = scale;
        out.block_wholes[i / kBlock] = static_cast<int32_t>(sums[0] + sums[1]);
        out.block_sums[i / kBlock] = scale * (sums[0] + sums[1]);
    }
}

}  // namespace
