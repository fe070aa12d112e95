#include "llama-restkv-rope.h"

#include "llama-context.h"
#include "llama-model.h"

#include <cmath>

ggml_tensor * llama_restkv_rotate(const llama_context * lctx, ggml_context * ctx, ggml_tensor * x, ggml_tensor * shift, int32_t il) {
    const auto & model   = lctx->get_model();
    const auto & cparams = lctx->get_cparams();
    const auto & hparams = model.hparams;

    // YaRN's magnitude is already in what is turned: the factor is chosen so that its net effect is 1
    const float freq_scale = model.get_rope_freq_scale(cparams, il);
    const float ext_factor = cparams.yarn_ext_factor;
    const float magnitude  = ext_factor != 0.0f ? 1.0f/(1.0f + 0.1f*logf(1.0f/freq_scale)) : 1.0f;

    const int64_t head_dim = x->ne[0];
    const int64_t n        = x->ne[1];

    x = ggml_reshape_3d(ctx, x, head_dim, 1, n);
    x = ggml_rope_ext(ctx, x, shift, model.get_rope_factors(cparams, il), hparams.n_rot(il), hparams.rope_type,
            cparams.n_ctx_orig_yarn, model.get_rope_freq_base(cparams, il), freq_scale,
            ext_factor, magnitude, cparams.yarn_beta_fast, cparams.yarn_beta_slow);
    return ggml_reshape_2d(ctx, x, head_dim, n);
}
