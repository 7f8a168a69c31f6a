// Where the sums of a layer go: with bias and residual, rounded once.

#pragma once

#include "lanes.h"

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
};

}  // namespace
