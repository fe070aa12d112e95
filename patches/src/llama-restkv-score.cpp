// Contractions over the observed queries as ggml graphs.

#include "llama-restkv-score.h"
#include "llama-restkv-op.h"
#include "llama-restkv-run.h"
#include "llama-restkv-score-cpu.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <list>

namespace {

// shared by all layers of one graph
struct window {
    uint32_t n_used;
    uint32_t n_window;
    uint32_t n_normed; // slots that have norms

    ggml_tensor * rows;    // I32 [n_window]                      ring rows, oldest first
    ggml_tensor * mask;    // F32 [n_used, n_window]              causal
    ggml_tensor * fair;    // F32 [1, n_window]                   rows that each query sees
    ggml_tensor * weights; // F32 [n_weights, n_window, n_head]   the same for each head
    ggml_tensor * mean;    // F32 [1, n_window, n_head]           1/n_window
    ggml_tensor * order;   // F32 [1, n_window]                   1, 2, ... n_window
    ggml_tensor * past;    // F32 [n_used]                        1 before the window, else 0; null: every row counts
};

// the used rows of one layer, absent ones filled with some other row
struct layer_rows {
    const llama_restkv_layer * layer;

    ggml_tensor * idxs;   // I32 [n_used*n_head_kv]
    ggml_tensor * absent; // I32 [n_head_kv]: slots before the oldest row
    ggml_tensor * mask;   // F32 [n_used, n_window, n_head or 1]
    ggml_tensor * fair;   // F32 [1, n_window, n_head or 1]: rows that each query sees

    llama_restkv_attention_args * args;
};

bool on_host(const llama_restkv_layer & layer) {
    return ggml_backend_buft_is_host(layer.buft);
}

// whether operations of our own compute attention, which leave absent slots out
bool skips_absent(const llama_restkv_layer & layer) {
    return llama_restkv_score_on_cpu().attention && on_host(layer);
}

// F32 [head_dim, n_used, n_head_kv]
ggml_tensor * gather(ggml_context * ctx, ggml_tensor * pool, const layer_rows & rows, const window & win) {
    return ggml_reshape_3d(ctx, ggml_get_rows(ctx, pool, rows.idxs), pool->ne[0], win.n_used, rows.layer->n_head_kv);
}

// sum over dimension 1: a [m, k, n_head or n_head_kv], b [n, k, n_head] -> [m, n, n_head]
// An outer product needs no transposed copies; a matrix product is what every backend has.
ggml_tensor * contract(ggml_context * ctx, const llama_restkv_layer & layer, ggml_tensor * a, ggml_tensor * b) {
    ggml_tensor * cur = ggml_out_prod(ctx, a, b);
    auto * dev = ggml_backend_buft_get_device(layer.buft); // null: host memory, where the CPU has every operation
    if (!dev || ggml_backend_dev_supports_op(dev, cur)) {
        return cur;
    }
    return ggml_mul_mat(ctx, transpose(ctx, a), transpose(ctx, b));
}

// F32 [head_dim, n_window, n_head]
ggml_tensor * window_queries(ggml_context * ctx, const llama_restkv_layer & layer, const window & win) {
    ggml_tensor * q = ggml_get_rows(ctx, layer.ring, win.rows);
    q = ggml_reshape_3d(ctx, q, layer.pool_k->ne[0], layer.n_head, win.n_window);
    return ggml_cont(ctx, ggml_permute(ctx, q, 0, 2, 1, 3));
}

// softmax(QK') of the window: F32 [n_used, n_window, n_head]
ggml_tensor * window_attention(ggml_context * ctx, const layer_rows & rows, const window & win) {
    const auto & layer = *rows.layer;
    ggml_tensor * q = window_queries(ctx, layer, win);
    if (skips_absent(layer)) {
        ggml_tensor * srcs[] = { layer.pool_k, rows.idxs, rows.absent, q, rows.mask, layer.sinks };
        return ggml_custom_4d(ctx, GGML_TYPE_F32, win.n_used, q->ne[1], q->ne[2], 1, srcs, 6,
                llama_restkv_score_on_cpu().attention, GGML_N_TASKS_MAX, rows.args);
    }

    ggml_tensor * kq = ggml_mul_mat(ctx, gather(ctx, layer.pool_k, rows, win), q);
    ggml_prec_set_acc(kq, GGML_PREC_F32);
    float scale = rows.args->scale;
    if (const float softcap = rows.args->softcap; softcap != 0.0f) {
        kq = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, kq, scale/softcap)), softcap);
        scale = 1.0f;
    }
    kq = ggml_soft_max_ext(ctx, kq, rows.mask, scale, 0.0f);
    ggml_soft_max_add_sinks(kq, layer.sinks);
    return kq;
}

