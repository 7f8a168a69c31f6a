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
        vf v = load_some(sums, count);
        if (bias != nullptr) v += load_some(bias + row, count);
        if (residual != nullptr) v += load_some(residual + token * pitch + row, count);
        store_some(y + token * pitch + row, v, count);
    }
};

}  // namespace
