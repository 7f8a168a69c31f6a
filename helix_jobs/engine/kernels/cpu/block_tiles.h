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
// Up to so many tokens have their sums in tiles while a whole panel passes, so many columns at a time. For more tokens so
// many columns are decoded as stay in the second-level cache.
constexpr int64_t kFewTokens = 2 * kTile, kFewColumns = 256, kMostColumns = 2048;

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

// One or two groups of at most sixteen tokens, packed.
struct Tokens {
    const bf16 *first, *second;
    int64_t count, more;  // no `second` if `more` is nought
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
        _tile_loadd(4, weights, 2 * kLine);
        _tile_loadd(6, tokens.first + column * tokens.count, 4 * tokens.count);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(5, weights + kTile * kLine, 2 * kLine);
        _tile_dpbf16ps(1, 5, 6);
        if constexpr (kMore) {
            _tile_loadd(7, tokens.second + column * tokens.more, 4 * tokens.more);
            _tile_dpbf16ps(2, 4, 7);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
};

// Goes on with sums in memory, from column `first` on.
template <bool kMore>
inline void add_columns(const bf16 *weights, const Tokens &tokens, int64_t first, int64_t columns, float *sums) {
    order_memory();
    if (first > 0)
        PanelSums<kMore>::load(sums);
    else
        PanelSums<kMore>::clear();
    for (int64_t k = 0; k < columns; k += kLine) PanelSums<kMore>::add(weights + k * kPanelRows, tokens, first + k);
    PanelSums<kMore>::store(sums);
}

// All columns of a panel for few tokens. While the tiles multiply some columns, the next ones are decoded: a product of
// tiles takes long, and few tokens have but two or four of them to wait for. decode(row, first, columns, weights) decodes
// a row's columns. `weights` has room for two pieces.
template <bool kMore, typename Decode>
inline void multiply_panel(const Tokens &tokens, int64_t rows, int64_t columns, bf16 *weights, float *sums,
                           Decode decode) {
    constexpr int64_t kStride = kPanelRows * kLine / kFewColumns;  // rows that are decoded for each line of products
    PanelSums<kMore>::clear();
    bf16 *now = weights, *next = weights + kPanelRows * kFewColumns;
    for (int64_t row = 0; row < rows; row++) decode(row, 0, std::min(kFewColumns, columns), now + row * kLine);
    for (int64_t first = 0; first < columns; first += kFewColumns) {
        int64_t some = std::min(kFewColumns, columns - first);
        int64_t more = std::max<int64_t>(0, std::min(kFewColumns, columns - first - kFewColumns));
        order_memory();
        for (int64_t k = 0, row = 0; k < some; k += kLine) {
            PanelSums<kMore>::add(now + k * kPanelRows, tokens, first + k);
            for (int64_t i = 0; i < kStride && row < rows && more > 0; i++, row++)
                decode(row, first + kFewColumns, more, next + row * kLine);
        }
        std::swap(now, next);
    }
    PanelSums<kMore>::store(sums);
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
    int64_t deep = tokens <= kFewTokens ? 2 * kFewColumns : std::min(columns, kMostColumns);
    int64_t sums_size = (groups + 1) * kPanelRows * kTile;
    Shortage shortage;
    std::unique_ptr<Lines> room;
    if (!shortage.run([&] { room = std::make_unique<Lines>(tokens * columns * sizeof(bf16) + 64); }))
        return shortage.status();
    bf16 *packed = room->get<bf16>();
    auto size_of = [&](int64_t group) { return std::max<int64_t>(0, std::min(kTile, tokens - group * kTile)); };
    auto tokens_of = [&](int64_t group) {
        const bf16 *first = packed + group * kTile * columns;
        return Tokens{first, first + kTile * columns, size_of(group), size_of(group + 1)};
    };
#pragma omp parallel if (tokens * rows * columns > 8 * kParallel)
    {
        Tiles tiles;
        std::unique_ptr<Lines> own;
        bool has_room = shortage.run([&] {
            own = std::make_unique<Lines>(sums_size * sizeof(float) + kPanelRows * deep * sizeof(bf16));
        });
        float *sums = has_room ? own->get<float>() : nullptr;
        bf16 *weights = reinterpret_cast<bf16 *>(sums + sums_size);
#pragma omp for schedule(static)
        for (int64_t group = 0; group < groups; group++)
            pack_tokens(x + group * kTile * columns, size_of(group), columns, packed + group * kTile * columns);
        int64_t shaped = 0, shaped_more = 0;
        auto shape = [&](const Tokens &some) {
            if (some.count != shaped || some.more != shaped_more) tiles.for_panel(some.count, some.more);
            shaped = some.count, shaped_more = some.more;
        };
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row += kPanelRows) {
            if (!has_room) continue;
            int64_t count = std::min(kPanelRows, rows - row);
            const uint8_t *panel = data + row * row_bytes;
            auto decode = [&](int64_t i, int64_t first, int64_t some, bf16 *out) {
                int64_t start = first / layout.weights * layout.bytes, bytes = some / layout.weights * layout.bytes;
                fetch(panel + count * (row_bytes + start) + i * bytes, bytes);  // of the panel that is next, as a rule
                layout.decode(panel + i * row_bytes + start, some, out, kPanelRows * kLine);
            };
            if (tokens <= kFewTokens) {
                Tokens all = tokens_of(0);
                shape(all);
                auto run = all.more > 0 ? multiply_panel<true, decltype(decode)> : multiply_panel<false, decltype(decode)>;
                run(all, count, columns, weights, sums, decode);
            } else {
                for (int64_t first = 0; first < columns; first += deep) {
                    int64_t some = std::min(deep, columns - first);
                    for (int64_t i = 0; i < count; i++) decode(i, first, some, weights + i * kLine);
                    for (int64_t group = 0; group < groups; group += 2) {
                        Tokens two = tokens_of(group);
                        shape(two);
                        auto run = two.more > 0 ? add_columns<true> : add_columns<false>;
                        run(weights, two, first, some, sums + group * kPanelRows * kTile);
                    }
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
