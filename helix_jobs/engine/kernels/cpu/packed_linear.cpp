// A layer whose weights stay in the blocks of their file, over any number of tokens.
//
// A few rows of the weight are decoded at a time, into the nearest caches, and multiplied with all tokens. Each output is
// one sum, over the columns in one order: a token's numbers are the same bits whatever the number of tokens.

#include <type_traits>

#include "level_blocks.h"

#if defined(__AVX512BF16__) && defined(__AVX512BW__)
#define HAS_BF16_DOT 1
#else
#define HAS_BF16_DOT 0
#endif

namespace {

// One register of floats, and the most sums that stay in registers beside what is multiplied.
#if defined(__AVX512F__)
constexpr int kWidth = 16, kSums = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8, kSums = 8;
#else
constexpr int kWidth = 4, kSums = 16;
#endif
typedef float vr __attribute__((vector_size(kWidth * sizeof(float))));
inline vr load(const float *p) {
    vr v;
    std::memcpy(&v, p, sizeof v);
#if defined(__x86_64__)
    __asm__("" : "+v"(v));  // stays in a register: gcc would read memory again for each of its products
#endif
    return v;
}
constexpr int kTokens = 4;  // that are multiplied at once
constexpr int kMostRows = 8;
// So many rows at once: the fewer tokens there are, the more rows, for as many sums run side by side.
constexpr int rows_beside(int tokens) { return std::min(kMostRows, kSums / tokens / 2 * 2); }
// Decoded rows stay in the second-level cache beside some tokens.
constexpr int64_t kTileBytes = 128 << 10;
constexpr int64_t kTileRows = 16;

// The sums of two vectors.
inline void sums_of_two(vr first, vr second, float *sums) {
#if defined(__AVX512F__)
    vf lanes = interleaved_sums<1>(first, second);  // even lanes: of the first; odd lanes: of the second
    lanes = interleaved_sums<2>(lanes, lanes);
    lanes = interleaved_sums<4>(lanes, lanes);
    lanes = interleaved_sums<8>(lanes, lanes);
    sums[0] = lanes[0], sums[1] = lanes[1];
#elif defined(__AVX__)
    __m256 lanes = _mm256_hadd_ps((__m256)first, (__m256)second);
    lanes = _mm256_hadd_ps(lanes, lanes);
    __m128 both = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    sums[0] = both[0], sums[1] = both[1];
#else
    sums[0] = (first[0] + first[1]) + (first[2] + first[3]);
    sums[1] = (second[0] + second[1]) + (second[2] + second[3]);
#endif
}

// sums[token][row] of kT tokens and some rows; each of both has `columns` numbers.
template <int kT, int kR = rows_beside(kT)>
__attribute__((noinline)) void dot(const float *x, const float *w, int64_t columns, float sums[kTokens][kMostRows]) {
    vr lanes[kT][kR] = {};
    for (int64_t k = 0; k < columns; k += kWidth) {
        vr some[kT];
#pragma GCC unroll 8
        for (int t = 0; t < kT; t++) some[t] = load(x + t * columns + k);
#pragma GCC unroll 8
        for (int row = 0; row < kR; row++) {
            vr weights = load(w + row * columns + k);
#pragma GCC unroll 8
            for (int t = 0; t < kT; t++) lanes[t][row] += some[t] * weights;
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++)
#pragma GCC unroll 8
        for (int row = 0; row < kR; row += 2) sums_of_two(lanes[t][row], lanes[t][row + 1], sums[t] + row);
}
#if HAS_BF16_DOT
template <int kT, int kR = rows_beside(kT)>
__attribute__((noinline)) void dot(const bf16 *x, const bf16 *w, int64_t columns, float sums[kTokens][kMostRows]) {
    __m512 lanes[kT][kR];
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++)
#pragma GCC unroll 8
        for (int row = 0; row < kR; row++) lanes[t][row] = _mm512_setzero_ps();
    for (int64_t k = 0; k < columns; k += 32) {
        __m512bh some[kT];
#pragma GCC unroll 8
        for (int t = 0; t < kT; t++) some[t] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(x + t * columns + k));
#pragma GCC unroll 8
        for (int row = 0; row < kR; row++) {
            __m512bh weights = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w + row * columns + k));
#pragma GCC unroll 8
            for (int t = 0; t < kT; t++) lanes[t][row] = _mm512_dpbf16_ps(lanes[t][row], some[t], weights);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++)
