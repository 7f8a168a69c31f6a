// Products of float32 activations, rounded to whole numbers as they come, with int8 weights.

#pragma once

#include "lanes.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>
#define HAS_VNNI 1
#define HAS_WIDENING 0
#elif defined(__AVX2__)
#include <immintrin.h>
#define HAS_VNNI 0
#define HAS_WIDENING 1
#else
#define HAS_VNNI 0
#define HAS_WIDENING 0
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

struct Matrix {
    const int8_t *weight;    // [rows, columns]
    const float *scale;      // [rows]
    const int32_t *row_sum;  // [rows]
    const float *bias;       // [rows] or null
    int64_t rows, columns;
};

namespace {

// What an activation is rounded to, and what zero is then: bytes without a sign where the processor multiplies such with
// bytes; else 16 bits, as wide as it takes the weights. Sums are exact whole numbers either way.
#if HAS_VNNI
typedef uint8_t Whole;
constexpr int32_t kZero = 128;
constexpr int kRows = 4;
#else
typedef int16_t Whole;
constexpr int32_t kZero = 0;
constexpr int kRows = 2;  // more sums, 4 tokens x 3 rows, do not stay in AVX2's 16 registers
#endif
constexpr int kTokens = 4;

// Activations of some tokens, rounded for the next product. Every thread has its own copy: making it costs less than
// waiting for another's.
struct Rounded {
    std::vector<Whole> values;  // [tokens, columns]
    std::vector<float> scales;  // [tokens]

    // Ask for the memory of the largest product: `round` asks for none then.
    void reserve(int64_t tokens, int64_t columns) {
        values.reserve(tokens * columns + 64);
        scales.reserve(tokens);
    }
    template <typename T>
    void round(const T *x, int64_t tokens, int64_t columns) {
        values.resize(tokens * columns + 64);
        scales.resize(tokens);
        typedef Whole vw __attribute__((vector_size(kLanes * sizeof(Whole))));
        for (int64_t token = 0; token < tokens; token++) {
            const T *in = x + token * columns;
            Whole *out = values.data() + token * columns;
            vf highest = {}, probe = {};
            for_lanes(columns, [&](int64_t i, int64_t n) {
                vf v = load_some(in + i, n);
                highest = max16(highest, max16(v, -v));
                probe += v * 0.0f;
            });
            float top = 1e-12f;
            for (int i = 0; i < kLanes; i++) top = std::max(top, highest[i]);
            for_lanes(columns, [&](int64_t i, int64_t n) {
                vf shifted = load_some(in + i, n) * (127.0f / top) + 12582912.0f;
                vw whole = __builtin_convertvector(__builtin_convertvector(shifted - 12582912.0f, vi) + kZero, vw);
                std::memcpy(out + i, &whole, n * sizeof(Whole));
            });
            scales[token] = top / 127.0f + sum16(probe);  // not finite if the row is not
        }
    }
};

#if HAS_WIDENING
inline int32_t sum8(__m256i v) {
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    __m128i two = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 0xb1)));
}
#endif

