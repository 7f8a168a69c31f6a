// Products of weights in blocks with any number of tokens in the processor's matrix tiles (Intel AMX), in bfloat16.
//
// Some columns of some rows are decoded into the caches and multiplied there, then the next columns. `panel_sums.h` says
// in which order products are added; the order is the same for any number of tokens.

#pragma once

#ifdef _OPENMP
#include <omp.h>
#endif
#include <optional>

#include "decoded_rows.h"
#include "panel_sums.h"
#include "shortage.h"

#if HAS_TILES

namespace {

static_assert(kLine == kTileColumns, "a line of weights is a row of a tile");

// Up to kFewTokens tokens keep their sums in the tiles until all columns of a panel are multiplied. kFewColumns columns of
// the panel are decoded at a time.
constexpr int64_t kFewTokens = 2 * kTile, kFewColumns = 256;
// More tokens are multiplied kBatchTokens at a time. kSomeColumns columns of up to kMostPanels panels are decoded together
// and lie in the second-level cache beside these tokens. Two groups of tokens stay in the first-level cache for all panels.
constexpr int64_t kBatchTokens = 256, kMostPanels = 8, kSomeColumns = 256;

// Neighbouring rows of a weight in blocks.
struct BlockRows {
    const uint8_t *data;
    const Layout<bf16> &layout;
    int64_t count, columns, row_bytes;

    BlockRows some(int64_t first, int64_t most) const {
        return {data + first * row_bytes, layout, std::min(most, count - first), columns, row_bytes};
    }
};

// Some columns of such rows, which are decoded row by row.
class BlockColumns {
  public:
    BlockColumns(const BlockRows &rows, int64_t first, int64_t columns)
        : rows_(rows), columns_(columns), bytes_(columns / rows.layout.weights * rows.layout.bytes),
          from_(rows.data + first / rows.layout.weights * rows.layout.bytes),
          next_(from_ + rows.count * rows.row_bytes + (from_ - rows.data) * (rows.count - 1)) {}

    // The lines of a row lie a panel apart. The same columns of the rows behind these are next, as a rule.
    void decode(int64_t row, bf16 *out) const {
        fetch(next_ + row * bytes_, bytes_);
        rows_.layout.decode(from_ + row * rows_.row_bytes, columns_, out, kPanelRows * kLine);
    }

  private:
    const BlockRows &rows_;
    int64_t columns_, bytes_;
    const uint8_t *from_, *next_;
};

// The next columns of some panels, decoded row by row while the tiles multiply: a product of tiles takes long.
class Ahead {
  public:
    // `passes` passes over each panel's present columns are to come: the next ones are decoded in the course of them.
    Ahead(const BlockRows &rows, int64_t first, int64_t passes, bf16 *weights)
        : rows_(rows), columns_(std::min(kSomeColumns, rows.columns - first)), piece_(rows, first, columns_),
          weights_(weights), of_pass_((kPanelRows + passes - 1) / passes),
          of_line_((of_pass_ * kLine + kSomeColumns - 1) / kSomeColumns) {}

    void begin_pass() { left_ = of_pass_; }
    void at_line() {
        if (left_ <= 0) return;
        decode(of_line_);
        left_ -= of_line_;
    }
    void decode(int64_t most) {
        for (int64_t end = std::min(rows_.count, row_ + most); row_ < end; row_++)
            piece_.decode(row_, weights_ + row_ / kPanelRows * kPanelRows * columns_ + row_ % kPanelRows * kLine);
    }
    void decode_rest() { decode(rows_.count); }

