// Attention of a few queries over the blocks of a paged cache.

#pragma once

#include "lanes.h"

namespace {

#ifndef HEAD_DIM
#error "compile with -DHEAD_DIM=<a multiple of 16>: loops over a head are unrolled"
#endif
constexpr int64_t kHeadDim = HEAD_DIM;
constexpr int kVectors = kHeadDim / kLanes;
static_assert(kHeadDim % kLanes == 0, "a head is whole vectors");

// Rows of weights that go through a block's values together: each value is widened once for all of them.
constexpr int kTogether = kVectors <= 6 ? 3 : 2;

// sums[row] += weights[row] . values, over one block.
template <typename T, int kRows>
inline void add_values(const float *weights, int64_t stride, const T *values, int64_t count, float *sums) {
    vf lanes[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
        for (int i = 0; i < kVectors; i++) lanes[r][i] = load16(sums + r * kHeadDim + i * kLanes);
    for (int64_t key = 0; key < count; key++, values += kHeadDim)
        for (int i = 0; i < kVectors; i++) {
            vf wide = load16(values + i * kLanes);
            for (int r = 0; r < kRows; r++) lanes[r][i] += weights[r * stride + key] * wide;
        }
    for (int r = 0; r < kRows; r++)
        for (int i = 0; i < kVectors; i++) store16(sums + r * kHeadDim + i * kLanes, lanes[r][i]);
}

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
    // Call `body(first key, keys of the block, its rows)` block by block. Blocks lie anywhere in memory, so no processor
    // foresees the next one: it is asked for while this one is worked on.
    auto over_blocks = [&](const T *pool, auto body) {
        int64_t size = block_size * head_dim;
        auto block_at = [&](int64_t block) { return pool + (blocks[block] * kv_heads + head) * size; };
        for (int64_t first = 0, block = 0; first < length; first += block_size, block++) {
            if (first + 2 * block_size < length) {
                const char *next = reinterpret_cast<const char *>(block_at(block + 2));
                for (int64_t i = 0; i < static_cast<int64_t>(size * sizeof(T)); i += 64) __builtin_prefetch(next + i);
            }
            body(first, std::min(block_size, length - first), block_at(block));
        }
    };
    over_blocks(keys, [&](int64_t first, int64_t count, const T *k) {
        for (int64_t key = first; key < first + count; key++, k += head_dim) {
            vf lanes[kVectors];
            for (int i = 0; i < kVectors; i++) lanes[i] = load16(k + i * kLanes);
            for (int64_t row = 0; row < rows; row++) {
                const float *one = q + row * head_dim;
                vf sum = lanes[0] * load16(one);
                for (int i = 1; i < kVectors; i++) sum += lanes[i] * load16(one + i * kLanes);
                scores[row * padded + key] = sum16(sum);
            }
        }
    });
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
    over_blocks(values, [&](int64_t first, int64_t count, const T *v) {
        int64_t row = 0;
        for (; row + kTogether <= rows; row += kTogether)
            add_values<T, kTogether>(scores + row * padded + first, padded, v, count, sums + row * head_dim);
        for (; row < rows; row++) add_values<T, 1>(scores + row * padded + first, padded, v, count, sums + row * head_dim);
    });
    for (int64_t row = 0; row < rows; row++)
        for (int64_t i = 0; i < head_dim; i += kLanes)
            store16(output + place(row) + i, load16(sums + row * head_dim + i));
}

}  // namespace
