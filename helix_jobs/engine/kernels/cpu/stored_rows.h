// Keys and values as the cache stores them: in the model's type, or as int8 with a float32 scale for each row.
//
// A row is one token's key, or its value, of one key-value head. `attention/stored_rows.py` says why it is rounded so,
// and rounds alike, bit for bit.

#pragma once

#include <type_traits>

#include "lanes.h"

namespace {

// One layer's pools, and the scales of their rows where they have any.
template <typename T>
struct Pools {
    T *keys, *values;
    float *key_scales = nullptr, *value_scales = nullptr;
};

template <typename T>
constexpr bool kHasScales = std::is_same_v<T, int8_t>;

// Round a row to whole numbers from -127 to 127; return its scale, which is not finite where the row is not.
template <typename T>
inline float round_row(const T *x, int8_t *y, int64_t size) {
    typedef int8_t vb __attribute__((vector_size(kLanes)));
    vf highest = {}, probe = {};
    for_lanes(size, [&](int64_t i, int64_t n) {
        vf v = load_some(x + i, n);
        highest = max16(highest, max16(v, -v));
        probe += v * 0.0f;
    });
    float top = 1e-12f;
    for (int i = 0; i < kLanes; i++) top = std::max(top, highest[i]);
    float scale = top / 127.0f;
    for_lanes(size, [&](int64_t i, int64_t n) {
        vf shifted = load_some(x + i, n) / scale + 12582912.0f;  // rounds to nearest even, as in exp16
        vb whole = __builtin_convertvector(__builtin_convertvector(shifted - 12582912.0f, vi), vb);
        std::memcpy(y + i, &whole, n);
    });
    return scale + sum16(probe);
}

// Store a key and a value of one head in row `row`.
template <typename S, typename T>
inline void store_rows(const Pools<S> &pools, int64_t row, const T *key, const T *value, int64_t size) {
    S *keys = pools.keys + row * size, *values = pools.values + row * size;
    if constexpr (kHasScales<S>) {
        pools.key_scales[row] = round_row(key, keys, size);
        pools.value_scales[row] = round_row(value, values, size);
    } else if constexpr (std::is_same_v<S, T>) {
        std::memcpy(keys, key, size * sizeof(S));
        std::memcpy(values, value, size * sizeof(S));
    } else {
        for_lanes(size, [&](int64_t i, int64_t n) {
            store_some(keys + i, load_some(key + i, n), n);
            store_some(values + i, load_some(value + i, n), n);
        });
    }
}

}  // namespace
