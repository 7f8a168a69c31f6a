// Products in the processor's matrix tiles (Intel AMX): sixteen queries by sixteen keys at once.
//
// Each row of a tile is computed for itself, in one order whatever the number of rows: a query's products are the same
// bits alone and beside others.

#pragma once

#include "pairs.h"
#include "transpose.h"

// Older clang spells the first without underscores.
#if (defined(__AMX_BF16__) || defined(__AMXBF16__)) && HAS_BF16_DOT && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#define HAS_TILES 1
#else
#define HAS_TILES 0
#endif

namespace {

constexpr int64_t kTile = 16;  // rows of a tile at most, and 32-bit columns

#if HAS_TILES

// gcc's intrinsics do not tell the compiler that they read and write memory.
inline void order_memory() { __asm__ volatile("" ::: "memory"); }

// Tile registers 0 to 3 hold sums; 4 to 7 hold operands, of which the first belongs to queries or weights.
struct alignas(64) TileShapes {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

// This thread's tiles, configured while it lives; what was configured before is put back.
class Tiles {
  public:
    Tiles() {
        if (is_allowed()) _tile_storeconfig(&before_);
    }
    ~Tiles() {
        if (!is_allowed()) return;
        if (before_.palette != 0)
            _tile_loadconfig(&before_);
        else
            _tile_release();
    }
    Tiles(const Tiles &) = delete;
    Tiles &operator=(const Tiles &) = delete;

    // Linux gives a process the registers when it asks; it may refuse.
    static bool is_allowed() {
        constexpr long kRequestPermission = 0x1023, kTileData = 18;
        static const bool allowed = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
        return allowed;
    }

    // Layers: 0 and 1 are [rows, 16 outputs], 2 and 3 [more rows, 16 outputs], 4 and 5 [rows or more, 32 inputs], 6 and 7
    // [16 pairs of inputs, 16 outputs].
    void for_layer(int64_t rows, int64_t more) {
        TileShapes shapes;
        for (int i = 0; i < 8; i++) {
            bool is_more = i == 2 || i == 3 || i == 5;
            shapes.rows[i] = static_cast<uint8_t>(i > 5 ? kTile : is_more ? std::max<int64_t>(1, more) : rows);
            shapes.row_bytes[i] = kTile * 4;
        }
        load(shapes);
    }

    // Weights in blocks: 0 and 1 are [16 outputs, tokens], 2 and 3 [16 outputs, more tokens], 4 and 5 [16 outputs, 32
    // inputs], 6 [16 pairs of inputs, tokens], 7 [16 pairs of inputs, more tokens].
    void for_panel(int64_t tokens, int64_t more) {
        TileShapes shapes;
        for (int i = 0; i < 8; i++) {
            bool is_weights = i == 4 || i == 5, is_more = i == 2 || i == 3 || i == 7;
            int64_t width = is_weights ? kTile : is_more ? std::max<int64_t>(1, more) : tokens;
            shapes.rows[i] = static_cast<uint8_t>(kTile);
            shapes.row_bytes[i] = static_cast<uint16_t>(width * 4);
        }
        load(shapes);
    }

    // Scores: 0 to 3 are [queries, keys], 4 is [queries, 32 elements], 5 is [16 pairs of elements, keys].
    void for_scores(int64_t queries) { configure(queries, kTile * 4, kTile); }

    // Values: 0 to 3 are [queries, elements], 4 is [queries, 16 keys], 5 to 7 are [8 pairs of keys, elements].
    void for_values(int64_t queries) { configure(queries, kTile * 2, kTile / 2); }

