// Products of a few rows of a weight, stored densely or in blocks, with some tokens.
//
// Rows in blocks are decoded some columns at a time, into the nearest cache, and multiplied there. Each output is one sum
// over the columns in one order: a token's numbers are the same bits whatever the number of tokens.

#pragma once

#include "decoded_rows.h"
#include "layer_outputs.h"

namespace {

// One register of floats, and the most sums that stay in registers beside what is multiplied.
#if defined(__AVX512F__)
constexpr int kWidth = 16, kSums = 24;
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
constexpr int kBatch = 128;      // tokens that decoded rows serve
// So many rows at once: the fewer tokens there are, the more rows, for as many sums run side by side.
constexpr int rows_beside(int tokens) {
    int rows = kGroup;
    while (rows * tokens > kSums && rows > 2) rows /= 2;
    return rows;
}

// The sums of the vectors of a group, each in the same order.
inline void sums_of_group(const vr *group, float *sums) {
#if defined(__AVX2__)
    vf lanes = each_combined<kGroup>(group, [](vf one, vf other) { return one + other; });
    if constexpr (kLanes == 2 * kGroup) lanes = interleaved_sums<kGroup>(lanes, lanes);
    std::memcpy(sums, &lanes, kGroup * sizeof(float));
#else
    for (int row = 0; row < kGroup; row++) {
        const vr &lanes = group[row];
#if defined(__AVX__)
        sums[row] = ((lanes[0] + lanes[1]) + (lanes[2] + lanes[3])) + ((lanes[4] + lanes[5]) + (lanes[6] + lanes[7]));
#else
        sums[row] = (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
#endif
    }
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

// So many columns are decoded at once: rows and a few tokens fit into the nearest cache, and sums go through memory
// seldom.
template <typename Number>
constexpr int64_t kSpan = 2048 / sizeof(Number);
static_assert(kSpan<float> % kChunk == 0, "a span is made of chunks");

// The products of a group of rows with a batch of tokens. Each thread has its own.
template <typename T>
class RowProducts {
    typedef Multiplied<T> Number;

  public:
    // Products of `count` rows, at most kGroup, with each token. `x` is [tokens, columns], `outputs` begins with the first
    // of the rows.
    void run(const Layout<T> &layout, const uint8_t *rows, int64_t count, const Number *x, int64_t tokens,
             int64_t columns, const Outputs<T> &outputs) {
        for (int64_t first = 0; first < tokens; first += kBatch) {
            int64_t some = std::min<int64_t>(kBatch, tokens - first);
            add_all(layout, rows, count, x + first * columns, some, columns);
            for (int64_t t = 0; t < some; t++) {
                float sums[kGroup];
                sums_of_group(sums_ + t * kGroup, sums);
                if (count == kGroup)
                    outputs.put_eight(first + t, 0, sums);
                else
                    outputs.put(first + t, 0, count, sums);
            }
        }
    }

  private:
    void add_all(const Layout<T> &layout, const uint8_t *rows, int64_t count, const Number *x, int64_t tokens,
                 int64_t columns) {
        int64_t row_bytes = columns / layout.weights * layout.bytes;
        // A group is multiplied whole, so the last rows of a matrix are copied: behind them is other memory.
        bool lie_there = layout.is_plain && count == kGroup;
        int64_t step = lie_there ? columns : kSpan<Number>;
        std::fill(sums_, sums_ + tokens * kGroup, vr{});
        for (int64_t k = 0; k < columns; k += step) {
            int64_t some = std::min(step, columns - k), pitch = lie_there ? columns : kSpan<Number>;
            const uint8_t *from = rows + k / layout.weights * layout.bytes;
            fetch(rows + count * row_bytes + count * (from - rows), count * (some / layout.weights * layout.bytes));
            const Number *weights = decoded_;
            if (lie_there)
                weights = reinterpret_cast<const Number *>(from);
            else
                for (int64_t row = 0; row < count; row++)
                    layout.decode(from + row * row_bytes, some, decoded_ + row * kSpan<Number>, kLine);
            for (int64_t t = 0; t < tokens; t += kTokens) {
                int64_t now = std::min<int64_t>(kTokens, tokens - t), beside = rows_beside(static_cast<int>(now));
                for (int64_t row = 0; row < count; row += beside)
                    add_some(now, x + t * columns + k, columns, weights + row * pitch, pitch, some,
                             sums_ + t * kGroup + row);
            }
        }
    }

    alignas(64) Number decoded_[kGroup * kSpan<Number>] = {};  // rows behind the last are multiplied, too, for nothing
    alignas(64) vr sums_[kBatch * kGroup];
};

}  // namespace
