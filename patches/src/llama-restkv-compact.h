#pragma once

#include "llama-restkv-pool.h"

// n_keep: rows of each (layer, KV head); keep, shift: their slots and changes of rotation, one after the other; shift
// may be null. Every layer or none.
void llama_restkv_compact_layers(llama_context * ctx, llama_restkv_pool & pool,
        const int32_t * n_keep, const int32_t * keep, const int32_t * shift);
