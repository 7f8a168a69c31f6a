// A layer over any number of tokens whose weights stay in the blocks of their file, or lie row by row.

#include "block_tiles.h"
#include "row_products.h"
#include "shortage.h"

namespace {

template <typename T>
void packed_linear(const uint8_t *data, const Layout<T> &layout, const T *x, const Outputs<T> &outputs, int64_t tokens,
                   int64_t columns, int64_t rows) {
    std::vector<Multiplied<T>> room;
    const Multiplied<T> *numbers = as_numbers(x, tokens * columns, room);
    int64_t row_bytes = columns / layout.weights * layout.bytes;
#pragma omp parallel if (tokens * rows * columns > 8 * kParallel)
    {
        RowProducts<T> products;
#pragma omp for schedule(static)
        for (int64_t first = 0; first < rows; first += kGroup)
            products.run(layout, data + first * row_bytes, std::min<int64_t>(kGroup, rows - first), numbers, tokens,
                         columns, outputs.from(first));
    }
}

}  // namespace

// y = x @ weight.T + bias + residual, for the outputs of one matrix out of `pitch` of a layer; bias and residual may be
// null. bias, residual and y point to the first of these outputs.
EXPORT int32_t packed_linear_float32(const uint8_t *data, int32_t layout, const float *x, const float *bias,
                                     const float *residual, float *y, int64_t tokens, int64_t columns, int64_t rows,
                                     int64_t pitch) {
    return status_of([&] {
        packed_linear(data, kLayouts<float>[layout], x, Outputs<float>{bias, residual, y, pitch}, tokens, columns,
                      rows);
    });
}
EXPORT int32_t packed_linear_bfloat16(const uint8_t *data, int32_t layout, const bf16 *x, const bf16 *bias,
                                      const bf16 *residual, bf16 *y, int64_t tokens, int64_t columns, int64_t rows,
                                      int64_t pitch) {
#if HAS_TILES
    if (Tiles::is_allowed())
        return multiply_in_tiles(data, kLayouts<bf16>[layout], x, Outputs<bf16>{bias, residual, y, pitch}, tokens,
                                 columns, rows);
#endif
    return status_of([&] {
        packed_linear(data, kLayouts<bf16>[layout], x, Outputs<bf16>{bias, residual, y, pitch}, tokens, columns, rows);
    });
}
