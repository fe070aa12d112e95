#pragma once

// Flash attention of several tokens on a CPU, included by ggml-cpu/ops.cpp: the tiles of upstream's
// ggml_compute_forward_flash_attn_ext_tiled with the same sums in the same order, and less beside them. Rows that an eviction
// left are open to every query, so that most tiles of the mask say nothing; query heads of one KV head share a tile.

#include "ggml-restkv.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#if defined(__AVX2__) && defined(__F16C__)
#include <immintrin.h>
#endif

namespace restkv {

constexpr int N_KV = ggml_fa_tile_config::KV; // rows of K and V in a tile

// Rows of queries that simd_gemm takes at once: others wait for each sum before the next.
#if defined(GGML_SIMD) && !defined(__ARM_FEATURE_SVE) && !defined(__riscv_v_intrinsic)
constexpr int BLOCK = GEMM_RM;
#else
constexpr int BLOCK = 1;
#endif

constexpr int ceil_to(int n, int step) { return (n + step - 1)/step*step; }

constexpr int N_Q = ggml_fa_tile_config::Q/BLOCK*BLOCK; // rows of queries in a tile, at most

enum class tile_mask { hidden, open, mixed }; // every value -inf; every value 0; anything else

// The kind of a row of N_KV halves of the mask, or of fewer.
inline tile_mask kind_of(const ggml_fp16_t * mask, int n) {
    constexpr ggml_fp16_t minus_inf = 0xFC00;
    int set = 0, visible = 0;
    for (int i = 0; i < n; ++i) {
        set     |= mask[i];
        visible |= mask[i] ^ minus_inf;
    }
    return !visible ? tile_mask::hidden : !set ? tile_mask::open : tile_mask::mixed;
}

inline float max_of(const float * x) {
    constexpr int n_lane = 16;
    static_assert(N_KV % n_lane == 0, "a tile is whole vectors wide");
    float m[n_lane];
    std::copy(x, x + n_lane, m);
    for (int i = n_lane; i < N_KV; i += n_lane) {
        for (int j = 0; j < n_lane; ++j) {
            m[j] = x[i + j] > m[j] ? x[i + j] : m[j];
        }
    }
    return *std::max_element(m, m + n_lane);
}

// keys [n, n_dim], rows nb bytes apart -> columns: out[d*N_KV + i] = keys[i][d]
inline void pack_columns(float * out, const char * keys, ggml_type type, size_t nb, int n, int64_t n_dim) {
    if (type == GGML_TYPE_F32) {
        for (int i = 0; i < n; ++i) {
            const float * row = (const float *) (keys + i*nb);
            for (int64_t d = 0; d < n_dim; ++d) {
                out[d*N_KV + i] = row[d];
            }
        }
        return;
    }
    int i = 0;
#if defined(__AVX2__) && defined(__F16C__)
    for (; i + 8 <= n && n_dim % 8 == 0; i += 8) {
        for (int64_t d = 0; d < n_dim; d += 8) { // a square of eight rows and dimensions, turned
            __m256 a[8], b[8];
            for (int j = 0; j < 8; ++j) {
                a[j] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *) (keys + (i + j)*nb + d*sizeof(ggml_fp16_t))));
            }
            for (int j = 0; j < 8; j += 2) {
                b[j]     = _mm256_unpacklo_ps(a[j], a[j + 1]);
                b[j + 1] = _mm256_unpackhi_ps(a[j], a[j + 1]);
            }
            for (int j = 0; j < 8; j += 4) {
                a[j]     = _mm256_shuffle_ps(b[j],     b[j + 2], _MM_SHUFFLE(1, 0, 1, 0));
                a[j + 1] = _mm256_shuffle_ps(b[j],     b[j + 2], _MM_SHUFFLE(3, 2, 3, 2));
                a[j + 2] = _mm256_shuffle_ps(b[j + 1], b[j + 3], _MM_SHUFFLE(1, 0, 1, 0));
                a[j + 3] = _mm256_shuffle_ps(b[j + 1], b[j + 3], _MM_SHUFFLE(3, 2, 3, 2));
            }
            for (int j = 0; j < 4; ++j) {
                _mm256_storeu_ps(out + (d + j)*N_KV     + i, _mm256_permute2f128_ps(a[j], a[j + 4], 0x20));
                _mm256_storeu_ps(out + (d + j + 4)*N_KV + i, _mm256_permute2f128_ps(a[j], a[j + 4], 0x31));
            }
        }
    }
#endif
    for (; i < n; ++i) {
        const ggml_fp16_t * row = (const ggml_fp16_t *) (keys + i*nb);
        for (int64_t d = 0; d < n_dim; ++d) {
            out[d*N_KV + i] = GGML_CPU_FP16_TO_FP32(row[d]);
        }
    }
}

inline void pack_rows(float * out, const char * values, ggml_type type, size_t nb, int n, int64_t n_dim) {
    for (int i = 0; i < n; ++i) {
        if (type == GGML_TYPE_F32) {
            memcpy(out + i*n_dim, values + i*nb, n_dim*sizeof(float));
        } else {
            ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) (values + i*nb), out + i*n_dim, n_dim);
        }
    }
}

