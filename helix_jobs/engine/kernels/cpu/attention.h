// Attention of a few queries over the blocks of a paged cache.

#pragma once

#include <memory>
#include <numeric>
#include <type_traits>

#include "softmax.h"
#include "stored_rows.h"
#include "tiles.h"

namespace {

#ifndef HEAD_DIM
#error "compile with -DHEAD_DIM=<a multiple of 16>: loops over a head are unrolled"
#endif
constexpr int64_t kHeadDim = HEAD_DIM;
constexpr int kVectors = kHeadDim / kLanes;
static_assert(kHeadDim % kLanes == 0, "a head is whole vectors");

// Where the processor multiplies pairs of bfloat16, attention weights are rounded to it for their product with the
// values, as torch's own attention does; sums are float32 everywhere.
template <typename Q, typename T>
constexpr bool kInPairs = HAS_BF16_DOT && kVectors % 2 == 0 &&
                          (std::is_same_v<T, bf16> || (std::is_same_v<T, int8_t> && std::is_same_v<Q, bf16>));

// Rows of weights that go through a block's values together: each value is loaded once for all of them.
constexpr int kTogether = kVectors <= 6 ? 3 : 2;

// Products of a query and a key, summed over the head but for the last sixteen.
template <typename Q, typename T>
inline vf lane_products(const Q *query, const T *key) {
#if HAS_BF16_DOT
    if constexpr (std::is_same_v<Q, bf16> && kInPairs<Q, T>) {
        __m512 sum = _mm512_setzero_ps();
        for (int64_t i = 0; i < kHeadDim; i += 2 * kLanes)
            sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(load32(query + i)),
                                   reinterpret_cast<__m512bh>(load32(key + i)));
        return reinterpret_cast<vf>(sum);
    }
#endif
    vf sum = load16(query) * load16(key);
    for (int64_t i = kLanes; i < kHeadDim; i += kLanes) sum += load16(query + i) * load16(key + i);
    return sum;
}

// Products of a query with kCount consecutive keys: key i's is the sum of those lanes l for which l % kCount == i. One
// tree of additions for sixteen keys takes a quarter of what sixteen sums take; every key's sum has the same order.
template <int kCount, typename Q, typename T>
inline vf key_products(const Q *query, const T *keys) {
    if constexpr (kCount == 1) {
        return lane_products(query, keys);
    } else {
        constexpr int kHalf = kCount / 2;
        return interleaved_sums<kHalf>(key_products<kHalf>(query, keys),
                                       key_products<kHalf>(query, keys + kHalf * kHeadDim));
    }
}

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

#if HAS_BF16_DOT
// The same by pairs of keys, with weights in bfloat16 that are zero behind the last key. Each pair of vectors of `sums`
// holds its 32 elements in the order that interleaving 16-bit lanes leaves them in; `in_order` puts them right.
template <typename T, int kRows>
inline void add_values(const bf16 *weights, int64_t stride, const T *values, int64_t count, float *sums) {
    __m512 lanes[kRows][kVectors];
    for (int r = 0; r < kRows; r++)
        for (int i = 0; i < kVectors; i++) lanes[r][i] = _mm512_loadu_ps(sums + r * kHeadDim + i * kLanes);
    for (int64_t key = 0; key < count; key += 2, values += 2 * kHeadDim) {
        __m512bh pairs[kRows];
        for (int r = 0; r < kRows; r++) {
            int32_t pair;
            std::memcpy(&pair, weights + r * stride + key, sizeof pair);
            if (key + 1 == count) pair &= 0xffff;  // the row of weights may end here
            pairs[r] = reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
        }
        for (int i = 0; i < kVectors; i += 2) {
            __m512i one = load32(values + i * kLanes);
            __m512i next = load32(values + kHeadDim + i * kLanes, key + 1 < count);
            __m512bh low = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(one, next));
            __m512bh high = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(one, next));
            for (int r = 0; r < kRows; r++) {
                lanes[r][i] = _mm512_dpbf16_ps(lanes[r][i], pairs[r], low);
                lanes[r][i + 1] = _mm512_dpbf16_ps(lanes[r][i + 1], pairs[r], high);
            }
        }
    }
    for (int r = 0; r < kRows; r++)
        for (int i = 0; i < kVectors; i++) _mm512_storeu_ps(sums + r * kHeadDim + i * kLanes, lanes[r][i]);
}

