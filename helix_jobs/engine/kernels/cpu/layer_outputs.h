// Where the sums of a layer go: with bias and residual, rounded once.

#pragma once

#include <type_traits>

#include "pairs.h"

namespace {

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