// weighted sums of the window's attention, and its maximum last if asked: [n_used, n_head, n_weights (+ 1)]
// The attention itself, as large as the cache for each query head, never reaches memory.
ggml_tensor * window_reductions(ggml_context * ctx, const layer_rows & rows, const window & win, bool maximum) {
    const auto & layer = *rows.layer;
    const auto & ops   = llama_restkv_score_on_cpu();
    const int64_t n_part = (win.n_window + LLAMA_RESTKV_N_QUERY - 1)/LLAMA_RESTKV_N_QUERY;
    ggml_tensor * srcs[] = { layer.pool_k, rows.idxs, rows.absent, window_queries(ctx, layer, win), rows.mask, layer.sinks, win.weights };
    ggml_tensor * parts  = ggml_custom_4d(ctx, GGML_TYPE_F32, win.n_used, layer.n_head, rows.args->n_weights + maximum, n_part, srcs, 7,
            ops.reductions, GGML_N_TASKS_MAX, rows.args);
    return ggml_custom_4d(ctx, GGML_TYPE_F32, parts->ne[0], parts->ne[1], parts->ne[2], 1, &parts, 1, ops.combined, GGML_N_TASKS_MAX, rows.args);
}

// maximum over dimension 1: [n_used, n_window, n_head] -> [n_used, 1, n_head]
ggml_tensor * window_maximum(ggml_context * ctx, const llama_restkv_layer & layer, ggml_tensor * cur) {
    if (on_host(layer)) {
        return ggml_custom_4d(ctx, GGML_TYPE_F32, cur->ne[0], 1, cur->ne[2], 1, &cur, 1, llama_restkv_score_on_cpu().maximum, GGML_N_TASKS_MAX, nullptr);
    }
    cur = ggml_pool_2d(ctx, transpose(ctx, cur), GGML_OP_POOL_MAX, cur->ne[1], 1, cur->ne[1], 1, 0, 0);
    return ggml_reshape_3d(ctx, cur, cur->ne[1], 1, cur->ne[2]);
}

// the newest query that gave a row its fair share, counted from 1; 0: none
ggml_tensor * window_last_use(ggml_context * ctx, const layer_rows & rows, const window & win, ggml_tensor * attn) {
    // a little below 1: a share that is exactly fair must not fail by its last digit
    ggml_tensor * share = ggml_scale_bias(ctx, ggml_mul(ctx, attn, rows.fair), 1.0f, -1.0f + 1e-5f);
    return window_maximum(ctx, *rows.layer, ggml_mul(ctx, ggml_step(ctx, share), win.order));
}

// the values of a layer: where they lie on a CPU with operations of its own, a copy [head_dim, n_used, n_head_kv] elsewhere
struct layer_values {
    const layer_rows & rows;
    const window &     win;
    ggml_tensor *      copy = nullptr;

    layer_values(ggml_context * ctx, const layer_rows & rows, const window & win) : rows(rows), win(win) {
        if (!on_host(*rows.layer) || !llama_restkv_score_on_cpu().distance) {
            copy = gather(ctx, rows.layer->pool_v, rows, win);
        }
    }

    // attn [n_used, n, n_head] -> [head_dim, n, n_head]
    ggml_tensor * outputs(ggml_context * ctx, ggml_tensor * attn) const {
        const auto & layer = *rows.layer;
        if (!copy) {
            ggml_tensor * srcs[] = { layer.pool_v, rows.idxs, rows.absent, attn };
            return ggml_custom_4d(ctx, GGML_TYPE_F32, layer.pool_v->ne[0], attn->ne[1], layer.n_head, 1, srcs, 4,
                    llama_restkv_score_on_cpu().outputs, GGML_N_TASKS_MAX, nullptr);
        }
        return contract(ctx, layer, copy, transpose(ctx, attn));
    }
};

