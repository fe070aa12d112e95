// Contractions over the observed queries as ggml graphs.

#include "llama-restkv-score.h"
#include "llama-restkv-run.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <list>

namespace {

// shared by all layers of one graph
struct window {
    uint32_t n_used;
    uint32_t n_window;

    ggml_tensor * rows;    // I32 [n_window]            ring rows, oldest first
    ggml_tensor * mask;    // F32 [n_used, n_window]    causal
    ggml_tensor * weights; // F32 [n_weights, n_window, n_head], the same for each head
    ggml_tensor * past;    // F32 [1, n_used]           1 before the window, else 0; null: every row counts
};

ggml_tensor * segment_used(ggml_context * ctx, ggml_tensor * pool, const llama_restkv_layer & layer, uint32_t n_rows, uint32_t n_used) {
    return ggml_view_3d(ctx, pool, pool->ne[0], n_used, layer.n_head_kv,
            pool->nb[1], pool->nb[1]*n_rows, pool->nb[1]*layer.segment[0]);
}

ggml_tensor * transpose(ggml_context * ctx, ggml_tensor * cur) {
    return ggml_cont(ctx, ggml_permute(ctx, cur, 1, 0, 2, 3));
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

// softmax(QK') of the window: F32 [n_used, n_window, n_head]
ggml_tensor * window_attention(ggml_context * ctx, const llama_restkv_pool & pool, const llama_restkv_layer & layer, const window & win) {
    const int64_t head_dim = layer.pool_k->ne[0];

    ggml_tensor * q = ggml_get_rows(ctx, layer.ring, win.rows);
    q = ggml_reshape_3d(ctx, q, head_dim, layer.n_head, win.n_window);
    q = ggml_cont(ctx, ggml_permute(ctx, q, 0, 2, 1, 3));

    ggml_tensor * kq = ggml_mul_mat(ctx, segment_used(ctx, layer.pool_k, layer, pool.n_rows, win.n_used), q);
    ggml_prec_set_acc(kq, GGML_PREC_F32);

    float scale = layer.scale;
    if (pool.softcap != 0.0f) {
        kq = ggml_scale(ctx, ggml_tanh(ctx, ggml_scale(ctx, kq, scale/pool.softcap)), pool.softcap);
        scale = 1.0f;
    }
    kq = ggml_soft_max_ext(ctx, kq, win.mask, scale, 0.0f);
    ggml_soft_max_add_sinks(kq, layer.sinks);
    return kq;
}

// maximum over dimension 1: attn [n_used, n_window, n_head] -> [n_used, 1, n_head]
void maximum_cpu(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const ggml_tensor * attn = dst->src[0];
    GGML_UNUSED(userdata);

    const int64_t n_used = attn->ne[0];
    for (int64_t h = ith; h < attn->ne[2]; h += nth) {
        const float * a = (const float *) attn->data + h*attn->ne[1]*n_used;
        float * out = (float *) dst->data + h*n_used;
        std::copy(a, a + n_used, out);
        for (int64_t w = 1; w < attn->ne[1]; ++w) {
            for (int64_t j = 0; j < n_used; ++j) {
                out[j] = std::max(out[j], a[w*n_used + j]);
            }
        }
    }
}

// F32 [n_used, 1, n_head]
ggml_tensor * window_maximum(ggml_context * ctx, const llama_restkv_layer & layer, ggml_tensor * attn) {
    if (ggml_backend_buft_is_host(layer.buft)) {
        return ggml_custom_4d(ctx, GGML_TYPE_F32, attn->ne[0], 1, attn->ne[2], 1, &attn, 1, maximum_cpu, GGML_N_TASKS_MAX, nullptr);
    }
    ggml_tensor * cur = ggml_pool_2d(ctx, transpose(ctx, attn), GGML_OP_POOL_MAX, attn->ne[1], 1, attn->ne[1], 1, 0, 0);
    return ggml_reshape_3d(ctx, cur, attn->ne[0], 1, attn->ne[2]);
}

// values and their images under the output factors, laid out for one query head after the other of a group
struct values {
    ggml_tensor * plain; // F32 [head_dim, n_used, n_head_kv]
    ggml_tensor * image; // F32 [head_dim, n_gqa, n_used, n_head_kv]
};

values project_values(ggml_context * ctx, const llama_restkv_pool & pool, const llama_restkv_layer & layer, const window & win) {
    const int64_t head_dim = layer.pool_v->ne[0];

    ggml_tensor * v = ggml_cast(ctx, segment_used(ctx, layer.pool_v, layer, pool.n_rows, win.n_used), GGML_TYPE_F32);
    ggml_tensor * image = ggml_mul_mat(ctx, layer.factors, v);
    return { v, ggml_reshape_4d(ctx, image, head_dim, layer.n_gqa, win.n_used, layer.n_head_kv) };
}

// images of attention outputs: attn [n, n_used, n_head] -> [head_dim, n, n_head]
ggml_tensor * project_outputs(ggml_context * ctx, const llama_restkv_layer & layer, const values & val, ggml_tensor * attn, const window & win) {
    const int64_t head_dim = layer.pool_v->ne[0];
    if (win.past) {
        attn = ggml_mul(ctx, attn, win.past);
    }
    ggml_tensor * o = contract(ctx, layer, val.plain, attn);
    return ggml_mul_mat(ctx, ggml_reshape_3d(ctx, layer.factors, head_dim, head_dim, layer.n_head), o);
}

// One pass over the images instead of three: on a CPU this is bound by memory.
void distance_cpu(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const ggml_tensor * image = dst->src[0]; // [head_dim, n_gqa, n_used, n_head_kv]
    const ggml_tensor * z     = dst->src[1]; // [head_dim, 1, n_head]
    GGML_UNUSED(userdata);

    const int64_t head_dim = image->ne[0];
    const int64_t n_gqa    = image->ne[1];
    const int64_t n_used   = image->ne[2];
    const int64_t n_row    = n_used*image->ne[3];

    for (int64_t row = n_row*ith/nth; row < n_row*(ith + 1)/nth; ++row) {
        for (int64_t h = 0; h < n_gqa; ++h) {
            const float * a = (const float *) image->data + (row*n_gqa + h)*head_dim;
            const float * b = (const float *) z->data + (row/n_used*n_gqa + h)*head_dim;
            // independent sums let the compiler use vectors; head sizes are multiples of 8
            float sum[8] = {};
            for (int64_t i = 0; i < head_dim; i += 8) {
                for (int64_t j = 0; j < 8; ++j) {
                    const float diff = a[i + j] - b[i + j];
                    sum[j] += diff*diff;
                }
            }
            ((float *) dst->data)[row*n_gqa + h] = std::sqrt(((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7])));
        }
    }
}

// ||image - z|| by direct difference: expanded squares cancel exactly where a token takes all the attention
// z [head_dim, 1, n_head] -> [n_gqa, n_used, n_head_kv]
ggml_tensor * distance(ggml_context * ctx, const llama_restkv_layer & layer, const values & val, ggml_tensor * z, const window & win) {
    if (ggml_backend_buft_is_host(layer.buft) && z->ne[0]%8 == 0) {
        ggml_tensor * srcs[] = { val.image, z };
        return ggml_custom_4d(ctx, GGML_TYPE_F32, layer.n_gqa, win.n_used, layer.n_head_kv, 1, srcs, 2, distance_cpu, GGML_N_TASKS_MAX, nullptr);
    }
    z = ggml_reshape_4d(ctx, z, z->ne[0], layer.n_gqa, 1, layer.n_head_kv);
    ggml_tensor * diff = ggml_sub(ctx, val.image, z);
    ggml_tensor * norm = ggml_sqrt(ctx, ggml_sum_rows(ctx, ggml_sqr(ctx, diff)));
    return ggml_reshape_3d(ctx, norm, layer.n_gqa, win.n_used, layer.n_head_kv);
}

// the metric of each query, reduced over the window: [n_used, n_head]
ggml_tensor * indicator(ggml_context * ctx, const llama_restkv_layer & layer, const values & val, ggml_tensor * attn,
                        const window & win, const llama_restkv_score_args & args) {
    const bool reduce_max = args.flags & LLAMA_RESTKV_REDUCE_MAX;

    // Below 1 - a = 1e-6 float32 has no digits left: v and o agree in all of them, and the row that is wanted most would
    // rank last. There the mean distance of the other rows bounds how far the output moves without it.
    const float rest_min = 1e-6f;
    ggml_tensor * rest   = ggml_scale_bias(ctx, attn, -1.0f, 1.0f);
    ggml_tensor * odds   = ggml_div(ctx, attn, ggml_clamp(ctx, rest, rest_min, 1.0f));
    ggml_tensor * taken  = ggml_step(ctx, ggml_scale_bias(ctx, rest, -1.0f, rest_min)); // 1 where rest < rest_min
    ggml_tensor * others = ggml_mul(ctx, ggml_scale_bias(ctx, attn, 1.0f, 1e-30f), ggml_scale_bias(ctx, taken, -1.0f, 1.0f));
    const auto power = [&](ggml_tensor * cur) {
        return args.tau == 1.0f ? cur : ggml_exp(ctx, ggml_scale(ctx, ggml_log(ctx, cur), args.tau));
    };
    const auto query = [&](ggml_tensor * cur, uint32_t w) {
        return ggml_view_2d(ctx, cur, win.n_used, layer.n_head, cur->nb[2], w*cur->nb[1]);
    };
    ggml_tensor * z = project_outputs(ctx, layer, val, transpose(ctx, attn), win);

    ggml_tensor * acc = nullptr;
    for (uint32_t w = 0; w < win.n_window; ++w) {
        const float weight = reduce_max ? 1.0f : args.weights[w];
        if (weight == 0.0f) {
            continue;
        }
        ggml_tensor * z_w = ggml_cont(ctx, ggml_view_3d(ctx, z, z->ne[0], 1, z->ne[2], z->nb[1], z->nb[2], w*z->nb[1]));
        ggml_tensor * cur = transpose(ctx, distance(ctx, layer, val, z_w, win)); // [n_used, n_gqa, n_head_kv]
        cur = ggml_reshape_2d(ctx, cur, win.n_used, layer.n_head);

        ggml_tensor * other = query(others, w);
        ggml_tensor * bound = ggml_div(ctx, ggml_sum_rows(ctx, ggml_mul(ctx, cur, other)), ggml_sum_rows(ctx, ggml_cont(ctx, other)));
        bound = ggml_mul(ctx, ggml_cont(ctx, query(taken, w)), power(bound)); // [n_used, n_head]

        cur = ggml_mul(ctx, power(cur), query(odds, w));
        cur = ggml_mul(ctx, cur, ggml_scale_bias(ctx, ggml_cont(ctx, query(taken, w)), -1.0f, 1.0f));
        cur = ggml_scale(ctx, ggml_add(ctx, cur, bound), weight);
        if (!acc) {
            acc = cur;
        } else if (reduce_max) {
            acc = ggml_add(ctx, acc, ggml_relu(ctx, ggml_sub(ctx, cur, acc)));
        } else {
            acc = ggml_add(ctx, acc, cur);
        }
    }
    return acc;
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
    std::vector<float> ranked(n_used);

    for (int64_t i = ith; i < n_window*attn->ne[2]; i += nth) {
        const float * a = (const float *) attn->data + i*n_used;
        const float * p = (const float *) pos->data + i/n_window/args.n_gqa*n_used;

        // the weakest weight that still counts; equal weights count the older row first
        ranked.assign(a, a + n_used);
        std::nth_element(ranked.begin(), ranked.begin() + args.top_k - 1, ranked.end(), std::greater<float>());
        const float edge = ranked[args.top_k - 1];
        int32_t n_equal = args.top_k - std::count_if(a, a + n_used, [edge](float x) { return x > edge; });

        double sum = 0.0;
        for (int64_t j = 0; j < n_used; ++j) {
            if (a[j] > edge || (a[j] == edge && n_equal-- > 0)) {
                sum += p[j];
            }
        }
        ((float *) dst->data)[i] = sum/args.top_k;
    }
}

// F32 [n_window, n_head]
ggml_tensor * drift(ggml_context * ctx, llama_restkv_run & run, const llama_restkv_layer & layer, ggml_tensor * attn,
                    const window & win, const float * positions, drift_args & args) {
    if (ggml_backend_buft_is_host(layer.buft)) {
        ggml_tensor * pos = run.input(GGML_TYPE_F32, positions, win.n_used, layer.n_head_kv);
        ggml_tensor * srcs[] = { attn, pos };
        return ggml_custom_4d(ctx, GGML_TYPE_F32, win.n_window, layer.n_head, 1, 1, srcs, 2, drift_cpu, GGML_N_TASKS_MAX, &args);
    }

    ggml_tensor * top = ggml_reshape_2d(ctx, ggml_top_k(ctx, attn, args.top_k), args.top_k*win.n_window*layer.n_gqa, layer.n_head_kv);
    ggml_tensor * pos = run.input(GGML_TYPE_F32, positions, 1, win.n_used, layer.n_head_kv);
    ggml_tensor * cur = ggml_reshape_3d(ctx, ggml_get_rows(ctx, pos, top), args.top_k, win.n_window, layer.n_head);
    return ggml_scale(ctx, ggml_reshape_2d(ctx, ggml_sum_rows(ctx, cur), win.n_window, layer.n_head), 1.0f/args.top_k);
}

} // namespace

