// Attention of a few queries over the blocks of a paged cache.

#pragma once

#include "lanes.h"

namespace {

// Keys of a slice are gone through in chunks that stay in the first-level cache while all rows use them.
constexpr int64_t kChunk = 128;

#ifndef HELIX_HEAD_DIM
#error "compile with -DHELIX_HEAD_DIM=<a multiple of 16>: loops over a head are unrolled"
#endif
constexpr int64_t kHeadDim = HELIX_HEAD_DIM;
constexpr int kVectors = kHeadDim / kLanes;
static_assert(kHeadDim % kLanes == 0, "a head is whole vectors");

// One slice's queries of one key-value head, straight from the cache's blocks.
template <typename Q, typename T>
void attend_slice(const Q *queries, const T *keys, const T *values, const int32_t *blocks, Q *output, int64_t num_new,
                  int64_t start, int64_t head, int64_t heads, int64_t kv_heads, int64_t block_size, float scaling,
                  std::vector<float> &scratch) {
    constexpr int64_t head_dim = kHeadDim;
    int64_t share = heads / kv_heads, rows = num_new * share, length = start + num_new;
    int64_t padded = (length + kLanes - 1) / kLanes * kLanes;
    scratch.resize(rows * (padded + 2 * head_dim));
    float *scores = scratch.data();         // [rows, padded]
    float *q = scores + rows * padded;      // [rows, head_dim]
    float *sums = q + rows * head_dim;      // [rows, head_dim]
    auto place = [&](int64_t row) { return ((row / share) * heads + head * share + row % share) * head_dim; };
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < head_dim; i += kLanes) {
            store16(q + row * head_dim + i, load16(queries + place(row) + i) * scaling);
            store16(sums + row * head_dim + i, vf{});
        }
    auto at = [&](const T *pool, int64_t key) {
        return pool + ((blocks[key / block_size] * kv_heads + head) * block_size + key % block_size) * head_dim;
    };
    for (int64_t key = 0; key < length; key++) {
        const T *k = at(keys, key);
        vf lanes[kVectors];
        for (int i = 0; i < kVectors; i++) lanes[i] = load16(k + i * kLanes);
        for (int64_t row = 0; row < rows; row++) {
            const float *one = q + row * head_dim;
            vf sum = lanes[0] * load16(one);
            for (int i = 1; i < kVectors; i++) sum += lanes[i] * load16(one + i * kLanes);
            scores[row * padded + key] = sum16(sum);
        }
    }
    for (int64_t row = 0; row < rows; row++) {
        float *s = scores + row * padded;
        int64_t visible = start + row / share + 1;
        for (int64_t key = visible; key < padded; key++) s[key] = -INFINITY;
        vf highest = load16(s), probe = {};
        for (int64_t key = 0; key < visible; key += kLanes) {
            vf v = load16(s + key);
            highest = max16(highest, v);
            // Not finite times zero is NaN, but for the minus infinities put there above.
            probe += (v == -INFINITY ? vf{} : v) * 0.0f;
        }
        float top = highest[0];
        for (int i = 1; i < kLanes; i++) top = std::max(top, highest[i]);
        vf totals = {};
        for (int64_t key = 0; key < padded; key += kLanes) {
            vf v = load16(s + key);
            vf e = v == -INFINITY ? vf{} : exp16(v - top);
            store16(s + key, e);
            totals += e;
        }
        // exp16 makes a number of a NaN; what is not finite has to be seen.
        float scale = 1.0f / sum16(totals) + sum16(probe);
        for (int64_t key = 0; key < padded; key += kLanes) store16(s + key, load16(s + key) * scale);
    }
    for (int64_t first = 0; first < length; first += kChunk) {
        int64_t last = std::min(first + kChunk, length);
        for (int64_t row = 0; row < rows; row++) {
            const float *s = scores + row * padded;
            vf lanes[kVectors];
            for (int i = 0; i < kVectors; i++) lanes[i] = load16(sums + row * head_dim + i * kLanes);
            for (int64_t key = first; key < last; key++) {
                const T *v = at(values, key);
                for (int i = 0; i < kVectors; i++) lanes[i] += s[key] * load16(v + i * kLanes);
            }
            for (int i = 0; i < kVectors; i++) store16(sums + row * head_dim + i * kLanes, lanes[i]);
        }
    }
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < head_dim; i += kLanes)
            store16(output + place(row) + i, load16(sums + row * head_dim + i));
}

}  // namespace
