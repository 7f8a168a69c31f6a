// Where the sums of a layer go: with bias and residual, rounded once.

#pragma once

#include <type_traits>

#include "pairs.h"

namespace {

// Eight numbers, where a register has sixteen, too.
typedef float Eight __attribute__((vector_size(32)));
inline Eight load_eight(const float *p) {
    Eight v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
inline Eight load_eight(const bf16 *p) {
    typedef uint16_t Halves __attribute__((vector_size(16)));
    typedef uint32_t Words __attribute__((vector_size(32)));
    Halves halves;
    std::memcpy(&halves, p, sizeof halves);
    return (Eight)(__builtin_convertvector(halves, Words) << 16);
}
inline void store_eight(float *p, Eight v) { std::memcpy(p, &v, sizeof v); }
inline void store_eight(bf16 *p, Eight v) {
    typedef uint16_t Halves __attribute__((vector_size(16)));
    typedef uint32_t Words __attribute__((vector_size(32)));
    Words wide = (Words)v, rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;  // as `store16`
    Words is_nan = (Words)((wide & 0x7fffffff) > 0x7f800000);
    Halves halves = __builtin_convertvector((rounded & ~is_nan) | (is_nan & 0x7fc0), Halves);
    std::memcpy(p, &halves, sizeof halves);
}

// The outputs of one matrix out of `pitch` of a layer. All point to the first of them; bias and residual may be null.
template <typename T>
struct Outputs {
    const T *bias, *residual;
    T *y;
    int64_t pitch;

    void put(int64_t token, int64_t row, int64_t count, const float *sums) const {
        for_lanes(count, [&](int64_t i, int64_t n) {
            int64_t place = token * pitch + row + i;
            vf v = load_some(sums + i, n);
            if (bias != nullptr) v += load_some(bias + row + i, n);
            if (residual != nullptr) v += load_some(residual + place, n);
            store_some(y + place, v, n);
        });
    }
    void put_eight(int64_t token, int64_t row, const float *sums) const {
        int64_t place = token * pitch + row;
        Eight v = load_eight(sums);
        if (bias != nullptr) v += load_eight(bias + row);
        if (residual != nullptr) v += load_eight(residual + place);
        store_eight(y + place, v);
    }
    // Those from a later one on.
    Outputs from(int64_t row) const {
        return {bias == nullptr ? nullptr : bias + row, residual == nullptr ? nullptr : residual + row, y + row, pitch};
    }
#if HAS_BF16_DOT
    // The same as `put` of 32 sums, but for subnormal outputs, which become zero.
    void put_line(int64_t token, int64_t row, const float *low, const float *high) const {
        static_assert(std::is_same_v<T, bf16>, "rounds to bfloat16");
        int64_t place = token * pitch + row;
        vf first = load16(low), second = load16(high);
        if (bias != nullptr) first += load16(bias + row), second += load16(bias + row + kLanes);
        if (residual != nullptr) first += load16(residual + place), second += load16(residual + place + kLanes);
        store_line(y + place, reinterpret_cast<__m512>(first), reinterpret_cast<__m512>(second));
    }
#endif
};

}  // namespace
