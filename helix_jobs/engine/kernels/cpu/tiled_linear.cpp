// One bfloat16 layer over any number of tokens in the processor's matrix tiles (Intel AMX).
//
// Each output is one sum over the inputs, from the first to the last, in float32: a token's numbers are the same bits
// whatever the number of tokens. Libraries choose another order of summation for another number of tokens.

#ifdef _OPENMP
#include <omp.h>
#endif

#include "shortage.h"
#include "tiles.h"

namespace {

#if HAS_TILES

constexpr int64_t kInputs = 2 * kTile;              // of one tile
constexpr int64_t kOutputs = 2 * kTile;             // of two tiles side by side, a block
constexpr int64_t kBlockTile = kInputs * kOutputs;  // packed weights of a block and a tile's inputs
// So many tokens stay in the second-level cache while a task's weights go past, and so many inputs of them at once.
constexpr int64_t kTokens = 192;
constexpr int64_t kFew = 64;
constexpr int64_t kChunk = 48 * kInputs;
constexpr int64_t kBlocks = 16;  // of one task at most

// For each block of 32 outputs, for each 32 inputs: two tiles [16 pairs of inputs, 16 outputs].
void pack(const bf16 *weight, bf16 *packed, int64_t inputs, int64_t outputs) {
    int64_t blocks = (outputs + kOutputs - 1) / kOutputs;
#pragma omp parallel for schedule(static)
    for (int64_t block = 0; block < blocks; block++)
        for (int64_t first = 0; first < inputs; first += kInputs)
            for (int64_t half = 0; half < 2; half++) {
                bf16 *place = packed + (block * inputs + first) * kOutputs + half * kTile * kInputs;
                __m512i rows[16];
                for (int64_t i = 0; i < kTile; i++) {
                    int64_t output = block * kOutputs + half * kTile + i;
                    rows[i] = output < outputs ? _mm512_loadu_si512(weight + output * inputs + first)
                                               : _mm512_setzero_si512();
                }
                transpose(rows);
                for (int64_t i = 0; i < kTile; i++) _mm512_storeu_si512(place + i * kInputs, rows[i]);
            }
}

// The same as `store16` in one instruction, but for subnormal outputs, which become zero.
inline void store_rounded(bf16 *y, vf v) {
    __m256bh rounded = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
    std::memcpy(y, &rounded, sizeof rounded);
}

// Adds `inputs` products to the sums of a block, for the rows that the tiles are shaped for.
//
// `from` is null where nothing was summed before. Weights stay in the first-level cache and are used for the next tokens;
// the tokens' inputs only pass through it.
template <bool kMore>
inline void multiply(const bf16 *x, int64_t x_pitch, const bf16 *packed, int64_t inputs, const float *from,
                     int64_t from_pitch, float *to, int64_t to_pitch) {
    const bf16 *x_more = x + kTile * x_pitch;
    const float *from_more = from + kTile * from_pitch;
    float *to_more = to + kTile * to_pitch;
    x_pitch *= sizeof(bf16), from_pitch *= sizeof(float), to_pitch *= sizeof(float);
    order_memory();
    if (from == nullptr) {
        _tile_zero(0);
        _tile_zero(1);
        if constexpr (kMore) _tile_zero(2);
        if constexpr (kMore) _tile_zero(3);
    } else {
        _tile_loadd(0, from, from_pitch);
        _tile_loadd(1, from + kTile, from_pitch);
        if constexpr (kMore) _tile_loadd(2, from_more, from_pitch);
        if constexpr (kMore) _tile_loadd(3, from_more + kTile, from_pitch);
    }
    for (int64_t i = 0; i < inputs; i += kInputs, packed += kBlockTile) {
        _tile_stream_loadd(4, x + i, x_pitch);
        _tile_loadd(6, packed, 4 * kTile);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, packed + kTile * kInputs, 4 * kTile);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (kMore) {
            _tile_stream_loadd(5, x_more + i, x_pitch);
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, to, to_pitch);
    _tile_stored(1, to + kTile, to_pitch);
    if constexpr (kMore) _tile_stored(2, to_more, to_pitch);
    if constexpr (kMore) _tile_stored(3, to_more + kTile, to_pitch);
    order_memory();
}

int32_t tiled_linear(const bf16 *x, const bf16 *packed, const bf16 *bias, const bf16 *residual, bf16 *y, int64_t tokens,
                     int64_t inputs, int64_t outputs, int64_t per_task) {
    int64_t blocks = (outputs + kOutputs - 1) / kOutputs, tasks = (blocks + per_task - 1) / per_task;
    int64_t pitch = per_task * kOutputs, chunk = tokens <= kFew ? inputs : kChunk;
    // Sums of one block of outputs and rows, complete, to bias, residual and rounding.
    auto finish = [&](const float *sums, int64_t token, int64_t rows, int64_t output) {
        for (int64_t row = 0; row < rows; row++, sums += kOutputs)
            for (int64_t i = 0; i < kOutputs && output + i < outputs; i += kTile) {
                int64_t n = std::min(kTile, outputs - output - i), place = (token + row) * outputs + output + i;
                vf sum = load16(sums + i);
                if (bias != nullptr) sum += load_some(bias + output + i, n);
                if (residual != nullptr) sum += load_some(residual + place, n);
                if (n == kTile)
                    store_rounded(y + place, sum);
                else
                    store_some(y + place, sum, n);
            }
    };
    Shortage shortage;
#pragma omp parallel
    {
        Tiles tiles;
        int64_t kept = chunk < inputs ? std::min(tokens, kTokens) * pitch : 0;
        std::vector<float> scratch;
        bool has_room = shortage.run([&] { scratch.resize(kept + 2 * kTile * kOutputs + kTile); });
        uintptr_t begin = reinterpret_cast<uintptr_t>(scratch.data());
        float *complete = scratch.data() + (64 - begin % 64) % 64 / sizeof(float);  // [32, kOutputs]
        float *partial = complete + 2 * kTile * kOutputs;                           // [tokens, pitch]
        int64_t shaped_rows = 0, shaped_more = -1;
        auto shape = [&](int64_t rows, int64_t more) {
            if (rows == shaped_rows && more == shaped_more) return;
            tiles.for_layer(rows, more);
            shaped_rows = rows, shaped_more = more;
        };
        // One block of outputs over all rows of a group of tokens, for one chunk of inputs.
        auto add = [&](int64_t block, int64_t token, int64_t count, int64_t first, float *sums) {
            int64_t length = std::min(chunk, inputs - first);
            bool is_last = first + length == inputs;
            const bf16 *weights = packed + (block * inputs + first) * kOutputs;
            for (int64_t row = 0; row < count; row += 2 * kTile) {
                int64_t rest = count - row, rows = std::min(kTile, rest), more = std::min(kTile, rest - rows);
                shape(rows, more);
                const bf16 *in = x + (token + row) * inputs + first;
                float *own = sums + row * pitch, *to = is_last ? complete : own;
                auto run = rest > kTile ? multiply<true> : multiply<false>;
                run(in, inputs, weights, length, first == 0 ? nullptr : own, pitch, to, is_last ? kOutputs : pitch);
                if (is_last) finish(complete, token + row, rows + more, block * kOutputs);
            }
        };
#pragma omp for schedule(dynamic, 1)
        for (int64_t task = 0; task < tasks; task++) {
            if (!has_room) continue;
            int64_t block = task * per_task, end = std::min(blocks, block + per_task);
            for (int64_t token = 0; token < tokens; token += kTokens)
                for (int64_t first = 0; first < inputs; first += chunk)
                    for (int64_t b = block; b < end; b++)
                        add(b, token, std::min(kTokens, tokens - token), first, partial + (b - block) * kOutputs);
        }
    }
    return shortage.status();
}

#endif

}  // namespace

