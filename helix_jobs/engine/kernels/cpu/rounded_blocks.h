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

// Rounds `count` columns, whole blocks, of one token. What is behind them becomes zero.
template <typename T>
inline void round_chunk(const T *x, int64_t count, RoundedChunk &out) {
    constexpr int kVectors = kSmallest / kLanes;  // of a part
    auto larger = [](vi a, vi b) { return a > b ? a : b; };
    auto sum = [](vf a, vf b) { return a + b; };
    // Bits of numbers without their signs, of which infinity and what is no number are the largest.
    vi highest[kParts] = {};
    for (int part = 0; part * kSmallest < count; part++)
        for (int n = 0; n < kVectors; n++) {
            vf some = load16(x + part * kSmallest + n * kLanes);
            vi bits;
            std::memcpy(&bits, &some, sizeof bits);
            highest[part] = larger(highest[part], bits & 0x7fffffff);
        }
    // Of each part, the same in both parts of a block.
    alignas(64) float scales[kParts], inverses[kParts];
    for (int part = 0; part < kParts; part += kLanes) {
        vi top = each_combined<kLanes>(highest + part, larger);
        top = larger(interleaved<1>(top, top, larger), vi{} + 0x2b8cbccc);  // 1e-12
        vf number;
        std::memcpy(&number, &top, sizeof number);
        // Not finite if the block is not: its products must not look finite.
        store16(scales + part, top < 0x7f800000 ? number / 127.0f : splat(NAN));
        store16(inverses + part, 127.0f / number);
    }
    vf totals[kParts] = {};
    for (int part = 0; part < kParts; part++)
        for (int n = 0; n < kVectors; n++) {
            int i = part * kSmallest + n * kLanes;
            vf some = i < count ? load16(x + i) : vf{};
            vf shifted = some * inverses[part] + 12582912.0f;  // rounds to nearest even, as in exp16
            vf whole = shifted - 12582912.0f;
            store_bytes(out.values + i, __builtin_convertvector(whole, vi));
            totals[part] += whole;
        }
    alignas(64) float block_totals[kParts];
    for (int part = 0; part < kParts; part += kLanes) {
        vf total = each_combined<kLanes>(totals + part, sum);  // exact
        vi wholes = __builtin_convertvector(total, vi);
        std::memcpy(out.part_wholes + part, &wholes, sizeof wholes);
        store16(out.part_sums + part, load16(scales + part) * total);
        store16(block_totals + part, interleaved<1>(total, total, sum));
    }
    for (int block = 0; block < kBlocks; block++) {
        float scale = scales[2 * block], total = block_totals[2 * block];
        out.scales[block] = scale;
        out.block_wholes[block] = static_cast<int32_t>(total);
        out.block_sums[block] = scale * total;
    }
}

}  // namespace
