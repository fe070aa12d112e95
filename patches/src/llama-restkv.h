#pragma once

// The C boundary of restkv: a llama.cpp KV cache whose rows can be scored and evicted per layer and KV head.
//
// A context created between llama_restkv_arm() and llama_restkv_disarm() keeps the K and V rows of its full-attention
// layers in one pool per device, addressed as (layer, KV head) segments. The context owns the pool. Slot j of a segment
// may hold another token than slot j of the next one: attention only needs every kept row visible and newer tokens
// masked causally. Segments may hold different numbers of rows; they are then aligned at the newest one, and the slots
// before a segment's oldest row are absent. After llama_restkv_compact() the cells carry dense placeholder positions that end at the newest
// token, so that the next batch may start at seq_pos_max + 1; the caller keeps the true positions.
//
// Still safe afterwards: llama_decode, llama_memory_seq_rm of the tail, llama_memory_clear, seq_pos_min/max.
// Refused: llama_state_*, K-shift, more than one sequence.
//
// Every entry returns 0 (or a count) when done and a negative status when it failed; llama_restkv_last_error() then
// holds one line. No C++ exception crosses. Calls on one context must not overlap; llama_restkv_abort() may.

#include "llama.h"

#ifdef __cplusplus
extern "C" {
#endif

// raised whenever a signature or a meaning below changes; the Python package refuses another number
#define LLAMA_RESTKV_ABI 6

enum llama_restkv_status {
    LLAMA_RESTKV_OK          =  0,
    LLAMA_RESTKV_BAD_ARG     = -1, // nothing was changed
    LLAMA_RESTKV_UNSUPPORTED = -2, // nothing was changed
    LLAMA_RESTKV_FAILED      = -3, // compute failed: clear the cache before going on
    LLAMA_RESTKV_ABORTED     = -4, // llama_restkv_abort() was called; nothing was changed
    LLAMA_RESTKV_NO_MEMORY   = -5, // on a device or the host; nothing was changed
};

enum llama_restkv_bytes_kind {
    LLAMA_RESTKV_BYTES_K       = 0,
    LLAMA_RESTKV_BYTES_V       = 1,
    LLAMA_RESTKV_BYTES_SCORING = 2, // observation rings and output factors
    LLAMA_RESTKV_BYTES_OTHER   = 3, // caches outside the pool: sliding-window layers
};

enum llama_restkv_flags {
    // each adds one more attention row
    LLAMA_RESTKV_MAX        = 1 << 0, // maximum over the window
    LLAMA_RESTKV_SQUARE     = 1 << 6, // mean of a^2
    LLAMA_RESTKV_ENTROPY    = 1 << 7, // mean of -a log a
    LLAMA_RESTKV_LAST_USE   = 1 << 8, // newest query, counted from 1, with a >= 1/(rows it sees); 0: none

    // one metric at most
    LLAMA_RESTKV_AGGREGATE  = 1 << 1, // metric: ||(v_n - o) F|| for the one o = sum_n a_n v_n of the first attention row
    LLAMA_RESTKV_PER_QUERY  = 1 << 2, // metric: a/(1-a) ||(v_n - o_q) F||^tau per query, then the first reduction
    LLAMA_RESTKV_VALUE_NORM = 1 << 9, // metric: ||v_n F||

    LLAMA_RESTKV_REDUCE_MAX = 1 << 3, // the first reduction is the maximum, not a weighted sum
    LLAMA_RESTKV_PAST_ONLY  = 1 << 4, // o runs over the rows before the window only
    LLAMA_RESTKV_DRIFT      = 1 << 5, // mean true position of each query's top_k keys
};

enum llama_restkv_tensor {
    LLAMA_RESTKV_TENSOR_K = 0, // (n_head_kv, n_used, head_dim), absent slots 0
    LLAMA_RESTKV_TENSOR_V = 1, // (n_head_kv, n_used, head_dim)
    LLAMA_RESTKV_TENSOR_Q = 2, // (n_window, n_head, head_dim), oldest first
};

LLAMA_API int32_t      llama_restkv_abi_version(void);
LLAMA_API const char * llama_restkv_pin(void);        // the llama-cpp-python release the sources came from
LLAMA_API int32_t      llama_restkv_enabled(void);    // 0 when RESTKV_DISABLE is set: every hook is inert
LLAMA_API const char * llama_restkv_last_error(void); // thread-local, never NULL

// Contexts that this thread creates until disarm get a pool and a ring of n_ring observed queries.
//   n_rows  rows of a segment on average. 0: as many as the context has cells, and every segment keeps the same number.
//           Less: segments may hold different numbers of rows, each at most the context's cells.
LLAMA_API int32_t llama_restkv_arm(int32_t n_ring, int32_t n_rows);
LLAMA_API void    llama_restkv_disarm(void);

// 0 if ctx has a pool whose layers can be evicted, else why not. Sets the abort hook, and RoPE factors as for a context of
// n_rows. Call once after creation.
LLAMA_API int32_t llama_restkv_attach(struct llama_context * ctx);

// Whether queries and keys of pool layer i carry positions. At first as the model's hyperparameters have it, which some
// graphs overrule: smollm3, cohere2 and exaone4 leave RoPE out of some layers. Say so before the first token.
LLAMA_API int32_t llama_restkv_set_turned(struct llama_context * ctx, int32_t i, bool turned);

// llama_decode of tokens after the newest row, at most n_ubatch, and whatever the device has to do for it; where memory ends
// llama_decode itself ends the process. Returns its statuses of 0 and above; where it failed, some of the tokens may be there.
// A probe is dropped again: nobody compares it with another llama.cpp, and attention on a CPU takes the fast way for fewer than
// 64 tokens too, with float32 sums where upstream has halves.
LLAMA_API int32_t llama_restkv_decode(struct llama_context * ctx, llama_token * tokens, int32_t n_tokens, bool probe);

// Stops llama_restkv_decode (status 2) and llama_restkv_score within one graph node. Any thread may call it while the context lives.
LLAMA_API void llama_restkv_abort(struct llama_context * ctx, bool abort);

LLAMA_API int32_t llama_restkv_n_layer (const struct llama_context * ctx);               // layers in the pool
LLAMA_API int32_t llama_restkv_layer_info(const struct llama_context * ctx, int32_t i,     // model layer of pool layer i
                                        int32_t * n_head, int32_t * n_head_kv, int32_t * head_dim_k, int32_t * head_dim_v,
                                        int32_t * device);                               // layers of one device share its rows
LLAMA_API int32_t llama_restkv_capacity(const struct llama_context * ctx);               // rows of a segment on average
LLAMA_API int32_t llama_restkv_used    (const struct llama_context * ctx);               // slots in use, always [0, used)
LLAMA_API int32_t llama_restkv_room    (const struct llama_context * ctx);               // tokens that every segment has a row for
LLAMA_API int64_t llama_restkv_bytes   (const struct llama_context * ctx, int32_t kind); // allocated by the backends
LLAMA_API int32_t llama_restkv_v_rotated (const struct llama_context * ctx);             // 1 if V rows are stored rotated
LLAMA_API int32_t llama_restkv_k_rotated (const struct llama_context * ctx);             // block size if K rows are stored rotated, else 0
LLAMA_API int32_t llama_restkv_n_observed(const struct llama_context * ctx);             // newest queries still valid
LLAMA_API int32_t llama_restkv_clear     (struct llama_context * ctx);                   // no rows, no queries, equal segments

// The row-major (n_head, d_out, d_in) matrices that llama_restkv_score applies to values of pool layer i.
LLAMA_API int32_t llama_restkv_set_factors(struct llama_context * ctx, int32_t i, const float * factors);

// Attention of n_window observed queries, the newest but n_skip, over all used slots, reduced over the window on the
// device. Absent slots: attention 0, metric finite.
//   weights    (n_weights, n_window): linear reductions, oldest query first
//   positions  (n_layer, n_head_kv, n_used): true positions, for DRIFT only, else NULL
//   attention  (n_layer, n_weights + flagged rows, n_head, n_used), flagged rows in the order of their names above
//   metric     (n_layer, n_head, n_used) with one of its flags, else NULL
//   drift      (n_layer, n_head, n_window) with DRIFT, else NULL
LLAMA_API int32_t llama_restkv_score(
        struct llama_context * ctx,
        int32_t flags, int32_t n_window, int32_t n_skip, int32_t n_weights, const float * weights,
        float tau, int32_t top_k, const float * positions,
        float * attention, float * metric, float * drift);

// Cosine of each key to the mean direction of its head's keys: (n_layer, n_head_kv, n_used), absent slots 0.
LLAMA_API int32_t llama_restkv_key_direction(struct llama_context * ctx, float * cosine);

// Sums over n_window observed queries, the newest but n_skip, as they were before RoPE.
//   basis   (head_dim, head_dim): multiplies queries first, to undo the rotation of keys stored rotated; or NULL
//   first   (n_layer, n_head, head_dim): sum of q
//   second  (n_layer, n_head, head_dim, head_dim): sum of q q'
LLAMA_API int32_t llama_restkv_query_moments(
        struct llama_context * ctx, int32_t n_window, int32_t n_skip, const float * basis, float * first, float * second);

// Mean RoPE matrix of pool layer i over positions [pos, pos + n): (head_dim, head_dim), row r is where unit vector r goes.
LLAMA_API int32_t llama_restkv_mean_rotation(struct llama_context * ctx, int32_t i, llama_pos pos, int32_t n, float * rotation);

// Log of the attention expected from normally distributed queries, up to a constant of each head.
//   mean    (n_layer, n_head, head_dim): scaled mean
//   root    (n_layer, n_head, head_dim, head_dim): rows r with sum (r k)^2 = half the scaled variance of q k
//   logits  (n_layer, n_head, n_used)
LLAMA_API int32_t llama_restkv_expected(struct llama_context * ctx, const float * mean, const float * root, float * logits);

// Survivors move together: the rows of a segment become its newest slots, in their order. All layers or none.
//   n_keep (n_layer, n_head_kv): rows that stay; all equal unless the context was armed with n_rows
//   keep   slots that stay, ascending, one segment after the other
//   shift  same shape: positions to add to each surviving key's rotation, or NULL to leave keys as they are
//   pos    position of the newest row afterwards
LLAMA_API int32_t llama_restkv_compact(
        struct llama_context * ctx, const int32_t * n_keep, const int32_t * keep, const int32_t * shift, llama_pos pos);

// The sequence as bytes: rows of every segment as they are stored, the position of the newest one, the observed queries
// that are still valid. state_set wants a context of the same model, KV types, ring and RoPE factors, with room for the rows; it
// replaces what the context holds. Refused for models with sliding-window layers, whose own cache it would not cover.
LLAMA_API int64_t llama_restkv_state_size(const struct llama_context * ctx);
LLAMA_API int32_t llama_restkv_state_get (struct llama_context * ctx, void * data, int64_t size);
LLAMA_API int32_t llama_restkv_state_set (struct llama_context * ctx, const void * data, int64_t size);
// Slots that such bytes hold, and the rows of every segment; refused where state_set would refuse them.
LLAMA_API int32_t llama_restkv_state_rows(const struct llama_context * ctx, const void * data, int64_t size, int32_t * n_rows);

// One tensor of pool layer i as float32, for the NumPy oracle. n_window counts only for Q.
LLAMA_API int32_t llama_restkv_read(
        struct llama_context * ctx, int32_t i, int32_t tensor, int32_t n_window, float * out);

// What attention of pool layer i multiplies and bounds its logits with, as the model's graph passed it.
LLAMA_API int32_t llama_restkv_attention_params(
        const struct llama_context * ctx, int32_t i, float * scale, float * softcap, int32_t * has_sinks);

#ifdef __cplusplus
}
#endif
