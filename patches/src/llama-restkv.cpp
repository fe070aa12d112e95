// The C entries: check, call, translate exceptions into a status and a line.

#include "llama-restkv.h"

#include "llama-restkv-compact.h"
#include "llama-restkv-keys.h"
#include "llama-restkv-pool.h"
#include "llama-restkv-run.h"
#include "llama-restkv-score.h"
#include "llama-restkv-state.h"

#include "llama-context.h"
#include "llama-kv-cache.h"
#include "llama-kv-cache-iswa.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <string>

namespace {

thread_local std::string last_error;
thread_local llama_restkv_armed_args armed = { 0, 0 };

bool abort_callback(void * data) {
    const auto * flag = static_cast<const llama_restkv_abort_flag *>(data);
    return flag->asked.load(std::memory_order_relaxed) && !flag->held.load(std::memory_order_relaxed);
}

bool disabled() {
    static const bool res = [] {
        const char * env = std::getenv("RESTKV_DISABLE");
        return env && *env && std::strcmp(env, "0") != 0;
    }();
    return res;
}

int32_t guarded(const std::function<int32_t()> & fn) {
    try {
        last_error.clear();
        return fn();
    } catch (const llama_restkv_error & err) {
        last_error = err.what();
        return err.status;
    } catch (const std::bad_alloc &) {
        last_error = "no memory left";
        return LLAMA_RESTKV_NO_MEMORY;
    } catch (const std::exception & err) {
        last_error = err.what();
        return LLAMA_RESTKV_FAILED;
    }
}

// Rows and cells change together: without memory in between, nobody knows what the cache holds.
void changing(const std::function<void()> & fn) {
    try {
        fn();
    } catch (const std::bad_alloc &) {
        throw llama_restkv_error(LLAMA_RESTKV_FAILED, "no memory left in the middle of a change of the cache");
    }
}

llama_kv_cache * cache_of(const llama_context * ctx) {
    auto * memory = ctx ? ctx->get_memory() : nullptr;
    if (auto * iswa = dynamic_cast<llama_kv_cache_iswa *>(memory)) {
        return iswa->get_base();
    }
    return dynamic_cast<llama_kv_cache *>(memory);
}

llama_kv_cache & cache_checked(const llama_context * ctx) {
    auto * kv = cache_of(ctx);
    if (!kv || !kv->get_restkv()) {
        throw llama_restkv_error(LLAMA_RESTKV_UNSUPPORTED, disabled()
            ? "the hooks are off because RESTKV_DISABLE is set"
            : "this context has no KV pool: create it between llama_restkv_arm() and llama_restkv_disarm()");
    }
    return *kv;
}

uint32_t used_checked(const llama_kv_cache & kv) {
    const auto & cells = kv.get_cells(0);
    if (cells.used_max_p1() != cells.get_used()) {
        throw llama_restkv_error(LLAMA_RESTKV_FAILED, "slots in use are not dense: "
            + std::to_string(cells.get_used()) + " used, highest " + std::to_string(cells.used_max_p1()));
    }
    return cells.get_used();
}

llama_restkv_layer & layer_checked(llama_restkv_pool & pool, int32_t i) {
    if (i < 0 || (size_t) i >= pool.layers.size()) {
        throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "layer " + std::to_string(i) + " is not below " + std::to_string(pool.layers.size()));
    }
    return pool.layers[i];
}