// Dot products of kT tokens with kR consecutive rows of the weight. Not inlined: every caller would compile all of
// them again.
template <int kT, int kR>
__attribute__((noinline)) void dot_block(const Whole *x, const int8_t *w, int64_t columns, int32_t sums[kTokens][kRows]) {
#if HAS_VNNI
    __m512i lanes[kT][kR];
    for (int t = 0; t < kT; t++)
        for (int r = 0; r < kR; r++) lanes[t][r] = _mm512_setzero_si512();
    int64_t k = 0;
    for (; k + 64 <= columns; k += 64) {
        __m512i weights[kR];
        for (int r = 0; r < kR; r++) weights[r] = _mm512_loadu_si512(w + r * columns + k);
        for (int t = 0; t < kT; t++) {
            __m512i tokens = _mm512_loadu_si512(x + t * columns + k);
            for (int r = 0; r < kR; r++) lanes[t][r] = _mm512_dpbusd_epi32(lanes[t][r], tokens, weights[r]);
        }
    }
    if (k < columns) {
        __mmask64 rest = (1ULL << (columns - k)) - 1;
        for (int r = 0; r < kR; r++) {
            __m512i weights = _mm512_maskz_loadu_epi8(rest, w + r * columns + k);
            for (int t = 0; t < kT; t++) {
                __m512i tokens = _mm512_maskz_loadu_epi8(rest, x + t * columns + k);
                lanes[t][r] = _mm512_dpbusd_epi32(lanes[t][r], tokens, weights);
            }
        }
    }
    for (int t = 0; t < kT; t++)
        for (int r = 0; r < kR; r++) sums[t][r] = _mm512_reduce_add_epi32(lanes[t][r]);
#elif HAS_WIDENING
    __m256i lanes[kT][kR];
    for (int t = 0; t < kT; t++)
        for (int r = 0; r < kR; r++) lanes[t][r] = _mm256_setzero_si256();
    int64_t k = 0;
    for (; k + 16 <= columns; k += 16) {
        __m256i weights[kR];
        for (int r = 0; r < kR; r++)
            weights[r] = _mm256_cvtepi8_epi16(
                _mm_loadu_si128(reinterpret_cast<const __m128i *>(w + r * columns + k)));
        for (int t = 0; t < kT; t++) {
            __m256i tokens = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(x + t * columns + k));
            for (int r = 0; r < kR; r++)
                lanes[t][r] = _mm256_add_epi32(lanes[t][r], _mm256_madd_epi16(tokens, weights[r]));
        }
    }
    for (int t = 0; t < kT; t++)
        for (int r = 0; r < kR; r++) {
            sums[t][r] = sum8(lanes[t][r]);
            for (int64_t i = k; i < columns; i++)
                sums[t][r] += static_cast<int32_t>(x[t * columns + i]) * w[r * columns + i];
        }
#else
    for (int t = 0; t < kT; t++)
        for (int r = 0; r < kR; r++) {
            int32_t sum = 0;
            for (int64_t k = 0; k < columns; k++)
                sum += static_cast<int32_t>(x[t * columns + k]) * static_cast<int32_t>(w[r * columns + k]);
            sums[t][r] = sum;
        }
#endif
}

template <int kR>
inline void dot_tokens(int count, const Whole *x, const int8_t *w, int64_t columns, int32_t sums[kTokens][kRows]) {
    switch (count) {
        case 1: return dot_block<1, kR>(x, w, columns, sums);
        case 2: return dot_block<2, kR>(x, w, columns, sums);
        case 3: return dot_block<3, kR>(x, w, columns, sums);
        default: return dot_block<4, kR>(x, w, columns, sums);
    }
}

inline void dot_rows(int rows, int count, const Whole *x, const int8_t *w, int64_t columns,
                     int32_t sums[kTokens][kRows]) {
    if (rows == kRows) return dot_tokens<kRows>(count, x, w, columns, sums);
    for (int r = 0; r < rows; r++) {  // the last rows of a weight
        int32_t one[kTokens][kRows];
        dot_tokens<1>(count, x, w + r * columns, columns, one);
        for (int t = 0; t < count; t++) sums[t][r] = one[t][0];
    }
}

// Hand (token, row, value) of rows [first, last) to `emit`.
template <typename Emit>
void multiply(const Rounded &x, const Matrix &m, int64_t tokens, int64_t first, int64_t last, Emit emit) {
    int32_t sums[kTokens][kRows];
    for (int64_t row = first; row < last; row += kRows) {
        int count = static_cast<int>(std::min<int64_t>(kRows, last - row));
        for (int64_t token = 0; token < tokens; token += kTokens) {
            int some = static_cast<int>(std::min<int64_t>(kTokens, tokens - token));
            const Whole *in = x.values.data() + token * m.columns;
            const int8_t *w = m.weight + row * m.columns;
            dot_rows(count, some, in, w, m.columns, sums);
            for (int t = 0; t < some; t++)
                for (int r = 0; r < count; r++) {
                    int64_t n = row + r;
                    float value = static_cast<float>(sums[t][r] - kZero * m.row_sum[n]);
                    value = value * m.scale[n] * x.scales[token + t];
                    emit(token + t, n, m.bias == nullptr ? value : value + m.bias[n]);
                }
        }
    }
}

// A thread's even share of `count` rows, in whole blocks.
inline void share_of(int64_t count, int thread, int threads, int64_t *first, int64_t *last) {
    int64_t blocks = (count + kRows - 1) / kRows;
    *first = std::min(count, blocks * thread / threads * kRows);
    *last = std::min(count, blocks * (thread + 1) / threads * kRows);
}

}  // namespace
