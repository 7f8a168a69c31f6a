// Products of a few rows of a weight, stored densely or in blocks, with some tokens.
//
// Rows in blocks are decoded some columns at a time, into the nearest cache, and multiplied there. Each output is one sum
// over the columns in one order: a token's numbers are the same bits whatever the number of tokens.

#pragma once

#include <type_traits>

#include "level_blocks.h"
#include "pairs.h"

namespace {

// One register of floats, and the most sums that stay in registers beside what is multiplied.
#if defined(__AVX512F__)
constexpr int kWidth = 16, kSums = 16;
#elif defined(__AVX__)
constexpr int kWidth = 8, kSums = 12;
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
constexpr int kTokens = 6;       // that are multiplied at once
constexpr int kGroup = 8;        // rows that are decoded at once
constexpr int kBatch = 32;       // tokens whose sums stay in the nearest cache beside decoded rows
constexpr int64_t kChunk = 256;  // columns that are decoded at once: whole blocks of every layout
// So many rows at once: the fewer tokens there are, the more rows, for as many sums run side by side.
constexpr int rows_beside(int tokens) {
    int rows = kGroup;
    while (rows * tokens > kSums && rows > 2) rows /= 2;
    return rows;
}

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

// Goes on with the sums [token][row] of kT tokens and kR rows, for some more columns.
template <int kT, int kR = rows_beside(kT)>
__attribute__((noinline)) void add_products(const float *x, int64_t x_pitch, const float *w, int64_t w_pitch,
                                            int64_t columns, vr *sums) {
    vr lanes[kT][kR];
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++)
#pragma GCC unroll 8
        for (int row = 0; row < kR; row++) lanes[t][row] = sums[t * kGroup + row];
    // The fewer of both stay in registers while the others pass.
    for (int64_t k = 0; k < columns; k += kWidth) {
        if constexpr (kT <= kR) {
            vr some[kT];
#pragma GCC unroll 8
            for (int t = 0; t < kT; t++) some[t] = load(x + t * x_pitch + k);
#pragma GCC unroll 8
            for (int row = 0; row < kR; row++) {
                vr weights = load(w + row * w_pitch + k);
#pragma GCC unroll 8
                for (int t = 0; t < kT; t++) lanes[t][row] += some[t] * weights;
            }
        } else {
            vr weights[kR];
#pragma GCC unroll 8
            for (int row = 0; row < kR; row++) weights[row] = load(w + row * w_pitch + k);
#pragma GCC unroll 8
            for (int t = 0; t < kT; t++) {
                vr some = load(x + t * x_pitch + k);
#pragma GCC unroll 8
                for (int row = 0; row < kR; row++) lanes[t][row] += some * weights[row];
            }
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++)
#pragma GCC unroll 8
        for (int row = 0; row < kR; row++) sums[t * kGroup + row] = lanes[t][row];
}
#if HAS_BF16_DOT
template <int kT, int kR = rows_beside(kT)>
__attribute__((noinline)) void add_products(const bf16 *x, int64_t x_pitch, const bf16 *w, int64_t w_pitch,
                                            int64_t columns, vr *sums) {
    __m512 lanes[kT][kR];
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++)
#pragma GCC unroll 8
        for (int row = 0; row < kR; row++) lanes[t][row] = reinterpret_cast<__m512>(sums[t * kGroup + row]);
    for (int64_t k = 0; k < columns; k += 32) {
        __m512bh some[kT];
#pragma GCC unroll 8
        for (int t = 0; t < kT; t++) some[t] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(x + t * x_pitch + k));
#pragma GCC unroll 8
        for (int row = 0; row < kR; row++) {
            __m512bh weights = reinterpret_cast<__m512bh>(_mm512_loadu_si512(w + row * w_pitch + k));
#pragma GCC unroll 8
            for (int t = 0; t < kT; t++) lanes[t][row] = _mm512_dpbf16_ps(lanes[t][row], some[t], weights);
        }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kT; t++)