void check_keep(const llama_restkv_pool & pool, uint32_t n_used, const int32_t * n_keep, const int32_t * keep) {
    for (const auto & layer : pool.layers) {
        for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
            const auto where = "layer " + std::to_string(layer.il) + " head " + std::to_string(h);
            const int32_t n = n_keep[layer.idx_col + h];
            if (n < 1 || (n != n_keep[0] && pool.n_slots == pool.n_rows)) {
                throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, where + ": n_keep = " + std::to_string(n) + (n < 1
                    ? " must be at least 1" : " differs from the first head's; arm the context with n_rows for unequal segments"));
            }
            for (int32_t j = 0, prev = (int32_t) layer.segments.absent[h] - 1; j < n; ++j, ++keep) {
                if (*keep <= prev || *keep >= (int32_t) n_used) {
                    throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, where + ": keep[" + std::to_string(j) + "] = " + std::to_string(*keep)
                        + " is not in (" + std::to_string(prev) + ", " + std::to_string(n_used) + ")");
                }
                prev = *keep;
            }
        }
    }
    if (const auto [n, buft] = pool.n_lacking(n_keep); n > 0) {
        throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, std::string("the plan gives ") + ggml_backend_buft_name(buft) + " "
            + std::to_string(n) + " rows more than its pool has: an allocation that shares between layers needs them on one device");
    }
}

void check_window(const llama_restkv_pool & pool, uint32_t n_used, int32_t n_window, int32_t n_skip) {
    const int32_t n_observed = pool.window_rows(n_used, pool.n_ring).size();
    if (n_window < 1 || n_skip < 0 || n_skip + n_window > n_observed) {
        throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "n_skip + n_window = " + std::to_string(n_skip) + " + " + std::to_string(n_window)
            + " is not in [1, " + std::to_string(n_observed) + "], the observed queries");
    }
}

llama_kv_cache & state_checked(const llama_context * ctx) {
    auto & kv = cache_checked(ctx);
    if (dynamic_cast<const llama_kv_cache_iswa *>(ctx->get_memory())) {
        throw llama_restkv_error(LLAMA_RESTKV_UNSUPPORTED, "layers with a sliding window keep a cache of their own, which a state does not cover");
    }
    return kv;
}

// host copy of the used rows as float32
void read_rows(const ggml_tensor * pool, const llama_restkv_layer & layer, uint32_t n_used, float * out) {
    const auto * traits = ggml_get_type_traits(pool->type);
    std::vector<uint8_t> raw(n_used*pool->nb[1]);
    for (uint32_t h = 0; h < layer.n_head_kv; ++h, out += n_used*pool->ne[0]) {
        const uint32_t absent = layer.segments.absent[h];
        const int64_t  n      = (n_used - absent)*pool->ne[0];
        float * first = out + absent*pool->ne[0];
        std::fill(out, first, 0.0f);
        ggml_backend_tensor_get(pool, raw.data(), (layer.segments.base[h] + absent)*pool->nb[1], (n_used - absent)*pool->nb[1]);
        if (pool->type == GGML_TYPE_F32) {
            std::memcpy(first, raw.data(), n*sizeof(float));
        } else {
            traits->to_float(raw.data(), first, n);
        }
    }
}

} // namespace

llama_restkv_armed_args llama_restkv_armed() {
    return disabled() ? llama_restkv_armed_args { 0, 0 } : armed;
}

// belongs to llama_kv_cache because cells and heads are private to it
void llama_kv_cache::restkv_rewrite_cells(uint32_t n, llama_pos pos) {
    auto & cells = v_cells[0];
    cells.reset();
    for (uint32_t i = 0; i < n; ++i) {
        cells.pos_set(i, pos - llama_pos(n - 1 - i));
        cells.seq_add(i, 0);
    }
    v_heads[0] = n;
}

llama_restkv_pool * llama_kv_cache_context::get_restkv() const {
    return kv->get_restkv();
}

int32_t      llama_restkv_abi_version(void) { return LLAMA_RESTKV_ABI; }
const char * llama_restkv_pin        (void) { return LLAMA_RESTKV_PIN; }
int32_t      llama_restkv_enabled    (void) { return disabled() ? 0 : 1; }
const char * llama_restkv_last_error (void) { return last_error.c_str(); }

int32_t llama_restkv_arm(int32_t n_ring, int32_t n_rows) {
    return guarded([&]() -> int32_t {
        if (n_ring < 1) {
            throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "n_ring = " + std::to_string(n_ring) + " must be at least 1");
        }
        if (n_rows < 0) {
            throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "n_rows = " + std::to_string(n_rows) + " must be at least 0");
        }
        armed = { (uint32_t) n_ring, (uint32_t) n_rows };
        return LLAMA_RESTKV_OK;
    });
}

