// Products of weights in blocks with any number of tokens in the processor's matrix tiles (Intel AMX), in bfloat16.
//
// Rows are decoded into tiles as they lie: they are the first operand, and tokens, transposed once, are the second. Each
// output is one sum over the columns, from the first to the last: a token's numbers are the same bits whatever the number
// of tokens.

#pragma once

#include <memory>

#include "decoded_rows.h"
#include "layer_outputs.h"
#include "shortage.h"
#include "tiles.h"

#if HAS_TILES

namespace {

constexpr int64_t kPanelRows = 2 * kTile;  // rows that are decoded at once: two tiles
// Columns of a panel that are decoded before they are multiplied: for few tokens as many as stay in the first-level cache,
// for more as many as stay in the second.
constexpr int64_t kFewTokens = 2 * kTile, kFewColumns = 512, kMostColumns = 2048;

// Memory of floats that begins with a cache line.
class Lines {
  public:
    explicit Lines(int64_t nbytes) : room_(nbytes + 63) {}
    template <typename T>
    T *get() {
        uintptr_t begin = reinterpret_cast<uintptr_t>(room_.data());
        return reinterpret_cast<T *>(room_.data() + (64 - begin % 64) % 64);
    }

  private:
    std::vector<char> room_;
};

// Tokens as the second operand. A group of at most sixteen tokens has for each 32 columns a tile [16 pairs, tokens].
inline void pack_tokens(const bf16 *x, int64_t count, int64_t columns, bf16 *packed) {
    if (count == 1) {
        std::memcpy(packed, x, columns * sizeof(bf16));
        return;
    }
    __mmask16 there = static_cast<__mmask16>((1u << count) - 1);
    for (int64_t k = 0; k < columns; k += kLine) {
        __m512i rows[16];
        for (int64_t i = 0; i < kTile; i++)
            rows[i] = i < count ? _mm512_loadu_si512(x + i * columns + k) : _mm512_setzero_si512();
        transpose(rows);
        for (int64_t pair = 0; pair < kTile; pair++, packed += 2 * count)
            _mm512_mask_storeu_epi32(packed, there, rows[pair]);
    }
}

// Goes on with the sums [32 rows, 16 tokens] of one group of tokens or two, for some columns. `weights` are tiles
// [32 rows, 32 columns]; `count` and `more` are the tokens of the groups.
template <bool kMore>
inline void add_panel(const bf16 *weights, int64_t columns, const bf16 *tokens, int64_t count, const bf16 *more_tokens,
                      int64_t more, float *sums, bool goes_on) {
    constexpr int64_t kPitch = kTile * sizeof(float), kSums = kTile * kTile;
    float *more_sums = sums + 2 * kSums;
    order_memory();
    if (goes_on) {
        _tile_loadd(0, sums, kPitch);
        _tile_loadd(1, sums + kSums, kPitch);
        if constexpr (kMore) _tile_loadd(2, more_sums, kPitch);
        if constexpr (kMore) _tile_loadd(3, more_sums + kSums, kPitch);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (kMore) _tile_zero(2);
        if constexpr (kMore) _tile_zero(3);
    }
    for (int64_t k = 0; k < columns; k += kLine, weights += kPanelRows * kLine) {
        _tile_loadd(4, weights, 2 * kLine);
        _tile_loadd(6, tokens + k * count, 4 * count);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, weights + kTile * kLine, 2 * kLine);
        _tile_dpbf16ps(1, 5, 6);
        if constexpr (kMore) {
            _tile_loadd(7, more_tokens + k * more, 4 * more);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, kPitch);
    _tile_stored(1, sums + kSums, kPitch);
    if constexpr (kMore) _tile_stored(2, more_sums, kPitch);
    if constexpr (kMore) _tile_stored(3, more_sums + kSums, kPitch);
    order_memory();
}

// Sums [32 rows, 16 tokens] of a group, complete, to where they go.
inline void finish_panel(const float *sums, int64_t token, int64_t tokens, int64_t row, int64_t rows,
                         const Outputs<bf16> &outputs) {
    for (int64_t first = 0; first < rows; first += kTile, sums += kTile * kTile) {
        alignas(64) float columns[kTile * kTile];
        transpose_words(sums, kTile * sizeof(float), columns);
        for (int64_t t = 0; t < tokens; t++)
            outputs.put(token + t, row + first, std::min(kTile, rows - first), columns + t * kTile);
    }
}

inline int32_t multiply_in_tiles(const uint8_t *data, const Layout<bf16> &layout, const bf16 *x,
                                 const Outputs<bf16> &outputs, int64_t tokens, int64_t columns, int64_t rows) {
    int64_t groups = (tokens + kTile - 1) / kTile, row_bytes = columns / layout.weights * layout.bytes;
    int64_t deep = std::min(columns, tokens <= kFewTokens ? kFewColumns : kMostColumns);
    auto size_of = [&](int64_t group) { return std::min(kTile, tokens - group * kTile); };
    Shortage shortage;
    std::unique_ptr<Lines> room;
    if (!shortage.run([&] { room = std::make_unique<Lines>(tokens * columns * sizeof(bf16) + 64); }))
        return shortage.status();
    bf16 *packed = room->get<bf16>();
#pragma omp parallel if (tokens * rows * columns > 8 * kParallel)
    {
        Tiles tiles;
        std::unique_ptr<Lines> own;
        bool has_room = shortage.run([&] {
            int64_t sums_bytes = (groups + 1) * kPanelRows * kTile * static_cast<int64_t>(sizeof(float));
            own = std::make_unique<Lines>(sums_bytes + kPanelRows * deep * static_cast<int64_t>(sizeof(bf16)));
        });
        float *sums = has_room ? own->get<float>() : nullptr;
        bf16 *weights = reinterpret_cast<bf16 *>(sums + (groups + 1) * kPanelRows * kTile);
        int64_t shaped = 0, shaped_more = 0;
#pragma omp for schedule(static)
        for (int64_t group = 0; group < groups; group++)
            pack_tokens(x + group * kTile * columns, size_of(group), columns, packed + group * kTile * columns);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row += kPanelRows) {
            if (!has_room) continue;
            int64_t count = std::min(kPanelRows, rows - row);
            const uint8_t *panel = data + row * row_bytes;
            for (int64_t first = 0; first < columns; first += deep) {
                int64_t some = std::min(deep, columns - first), bytes = some / layout.weights * layout.bytes;
                const uint8_t *from = panel + first / layout.weights * layout.bytes;
                for (int64_t i = 0; i < count; i++) {
                    // The panel behind this one is next, as a rule.
                    fetch(panel + count * row_bytes + count * (from - panel) + i * bytes, bytes);
                    layout.decode(from + i * row_bytes, some, weights + i * kLine, kPanelRows * kLine);
                }
                for (int64_t group = 0; group < groups; group += 2) {
                    int64_t size = size_of(group), more = group + 1 < groups ? size_of(group + 1) : 0;
                    if (size != shaped || more != shaped_more) tiles.for_panel(size, more);
                    shaped = size, shaped_more = more;
                    const bf16 *in = packed + group * kTile * columns, *next = in + kTile * columns;
                    auto run = more > 0 ? add_panel<true> : add_panel<false>;
                    run(weights, some, in + first * size, size, next + first * more, more,
                        sums + group * kPanelRows * kTile, first > 0);
                }
            }
            for (int64_t group = 0; group < groups; group++)
                finish_panel(sums + group * kPanelRows * kTile, group * kTile, size_of(group), row, count, outputs);
        }
    }
    return shortage.status();
}

}  // namespace

#endif
