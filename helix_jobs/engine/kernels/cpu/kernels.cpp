// CPU kernels of the decoder, compiled on the machine they run on. Plain C interface: no torch headers, no Python.
//
// Every kernel has a counterpart in torch operators that defines what it computes; the tests compare the two.
// Sums, rotations and attention weights are float32 whatever the storage type.

#include "activations.h"
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

// The activation of each row; of a gated one the row's first half is the gate, by which the second is multiplied.
// `activation` is a lambda, for a pointer to a function would be called for each vector.
template <typename T, typename Activation>
void activate(const T *x, T *y, int64_t rows, int64_t size, bool is_gated, Activation activation) {
#pragma omp parallel for schedule(static) if (rows * size > kParallel)
    for (int64_t row = 0; row < rows; row++) {
        const T *in = x + row * (is_gated ? 2 * size : size);
        T *out = y + row * size;
        for_lanes(size, [&](int64_t i, int64_t n) {
            vf v = activation(load_some(in + i, n));
            if (is_gated) v *= load_some(in + size + i, n);
            store_some(out + i, v, n);
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
void paged_attention(const T *queries, const T *keys, const T *values, const int64_t *pieces, const int32_t *blocks,
                   T *output, int64_t num_pieces, int64_t heads, int64_t kv_heads, int64_t block_size,
                   const Scoring &scoring) {
#pragma omp parallel
    {
        std::vector<float> scratch;
        Tiles tiles;
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < num_pieces * kv_heads; task++) {
            // first token, tokens, start position, first entry in blocks
            const int64_t *piece = pieces + task / kv_heads * 4;
            int64_t offset = piece[0] * heads * kHeadDim;
            attend_slice<T, T>(queries + offset, keys, values, blocks + piece[3], output + offset, piece[1],
                               piece[2], task % kv_heads, heads, kv_heads, block_size, scoring, scratch, &tiles);
        }
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
    EXPORT void silu_##NAME(const T *x, T *y, int64_t rows, int64_t size, int32_t is_gated) {                        \
        activate(x, y, rows, size, is_gated != 0, [](vf v) { return silu16(v); });                                   \
    }                                                                                                                \
    EXPORT void gelu_##NAME(const T *x, T *y, int64_t rows, int64_t size, int32_t is_gated) {                        \
        activate(x, y, rows, size, is_gated != 0, [](vf v) { return gelu16(v); });                                   \
    }                                                                                                                \
    EXPORT void tanh_gelu_##NAME(const T *x, T *y, int64_t rows, int64_t size, int32_t is_gated) {                   \
        activate(x, y, rows, size, is_gated != 0, [](vf v) { return tanh_gelu16(v); });                              \
    }                                                                                                                \
    EXPORT void rotate_and_store_##NAME(const T *qkv, const int64_t *positions, const int64_t *write_rows,          \
                                        const T *cos, const T *sin, T *queries, T *keys, T *values, int64_t tokens,  \
                                        int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t rotary_dim) {     \
        rotate_and_store(qkv, positions, write_rows, cos, sin, queries, keys, values, tokens, heads, kv_heads,       \
                         head_dim, rotary_dim);                                                                      \
    }                                                                                                                \
    EXPORT void paged_attention_##NAME(const T *queries, const T *keys, const T *values, const int64_t *pieces,     \
                                       const int32_t *blocks, T *output, int64_t num_pieces, int64_t heads,          \
                                       int64_t kv_heads, int64_t block_size, float scaling, float cap,               \
                                       int64_t window, const float *sinks) {                                         \
        paged_attention(queries, keys, values, pieces, blocks, output, num_pieces, heads, kv_heads, block_size,      \
                        Scoring{scaling, cap, window, sinks});                                                           \
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
