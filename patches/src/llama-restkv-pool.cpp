#include "llama-restkv-pool.h"

#include "llama-hparams.h"
#include "llama-kv-cache.h"
#include "llama-kv-cache-iswa.h"
#include "llama-restkv-score-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace {

// Flash attention on a GPU has its fast kernels for whole blocks of rows only; on a CPU a block is a step of its loops.
// Slots before a segment's first row that its block covers are hidden by the mask.
uint32_t bucket_of(ggml_backend_buffer_type_t buft) {
    return ggml_backend_buft_is_host(buft) ? 32 : 256;
}

// Views start and end at whole blocks, so they may reach past the first and the last segment of a pool.
constexpr int64_t margin = 256;

// RESTKV_TILES=0: attention as llama.cpp computes it, to compare with.
restkv_tiles tiles_of(bool probe) {
    static const bool off = [] {
        const char * env = std::getenv("RESTKV_TILES");
        return env && std::strcmp(env, "0") == 0;
    }();
    return off ? RESTKV_TILES_UPSTREAM : probe ? RESTKV_TILES_ANY : RESTKV_TILES_EQUAL;
}

// Bytes that a view for attention must begin at a multiple of: Vulkan binds buffers at such steps only, and aborts.
size_t step_of(ggml_backend_buffer_type_t buft) {
    return std::strncmp(ggml_backend_buft_name(buft), "Vulkan", 6) == 0 ? ggml_backend_buft_get_alignment(buft) : 1;
}

} // namespace

std::vector<llama_restkv_group> llama_restkv_groups(const llama_restkv_segments & segments) {
    std::vector<llama_restkv_group> groups;
    for (uint32_t h = 0; h < segments.base.size(); ++h) {
        if (!groups.empty()) {
            auto & last = groups.back();
            const int64_t stride = segments.base[h] - segments.base[h - 1];
            if (segments.absent[h] == last.absent && (last.n_head == 1 || stride == last.stride)) {
                last.stride = stride;
                last.n_head++;
                continue;
            }
        }
        groups.push_back({ h, 1, segments.absent[h], segments.base[h], 1 });
    }
    return groups;
}

llama_restkv_pool::llama_restkv_pool(
        const llama_hparams & hparams, ggml_type type_k, ggml_type type_v, uint32_t n_slots, llama_restkv_armed_args armed) :
    n_slots(n_slots), n_rows(armed.n_rows ? std::min(armed.n_rows, n_slots) : n_slots), n_ring(armed.n_ring), slot_end(n_rows),
    type_k(type_k), type_v(type_v),
    softcap(hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f),
    hparams(hparams), tiles(tiles_of(false)), ring_slot(n_ring, 0) {
}

uint32_t llama_restkv_pool::n_nodes_extra() const {
    // scoring by ggml's operations asks the scheduler for 12 nodes a query, of one layer at least
    const bool by_ggml = !llama_restkv_score_on_cpu().distance || std::any_of(layers.begin(), layers.end(), [](const auto & layer) { return !ggml_backend_buft_is_host(layer.buft); });
    return (ragged() ? 24*(n_cols + layers.size()) : 0) + (by_ggml ? 12*n_ring + 100 : 0);
}

bool llama_restkv_pool::set_probe(bool probe) {
    const restkv_tiles next = tiles_of(probe);
    return std::exchange(tiles, next) != next;
}

void llama_restkv_pool::add_layer(uint32_t il, ggml_backend_buffer_type_t buft) {
    llama_restkv_layer layer;
    layer.il        = il;
    layer.n_head    = hparams.n_head(il);
    layer.n_head_kv = hparams.n_head_kv(il);
    layer.n_gqa     = layer.n_head/layer.n_head_kv;
    layer.buft      = buft;
    layer.idx_col   = n_cols;
    layer.turned    = hparams.has_rope(il);

    n_cols += layer.n_head_kv;

    index[il] = layers.size();
    layers.push_back(std::move(layer));

    for (auto & dev : devices) {
        if (dev.buft == buft) {
            dev.n_rows += int64_t(n_rows)*layers.back().n_head_kv;
            return;
        }
    }
    devices.push_back({ buft, int64_t(n_rows)*layers.back().n_head_kv + (ragged() ? 2*margin : 0), nullptr });
}

int32_t llama_restkv_pool::device_of(const llama_restkv_layer & layer) const {
    return std::find_if(devices.begin(), devices.end(), [&](const auto & dev) { return dev.buft == layer.buft; }) - devices.begin();
}

