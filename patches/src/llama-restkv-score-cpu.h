#pragma once

#include "ggml.h"

// How a window attends, for two of the operations below.
struct llama_restkv_attention_args {
    float   scale;
    float   softcap; // 0: none
    int32_t n_weights;
};

// Queries that are reduced at a time: their attention stays in the second cache.
constexpr int64_t LLAMA_RESTKV_N_QUERY = 24;

// Scoring's dense operations on a CPU, for ggml_custom_4d, norms for ggml_custom_inplace. All but maximum are null where the
// compiler has no vectors: ggml's serve. Rows come by index from where they lie, [head_dim, n_rows] of any type, idxs
// [n_used*n_head_kv]: no copy of them is made. The slots before absent [n_head_kv] are left out: shares and distances are 0.
struct llama_restkv_score_cpu {
    ggml_custom_op_t maximum;    // attn [n_used, n_window, n_head] -> [n_used, 1, n_head]
    // rows of k, idxs, absent, q [head_dim, n_window, n_head], mask [n_used, n_window], sinks [n_head] or null, userdata: the args
    ggml_custom_op_t attention;  // -> [n_used, n_window, n_head]
    ggml_custom_op_t reductions; // weights [n_weights, n_window, n_head] or null -> [n_used, n_head, n_weights or, with the maximum, one more, n_part]
    ggml_custom_op_t combined;   // those -> [n_used, n_head, ...]
    ggml_custom_op_t outputs;    // rows of v, idxs, absent, attn [n_used, n, n_head] -> [head_dim, n, n_head]
    ggml_custom_op_t norms;      // norms [n_gqa or more, n_rows] in place, rows of v, idxs, absent, factors, userdata: slots that have them
    ggml_custom_op_t distance;   // rows of v, idxs, absent, factors, norms, z [head_dim, n_z, n_head] or null -> [n_used, n_z, n_head]
};

const llama_restkv_score_cpu & llama_restkv_score_on_cpu();
