// Blocks of GGUF files, decoded to float32: weight = scale * level + offset, with a scale for each group of weights.
//
// `block_layouts.py` has the same layouts in torch operators. A scale is a float16 number times a whole number of at most
// eight bits, so its product with a level is exact in float32: a fused multiply-add rounds as ggml's two steps do.

#pragma once

#include "lanes.h"

#if defined(__SSSE3__)
#include <immintrin.h>
#endif

namespace {

inline float half(const uint8_t *p) {
    uint16_t bits;
    std::memcpy(&bits, p, sizeof bits);
#if defined(__F16C__)
    return _cvtsh_ss(bits);
#elif defined(__ARM_FP16_FORMAT_IEEE)
    __fp16 value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#else
    uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16, exponent = bits >> 10 & 31, fraction = bits & 0x3ff;
    if (exponent == 0) {
        float small = std::ldexp(static_cast<float>(fraction), -24);
        return sign ? -small : small;
    }
    uint32_t wide = sign | (exponent == 31 ? 255u : exponent + 112) << 23 | fraction << 13;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
#endif
}

// Sixteen levels, and sixteen bytes that levels are made of.
typedef int8_t Levels __attribute__((vector_size(16)));
typedef uint8_t Bytes __attribute__((vector_size(16)));

inline Bytes load_bytes(const uint8_t *p) {
    Bytes bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return bytes;
}
// All ones in the bytes of which bit number `bit` is set.
inline Bytes has_bit(Bytes bytes, int bit) { return (Bytes)((bytes & static_cast<uint8_t>(1 << bit)) != 0); }
// The same for sixteen bits in a row, the least significant first.
inline Bytes has_bits(const uint8_t *bits) {
    typedef uint64_t Two __attribute__((vector_size(16)));
    Bytes spread = (Bytes)Two{bits[0] * 0x0101010101010101ull, bits[1] * 0x0101010101010101ull};
    Bytes each = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    return (Bytes)((spread & each) != 0);
}
// What stands in a table of sixteen at these places.
inline Levels choose(const int8_t *table, Bytes places) {
    Levels chosen;
#if defined(__SSSE3__)
    __m128i found = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i *>(table)), (__m128i)places);
    std::memcpy(&chosen, &found, sizeof chosen);
#else
    for (int i = 0; i < 16; i++) chosen[i] = table[places[i]];
#endif
    return chosen;
}
// Sixteen weights.
inline void put(float *out, Levels levels, float scale, float offset) {
#if defined(__AVX512F__)
    __m512 wide = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32((__m128i)levels));
    _mm512_storeu_ps(out, _mm512_fmadd_ps(wide, _mm512_set1_ps(scale), _mm512_set1_ps(offset)));
#elif defined(__AVX2__) && defined(__FMA__)
    __m128i all = (__m128i)levels;
    __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all));
    __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(all, all)));
    _mm256_storeu_ps(out, _mm256_fmadd_ps(low, _mm256_set1_ps(scale), _mm256_set1_ps(offset)));
    _mm256_storeu_ps(out + 8, _mm256_fmadd_ps(high, _mm256_set1_ps(scale), _mm256_set1_ps(offset)));
#else
    for (int i = 0; i < 16; i++) out[i] = static_cast<float>(levels[i]) * scale + offset;
#endif
}

constexpr int8_t kNonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kMxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Blocks of 32: their first sixteen levels are in the lower halves of sixteen bytes, the others in the upper halves.
template <int kLevels>
struct Nibbles {
    static inline Bytes low(const uint8_t *b) { return load_bytes(b + kLevels) & 15; }
    static inline Bytes high(const uint8_t *b) { return load_bytes(b + kLevels) >> 4; }
};
struct Q4_0 : Nibbles<2> {
    static constexpr int kWeights = 32, kBytes = 18;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b);
        put(out, (Levels)low(b) - 8, d, 0.0f);
        put(out + 16, (Levels)high(b) - 8, d, 0.0f);
    }
};
struct Q4_1 : Nibbles<4> {
    static constexpr int kWeights = 32, kBytes = 20;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b), offset = half(b + 2);
        put(out, (Levels)low(b), d, offset);
        put(out + 16, (Levels)high(b), d, offset);
    }
};
struct Q5_0 : Nibbles<6> {
    static constexpr int kWeights = 32, kBytes = 22;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b);
        put(out, (Levels)(low(b) | (has_bits(b + 2) & 16)) - 16, d, 0.0f);
        put(out + 16, (Levels)(high(b) | (has_bits(b + 4) & 16)) - 16, d, 0.0f);
    }
};
struct Q5_1 : Nibbles<8> {
    static constexpr int kWeights = 32, kBytes = 24;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b), offset = half(b + 2);
        put(out, (Levels)(low(b) | (has_bits(b + 4) & 16)), d, offset);
        put(out + 16, (Levels)(high(b) | (has_bits(b + 6) & 16)), d, offset);
    }
};
struct Q8_0 {
    static constexpr int kWeights = 32, kBytes = 34;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b);
        put(out, (Levels)load_bytes(b + 2), d, 0.0f);
        put(out + 16, (Levels)load_bytes(b + 18), d, 0.0f);
    }
};
struct Iq4Nl : Nibbles<2> {
    static constexpr int kWeights = 32, kBytes = 18;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b);
        put(out, choose(kNonlinear, low(b)), d, 0.0f);
        put(out + 16, choose(kNonlinear, high(b)), d, 0.0f);
    }
};
struct Mxfp4 : Nibbles<1> {
    static constexpr int kWeights = 32, kBytes = 17;
    static void decode(const uint8_t *b, float *out) {
        // Half the power of two that the byte stands for; the smallest two halves are subnormal.
        uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : static_cast<uint32_t>(b[0] - 1) << 23;
        float scale;
        std::memcpy(&scale, &bits, sizeof scale);
        put(out, choose(kMxfp4, low(b)), scale, 0.0f);
        put(out + 16, choose(kMxfp4, high(b)), scale, 0.0f);
    }
};

