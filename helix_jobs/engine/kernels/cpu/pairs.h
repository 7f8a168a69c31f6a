// Thirty-two numbers in bfloat16 at once, for products of pairs, where the processor has them.

#pragma once

#include "lanes.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include <immintrin.h>
#define HAS_BF16_DOT 1
#else
#define HAS_BF16_DOT 0
#endif

#if HAS_BF16_DOT
namespace {

inline __m512i load32(const bf16 *p) { return _mm512_loadu_si512(p); }

// Nothing is read where not `is_there`: what nobody has written need not be finite, and must not be multiplied.
inline __m512i load32(const bf16 *p, bool is_there) { return _mm512_maskz_loadu_epi32(is_there ? 0xffff : 0, p); }

// A whole number of 8 bits is exact in bfloat16.
inline __m512i in_pairs(__m128i low, __m128i high) {
    __m512 first = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(low));
    __m512 second = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(high));
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}
inline __m512i load32(const int8_t *p) {
    const __m128i *halves = reinterpret_cast<const __m128i *>(p);
    return in_pairs(_mm_loadu_si128(halves), _mm_loadu_si128(halves + 1));
}
inline __m512i load32(const int8_t *p, bool is_there) {
    __mmask16 mask = is_there ? 0xffff : 0;
    return in_pairs(_mm_maskz_loadu_epi8(mask, p), _mm_maskz_loadu_epi8(mask, p + 16));
}

// Two vectors of numbers side by side, rounded. Subnormal numbers become zero, as they do in a product.
inline void store_line(bf16 *out, __m512 low, __m512 high) {
    _mm512_storeu_si512(out, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}

}  // namespace
#endif
