#pragma once

#include "llama-restkv-pool.h"

struct llama_restkv_state_head {
    uint32_t version;   // of this format
    uint32_t n_col;     // (layer, KV head) segments
    uint32_t row_k;     // bytes of a row
    uint32_t row_v;
    uint32_t n_query;   // observed queries
    uint32_t bytes_query;
    uint32_t n_used;    // slots
    int32_t  pos;       // of the newest row, -1: none
    uint32_t rope_long; // 1: keys are turned by the long of two sets of RoPE factors
};
// then: rows of each segment (int32), K rows, V rows, queries of each layer, oldest first

int64_t llama_restkv_state_bytes(const llama_restkv_pool & pool, uint32_t n_used);
void    llama_restkv_state_write(const llama_restkv_pool & pool, uint32_t n_used, int32_t pos, void * data);

// throws llama_restkv_error and changes nothing where data does not fit the pool
llama_restkv_state_head llama_restkv_state_check(const llama_restkv_pool & pool, const void * data, int64_t size);

// data must have passed the check
void llama_restkv_state_read(llama_restkv_pool & pool, const void * data);