inline void in_order(float *sums) {
    const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    for (int64_t i = 0; i < kHeadDim; i += 2 * kLanes) {
        __m512 low = _mm512_loadu_ps(sums + i), high = _mm512_loadu_ps(sums + i + kLanes);
        _mm512_storeu_ps(sums + i, _mm512_permutex2var_ps(low, first, high));
        _mm512_storeu_ps(sums + i + kLanes, _mm512_permutex2var_ps(low, second, high));
    }
}
#endif

// Keys that a window hides are skipped in these numbers, so that sums keep their order wherever a prompt is cut.
constexpr int64_t kSkippedKeys = 64;

// A slice's keys or values of one head, block by block.
template <typename T>
struct PagedRows {
    const T *pool;
    const int32_t *blocks;
    int64_t length, head, kv_heads, block_size;

    // Call `body(first key, keys of the block, its rows)`. Blocks lie anywhere in memory, so no processor foresees the
    // next one: it is asked for while this one is worked on.
    template <typename Body>
    void each(Body body) const {
        int64_t size = block_size * kHeadDim;
        auto block_at = [&](int64_t block) { return pool + (blocks[block] * kv_heads + head) * size; };
        for (int64_t first = 0, block = 0; first < length; first += block_size, block++) {
            if (first + 2 * block_size < length) {
                const char *next = reinterpret_cast<const char *>(block_at(block + 2));
                for (int64_t i = 0; i < static_cast<int64_t>(size * sizeof(T)); i += 64) __builtin_prefetch(next + i);
            }
            body(first, std::min(block_size, length - first), block_at(block));
        }
    }
};

// Copy a slice's scales of one head to `scales`, `padded` of them.
inline void collect_scales(const float *pool, const int32_t *blocks, int64_t length, int64_t padded, int64_t head,
                           int64_t kv_heads, int64_t block_size, float *scales) {
    for (int64_t first = 0, block = 0; first < length; first += block_size, block++)
        std::memcpy(scales + first, pool + (blocks[block] * kv_heads + head) * block_size,
                    std::min(block_size, length - first) * sizeof(float));
    std::fill(scales + length, scales + padded, 0.0f);
}

// Numbers of 8 bits as a row's queries are multiplied with them, which is exact.
template <typename Q>
using Wide = std::conditional_t<kInPairs<Q, int8_t>, bf16, float>;

// Sixteen keys of 8 bits, once for all rows.
inline void widen(const int8_t *keys, float *wide) {
    for (int64_t i = 0; i < kLanes * kHeadDim; i += kLanes) store16(wide + i, load16(keys + i));
}
#if HAS_BF16_DOT
inline void widen(const int8_t *keys, bf16 *wide) {
    for (int64_t i = 0; i < kLanes * kHeadDim; i += 2 * kLanes) _mm512_storeu_si512(wide + i, load32(keys + i));
}
#endif

// What a thread needs for one slice at a time.
struct Scratch {
    std::unique_ptr<float[]> numbers;
    std::vector<float> scales;
    int64_t size = 0;

    // Room for `count` numbers, which nobody has written, from the begin of a cache line on: a vector is as long as a
    // line, and one that lies across two lines takes two accesses.
    float *lines(int64_t count) {
        count += 64 / sizeof(float);
        if (count > size) numbers.reset(new float[count]), size = count;
        uintptr_t begin = reinterpret_cast<uintptr_t>(numbers.get());
        return numbers.get() + (64 - begin % 64) % 64 / sizeof(float);
    }
};

#if HAS_TILES
constexpr bool kFitsTiles = kHeadDim % (2 * kTile) == 0;
// So many keys' values are packed at once: sums go through memory once for all of them.
constexpr int64_t kPackedKeys = 64;

