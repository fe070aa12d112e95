#include "llama-restkv-compact.h"
#include "llama-restkv-rope.h"
#include "llama-restkv-run.h"

#include "llama-context.h"
#include "llama-model.h"

#include <cstring>
#include <list>

namespace {

// Rows of the pool as 32-bit words: quantised rows then move as they are, with no new rounding.
ggml_tensor * words(ggml_context * ctx, ggml_tensor * pool, int64_t row, int64_t n_rows, int64_t n_head, int64_t stride) {
    ggml_tensor * view = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, pool->nb[1]/sizeof(int32_t), n_rows, n_head);
    view->view_src  = pool;
    view->view_offs = row*pool->nb[1];
    view->data      = (char *) pool->data + view->view_offs;
    view->buffer    = pool->buffer;
    view->nb[1]     = pool->nb[1];
    view->nb[2]     = pool->nb[1]*stride;
    view->nb[3]     = view->nb[2]*n_head;
    return view;
}

// rows of a pool by index, on a CPU: ggml_get_rows is one thread's
void copy_rows(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const ggml_tensor * pool = dst->src[0];
    const ggml_tensor * idxs = dst->src[1];
    GGML_UNUSED(userdata);

    for (int64_t j = dst->ne[1]*ith/nth; j < dst->ne[1]*(ith + 1)/nth; ++j) {
        std::memcpy((char *) dst->data + j*dst->nb[1], (const char *) pool->data + ((const int32_t *) idxs->data)[j]*pool->nb[1], dst->nb[1]);
    }
}

// consecutive rows of src as words, n of them for each head, go to where each head's rows start
void scatter(llama_restkv_run & run, ggml_tensor * src, ggml_tensor * pool, const std::vector<int64_t> & starts, const int32_t * n_keep) {
    ggml_context * c = run.get_ctx();

    for (size_t h = 0, first = 0, next; h < starts.size(); h = next) {
        // heads of equal length at equal distances move in one copy
        const int64_t stride = h + 1 < starts.size() ? starts[h + 1] - starts[h] : 1;
        for (next = h + 1; next < starts.size() && n_keep[next] == n_keep[h] && starts[next] - starts[next - 1] == stride; ++next) {}

        const int64_t n = n_keep[h], n_head = next - h;
        if (n > 0) {
            ggml_tensor * from = ggml_view_3d(c, src, src->ne[0], n, n_head, src->nb[1], src->nb[1]*n, src->nb[1]*first);
            ggml_tensor * to   = words(c, pool, starts[h], n, n_head, stride);
            if (src->nb[1] < 64) { // a copy goes row by row: short rows, as norms are, as one for each head
                for (auto * rows : { from, to }) {
                    rows->ne[0] *= n;
                    rows->ne[1]  = 1;
                    rows->nb[1] *= n;
                }
            }
            run.expand(ggml_cpy(c, from, to));
        }
        first += n*n_head;
    }
}

std::vector<int64_t> starts_of(const llama_restkv_segments & segments) {
    std::vector<int64_t> starts;
    for (size_t h = 0; h < segments.base.size(); ++h) {
        starts.push_back(segments.base[h] + segments.absent[h]);
    }
    return starts;
}

} // namespace

