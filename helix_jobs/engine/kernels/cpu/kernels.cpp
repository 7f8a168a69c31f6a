// CPU kernels of the decoder, compiled on the machine they run on. Plain C interface: no torch headers, no Python.
//
// Every kernel has a counterpart in torch operators that defines what it computes; the tests compare the two.
// Sums are float32 whatever the storage type.

#include "activations.h"

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
        typedef uint8_t vb __attribute__((vector_size(kLanes)));
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