  private:
    const BlockRows &rows_;
    int64_t columns_, row_ = 0, left_ = 0;
    BlockColumns piece_;
    bf16 *weights_;
    int64_t of_pass_, of_line_;  // rows
};

// Goes on with sums in memory, from column `first` on.
template <bool kMore>
inline void add_columns(const bf16 *weights, const Tokens &tokens, int64_t first, int64_t columns, float *sums,
                        Ahead *ahead) {
    order_memory();
    if (first > 0)
        PanelSums<kMore>::load(sums);
    else
        PanelSums<kMore>::clear();
    if (ahead != nullptr) ahead->begin_pass();
    for (int64_t k = 0; k < columns; k += kLine) {
        PanelSums<kMore>::add(weights + k * kPanelRows, tokens, first + k);
        if (ahead != nullptr) ahead->at_line();
    }
    PanelSums<kMore>::store(sums);
}

// All columns of a panel for few tokens. While the tiles multiply some columns, the next ones are decoded: of few tokens
// there are but two or four products at a time, and decoding fills the wait for them. `weights` has room for two pieces.
template <bool kMore>
inline void multiply_panel(const Tokens &tokens, const BlockRows &rows, bf16 *weights, float *sums) {
    constexpr int64_t kStride = kPanelRows * kLine / kFewColumns;  // rows that are decoded for each line of products
    int64_t columns = rows.columns;
    auto piece = [&](int64_t first) {
        return BlockColumns(rows, first, std::max<int64_t>(0, std::min(kFewColumns, columns - first)));
    };
    PanelSums<kMore>::clear();
    bf16 *now = weights, *next = weights + kPanelRows * kFewColumns;
    BlockColumns start = piece(0);
    for (int64_t row = 0; row < rows.count; row++) start.decode(row, now + row * kLine);
    for (int64_t first = 0; first < columns; first += kFewColumns) {
        int64_t some = std::min(kFewColumns, columns - first);
        int64_t ahead = first + some < columns ? rows.count : 0;  // rows of the next piece
        BlockColumns behind = piece(first + some);
        order_memory();
        for (int64_t k = 0, row = 0; k < some; k += kLine) {
            PanelSums<kMore>::add(now + k * kPanelRows, tokens, first + k);
            for (int64_t i = 0; i < kStride && row < ahead; i++, row++) behind.decode(row, next + row * kLine);
        }
        std::swap(now, next);
    }
    PanelSums<kMore>::store(sums);
}

// The work of one thread: its tiles, sums and decoded weights.
class BlockProducts {
  public:
    explicit BlockProducts(int64_t tokens) : room_(bytes_for(tokens)) {
        sums_ = room_.get<float>();
        weights_ = reinterpret_cast<bf16 *>(sums_ + sums_for(tokens));
    }

    // At most kFewTokens tokens with a panel, whose first row is output `row`.
    void few(const BlockRows &panel, const PackedTokens &x, int64_t row, const Outputs<bf16> &outputs) {
        Tokens all = x.two(0);
        tiles_.shape(all);
        auto run = all.more > 0 ? multiply_panel<true> : multiply_panel<false>;
        run(all, panel, weights_, sums_);
        for (int64_t group = 0; group < x.groups(); group++)
            finish_panel(sums_ + group * kPanelSums, group * kTile, x.size_of(group), row, panel.count, outputs);
    }

    // Some tokens, of which `token` is the first, with at most kMostPanels panels.
    void many(const BlockRows &rows, const PackedTokens &x, int64_t token, int64_t row, const Outputs<bf16> &outputs) {
        int64_t columns = rows.columns, groups = x.groups(), panel_sums = groups * kPanelSums;
        int64_t passes = (groups + 1) / 2;
        bf16 *now = weights_, *next = weights_ + kMostPanels * kPanelRows * kSomeColumns;
        Ahead(rows, 0, passes, now).decode_rest();
        for (int64_t first = 0; first < columns; first += kSomeColumns) {
            int64_t some = std::min(kSomeColumns, columns - first);
            std::optional<Ahead> ahead;
            if (first + some < columns) ahead.emplace(rows, first + some, passes, next);
            Ahead *behind = ahead ? &*ahead : nullptr;
            for (int64_t group = 0; group < groups; group += 2) {
                Tokens two = x.two(group);
                tiles_.shape(two);
                auto run = two.more > 0 ? add_columns<true> : add_columns<false>;
                for (int64_t i = 0, panel = 0; i < rows.count; i += kPanelRows, panel++)
                    run(now + i * some, two, first, some, sums_ + panel * panel_sums + group * kPanelSums, behind);
            }
            if (ahead) ahead->decode_rest();
            std::swap(now, next);
        }
        for (int64_t group = 0; group < groups; group++)
            for (int64_t i = 0, panel = 0; i < rows.count; i += kPanelRows, panel++)
                finish_panel(sums_ + panel * panel_sums + group * kPanelSums, token + group * kTile, x.size_of(group),
                             row + i, std::min(kPanelRows, rows.count - i), outputs);
    }

