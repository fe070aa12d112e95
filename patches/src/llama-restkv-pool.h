#pragma once

// Storage: one K and one V tensor per device, rows addressed as (layer, KV head) segments, plus the ring of observed
// queries. Everything the graph of a decode needs lives here; scoring and compaction are in files of their own.

#include "llama-graph.h"

#include "ggml-cpp.h"
#include "ggml-restkv.h"

#include <atomic>
#include <map>
#include <utility>
#include <vector>

struct llama_hparams;

struct llama_restkv_armed_args {
    uint32_t n_ring; // observed queries
    uint32_t n_rows; // rows of a segment on average; 0: one for each cell
};

// Where the rows of a layer's KV heads lie: slot j of head h is row base[h] + j of the pool, from slot absent[h] on.
// Heads that hold fewer rows are aligned at the newest one, so that a new token goes to the same slot everywhere.
struct llama_restkv_segments {
    std::vector<int64_t>  base;
    std::vector<uint32_t> absent;
};

// neighbouring KV heads that one strided view covers
struct llama_restkv_group {
    uint32_t head;
    uint32_t n_head;
    uint32_t absent;
    int64_t  base;   // of the first head
    int64_t  stride; // rows from one head to the next
};

std::vector<llama_restkv_group> llama_restkv_groups(const llama_restkv_segments & segments);

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

    llama_restkv_segments segments;

    uint32_t idx_col = 0; // first column of this layer in the index input

    ggml_tensor * ring    = nullptr; // F32 [head_dim_k*n_head, n_ring]
    ggml_tensor * factors = nullptr; // F32 [head_dim_v, head_dim_v*n_gqa, n_head_kv]
    ggml_tensor * norms   = nullptr; // F32 [n_gqa or more, rows of the device]: ||v F||^2; null where a row is not kept on the host

    bool turned = true; // queries and keys carry positions, RoPE's

    // as the model's graph passed them to attention
    float         scale = 0.0f;
    ggml_tensor * sinks = nullptr;
};

// here because the context has no field for it
struct llama_restkv_abort_flag {
    std::atomic<bool> asked { false };
    std::atomic<bool> held  { false }; // compaction must not stop half way
};

class llama_restkv_pool {
public:
    // n_slots: cells of the cache, the most rows a segment may grow to; armed.n_rows of them on average
    llama_restkv_pool(const llama_hparams & hparams, ggml_type type_k, ggml_type type_v, uint32_t n_slots, llama_restkv_armed_args armed);

    void add_layer(uint32_t il, ggml_backend_buffer_type_t buft);
    void alloc(); // after the last add_layer; throws std::runtime_error when a device has no room

    const llama_restkv_layer * find(int32_t il) const; // null: not ours (a sliding-window layer)

    // graph of a decode
    ggml_tensor * build_idxs(ggml_context * ctx, uint32_t n_tokens, bool with_ring);
    ggml_tensor * get_k(ggml_context * ctx, int32_t il, uint32_t n_kv) const;
    ggml_tensor * get_v(ggml_context * ctx, int32_t il, uint32_t n_kv) const;
    ggml_tensor * cpy_k(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * idxs, int32_t il) const;
    ggml_tensor * cpy_v(ggml_context * ctx, ggml_tensor * cur, ggml_tensor * idxs, int32_t il) const;
    ggml_tensor * build_attn(const llm_graph_context & g, ggml_tensor * q, ggml_tensor * kq_mask, ggml_tensor * sinks,
                             float kq_scale, int il);

    // whether the next graphs read a probe; returns whether graphs built before are none for it
    bool set_probe(bool probe);

    // which of the pool's devices holds the layer's rows, from 0
    int32_t device_of(const llama_restkv_layer & layer) const;

    // the layout for segments of n_keep rows (layer-major, n_cols of them): rows that are not taken are shared out evenly
    std::vector<llama_restkv_segments> layout(const int32_t * n_keep) const;

    // rows that some device lacks for as many a segment, and which; 0 where all fit
    std::pair<int64_t, ggml_backend_buffer_type_t> n_lacking(const int32_t * n_keep) const;

