#include "llama-restkv-pool.h"

#include "llama-hparams.h"
#include "llama-kv-cache.h"
#include "llama-kv-cache-iswa.h"

#include <algorithm>
#include <stdexcept>

llama_restkv_pool::llama_restkv_pool(
        const llama_hparams & hparams, ggml_type type_k, ggml_type type_v, uint32_t n_rows, uint32_t n_ring) :
    n_rows(n_rows), n_ring(n_ring), type_k(type_k), type_v(type_v),
    softcap(hparams.attn_soft_cap ? hparams.f_attn_logit_softcapping : 0.0f),
    hparams(hparams), ring_slot(n_ring, 0) {
}

void llama_restkv_pool::add_layer(uint32_t il, ggml_backend_buffer_type_t buft) {
    llama_restkv_layer layer;
    layer.il        = il;
    layer.n_head    = hparams.n_head(il);
    layer.n_head_kv = hparams.n_head_kv(il);
    layer.n_gqa     = layer.n_head/layer.n_head_kv;
    layer.buft      = buft;
    layer.idx_col   = n_cols;

    n_cols += layer.n_head_kv;

    index[il] = layers.size();
    layers.push_back(std::move(layer));
}

void llama_restkv_pool::alloc() {
    // devices in order of first use
    std::vector<ggml_backend_buffer_type_t> bufts;
    for (const auto & layer : layers) {
        if (std::find(bufts.begin(), bufts.end(), layer.buft) == bufts.end()) {
            bufts.push_back(layer.buft);
        }
    }

    const auto new_ctx = [](size_t n_tensors) {
        ggml_init_params params = {
            /*.mem_size   =*/ n_tensors*ggml_tensor_overhead(),
            /*.mem_buffer =*/ nullptr,
            /*.no_alloc   =*/ true,
        };
        return ggml_context_ptr(ggml_init(params));
    };

    for (auto * buft : bufts) {
        std::vector<llama_restkv_layer *> mine;
        int64_t rows = 0;
        for (auto & layer : layers) {
            if (layer.buft != buft) {
                continue;
            }
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                layer.segment.push_back(rows);
                rows += n_rows;
            }
            mine.push_back(&layer);
        }

        const int64_t head_dim_k = hparams.n_embd_head_k(mine[0]->il);
        const int64_t head_dim_v = hparams.n_embd_head_v(mine[0]->il);
        for (const auto * layer : mine) {
            if (hparams.n_embd_head_k(layer->il) != head_dim_k || hparams.n_embd_head_v(layer->il) != head_dim_v) {
                throw std::runtime_error("restkv: layers of one device differ in head size; the pool needs one size");
            }
        }

        auto ctx_kv = new_ctx(2 + 2*mine.size());

        ggml_tensor * pool_k = ggml_new_tensor_2d(ctx_kv.get(), type_k, head_dim_k, rows);
        ggml_tensor * pool_v = ggml_new_tensor_2d(ctx_kv.get(), type_v, head_dim_v, rows);
        ggml_set_name(pool_k, "restkv_pool_k");
        ggml_set_name(pool_v, "restkv_pool_v");

        auto ctx_scoring = new_ctx(2*mine.size());

        for (auto * layer : mine) {
            layer->pool_k = pool_k;
            layer->pool_v = pool_v;

            const auto alias = [&](ggml_tensor * pool) {
                const int64_t n_embd = pool->ne[0]*layer->n_head_kv;
                const size_t  row    = ggml_row_size(pool->type, n_embd);
                return ggml_view_3d(ctx_kv.get(), pool, n_embd, n_rows, 1, row, row*n_rows, layer->segment[0]*pool->nb[1]);
            };
            layer->alias_k = alias(pool_k);
            layer->alias_v = alias(pool_v);

            layer->ring    = ggml_new_tensor_2d(ctx_scoring.get(), GGML_TYPE_F32, head_dim_k*layer->n_head, n_ring);
            layer->factors = ggml_new_tensor_3d(ctx_scoring.get(), GGML_TYPE_F32, head_dim_v, head_dim_v*layer->n_gqa, layer->n_head_kv);
            ggml_format_name(layer->ring,    "restkv_ring_l%d",    (int) layer->il);
            ggml_format_name(layer->factors, "restkv_factors_l%d", (int) layer->il);
        }

        for (auto * ctx : { &ctx_kv, &ctx_scoring }) {
            ggml_backend_buffer_ptr buf(ggml_backend_alloc_ctx_tensors_from_buft(ctx->get(), buft));
            if (!buf) {
                throw std::runtime_error("restkv: the device has no room for the KV pool");
            }
            ggml_backend_buffer_clear(buf.get(), 0); // unused rows are masked, but NaN would leak through 0*NaN
            if (ctx == &ctx_scoring) {
                // tells the scheduler to contract on the device that owns the layer
                ggml_backend_buffer_set_usage(buf.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
                bytes_scoring += ggml_backend_buffer_get_size(buf.get());
            }
            bufs.emplace_back(std::move(*ctx), std::move(buf));
        }

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

    for (const auto & layer : layers) {
        int64_t * out = data.data() + layer.idx_col*n_tokens;
        for (size_t t = 0; t < n_tokens; ++t) {
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                *out++ = layer.segment[h] + slots[t];
            }
        }
    }

    if (with_ring) {
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

// [head_dim, n_head_kv, n_kv, 1], as upstream's caches return it
static ggml_tensor * segment_view(ggml_context * ctx, ggml_tensor * pool, const llama_restkv_layer & layer, uint32_t n_rows, uint32_t n_kv) {
    const size_t row = pool->nb[1];
    return ggml_view_4d(ctx, pool, pool->ne[0], layer.n_head_kv, n_kv, 1,
            row*n_rows, row, row*n_rows*layer.n_head_kv, row*layer.segment[0]);
}

ggml_tensor * llama_restkv_pool::get_k(ggml_context * ctx, int32_t il, uint32_t n_kv) const {
    const auto & layer = *find(il);
    return segment_view(ctx, layer.pool_k, layer, n_rows, n_kv);
}

ggml_tensor * llama_restkv_pool::get_v(ggml_context * ctx, int32_t il, uint32_t n_kv) const {
    const auto & layer = *find(il);
    return segment_view(ctx, layer.pool_v, layer, n_rows, n_kv);
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
        const llm_graph_context & g, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
        ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale, int il) {
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

    // attend: the same operations as upstream's flash attention branch, on head-major rows
    q = ggml_view_4d(ctx, q, q->ne[0], q->ne[1], q->ne[2], 1, q->nb[1], q->nb[2], q->nb[2]*q->ne[2], 0);

    q = ggml_permute(ctx, q, 0, 2, 1, 3);
    k = ggml_permute(ctx, k, 0, 2, 1, 3);
    v = ggml_permute(ctx, v, 0, 2, 1, 3);

    ggml_tensor * cur = ggml_flash_attn_ext(ctx, q, k, v, kq_mask, kq_scale, hparams.f_max_alibi_bias, softcap);
    g.res->add_fused_node({LLM_FUSED_OP_FLASH_ATTN, cur, il});
    ggml_flash_attn_ext_add_sinks(cur, sinks);
    ggml_prec_set_acc(cur, GGML_PREC_F32);

    cur = ggml_reshape_2d(ctx, cur, cur->ne[0]*cur->ne[1], cur->ne[2]*cur->ne[3]);
    ggml_build_forward_expand(g.gf, cur);

    return cur;
}

std::vector<int32_t> llama_restkv_pool::window_rows(uint32_t n_used, uint32_t n_max) const {
    std::vector<int32_t> rows;
    for (uint32_t i = 0; i < std::min(n_seen, n_max); ++i) {
        const uint32_t row = (ring_next + n_ring - 1 - i)%n_ring;
        // slots run down from the newest row without a gap; anything else was removed from the tail
        if (ring_slot[row] + 1 + i != n_used) {
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

llama_restkv_pool * llama_restkv_pool_of(const llama_memory_context_i * mctx, int32_t il) {
    llama_restkv_pool * pool = nullptr;
    if (const auto * kv = dynamic_cast<const llama_kv_cache_context *>(mctx)) {
        pool = kv->get_restkv();
    } else if (const auto * iswa = dynamic_cast<const llama_kv_cache_iswa_context *>(mctx)) {
        pool = iswa->get_base()->get_restkv();
    }
    return pool && pool->find(il) ? pool : nullptr;
}