  private:
    static int64_t sums_for(int64_t tokens) {
        if (tokens <= kFewTokens) return 2 * kPanelSums;
        return kMostPanels * ((std::min(tokens, kBatchTokens) + kTile - 1) / kTile) * kPanelSums;
    }
    static int64_t bytes_for(int64_t tokens) {
        int64_t weights = 2 * kPanelRows * (tokens <= kFewTokens ? kFewColumns : kMostPanels * kSomeColumns);
        return sums_for(tokens) * sizeof(float) + weights * sizeof(bf16);
    }
    PanelTiles tiles_;
    Lines room_;
    float *sums_;
    bf16 *weights_;
};

inline int32_t multiply_in_tiles(const uint8_t *data, const Layout<bf16> &layout, const bf16 *x,
                                 const Outputs<bf16> &outputs, int64_t tokens, int64_t columns, int64_t rows) {
    Shortage shortage;
    std::unique_ptr<Lines> room;
    if (!shortage.run([&] { room = std::make_unique<Lines>((tokens + kTile) * columns * sizeof(bf16)); }))
        return shortage.status();
    bf16 *packed = room->get<bf16>();
    PackedTokens all{packed, tokens, columns};
    BlockRows weights{data, layout, rows, columns, columns / layout.weights * layout.bytes};
    auto pack = [&](int64_t group) {
        pack_tokens(x + group * kTile * columns, all.size_of(group), columns, packed + group * kTile * columns);
    };
    bool is_few = tokens <= kFewTokens;
    if (is_few)
        for (int64_t group = 0; group < all.groups(); group++) pack(group);  // takes less time than to wait for others
    int64_t panels = (rows + kPanelRows - 1) / kPanelRows, threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    // Every thread has as many strips of panels, of about the same size.
    int64_t strips = std::min(panels, (panels + threads * kMostPanels - 1) / (threads * kMostPanels) * threads);
#pragma omp parallel if (tokens * rows * columns > 8 * kParallel)
    {
        std::unique_ptr<BlockProducts> products;
        bool has_room = shortage.run([&] { products = std::make_unique<BlockProducts>(tokens); });
        if (is_few) {
#pragma omp for schedule(static)
            for (int64_t row = 0; row < rows; row += kPanelRows)
                if (has_room) products->few(weights.some(row, kPanelRows), all, row, outputs);
        } else {
#pragma omp for schedule(static)
            for (int64_t group = 0; group < all.groups(); group++) pack(group);
            for (int64_t token = 0; token < tokens; token += kBatchTokens) {
                PackedTokens batch{packed + token * columns, std::min(kBatchTokens, tokens - token), columns};
#pragma omp for schedule(static) nowait
                for (int64_t strip = 0; strip < strips; strip++) {
                    int64_t row = panels * strip / strips * kPanelRows;
                    int64_t count = panels * (strip + 1) / strips * kPanelRows - row;
                    if (has_room) products->many(weights.some(row, count), batch, token, row, outputs);
                }
            }
        }
    }
    return shortage.status();
}

}  // namespace

#endif