void llama_restkv_disarm(void) {
    armed = { 0, 0 };
}

int32_t llama_restkv_attach(llama_context * ctx) {
    return guarded([&]() -> int32_t {
        const auto & kv = cache_checked(ctx);
        auto & pool = *kv.get_restkv();
        const auto & first = pool.layers[0];
        if (!ctx->get_cparams().flash_attn) {
            throw llama_restkv_error(LLAMA_RESTKV_UNSUPPORTED, "flash attention is off or the device has no kernel for this head size");
        }
        if (kv.get_n_seq_max() != 1) {
            throw llama_restkv_error(LLAMA_RESTKV_UNSUPPORTED, "one sequence per context; n_seq_max = " + std::to_string(kv.get_n_seq_max()));
        }
        for (const auto * rows : { first.pool_k, first.pool_v }) {
            if (rows->nb[1]%sizeof(int32_t) != 0) {
                throw llama_restkv_error(LLAMA_RESTKV_UNSUPPORTED, std::string("rows of ") + ggml_type_name(rows->type) + " with head size "
                    + std::to_string(rows->ne[0]) + " are " + std::to_string(rows->nb[1]) + " bytes, not whole 32-bit words");
            }
        }
        // llama.cpp takes a model's long RoPE factors by the size of a context, which here is its rows, not what a segment may
        // grow to. Once a context is made only they look at n_ctx_seq; the graph it was made with must not stay.
        const_cast<llama_cparams &>(ctx->get_cparams()).n_ctx_seq = GGML_PAD(pool.n_rows, 256);
        ctx->restkv_reset_graphs();
        const auto & model = ctx->get_model();
        const auto * factors = model.get_rope_factors(ctx->get_cparams(), first.il);
        pool.rope_long = factors && factors == model.layers[first.il].rope_long;
        ctx->set_abort_callback(abort_callback, &pool.abort);
        return LLAMA_RESTKV_OK;
    });
}

void llama_restkv_abort(llama_context * ctx, bool abort) {
    const auto * kv = cache_of(ctx); // what it looks at stays as it is while the context lives, so any thread may
    if (auto * pool = kv ? kv->get_restkv() : nullptr) {
        pool->abort.asked = abort;
    }
}

int32_t llama_restkv_n_layer(const llama_context * ctx) {
    return guarded([&] { return (int32_t) cache_checked(ctx).get_restkv()->layers.size(); });
}

int32_t llama_restkv_layer_info(const llama_context * ctx, int32_t i, int32_t * n_head, int32_t * n_head_kv, int32_t * head_dim_k, int32_t * head_dim_v,
                                int32_t * device) {
    return guarded([&]() -> int32_t {
        auto & pool = *cache_checked(ctx).get_restkv();
        const auto & layer = layer_checked(pool, i);
        *n_head     = layer.n_head;
        *n_head_kv  = layer.n_head_kv;
        *head_dim_k = layer.pool_k->ne[0];
        *head_dim_v = layer.pool_v->ne[0];
        *device     = pool.device_of(layer);
        return layer.il;
    });
}

int32_t llama_restkv_capacity(const llama_context * ctx) {
    return guarded([&] { return (int32_t) cache_checked(ctx).get_restkv()->n_rows; });
}

int32_t llama_restkv_used(const llama_context * ctx) {
    return guarded([&] { return (int32_t) used_checked(cache_checked(ctx)); });
}

int32_t llama_restkv_room(const llama_context * ctx) {
    return guarded([&] {
        const auto & kv = cache_checked(ctx);
        return (int32_t) (kv.get_restkv()->slot_end - used_checked(kv));
    });
}

