// One int8 layer over any number of tokens, for processors that multiply bytes without oneDNN's help: those with AVX2
// but without VNNI, where its products of bytes are a loop or overflow.

#include "bytes.h"
#include "shortage.h"

namespace {

// Rounded activations that go through all weights together: they stay in the first-level cache beside a few rows, and
// the weights come past once for all of them.
constexpr int64_t kBlockBytes = 24 << 10;

inline void put(float *y, float value) { *y = value; }
inline void put(bf16 *y, float value) { store_some(y, splat(value), 1); }
inline float get(const float *x) { return *x; }
inline float get(const bf16 *x) { return load_some(x, 1)[0]; }

template <typename T>
int32_t int8_linear(const T *x, const Matrix &m, const T *residual, T *y, int64_t tokens) {
    int64_t fitting = kBlockBytes / (m.columns * static_cast<int64_t>(sizeof(Whole))) / kTokens * kTokens;
    int64_t block = std::max<int64_t>(4 * kTokens, fitting);
    Shortage shortage;
#pragma omp parallel if (tokens * m.rows * m.columns > 8 * kParallel)
    shortage.run([&] {
        int thread = 0, threads = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
        int64_t first, last;
        share_of(m.rows, thread, threads, &first, &last);
        Rounded rounded;
        for (int64_t start = 0; start < tokens; start += block) {
            int64_t count = std::min(block, tokens - start);
            rounded.round(x + start * m.columns, count, m.columns);
            multiply(rounded, m, count, first, last, [&](int64_t t, int64_t n, float value) {
                int64_t place = (start + t) * m.rows + n;
                put(y + place, residual == nullptr ? value : value + get(residual + place));
            });
        }
    });
    return shortage.status();
}

}  // namespace

// y = x @ weight.T * scales + bias + residual, with x rounded token by token; residual may be null.
EXPORT int32_t int8_linear_float32(const float *x, const Matrix *matrix, const float *residual, float *y,
                                   int64_t tokens) {
    return int8_linear(x, *matrix, residual, y, tokens);
}
EXPORT int32_t int8_linear_bfloat16(const bf16 *x, const Matrix *matrix, const bf16 *residual, bf16 *y,
                                    int64_t tokens) {
    return int8_linear(x, *matrix, residual, y, tokens);
}
// Whether the processor multiplies bytes fast: by VNNI, or widened to 16 bits by AVX2.
EXPORT int32_t has_byte_products() { return HAS_VNNI || HAS_WIDENING; }
