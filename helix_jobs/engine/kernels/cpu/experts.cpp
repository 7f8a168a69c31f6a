// All experts of a layer in one call: from the router's choice to the weighted sum of each token's experts.
//
// Tokens are grouped by expert, so the weights of each expert in use are read once, and of no other. A token's numbers
// do not depend on what else is computed: each product is one sum over the columns in one order, and a token's results are
// summed in the order of its experts.

#include "activations.h"
#include "expert_products.h"

// Neighbouring rows of a matrix, in one layout.
struct ExpertPart {
    const uint8_t *data;
    int64_t rows;
    int64_t layout;  // its place in kLayouts
};
// One product of one expert. The layouts of gate and up projection may differ.
struct ExpertMatrix {
    ExpertPart parts[2];  // the second may have no rows
    const void *bias;     // [rows] or null
};
struct ExpertLayer {
    const ExpertMatrix *inner, *outer;  // of each expert: to gate and up projection, and back
    int64_t num_experts, hidden, size;  // inner has 2 * size rows
    int64_t activation;
    float alpha, limit;  // of the last activation
};

namespace {

// Some rows of an expert's matrix, to be multiplied with its tokens.
struct Task {
    int64_t expert, part, first, count;  // first row within the part
};
// All products of gates and up projections, or of projections back.
struct Tasks {
    std::vector<Task> list;
    bool take_tiles;  // some of them
    int64_t size() const { return static_cast<int64_t>(list.size()); }
};

enum : int64_t { kSilu, kGelu, kTanhGelu, kClamped };

// A gate's activation times the up projection.
inline vf gated(const ExpertLayer &layer, vf gate, vf up) {
    switch (layer.activation) {
        case kSilu: return silu16(gate) * up;
        case kGelu: return gelu16(gate) * up;
        case kTanhGelu: return tanh_gelu16(gate) * up;
        default: {
            vf limit = splat(layer.limit);
            // A NaN is in no order with the limit, and must stay one.
            gate = gate > limit ? limit : gate;
            up = up > limit ? limit : up < -limit ? -limit : up;
            return (up + 1.0f) * (gate / (1.0f + exp16(-layer.alpha * gate)));
        }
    }
}

// What is stored as T, as it is multiplied.
template <typename T>
inline void store_number(Multiplied<T> *y, vf v, int64_t count) {
    if constexpr (std::is_same_v<T, Multiplied<T>>) {
        store_some(y, v, count);
    } else {
        T rounded[kLanes];
        store16(rounded, v);
        store_some(y, load16(rounded), count);
    }
}

template <typename T>
Tasks tasks_of(const ExpertMatrix *matrices, const std::vector<int64_t> &starts) {
    Tasks tasks{};
    for (int64_t e = 0; e + 1 < static_cast<int64_t>(starts.size()); e++)
        for (int64_t part = 0; part < 2 && starts[e] < starts[e + 1]; part++) {
            const ExpertPart &own = matrices[e].parts[part];
            if (own.rows == 0) continue;
            const Layout<T> &layout = kLayouts<T>[own.layout];
            int64_t most = rows_at_once(layout, starts[e + 1] - starts[e]);
            tasks.take_tiles = tasks.take_tiles || takes_tiles(layout);
            for (int64_t first = 0; first < own.rows; first += most)
                tasks.list.push_back({e, part, first, std::min(most, own.rows - first)});
        }
    return tasks;
}

template <typename T>
void experts(const ExpertLayer &layer, const T *x, const int64_t *choice, const float *weights, T *y, int64_t tokens,
             int64_t top_k, Shortage &shortage) {
    typedef Multiplied<T> Number;
    int64_t hidden = layer.hidden, size = layer.size, chosen = tokens * top_k;
    // Rows of expert e are starts[e] to starts[e + 1]; row r belongs to the choice number owners[r].
    std::vector<int64_t> starts(layer.num_experts + 1), places(chosen), owners(chosen);
    for (int64_t i = 0; i < chosen; i++) starts[choice[i] + 1]++;
    int64_t most = *std::max_element(starts.begin(), starts.end());
    for (int64_t e = 0; e < layer.num_experts; e++) starts[e + 1] += starts[e];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t i = 0; i < chosen; i++) {
        places[i] = next[choice[i]]++;
        owners[places[i]] = i;
    }
    Tasks inner_tasks = tasks_of<T>(layer.inner, starts), outer_tasks = tasks_of<T>(layer.outer, starts);
    std::vector<Number> given(chosen * hidden), between(chosen * size);
    int64_t widest = std::max(inner_tasks.take_tiles ? hidden : 0, outer_tasks.take_tiles ? size : 0);
    std::vector<T> packed(chosen * widest);
    std::vector<T> inner(chosen * 2 * size), results(chosen * hidden);
#pragma omp parallel if (chosen * hidden * size > 2 * kParallel)
    {
        ExpertProducts<T> products(inner_tasks.take_tiles || outer_tasks.take_tiles ? most : 0, shortage);
        auto multiply = [&](const ExpertMatrix *matrices, const Tasks &tasks, const Number *in, int64_t columns, T *out,
                            int64_t pitch) {
            if (tasks.take_tiles) {
#pragma omp for schedule(dynamic, 1)
                for (int64_t e = 0; e < layer.num_experts; e++) {
                    int64_t place = starts[e] * columns;
                    pack_all(in + place, starts[e + 1] - starts[e], columns, packed.data() + place);
                }
            }
#pragma omp for schedule(dynamic, 4)
            for (int64_t i = 0; i < tasks.size(); i++) {
                const Task &task = tasks.list[i];
                const ExpertMatrix &matrix = matrices[task.expert];
                const ExpertPart &part = matrix.parts[task.part];
                const Layout<T> &layout = kLayouts<T>[part.layout];
                const T *bias = static_cast<const T *>(matrix.bias);
                int64_t start = starts[task.expert];
                int64_t output = task.first + (task.part == 0 ? 0 : matrix.parts[0].rows);
                ExpertTokens<T> own{in + start * columns, packed.data() + start * columns,
                                    starts[task.expert + 1] - start, columns};
                products.run(layout, part.data + task.first * (columns / layout.weights * layout.bytes), task.count, own,
                             {bias == nullptr ? nullptr : bias + output, nullptr, out + start * pitch + output, pitch});
            }
        };
#pragma omp for schedule(static)
        for (int64_t row = 0; row < chosen; row++)
            for_lanes(hidden, [&](int64_t i, int64_t n) {
                store_number<T>(given.data() + row * hidden + i, load_some(x + owners[row] / top_k * hidden + i, n), n);
            });
        multiply(layer.inner, inner_tasks, given.data(), hidden, inner.data(), 2 * size);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < chosen; row++) {
            const T *in = inner.data() + row * 2 * size;
            for_lanes(size, [&](int64_t i, int64_t n) {
                vf v = gated(layer, load_some(in + i, n), load_some(in + size + i, n));
                store_number<T>(between.data() + row * size + i, v, n);
            });
        }
        multiply(layer.outer, outer_tasks, between.data(), size, results.data(), hidden);
#pragma omp for schedule(static)
        for (int64_t token = 0; token < tokens; token++)
            for_lanes(hidden, [&](int64_t i, int64_t n) {
                vf total = {};
                for (int64_t k = token * top_k; k < (token + 1) * top_k; k++)
                    total += load_some(results.data() + places[k] * hidden + i, n) * weights[k];
                store_some(y + token * hidden + i, total, n);
            });
    }
}

}  // namespace

// y = the sum over each token's experts of weight * outer(activation(inner(x))); x and y are [tokens, hidden], choice and
// weights [tokens, top_k].
EXPORT int32_t experts_float32(const ExpertLayer *layer, const float *x, const int64_t *choice, const float *weights,
                               float *y, int64_t tokens, int64_t top_k) {
    Shortage shortage;
    shortage.run([&] { experts(*layer, x, choice, weights, y, tokens, top_k, shortage); });
    return shortage.status();
}
EXPORT int32_t experts_bfloat16(const ExpertLayer *layer, const bf16 *x, const int64_t *choice, const float *weights,
                                bf16 *y, int64_t tokens, int64_t top_k) {
    Shortage shortage;
    shortage.run([&] { experts(*layer, x, choice, weights, y, tokens, top_k, shortage); });
    return shortage.status();
}
