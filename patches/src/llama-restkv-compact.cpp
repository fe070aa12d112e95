#include "llama-restkv-compact.h"
#include "llama-restkv-run.h"

#include "llama-context.h"
#include "llama-model.h"

#include <cmath>

namespace {

// The segments of a layer as rows of 32-bit words: quantised rows then move as they are, with no new rounding.
ggml_tensor * words_view(ggml_context * ctx, ggml_tensor * pool, const llama_restkv_layer & layer, uint32_t n_rows, uint32_t n) {
    ggml_tensor * view = ggml_new_tensor_3d(ctx, GGML_TYPE_I32, pool->nb[1]/sizeof(int32_t), n, layer.n_head_kv);
    view->view_src  = pool;
    view->view_offs = layer.segment[0]*pool->nb[1];
    view->data      = (char *) pool->data + view->view_offs;
    view->buffer    = pool->buffer;
    view->nb[1]     = pool->nb[1];
    view->nb[2]     = pool->nb[1]*n_rows;
    view->nb[3]     = view->nb[2]*layer.n_head_kv;
    return view;
}

ggml_tensor * typed_view(ggml_context * ctx, ggml_tensor * pool, const llama_restkv_layer & layer, uint32_t n_rows, uint32_t n) {
    return ggml_view_3d(ctx, pool, pool->ne[0], n, layer.n_head_kv,
            pool->nb[1], pool->nb[1]*n_rows, pool->nb[1]*layer.segment[0]);
}

// RoPE by a difference of positions. Rotations add up, so R(p + shift) = R(shift) R(p) for every type whose angle is
// linear in the position. YaRN's magnitude is already in the key: the factor is chosen so that its net effect is 1.
ggml_tensor * rotate(ggml_context * ctx, ggml_tensor * k, ggml_tensor * shift, const llama_model & model, const llama_cparams & cparams, int32_t il) {
    const auto & hparams = model.hparams;

    const float freq_scale = model.get_rope_freq_scale(cparams, il);
    const float ext_factor = cparams.yarn_ext_factor;
    const float magnitude  = ext_factor != 0.0f ? 1.0f/(1.0f + 0.1f*logf(1.0f/freq_scale)) : 1.0f;

    const int64_t n_keep = k->ne[1];
    const int64_t n_head = k->ne[2];

    ggml_tensor * cur = ggml_reshape_3d(ctx, k, k->ne[0], 1, n_keep*n_head);
    cur = ggml_rope_ext(ctx, cur, shift, model.get_rope_factors(cparams, il), hparams.n_rot(il), hparams.rope_type,
            cparams.n_ctx_orig_yarn, model.get_rope_freq_base(cparams, il), freq_scale,
            ext_factor, magnitude, cparams.yarn_beta_fast, cparams.yarn_beta_slow);
    return ggml_reshape_3d(ctx, cur, k->ne[0], n_keep, n_head);
}

} // namespace

void llama_restkv_compact_layers(llama_context * ctx, llama_restkv_pool & pool, uint32_t n_used,
        const int32_t * keep, uint32_t n_keep, const int32_t * shift) {
    // one graph for all layers: either all rows move or none
    llama_restkv_run run(ctx, 16*pool.layers.size());
    ggml_context * c = run.get_ctx();

    size_t offset = 0;
    for (const auto & layer : pool.layers) {
        const int64_t n = int64_t(n_keep)*layer.n_head_kv;
        ggml_tensor * idxs = run.input(GGML_TYPE_I32, keep + offset, n_keep, layer.n_head_kv);

        const auto move = [&](ggml_tensor * rows) {
            ggml_tensor * cur = ggml_get_rows(c, words_view(c, rows, layer, pool.n_rows, n_used), idxs);
            run.expand(ggml_cpy(c, cur, words_view(c, rows, layer, pool.n_rows, n_keep)));
        };

        if (shift && ctx->get_model().hparams.has_rope(layer.il)) {
            ggml_tensor * k   = ggml_get_rows(c, typed_view(c, layer.pool_k, layer, pool.n_rows, n_used), idxs);
            ggml_tensor * pos = run.input(GGML_TYPE_I32, shift + offset, n);
            k = rotate(c, k, pos, ctx->get_model(), ctx->get_cparams(), layer.il);
            run.expand(ggml_cpy(c, k, typed_view(c, layer.pool_k, layer, pool.n_rows, n_keep)));
        } else {
            move(layer.pool_k);
        }
        move(layer.pool_v);
        offset += n;
    }
    run.compute();
}