    void set_layout(std::vector<llama_restkv_segments> && next);
    void reset_layout(); // equal segments

    // after this no row holds what a sequence left: masked rows are multiplied by 0, and an infinity would make NaN of it
    void zero_rows();

    // slots: where each token of the ubatch goes, the same for every segment
    void set_idxs(ggml_tensor * dst, const std::vector<uint32_t> & slots, bool with_ring);

    // rows of slots [0, n_used) of each KV head; an absent slot names the head's oldest row
    std::vector<int32_t> rows_of(const llama_restkv_layer & layer, uint32_t n_used) const;

    // observed queries, oldest first: the newest run of ring rows that belong to rows still in the cache
    std::vector<int32_t>  window_rows (uint32_t n_used, uint32_t n_max) const;
    std::vector<uint32_t> window_slots(const std::vector<int32_t> & rows) const;
    void forget_queries() { n_seen = 0; }
    void set_queries(uint32_t n, uint32_t n_used); // ring rows [0, n) hold the queries of the newest n slots

    uint32_t n_slots;  // no segment may hold more
    uint32_t n_rows;   // rows of a segment on average
    uint32_t n_ring;
    uint32_t n_cols = 0; // KV heads over all layers: columns of the index input
    uint32_t slot_end;   // the first slot that some segment has no row for

    // Norms are computed once, for a row moves and never changes. Slots [0, n_normed) have them.
    uint32_t n_normed = 0;

    // nodes that attention over single KV heads and their compaction add to a graph
    uint32_t n_nodes_extra() const;

    ggml_type type_k;
    ggml_type type_v;

    float softcap;
    bool  rope_long = false; // keys are turned by the long of two sets of RoPE factors

    llama_restkv_abort_flag abort;

    std::vector<llama_restkv_layer> layers;

    size_t bytes_k = 0;
    size_t bytes_v = 0;
    size_t bytes_scoring = 0;

private:
    ggml_tensor * cpy(ggml_context * ctx, ggml_tensor * pool, ggml_tensor * cur, ggml_tensor * idxs, const llama_restkv_layer & layer) const;

    ggml_tensor * attend(const llm_graph_context & g, const llama_restkv_layer & layer, const llama_restkv_group & group,
                         ggml_tensor * q, ggml_tensor * kq_mask, ggml_tensor * sinks, float kq_scale) const;

    const llama_hparams & hparams;

    // rows of each device's pool, margins included
    struct device {
        ggml_backend_buffer_type_t buft;
        int64_t n_rows;
        ggml_tensor * hole; // F16 [2*bucket]: -inf, then 0; hides the rows between a bucket's start and a segment's
    };
    std::vector<device> devices;

    bool ragged() const { return n_slots > n_rows; }

    std::map<int32_t, size_t> index; // model layer -> layers[]
    std::vector<std::pair<ggml_context_ptr, ggml_backend_buffer_ptr>> bufs;
    std::vector<ggml_backend_buffer_t> bufs_kv; // those of bufs that hold rows

    restkv_tiles tiles; // asked of attention on a CPU

    ggml_tensor * cur_idxs = nullptr; // index input of the graph being built

    // ring bookkeeping: the last n_seen queries sit at the ring rows before ring_next, with these slots
    uint32_t              ring_next = 0;
    uint32_t              n_seen    = 0;
    std::vector<uint32_t> ring_slot;

    uint32_t ring_row(uint32_t age) const { return (ring_next + n_ring - 1 - age)%n_ring; }

    // newest queries whose rows were removed from the tail, as those of a decode that was stopped are
    uint32_t n_removed(uint32_t n_used) const;
};

// the pool that owns layer il of the cache behind mctx, or null
llama_restkv_pool * llama_restkv_pool_of(const llama_memory_context_i * mctx, int32_t il);

// the pool of a cache, or null
llama_restkv_pool * llama_restkv_pool_of(const llama_memory_i * memory);

// what llama_restkv_arm() asked for on this thread; n_ring 0: not armed
llama_restkv_armed_args llama_restkv_armed();