// attention outputs under the factors: attn [n_used, n, n_head] -> [head_dim, n, n_head]
ggml_tensor * project_outputs(ggml_context * ctx, const layer_values & v, ggml_tensor * attn) {
    const auto & layer = *v.rows.layer;
    if (v.win.past) {
        attn = ggml_mul(ctx, attn, v.win.past);
    }
    const int64_t head_dim = layer.factors->ne[0];
    return ggml_mul_mat(ctx, ggml_reshape_3d(ctx, layer.factors, head_dim, head_dim, layer.n_head), v.outputs(ctx, attn));
}

// ||v F - z||; without operations of our own by direct difference: expanded squares cancel exactly where a token takes all the attention
// z [head_dim, n_z, n_head], or null for 0 -> [n_used, n_z, n_head]
ggml_tensor * distance(ggml_context * ctx, const layer_values & v, ggml_tensor * z) {
    const auto & layer = *v.rows.layer;
    const int64_t head_dim = layer.factors->ne[0];
    const int64_t n_used   = v.win.n_used;
    const int64_t n_z      = z ? z->ne[1] : 1;
    if (!v.copy) {
        const auto & ops = llama_restkv_score_on_cpu();
        ggml_tensor * args[] = { layer.pool_v, v.rows.idxs, v.rows.absent, layer.factors };
        ggml_tensor * norms  = ggml_custom_inplace(ctx, layer.norms, args, 4, ops.norms, GGML_N_TASKS_MAX, const_cast<uint32_t *>(&v.win.n_normed));
        ggml_tensor * srcs[] = { layer.pool_v, v.rows.idxs, v.rows.absent, layer.factors, norms, z };
        return ggml_custom_4d(ctx, GGML_TYPE_F32, n_used, n_z, layer.n_head, 1, srcs, z ? 6 : 5,
                llama_restkv_score_on_cpu().distance, GGML_N_TASKS_MAX, nullptr);
    }
    ggml_tensor * image = ggml_reshape_4d(ctx, ggml_mul_mat(ctx, layer.factors, v.copy), head_dim, layer.n_gqa, n_used, layer.n_head_kv);
    ggml_tensor * res = nullptr;
    for (int64_t w = 0; w < n_z; ++w) {
        ggml_tensor * diff = image;
        if (z) {
            ggml_tensor * cur = ggml_cont(ctx, ggml_view_3d(ctx, z, head_dim, 1, layer.n_head, z->nb[1], z->nb[2], w*z->nb[1]));
            diff = ggml_sub(ctx, image, ggml_reshape_4d(ctx, cur, head_dim, layer.n_gqa, 1, layer.n_head_kv));
        }
        ggml_tensor * norm = ggml_sqrt(ctx, ggml_sum_rows(ctx, ggml_sqr(ctx, diff)));
        norm = transpose(ctx, ggml_reshape_3d(ctx, norm, layer.n_gqa, n_used, layer.n_head_kv));
        norm = ggml_reshape_3d(ctx, norm, n_used, 1, layer.n_head);
        res = res ? ggml_concat(ctx, res, norm, 1) : norm;
    }
    return res;
}

