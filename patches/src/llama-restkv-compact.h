#pragma once

#include "llama-restkv-pool.h"

// keep, shift: (n_layer, n_head_kv, n_keep); shift may be null. Every layer or none.
void llama_restkv_compact_layers(llama_context * ctx, llama_restkv_pool & pool, uint32_t n_used,
        const int32_t * keep, uint32_t n_keep, const int32_t * shift);