#pragma GCC unroll 8
        for (int row = 0; row < kR; row++) sums[t * kGroup + row] = reinterpret_cast<vr>(lanes[t][row]);
}
#endif
template <typename Number>
inline void add_some(int64_t tokens, const Number *x, int64_t x_pitch, const Number *w, int64_t w_pitch,
                     int64_t columns, vr *sums) {
    switch (tokens) {
        case 1: return add_products<1>(x, x_pitch, w, w_pitch, columns, sums);
        case 2: return add_products<2>(x, x_pitch, w, w_pitch, columns, sums);
        case 3: return add_products<3>(x, x_pitch, w, w_pitch, columns, sums);
        case 4: return add_products<4>(x, x_pitch, w, w_pitch, columns, sums);
        case 5: return add_products<5>(x, x_pitch, w, w_pitch, columns, sums);
        default: return add_products<6>(x, x_pitch, w, w_pitch, columns, sums);
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

// The float32 weights of a block: levels of eight bits scaled, or what the layout decodes by itself.
template <typename Block, typename = void>
constexpr bool has_decode = false;
template <typename Block>
constexpr bool has_decode<Block, std::void_t<decltype(&Block::decode)>> = true;
template <typename Block>
inline void decode_block(const uint8_t *block, float *out) {
    if constexpr (has_decode<Block>) {
        Block::decode(block, out);
    } else {
        constexpr int kGroups = Block::kWeights / Block::kSame;
        float scales[kGroups], offsets[kGroups] = {};
        Block::factors(block, scales, offsets);
        int group = 0;
        Block::levels(block, [&](Levels levels) {
            int8_t bytes[32];
            std::memcpy(bytes, &levels, sizeof bytes);
            constexpr int kSecond = 32 / Block::kSame - 1;
            store_weights(out, bytes, scales[group], offsets[group]);
            store_weights(out + 16, bytes + 16, scales[group + kSecond], offsets[group + kSecond]);
            out += 32, group += 1 + kSecond;
        });
    }
}
template <typename T, typename Block>
void decode_row(const uint8_t *blocks, int64_t columns, Multiplied<T> *out) {
    for (int64_t k = 0; k < columns; k += Block::kWeights, blocks += Block::kBytes, out += Block::kWeights) {
        if constexpr (std::is_same_v<T, float>) {
            decode_block<Block>(blocks, out);
        } else {
            float weights[Block::kWeights];
            decode_block<Block>(blocks, weights);
            round_to_bf16(weights, Block::kWeights, out);
        }
    }
}
// Dense weights, widened where the processor multiplies floats only.
template <typename T>
void copy_row(const uint8_t *weights, int64_t columns, Multiplied<T> *out) {
    const T *in = reinterpret_cast<const T *>(weights);
    if constexpr (std::is_same_v<T, Multiplied<T>>)
        std::memcpy(out, in, columns * sizeof(T));
    else
        for_lanes(columns, [&](int64_t i, int64_t n) { store_some(out + i, load_some(in + i, n), n); });
}
// A layout: how a row is decoded, the bytes that `weights` weights take, and whether they are multiplied as they lie.
template <typename T>
struct Layout {
    void (*decode)(const uint8_t *, int64_t, Multiplied<T> *);
    int64_t weights, bytes;
    bool is_plain;
};
template <typename T, typename Block>
constexpr Layout<T> layout_of() {
    static_assert(kChunk % Block::kWeights == 0, "a chunk is made of whole blocks");
    return {decode_row<T, Block>, Block::kWeights, Block::kBytes, false};
}
// In the order of `BLOCK_LAYOUTS`, `LEVEL_LAYOUTS` and `FLOAT_LAYOUTS` (`engine/weights`), dense weights of type T last;
// `kernels.py` hands over a place in it.
template <typename T>
const Layout<T> kLayouts[] = {
    layout_of<T, Q4_0>(),  layout_of<T, Q4_1>(),  layout_of<T, Q5_0>(), layout_of<T, Q5_1>(), layout_of<T, Q8_0>(),
    layout_of<T, Iq4Nl>(), layout_of<T, Mxfp4>(), layout_of<T, Q2K>(),  layout_of<T, Q3K>(),  layout_of<T, Q4K>(),
    layout_of<T, Q5K>(),   layout_of<T, Q6K>(),   layout_of<T, Iq4Xs>(),
    layout_of<T, Int4<128, false>>(), layout_of<T, Int4<64, false>>(), layout_of<T, Int4<32, false>>(),
    layout_of<T, Int4<128, true>>(),  layout_of<T, Int4<64, true>>(),  layout_of<T, Int4<32, true>>(),
    layout_of<T, Int8<128, false>>(), layout_of<T, Int8<64, false>>(), layout_of<T, Int8<32, false>>(),
    layout_of<T, Int8<128, true>>(),  layout_of<T, Int8<64, true>>(),  layout_of<T, Int8<32, true>>(),
    layout_of<T, Fp8<128>>(),         layout_of<T, Fp8<64>>(),         layout_of<T, Fp8<32>>(),
    layout_of<T, BFloat16>(),         layout_of<T, Float16>(),
    {copy_row<T>, 1, sizeof(T), std::is_same_v<T, Multiplied<T>>},
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

// The products of a group of rows with a batch of tokens. Each thread has its own.
template <typename T>
class RowProducts {
    typedef Multiplied<T> Number;

  public:
    // Calls put_sum(token, row, sum) for `count` rows, at most kGroup, and each token. `x` is [tokens, columns].
    template <typename PutSum>
    void run(const Layout<T> &layout, const uint8_t *rows, int64_t count, const Number *x, int64_t tokens,
             int64_t columns, PutSum put_sum) {
        for (int64_t first = 0; first < tokens; first += kBatch) {
            int64_t some = std::min<int64_t>(kBatch, tokens - first);
            add_all(layout, rows, count, x + first * columns, some, columns);
            for (int64_t t = 0; t < some; t++)
                for (int64_t row = 0; row < count; row += 2) {
                    float two[2];
                    sums_of_two(sums_[t * kGroup + row], sums_[t * kGroup + row + 1], two);
                    put_sum(first + t, row, two[0]);
                    if (row + 1 < count) put_sum(first + t, row + 1, two[1]);
                }
        }
    }

  private:
    void add_all(const Layout<T> &layout, const uint8_t *rows, int64_t count, const Number *x, int64_t tokens,
                 int64_t columns) {
        int64_t row_bytes = columns / layout.weights * layout.bytes;
        // A group is multiplied whole, so the last rows of a matrix are copied: behind them is other memory.
        bool lie_there = layout.is_plain && count == kGroup;
        int64_t step = lie_there ? columns : kChunk;
        std::fill(sums_, sums_ + tokens * kGroup, vr{});
        for (int64_t k = 0; k < columns; k += step) {
            int64_t some = std::min(step, columns - k), pitch = lie_there ? columns : kChunk;
            const uint8_t *from = rows + k / layout.weights * layout.bytes;
            fetch(rows + count * row_bytes + count * (from - rows), count * (some / layout.weights * layout.bytes));
            const Number *weights = decoded_;
            if (lie_there)
                weights = reinterpret_cast<const Number *>(from);
            else
                for (int64_t row = 0; row < count; row++)
                    layout.decode(from + row * row_bytes, some, decoded_ + row * kChunk);
            for (int64_t t = 0; t < tokens; t += kTokens) {
                int64_t now = std::min<int64_t>(kTokens, tokens - t), beside = rows_beside(static_cast<int>(now));
                for (int64_t row = 0; row < count; row += beside)
                    add_some(now, x + t * columns + k, columns, weights + row * pitch, pitch, some,
                             sums_ + t * kGroup + row);
            }
        }
    }

    // The rows behind these are next, as a rule. They are read a few columns of each at a time, in an order that no
    // processor foresees.
    static void fetch(const uint8_t *from, int64_t nbytes) {
        for (int64_t i = 0; i < nbytes; i += 64) __builtin_prefetch(from + i);
    }

    alignas(64) Number decoded_[kGroup * kChunk] = {};  // rows behind the last are multiplied, too, for nothing
    alignas(64) vr sums_[kBatch * kGroup];
};

}  // namespace