std::vector<llama_restkv_segments> llama_restkv_pool::layout(const int32_t * n_keep) const {
    const int32_t n_most = *std::max_element(n_keep, n_keep + n_cols);

    std::vector<llama_restkv_segments> res(layers.size());
    for (const auto & dev : devices) {
        int64_t n_free = dev.n_rows - (ragged() ? 2*margin : 0);
        int64_t n_segment = 0;
        for (const auto & layer : layers) {
            if (layer.buft == dev.buft) {
                n_free -= std::accumulate(n_keep + layer.idx_col, n_keep + layer.idx_col + layer.n_head_kv, int64_t(0));
                n_segment += layer.n_head_kv;
            }
        }
        int64_t row = ragged() ? margin : 0;
        for (size_t i = 0; i < layers.size(); ++i) {
            if (layers[i].buft != dev.buft) {
                continue;
            }
            for (uint32_t h = 0; h < layers[i].n_head_kv; ++h) {
                const int32_t n = n_keep[layers[i].idx_col + h];
                res[i].base.push_back(row - (n_most - n));
                res[i].absent.push_back(n_most - n);
                row += n + n_free/n_segment;
            }
        }
    }
    return res;
}

std::pair<int64_t, ggml_backend_buffer_type_t> llama_restkv_pool::n_lacking(const int32_t * n_keep) const {
    for (const auto & dev : devices) {
        int64_t n = 0;
        for (const auto & layer : layers) {
            if (layer.buft == dev.buft) {
                for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                    n += n_keep[layer.idx_col + h] - int64_t(n_rows);
                }
            }
        }
        if (n > 0) {
            return {n, dev.buft};
        }
    }
    return {0, nullptr};
}

void llama_restkv_pool::set_layout(std::vector<llama_restkv_segments> && next) {
    slot_end = n_slots;
    for (const auto & dev : devices) {
        // the end of each segment is where the next one starts
        int64_t end = dev.n_rows - (ragged() ? margin : 0);
        for (size_t i = layers.size(); i-- > 0; ) {
            if (layers[i].buft != dev.buft) {
                continue;
            }
            layers[i].segments = std::move(next[i]);
            for (uint32_t h = layers[i].n_head_kv; h-- > 0; ) {
                const auto & seg = layers[i].segments;
                slot_end = std::min<int64_t>(slot_end, end - seg.base[h]);
                end = seg.base[h] + seg.absent[h];
            }
        }
    }
}

void llama_restkv_pool::reset_layout() {
    const std::vector<int32_t> n_keep(n_cols, 0);
    set_layout(layout(n_keep.data()));
}

void llama_restkv_pool::zero_rows() {
    for (const auto & rows : bufs_kv) {
        ggml_backend_buffer_clear(rows, 0);
    }
}

