// Squares of 32-bit words, transposed.

#pragma once

#include "lanes.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace {

#if defined(__AVX512F__)
// Sixteen vectors of sixteen 32-bit elements become their columns.
inline void transpose(__m512i rows[16]) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; i += 2) {
        a[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        b[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // b[4 * g + c] holds, of the rows 4 * g to 4 * g + 3, the columns c, c + 4, c + 8 and c + 12.
    for (int c = 0; c < 4; c++) {
        __m512i even = _mm512_shuffle_i32x4(b[c], b[4 + c], 0x88), odd = _mm512_shuffle_i32x4(b[c], b[4 + c], 0xdd);
        __m512i even_low = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0x88);
        __m512i odd_low = _mm512_shuffle_i32x4(b[8 + c], b[12 + c], 0xdd);
        rows[c] = _mm512_shuffle_i32x4(even, even_low, 0x88);
        rows[8 + c] = _mm512_shuffle_i32x4(even, even_low, 0xdd);
        rows[4 + c] = _mm512_shuffle_i32x4(odd, odd_low, 0x88);
        rows[12 + c] = _mm512_shuffle_i32x4(odd, odd_low, 0xdd);
    }
}

#elif defined(__AVX2__)
// Eight vectors of eight 32-bit elements become their columns.
inline void transpose(__m256i rows[8]) {
    __m256i a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_epi32(rows[i], rows[i + 1]);
        a[i + 1] = _mm256_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 8; i += 4) {
        b[i] = _mm256_unpacklo_epi64(a[i], a[i + 2]);
        b[i + 1] = _mm256_unpackhi_epi64(a[i], a[i + 2]);
        b[i + 2] = _mm256_unpacklo_epi64(a[i + 1], a[i + 3]);
        b[i + 3] = _mm256_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    for (int c = 0; c < 4; c++) {
        rows[c] = _mm256_permute2x128_si256(b[c], b[4 + c], 0x20);
        rows[4 + c] = _mm256_permute2x128_si256(b[c], b[4 + c], 0x31);
    }
}
#endif

#if defined(__AVX512F__)
typedef __m512i Lanes;
#elif defined(__AVX2__)
typedef __m256i Lanes;
#endif
#if defined(__AVX2__)
// Four words of as many rows as a register has words. Row r begins at row(r); columns[i] has word i of each.
template <typename Row>
inline void transpose_fours(Row row, Lanes columns[4]) {
    auto load = [&](int i) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(row(i))); };
    Lanes some[4];  // rows i, 4 + i, ..
#if defined(__AVX512F__)
    for (int i = 0; i < 4; i++) {
        some[i] = _mm512_inserti32x4(_mm512_castsi128_si512(load(i)), load(4 + i), 1);
        some[i] = _mm512_inserti32x4(_mm512_inserti32x4(some[i], load(8 + i), 2), load(12 + i), 3);
    }
    Lanes a = _mm512_unpacklo_epi32(some[0], some[1]), b = _mm512_unpackhi_epi32(some[0], some[1]);
    Lanes c = _mm512_unpacklo_epi32(some[2], some[3]), d = _mm512_unpackhi_epi32(some[2], some[3]);
    columns[0] = _mm512_unpacklo_epi64(a, c), columns[1] = _mm512_unpackhi_epi64(a, c);
    columns[2] = _mm512_unpacklo_epi64(b, d), columns[3] = _mm512_unpackhi_epi64(b, d);
#else
    for (int i = 0; i < 4; i++) some[i] = _mm256_inserti128_si256(_mm256_castsi128_si256(load(i)), load(4 + i), 1);
    Lanes a = _mm256_unpacklo_epi32(some[0], some[1]), b = _mm256_unpackhi_epi32(some[0], some[1]);
    Lanes c = _mm256_unpacklo_epi32(some[2], some[3]), d = _mm256_unpackhi_epi32(some[2], some[3]);
    columns[0] = _mm256_unpacklo_epi64(a, c), columns[1] = _mm256_unpackhi_epi64(a, c);
    columns[2] = _mm256_unpacklo_epi64(b, d), columns[3] = _mm256_unpackhi_epi64(b, d);
#endif
}
#endif

// Sixteen rows of sixteen words, `pitch` bytes apart, become sixteen columns, one behind the other. As a call it makes
// products of a few tokens a tenth slower.
__attribute__((always_inline)) inline void transpose_words(const void *from, int64_t pitch, void *to) {
    const char *in = static_cast<const char *>(from);
    char *out = static_cast<char *>(to);
#if defined(__AVX512F__)
    __m512i rows[16];
    for (int i = 0; i < 16; i++) rows[i] = _mm512_loadu_si512(in + i * pitch);
    transpose(rows);
    for (int i = 0; i < 16; i++) _mm512_storeu_si512(out + 64 * i, rows[i]);
#elif defined(__AVX2__)
    for (int down = 0; down < 2; down++)
        for (int right = 0; right < 2; right++) {
            __m256i rows[8];
            for (int i = 0; i < 8; i++)
                rows[i] = _mm256_loadu_si256(
                    reinterpret_cast<const __m256i *>(in + (8 * down + i) * pitch + 32 * right));
            transpose(rows);
            for (int i = 0; i < 8; i++)
                _mm256_storeu_si256(reinterpret_cast<__m256i *>(out + 64 * (8 * right + i) + 32 * down), rows[i]);
        }
#else
    for (int row = 0; row < 16; row++)
        for (int column = 0; column < 16; column++)
            std::memcpy(out + 64 * column + 4 * row, in + row * pitch + 4 * column, 4);
#endif
}

}  // namespace
