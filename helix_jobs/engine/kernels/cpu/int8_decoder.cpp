// All layers of an int8 decoder over a step of a few tokens, in one call.
//
// With a token or two a step, a small model spends more time between its matrix products than in them. Here one team of
// threads goes through the whole model: each thread takes its share of every weight, and all meet four times a layer.
// Activations are float32, rounded to 8 bits as they enter a product; what is computed is what the layers one by one
// compute, but for the rounding of what lies between them.

#include <chrono>

#include "activations.h"
#include "attention.h"
#include "bytes.h"
#include "shortage.h"

struct Layer {
    const void *attention_norm, *query_norm, *key_norm, *mlp_norm;  // the head norms may be null
    Matrix qkv, attention_out, mlp_in, mlp_out;
    void *keys, *values;               // this layer's pools
    float *key_scales, *value_scales;  // null where the pools are in the model's type
    float scaling, cap;
    int64_t window;  // see Scoring
};

struct Model {
    const Layer *layers;
    int64_t num_layers, hidden_size, heads, kv_heads, rotary_dim, block_size, intermediate_size;
    float eps;
};

struct Step {
    int64_t tokens, num_pieces;
    const int64_t *positions, *write_rows, *pieces;
    const int32_t *blocks;
    const void *cos, *sin;
    double *attention_seconds;  // raised by the time spent in attention
};