// Whether this process may use matrix tiles.
EXPORT int32_t has_tiles() {
#if HAS_TILES
    return Tiles::is_allowed();
#else
    return 0;
#endif
}

#if HAS_TILES
EXPORT void pack_tiles(const bf16 *weight, bf16 *packed, int64_t inputs, int64_t outputs) {
    pack(weight, packed, inputs, outputs);
}
// y = x @ weight.T + bias + residual, rounded once; bias and residual may be null.
EXPORT int32_t tiled_linear_bfloat16(const bf16 *x, const bf16 *packed, const bf16 *bias, const bf16 *residual, bf16 *y,
                                     int64_t tokens, int64_t inputs, int64_t outputs) {
    int64_t blocks = (outputs + kOutputs - 1) / kOutputs, threads = 1;
#ifdef _OPENMP
    threads = omp_get_max_threads();
#endif
    int64_t per_task = std::min(kBlocks, std::max<int64_t>(1, blocks / (4 * threads)));
    return tiled_linear(x, packed, bias, residual, y, tokens, inputs, outputs, per_task);
}
#else
EXPORT void pack_tiles(const bf16 *, bf16 *, int64_t, int64_t) {}
EXPORT int32_t tiled_linear_bfloat16(const bf16 *, const bf16 *, const bf16 *, const bf16 *, bf16 *, int64_t, int64_t,
                                     int64_t) {
    return kDone;
}
#endif