#pragma GCC unroll 8
        for (int row = 0; row < kR; row += 2)
            sums_of_two(reinterpret_cast<vr>(lanes[t][row]), reinterpret_cast<vr>(lanes[t][row + 1]), sums[t] + row);
}
#endif
template <typename Number>
inline void dot_some(int64_t tokens, const Number *x, const Number *w, int64_t columns,
                     float sums[kTokens][kMostRows]) {
    switch (tokens) {
        case 1: return dot<1>(x, w, columns, sums);
        case 2: return dot<2>(x, w, columns, sums);
        case 3: return dot<3>(x, w, columns, sums);
        default: return dot<4>(x, w, columns, sums);
    }
}

// What decoded weights are multiplied as. They are rounded to the dtype of the activations, T, as a dense layer's are.
#if HAS_BF16_DOT
template <typename T>
using Multiplied = T;
#else
template <typename T>
using Multiplied = float;
#endif

#if HAS_BF16_DOT
// Subnormal numbers become zero, as they do in the product.
inline void round_to_bf16(const float *weights, int64_t count, bf16 *out) {
    for (int64_t i = 0; i < count; i += kLanes) {
        __m256bh rounded = _mm512_cvtneps_pbh(_mm512_loadu_ps(weights + i));
        std::memcpy(out + i, &rounded, sizeof rounded);
    }
}
#else
inline void round_to_bf16(const float *weights, int64_t count, float *out) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t bits;
        std::memcpy(&bits, weights + i, sizeof bits);
        bits = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;  // to the nearest, or the even of two
        std::memcpy(out + i, &bits, sizeof bits);
    }
}
#endif

template <typename T, typename Block>
void decode_row(const uint8_t *blocks, int64_t columns, Multiplied<T> *out) {
    for (int64_t k = 0; k < columns; k += Block::kWeights, blocks += Block::kBytes, out += Block::kWeights) {
        if constexpr (std::is_same_v<T, float>) {
            Block::decode(blocks, out);
        } else {
            float weights[Block::kWeights];
            Block::decode(blocks, weights);
            round_to_bf16(weights, Block::kWeights, out);
        }
    }
}
// A layout: how a row is decoded, and the bytes that `weights` weights take.
template <typename T>
struct Layout {
    void (*decode)(const uint8_t *, int64_t, Multiplied<T> *);
    int64_t weights, bytes;
};
template <typename T, typename Block>
constexpr Layout<T> layout_of() {
    return {decode_row<T, Block>, Block::kWeights, Block::kBytes};
}
// In the order of `BLOCK_LAYOUTS`, `LEVEL_LAYOUTS` and `FLOAT_LAYOUTS` (`engine/weights`); `kernels.py` hands over a place in it.
template <typename T>
const Layout<T> kLayouts[] = {
    layout_of<T, Q4_0>(), layout_of<T, Q4_1>(),  layout_of<T, Q5_0>(), layout_of<T, Q5_1>(), layout_of<T, Q8_0>(),
    layout_of<T, Iq4Nl>(), layout_of<T, Mxfp4>(), layout_of<T, Q2K>(), layout_of<T, Q3K>(),  layout_of<T, Q4K>(),
    layout_of<T, Q5K>(),   layout_of<T, Q6K>(),   layout_of<T, Iq4Xs>(),
    layout_of<T, Int4<128, false>>(), layout_of<T, Int4<64, false>>(), layout_of<T, Int4<32, false>>(),
    layout_of<T, Int4<128, true>>(),  layout_of<T, Int4<64, true>>(),  layout_of<T, Int4<32, true>>(),
    layout_of<T, Int8<128, false>>(), layout_of<T, Int8<64, false>>(), layout_of<T, Int8<32, false>>(),
    layout_of<T, Int8<128, true>>(),  layout_of<T, Int8<64, true>>(),  layout_of<T, Int8<32, true>>(),
    layout_of<T, Fp8<128>>(),         layout_of<T, Fp8<64>>(),         layout_of<T, Fp8<32>>(),
    layout_of<T, BFloat16>(),         layout_of<T, Float16>(),
};

