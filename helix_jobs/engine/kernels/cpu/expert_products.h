// Products of some rows of an expert's matrix with its tokens. Weights in blocks are multiplied in matrix tiles where the
// processor has them, others in vectors: the layout alone decides, so a token's numbers do not depend on how many there are.

#pragma once

#include "block_tiles.h"
#include "layer_outputs.h"
#include "row_products.h"
#include "shortage.h"

namespace {

// Tokens of an expert, one behind the other; `packed` as tiles take them, if any part is multiplied there.
template <typename T>
struct ExpertTokens {
    const Multiplied<T> *rows;
    const T *packed;
    int64_t count, columns;
};

#if HAS_TILES
inline bool takes_tiles(const Layout<bf16> &layout) { return !layout.is_plain && Tiles::is_allowed(); }
// Packs the tokens of an expert.
inline void pack_all(const bf16 *rows, int64_t count, int64_t columns, bf16 *packed) {
    for (int64_t token = 0; token < count; token += kTile, rows += kTile * columns, packed += kTile * columns)
        pack_tokens(rows, std::min(kTile, count - token), columns, packed);
}
#endif
template <typename T>
inline bool takes_tiles(const Layout<T> &) {
    return false;
}
template <typename T>
inline void pack_all(const Multiplied<T> *, int64_t, int64_t, T *) {}

// Rows that are multiplied together.
template <typename T>
inline int64_t rows_at_once(const Layout<T> &layout, int64_t tokens) {
#if HAS_TILES
    if (takes_tiles(layout)) return tokens <= kFewTokens ? kPanelRows : kMostPanels * kPanelRows;
#endif
    (void)layout, (void)tokens;
    return kGroup;
}

// Each thread has its own.
template <typename T>
class ExpertProducts {
  public:
    // `most` tokens go to one expert, or none if nothing is multiplied in tiles.
    ExpertProducts(int64_t most, Shortage &shortage) {
#if HAS_TILES
        if (most > 0) shortage.run([&] { tiles_ = std::make_unique<BlockProducts>(most); });
#endif
        (void)most, (void)shortage;
    }

    // `count` rows, at most `rows_at_once`; `outputs` begins with the first of them.
    void run(const Layout<T> &layout, const uint8_t *rows, int64_t count, const ExpertTokens<T> &x,
             const Outputs<T> &outputs) {
#if HAS_TILES
        if constexpr (std::is_same_v<T, bf16>)
            if (takes_tiles(layout)) return run_in_tiles(layout, rows, count, x, outputs);
#endif
        vectors_.run(layout, rows, count, x.rows, x.count, x.columns, outputs);
    }

  private:
#if HAS_TILES
    void run_in_tiles(const Layout<bf16> &layout, const uint8_t *rows, int64_t count, const ExpertTokens<bf16> &x,
                      const Outputs<bf16> &outputs) {
        if (tiles_ == nullptr) return;  // there was no memory
        BlockRows weights{rows, layout, count, x.columns, x.columns / layout.weights * layout.bytes};
        if (x.count <= kFewTokens) return tiles_->few(weights, {x.packed, x.count, x.columns}, 0, outputs);
        for (int64_t token = 0; token < x.count; token += kBatchTokens) {
            PackedTokens batch{x.packed + token * x.columns, std::min(kBatchTokens, x.count - token), x.columns};
            tiles_->many(weights, batch, token, 0, outputs);
        }
    }
    std::unique_ptr<BlockProducts> tiles_;
#endif
    RowProducts<T> vectors_;
};

}  // namespace
