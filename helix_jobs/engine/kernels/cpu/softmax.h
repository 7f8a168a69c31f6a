// A query's scores become the weights of its values: scaled, bounded, and without the keys that it does not see.

#pragma once

#include "activations.h"

namespace {

// What a layer does to its scores: `cap` bounds them, `window` is the number of keys that a query sees, and `sinks` has
// for each head the score of one more key, whose value is zero. Zero for none.
struct Scoring {
    float scaling, cap;
    int64_t window;
    const float *sinks = nullptr;
};

// The scales of a slice's keys and values, side by side and zero behind the last one; null where they have none.
struct Scales {
    const float *keys = nullptr, *values = nullptr;
};

// Scores of one row become weights in their place, unscaled and zero behind the last visible key and before the window.
// A key's scale is a factor of its score, and a value's of its weight. Returns what their products are to be multiplied
// with; NaN if a score was not finite. `head` is the row's own.
template <typename Weight>
inline float softmax_row(float *s, int64_t visible, int64_t padded, const Scoring &scoring, const Scales &scales,
                         int64_t head) {
    Weight *w = reinterpret_cast<Weight *>(s);
    float scaling = scoring.scaling;
    if (scales.keys)
        for (int64_t key = 0; key < padded; key += kLanes)
            store16(s + key, load16(s + key) * load16(scales.keys + key));
    if (scoring.cap > 0) {
        for (int64_t key = 0; key < visible; key += kLanes) {
            vf v = load16(s + key);
            store16(s + key, scoring.cap * tanh16(v * (scaling / scoring.cap)) + v * 0.0f);
        }
        scaling = 1;
    }
    int64_t hidden = scoring.window > 0 ? visible - scoring.window : 0;
    for (int64_t key = 0; key < hidden; key++) s[key] = -INFINITY;
    for (int64_t key = visible; key < padded; key++) s[key] = -INFINITY;
    vf highest = load16(s), probe = {};
    for (int64_t key = 0; key < visible; key += kLanes) {
        vf v = load16(s + key);
        highest = max16(highest, v);
        // Not finite times zero is NaN, but for the minus infinities put there above.
        probe += (v == -INFINITY ? vf{} : v) * 0.0f;
    }
    float top = highest[0];
    for (int i = 1; i < kLanes; i++) top = std::max(top, highest[i]);
    vf totals = {};
    if (scoring.sinks) {
        float sink = scoring.sinks[head] / scaling;
        top = std::max(top, sink);
        totals[0] = exp16((vf{} + (sink - top)) * scaling)[0];
        probe[0] = (sink == -INFINITY ? 0.0f : sink) * 0.0f;
    }
    for (int64_t key = 0; key < padded; key += kLanes) {
        vf v = load16(s + key);
        vf e = v == -INFINITY ? vf{} : exp16((v - top) * scaling);
        store16(w + key, scales.values ? e * load16(scales.values + key) : e);
        totals += e;
    }
    // exp16 makes a number of a NaN; what is not finite has to be seen.
    return 1.0f / sum16(totals) + sum16(probe);
}

}  // namespace