// a/(1-a) ||(v_n - o_q) F||^tau of each query: [n_used, n_window, n_head]
ggml_tensor * indicator(ggml_context * ctx, const layer_values & v, ggml_tensor * attn, float tau) {
    // Below 1 - a = 1e-6 float32 has no digits left: v and o agree in all of them, and the row that is wanted most would
    // rank last. There the mean distance of the other rows bounds how far the output moves without it.
    const float rest_min = 1e-6f;
    const auto power = [&](ggml_tensor * cur) {
        return tau == 1.0f ? cur : ggml_exp(ctx, ggml_scale(ctx, ggml_log(ctx, cur), tau));
    };
    ggml_tensor * rest  = ggml_scale_bias(ctx, attn, -1.0f, 1.0f);
    ggml_tensor * odds  = ggml_div(ctx, attn, ggml_clamp(ctx, rest, rest_min, 1.0f));
    ggml_tensor * taken = ggml_step(ctx, ggml_scale_bias(ctx, rest, -1.0f, rest_min)); // 1 where rest < rest_min
    ggml_tensor * free  = ggml_scale_bias(ctx, taken, -1.0f, 1.0f);
    ggml_tensor * other = ggml_mul(ctx, ggml_scale_bias(ctx, attn, 1.0f, 1e-30f), free);

    ggml_tensor * dist  = distance(ctx, v, project_outputs(ctx, v, attn));
    ggml_tensor * bound = ggml_div(ctx, ggml_sum_rows(ctx, ggml_mul(ctx, dist, other)), ggml_sum_rows(ctx, other));

    ggml_tensor * cur = ggml_mul(ctx, ggml_mul(ctx, power(dist), odds), free);
    return ggml_add(ctx, cur, ggml_mul(ctx, taken, power(bound)));
}

// mean of the positions of each query's top_k keys, on a CPU: selection is linear where sorting is not
struct drift_args {
    int32_t top_k;
    int32_t n_gqa;
};

void drift_cpu(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto & args = *static_cast<const drift_args *>(userdata);
    const ggml_tensor * attn = dst->src[0]; // [n_used, n_window, n_head]
    const ggml_tensor * pos  = dst->src[1]; // [n_used, n_head_kv]

    const int64_t n_used   = attn->ne[0];
    const int64_t n_window = attn->ne[1];
    std::vector<float> ranked;

    for (int64_t i = ith; i < n_window*attn->ne[2]; i += nth) {
        const float * a = (const float *) attn->data + i*n_used;
        const float * p = (const float *) pos->data + i/n_window/args.n_gqa*n_used;
        const int64_t absent = std::find_if(p, p + n_used, [](float x) { return x >= 0.0f; }) - p;
        const int64_t n      = n_used - absent;
        const int32_t top_k  = std::min<int64_t>(args.top_k, n);
        if (n == 0) {
            ((float *) dst->data)[i] = 0.0f;
            continue;
        }
        a += absent;
        p += absent;

        // the weakest weight that still counts; equal weights count the older row first
        ranked.assign(a, a + n);
        std::nth_element(ranked.begin(), ranked.begin() + top_k - 1, ranked.end(), std::greater<float>());
        const float edge = ranked[top_k - 1];
        int32_t n_equal = top_k - std::count_if(a, a + n, [edge](float x) { return x > edge; });

        double sum = 0.0;
        for (int64_t j = 0; j < n; ++j) {
            if (a[j] > edge || (a[j] == edge && n_equal-- > 0)) {
                sum += p[j];
            }
        }
        ((float *) dst->data)[i] = sum/top_k;
    }
}

// F32 [n_window, n_head]
ggml_tensor * drift(ggml_context * ctx, llama_restkv_run & run, const llama_restkv_layer & layer, ggml_tensor * attn,
                    const window & win, const float * positions, drift_args & args) {
    if (on_host(layer)) {
        ggml_tensor * pos = run.input(GGML_TYPE_F32, positions, win.n_used, layer.n_head_kv);
        ggml_tensor * srcs[] = { attn, pos };
        return ggml_custom_4d(ctx, GGML_TYPE_F32, win.n_window, layer.n_head, 1, 1, srcs, 2, restkv_counted<drift_cpu>, GGML_N_TASKS_MAX, &args);
    }

    // slots that hold nothing, at position -1, rank below rows without attention
    ggml_tensor * pos    = run.input(GGML_TYPE_F32, positions, 1, win.n_used, layer.n_head_kv);
    ggml_tensor * absent = ggml_step(ctx, ggml_reshape_3d(ctx, ggml_scale_bias(ctx, pos, -1.0f, -0.5f), win.n_used, 1, layer.n_head_kv));
    ggml_tensor * ranked = ggml_sub(ctx, ggml_reshape_3d(ctx, attn, win.n_used, win.n_window*layer.n_gqa, layer.n_head_kv), absent);
    ggml_tensor * top = ggml_reshape_2d(ctx, ggml_top_k(ctx, ranked, args.top_k), args.top_k*win.n_window*layer.n_gqa, layer.n_head_kv);
    ggml_tensor * cur = ggml_reshape_3d(ctx, ggml_get_rows(ctx, pos, top), args.top_k, win.n_window, layer.n_head);
    return ggml_scale(ctx, ggml_reshape_2d(ctx, ggml_sum_rows(ctx, cur), win.n_window, layer.n_head), 1.0f/args.top_k);
}