// C[n_row, n_column] += A[n_row, n_sum]*B[n_sum, n_column], each sum in simd_gemm's order. In its blocks of four rows by four
// vectors GCC loads a row of B again for each row of A, and waits for loads; in blocks of eight by two it keeps B in registers.
inline void multiply(float * c, const float * a, const float * b, int n_row, int n_sum, int n_column) {
    int i = 0;
#if defined(__AVX512F__)
    constexpr int n_high = 8, n_wide = 2, step = n_wide*GGML_F32_EPR;
    for (; n_column % step == 0 && i + n_high <= n_row; i += n_high) {
        for (int j = 0; j < n_column; j += step) {
            simd_gemm_ukernel<n_high, n_wide>(c + i*n_column + j, a + i*n_sum, b + j, n_sum, n_column);
        }
    }
#endif
    simd_gemm(c + i*n_column, a + i*n_sum, b, n_row - i, n_sum, n_column);
}

// One thread's memory and what one operation is about.
class attention {
public:
    attention(const ggml_compute_params * params, ggml_tensor * dst)
        : dst(dst), q(dst->src[0]), k(dst->src[1]), v(dst->src[2]), mask(dst->src[3]), sinks(dst->src[4]),
          n_dim_k(k->ne[0]), n_dim_v(v->ne[0]), n_token(q->ne[1]), n_gqa(q->ne[2]/k->ne[2]), n_kv(k->ne[1]) {
        float max_bias;
        memcpy(&scale,    (const float *) dst->op_params + 0, sizeof(float));
        memcpy(&max_bias, (const float *) dst->op_params + 1, sizeof(float));
        memcpy(&softcap,  (const float *) dst->op_params + 2, sizeof(float));
        if (softcap != 0.0f) {
            scale /= softcap;
        }
        GGML_ASSERT(mask && mask->ne[2] == 1 && mask->ne[3] == 1 && q->ne[3] == 1 && max_bias == 0.0f && "restkv: one sequence, no ALiBi");
        GGML_ASSERT(k->ne[2] == v->ne[2] && k->type == v->type);

        // upstream plans this many floats for each thread
        constexpr int Q = ggml_fa_tile_config::Q;
        float * next = (float *) params->wdata
            + params->ith*(Q*n_dim_k + 2*Q*N_KV + Q*n_dim_v + N_KV*n_dim_v + N_KV*n_dim_k + CACHE_LINE_SIZE_F32);
        const auto take = [&](int64_t n) { float * res = next; next += n; return res; };
        queries = take(N_Q*n_dim_k);
        weights = take(N_Q*N_KV);
        mask32  = take(N_KV);
        sums    = take(N_Q*n_dim_v);
        values  = take(N_KV*n_dim_v);
        keys    = take(N_KV*n_dim_k);
    }

    // rows of queries of a KV head: token by token, head by head
    int64_t n_rows() const { return n_gqa*n_token; }

    // rows [first, first + n) of KV head `head`
    void run(int64_t head, int64_t first, int n) {
        const int n_block = ceil_to(n, BLOCK);
        float largest[N_Q], total[N_Q];
        std::fill(largest, largest + N_Q, -INFINITY);
        std::fill(total, total + N_Q, 0.0f);
        memset(sums, 0, n_block*n_dim_v*sizeof(float));
        if (n_kv % N_KV) { // what lies beyond the last row is multiplied by 0, and must be a number
            memset(keys,   0, N_KV*n_dim_k*sizeof(float));
            memset(values, 0, N_KV*n_dim_v*sizeof(float));
        }
        memset(queries, 0, n_block*n_dim_k*sizeof(float));
        for (int i = 0; i < n; ++i) {
            memcpy(queries + i*n_dim_k, (const char *) q->data + token_of(first + i)*q->nb[1] + head_of(head, first + i)*q->nb[2], n_dim_k*sizeof(float));
        }

        for (int64_t start = 0; start < n_kv; start += N_KV) {
            const int n_here = (int) std::min<int64_t>(N_KV, n_kv - start);
            tile_mask kinds[N_Q];
            for (int i = 0; i < n; ++i) {
                kinds[i] = i < n_token ? kind_of(mask_row(first + i) + start, n_here) : kinds[i - n_token];
            }
            if (std::all_of(kinds, kinds + n, [](tile_mask kind) { return kind == tile_mask::hidden; })) {
                continue;
            }
            pack_columns(keys, (const char *) k->data + start*k->nb[1] + head*k->nb[2], k->type, k->nb[1], n_here, n_dim_k);
            weigh(kinds, first, start, n, n_here, largest, total);
            pack_rows(values, (const char *) v->data + start*v->nb[1] + head*v->nb[2], v->type, v->nb[1], n_here, n_dim_v);
            multiply(sums, weights, values, n_block, N_KV, n_dim_v);
        }

        for (int i = 0; i < n; ++i) {
            float * sum = sums + i*n_dim_v;
            if (sinks) {
                add_sink(((const float *) sinks->data)[head_of(head, first + i)], largest[i], sum, total[i]);
            }
            ggml_vec_scale_f32(n_dim_v, sum, total[i] == 0.0f ? 0.0f : 1.0f/total[i]);
            memcpy((char *) dst->data + head_of(head, first + i)*dst->nb[1] + token_of(first + i)*dst->nb[2], sum, n_dim_v*sizeof(float));
        }
    }

private:
    int64_t token_of(int64_t row) const { return row % n_token; }
    int64_t head_of(int64_t head, int64_t row) const { return head*n_gqa + row/n_token; }