void llama_restkv_pool::alloc() {
    reset_layout();

    const auto new_ctx = [](size_t n_tensors) {
        ggml_init_params params = {
            /*.mem_size   =*/ n_tensors*ggml_tensor_overhead(),
            /*.mem_buffer =*/ nullptr,
            /*.no_alloc   =*/ true,
        };
        return ggml_context_ptr(ggml_init(params));
    };

    for (auto & dev : devices) {
        if (dev.n_rows > INT32_MAX) { // compaction and scoring name rows by int32
            throw std::runtime_error("restkv: a device's pool would have " + std::to_string(dev.n_rows) + " rows of all layers and heads, more than 2^31 - 1");
        }
        std::vector<llama_restkv_layer *> mine;
        for (auto & layer : layers) {
            if (layer.buft == dev.buft) {
                mine.push_back(&layer);
            }
        }

        const int64_t head_dim_k = hparams.n_embd_head_k(mine[0]->il);
        const int64_t head_dim_v = hparams.n_embd_head_v(mine[0]->il);
        for (const auto * layer : mine) {
            if (hparams.n_embd_head_k(layer->il) != head_dim_k || hparams.n_embd_head_v(layer->il) != head_dim_v) {
                throw std::runtime_error("restkv: layers of one device differ in head size; the pool needs one size");
            }
        }

        const int64_t n_apart = ragged() ? 1 : n_rows; // segments begin at multiples of so many rows
        for (const auto & [type, head_dim] : { std::pair(type_k, head_dim_k), std::pair(type_v, head_dim_v) }) {
            if (const size_t n = ggml_row_size(type, head_dim)*n_apart % step_of(dev.buft); n > 0) {
                throw std::runtime_error(std::string("restkv: ") + ggml_backend_buft_name(dev.buft) + " reads memory from every "
                        + std::to_string(step_of(dev.buft)) + " bytes on, where " + ggml_type_name(type) + " rows of unequal budgets do not begin;"
                        " use f16 K and V (-ctk, -ctv) or --allocation uniform");
            }
        }

        auto ctx_kv = new_ctx(2 + 2*mine.size());

        ggml_tensor * pool_k = ggml_new_tensor_2d(ctx_kv.get(), type_k, head_dim_k, dev.n_rows);
        ggml_tensor * pool_v = ggml_new_tensor_2d(ctx_kv.get(), type_v, head_dim_v, dev.n_rows);
        ggml_set_name(pool_k, "restkv_pool_k");
        ggml_set_name(pool_v, "restkv_pool_v");

        // the scheduler ends the process over a tensor that its device cannot bind
        ggml_backend_dev_t device = ggml_backend_buft_get_device(dev.buft);
        for (const auto * pool : { pool_k, pool_v }) {
            if (device && !ggml_backend_dev_supports_op(device, pool)) {
                throw std::runtime_error(std::string("restkv: ") + ggml_backend_dev_name(device) + " takes no tensor of "
                        + std::to_string(ggml_nbytes(pool) >> 20) + " MiB, and K or V of its layers are one; give a smaller --budget or leave layers on the CPU (-ngl)");
            }
        }

        auto ctx_scoring = new_ctx(2*mine.size() + 2);
        dev.hole = ggml_new_tensor_1d(ctx_scoring.get(), GGML_TYPE_F16, 2*bucket_of(dev.buft));
        ggml_set_name(dev.hole, "restkv_hole");

        ggml_tensor * norms = nullptr;
        if (ggml_backend_buft_is_host(dev.buft)) {
            uint32_t n_gqa = 0;
            for (const auto * layer : mine) {
                n_gqa = std::max(n_gqa, layer->n_gqa);
            }
            norms = ggml_new_tensor_2d(ctx_scoring.get(), GGML_TYPE_F32, n_gqa, dev.n_rows);
            ggml_set_name(norms, "restkv_norms");
        }

        for (auto * layer : mine) {
            layer->pool_k = pool_k;
            layer->pool_v = pool_v;
            layer->norms  = norms;

            const auto alias = [&](ggml_tensor * pool) {
                const int64_t n_embd = pool->ne[0]*layer->n_head_kv;
                const size_t  row    = ggml_row_size(pool->type, n_embd);
                return ggml_view_3d(ctx_kv.get(), pool, n_embd, n_rows, 1, row, row*n_rows, layer->segments.base[0]*pool->nb[1]);
            };
            layer->alias_k = alias(pool_k);
            layer->alias_v = alias(pool_v);

            layer->ring    = ggml_new_tensor_2d(ctx_scoring.get(), GGML_TYPE_F32, head_dim_k*layer->n_head, n_ring);
            layer->factors = ggml_new_tensor_3d(ctx_scoring.get(), GGML_TYPE_F32, head_dim_v, head_dim_v*layer->n_gqa, layer->n_head_kv);
            ggml_format_name(layer->ring,    "restkv_ring_l%d",    (int) layer->il);
            ggml_format_name(layer->factors, "restkv_factors_l%d", (int) layer->il);
        }

        for (auto * ctx : { &ctx_kv, &ctx_scoring }) {
            ggml_backend_buffer_ptr buf(ggml_backend_alloc_ctx_tensors_from_buft(ctx->get(), dev.buft));
            if (!buf) {
                throw std::runtime_error("restkv: the device has no room for the KV pool");
            }
            ggml_backend_buffer_clear(buf.get(), 0);
            if (ctx == &ctx_kv) {
                bufs_kv.push_back(buf.get());
            } else {
                // tells the scheduler to contract on the device that owns the layer
                ggml_backend_buffer_set_usage(buf.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
                bytes_scoring += ggml_backend_buffer_get_size(buf.get());
            }
            bufs.emplace_back(std::move(*ctx), std::move(buf));
        }

        std::vector<ggml_fp16_t> hole(2*bucket_of(dev.buft), ggml_fp32_to_fp16(0.0f));
        std::fill(hole.begin(), hole.begin() + bucket_of(dev.buft), ggml_fp32_to_fp16(-INFINITY));
        ggml_backend_tensor_set(dev.hole, hole.data(), 0, ggml_nbytes(dev.hole));

        bytes_k += ggml_nbytes(pool_k);
        bytes_v += ggml_nbytes(pool_v);
    }
}

const llama_restkv_layer * llama_restkv_pool::find(int32_t il) const {
    const auto it = index.find(il);
    return it == index.end() ? nullptr : &layers[it->second];
}

// I64 [n_tokens, n_cols (+ 1)]: for each layer n_tokens*n_head_kv pool rows, head fastest; last column: ring rows
// note: upstream decides graph reuse on ne[0] == n_tokens
ggml_tensor * llama_restkv_pool::build_idxs(ggml_context * ctx, uint32_t n_tokens, bool with_ring) {
    ggml_tensor * idxs = ggml_new_tensor_2d(ctx, GGML_TYPE_I64, n_tokens, n_cols + (with_ring ? 1 : 0));
    ggml_set_input(idxs);
    ggml_set_name(idxs, with_ring ? "restkv_k_idxs" : "restkv_v_idxs");
    if (with_ring) {
        cur_idxs = idxs;
    }
    return idxs;
}

void llama_restkv_pool::set_idxs(ggml_tensor * dst, const std::vector<uint32_t> & slots, bool with_ring) {
    const size_t n_tokens = slots.size();
    std::vector<int64_t> data(ggml_nelements(dst));
    n_normed = std::min(n_normed, slots[0]);

    for (const auto & layer : layers) {
        int64_t * out = data.data() + layer.idx_col*n_tokens;
        for (size_t t = 0; t < n_tokens; ++t) {
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                *out++ = layer.segments.base[h] + slots[t];
            }
        }
    }

    if (with_ring) {
        const uint32_t n_gone = n_removed(slots[0]);
        ring_next = (ring_next + n_ring - n_gone)%n_ring;
        n_seen   -= n_gone;

        int64_t * out = data.data() + n_cols*n_tokens;
        const size_t first = n_tokens > n_ring ? n_tokens - n_ring : 0;
        for (size_t t = first; t < n_tokens; ++t) {
            out[t] = ring_next;
            ring_slot[ring_next] = slots[t];
            ring_next = (ring_next + 1)%n_ring;
            n_seen = std::min(n_seen + 1, n_ring);
        }
    }

    ggml_backend_tensor_set(dst, data.data(), 0, ggml_nbytes(dst));
}