// Rows move through a copy of one layer at a time. Layers in ascending order are safe as long as none reaches into a
// later one; where the new layout does, the rows are first packed to the front of their pool, which never reaches
// forward, and then spread from the last layer back, which never reaches backward.
void llama_restkv_compact_layers(llama_context * ctx, llama_restkv_pool & pool,
        const int32_t * n_keep, const int32_t * keep, const int32_t * shift) {
    auto next = pool.layout(n_keep);

    struct job {
        size_t i;
        std::vector<int32_t> from;
        std::vector<int64_t> to, packed, turned;
    };
    std::list<job> jobs;
    std::map<ggml_backend_buffer_type_t, int64_t> front, reach;

    bool direct = true;
    bool normed = true; // every row that stays
    const int32_t * slot = keep;
    for (size_t i = 0; i < pool.layers.size(); ++i) {
        const auto & layer = pool.layers[i];
        auto & cur = jobs.emplace_back();
        cur.i  = i;
        cur.to = starts_of(next[i]);

        const auto old = starts_of(layer.segments);
        if (reach.count(layer.buft) && reach[layer.buft] > old[0]) {
            direct = false;
        }
        if (!front.count(layer.buft)) {
            front[layer.buft] = old[0]; // the first segment of a pool always starts at the same row
        }
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            const int32_t n = n_keep[layer.idx_col + h];
            for (int32_t j = 0; j < n; ++j) {
                cur.from.push_back(layer.segments.base[h] + *slot++);
            }
            normed = normed && slot[-1] < (int32_t) pool.n_normed;
            cur.packed.push_back(front[layer.buft]);
            front[layer.buft] += n;
            reach[layer.buft] = cur.to[h] + n;
        }
    }

    // one graph for all layers: either all rows move or none
    llama_restkv_run run(ctx, 20*pool.layers.size() + 18*pool.n_cols);
    ggml_context * c = run.get_ctx();

    size_t n_shift = 0;
    for (const auto & cur : jobs) {
        n_shift += shift ? cur.from.size() : 0;
    }
    llama_restkv_turner turner(ctx, run, shift, n_shift);

    for (auto & cur : jobs) {
        const auto & layer = pool.layers[cur.i];
        const auto & to    = direct ? cur.to : cur.packed;

        ggml_tensor * idxs = run.input(GGML_TYPE_I32, cur.from.data(), cur.from.size());
        const bool on_host = ggml_backend_buft_is_host(layer.buft);
        const auto gather = [&](ggml_tensor * rows) {
            if (on_host) {
                ggml_tensor * srcs[] = { rows, idxs };
                return ggml_custom_4d(c, GGML_TYPE_I32, rows->nb[1]/sizeof(int32_t), idxs->ne[0], 1, 1, srcs, 2, copy_rows, GGML_N_TASKS_MAX, nullptr);
            }
            return ggml_get_rows(c, words(c, rows, 0, rows->ne[1], 1, rows->ne[1]), idxs);
        };
        if (shift && layer.turned) {
            ggml_tensor * k = turner.rotate(layer.pool_k, idxs, shift, layer.il, on_host);
            if (k->type == GGML_TYPE_I32) {
                scatter(run, k, layer.pool_k, to, n_keep + layer.idx_col);
            } else {
                for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                    for (int32_t j = 0; j < n_keep[layer.idx_col + h]; ++j) {
                        cur.turned.push_back(to[h] + j);
                    }
                }
                ggml_tensor * at = run.input(GGML_TYPE_I64, cur.turned.data(), cur.turned.size());
                run.expand(ggml_set_rows(c, layer.pool_k, k, at));
            }
        } else {
            scatter(run, gather(layer.pool_k), layer.pool_k, to, n_keep + layer.idx_col);
        }
        scatter(run, gather(layer.pool_v), layer.pool_v, to, n_keep + layer.idx_col);
        if (normed && layer.norms) {
            scatter(run, gather(layer.norms), layer.norms, to, n_keep + layer.idx_col);
        }
        if (shift) {
            shift += cur.from.size();
        }
    }
    for (auto cur = jobs.rbegin(); !direct && cur != jobs.rend(); ++cur) {
        const auto & layer = pool.layers[cur->i];
        for (auto * rows : { layer.pool_k, layer.pool_v, normed ? layer.norms : nullptr }) {
            if (!rows) {
                continue;
            }
            ggml_tensor * copy = ggml_cont(c, words(c, rows, cur->packed[0], cur->from.size(), 1, cur->from.size()));
            scatter(run, copy, rows, cur->to, n_keep + layer.idx_col);
        }
    }
    run.compute();
    pool.set_layout(std::move(next));
    pool.n_normed = normed ? *std::max_element(n_keep, n_keep + pool.n_cols) : 0;
}