// Blocks of 256.
struct Q2K {
    static constexpr int kWeights = 256, kBytes = 84;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b + 80), dmin = half(b + 82);
        for (int run = 0; run < 2; run++)
            for (int shift = 0; shift < 4; shift++)
                for (int part = 0; part < 2; part++, out += 16) {
                    int scale = b[8 * run + 2 * shift + part];
                    Bytes levels = load_bytes(b + 16 + 32 * run + 16 * part) >> static_cast<uint8_t>(2 * shift) & 3;
                    put(out, (Levels)levels, d * (scale & 15), -(dmin * (scale >> 4)));
                }
    }
};
struct Q3K {
    static constexpr int kWeights = 256, kBytes = 110;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b + 108);
        const uint8_t *packed = b + 96;
        for (int group = 0; group < 16; group++, out += 16) {
            int run = group / 8, shift = group / 2 % 4, part = group % 2;
            int low = group < 8 ? packed[group] & 15 : packed[group - 8] >> 4;
            int high = packed[8 + group % 4] >> (2 * (group / 4)) & 3;
            Bytes two = load_bytes(b + 32 + 32 * run + 16 * part) >> static_cast<uint8_t>(2 * shift) & 3;
            Bytes third = has_bit(load_bytes(b + 16 * part), 4 * run + shift) & 4;
            put(out, (Levels)(two | third) - 4, d * ((low | high << 4) - 32), 0.0f);
        }
    }
};

// Scale and offset number `group` of Q4_K and Q5_K: six bits each, in twelve bytes.
inline void six_bits(const uint8_t *packed, int group, int *scale, int *offset) {
    if (group < 4) {
        *scale = packed[group] & 63, *offset = packed[group + 4] & 63;
    } else {
        *scale = (packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4;
        *offset = packed[group + 4] >> 4 | (packed[group] >> 6) << 4;
    }
}
struct Q4K {
    static constexpr int kWeights = 256, kBytes = 144;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b), dmin = half(b + 2);
        for (int pair = 0; pair < 4; pair++, out += 64)
            for (int part = 0; part < 2; part++) {
                int scale, offset;
                six_bits(b + 4, 2 * pair + part, &scale, &offset);
                for (int i = 0; i < 32; i += 16) {
                    Bytes both = load_bytes(b + 16 + 32 * pair + i);
                    put(out + 32 * part + i, (Levels)(part == 0 ? both & 15 : both >> 4), d * scale, -(dmin * offset));
                }
            }
    }
};
struct Q5K {
    static constexpr int kWeights = 256, kBytes = 176;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b), dmin = half(b + 2);
        for (int group = 0; group < 8; group++)
            for (int i = 0; i < 32; i += 16, out += 16) {
                int scale, offset;
                six_bits(b + 4, group, &scale, &offset);
                Bytes both = load_bytes(b + 48 + 32 * (group / 2) + i);
                Bytes fifth = has_bit(load_bytes(b + 16 + i), group) & 16;
                Bytes levels = (group % 2 == 0 ? both & 15 : both >> 4) | fifth;
                put(out, (Levels)levels, d * scale, -(dmin * offset));
            }
    }
};
struct Q6K {
    static constexpr int kWeights = 256, kBytes = 210;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b + 208);
        const int8_t *scales = reinterpret_cast<const int8_t *>(b + 192);
        for (int run = 0; run < 2; run++)
            for (int part = 0; part < 4; part++)
                for (int i = 0; i < 32; i += 16, out += 16, scales++) {
                    Bytes both = load_bytes(b + 64 * run + 32 * (part % 2) + i);
                    Bytes two = load_bytes(b + 128 + 32 * run + i) >> static_cast<uint8_t>(2 * part) & 3;
                    Bytes levels = (part < 2 ? both & 15 : both >> 4) | two << 4;
                    put(out, (Levels)levels - 32, d * *scales, 0.0f);
                }
    }
};
struct Iq4Xs {
    static constexpr int kWeights = 256, kBytes = 136;
    static void decode(const uint8_t *b, float *out) {
        float d = half(b);
        uint16_t high;
        std::memcpy(&high, b + 2, sizeof high);
        for (int group = 0; group < 8; group++, out += 32) {
            Bytes both = load_bytes(b + 8 + 16 * group);
            int low = b[4 + group / 2] >> (4 * (group % 2)) & 15;
            float scale = d * ((low | (high >> (2 * group) & 3) << 4) - 32);
            put(out, choose(kNonlinear, both & 15), scale, 0.0f);
            put(out + 16, choose(kNonlinear, both >> 4), scale, 0.0f);
        }
    }
};

}  // namespace
