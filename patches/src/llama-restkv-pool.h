#pragma once

// Storage: one K and one V tensor per device, rows addressed as (layer, KV head) segments, plus the ring of observed
// queries. Everything the graph of a decode needs lives here; scoring and compaction are in files of their own.

#include "llama-graph.h"

#include "ggml-cpp.h"

#include <map>
#include <vector>

struct llama_hparams;

struct llama_restkv_layer {
    uint32_t il;
    uint32_t n_head;
    uint32_t n_head_kv;
    uint32_t n_gqa; // query heads per KV head

    ggml_backend_buffer_type_t buft;

    ggml_tensor * pool_k = nullptr; // [head_dim_k, rows of the device]
    ggml_tensor * pool_v = nullptr; // [head_dim_v, rows of the device]

    // the layer's rows in upstream's shape, for code that only asks for type and size
    ggml_tensor * alias_k = nullptr;
    ggml_tensor * alias_v = nullptr;

    // segment table: first row of each KV head. Uniform: segment[h] = segment[0] + h*n_rows
    std::vector<int64_t> segment;

    uint32_t idx_col = 0; // first column of this layer in the index input

    ggml_tensor * ring    = nullptr; // F32 [head_dim_k*n_head, n_ring]
    ggml_tensor * factors = nullptr; // F32 [head_dim_v, head_dim_v*n_gqa, n_head_kv]

    // as the model's graph passed them to attention
    float         scale = 0.0f;
    ggml_tensor * sinks = nullptr;
};

class llama_restkv_pool {
public:
    llama_restkv_pool(const llama_hparams & hparams, ggml_type type_k, ggml_type type_v, uint32_t n_rows, uint32_t n_ring);

    void add_layer(uint32_t il, ggml_backend_buffer_type_t buft);
    void alloc(); // after the last add_layer; throws std::runtime_error when a device has no room

    const llama_restkv_layer * find(int32_t il) const; // null: not ours (a sliding-window layer)

    // graph of a decode
    ggml_tensor * build_idxs(ggml_context * ctx, uint32_t n_tokens, bool with_ring);
    ggml_tensor * get_k(ggml_context * ctx, int32_t il, uint32_t n_kv) const;
    ggml_tensor * get_v(ggml_context * ctx, int32_t il, uint32_t n_kv) const;
    ggml_tensor * cpy_k(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * idxs, int32_t il) const;
    ggml_tensor * cpy_v(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * idxs, int32_t il) const;
    ggml_tensor * build_attn(const llm_graph_context & g, ggml_tensor * q, ggml_tensor * k, ggml_tensor * v,
                             ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale, int il);

    // slots: where each token of the ubatch goes, the same for every segment of a uniform layout
    void set_idxs(ggml_tensor * dst, const std::vector<uint32_t> & slots, bool with_ring);

    // observed queries, oldest first: the newest run of ring rows that belong to rows still in the cache
    std::vector<int32_t>  window_rows (uint32_t n_used, uint32_t n_max) const;
    std::vector<uint32_t> window_slots(const std::vector<int32_t> & rows) const;
    void forget_queries() { n_seen = 0; }

    uint32_t n_rows;
    uint32_t n_ring;

    ggml_type type_k;
    ggml_type type_v;

    float softcap;

    std::vector<llama_restkv_layer> layers;

    size_t bytes_k = 0;
    size_t bytes_v = 0;
    size_t bytes_scoring = 0;

private:
    ggml_tensor * cpy(ggml_context * ctx, ggml_tensor * pool, ggml_tensor * cur, ggml_tensor * idxs, const llama_restkv_layer & layer) const;

    const llama_hparams & hparams;

    std::map<int32_t, size_t> index; // model layer -> layers[]
    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> bufs;

    uint32_t n_cols = 0; // KV heads over all layers: columns of the index input

    ggml_tensor * cur_idxs = nullptr; // index input of the graph being built

    // ring bookkeeping: the last n_seen queries sit at ring rows (n_head_row - n_seen, ...] with these slots
    uint32_t              ring_next = 0;
    uint32_t              n_seen    = 0;
    std::vector<uint32_t> ring_slot;
};

// the pool that owns layer il of the cache behind mctx, or null
llama_restkv_pool * llama_restkv_pool_of(const llama_memory_context_i * mctx, int32_t il);

// ring rows asked for by llama_restkv_arm() on this thread; 0: not armed
uint32_t llama_restkv_armed();
