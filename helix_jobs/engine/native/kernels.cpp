// CPU kernels of the decoder, compiled on the machine they run on. Plain C interface: no torch headers, no Python.
//
// Every kernel has a counterpart in torch operators that defines what it computes; the tests compare the two.
// Sums, rotations and attention weights are float32 whatever the storage type.

#include "attention.h"

namespace {

template <typename T>
void rms_norm(const T *x, const T *weight, T *y, int64_t rows, int64_t size, float eps) {
#pragma omp parallel for schedule(static) if (rows * size > kParallel)
    for (int64_t row = 0; row < rows; row++) {
        const T *in = x + row * size;
        T *out = y + row * size;
        vf sums = {};
        for_lanes(size, [&](int64_t i, int64_t n) {
            vf v = load_some(in + i, n);
            sums += v * v;
        });
        float scale = 1.0f / std::sqrt(sum16(sums) / static_cast<float>(size) + eps);
        for_lanes(size, [&](int64_t i, int64_t n) {
            store_some(out + i, load_some(in + i, n) * scale * load_some(weight + i, n), n);
        });
    }
}

template <typename T>
void gated_silu(const T *x, T *y, int64_t rows, int64_t size) {
#pragma omp parallel for schedule(static) if (rows * size > kParallel)
    for (int64_t row = 0; row < rows; row++) {
        const T *gate = x + row * 2 * size;
        const T *up = gate + size;
        T *out = y + row * size;
        for_lanes(size, [&](int64_t i, int64_t n) {
            vf g = load_some(gate + i, n);
            store_some(out + i, g / (1.0f + exp16(-g)) * load_some(up + i, n), n);
        });
    }
}

// Rotate queries and keys, write queries out and keys and values to the cache.
template <typename T>
void rotate_and_store(const T *qkv, const int64_t *positions, const int64_t *write_rows, const T *cos, const T *sin,
                      T *queries, T *keys, T *values, int64_t tokens, int64_t heads, int64_t kv_heads,
                      int64_t head_dim, int64_t rotary_dim) {
    int64_t half = rotary_dim / 2, width = (heads + 2 * kv_heads) * head_dim;
#pragma omp parallel for schedule(static) if (tokens * width > kParallel)
    for (int64_t token = 0; token < tokens; token++) {
        const T *in = qkv + token * width;
        const T *c = cos + positions[token] * rotary_dim;
        const T *s = sin + positions[token] * rotary_dim;
        for (int64_t head = 0; head < heads + kv_heads; head++) {
            const T *x = in + head * head_dim;
            T *y = head < heads ? queries + (token * heads + head) * head_dim
                                : keys + write_rows[token * kv_heads + head - heads] * head_dim;
            for_lanes(half, [&](int64_t i, int64_t n) {
                vf first = load_some(x + i, n), second = load_some(x + i + half, n);
                store_some(y + i, first * load_some(c + i, n) + second * load_some(s + i, n), n);
                store_some(y + i + half, second * load_some(c + i + half, n) + first * load_some(s + i + half, n), n);
            });
            std::memcpy(y + rotary_dim, x + rotary_dim, (head_dim - rotary_dim) * sizeof(T));
        }
        for (int64_t head = 0; head < kv_heads; head++)
            std::memcpy(values + write_rows[token * kv_heads + head] * head_dim,
                        in + (heads + kv_heads + head) * head_dim, head_dim * sizeof(T));
    }
}

template <typename T>
void paged_attention(const T *queries, const T *keys, const T *values, const int64_t *slices, const int32_t *blocks,
                   T *output, int64_t num_slices, int64_t heads, int64_t kv_heads, int64_t block_size, float scaling) {
#pragma omp parallel
    {
        std::vector<float> scratch;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_slices * kv_heads; task++) {
            // first token, tokens, start position, first entry in blocks
            const int64_t *slice = slices + task / kv_heads * 4;
            int64_t offset = slice[0] * heads * kHeadDim;
            attend_slice<T, T>(queries + offset, keys, values, blocks + slice[3], output + offset, slice[1],
                                      slice[2], task % kv_heads, heads, kv_heads, block_size, scaling, scratch);
        }
    }
}

// Scale scores, hide what a query must not see, and make attention weights of them, in place.
template <typename T>
void masked_softmax(T *scores, const int32_t *visible, int64_t slices, int64_t heads, int64_t queries, int64_t keys,
                    float scaling) {
#pragma omp parallel for schedule(static) if (slices * heads * queries * keys > kParallel)
    for (int64_t row = 0; row < slices * heads * queries; row++) {
        T *s = scores + row * keys;
        int64_t seen = visible[row / (heads * queries) * queries + row % queries];
        int64_t whole = seen / kLanes * kLanes;
        // Scores are scaled as they are read: one more product is cheaper than one more pass.
        vf highest = splat(-INFINITY), probe = {};
        for (int64_t i = 0; i < whole; i += kLanes) {
            vf v = load16(s + i);
            highest = max16(highest, v);
            probe += v * 0.0f;
        }
        float top = -INFINITY, rest = 0;
        for (int i = 0; i < kLanes; i++) top = std::max(top, highest[i]);
        float last[kLanes] = {};
        if (whole < seen) store16(last, load_some(s + whole, seen - whole));
        for (int64_t i = whole; i < seen; i++) {
            top = std::max(top, last[i - whole]);
            rest += last[i - whole] * 0.0f;
        }
        vf totals = {};
        for (int64_t i = 0; i < whole; i += kLanes) totals += exp16((load16(s + i) - top) * scaling);
        for (int64_t i = whole; i < seen; i++) {
            last[i - whole] = exp16(splat((last[i - whole] - top) * scaling))[0];
            rest += last[i - whole];
        }
        // exp16 makes a number of a NaN; what is not finite has to be seen.
        float scale = 1.0f / (sum16(totals) + rest) + sum16(probe);
        for (int64_t i = 0; i < whole; i += kLanes)
            store16(s + i, exp16((load16(s + i) - top) * scaling) * scale);
        for (int64_t i = whole; i < seen; i++) last[i - whole] *= scale;
        if (whole < seen) store_some(s + whole, load16(last), seen - whole);
        std::memset(s + seen, 0, (keys - seen) * sizeof(T));
    }
}

