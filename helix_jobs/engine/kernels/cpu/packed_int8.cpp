// A layer over any number of tokens whose weights stay in the blocks of their file; activations are rounded to bytes.

#include <memory>

#include "byte_products.h"
#include "layer_outputs.h"
#include "shortage.h"

namespace {

constexpr int64_t kBatch = 256;  // tokens that a tile serves once it is taken apart

// A layout as this layer reads it.
struct ByteLayout {
    void (*unpack_rows)(const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t columns, Tile &tile);
    void (*unpack_words)(const uint8_t *rows, int64_t row_bytes, int64_t count, int64_t columns, Tile &tile);
    void (*multiply)(const Tile &tile, const RoundedChunk *x, int64_t tokens, int64_t columns, float (*sums)[kPanel]);
    int64_t weights, bytes;
};
template <typename Block>
constexpr ByteLayout byte_layout() {
    static_assert(kChunk % Block::kWeights == 0, "a chunk is made of whole blocks");
    return {unpack_rows<Block>, unpack_words<Block>, multiply_tile<Block>, Block::kWeights, Block::kBytes};
}
// In the order of `BYTE_LAYOUTS` of `packed_int8_linear.py`.
const ByteLayout kByteLayouts[] = {
    byte_layout<Q4_0>(),  byte_layout<Q4_1>(),  byte_layout<Q5_0>(), byte_layout<Q5_1>(), byte_layout<Q8_0>(),
    byte_layout<Iq4Nl>(), byte_layout<Mxfp4>(), byte_layout<Q2K>(),  byte_layout<Q3K>(),  byte_layout<Q4K>(),
    byte_layout<Q5K>(),   byte_layout<Q6K>(),   byte_layout<Iq4Xs>(),
    byte_layout<Int4<128, false>>(), byte_layout<Int4<64, false>>(), byte_layout<Int4<32, false>>(),
    byte_layout<Int4<128, true>>(),  byte_layout<Int4<64, true>>(),  byte_layout<Int4<32, true>>(),
    byte_layout<Int8<128, false>>(), byte_layout<Int8<64, false>>(), byte_layout<Int8<32, false>>(),
    byte_layout<Int8<128, true>>(),  byte_layout<Int8<64, true>>(),  byte_layout<Int8<32, true>>(),
};

// The rows behind these are next, as a rule; a few columns of many rows are in an order that no processor foresees.
inline void fetch(const uint8_t *from, int64_t nbytes) {
    for (int64_t i = 0; i < nbytes; i += 64) __builtin_prefetch(from + i, 0, 2);
}

template <typename T>
void packed_int8_linear(const uint8_t *data, const ByteLayout &layout, const T *x, const Outputs<T> &outputs,
                        int64_t tokens, int64_t columns, int64_t rows) {
    int64_t chunks = (columns + kChunk - 1) / kChunk, row_bytes = columns / layout.weights * layout.bytes;
    // [chunks, tokens of a batch]; nobody has written it.
    std::unique_ptr<RoundedChunk[]> rounded(new RoundedChunk[chunks * std::min(tokens, kBatch)]);
#pragma omp parallel if (tokens * rows * columns > 8 * kParallel)
    {
        alignas(64) float sums[kBatch][kPanel];
        Tile tile = {};
        for (int64_t start = 0; start < tokens; start += kBatch) {
            int64_t some = std::min(kBatch, tokens - start);
#pragma omp for schedule(static)
            for (int64_t place = 0; place < chunks * some; place++) {
                int64_t k = place / some * kChunk;
                round_chunk(x + (start + place % some) * columns + k, std::min<int64_t>(kChunk, columns - k),
                            rounded[place]);
            }  // all wait here
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row += kPanel) {
                int64_t count = std::min<int64_t>(kPanel, rows - row), done = 0;
                std::fill(sums[0], sums[some], 0.0f);
                const uint8_t *panel = data + row * row_bytes;
                for (int64_t chunk = 0; chunk < chunks; chunk++) {
                    int64_t k = chunk * kChunk, now = std::min<int64_t>(kChunk, columns - k);
                    int64_t bytes = now / layout.weights * layout.bytes;
                    fetch(panel + count * row_bytes + count * done, count * bytes);
                    auto unpack = needs_transposing(some) ? layout.unpack_words : layout.unpack_rows;
                    unpack(panel + done, row_bytes, count, now, tile);
                    layout.multiply(tile, rounded.get() + chunk * some, some, now, sums);
                    done += bytes;
                }
                for (int64_t t = 0; t < some; t++) outputs.put(start + t, row, count, sums[t]);
            }  // and here, before the activations are rounded anew
        }
    }
}

}  // namespace

// y = x @ weight.T + bias + residual, as `packed_linear_float32`, with x rounded in blocks of 32 columns.
EXPORT int32_t packed_int8_linear_float32(const uint8_t *data, int32_t layout, const float *x, const float *bias,
                                          const float *residual, float *y, int64_t tokens, int64_t columns,
                                          int64_t rows, int64_t pitch) {
    return status_of([&] {
        packed_int8_linear(data, kByteLayouts[layout], x, Outputs<float>{bias, residual, y, pitch}, tokens, columns,
                           rows);
    });
}
EXPORT int32_t packed_int8_linear_bfloat16(const uint8_t *data, int32_t layout, const bf16 *x, const bf16 *bias,
                                           const bf16 *residual, bf16 *y, int64_t tokens, int64_t columns,
                                           int64_t rows, int64_t pitch) {
    return status_of([&] {
        packed_int8_linear(data, kByteLayouts[layout], x, Outputs<bf16>{bias, residual, y, pitch}, tokens, columns,
                           rows);
    });
}