int64_t llama_restkv_bytes(const llama_context * ctx, int32_t kind) {
    int64_t res = 0;
    const int32_t status = guarded([&]() -> int32_t {
        const auto & pool = *cache_checked(ctx).get_restkv();
        switch (kind) {
            case LLAMA_RESTKV_BYTES_K:       res = pool.bytes_k;       break;
            case LLAMA_RESTKV_BYTES_V:       res = pool.bytes_v;       break;
            case LLAMA_RESTKV_BYTES_SCORING: res = pool.bytes_scoring; break;
            case LLAMA_RESTKV_BYTES_OTHER:
                for (const auto & [buft, size] : ctx->get_memory()->memory_breakdown()) {
                    res += size;
                }
                break;
            default:
                throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "kind = " + std::to_string(kind) + " is not a llama_restkv_bytes_kind");
        }
        return LLAMA_RESTKV_OK;
    });
    return status == LLAMA_RESTKV_OK ? res : status;
}

int32_t llama_restkv_v_rotated(const llama_context * ctx) {
    return guarded([&]() -> int32_t {
        // the cache creates a rotation input exactly when it stores V rotated
        ggml_init_params params = { ggml_tensor_overhead(), nullptr, true };
        ggml_context_ptr tmp(ggml_init(params));
        return cache_checked(ctx).build_input_v_rot(tmp.get()) ? 1 : 0;
    });
}

int32_t llama_restkv_k_rotated(const llama_context * ctx) {
    return guarded([&]() -> int32_t {
        ggml_init_params params = { ggml_tensor_overhead(), nullptr, true };
        ggml_context_ptr tmp(ggml_init(params));
        const auto * rot = cache_checked(ctx).build_input_k_rot(tmp.get());
        return rot ? rot->ne[0] : 0;
    });
}

int32_t llama_restkv_n_observed(const llama_context * ctx) {
    return guarded([&] {
        const auto & kv = cache_checked(ctx);
        return (int32_t) kv.get_restkv()->window_rows(used_checked(kv), kv.get_restkv()->n_ring).size();
    });
}

