// All experts of a layer in one call: from the router's choice to the weighted sum of each token's experts.
//
// Tokens are grouped by expert, so the weights of each expert in use are read once, and of no other. A token's numbers
// do not depend on what else is computed: each product is one sum over the columns in one order (`row_products.h`), and a
// token's results are summed in the order of its experts.

#include "activations.h"
#include "row_products.h"
#include "shortage.h"

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

// A group of rows of an expert's matrix, to be multiplied with its tokens.
struct Task {
    int64_t expert, part, first;  // first row within the part
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
void experts(const ExpertLayer &layer, const T *x, const int64_t *choice, const float *weights, T *y, int64_t tokens,
             int64_t top_k) {
    typedef Multiplied<T> Number;
    int64_t hidden = layer.hidden, size = layer.size, chosen = tokens * top_k;
    // Rows of expert e are starts[e] to starts[e + 1]; row r belongs to the choice number owners[r].
    std::vector<int64_t> starts(layer.num_experts + 1), places(chosen), owners(chosen);
    for (int64_t i = 0; i < chosen; i++) starts[choice[i] + 1]++;
    for (int64_t e = 0; e < layer.num_experts; e++) starts[e + 1] += starts[e];
    std::vector<int64_t> next(starts.begin(), starts.end() - 1);
    for (int64_t i = 0; i < chosen; i++) {
        places[i] = next[choice[i]]++;
        owners[places[i]] = i;
    }
    auto tasks_of = [&](const ExpertMatrix *matrices) {
        std::vector<Task> tasks;
        for (int64_t e = 0; e < layer.num_experts; e++)
            for (int64_t part = 0; part < 2 && starts[e] < starts[e + 1]; part++)
                for (int64_t first = 0; first < matrices[e].parts[part].rows; first += kGroup)
                    tasks.push_back({e, part, first});
        return tasks;
    };
    std::vector<Task> inner_tasks = tasks_of(layer.inner), outer_tasks = tasks_of(layer.outer);
    std::vector<Number> given(chosen * hidden), between(chosen * size);
    std::vector<T> inner(chosen * 2 * size), results(chosen * hidden);
    int64_t num_inner = static_cast<int64_t>(inner_tasks.size()), num_outer = static_cast<int64_t>(outer_tasks.size());
#pragma omp parallel if (chosen * hidden * size > 2 * kParallel)
    {
        RowProducts<T> products;
        auto multiply = [&](const ExpertMatrix *matrices, const Task &task, const Number *in, int64_t columns, T *out,
                            int64_t pitch) {
            const ExpertMatrix &matrix = matrices[task.expert];
            const ExpertPart &part = matrix.parts[task.part];
            const Layout<T> &layout = kLayouts<T>[part.layout];
            const T *bias = static_cast<const T *>(matrix.bias);
            int64_t start = starts[task.expert], output = task.first + (task.part == 0 ? 0 : matrix.parts[0].rows);
            products.run(layout, part.data + task.first * (columns / layout.weights * layout.bytes),
                         std::min<int64_t>(kGroup, part.rows - task.first), in + start * columns,
                         starts[task.expert + 1] - start, columns, [&](int64_t token, int64_t row, float sum) {
                             if (bias != nullptr) sum += get(bias + output + row);
                             put(out + (start + token) * pitch + output + row, sum);
                         });
        };
#pragma omp for schedule(static)
        for (int64_t row = 0; row < chosen; row++)
            for_lanes(hidden, [&](int64_t i, int64_t n) {
                store_number<T>(given.data() + row * hidden + i, load_some(x + owners[row] / top_k * hidden + i, n), n);
            });
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < num_inner; i++)
            multiply(layer.inner, inner_tasks[i], given.data(), hidden, inner.data(), 2 * size);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < chosen; row++) {
            const T *in = inner.data() + row * 2 * size;
            for_lanes(size, [&](int64_t i, int64_t n) {
                vf v = gated(layer, load_some(in + i, n), load_some(in + size + i, n));
                store_number<T>(between.data() + row * size + i, v, n);
            });
        }
#pragma omp for schedule(dynamic, 4)
        for (int64_t i = 0; i < num_outer; i++)
            multiply(layer.outer, outer_tasks[i], between.data(), size, results.data(), hidden);
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
    return status_of([&] { experts(*layer, x, choice, weights, y, tokens, top_k); });
}
EXPORT int32_t experts_bfloat16(const ExpertLayer *layer, const bf16 *x, const int64_t *choice, const float *weights,
                                bf16 *y, int64_t tokens, int64_t top_k) {
    return status_of([&] { experts(*layer, x, choice, weights, y, tokens, top_k); });
}