// The activations as they are multiplied: as they are, or widened once.
template <typename T, typename Number>
inline const Number *as_numbers(const T *x, int64_t count, std::vector<Number> &room) {
    if constexpr (std::is_same_v<T, Number>) {
        return x;
    } else {
        room.resize(count);
        for_lanes(count, [&](int64_t i, int64_t n) { store_some(room.data() + i, load_some(x + i, n), n); });
        return room.data();
    }
}

inline float get(const float *x) { return *x; }
inline float get(const bf16 *x) { return load_some(x, 1)[0]; }
inline void put(float *y, float value) { *y = value; }
inline void put(bf16 *y, float value) { store_some(y, splat(value), 1); }

template <typename T>
void packed_linear(const uint8_t *data, const Layout<T> &layout, const T *x, const T *bias, const T *residual, T *y,
                   int64_t tokens, int64_t columns, int64_t rows, int64_t pitch) {
    typedef Multiplied<T> Number;
    std::vector<Number> room;
    const Number *numbers = as_numbers(x, tokens * columns, room);
    int64_t row_bytes = columns / layout.weights * layout.bytes;
    int64_t fitting = kTileBytes / (columns * static_cast<int64_t>(sizeof(Number)));
    int64_t size = fitting < kTileRows ? kMostRows : kTileRows;
#pragma omp parallel if (tokens * rows * columns > 8 * kParallel)
    {
        std::vector<Number> tile(size * columns);  // rows behind the last are multiplied, too, for nothing
#pragma omp for schedule(static)
        for (int64_t first = 0; first < rows; first += size) {
            int64_t count = std::min(size, rows - first);
            for (int64_t row = 0; row < count; row++)
                layout.decode(data + (first + row) * row_bytes, columns, tile.data() + row * columns);
            for (int64_t token = 0; token < tokens; token += kTokens) {
                int64_t some = std::min<int64_t>(kTokens, tokens - token);
                int64_t beside = rows_beside(static_cast<int>(some));
                for (int64_t row = 0; row < count; row += beside) {
                    float sums[kTokens][kMostRows];
                    dot_some(some, numbers + token * columns, tile.data() + row * columns, columns, sums);
                    for (int64_t t = 0; t < some; t++)
                        for (int64_t r = 0; r < std::min(beside, count - row); r++) {
                            int64_t output = first + row + r, place = (token + t) * pitch + output;
                            float value = sums[t][r];
                            if (bias != nullptr) value += get(bias + output);
                            if (residual != nullptr) value += get(residual + place);
                            put(y + place, value);
                        }
                }
            }
        }
    }
}

}  // namespace

// y = x @ weight.T + bias + residual, for the outputs of one matrix out of `pitch` of a layer; bias and residual may be
// null. bias, residual and y point to the first of these outputs.
EXPORT void packed_linear_float32(const uint8_t *data, int32_t layout, const float *x, const float *bias,
                                  const float *residual, float *y, int64_t tokens, int64_t columns, int64_t rows,
                                  int64_t pitch) {
    packed_linear(data, kLayouts<float>[layout], x, bias, residual, y, tokens, columns, rows, pitch);
}
EXPORT void packed_linear_bfloat16(const uint8_t *data, int32_t layout, const bf16 *x, const bf16 *bias,
                                   const bf16 *residual, bf16 *y, int64_t tokens, int64_t columns, int64_t rows,
                                   int64_t pitch) {
    packed_linear(data, kLayouts<bf16>[layout], x, bias, residual, y, tokens, columns, rows, pitch);
}
