// Attention over the paged cache, compiled for heads of one size.
//
// As in kernels.cpp, torch operators define what each kernel computes. Rotations and attention weights are float32
// whatever the storage type.

#include "attention.h"
#include "shortage.h"

namespace {

// Rotate queries and keys, write queries out and keys and values to the cache.
template <typename T, typename S>
void rotate_and_store(const T *qkv, const int64_t *positions, const int64_t *write_rows, const T *cos, const T *sin,
                      T *queries, const Pools<S> &pools, int64_t tokens, int64_t heads, int64_t kv_heads,
                      int64_t head_dim, int64_t rotary_dim) {
    int64_t half = rotary_dim / 2, width = (heads + 2 * kv_heads) * head_dim;
#pragma omp parallel for schedule(static) if (tokens * width > kParallel)
    for (int64_t token = 0; token < tokens; token++) {
        const T *in = qkv + token * width;
        const T *c = cos + positions[token] * rotary_dim;
        const T *s = sin + positions[token] * rotary_dim;
        auto rotate = [&](const T *x, T *y) {
            for_lanes(half, [&](int64_t i, int64_t n) {
                vf first = load_some(x + i, n), second = load_some(x + i + half, n);
                store_some(y + i, first * load_some(c + i, n) + second * load_some(s + i, n), n);
                store_some(y + i + half, second * load_some(c + i + half, n) + first * load_some(s + i + half, n), n);
            });
            std::memcpy(y + rotary_dim, x + rotary_dim, (head_dim - rotary_dim) * sizeof(T));
        };
        for (int64_t head = 0; head < heads; head++)
            rotate(in + head * head_dim, queries + (token * heads + head) * head_dim);
        T key[kHeadDim];
        for (int64_t head = 0; head < kv_heads; head++) {
            rotate(in + (heads + head) * head_dim, key);
            store_rows(pools, write_rows[token * kv_heads + head], key, in + (heads + kv_heads + head) * head_dim,
                       head_dim);
        }
    }
}

template <typename T, typename S>
int32_t paged_attention(const T *queries, const Pools<S> &pools, const int64_t *pieces, const int32_t *blocks,
                        T *output, int64_t num_pieces, int64_t heads, int64_t kv_heads, int64_t block_size,
                        const Scoring &scoring) {
    Shortage shortage;
#pragma omp parallel
    {
        Scratch scratch;
        Tiles tiles;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_pieces * kv_heads; task++) {
            // first token, tokens, start position, first entry in blocks
            const int64_t *piece = pieces + task / kv_heads * 4;
            int64_t offset = piece[0] * heads * kHeadDim;
            shortage.run([&] {
                attend_slice<T, S>(queries + offset, pools, blocks + piece[3], output + offset, piece[1], piece[2],
                                   task % kv_heads, heads, kv_heads, block_size, scoring, scratch, &tiles);
            });
        }
    }
    return shortage.status();
}

}  // namespace

#define KERNELS(NAME, T)                                                                                             \
    EXPORT void rotate_and_store_##NAME(const T *qkv, const int64_t *positions, const int64_t *write_rows,           \
                                        const T *cos, const T *sin, T *queries, T *keys, T *values, int64_t tokens,  \
                                        int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t rotary_dim) {     \
        rotate_and_store(qkv, positions, write_rows, cos, sin, queries, Pools<T>{keys, values}, tokens, heads,       \
                         kv_heads, head_dim, rotary_dim);                                                            \
    }                                                                                                                \
    EXPORT void rotate_and_store_int8_##NAME(const T *qkv, const int64_t *positions, const int64_t *write_rows,      \
                                             const T *cos, const T *sin, T *queries, int8_t *keys, int8_t *values,   \
                                             float *key_scales, float *value_scales, int64_t tokens, int64_t heads,  \
                                             int64_t kv_heads, int64_t head_dim, int64_t rotary_dim) {               \
        rotate_and_store(qkv, positions, write_rows, cos, sin, queries,                                              \
                         Pools<int8_t>{keys, values, key_scales, value_scales}, tokens, heads, kv_heads, head_dim,   \
                         rotary_dim);                                                                                \
    }                                                                                                                \
    EXPORT int32_t paged_attention_##NAME(const T *queries, T *keys, T *values, const int64_t *pieces,               \
                                          const int32_t *blocks, T *output, int64_t num_pieces, int64_t heads,       \
                                          int64_t kv_heads, int64_t block_size, float scaling, float cap,            \
                                          int64_t window, const float *sinks) {                                      \
        return paged_attention(queries, Pools<T>{keys, values}, pieces, blocks, output, num_pieces, heads, kv_heads, \
                               block_size, Scoring{scaling, cap, window, sinks});                                    \
    }                                                                                                                \
    EXPORT int32_t paged_attention_int8_##NAME(const T *queries, int8_t *keys, int8_t *values, float *key_scales,    \
                                               float *value_scales, const int64_t *pieces, const int32_t *blocks,    \
                                               T *output, int64_t num_pieces, int64_t heads, int64_t kv_heads,       \
                                               int64_t block_size, float scaling, float cap, int64_t window,         \
                                               const float *sinks) {                                                 \
        return paged_attention(queries, Pools<int8_t>{keys, values, key_scales, value_scales}, pieces, blocks, output,\
                               num_pieces, heads, kv_heads, block_size, Scoring{scaling, cap, window, sinks});       \
    }

KERNELS(float32, float)
KERNELS(bfloat16, bf16)
