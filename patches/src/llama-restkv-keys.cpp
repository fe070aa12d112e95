// Reductions of keys and queries that need no attention, for rules that look at the keys alone or ahead.

#include "llama-restkv-keys.h"
#include "llama-restkv-rope.h"
#include "llama-restkv-run.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <list>

namespace {

constexpr size_t nodes_layer = 24;

// layers whose graphs fit the scheduler together
constexpr size_t n_group = 1000/nodes_layer;

// keys of the used slots: F32 [head_dim, n_used, n_head_kv]
ggml_tensor * keys_of(llama_restkv_run & run, const llama_restkv_layer & layer, const std::vector<int32_t> & rows) {
    ggml_context * c = run.get_ctx();
    ggml_tensor * idxs = run.input(GGML_TYPE_I32, rows.data(), rows.size());
    return ggml_reshape_3d(c, ggml_get_rows(c, layer.pool_k, idxs), layer.pool_k->ne[0], rows.size()/layer.n_head_kv, layer.n_head_kv);
}

} // namespace

void llama_restkv_key_direction_layers(llama_context * ctx, const llama_restkv_pool & pool, uint32_t n_used, float * cosine) {
    for (size_t first = 0; first < pool.layers.size(); first += n_group) {
        const size_t last = std::min(first + n_group, pool.layers.size());

        llama_restkv_run run(ctx, nodes_layer*(last - first));
        ggml_context * c = run.get_ctx();

        std::list<std::vector<int32_t>> rows;
        std::list<std::vector<float>>   masks;

        for (size_t i = first; i < last; ++i) {
            const auto & layer = pool.layers[i];
            auto & mask = masks.emplace_back();
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                for (uint32_t j = 0; j < n_used; ++j) {
                    mask.push_back(j >= layer.segments.absent[h]);
                }
            }
            ggml_tensor * present = run.input(GGML_TYPE_F32, mask.data(), n_used, 1, layer.n_head_kv);
            ggml_tensor * unit    = ggml_l2_norm(c, keys_of(run, layer, rows.emplace_back(pool.rows_of(layer, n_used))), 1e-12f);
            ggml_tensor * anchor  = ggml_l2_norm(c, ggml_mul_mat(c, transpose(c, unit), present), 1e-12f); // [head_dim, 1, n_head_kv]
            ggml_tensor * cur     = ggml_mul(c, ggml_mul_mat(c, unit, anchor), present);

            run.output(cur, cosine);
            cosine += ggml_nelements(cur);
        }
        run.compute();
    }
}

void llama_restkv_query_moments_layers(llama_context * ctx, const llama_restkv_pool & pool, const std::vector<int32_t> & rows,
        const std::vector<llama_pos> & positions, const float * basis, float * first_moment, float * second_moment) {
    const int64_t n = rows.size();
    const std::vector<float> ones(n, 1.0f);

    for (size_t first = 0; first < pool.layers.size(); first += n_group) {
        const size_t last = std::min(first + n_group, pool.layers.size());

        llama_restkv_run run(ctx, nodes_layer*(last - first));
        ggml_context * c = run.get_ctx();

        ggml_tensor * idxs = run.input(GGML_TYPE_I32, rows.data(), n);
        ggml_tensor * one  = run.input(GGML_TYPE_F32, ones.data(), n);

        std::list<std::vector<int32_t>> shifts;
        for (size_t i = first; i < last; ++i) {
            const auto & layer = pool.layers[i];
            const int64_t head_dim = layer.pool_k->ne[0];

            ggml_tensor * q = ggml_reshape_2d(c, ggml_get_rows(c, layer.ring, idxs), head_dim, layer.n_head*n);
            if (basis) {
                q = ggml_mul_mat(c, run.input(GGML_TYPE_F32, basis, head_dim, head_dim), q);
            }
            if (layer.turned) {
                auto & shift = shifts.emplace_back();
                for (const llama_pos pos : positions) {
                    shift.insert(shift.end(), layer.n_head, -pos);
                }
                q = llama_restkv_rotate(ctx, c, q, run.input(GGML_TYPE_I32, shift.data(), shift.size()), layer.il);
            }
            // [n, head_dim, n_head]
            q = ggml_cont(c, ggml_permute(c, ggml_reshape_3d(c, q, head_dim, layer.n_head, n), 1, 2, 0, 3));

            ggml_tensor * sum = ggml_mul_mat(c, ggml_reshape_2d(c, q, n, head_dim*layer.n_head), one);
            run.output(sum, first_moment);
            first_moment += ggml_nelements(sum);

            ggml_tensor * sum2 = ggml_mul_mat(c, q, q);
            run.output(sum2, second_moment);
            second_moment += ggml_nelements(sum2);
        }
        run.compute();
    }
}