// `attend_slice` in matrix tiles. Blocks are whole tiles of keys.
template <typename T>
inline void attend_in_tiles(const bf16 *queries, const PagedRows<T> &keys, const PagedRows<T> &values, bf16 *output,
                            int64_t num_new, int64_t start, int64_t heads, const Scoring &scoring,
                            const Scales &row_scales, Scratch &scratch, Tiles &tiles) {
    constexpr int64_t kValueTile = kTile * kHeadDim;  // packed elements of sixteen keys
    int64_t share = heads / keys.kv_heads, rows = num_new * share, length = keys.length;
    int64_t padded = (length + kTile - 1) / kTile * kTile;
    // Rows a power of two apart would share few places of the first cache.
    int64_t pitch = padded % 256 == 0 ? padded + kTile : padded;
    // Fewer queries than a tile has rows take a smaller tile; more are padded to whole ones.
    int64_t tile_rows = std::min(rows, kTile), num_rows = (rows + tile_rows - 1) / tile_rows * tile_rows;
    // [num_rows, pitch]; then the weights
    float *scores = scratch.lines(num_rows * (pitch + kHeadDim + kHeadDim / 2 + 1) + kPackedKeys * kHeadDim / 2);
    float *sums = scores + num_rows * pitch;                               // [num_rows, head_dim]
    bf16 *packed = reinterpret_cast<bf16 *>(sums + num_rows * kHeadDim);   // of kPackedKeys
    bf16 *own = packed + kPackedKeys * kHeadDim;                           // [num_rows, head_dim]: queries
    float *scales = reinterpret_cast<float *>(own + num_rows * kHeadDim);  // [num_rows]
    const bf16 *weights = reinterpret_cast<const bf16 *>(scores);
    int64_t weight_pitch = 2 * pitch;
    auto place = [&](int64_t row) { return ((row / share) * heads + keys.head * share + row % share) * kHeadDim; };
    for (int64_t row = 0; row < rows; row++)
        std::memcpy(own + row * kHeadDim, queries + place(row), kHeadDim * sizeof(bf16));
    std::memset(own + rows * kHeadDim, 0, (num_rows - rows) * kHeadDim * sizeof(bf16));
    std::memset(sums, 0, num_rows * kHeadDim * sizeof(float));

    tiles.for_scores(tile_rows);
    keys.each([&](int64_t first, int64_t count, const T *k) {
        for (int64_t key = 0; key < count; key += kTile) {
            pack_keys<kHeadDim>(k + key * kHeadDim, packed);
            for (int64_t row = 0; row < num_rows; row += tile_rows)
                tile_scores<kHeadDim>(own + row * kHeadDim, packed, scores + row * pitch + first + key, pitch);
        }
    });
    for (int64_t row = 0; row < rows; row++)
        scales[row] = softmax_row<bf16>(scores + row * pitch, start + row / share + 1, padded, scoring,
                                        row_scales, keys.head * share + row % share);

    tiles.for_values(tile_rows);
    int64_t done = 0, ready = 0;  // keys whose values are in the sums, and packed behind them
    auto add = [&] {
        for (int64_t row = 0; row < num_rows; row += tile_rows)
            for (int64_t i = 0; i < kHeadDim; i += 4 * kTile) {
                auto add_some = [&](auto count) {
                    tile_values<decltype(count)::value>(weights + row * weight_pitch + done, weight_pitch,
                                                        packed + i * kTile, kValueTile, ready,
                                                        sums + row * kHeadDim + i, kHeadDim);
                };
                if (kHeadDim - i >= 4 * kTile)
                    add_some(std::integral_constant<int, 4>{});
                else
                    add_some(std::integral_constant<int, 2>{});
            }
        done += ready;
        ready = 0;
    };
    values.each([&](int64_t, int64_t count, const T *v) {
        for (int64_t key = 0; key < count; key += kTile) {
            pack_values<kHeadDim>(v + key * kHeadDim, count - key, packed + ready * kHeadDim);
            ready += kTile;
            if (ready == kPackedKeys) add();
        }
    });
    if (ready != 0) add();
    for (int64_t row = 0; row < rows; row++) {
        in_order(sums + row * kHeadDim);
        for (int64_t i = 0; i < kHeadDim; i += kLanes)
            store16(output + place(row) + i, load16(sums + row * kHeadDim + i) * scales[row]);
    }
}
#endif