int32_t llama_restkv_clear(llama_context * ctx) {
    return guarded([&]() -> int32_t {
        auto & pool = *cache_checked(ctx).get_restkv();
        ctx->synchronize();
        ctx->get_memory()->clear(true); // the window cache's rows too
        pool.forget_queries();
        pool.reset_layout();
        pool.zero_rows();
        ctx->restkv_reset_graphs();
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_set_turned(llama_context * ctx, int32_t i, bool turned) {
    return guarded([&]() -> int32_t {
        layer_checked(*cache_checked(ctx).get_restkv(), i).turned = turned;
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_decode(llama_context * ctx, llama_token * tokens, int32_t n_tokens, bool probe) {
    return guarded([&]() -> int32_t {
        if (cache_checked(ctx).get_restkv()->set_probe(probe)) {
            ctx->synchronize();
            ctx->restkv_reset_graphs();
        }
        const int32_t status = llama_decode(ctx, llama_batch_get_one(tokens, n_tokens));
        ctx->synchronize(); // else what is timed, stopped or scored next would be something else
        if (status < 0) {
            throw llama_restkv_error(LLAMA_RESTKV_FAILED, "llama_decode returned " + std::to_string(status));
        }
        return status;
    });
}

int32_t llama_restkv_set_factors(llama_context * ctx, int32_t i, const float * factors) {
    return guarded([&]() -> int32_t {
        auto & pool = *cache_checked(ctx).get_restkv();
        auto * cur = layer_checked(pool, i).factors;
        pool.n_normed = 0;
        ggml_backend_tensor_set(cur, factors, 0, ggml_nbytes(cur));
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_score(
        llama_context * ctx,
        int32_t flags, int32_t n_window, int32_t n_skip, int32_t n_weights, const float * weights,
        float tau, int32_t top_k, const float * positions,
        float * attention, float * metric, float * drift) {
    return guarded([&]() -> int32_t {
        const auto & kv = cache_checked(ctx);
        auto & pool = *kv.get_restkv();
        const uint32_t n_used = used_checked(kv);
        check_window(pool, n_used, n_window, n_skip);
        const auto asked = [flags](int32_t flag) { return (flags & flag) != 0; };
        const bool needs_o = asked(LLAMA_RESTKV_AGGREGATE) || asked(LLAMA_RESTKV_PER_QUERY);
        if (n_weights < 0 || (needs_o && !asked(LLAMA_RESTKV_REDUCE_MAX) && n_weights == 0)
                || (asked(LLAMA_RESTKV_REDUCE_MAX) && !asked(LLAMA_RESTKV_MAX))) {
            throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "the metric needs a reduction over the window");
        }
        const int n_metric = asked(LLAMA_RESTKV_AGGREGATE) + asked(LLAMA_RESTKV_PER_QUERY) + asked(LLAMA_RESTKV_VALUE_NORM);
        if (n_metric > 1 || (n_metric == 1) != (metric != nullptr)) {
            throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "one metric at most, and memory for it exactly when there is one");
        }
        if ((flags & LLAMA_RESTKV_DRIFT) && (top_k < 1 || !positions || !drift)) {
            throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "drift needs top_k >= 1 and positions");
        }
        llama_restkv_score_layers(ctx, pool, n_used,
            { flags, n_window, n_skip, n_weights, weights, tau, top_k, positions, attention, metric, drift });
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_key_direction(llama_context * ctx, float * cosine) {
    return guarded([&]() -> int32_t {
        const auto & kv = cache_checked(ctx);
        llama_restkv_key_direction_layers(ctx, *kv.get_restkv(), used_checked(kv), cosine);
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_query_moments(llama_context * ctx, int32_t n_window, int32_t n_skip, const float * basis, float * first, float * second) {
    return guarded([&]() -> int32_t {
        const auto & kv = cache_checked(ctx);
        const auto & pool = *kv.get_restkv();
        const uint32_t n_used = used_checked(kv);
        check_window(pool, n_used, n_window, n_skip);
        auto rows = pool.window_rows(n_used, n_skip + n_window);
        rows.resize(n_window);
        std::vector<llama_pos> positions;
        for (const uint32_t slot : pool.window_slots(rows)) {
            positions.push_back(kv.get_cells(0).pos_get(slot));
        }
        llama_restkv_query_moments_layers(ctx, pool, rows, positions, basis, first, second);
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_mean_rotation(llama_context * ctx, int32_t i, llama_pos pos, int32_t n, float * rotation) {
    return guarded([&]() -> int32_t {
        if (n < 1) {
            throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "n = " + std::to_string(n) + " must be at least 1");
        }
        llama_restkv_mean_rotation_layer(ctx, layer_checked(*cache_checked(ctx).get_restkv(), i), pos, n, rotation);
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_expected(llama_context * ctx, const float * mean, const float * root, float * logits) {
    return guarded([&]() -> int32_t {
        const auto & kv = cache_checked(ctx);
        llama_restkv_expected_layers(ctx, *kv.get_restkv(), used_checked(kv), mean, root, logits);
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_compact(llama_context * ctx, const int32_t * n_keep, const int32_t * keep, const int32_t * shift, llama_pos pos) {
    return guarded([&]() -> int32_t {
        auto & kv = cache_checked(ctx);
        auto & pool = *kv.get_restkv();
        check_keep(pool, used_checked(kv), n_keep, keep);
        if (shift && ggml_is_quantized(pool.type_k)) {
            throw llama_restkv_error(LLAMA_RESTKV_UNSUPPORTED, std::string("keys of type ") + ggml_type_name(pool.type_k)
                + " cannot be rotated again and again: rounding adds up");
        }
        const int32_t n_most = *std::max_element(n_keep, n_keep + pool.n_cols);
        if (pos < n_most - 1) {
            throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "pos = " + std::to_string(pos) + " leaves no room for " + std::to_string(n_most) + " rows");
        }
        auto & held = pool.abort.held;
        held = true;
        try {
            llama_restkv_compact_layers(ctx, pool, n_keep, keep, shift);
        } catch (...) {
            held = false;
            throw;
        }
        held = false;
        changing([&] { kv.restkv_rewrite_cells(n_most, pos); });
        pool.forget_queries(); // their slots, and with shift their rotation, are those of before
        return LLAMA_RESTKV_OK;
    });
}

int64_t llama_restkv_state_size(const llama_context * ctx) {
    int64_t res = 0;
    const int32_t status = guarded([&]() -> int32_t {
        auto & kv = state_checked(ctx);
        res = llama_restkv_state_bytes(*kv.get_restkv(), used_checked(kv));
        return LLAMA_RESTKV_OK;
    });
    return status == LLAMA_RESTKV_OK ? res : status;
}

int32_t llama_restkv_state_get(llama_context * ctx, void * data, int64_t size) {
    return guarded([&]() -> int32_t {
        auto & kv = state_checked(ctx);
        const auto & pool = *kv.get_restkv();
        const uint32_t n_used = used_checked(kv);
        const int64_t want = llama_restkv_state_bytes(pool, n_used);
        if (size != want) {
            throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "size = " + std::to_string(size) + " is not llama_restkv_state_size() = " + std::to_string(want));
        }
        ctx->synchronize();
        llama_restkv_state_write(pool, n_used, n_used ? kv.get_cells(0).pos_get(n_used - 1) : -1, data);
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_state_rows(const llama_context * ctx, const void * data, int64_t size, int32_t * n_rows) {
    return guarded([&]() -> int32_t {
        const auto & pool = *state_checked(ctx).get_restkv();
        const auto head = llama_restkv_state_check(pool, data, size);
        std::memcpy(n_rows, static_cast<const uint8_t *>(data) + sizeof(head), pool.n_cols*sizeof(int32_t));
        return head.n_used;
    });
}

int32_t llama_restkv_state_set(llama_context * ctx, const void * data, int64_t size) {
    return guarded([&]() -> int32_t {
        auto & kv = state_checked(ctx);
        auto & pool = *kv.get_restkv();
        const auto head = llama_restkv_state_check(pool, data, size);
        ctx->synchronize();
        changing([&] {
            llama_restkv_state_read(pool, data);
            kv.restkv_rewrite_cells(head.n_used, head.pos);
        });
        ctx->restkv_reset_graphs();
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_read(llama_context * ctx, int32_t i, int32_t tensor, int32_t n_window, float * out) {
    return guarded([&]() -> int32_t {
        const auto & kv = cache_checked(ctx);
        auto & pool = *kv.get_restkv();
        const auto & layer = layer_checked(pool, i);
        const uint32_t n_used = used_checked(kv);
        ctx->synchronize();
        switch (tensor) {
            case LLAMA_RESTKV_TENSOR_K: read_rows(layer.pool_k, layer, n_used, out); break;
            case LLAMA_RESTKV_TENSOR_V: read_rows(layer.pool_v, layer, n_used, out); break;
            case LLAMA_RESTKV_TENSOR_Q:
                for (const int32_t row : pool.window_rows(n_used, n_window)) {
                    ggml_backend_tensor_get(layer.ring, out, row*layer.ring->nb[1], layer.ring->nb[1]);
                    out += layer.ring->ne[0];
                }
                break;
            default:
                throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "tensor = " + std::to_string(tensor) + " is not a llama_restkv_tensor");
        }
        return LLAMA_RESTKV_OK;
    });
}

int32_t llama_restkv_attention_params(const llama_context * ctx, int32_t i, float * scale, float * softcap, int32_t * has_sinks) {
    return guarded([&]() -> int32_t {
        auto & pool = *cache_checked(ctx).get_restkv();
        const auto & layer = layer_checked(pool, i);
        *scale     = layer.scale;
        *softcap   = pool.softcap;
        *has_sinks = layer.sinks != nullptr;
        return LLAMA_RESTKV_OK;
    });
}