    const ggml_fp16_t * mask_row(int64_t row) const {
        return (const ggml_fp16_t *) ((const char *) mask->data + token_of(row)*mask->nb[1]);
    }

    // what each row of queries gives each key of the tile; sums so far shrink where a larger product is found
    void weigh(const tile_mask * kinds, int64_t first, int64_t start, int n, int n_here, float * largest, float * total) {
        const int n_block = ceil_to(n, BLOCK);
        memset(weights, 0, n_block*N_KV*sizeof(float));
        multiply(weights, queries, keys, n_block, n_dim_k, N_KV);
        ggml_vec_scale_f32(n*N_KV, weights, scale);
        if (softcap != 0.0f) {
            ggml_vec_tanh_f32(n*N_KV, weights, weights);
            ggml_vec_scale_f32(n*N_KV, weights, softcap);
        }
        for (int i = 0; i < n; ++i) {
            float * row = weights + i*N_KV;
            std::fill(row + n_here, row + N_KV, -INFINITY);
            if (kinds[i] == tile_mask::mixed) {
                ggml_cpu_fp16_to_fp32(mask_row(first + i) + start, mask32, n_here);
                ggml_vec_add_f32(n_here, row, row, mask32);
            }
            const float most = kinds[i] == tile_mask::hidden ? -INFINITY : max_of(row);
            if (most == -INFINITY) {
                memset(row, 0, N_KV*sizeof(float));
                continue;
            }
            if (most > largest[i]) {
                const float shrink = expf(largest[i] - most);
                ggml_vec_scale_f32(n_dim_v, sums + i*n_dim_v, shrink);
                total[i] *= shrink;
                largest[i] = most;
            }
            total[i] += ggml_vec_soft_max_f32(N_KV, row, row, largest[i]);
        }
    }

    void add_sink(float sink, float largest, float * sum, float & total) const {
        if (sink > largest) {
            const float shrink = expf(largest - sink);
            ggml_vec_scale_f32(n_dim_v, sum, shrink);
            total = total*shrink + 1.0f;
        } else {
            total += expf(sink - largest);
        }
    }

    ggml_tensor * dst;
    const ggml_tensor * q;     // F32 [n_dim_k, n_token, n_head]
    const ggml_tensor * k;     // F16 or F32 [n_dim_k, n_kv, n_head_kv]
    const ggml_tensor * v;
    const ggml_tensor * mask;  // F16 [n_kv, n_token]
    const ggml_tensor * sinks; // F32 [n_head], or null
    int64_t n_dim_k, n_dim_v, n_token, n_gqa, n_kv;
    float scale, softcap;
    float * queries; // [N_Q, n_dim_k]
    float * weights; // [N_Q, N_KV]
    float * mask32;  // [N_KV]
    float * sums;    // [N_Q, n_dim_v]
    float * values;  // [N_KV, n_dim_v]
    float * keys;    // [n_dim_k, N_KV]
};

// Whether an operation is computed here; tiled: whether upstream computes it in tiles.
inline bool takes(const ggml_compute_params * params, const ggml_tensor * dst, bool tiled) {
    const ggml_tensor * q = dst->src[0];
    const ggml_tensor * k = dst->src[1];
    switch (restkv_tiles_asked(dst)) {
        case RESTKV_TILES_UPSTREAM: return false;
        case RESTKV_TILES_EQUAL:    return tiled;
        case RESTKV_TILES_ANY:      break;
    }
    return !params->use_ref && q->ne[1] > 1 && q->type == GGML_TYPE_F32
        && (k->type == GGML_TYPE_F32 || k->type == GGML_TYPE_F16) && k->type == dst->src[2]->type;
}

// The whole operation. Every thread calls it, once the threadpool counts chunks from nth on.
inline void attend(const ggml_compute_params * params, ggml_tensor * dst) {
    attention op(params, dst);
    const int64_t n_head_kv = dst->src[1]->ne[2];
    const auto tiles = [&](int n) { return (op.n_rows() + n - 1)/n; };
    int n_tile = N_Q;
    while (n_tile > 2*BLOCK && n_head_kv*tiles(n_tile) < 2*params->nth) { // something for each thread
        n_tile = ceil_to(n_tile/2, BLOCK);
    }

    for (int64_t i = params->ith; i < n_head_kv*tiles(n_tile); i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
        const int64_t first = i/n_head_kv*n_tile;
        op.run(i % n_head_kv, first, (int) std::min<int64_t>(n_tile, op.n_rows() - first));
    }
}

} // namespace restkv