// What the host knows of the window, as the graphs' inputs want it.
struct window_data {
    uint32_t n_used;

    std::vector<int32_t>  rows;
    std::vector<uint32_t> slots;

    std::vector<float> mask, fair; // for layers whose heads all hold a row in every slot
    std::vector<float> weights, mean, order, past;

    window_data(const llama_restkv_pool & pool, uint32_t n_used, const llama_restkv_score_args & args) : n_used(n_used) {
        rows = pool.window_rows(n_used, args.n_skip + args.n_window);
        rows.resize(args.n_window);
        slots = pool.window_slots(rows);
        add_mask(0, mask);
        add_fair(0, fair);

        uint32_t n_head = 0;
        for (const auto & layer : pool.layers) {
            n_head = std::max(n_head, layer.n_head);
        }
        const size_t n_window = rows.size();
        for (uint32_t h = 0; h < n_head; ++h) {
            for (size_t w = 0; w < n_window; ++w) {
                for (int32_t r = 0; r < args.n_weights; ++r) {
                    weights.push_back(args.weights[r*n_window + w]);
                }
            }
        }
        mean.assign(n_head*n_window, 1.0f/n_window);
        for (size_t w = 0; w < n_window; ++w) {
            order.push_back(w + 1);
        }
        past.assign(n_used, 1.0f);
        std::fill(past.end() - std::min<size_t>(n_used, n_window), past.end(), 0.0f);
    }

    // append what a head sees whose slots [0, absent) hold nothing
    void add_mask(uint32_t absent, std::vector<float> & mask) const {
        size_t row = mask.size();
        mask.resize(row + slots.size()*n_used, -INFINITY);
        for (const uint32_t slot : slots) {
            if (slot >= absent) {
                std::fill(mask.begin() + row + absent, mask.begin() + row + slot + 1, 0.0f);
            }
            row += n_used;
        }
    }

    void add_fair(uint32_t absent, std::vector<float> & fair) const {
        for (const uint32_t slot : slots) {
            fair.push_back(slot + 1 > absent ? slot + 1 - absent : 1);
        }
    }
};

bool has_absent(const llama_restkv_layer & layer) {
    const auto & absent = layer.segments.absent;
    return *std::max_element(absent.begin(), absent.end()) > 0;
}

bool wants_masks(const llama_restkv_layer & layer) { // of its own, one for each head
    return has_absent(layer) && !skips_absent(layer);
}

// One graph: the contractions of neighbouring layers.
class scoring {
public:
    // next: where the next layer's results go, and its positions are; moves on
    scoring(llama_context * ctx, const llama_restkv_pool & pool, const window_data & data, llama_restkv_score_args & next, size_t max_nodes) :
            pool(pool), data(data), next(next), run(ctx, max_nodes), c(run.get_ctx()) {
        const int64_t n_window = data.rows.size();
        const int64_t n_head   = data.mean.size()/n_window;
        win.n_used   = data.n_used;
        win.n_window = n_window;
        win.n_normed = pool.n_normed;
        win.rows     = run.input(GGML_TYPE_I32, data.rows.data(), n_window);
        win.mask     = run.input(GGML_TYPE_F32, data.mask.data(), data.n_used, n_window);
        win.fair     = run.input(GGML_TYPE_F32, data.fair.data(), 1, n_window);
        win.weights  = next.n_weights > 0 ? run.input(GGML_TYPE_F32, data.weights.data(), next.n_weights, n_window, n_head) : nullptr;
        win.mean     = run.input(GGML_TYPE_F32, data.mean.data(), 1, n_window, n_head);
        win.order    = run.input(GGML_TYPE_F32, data.order.data(), 1, n_window);
        win.past     = asked(LLAMA_RESTKV_PAST_ONLY) ? run.input(GGML_TYPE_F32, data.past.data(), data.n_used) : nullptr;
    }

