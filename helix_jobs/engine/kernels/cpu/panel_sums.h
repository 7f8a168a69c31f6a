// Sums of 32 rows of weights, a panel, with one or two groups of at most sixteen tokens, in matrix tiles (Intel AMX).
//
// Rows are decoded into tiles as they lie: they are the first operand, and tokens, transposed once, are the second. Each
// output is one sum over the columns, from the first to the last: a token's numbers are the same bits whatever the
// number of tokens.

#pragma once

#include <cstdlib>
#include <memory>

#include "layer_outputs.h"
#include "tiles.h"

#if HAS_TILES

namespace {

constexpr int64_t kPanelRows = 2 * kTile;             // two tiles
constexpr int64_t kPanelSums = kPanelRows * kTile;    // sums of a panel with a group of tokens
constexpr int64_t kTileColumns = 2 * kTile;           // columns of one tile of weights, a line

// Memory that begins with a cache line. Nobody has written it.
class Lines {
  public:
    explicit Lines(int64_t nbytes) : room_(static_cast<char *>(std::aligned_alloc(64, (nbytes + 63) / 64 * 64))) {
        if (room_ == nullptr) throw std::bad_alloc();
    }
    template <typename T>
    T *get() {
        return reinterpret_cast<T *>(room_.get());
    }

  private:
    struct Free {
        void operator()(char *room) const { std::free(room); }
    };
    std::unique_ptr<char, Free> room_;
};

// Tokens as the second operand. A group of at most sixteen tokens has for each 32 columns a tile [16 pairs, tokens].
inline void pack_tokens(const bf16 *x, int64_t count, int64_t columns, bf16 *packed) {
    if (count == 1) {
        std::memcpy(packed, x, columns * sizeof(bf16));
        return;
    }
    __mmask16 there = static_cast<__mmask16>((1u << count) - 1);
    for (int64_t k = 0; k < columns; k += kTileColumns) {
        __m512i rows[16];
        for (int64_t i = 0; i < kTile; i++)
            rows[i] = i < count ? _mm512_loadu_si512(x + i * columns + k) : _mm512_setzero_si512();
        transpose(rows);
        for (int64_t pair = 0; pair < kTile; pair++, packed += 2 * count)
            _mm512_mask_storeu_epi32(packed, there, rows[pair]);
    }
}

// One or two groups of at most sixteen tokens, packed.
struct Tokens {
    const bf16 *first, *second;
    int64_t count, more;  // no `second` if `more` is nought
};

// Some tokens of a product, packed group by group.
struct PackedTokens {
    const bf16 *packed;
    int64_t count, columns;

    int64_t groups() const { return (count + kTile - 1) / kTile; }
    int64_t size_of(int64_t group) const { return std::max<int64_t>(0, std::min(kTile, count - group * kTile)); }
    // A group and the next.
    Tokens two(int64_t group) const {
        const bf16 *first = packed + group * kTile * columns;
        return {first, first + kTile * columns, size_of(group), size_of(group + 1)};
    }
};

// The tiles of this thread, in the shape of the last groups.
class PanelTiles {
  public:
    void shape(const Tokens &some) {
        if (some.count != count_ || some.more != more_) tiles_.for_panel(some.count, some.more);
        count_ = some.count, more_ = some.more;
    }

  private:
    Tiles tiles_;
    int64_t count_ = 0, more_ = 0;
};

// Sums [32 rows, 16 tokens] of both groups, in tiles.
template <bool kMore>
struct PanelSums {
    static constexpr int64_t kPitch = kTile * sizeof(float), kSums = kTile * kTile;

    static void clear() {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (kMore) _tile_zero(2);
        if constexpr (kMore) _tile_zero(3);
    }
    static void load(const float *sums) {
        order_memory();
        _tile_loadd(0, sums, kPitch);
        _tile_loadd(1, sums + kSums, kPitch);
        if constexpr (kMore) _tile_loadd(2, sums + 2 * kSums, kPitch);
        if constexpr (kMore) _tile_loadd(3, sums + 3 * kSums, kPitch);
    }
    static void store(float *sums) {
        _tile_stored(0, sums, kPitch);
        _tile_stored(1, sums + kSums, kPitch);
        if constexpr (kMore) _tile_stored(2, sums + 2 * kSums, kPitch);
        if constexpr (kMore) _tile_stored(3, sums + 3 * kSums, kPitch);
        order_memory();
    }
    // Goes on for a line of columns, the one at `column` of the tokens.
    static void add(const bf16 *weights, const Tokens &tokens, int64_t column) {
        _tile_loadd(4, weights, 2 * kTileColumns);
        _tile_loadd(6, tokens.first + column * tokens.count, 4 * tokens.count);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, weights + kTile * kTileColumns, 2 * kTileColumns);
        _tile_dpbf16ps(1, 5, 6);
        if constexpr (kMore) {
            _tile_loadd(7, tokens.second + column * tokens.more, 4 * tokens.more);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
};

// Sums [32 rows, 16 tokens] of a group, complete, to where they go.
inline void finish_panel(float *sums, int64_t token, int64_t tokens, int64_t row, int64_t rows,
                         const Outputs<bf16> &outputs) {
    // [16 tokens, 16 rows] of both tiles
    alignas(64) float columns[2][kTile * kTile];
    for (int half = 0; half < 2; half++)
        transpose_words(sums + half * kTile * kTile, kTile * sizeof(float), columns[half]);
    if (rows < kPanelRows) {
        for (int64_t first = 0; first < rows; first += kTile)
            for (int64_t t = 0; t < tokens; t++)
                outputs.put(token + t, row + first, std::min(kTile, rows - first), columns[first / kTile] + t * kTile);
        return;
    }
    for (int64_t t = 0; t < tokens; t++)
        outputs.put_line(token + t, row, columns[0] + t * kTile, columns[1] + t * kTile);
}

}  // namespace

#endif