// A view whose rows may overlap: free slots run into the next segment. ggml bounds a view as if it were dense, so its
// shape is set afterwards.
static ggml_tensor * overlapping_view(ggml_context * ctx, ggml_tensor * pool, int64_t ne1, int64_t ne2, size_t nb1, size_t nb2, size_t offset) {
    ggml_tensor * view = ggml_view_4d(ctx, pool, pool->ne[0], 1, 1, 1, nb1, nb2, nb2*ne2, offset);
    view->ne[1] = ne1;
    view->ne[2] = ne2;
    return view;
}

// Stands in for [head_dim, n_head_kv, n_kv, 1], whose shape and type upstream looks at; attend() makes the views of the
// rows, one for each group of heads. No stride between slots: it stays inside the pool whatever n_kv is.
static ggml_tensor * stand_in(ggml_context * ctx, ggml_tensor * pool, const llama_restkv_layer & layer, uint32_t n_kv) {
    return overlapping_view(ctx, pool, layer.n_head_kv, n_kv, pool->nb[1], 0, 0);
}

ggml_tensor * llama_restkv_pool::get_k(ggml_context * ctx, int32_t il, uint32_t n_kv) const {
    const auto & layer = *find(il);
    return stand_in(ctx, layer.pool_k, layer, n_kv);
}

ggml_tensor * llama_restkv_pool::get_v(ggml_context * ctx, int32_t il, uint32_t n_kv) const {
    const auto & layer = *find(il);
    return stand_in(ctx, layer.pool_v, layer, n_kv);
}

ggml_tensor * llama_restkv_pool::cpy(ggml_context * ctx, ggml_tensor * pool, ggml_tensor * cur, ggml_tensor * idxs, const llama_restkv_layer & layer) const {
    const int64_t n_head_kv = cur->ne[1];
    const int64_t n_tokens  = cur->ne[2];

    if (!ggml_is_contiguous(cur)) {
        cur = ggml_cont(ctx, cur);
    }
    cur = ggml_reshape_2d(ctx, cur, cur->ne[0], n_head_kv*n_tokens);

    ggml_tensor * rows = ggml_view_1d(ctx, idxs, n_head_kv*n_tokens, layer.idx_col*idxs->nb[1]);
    return ggml_set_rows(ctx, pool, cur, rows);
}