void llama_restkv_score_layers(llama_context * ctx, llama_restkv_pool & pool, uint32_t n_used, const llama_restkv_score_args & args) {
    const bool with_max   = args.flags & LLAMA_RESTKV_MAX;
    const bool aggregate  = args.flags & LLAMA_RESTKV_AGGREGATE;
    const bool per_query  = args.flags & LLAMA_RESTKV_PER_QUERY;
    const bool with_drift = args.flags & LLAMA_RESTKV_DRIFT;

    const auto rows  = pool.window_rows(n_used, args.n_window);
    const auto slots = pool.window_slots(rows);
    const uint32_t n_window = rows.size();

    std::vector<float> mask(size_t(n_window)*n_used);
    for (uint32_t w = 0; w < n_window; ++w) {
        for (uint32_t j = 0; j < n_used; ++j) {
            mask[w*n_used + j] = j <= slots[w] ? 0.0f : -INFINITY;
        }
    }
    uint32_t n_head_max = 0;
    for (const auto & layer : pool.layers) {
        n_head_max = std::max(n_head_max, layer.n_head);
    }
    std::vector<float> weights(size_t(n_head_max)*n_window*args.n_weights);
    for (size_t i = 0; i < weights.size(); ++i) {
        const size_t r = i%args.n_weights;
        const size_t w = i/args.n_weights%n_window;
        weights[i] = args.weights[r*n_window + w];
    }
    std::vector<float> past(n_used, 1.0f);
    std::fill(past.end() - n_window, past.end(), 0.0f);

    // the scheduler holds what the model's own graph needs, and this graph must not ask for more
    const size_t nodes_layer = 50 + (per_query ? 32*n_window : 0);
    const size_t n_group     = std::max<size_t>(1, 1000/nodes_layer);

    size_t i_attn = 0, i_metric = 0, i_drift = 0, i_pos = 0; // running offsets: heads may differ between layers

    struct layer_out {
        const llama_restkv_layer * layer;
        std::vector<float> linear;  // (n_head, n_weights, n_used)
        std::vector<float> maximum; // (n_head, n_used)
        std::vector<float> metric;  // AGGREGATE (n_head_kv, n_used, n_gqa), PER_QUERY (n_head, n_used)
        std::vector<float> drift;   // (n_head, n_window)
    };

    for (size_t first = 0; first < pool.layers.size(); first += n_group) {
        const size_t last = std::min(first + n_group, pool.layers.size());

        llama_restkv_run run(ctx, nodes_layer*(last - first) + 16);
        ggml_context * c = run.get_ctx();

        window win;
        win.n_used   = n_used;
        win.n_window = n_window;
        win.rows     = run.input(GGML_TYPE_I32, rows.data(), n_window);
        win.mask     = run.input(GGML_TYPE_F32, mask.data(), n_used, n_window);
        win.weights  = args.n_weights > 0 ? run.input(GGML_TYPE_F32, weights.data(), args.n_weights, n_window, n_head_max) : nullptr;
        win.past     = args.flags & LLAMA_RESTKV_PAST_ONLY ? run.input(GGML_TYPE_F32, past.data(), 1, n_used) : nullptr;

        std::list<layer_out>  outs;
        std::list<drift_args> drifts;

        for (size_t i = first; i < last; ++i) {
            const auto & layer = pool.layers[i];
            auto & out = outs.emplace_back();
            out.layer = &layer;

            ggml_tensor * attn    = window_attention(c, pool, layer, win);
            ggml_tensor * linear  = nullptr; // [n_used, n_weights, n_head]
            ggml_tensor * maximum = nullptr; // [n_used, 1, n_head]

            if (args.n_weights > 0) {
                linear = contract(c, layer, attn, ggml_view_3d(c, win.weights, args.n_weights, n_window, layer.n_head,
                    win.weights->nb[1], win.weights->nb[2], 0));
                out.linear.resize(ggml_nelements(linear));
                run.output(linear, out.linear.data());
            }
            if (with_max) {
                maximum = window_maximum(c, layer, attn);
                out.maximum.resize(ggml_nelements(maximum));
                run.output(maximum, out.maximum.data());
            }
            if (aggregate || per_query) {
                const values val = project_values(c, pool, layer, win);
                ggml_tensor * metric;
                if (aggregate) {
                    ggml_tensor * a = args.flags & LLAMA_RESTKV_REDUCE_MAX ? maximum
                        : args.n_weights == 1 ? linear
                        : ggml_cont(c, ggml_view_3d(c, linear, n_used, 1, layer.n_head, linear->nb[1], linear->nb[2], 0));
                    a = ggml_reshape_3d(c, a, 1, n_used, layer.n_head);
                    metric = distance(c, layer, val, project_outputs(c, layer, val, a, win), win);
                } else {
                    metric = indicator(c, layer, val, attn, win, args);
                }
                out.metric.resize(ggml_nelements(metric));
                run.output(metric, out.metric.data());
            }
            if (with_drift) {
                auto & d = drifts.emplace_back();
                d = { std::min<int32_t>(args.top_k, n_used), (int32_t) layer.n_gqa };
                ggml_tensor * cur = drift(c, run, layer, attn, win, args.positions + i_pos, d);
                out.drift.resize(ggml_nelements(cur));
                run.output(cur, out.drift.data());
                i_pos += size_t(layer.n_head_kv)*n_used;
            }
        }

        run.compute();

        for (const auto & out : outs) {
            const auto & layer = *out.layer;
            const size_t n = size_t(layer.n_head)*n_used;

            for (int32_t r = 0; r < args.n_weights; ++r) {
                for (uint32_t h = 0; h < layer.n_head; ++h, i_attn += n_used) {
                    const float * src = out.linear.data() + (size_t(h)*args.n_weights + r)*n_used;
                    std::copy(src, src + n_used, args.attention + i_attn);
                }
            }
            if (with_max) {
                std::copy(out.maximum.begin(), out.maximum.end(), args.attention + i_attn);
                i_attn += n;
            }
            if (aggregate) {
                for (uint32_t h = 0; h < layer.n_head; ++h) {
                    const float * src = out.metric.data() + h/layer.n_gqa*n_used*layer.n_gqa + h%layer.n_gqa;
                    for (uint32_t j = 0; j < n_used; ++j) {
                        args.metric[i_metric++] = src[j*layer.n_gqa];
                    }
                }
            } else if (per_query) {
                std::copy(out.metric.begin(), out.metric.end(), args.metric + i_metric);
                i_metric += n;
            }
            if (with_drift) {
                std::copy(out.drift.begin(), out.drift.end(), args.drift + i_drift);
                i_drift += out.drift.size();
            }
        }
    }
}