    void add_layer(const llama_restkv_layer & layer) {
        const layer_rows rows = rows_of(layer);
        ggml_tensor * attn    = nullptr; // [n_used, n_window, n_head]
        ggml_tensor * reduced = nullptr; // [n_used, 1, n_head]: what the metric goes by

        const int32_t of_each = LLAMA_RESTKV_SQUARE | LLAMA_RESTKV_ENTROPY | LLAMA_RESTKV_LAST_USE | LLAMA_RESTKV_PER_QUERY | LLAMA_RESTKV_DRIFT;
        if (skips_absent(layer) && !asked(of_each) && (next.n_weights > 0 || asked(LLAMA_RESTKV_MAX))) {
            ggml_tensor * all = window_reductions(c, rows, win, asked(LLAMA_RESTKV_MAX));
            const int64_t i = asked(LLAMA_RESTKV_REDUCE_MAX) ? next.n_weights : 0;
            reduced = ggml_view_3d(c, all, win.n_used, 1, layer.n_head, all->nb[1], all->nb[1], i*all->nb[2]);
            output(all, next.attention);
        } else {
            attn    = window_attention(c, rows, win);
            reduced = reduce(rows, attn);
        }
        if (next.metric) {
            output(metric(rows, attn, reduced), next.metric);
        }
        if (asked(LLAMA_RESTKV_DRIFT)) {
            auto & args = drifts.emplace_back();
            args = { std::min<int32_t>(next.top_k, win.n_used), (int32_t) layer.n_gqa };
            output(drift(c, run, layer, attn, win, next.positions, args), next.drift);
            next.positions += size_t(layer.n_head_kv)*win.n_used;
        }
    }

    void compute() { run.compute(); }

private:
    bool asked(int32_t flag) const { return (next.flags & flag) != 0; }

    layer_rows rows_of(const llama_restkv_layer & layer) {
        auto & own = per_layer.emplace_back();
        own.idxs = pool.rows_of(layer, win.n_used);
        own.absent.assign(layer.segments.absent.begin(), layer.segments.absent.end());
        own.args = { layer.scale, pool.softcap, next.n_weights };
        layer_rows rows = { &layer, run.input(GGML_TYPE_I32, own.idxs.data(), own.idxs.size()),
                            run.input(GGML_TYPE_I32, own.absent.data(), own.absent.size()), win.mask, win.fair, &own.args };
        if (has_absent(layer)) {
            for (uint32_t h = 0; h < layer.n_head; ++h) {
                data.add_fair(own.absent[h/layer.n_gqa], own.fair);
            }
            rows.fair = run.input(GGML_TYPE_F32, own.fair.data(), 1, win.n_window, layer.n_head);
        }
        if (wants_masks(layer)) {
            for (uint32_t h = 0; h < layer.n_head; ++h) {
                data.add_mask(own.absent[h/layer.n_gqa], own.mask);
            }
            rows.mask = run.input(GGML_TYPE_F32, own.mask.data(), win.n_used, win.n_window, layer.n_head);
        }
        return rows;
    }

    // cur [n_used, n_window, n_head], by [n, n_window, n_head or more] -> [n_used, n, n_head]
    ggml_tensor * weighted(const llama_restkv_layer & layer, ggml_tensor * cur, ggml_tensor * by) {
        return contract(c, layer, cur, ggml_view_3d(c, by, by->ne[0], win.n_window, layer.n_head, by->nb[1], by->nb[2], 0));
    }