// Round each row to whole numbers from -127 to 127, shifted by `zero`; scales[row] is what one step is worth.
template <typename T>
void quantize_rows(const T *x, uint8_t *y, float *scales, int64_t rows, int64_t size, float smallest, int32_t zero) {
#pragma omp parallel for schedule(static) if (rows * size > kParallel)
    for (int64_t row = 0; row < rows; row++) {
        const T *in = x + row * size;
        uint8_t *out = y + row * size;
        vf highest = {}, probe = {};
        for_lanes(size, [&](int64_t i, int64_t n) {
            vf v = load_some(in + i, n);
            highest = max16(highest, max16(v, -v));
            probe += v * 0.0f;
        });
        float top = smallest;
        for (int i = 0; i < kLanes; i++) top = std::max(top, highest[i]);
        float scale = top / 127.0f, inverse = 127.0f / top;
        typedef uint8_t vb __attribute__((vector_size(16)));
        for_lanes(size, [&](int64_t i, int64_t n) {
            vf shifted = load_some(in + i, n) * inverse + 12582912.0f;  // rounds to nearest even, as in exp16
            vb bytes = __builtin_convertvector(__builtin_convertvector(shifted - 12582912.0f, vi) + zero, vb);
            std::memcpy(out + i, &bytes, n);
        });
        // A row that is not finite has no scale: its products must not look finite.
        scales[row] = scale + sum16(probe);
    }
}

// output = product * scales[row] + bias + residual; bias and residual may be null.
template <typename T>
void scale_rows(const float *product, const float *scales, const float *bias, const T *residual, T *output,
                int64_t rows, int64_t size) {
#pragma omp parallel for schedule(static) if (rows * size > kParallel)
    for (int64_t row = 0; row < rows; row++) {
        for_lanes(size, [&](int64_t i, int64_t n) {
            vf v = load_some(product + row * size + i, n) * scales[row];
            if (bias != nullptr) v += load_some(bias + i, n);
            if (residual != nullptr) v += load_some(residual + row * size + i, n);
            store_some(output + row * size + i, v, n);
        });
    }
}

}  // namespace

#define KERNELS(NAME, T)                                                                                             \
    EXPORT void rms_norm_##NAME(const T *x, const T *weight, T *y, int64_t rows, int64_t size, float eps) {         \
        rms_norm(x, weight, y, rows, size, eps);                                                                     \
    }                                                                                                                \
    EXPORT void gated_silu_##NAME(const T *x, T *y, int64_t rows, int64_t size) { gated_silu(x, y, rows, size); }   \
    EXPORT void rotate_and_store_##NAME(const T *qkv, const int64_t *positions, const int64_t *write_rows,          \
                                        const T *cos, const T *sin, T *queries, T *keys, T *values, int64_t tokens,  \
                                        int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t rotary_dim) {     \
        rotate_and_store(qkv, positions, write_rows, cos, sin, queries, keys, values, tokens, heads, kv_heads,       \
                         head_dim, rotary_dim);                                                                      \
    }                                                                                                                \
    EXPORT void paged_attention_##NAME(const T *queries, const T *keys, const T *values, const int64_t *slices,     \
                                       const int32_t *blocks, T *output, int64_t num_slices, int64_t heads,          \
                                       int64_t kv_heads, int64_t block_size, float scaling) {                        \
        paged_attention(queries, keys, values, slices, blocks, output, num_slices, heads, kv_heads, block_size,      \
                        scaling);                                                                                    \
    }                                                                                                                \
    EXPORT void masked_softmax_##NAME(T *scores, const int32_t *visible, int64_t slices, int64_t heads,             \
                                      int64_t queries, int64_t keys, float scaling) {                                \
        masked_softmax(scores, visible, slices, heads, queries, keys, scaling);                                      \
    }                                                                                                                \
    EXPORT void quantize_rows_##NAME(const T *x, uint8_t *y, float *scales, int64_t rows, int64_t size,             \
                                     float smallest, int32_t zero) {                                                 \
        quantize_rows(x, y, scales, rows, size, smallest, zero);                                                     \
    }                                                                                                                \
    EXPORT void scale_rows_##NAME(const float *product, const float *scales, const float *bias, const T *residual,  \
                                  T *output, int64_t rows, int64_t size) {                                           \
        scale_rows(product, scales, bias, residual, output, rows, size);                                             \
    }

KERNELS(float32, float)
KERNELS(bfloat16, bf16)
