// Vectors of floats over float32 and bfloat16 storage, in the compiler's own vector types.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>
#include <vector>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace {

struct bf16 {
    uint16_t bits;
};

// A vector is one register: gcc 12 keeps vectors of several registers in memory, so that each step is a load and a store.
// The sixteen of a function's name stands for the lanes.
#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif
typedef float vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t vi __attribute__((vector_size(4 * kLanes)));
typedef uint32_t vu __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vh __attribute__((vector_size(2 * kLanes)));

inline vf splat(float value) { return vf{} + value; }
inline vf load16(const float *p) {
    vf v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline vf load16(const bf16 *p) {
    vh h;
    std::memcpy(&h, p, sizeof h);
    vu wide = __builtin_convertvector(h, vu) << 16;
    vf v;
    std::memcpy(&v, &wide, sizeof v);
    return v;
}
inline vf load16(const int8_t *p) {
#if defined(__AVX512F__)  // gcc converts vectors of bytes by halves
    __m512 v = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p))));
    return reinterpret_cast<vf>(v);
#elif defined(__AVX2__)
    int64_t eight;
    std::memcpy(&eight, p, sizeof eight);
    return reinterpret_cast<vf>(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(eight))));
#else
    typedef int8_t vb __attribute__((vector_size(kLanes)));
    vb b;
    std::memcpy(&b, p, sizeof b);
    return __builtin_convertvector(__builtin_convertvector(b, vi), vf);
#endif
}
#if defined(__F16C__) && defined(__AVX2__)
// Numbers of 16 bits as IEEE has them.
inline vf widened(vh halves) {
#if defined(__AVX512F__)
    return reinterpret_cast<vf>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(halves)));
#else
    return reinterpret_cast<vf>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(halves)));
#endif
}
#endif
inline void store16(float *p, vf v) { std::memcpy(p, &v, sizeof v); }
inline void store16(bf16 *p, vf v) {
    vu wide;
    std::memcpy(&wide, &v, sizeof v);
    vu rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    vu is_nan = (vu)((wide & 0x7fffffff) > 0x7f800000);
    vh h = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), vh);
    std::memcpy(p, &h, sizeof h);
}

// Sum of all lanes, always in the same order.
inline float sum16(vf v) {
    typedef float v8 __attribute__((vector_size(32)));
    typedef float v4 __attribute__((vector_size(16)));
    v8 eight = {};
    v4 four;
    if constexpr (kLanes == 16) {
        v8 half[2];
        std::memcpy(half, &v, sizeof half);
        eight = half[0] + half[1];
    } else if constexpr (kLanes == 8) {
        std::memcpy(&eight, &v, sizeof eight);
    }
    if constexpr (kLanes >= 8) {
        v4 quarter[2];
        std::memcpy(quarter, &eight, sizeof eight);
        four = quarter[0] + quarter[1];
    } else {
        std::memcpy(&four, &v, sizeof four);
    }
    return (four[0] + four[2]) + (four[1] + four[3]);
}
inline vf max16(vf a, vf b) { return a > b ? a : b; }

// Lane l of the result is a[l] and a[l ^ kStride] combined, or b's where l has the bit kStride.
template <int kStride, typename V, typename Combine, size_t... l>
inline V interleaved(V a, V b, Combine combine, std::index_sequence<l...>) {
#if defined(__clang__)
    V own = __builtin_shufflevector(a, b, (l & kStride ? kLanes + l : l)...);
    V other = __builtin_shufflevector(a, b, (l & kStride ? kLanes + (l ^ kStride) : l ^ kStride)...);
#else
    V own = __builtin_shuffle(a, b, vi{(l & kStride ? kLanes + l : l)...});
    V other = __builtin_shuffle(a, b, vi{(l & kStride ? kLanes + (l ^ kStride) : l ^ kStride)...});
#endif
    return combine(own, other);
}
template <int kStride, typename V, typename Combine>
inline V interleaved(V a, V b, Combine combine) {
    return interleaved<kStride>(a, b, combine, std::make_index_sequence<kLanes>{});
}
template <int kStride>
inline vf interleaved_sums(vf a, vf b) {
    return interleaved<kStride>(a, b, [](vf one, vf other) { return one + other; });
}

// Lane l of the result is all those lanes k of vector l % kCount combined for which k / kCount == l / kCount.
template <int kCount, typename V, typename Combine>
inline V each_combined(const V *vectors, Combine combine) {
    if constexpr (kCount == 1) {
        return *vectors;
    } else {
        constexpr int kHalf = kCount / 2;
        V low = each_combined<kHalf>(vectors, combine), high = each_combined<kHalf>(vectors + kHalf, combine);
        return interleaved<kHalf>(low, high, combine);
    }
}

// Cephes' polynomial, 2 ulp; arguments are clamped to where the result is a normal number. A NaN does not survive.
inline vf exp16(vf x) {
    x = max16(x, splat(-87.0f));
    x = x < 87.0f ? x : splat(87.0f);
    vf shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: the fraction falls off
    vf n = shifted - 12582912.0f;
    vf r = x - n * 0.693359375f + n * 2.12194440e-4f;
    vf p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    vi bits = (__builtin_convertvector(n, vi) + 127) << 23;
    vf scale;
    std::memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

// The work of one kernel call is worth a hand-over to other threads from about so many elements on.
constexpr int64_t kParallel = 16384;

// Apply a function of lanes to `size` elements; what does not fill a vector goes through a padded one.
template <typename Body>
inline void for_lanes(int64_t size, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) body(i, kLanes);
    if (i < size) body(i, size - i);
}
template <typename T>
inline vf load_some(const T *p, int64_t count) {
    if (count == kLanes) return load16(p);
    T padded[kLanes] = {};
    std::memcpy(padded, p, count * sizeof(T));
    return load16(padded);
}
template <typename T>
inline void store_some(T *p, vf v, int64_t count) {
    if (count == kLanes) return store16(p, v);
    T padded[kLanes];
    store16(padded, v);
    std::memcpy(p, padded, count * sizeof(T));
}

}  // namespace
