#pragma once

#include "ggml.h"

// Scoring's dense operations on a CPU, for ggml_custom_4d, softmax for ggml_custom_inplace. All but maximum are null where the
// compiler has no vectors: ggml's serve. Rows come by index from where they lie, [head_dim, n_rows] of any type, idxs
// [n_used*n_head_kv]: no copy of them is made. The slots before absent [n_head_kv] are left out: logits, shares and distances are 0.
struct llama_restkv_score_cpu {
    ggml_custom_op_t maximum;  // attn [n_used, n_window, n_head] -> [n_used, 1, n_head]
    ggml_custom_op_t logits;   // rows of k, idxs, absent, q [head_dim, n_window, n_head] -> [n_used, n_window, n_head]
    ggml_custom_op_t softmax;  // kq [n_used, n_window, n_head] in place, mask [n_used, n_window], absent, userdata: the scale
    ggml_custom_op_t outputs;  // rows of v, idxs, absent, attn [n_used, n, n_head] -> [head_dim, n, n_head]
    ggml_custom_op_t norms;    // norms [n_gqa or more, n_rows] in place, rows of v, idxs, absent, factors, userdata: slots that have them
    ggml_custom_op_t distance; // rows of v, idxs, absent, factors, norms, z [head_dim, n_z, n_head] or null -> [n_used, n_z, n_head]
};

const llama_restkv_score_cpu & llama_restkv_score_on_cpu();