  private:
    void configure(int64_t queries, int64_t operand_bytes, int64_t depth) {
        TileShapes shapes;
        for (int i = 0; i < 8; i++) {
            shapes.rows[i] = static_cast<uint8_t>(i < 5 ? queries : depth);
            shapes.row_bytes[i] = static_cast<uint16_t>(i == 4 ? operand_bytes : kTile * 4);
        }
        load(shapes);
    }
    static void load(const TileShapes &shapes) {
        order_memory();
        _tile_loadconfig(&shapes);
    }
    TileShapes before_;
};

// Sixteen keys as the second operand of scores: for each 32 elements a tile [16 pairs of elements, keys].
template <int64_t kHeadDim, typename T>
inline void pack_keys(const T *keys, bf16 *packed) {
    for (int64_t i = 0; i < kHeadDim; i += 2 * kTile, packed += 2 * kTile * kTile) {
        __m512i rows[16];
        for (int key = 0; key < 16; key++) rows[key] = load32(keys + key * kHeadDim + i);
        transpose(rows);
        for (int pair = 0; pair < 16; pair++) _mm512_store_si512(packed + pair * 2 * kTile, rows[pair]);
    }
}

// Sixteen keys' values as the second operand: for each 16 elements a tile [8 pairs of keys, elements], each two tiles in
// the order that interleaving leaves their elements in. What lies behind the last key was never written: it need not be
// finite, and must not be multiplied.
template <int64_t kHeadDim, typename T>
inline void pack_values(const T *values, int64_t count, bf16 *packed) {
    constexpr int64_t kPacked = kTile * kTile;
    for (int64_t key = 0; key < kTile; key += 2) {
        for (int64_t i = 0; i < kHeadDim; i += 2 * kTile) {
            __m512i one = load32(values + key * kHeadDim + i, key < count);
            __m512i next = load32(values + (key + 1) * kHeadDim + i, key + 1 < count);
            bf16 *place = packed + i / kTile * kPacked + key * kTile;
            _mm512_store_si512(place, _mm512_unpacklo_epi16(one, next));
            _mm512_store_si512(place + kPacked, _mm512_unpackhi_epi16(one, next));
        }
    }
}

// scores[query][key] for one tile. `packed` is from `pack_keys`.
template <int64_t kHeadDim>
inline void tile_scores(const bf16 *queries, const bf16 *packed, float *scores, int64_t pitch) {
    order_memory();
    _tile_zero(0);
    for (int64_t i = 0; i < kHeadDim; i += 2 * kTile) {
        _tile_loadd(4, queries + i, kHeadDim * sizeof(bf16));
        _tile_loadd(5, packed + i * kTile, 4 * kTile);
        _tile_dpbf16ps(0, 4, 5);
    }
    _tile_stored(0, scores, pitch * sizeof(float));
    order_memory();
}

// sums[query][element] += weights . values, for 16 * kCount elements and `num_keys` keys, 16 at a time.
template <int kCount>
inline void tile_values(const bf16 *weights, int64_t pitch, const bf16 *packed, int64_t packed_pitch, int64_t num_keys,
                        float *sums, int64_t sums_pitch) {
    constexpr int64_t kPacked = kTile * kTile;
    sums_pitch *= sizeof(float);
    order_memory();
    _tile_loadd(0, sums, sums_pitch);
    if constexpr (kCount > 1) _tile_loadd(1, sums + kTile, sums_pitch);
    if constexpr (kCount > 2) _tile_loadd(2, sums + 2 * kTile, sums_pitch);
    if constexpr (kCount > 3) _tile_loadd(3, sums + 3 * kTile, sums_pitch);
    for (int64_t key = 0; key < num_keys; key += kTile, packed += packed_pitch) {
        _tile_loadd(4, weights + key, pitch * sizeof(bf16));
        _tile_loadd(5, packed, 4 * kTile);
        _tile_dpbf16ps(0, 4, 5);
        if constexpr (kCount > 1) {
            _tile_loadd(6, packed + kPacked, 4 * kTile);
            _tile_dpbf16ps(1, 4, 6);
        }
        if constexpr (kCount > 2) {
            _tile_loadd(7, packed + 2 * kPacked, 4 * kTile);
            _tile_dpbf16ps(2, 4, 7);
        }
        if constexpr (kCount > 3) {
            _tile_loadd(5, packed + 3 * kPacked, 4 * kTile);
            _tile_dpbf16ps(3, 4, 5);
        }
    }
    _tile_stored(0, sums, sums_pitch);
    if constexpr (kCount > 1) _tile_stored(1, sums + kTile, sums_pitch);
    if constexpr (kCount > 2) _tile_stored(2, sums + 2 * kTile, sums_pitch);
    if constexpr (kCount > 3) _tile_stored(3, sums + 3 * kTile, sums_pitch);
    order_memory();
}

#else

struct Tiles {};

#endif

}  // namespace