namespace {

// What a thread has for itself. Threads meet in every layer, so none may be without: the memory is asked for before they
// start, and touched by its own thread first.
struct Own {
    Rounded rounded;
    std::vector<float> normal;  // [tokens, hidden_size]
    Own(int64_t tokens, int64_t hidden_size, int64_t widest) {
        rounded.reserve(tokens, widest);
        normal.reserve(tokens * hidden_size);
    }
};

template <typename T>
void normalise(const float *x, const void *weight, float *y, int64_t size, float eps) {
    const T *w = static_cast<const T *>(weight);
    vf sums = {};
    for_lanes(size, [&](int64_t i, int64_t n) {
        vf v = load_some(x + i, n);
        sums += v * v;
    });
    float scale = 1.0f / std::sqrt(sum16(sums) / static_cast<float>(size) + eps);
    for_lanes(size, [&](int64_t i, int64_t n) {
        store_some(y + i, load_some(x + i, n) * scale * load_some(w + i, n), n);
    });
}

// Rotate one head in place.
template <typename T>
void rotate(float *x, const T *cos, const T *sin, int64_t rotary_dim) {
    int64_t half = rotary_dim / 2;
    for_lanes(half, [&](int64_t i, int64_t n) {
        vf first = load_some(x + i, n), second = load_some(x + i + half, n);
        store_some(x + i, first * load_some(cos + i, n) + second * load_some(sin + i, n), n);
        store_some(x + i + half, second * load_some(cos + i + half, n) + first * load_some(sin + i + half, n), n);
    });
}

inline double seconds() {
    return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <typename T, typename S>
void run_layers(const Model &model, const Step &step, float *hidden, Shortage &shortage) {
    constexpr int64_t head_dim = kHeadDim;
    int64_t tokens = step.tokens, size = model.hidden_size, heads = model.heads, kv_heads = model.kv_heads;
    int64_t inner = model.intermediate_size, width = (heads + 2 * kv_heads) * head_dim;
    std::vector<float> qkv(tokens * width), queries(tokens * heads * head_dim), attended(tokens * heads * head_dim);
    std::vector<float> expanded(tokens * inner), ups(tokens * inner);
    int num_threads = 1;
#ifdef _OPENMP
    num_threads = omp_get_max_threads();
#endif
    std::vector<Own> owns;
    owns.reserve(num_threads);
    for (int i = 0; i < num_threads; i++) owns.emplace_back(tokens, size, std::max({size, heads * head_dim, inner}));
    const T *cos = static_cast<const T *>(step.cos), *sin = static_cast<const T *>(step.sin);
#pragma omp parallel
    {
        int thread = 0, threads = 1;
#ifdef _OPENMP
        thread = omp_get_thread_num(), threads = omp_get_num_threads();
#endif
        Rounded &rounded = owns[thread].rounded;
        std::vector<float> &normal = owns[thread].normal;
        normal.resize(tokens * size);
        Scratch scratch;
        auto enter = [&](const void *norm) {
            for (int64_t t = 0; t < tokens; t++)
                normalise<T>(hidden + t * size, norm, normal.data() + t * size, size, model.eps);
            rounded.round(normal.data(), tokens, size);
        };
        auto add_to_hidden = [&](const Matrix &m) {
            int64_t first, last;
            share_of(m.rows, thread, threads, &first, &last);
            multiply(rounded, m, tokens, first, last,
                     [&](int64_t t, int64_t n, float value) { hidden[t * size + n] += value; });
        };
        for (int64_t index = 0; index < model.num_layers; index++) {
            const Layer &layer = model.layers[index];
            int64_t first, last;
            enter(layer.attention_norm);
            share_of(layer.qkv.rows, thread, threads, &first, &last);
            multiply(rounded, layer.qkv, tokens, first, last,
                     [&](int64_t t, int64_t n, float value) { qkv[t * width + n] = value; });
#pragma omp barrier
            double began = thread == 0 ? seconds() : 0;
            Pools<S> pools{static_cast<S *>(layer.keys), static_cast<S *>(layer.values), layer.key_scales,
                           layer.value_scales};
#pragma omp for schedule(dynamic, 1)
            for (int64_t task = 0; task < step.num_pieces * kv_heads; task++) {
                // first token, tokens, start position, first entry in blocks
                const int64_t *piece = step.pieces + task / kv_heads * 4;
                int64_t kv = task % kv_heads, share = heads / kv_heads;
                for (int64_t t = piece[0]; t < piece[0] + piece[1]; t++) {
                    float *row = qkv.data() + t * width;
                    const T *c = cos + step.positions[t] * model.rotary_dim;
                    const T *s = sin + step.positions[t] * model.rotary_dim;
                    for (int64_t h = kv * share; h < (kv + 1) * share; h++) {
                        float *q = row + h * head_dim;
                        if (layer.query_norm != nullptr) normalise<T>(q, layer.query_norm, q, head_dim, model.eps);
                        rotate(q, c, s, model.rotary_dim);
                        std::memcpy(queries.data() + (t * heads + h) * head_dim, q, head_dim * sizeof(float));
                    }
                    float *k = row + (heads + kv) * head_dim, *v = row + (heads + kv_heads + kv) * head_dim;
                    if (layer.key_norm != nullptr) normalise<T>(k, layer.key_norm, k, head_dim, model.eps);
                    rotate(k, c, s, model.rotary_dim);
                    store_rows(pools, step.write_rows[t * kv_heads + kv], k, v, head_dim);
                }
                int64_t offset = piece[0] * heads * head_dim;
                shortage.run([&] {
                    attend_slice<float, S>(queries.data() + offset, pools, step.blocks + piece[3],
                                           attended.data() + offset, piece[1], piece[2], kv, heads, kv_heads,
                                           model.block_size, Scoring{layer.scaling, layer.cap, layer.window},
                                           scratch, nullptr);
                });
            }  // all wait here
            if (thread == 0) *step.attention_seconds += seconds() - began;
            rounded.round(attended.data(), tokens, heads * head_dim);
            add_to_hidden(layer.attention_out);
#pragma omp barrier
            enter(layer.mlp_norm);
            // A thread computes the gates and the ups of the same places: nobody else needs them.
            share_of(inner, thread, threads, &first, &last);
            multiply(rounded, layer.mlp_in, tokens, first, last,
                     [&](int64_t t, int64_t n, float value) { expanded[t * inner + n] = value; });
            Matrix up = layer.mlp_in;
            up.weight += inner * up.columns, up.scale += inner, up.row_sum += inner;
            if (up.bias != nullptr) up.bias += inner;
            multiply(rounded, up, tokens, first, last,
                     [&](int64_t t, int64_t n, float value) { ups[t * inner + n] = value; });
            for (int64_t t = 0; t < tokens; t++) {
                float *out = expanded.data() + t * inner + first;
                const float *u = ups.data() + t * inner + first;
                for_lanes(last - first, [&](int64_t i, int64_t n) {
                    vf g = load_some(out + i, n);
                    store_some(out + i, silu16(g) * load_some(u + i, n), n);
                });
            }
#pragma omp barrier
            rounded.round(expanded.data(), tokens, inner);
            add_to_hidden(layer.mlp_out);
#pragma omp barrier
        }
    }
}

template <typename T>
int32_t run(const Model &model, const Step &step, float *hidden) {
    Shortage shortage;
    shortage.run([&] {
        if (model.num_layers > 0 && model.layers[0].key_scales != nullptr)
            run_layers<T, int8_t>(model, step, hidden, shortage);
        else
            run_layers<T, T>(model, step, hidden, shortage);
    });
    return shortage.status();
}

}  // namespace

// `hidden`, [tokens, hidden_size] float32, holds the embedded tokens before and the last layer's output afterwards.
EXPORT int32_t int8_layers_float32(const Model *model, const Step *step, float *hidden) {
    return run<float>(*model, *step, hidden);
}
EXPORT int32_t int8_layers_bfloat16(const Model *model, const Step *step, float *hidden) {
    return run<bf16>(*model, *step, hidden);
}
