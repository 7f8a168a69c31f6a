// Blocks of GGUF files taken apart: weight = scale * level + offset, with a scale for each group of weights.
//
// `block_layouts.py` has the same layouts in torch operators. A scale is a float16 number times a whole number of at most
// eight bits, so its product with a level is exact in float32: a fused multiply-add rounds as ggml's two steps do.
//
// `levels` of a layout calls put(levels) for every 32 weights of a block, in their order. `factors` writes the scale and,
// where the layout has offsets, the offset of each group of kSame weights.

#pragma once

#include <type_traits>

#include "lanes.h"

#if defined(__SSE2__)
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

// Sixteen levels as weights. Of plain vectors of sixteen floats gcc makes scalar code where registers have eight.
inline void store_weights(float *out, const int8_t *levels, float scale, float offset) {
#if defined(__AVX512F__)
    __m512 wide = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(levels))));
    _mm512_storeu_ps(out, _mm512_fmadd_ps(wide, _mm512_set1_ps(scale), _mm512_set1_ps(offset)));
#elif defined(__AVX2__) && defined(__FMA__)
    __m128i all = _mm_loadu_si128(reinterpret_cast<const __m128i *>(levels));
    __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(all));
    __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_unpackhi_epi64(all, all)));
    _mm256_storeu_ps(out, _mm256_fmadd_ps(low, _mm256_set1_ps(scale), _mm256_set1_ps(offset)));
    _mm256_storeu_ps(out + 8, _mm256_fmadd_ps(high, _mm256_set1_ps(scale), _mm256_set1_ps(offset)));
#else
    for (int i = 0; i < 16; i++) out[i] = static_cast<float>(levels[i]) * scale + offset;
#endif
}

// Levels of 32 weights, and the bytes that they are made of; sixteen bytes.
typedef int8_t Levels __attribute__((vector_size(32)));
typedef uint8_t Bytes __attribute__((vector_size(32)));
typedef uint8_t Few __attribute__((vector_size(16)));

inline Bytes load_bytes(const uint8_t *p) {
    Bytes bytes;
    std::memcpy(&bytes, p, sizeof bytes);
    return bytes;
}
// The lower halves of sixteen bytes, followed by the upper halves.
inline Bytes nibbles(const uint8_t *p) {
    Few both;
    std::memcpy(&both, p, sizeof both);
#if defined(__AVX2__)
    __m256i spread = _mm256_set_m128i(_mm_srli_epi16((__m128i)both, 4), (__m128i)both);
    return (Bytes)spread & 15;
#else
    Few halves[2] = {both & 15, both >> 4};
    Bytes all;
    std::memcpy(&all, halves, sizeof all);
    return all;
#endif
}
// All ones in the bytes of which bit number `bit` is set.
inline Bytes has_bit(Bytes bytes, int bit) { return (Bytes)((bytes & static_cast<uint8_t>(1 << bit)) != 0); }
// The same for 32 bits in a row, the least significant first.
inline Bytes has_bits(const uint8_t *bits) {
#if defined(__AVX512BW__) && defined(__AVX512VL__)
    uint32_t all;
    std::memcpy(&all, bits, sizeof all);
    return (Bytes)_mm256_movm_epi8(all);
#else
    typedef uint64_t Four __attribute__((vector_size(32)));
    constexpr uint64_t kSpread = 0x0101010101010101ull, kEach = 0x8040201008040201ull;
    Bytes spread = (Bytes)(Four{bits[0] * kSpread, bits[1] * kSpread, bits[2] * kSpread, bits[3] * kSpread});
    return (Bytes)((spread & (Bytes)Four{kEach, kEach, kEach, kEach}) != 0);
#endif
}
// What stands in a table of sixteen at these places.
inline Levels choose(const int8_t *table, Bytes places) {
#if defined(__AVX2__)
    __m256i both = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(table)));
    return (Levels)_mm256_shuffle_epi8(both, (__m256i)places);