// One slice's queries of one key-value head, straight from the cache's blocks. Inlined into a parallel region its loops
// are slower: gcc 12 keeps the region's variables beside theirs.
template <typename Q, typename T>
__attribute__((noinline)) void attend_slice(const Q *queries, const Pools<T> &pools, const int32_t *blocks, Q *output,
                                            int64_t num_new, int64_t start, int64_t head, int64_t heads,
                                            int64_t kv_heads, int64_t block_size, const Scoring &scoring,
                                            Scratch &scratch, [[maybe_unused]] Tiles *tiles) {
    constexpr int64_t head_dim = kHeadDim;
    if (scoring.window > 0) {
        int64_t unit = std::lcm(block_size, kSkippedKeys);
        int64_t skipped = std::max<int64_t>(0, start + 1 - scoring.window) / unit * unit;
        blocks += skipped / block_size, start -= skipped;
    }
    typedef std::conditional_t<kInPairs<Q, T>, bf16, float> Weight;
    int64_t share = heads / kv_heads, rows = num_new * share, length = start + num_new;
    int64_t padded = (length + kLanes - 1) / kLanes * kLanes;
    PagedRows<T> paged_keys{pools.keys, blocks, length, head, kv_heads, block_size};
    PagedRows<T> paged_values{pools.values, blocks, length, head, kv_heads, block_size};
    Scales row_scales;
    if constexpr (kHasScales<T>) {
        scratch.scales.resize(2 * padded);
        float *key_scales = scratch.scales.data(), *value_scales = key_scales + padded;
        collect_scales(pools.key_scales, blocks, length, padded, head, kv_heads, block_size, key_scales);
        collect_scales(pools.value_scales, blocks, length, padded, head, kv_heads, block_size, value_scales);
        row_scales = {key_scales, value_scales};
    }
#if HAS_TILES
    if constexpr (std::is_same_v<Q, bf16> && kInPairs<Q, T> && kFitsTiles) {
        if (tiles != nullptr && Tiles::is_allowed() && block_size % kTile == 0)
            return attend_in_tiles(queries, paged_keys, paged_values, output, num_new, start, heads, scoring,
                                   row_scales, scratch, *tiles);
    }
#endif
    // [rows, padded]; then the weights, from each row's begin on
    float *scores = scratch.lines(rows * (padded + head_dim + 1));
    float *sums = scores + rows * padded;    // [rows, head_dim]
    float *scales = sums + rows * head_dim;  // [rows]
    int64_t stride = padded * static_cast<int64_t>(sizeof(float) / sizeof(Weight));
    const Weight *weights = reinterpret_cast<const Weight *>(scores);
    auto place = [&](int64_t row) { return ((row / share) * heads + head * share + row % share) * head_dim; };
    std::memset(sums, 0, rows * head_dim * sizeof(float));
    // Whole vectors of keys may reach behind the last one, into what nobody has written: masked by the softmax. They
    // must not reach behind the row.
    bool is_whole = block_size % kLanes == 0;
    paged_keys.each([&](int64_t first, int64_t count, const T *k) {
        int64_t key = 0;
        for (; is_whole && key < count; key += kLanes) {
            auto score = [&](const auto *some) {
                for (int64_t row = 0; row < rows; row++)
                    store16(scores + row * padded + first + key, key_products<kLanes>(queries + place(row), some));
            };
            if constexpr (kHasScales<T>) {
                Wide<Q> wide[kLanes * kHeadDim];
                widen(k + key * head_dim, wide);
                score(wide);
            } else {
                score(k + key * head_dim);
            }
        }
        for (; key < count; key++)
            for (int64_t row = 0; row < rows; row++)
                scores[row * padded + first + key] = sum16(lane_products(queries + place(row), k + key * head_dim));
    });
    for (int64_t row = 0; row < rows; row++)
        scales[row] = softmax_row<Weight>(scores + row * padded, start + row / share + 1, padded, scoring,
                                          row_scales, head * share + row % share);
    paged_values.each([&](int64_t first, int64_t count, const T *v) {
        auto add = [&](int64_t row, auto together) {
            constexpr int kRows = decltype(together)::value;
            add_values<T, kRows>(weights + row * stride + first, stride, v, count, sums + row * head_dim);
        };
        int64_t row = 0;
        for (; row + kTogether <= rows; row += kTogether) add(row, std::integral_constant<int, kTogether>{});
        for (; row < rows; row++) add(row, std::integral_constant<int, 1>{});
    });
    for (int64_t row = 0; row < rows; row++) {
#if HAS_BF16_DOT
        if constexpr (kInPairs<Q, T>) in_order(sums + row * head_dim);
#endif
        for (int64_t i = 0; i < head_dim; i += kLanes)
            store16(output + place(row) + i, load16(sums + row * head_dim + i) * scales[row]);
    }
}

}  // namespace