    // every reduction that is asked; returns the one that the metric goes by
    ggml_tensor * reduce(const layer_rows & rows, ggml_tensor * attn) {
        const auto & layer = *rows.layer;
        ggml_tensor * linear  = nullptr; // [n_used, n_weights, n_head]
        ggml_tensor * maximum = nullptr; // [n_used, 1, n_head]
        if (next.n_weights > 0) {
            linear = weighted(layer, attn, win.weights);
            output(next.n_weights == 1 ? linear : ggml_cont(c, ggml_permute(c, linear, 0, 2, 1, 3)), next.attention);
        }
        if (asked(LLAMA_RESTKV_MAX)) {
            maximum = window_maximum(c, layer, attn);
            output(maximum, next.attention);
        }
        if (asked(LLAMA_RESTKV_SQUARE)) {
            output(weighted(layer, ggml_sqr(c, attn), win.mean), next.attention);
        }
        if (asked(LLAMA_RESTKV_ENTROPY)) {
            ggml_tensor * log = ggml_log(c, ggml_clamp(c, attn, 1e-30f, 1.0f));
            output(weighted(layer, ggml_neg(c, ggml_mul(c, attn, log)), win.mean), next.attention);
        }
        if (asked(LLAMA_RESTKV_LAST_USE)) {
            output(window_last_use(c, rows, win, attn), next.attention);
        }
        return asked(LLAMA_RESTKV_REDUCE_MAX) ? maximum : linear ? first(linear) : nullptr;
    }

    // the first of several reductions: [n_used, n, n_head] -> [n_used, 1, n_head]
    ggml_tensor * first(ggml_tensor * cur) {
        return cur->ne[1] == 1 ? cur : ggml_cont(c, ggml_view_3d(c, cur, cur->ne[0], 1, cur->ne[2], cur->nb[1], cur->nb[2], 0));
    }

    ggml_tensor * metric(const layer_rows & rows, ggml_tensor * attn, ggml_tensor * reduced) {
        const auto & layer = *rows.layer;
        const layer_values v(c, rows, win);
        if (asked(LLAMA_RESTKV_AGGREGATE)) {
            return distance(c, v, project_outputs(c, v, reduced));
        }
        if (asked(LLAMA_RESTKV_PER_QUERY)) {
            ggml_tensor * cur = indicator(c, v, attn, next.tau);
            return asked(LLAMA_RESTKV_REDUCE_MAX) ? window_maximum(c, layer, cur) : first(weighted(layer, cur, win.weights));
        }
        return distance(c, v, nullptr);
    }

    template <typename T>
    void output(ggml_tensor * cur, T *& out) {
        run.output(cur, out);
        out += ggml_nelements(cur);
    }

    struct layer_data {
        std::vector<int32_t> idxs, absent;
        std::vector<float>   mask, fair;
        llama_restkv_attention_args args;
    };

    const llama_restkv_pool & pool;
    const window_data &       data;
    llama_restkv_score_args & next;
    llama_restkv_run          run;
    ggml_context *            c;
    window                    win;

    // inputs and arguments, at rest until the graph ends
    std::list<layer_data> per_layer;
    std::list<drift_args> drifts;
};

} // namespace

void llama_restkv_score_layers(llama_context * ctx, llama_restkv_pool & pool, uint32_t n_used, const llama_restkv_score_args & args) {
    const window_data data(pool, n_used, args);

    // the scheduler holds what the model's own graph needs, and this graph must not ask for more
    const size_t max_nodes = 1000;
    const size_t max_bytes = size_t(8) << 20; // inputs stay until a graph ends, and off the CPU unequal segments have a mask for each head

    const size_t nodes_layer = 70 + (args.flags & LLAMA_RESTKV_PER_QUERY ? 12*data.rows.size() : 0);
    size_t n_group = std::max<size_t>(1, max_nodes/nodes_layer);
    if (std::any_of(pool.layers.begin(), pool.layers.end(), wants_masks)) {
        const size_t n_head = data.mean.size()/data.rows.size();
        n_group = std::max<size_t>(1, std::min(n_group, max_bytes/(data.mask.size()*n_head*sizeof(float))));
    }

    llama_restkv_score_args next = args;
    for (size_t first = 0; first < pool.layers.size(); first += n_group) {
        const size_t last = std::min(first + n_group, pool.layers.size());
        scoring graph(ctx, pool, data, next, nodes_layer*(last - first) + 16);
        for (size_t i = first; i < last; ++i) {
            graph.add_layer(pool.layers[i]);
        }
        graph.compute();
    }
    if (args.metric) {
        pool.n_normed = n_used;
    }
}