#else
    Levels chosen;
    for (int i = 0; i < 32; i++) chosen[i] = table[places[i]];
    return chosen;
#endif
}
// Eight and eight bytes as numbers, none above 127: times a factor, `less` taken from each before.
inline void store_numbers(float *out, uint64_t first, uint64_t second, float factor, int8_t less = 0) {
    typedef uint64_t Two __attribute__((vector_size(16)));
    typedef int8_t Sixteen __attribute__((vector_size(16)));
    Sixteen both = (Sixteen)Two{first, second} - less;
    int8_t bytes[16];
    std::memcpy(bytes, &both, sizeof bytes);
    store_weights(out, bytes, factor, 0.0f);
}
template <typename Word>
inline Word load_word(const uint8_t *p) {
    Word word;
    std::memcpy(&word, p, sizeof word);
    return word;
}
// What four bits stand for. Layouts of four bits name their table, and where their first levels lie: as kNibbles where a
// line of 32 weights is sixteen bytes, lower halves first, and as kPairs where 32 bytes are a line in the lower halves and
// the next line in the upper ones.
constexpr int8_t kFromZero[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr int8_t kFromMinusEight[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
constexpr int8_t kNonlinear[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr int8_t kMxfp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

template <typename Block, typename = void>
constexpr bool has_nibbles = false;
template <typename Block>
constexpr bool has_nibbles<Block, std::void_t<decltype(Block::kNibbles)>> = true;

// Those of them that begin with a scale in float16, or with a scale and an offset, and have no others, name how many they
// are as kHalves.
template <typename Block, typename = void>
constexpr bool has_halves = false;
template <typename Block>
constexpr bool has_halves<Block, std::void_t<decltype(Block::kHalves)>> = true;

// Weights and bytes of a block, what its levels lie between, and how many neighbours share a scale.
template <int kCount, int kSize, int kLeast, int kMost, int kGroup = 32, bool kOffsets = false>
struct BlockOf {
    static constexpr int kWeights = kCount, kBytes = kSize, kLowest = kLeast, kHighest = kMost, kSame = kGroup;
    static constexpr bool kHasOffsets = kOffsets;
};

struct Q4_0 : BlockOf<32, 18, -8, 7> {
    static constexpr int kHalves = 1;
    static constexpr int kNibbles = 2;
    static constexpr const int8_t *kTable = kFromMinusEight;
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        put((Levels)nibbles(b + 2) - 8);
    }
    static void factors(const uint8_t *b, float *scales, float *) { *scales = half(b); }
};
struct Q4_1 : BlockOf<32, 20, 0, 15, 32, true> {
    static constexpr int kHalves = 2;
    static constexpr int kNibbles = 4;
    static constexpr const int8_t *kTable = kFromZero;
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        put((Levels)nibbles(b + 4));
    }
    static void factors(const uint8_t *b, float *scales, float *offsets) {
        *scales = half(b), *offsets = half(b + 2);
    }
};
struct Q5_0 : BlockOf<32, 22, -16, 15> {
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        put((Levels)(nibbles(b + 6) | (has_bits(b + 2) & 16)) - 16);
    }
    static void factors(const uint8_t *b, float *scales, float *) { *scales = half(b); }
};
struct Q5_1 : BlockOf<32, 24, 0, 31, 32, true> {
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        put((Levels)(nibbles(b + 8) | (has_bits(b + 4) & 16)));
    }
    static void factors(const uint8_t *b, float *scales, float *offsets) {
        *scales = half(b), *offsets = half(b + 2);
    }
};
struct Q8_0 : BlockOf<32, 34, -128, 127> {
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        put((Levels)load_bytes(b + 2));
    }
    static void factors(const uint8_t *b, float *scales, float *) { *scales = half(b); }
};
struct Iq4Nl : BlockOf<32, 18, -128, 127> {
    static constexpr int kHalves = 1;
    static constexpr int kNibbles = 2;
    static constexpr const int8_t *kTable = kNonlinear;
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        put(choose(kNonlinear, nibbles(b + 2)));
    }
    static void factors(const uint8_t *b, float *scales, float *) { *scales = half(b); }
};
struct Mxfp4 : BlockOf<32, 17, -12, 12> {
    static constexpr int kNibbles = 1;
    static constexpr const int8_t *kTable = kMxfp4;
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        put(choose(kMxfp4, nibbles(b + 1)));
    }
    static void factors(const uint8_t *b, float *scales, float *) {
        // Half the power of two that the byte stands for; the smallest two halves are subnormal.
        uint32_t bits = b[0] < 2 ? 0x00200000u << b[0] : static_cast<uint32_t>(b[0] - 1) << 23;
        std::memcpy(scales, &bits, sizeof bits);
    }
};

