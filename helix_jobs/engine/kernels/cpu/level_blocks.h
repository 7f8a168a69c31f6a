// Blocks of our own: weight = scale * (code - zero). `level_layouts.py` says how they lie.
//
// A code minus a zero point has at most nine bits, so it is exact in float32 and the product is rounded once: `decode`
// gives such numbers. The offsets of `factors`, -scale * zero, are rounded by themselves.

#pragma once

#include "blocks.h"
#include "pairs.h"

namespace {

inline float scale_of(const uint8_t *p) {
    float value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

// 32 levels, scaled.
inline void store_weights(float *out, Levels levels, float scale) {
    int8_t bytes[32];
    std::memcpy(bytes, &levels, sizeof bytes);
    store_weights(out, bytes, scale, 0.0f);
    store_weights(out + 16, bytes + 16, scale, 0.0f);
}

// Sixteen unsigned bytes minus a zero point, scaled.
inline void put_unsigned(float *out, const uint8_t *codes, int zero, float scale) {
#if defined(__AVX512F__)
    __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i *>(codes));
    __m512i wide = _mm512_sub_epi32(_mm512_cvtepu8_epi32(all), _mm512_set1_epi32(zero));
    _mm512_storeu_ps(out, _mm512_mul_ps(_mm512_cvtepi32_ps(wide), _mm512_set1_ps(scale)));
#elif defined(__AVX2__)
    __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i *>(codes));
    __m256i low = _mm256_sub_epi32(_mm256_cvtepu8_epi32(all), _mm256_set1_epi32(zero));
    __m256i high = _mm256_sub_epi32(_mm256_cvtepu8_epi32(_mm_unpackhi_epi64(all, all)), _mm256_set1_epi32(zero));
    _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_cvtepi32_ps(low), _mm256_set1_ps(scale)));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(_mm256_cvtepi32_ps(high), _mm256_set1_ps(scale)));
#else
    for (int i = 0; i < 16; i++) out[i] = static_cast<float>(codes[i] - zero) * scale;
#endif
}

// Sixteen E4M3 numbers, scaled. Their bits are those of float16 numbers that are 256 times as small.
inline void put_fp8(float *out, const uint8_t *codes, float scale) {
#if defined(__AVX2__) && defined(__F16C__)
    __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i *>(codes)));
    __m256i sign = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x80)), 8);
    __m256i rest = _mm256_slli_epi16(_mm256_and_si256(wide, _mm256_set1_epi16(0x7f)), 7);
    __m256i bits = _mm256_or_si256(sign, rest);
    __m256 larger = _mm256_set1_ps(256.0f), scales = _mm256_set1_ps(scale);
    __m256 low = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(bits)), larger);
    __m256 high = _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1)), larger);
    _mm256_storeu_ps(out, _mm256_mul_ps(low, scales));
    _mm256_storeu_ps(out + 8, _mm256_mul_ps(high, scales));
#else
    for (int i = 0; i < 16; i++) {
        uint16_t bits = static_cast<uint16_t>((codes[i] & 0x80) << 8 | (codes[i] & 0x7f) << 7);
        uint8_t bytes[2];
        std::memcpy(bytes, &bits, sizeof bits);
        out[i] = half(bytes) * 256.0f * scale;
    }
#endif
}

#if HAS_BF16_DOT
// Sixteen E4M3 numbers, as `put_fp8` scales them.
inline __m512 fp8_numbers(__m256i bits, __m512 scale) {
    return _mm512_mul_ps(_mm512_mul_ps(_mm512_cvtph_ps(bits), _mm512_set1_ps(256.0f)), scale);
}
#endif

