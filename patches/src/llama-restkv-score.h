#pragma once

#include "llama-restkv-pool.h"

struct llama_restkv_score_args {
    int32_t       flags;
    int32_t       n_window;
    int32_t       n_skip;
    int32_t       n_weights;
    const float * weights;   // (n_weights, n_window)
    float         tau;
    int32_t       top_k;
    const float * positions; // (n_layer, n_head_kv, n_used)

    float * attention; // (n_layer, n_weights + flagged rows, n_head, n_used)
    float * metric;    // (n_layer, n_head, n_used) or null
    float * drift;     // (n_layer, n_head, n_window)
};

void llama_restkv_score_layers(llama_context * ctx, llama_restkv_pool & pool, uint32_t n_used, const llama_restkv_score_args & args);