ggml_tensor * llama_restkv_pool::cpy_k(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * idxs, int32_t il) const {
    const auto & layer = *find(il);
    return cpy(ctx, layer.pool_k, cur, idxs, layer);
}

ggml_tensor * llama_restkv_pool::cpy_v(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * idxs, int32_t il) const {
    const auto & layer = *find(il);
    return cpy(ctx, layer.pool_v, cur, idxs, layer);
}

ggml_tensor * llama_restkv_pool::build_attn(
        const llm_graph_context & g, ggml_tensor * q, ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale, int il) {
    auto & layer = layers[index.at(il)];
    layer.scale = kq_scale;
    layer.sinks = sinks;

    ggml_context * ctx = g.ctx0;

    // observe: the newest queries of the ubatch go to the ring, after RoPE and K rotation, as attention sees them
    {
        const int64_t n_tokens = q->ne[2];
        const int64_t n_new    = std::min<int64_t>(n_tokens, n_ring);
        const int64_t n_embd   = q->ne[0]*q->ne[1];

        ggml_tensor * rows = ggml_is_contiguous(q) ? q : ggml_cont(ctx, q);
        rows = ggml_view_2d(ctx, rows, n_embd, n_new, rows->nb[2], (n_tokens - n_new)*rows->nb[2]);

        ggml_tensor * idxs = ggml_view_1d(ctx, cur_idxs, n_new,
                n_cols*cur_idxs->nb[1] + (n_tokens - n_new)*cur_idxs->nb[0]);
        ggml_build_forward_expand(g.gf, ggml_set_rows(ctx, layer.ring, rows, idxs));
    }

    // attend: the same operations as upstream's flash attention branch, for each group of KV heads of equal length
    ggml_tensor * res = nullptr;
    for (const auto & group : llama_restkv_groups(layer.segments)) {
        ggml_tensor * cur = attend(g, layer, group, q, kq_mask, sinks, kq_scale);
        res = res ? ggml_concat(ctx, res, cur, 1) : cur;
    }
    res = ggml_reshape_2d(ctx, res, res->ne[0]*res->ne[1], res->ne[2]*res->ne[3]);
    ggml_build_forward_expand(g.gf, res);

    return res;
}

// q [head_dim, n_head, n_tokens] -> [head_dim_v, query heads of the group, n_tokens]
ggml_tensor * llama_restkv_pool::attend(
        const llm_graph_context & g, const llama_restkv_layer & layer, const llama_restkv_group & group,
        ggml_tensor * q, ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale) const {
    ggml_context * ctx = g.ctx0;

    const auto & dev = *std::find_if(devices.begin(), devices.end(), [&](const device & d) { return d.buft == layer.buft; });

    const int64_t bucket   = bucket_of(layer.buft);
    const int64_t n_kv     = kq_mask->ne[0];
    const int64_t n_tokens = kq_mask->ne[1];
    const int64_t skip     = group.absent/bucket*bucket;
    const int64_t hole     = group.absent - skip;
    const int64_t last     = group.base + (group.n_head - 1)*group.stride;

    // only slots that are masked, free ones at the end, can lie beyond the pool
    int64_t n = n_kv - skip;
    if (last + skip + n > dev.n_rows) {
        n = (dev.n_rows - last - skip)/bucket*bucket;
    }

    const auto rows = [&](ggml_tensor * pool) {
        return overlapping_view(ctx, pool, n, group.n_head, pool->nb[1], pool->nb[1]*group.stride, pool->nb[1]*(group.base + skip));
    };

    if (group.n_head < layer.n_head_kv) {
        q = ggml_view_3d(ctx, q, q->ne[0], int64_t(group.n_head)*layer.n_gqa, q->ne[2], q->nb[1], q->nb[2],
                group.head*layer.n_gqa*q->nb[1]);
        if (sinks) {
            sinks = ggml_view_1d(ctx, sinks, int64_t(group.n_head)*layer.n_gqa, group.head*layer.n_gqa*sinks->nb[0]);
        }
    }
    q = ggml_permute(ctx, q, 0, 2, 1, 3);

    if (group.absent > 0 || n < n_kv) {
        kq_mask = ggml_cont(ctx, ggml_view_2d(ctx, kq_mask, n, n_tokens, kq_mask->nb[1], skip*kq_mask->nb[0]));
        if (hole > 0) {
            ggml_tensor * hidden = ggml_view_1d(ctx, dev.hole, bucket, (bucket - hole)*dev.hole->nb[0]);
            ggml_tensor * first  = ggml_view_2d(ctx, kq_mask, bucket, n_tokens, kq_mask->nb[1], 0);
            // Attention reads the mask through the sum: a result that nobody reads keeps its memory until the graph ends.
            first   = ggml_add_inplace(ctx, first, hidden);
            kq_mask = ggml_view_2d(ctx, first, n, n_tokens, kq_mask->nb[1], 0);
        }
    }

    ggml_tensor * cur = ggml_flash_attn_ext(ctx, q, rows(layer.pool_k), rows(layer.pool_v), kq_mask, kq_scale, hparams.f_max_alibi_bias, softcap);
    restkv_ask_for_tiles(cur, tiles);
    if (ggml_backend_buft_is_host(layer.buft)) {
        // else a GPU that takes large batches off the CPU would have the rows copied to it for each of them
        ggml_backend_sched_set_tensor_backend(g.sched, cur, g.backend_cpu);
    }
    g.res->add_fused_node({LLM_FUSED_OP_FLASH_ATTN, cur, (int) layer.il});
    ggml_flash_attn_ext_add_sinks(cur, sinks);
    ggml_prec_set_acc(cur, GGML_PREC_F32);

    // Rows would go to another device and back with each batch; and views that overlap cannot go.
    ggml_backend_dev_t device = ggml_backend_buft_get_device(layer.buft);
    if (device && !ggml_backend_dev_supports_op(device, cur)) {
        throw std::runtime_error(std::string("restkv: ") + ggml_backend_dev_name(device) + " has no attention for heads of "
                + std::to_string(q->ne[0]) + " with " + ggml_type_name(layer.pool_k->type) + " K and " + ggml_type_name(layer.pool_v->type)
                + " V; use other types (-ctk, -ctv) or leave the layers on the CPU (-ngl 0)");
    }
    return cur;
}

