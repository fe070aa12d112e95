#pragma once

#include "llama-restkv-pool.h"

// shapes as in llama-restkv.h
void llama_restkv_key_direction_layers(llama_context * ctx, const llama_restkv_pool & pool, uint32_t n_used, float * cosine);

void llama_restkv_query_moments_layers(llama_context * ctx, const llama_restkv_pool & pool, const std::vector<int32_t> & rows,
        const std::vector<llama_pos> & positions, const float * basis, float * first, float * second);

void llama_restkv_mean_rotation_layer(llama_context * ctx, const llama_restkv_layer & layer, llama_pos pos, int32_t n, float * rotation);

void llama_restkv_expected_layers(llama_context * ctx, const llama_restkv_pool & pool, uint32_t n_used,
        const float * mean, const float * root, float * logits);