struct Q2K : BlockOf<256, 84, 0, 3, 16, true> {
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) put((Levels)(load_bytes(b + 16 + 32 * (i / 4)) >> (2 * (i % 4)) & 3));
    }
    static void factors(const uint8_t *b, float *scales, float *offsets) {
        constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0full;
        uint64_t first = load_word<uint64_t>(b), second = load_word<uint64_t>(b + 8);
        store_numbers(scales, first & kLow, second & kLow, half(b + 80));
        store_numbers(offsets, first >> 4 & kLow, second >> 4 & kLow, -half(b + 82));
    }
};
struct Q3K : BlockOf<256, 110, -4, 3, 16> {
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        Bytes third = load_bytes(b);
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            Bytes two = load_bytes(b + 32 + 32 * (i / 4)) >> (2 * (i % 4)) & 3;
            put((Levels)(two | (has_bit(third, i) & 4)) - 4);
        }
    }
    // Sixteen scales of six bits: the lower four of each, then the upper two.
    static void factors(const uint8_t *b, float *scales, float *) {
        constexpr uint64_t kLow = 0x0f0f0f0f0f0f0f0full;
        constexpr uint32_t kTwo = 0x03030303u;
        uint64_t low = load_word<uint64_t>(b + 96);
        uint32_t high = load_word<uint32_t>(b + 104);
        auto upper = [&](int shift) {
            return static_cast<uint64_t>(high >> shift & kTwo) << 4 |
                   static_cast<uint64_t>(high >> (shift + 2) & kTwo) << 36;
        };
        store_numbers(scales, (low & kLow) | upper(0), (low >> 4 & kLow) | upper(4), half(b + 108), 32);
    }
};

// Scales and offsets of Q4_K and Q5_K: eight of each, six bits a number, in twelve bytes.
inline void six_bits(const uint8_t *b, float *scales, float *offsets) {
    constexpr uint32_t kSix = 0x3f3f3f3fu, kFour = 0x0f0f0f0fu, kUpper = 0x30303030u;
    uint32_t first = load_word<uint32_t>(b + 4), second = load_word<uint32_t>(b + 8);
    uint32_t rest = load_word<uint32_t>(b + 12);
    uint64_t scale = (rest & kFour) | (first >> 2 & kUpper), offset = (rest >> 4 & kFour) | (second >> 2 & kUpper);
    scale = scale << 32 | (first & kSix), offset = offset << 32 | (second & kSix);
#if defined(__AVX2__) && defined(__F16C__)
    __m128 factors = _mm_cvtph_ps(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(b)));
    __m256 own = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(scale))));
    __m256 other = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(static_cast<int64_t>(offset))));
    _mm256_storeu_ps(scales, _mm256_mul_ps(own, _mm256_broadcastss_ps(factors)));
    __m256 taken = _mm256_mul_ps(other, _mm256_broadcastss_ps(_mm_movehdup_ps(factors)));
    _mm256_storeu_ps(offsets, _mm256_xor_ps(taken, _mm256_set1_ps(-0.0f)));
#else
    uint8_t own[8], other[8];
    std::memcpy(own, &scale, sizeof own);
    std::memcpy(other, &offset, sizeof other);
    float factor = half(b), taken = -half(b + 2);
    for (int i = 0; i < 8; i++) scales[i] = own[i] * factor, offsets[i] = other[i] * taken;
