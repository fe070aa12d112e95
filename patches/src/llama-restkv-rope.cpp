#include "llama-restkv-rope.h"
#include "llama-restkv-rows.h"
#include "llama-restkv-run.h"
#include "llama-restkv-vectors.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>
#include <cmath>

namespace {

// Rows by index, turned: x = a + ib of each pair times cos + i sin, which the table has in the same places. dst: the rows' own
// type as words, or F32.
struct turn {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * rows  = dst->src[0]; // [head_dim, n_rows]
        const ggml_tensor * idxs  = dst->src[1]; // [n]
        const ggml_tensor * shift = dst->src[2]; // [n], none above 0
        const ggml_tensor * table = dst->src[3]; // [head_dim, n_turn]

        const int32_t * rope = static_cast<const int32_t *>(userdata);
        const int64_t head_dim = rows->ne[0];
        const int64_t n_pair   = rope[0]/2;
        const bool    is_neox  = rope[1] == GGML_ROPE_TYPE_NEOX;

        restkv_reader x(rows, idxs);
        std::vector<float> from(head_dim), to(head_dim);

        for (int64_t j = dst->ne[1]*ith/nth; j < dst->ne[1]*(ith + 1)/nth; ++j) {
            x.read(j, 0, head_dim, from.data());
            const float * by = (const float *) table->data - ((const int32_t *) shift->data)[j]*head_dim;
            if (is_neox) {
                for (int64_t i = 0; i < n_pair; ++i) {
                    const float cos = by[i], sin = by[i + n_pair], a = from[i], b = from[i + n_pair];
                    to[i]          = a*cos - b*sin;
                    to[i + n_pair] = a*sin + b*cos;
                }
            } else {
                for (int64_t i = 0; i < 2*n_pair; i += 2) {
                    const float cos = by[i], sin = by[i + 1], a = from[i], b = from[i + 1];
                    to[i]     = a*cos - b*sin;
                    to[i + 1] = a*sin + b*cos;
                }
            }
            std::copy(from.begin() + 2*n_pair, from.end(), to.begin() + 2*n_pair);

            void * out = (char *) dst->data + j*dst->nb[1];
            if (rows->type == GGML_TYPE_F16) {
                restkv_narrow(to.data(), (uint16_t *) out, head_dim);
            } else {
                std::memcpy(out, to.data(), head_dim*sizeof(float));
            }
        }
    }
};

} // namespace

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

llama_restkv_turner::llama_restkv_turner(const llama_context * lctx, llama_restkv_run & run, const int32_t * shift, size_t n)
    : lctx(lctx), run(run) {
    const auto type = lctx->get_model().hparams.rope_type;
    if (n == 0 || (type != LLAMA_ROPE_TYPE_NORM && type != LLAMA_ROPE_TYPE_NEOX)) {
        return;
    }
    const auto [least, most] = std::minmax_element(shift, shift + n);
    if (*most <= 0 && size_t(-int64_t(*least)) < n) {
        for (int32_t turn = 0; turn >= *least; --turn) {
            back.push_back(turn);
        }
    }
}

ggml_tensor * llama_restkv_turner::rotate(ggml_tensor * rows, ggml_tensor * idxs, const int32_t * shift, int32_t il, bool on_host) {
    auto * ctx = run.get_ctx();
    const int64_t n = idxs->ne[0];
    ggml_tensor * by = run.input(GGML_TYPE_I32, shift, n);
    if (!on_host || back.empty()) {
        return llama_restkv_rotate(lctx, ctx, ggml_get_rows(ctx, rows, idxs), by, il);
    }
    const auto & table = table_of(il, rows->ne[0]);
    ggml_tensor * srcs[] = { rows, idxs, by, table.turned };
    const bool stays = rows->type == GGML_TYPE_F16 || rows->type == GGML_TYPE_F32;
    return ggml_custom_4d(ctx, stays ? GGML_TYPE_I32 : GGML_TYPE_F32, stays ? rows->nb[1]/sizeof(int32_t) : rows->ne[0], n, 1, 1,
            srcs, 4, restkv_widest<turn>(), GGML_N_TASKS_MAX, const_cast<int32_t *>(table.rope));
}

const llama_restkv_turner::table & llama_restkv_turner::table_of(int32_t il, int64_t head_dim) {
    const auto & model   = lctx->get_model();
    const auto & cparams = lctx->get_cparams();
    const auto & hparams = model.hparams;

    for (const auto & known : tables) {
        if (known.head_dim == head_dim && hparams.n_rot(known.il) == hparams.n_rot(il)
                && model.get_rope_factors   (cparams, known.il) == model.get_rope_factors   (cparams, il)
                && model.get_rope_freq_base (cparams, known.il) == model.get_rope_freq_base (cparams, il)
                && model.get_rope_freq_scale(cparams, known.il) == model.get_rope_freq_scale(cparams, il)) {
            return known;
        }
    }
    auto & made = tables.emplace_back();
    made.il       = il;
    made.head_dim = head_dim;
    made.rope[0]  = hparams.n_rot(il);
    made.rope[1]  = hparams.rope_type;
    made.unit.resize(back.size()*head_dim);
    for (size_t t = 0; t < back.size(); ++t) {
        for (int32_t i = 0; i < made.rope[0]/2; ++i) {
            made.unit[t*head_dim + (made.rope[1] == LLAMA_ROPE_TYPE_NEOX ? i : 2*i)] = 1.0f;
        }
    }
    ggml_tensor * unit = run.input(GGML_TYPE_F32, made.unit.data(), head_dim, back.size());
    ggml_tensor * pos  = run.input(GGML_TYPE_I32, back.data(), back.size());
    made.turned = llama_restkv_rotate(lctx, run.get_ctx(), unit, pos, il);
    return made;
}