std::vector<int32_t> llama_restkv_pool::rows_of(const llama_restkv_layer & layer, uint32_t n_used) const {
    std::vector<int32_t> rows;
    rows.reserve(size_t(n_used)*layer.n_head_kv);
    for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
        for (uint32_t j = 0; j < n_used; ++j) {
            rows.push_back(layer.segments.base[h] + std::max(j, layer.segments.absent[h]));
        }
    }
    return rows;
}

uint32_t llama_restkv_pool::n_removed(uint32_t n_used) const {
    uint32_t n = 0;
    while (n < n_seen && ring_slot[ring_row(n)] >= n_used) {
        ++n;
    }
    return n;
}

std::vector<int32_t> llama_restkv_pool::window_rows(uint32_t n_used, uint32_t n_max) const {
    std::vector<int32_t> rows;
    for (uint32_t i = n_removed(n_used); i < n_seen && rows.size() < n_max; ++i) {
        const uint32_t row = ring_row(i);
        // slots run down from the newest row without a gap
        if (ring_slot[row] + 1 + rows.size() != n_used) {
            break;
        }
        rows.push_back(row);
    }
    std::reverse(rows.begin(), rows.end());
    return rows;
}

std::vector<uint32_t> llama_restkv_pool::window_slots(const std::vector<int32_t> & rows) const {
    std::vector<uint32_t> slots;
    for (const int32_t row : rows) {
        slots.push_back(ring_slot[row]);
    }
    return slots;
}

void llama_restkv_pool::set_queries(uint32_t n, uint32_t n_used) {
    for (uint32_t i = 0; i < n; ++i) {
        ring_slot[i] = n_used - n + i;
    }
    ring_next = n%n_ring;
    n_seen    = n;
}

llama_restkv_pool * llama_restkv_pool_of(const llama_memory_context_i * mctx, int32_t il) {
    llama_restkv_pool * pool = nullptr;
    if (const auto * kv = dynamic_cast<const llama_kv_cache_context *>(mctx)) {
        pool = kv->get_restkv();
    } else if (const auto * iswa = dynamic_cast<const llama_kv_cache_iswa_context *>(mctx)) {
        pool = iswa->get_base()->get_restkv();
    }
    return pool && pool->find(il) ? pool : nullptr;
}

llama_restkv_pool * llama_restkv_pool_of(const llama_memory_i * memory) {
    if (const auto * iswa = dynamic_cast<const llama_kv_cache_iswa *>(memory)) {
        memory = iswa->get_base();
    }
    const auto * kv = dynamic_cast<const llama_kv_cache *>(memory);
    return kv ? kv->get_restkv() : nullptr;
}