#endif
}
struct Q4K : BlockOf<256, 144, 0, 15, 32, true> {
    static constexpr int kPairs = 16;
    static constexpr const int8_t *kTable = kFromZero;
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; pair++) {
            Bytes both = load_bytes(b + 16 + 32 * pair);
            put((Levels)(both & 15));
            put((Levels)(both >> 4));
        }
    }
    static void factors(const uint8_t *b, float *scales, float *offsets) { six_bits(b, scales, offsets); }
};
struct Q5K : BlockOf<256, 176, 0, 31, 32, true> {
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
        Bytes fifth = load_bytes(b + 16);
#pragma GCC unroll 4
        for (int pair = 0; pair < 4; pair++) {
            Bytes both = load_bytes(b + 48 + 32 * pair);
            put((Levels)((both & 15) | (has_bit(fifth, 2 * pair) & 16)));
            put((Levels)(both >> 4 | (has_bit(fifth, 2 * pair + 1) & 16)));
        }
    }
    static void factors(const uint8_t *b, float *scales, float *offsets) { six_bits(b, scales, offsets); }
};
struct Q6K : BlockOf<256, 210, -32, 31, 16> {
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
#if defined(__AVX512BW__)
        // Two lines at a time: their upper bits lie in the same bytes.
        const __m512i more = _mm512_inserti64x4(_mm512_set1_epi16(4), _mm256_set1_epi16(2), 1);
        const __m512i less = _mm512_inserti64x4(_mm512_setzero_si512(), _mm256_set1_epi16(2), 1);
        const __m512i low = _mm512_set1_epi8(15), high = _mm512_set1_epi8(48), middle = _mm512_set1_epi8(32);
#pragma GCC unroll 2
        for (int run = 0; run < 2; run++) {
            __m512i four = _mm512_loadu_si512(b + 64 * run);
            __m512i two = _mm512_broadcast_i64x4((__m256i)load_bytes(b + 128 + 32 * run));
            auto put_two = [&](__m512i lower, __m512i upper) {
                // lower & 15 | upper & 48
                __m512i codes = _mm512_or_si512(_mm512_and_si512(lower, low), _mm512_and_si512(upper, high));
                codes = _mm512_sub_epi8(codes, middle);
                put((Levels)_mm512_castsi512_si256(codes));
                put((Levels)_mm512_extracti64x4_epi64(codes, 1));
            };
            put_two(four, _mm512_sllv_epi16(two, more));
            put_two(_mm512_srli_epi16(four, 4), _mm512_srlv_epi16(two, less));
        }
#else
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            int run = i / 4, part = i % 4;
            Bytes both = load_bytes(b + 64 * run + 32 * (part % 2));
            Bytes two = load_bytes(b + 128 + 32 * run) >> (2 * part) & 3;
            put((Levels)((part < 2 ? both & 15 : both >> 4) | two << 4) - 32);
        }
#endif
    }
    static void factors(const uint8_t *b, float *scales, float *) {
        store_weights(scales, reinterpret_cast<const int8_t *>(b + 192), half(b + 208), 0.0f);
    }
};
struct Iq4Xs : BlockOf<256, 136, -128, 127> {
    static constexpr int kNibbles = 8;
    static constexpr const int8_t *kTable = kNonlinear;
    template <typename Put>
    static void levels(const uint8_t *b, Put put) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) put(choose(kNonlinear, nibbles(b + 8 + 16 * i)));
    }
    static void factors(const uint8_t *b, float *scales, float *) {
        float d = half(b);
        uint16_t high = load_word<uint16_t>(b + 2);
        for (int i = 0; i < 8; i++) {
            int low = b[4 + i / 2] >> (4 * (i % 2)) & 15;
            scales[i] = d * ((low | (high >> (2 * i) & 3) << 4) - 32);
        }
    }
};

}  // namespace