void llama_restkv_mean_rotation_layer(llama_context * ctx, const llama_restkv_layer & layer, llama_pos pos, int32_t n, float * rotation) {
    const int64_t head_dim = layer.pool_k->ne[0];
    std::fill(rotation, rotation + head_dim*head_dim, 0.0f);

    std::vector<float> units(head_dim*head_dim, 0.0f), turned(head_dim*head_dim);
    for (int64_t r = 0; r < head_dim; ++r) {
        units[r*head_dim + r] = 1.0f;
    }
    if (!layer.turned) {
        std::copy(units.begin(), units.end(), rotation);
        return;
    }

    constexpr int32_t n_tile = 64;
    for (int32_t done = 0; done < n; done += n_tile) {
        const int64_t n_cur = std::min(n_tile, n - done);

        llama_restkv_run run(ctx, nodes_layer);
        ggml_context * c = run.get_ctx();

        std::vector<float>   all;
        std::vector<int32_t> shift;
        for (int64_t j = 0; j < n_cur; ++j) {
            all.insert(all.end(), units.begin(), units.end());
            shift.insert(shift.end(), head_dim, pos + done + j);
        }
        ggml_tensor * x = run.input(GGML_TYPE_F32, all.data(), head_dim, head_dim*n_cur);
        x = llama_restkv_rotate(ctx, c, x, run.input(GGML_TYPE_I32, shift.data(), shift.size()), layer.il);
        x = ggml_sum_rows(c, transpose(c, ggml_reshape_2d(c, x, head_dim*head_dim, n_cur)));
        run.output(x, turned.data());
        run.compute();

        for (size_t i = 0; i < turned.size(); ++i) {
            rotation[i] += turned[i]/n;
        }
    }
}

void llama_restkv_expected_layers(llama_context * ctx, const llama_restkv_pool & pool, uint32_t n_used,
        const float * mean, const float * root, float * logits) {
    for (size_t first = 0; first < pool.layers.size(); first += n_group) {
        const size_t last = std::min(first + n_group, pool.layers.size());

        llama_restkv_run run(ctx, nodes_layer*(last - first));
        ggml_context * c = run.get_ctx();

        std::list<std::vector<int32_t>> rows;
        for (size_t i = first; i < last; ++i) {
            const auto & layer = pool.layers[i];
            const int64_t head_dim = layer.pool_k->ne[0];

            ggml_tensor * k  = keys_of(run, layer, rows.emplace_back(pool.rows_of(layer, n_used)));
            ggml_tensor * mu = run.input(GGML_TYPE_F32, mean, head_dim, 1, layer.n_head);
            ggml_tensor * r  = run.input(GGML_TYPE_F32, root, head_dim, head_dim, layer.n_head);
            mean += ggml_nelements(mu);
            root += ggml_nelements(r);

            ggml_tensor * spread = transpose(c, ggml_mul_mat(c, k, r)); // [head_dim, n_used, n_head]
            spread = ggml_reshape_3d(c, ggml_sum_rows(c, ggml_sqr(c, spread)), n_used, 1, layer.n_head);
            ggml_tensor * cur = ggml_add(c, ggml_mul_mat(c, k, mu), spread);

            run.output(cur, logits);
            logits += ggml_nelements(cur);
        }
        run.compute();
    }
}