template <int kSize, bool kHasZero>
struct Int4 : BlockOf<kSize, 4 + kHasZero + kSize / 2, kHasZero ? 0 : -8, kHasZero ? 15 : 7, 32, kHasZero> {
    static constexpr int kStart = 4 + kHasZero;
    static void decode(const uint8_t *b, float *out) {
        float scale = scale_of(b);
        int8_t zero = kHasZero ? static_cast<int8_t>(b[4]) : int8_t{8};
        for (int i = 0; i < kSize; i += 32) store_weights(out + i, (Levels)nibbles(b + kStart + i / 2) - zero, scale);
    }
#if HAS_BF16_DOT
    static void lines(const uint8_t *b, bf16 *out, int64_t step) {
        // What four bits stand for, twice: of a place of five bits the highest may be any.
        const __m512 places = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
        __m512 levels = _mm512_sub_ps(places, _mm512_set1_ps(kHasZero ? b[4] : 8));
        levels = _mm512_mul_ps(levels, _mm512_set1_ps(scale_of(b)));
        __m512i table = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(levels, levels));
        const __m512i halves = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(4), 1);
        for (int i = 0; i < kSize; i += 32, out += step) {
            __m128i both = _mm_loadu_si128(reinterpret_cast<const __m128i *>(b + kStart + i / 2));
            __m512i words = _mm512_cvtepu8_epi16(_mm256_broadcastsi128_si256(both));
            _mm512_storeu_si512(out, _mm512_permutexvar_epi16(_mm512_srlv_epi16(words, halves), table));
        }
    }
#endif
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        for (int i = 0; i < kSize; i += 32) put((Levels)nibbles(b + kStart + i / 2) + int8_t{Int4::kLowest});
    }
    static void factors(const uint8_t *b, float *scales, float *offsets) {
        for (int i = 0; i < kSize / 32; i++) {
            scales[i] = scale_of(b);
            if (kHasZero) offsets[i] = -(scale_of(b) * b[4]);
        }
    }
};
template <int kSize, bool kHasZero>
struct Int8 : BlockOf<kSize, 4 + kHasZero + kSize, -128, 127, 32, kHasZero> {
    static constexpr int kStart = 4 + kHasZero;
    static void decode(const uint8_t *b, float *out) {
        float scale = scale_of(b);
        int zero = kHasZero ? b[4] : 128;
        for (int i = 0; i < kSize; i += 16) put_unsigned(out + i, b + kStart + i, zero, scale);
    }
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        for (int i = 0; i < kSize; i += 32) put((Levels)(load_bytes(b + kStart + i) ^ 128));
    }
    static void factors(const uint8_t *b, float *scales, float *offsets) {
        for (int i = 0; i < kSize / 32; i++) {
            scales[i] = scale_of(b);
            if (kHasZero) offsets[i] = -(scale_of(b) * (b[4] - 128));
        }
    }
};
template <int kSize>
struct Fp8 {
    static constexpr int kWeights = kSize, kBytes = 4 + kSize;
    static void decode(const uint8_t *b, float *out) {
        float scale = scale_of(b);
        for (const uint8_t *p = b + 4; p < b + kBytes; p += 16, out += 16) put_fp8(out, p, scale);
    }
#if HAS_BF16_DOT
    static void lines(const uint8_t *b, bf16 *out, int64_t step) {
        __m512 scale = _mm512_set1_ps(scale_of(b));
        for (const uint8_t *p = b + 4; p < b + kBytes; p += 32, out += step) {
            __m512i codes = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
            __m512i sign = _mm512_slli_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(0x80)), 8);
            __m512i rest = _mm512_slli_epi16(_mm512_and_si512(codes, _mm512_set1_epi16(0x7f)), 7);
            __m512i bits = _mm512_or_si512(sign, rest);
            store_line(out, fp8_numbers(_mm512_castsi512_si256(bits), scale),
                       fp8_numbers(_mm512_extracti64x4_epi64(bits, 1), scale));
        }
    }
#endif
};

// Numbers of 16 bits as they are.
struct BFloat16 {
    static constexpr int kWeights = 32, kBytes = 64;
    static void decode(const uint8_t *b, float *out) {
        for (int i = 0; i < kWeights; i += kLanes) store16(out + i, load16(reinterpret_cast<const bf16 *>(b) + i));
    }
};
struct Float16 {
    static constexpr int kWeights = 32, kBytes = 64;
    static void decode(const uint8_t *b, float *out) {
        for (int i = 0; i < kWeights; i++) out[i] = half(b + 2 * i);
    }
#if HAS_BF16_DOT
    static void lines(const uint8_t *b, bf16 *out, int64_t) {
        const __m256i *halves = reinterpret_cast<const __m256i *>(b);
        store_line(out, _mm512_cvtph_ps(_mm256_loadu_si256(halves)), _mm512_cvtph_ps(_mm256_loadu_si256(halves + 1)));
    }
#endif
};

}  // namespace
