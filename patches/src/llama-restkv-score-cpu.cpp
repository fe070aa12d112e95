#include "llama-restkv-score-cpu.h"
#include "llama-restkv-vectors.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace {

struct maximum {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * attn = dst->src[0];
        GGML_UNUSED(userdata);

        const int64_t n_used = attn->ne[0];
        for (int64_t h = ith; h < attn->ne[2]; h += nth) {
            const float * a = (const float *) attn->data + h*attn->ne[1]*n_used;
            float * out = (float *) dst->data + h*n_used;
            std::copy(a, a + n_used, out);
            for (int64_t w = 1; w < attn->ne[1]; ++w) {
                for (int64_t j = 0; j < n_used; ++j) {
                    out[j] = out[j] < a[w*n_used + j] ? a[w*n_used + j] : out[j];
                }
            }
        }
    }
};

#ifdef __GNUC__
#pragma GCC diagnostic ignored "-Wpsabi" // no vector is passed to a function that is not inlined

template <int64_t n_lane>
struct vectors {
    typedef float   of_float __attribute__((vector_size(n_lane*sizeof(float))));
    typedef int32_t of_int   __attribute__((vector_size(n_lane*sizeof(float))));
};

template <int64_t n_lane>
using vec = typename vectors<n_lane>::of_float;

template <int64_t n_lane>
RESTKV_INLINE vec<n_lane> load(const float * from) { // from any address
    vec<n_lane> x;
    std::memcpy(&x, from, sizeof(x));
    return x;
}

template <int64_t n_lane>
RESTKV_INLINE void store(const vec<n_lane> & x, float * to) {
    std::memcpy(to, &x, sizeof(x));
}

// Halves as floats, to the bit; ggml's own way in vectors is inside its CPU backend, which may be loaded at run time. A half's exponent and fraction read as a float's are too small by 2^112, subnormal or not.
RESTKV_INLINE void widen(const uint16_t * GGML_RESTRICT from, float * GGML_RESTRICT to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        const uint32_t small = uint32_t(from[i] & 0x7FFF) << 13;
        float size;
        std::memcpy(&size, &small, sizeof(size));
        size *= 0x1p112f;
        uint32_t bits;
        std::memcpy(&bits, &size, sizeof(bits));
        bits |= (0u - (small >= 0x0F800000)) & 0x7F800000; // infinite, or not a number; no branch, so that vectors serve
        bits |= uint32_t(from[i] & 0x8000) << 16;
        std::memcpy(to + i, &bits, sizeof(bits));
    }
}

struct gather {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * rows = dst->src[0];
        const int32_t     * idxs = (const int32_t *) dst->src[1]->data;
        GGML_UNUSED(userdata);

        const int64_t head_dim = dst->ne[0];
        for (int64_t i = dst->ne[1]*ith/nth; i < dst->ne[1]*(ith + 1)/nth; ++i) {
            const char * from = (const char *) rows->data + idxs[i]*rows->nb[1];
            float * to = (float *) dst->data + i*head_dim;
            if (rows->type == GGML_TYPE_F32) {
                std::memcpy(to, from, head_dim*sizeof(float));
            } else {
                widen((const uint16_t *) from, to, head_dim);
            }
        }
    }
};

// Products of short rows: ggml's kernels sum along a row, and with so few values they mostly add up what is left in their
// registers. Here sixteen columns stand side by side, six rows at a time, and the sums stay in registers (AVX2, AVX-512, NEON).
constexpr int64_t n_row = 6;
constexpr int64_t n_col = 16;

// the same rows[r][i] with columns[i], i from begin to end
template <int64_t n_lane>
RESTKV_INLINE void multiply_tile(const float * const * rows, const float * columns, int64_t begin, int64_t end, vec<n_lane> (&sum)[n_row][n_col/n_lane]) {
    constexpr int64_t n_vec = n_col/n_lane;
    for (int64_t r = 0; r < n_row; ++r) {
        for (int64_t l = 0; l < n_vec; ++l) {
            sum[r][l] = vec<n_lane>{};
        }
    }
    for (int64_t i = begin; i < end; ++i) {
        for (int64_t r = 0; r < n_row; ++r) {
            for (int64_t l = 0; l < n_vec; ++l) {
                sum[r][l] += rows[r][i]*load<n_lane>(columns + i*n_col + l*n_lane);
            }
        }
    }
}

template <int64_t n_lane>
RESTKV_INLINE void store_tile_row(const vec<n_lane> (&sum)[n_col/n_lane], float * out) {
    for (int64_t l = 0; l < n_col/n_lane; ++l) {
        store<n_lane>(sum[l], out + l*n_lane);
    }
}

struct logits {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * k = dst->src[0];
        const ggml_tensor * q = dst->src[1];
        GGML_UNUSED(userdata);

        const int64_t head_dim = k->ne[0];
        const int64_t n_used   = k->ne[1];
        const int64_t n_tile   = (n_used + n_col - 1)/n_col;
        const int64_t n_query  = q->ne[1]*q->ne[2]/k->ne[2]; // of the heads that share a KV head

        std::vector<float> columns(head_dim*n_col); // sixteen keys side by side

        for (int64_t task = n_tile*k->ne[2]*ith/nth; task < n_tile*k->ne[2]*(ith + 1)/nth; ++task) {
            const int64_t h     = task/n_tile;
            const int64_t first = task%n_tile*n_col;
            const int64_t n     = std::min(n_col, n_used - first);
            for (int64_t j = 0; j < n; ++j) {
                const float * key = (const float *) k->data + (h*n_used + first + j)*head_dim;
                for (int64_t i = 0; i < head_dim; ++i) {
                    columns[i*n_col + j] = key[i];
                }
            }
            for (int64_t w = 0; w < n_query; w += n_row) {
                const float * rows[n_row];
                for (int64_t r = 0; r < n_row; ++r) {
                    rows[r] = (const float *) q->data + (h*n_query + std::min(w + r, n_query - 1))*head_dim;
                }
                vec<n_lane> sum[n_row][n_col/n_lane];
                multiply_tile<n_lane>(rows, columns.data(), 0, head_dim, sum);
                for (int64_t r = 0; r < n_row && w + r < n_query; ++r) {
                    float * out = (float *) dst->data + (h*n_query + w + r)*n_used + first;
                    if (n == n_col) {
                        store_tile_row<n_lane>(sum[r], out);
                    } else {
                        float line[n_col];
                        store_tile_row<n_lane>(sum[r], line);
                        std::copy(line, line + n, out);
                    }
                }
            }
        }
    }
};

// exp(x) for x <= 0, by a polynomial over [-ln 2/2, ln 2/2]; 0 below the normal numbers
template <int64_t n_lane>
RESTKV_INLINE vec<n_lane> exponential(const vec<n_lane> & x) {
    const vec<n_lane> n = (x*1.442695041f + 12582912.0f) - 12582912.0f; // x/ln 2, rounded: 1.5*2^23 leaves no bits for a fraction
    const vec<n_lane> r = x - n*0.693359375f + n*2.12194440e-4f;        // ln 2 in two parts, the first exact times n
    vec<n_lane> y = r*1.9875691500e-4f + 1.3981999507e-3f;
    y = y*r + 8.3334519073e-3f;
    y = y*r + 4.1665795894e-2f;
    y = y*r + 1.6666665459e-1f;
    y = y*r + 5.0000001201e-1f;
    y = y*r*r + r + 1.0f;
    const vec<n_lane> power = (vec<n_lane>) ((__builtin_convertvector(n, typename vectors<n_lane>::of_int) + 127) << 23); // 2^n
    return x <= -87.0f ? vec<n_lane>{} : y*power; // NaN stays
}

// a query at a time while it is in the first cache
struct softmax {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * mask  = dst->src[1];
        const float         scale = *(const float *) userdata;

        const int64_t n_used   = dst->ne[0];
        const int64_t n_window = dst->ne[1];
        const int64_t n_padded = (n_used + n_lane - 1)/n_lane*n_lane;

        std::vector<float> shares(n_padded, -INFINITY); // the last vector filled up with what has no share

        for (int64_t i = n_window*dst->ne[2]*ith/nth; i < n_window*dst->ne[2]*(ith + 1)/nth; ++i) {
            const float * m = (const float *) mask->data + (mask->ne[2] > 1 ? i : i%n_window)*n_used;
            float *     row = (float *) dst->data + i*n_used;

            for (int64_t j = 0; j < n_used; ++j) {
                shares[j] = row[j]*scale + m[j];
            }
            vec<n_lane> most = load<n_lane>(shares.data());
            for (int64_t j = n_lane; j < n_padded; j += n_lane) {
                const vec<n_lane> x = load<n_lane>(shares.data() + j);
                most = most < x ? x : most;
            }
            float max = most[0];
            for (int64_t l = 1; l < n_lane; ++l) {
                max = std::max<float>(max, most[l]);
            }
            vec<n_lane> sums = {};
            for (int64_t j = 0; j < n_padded; j += n_lane) {
                const vec<n_lane> x = exponential<n_lane>(load<n_lane>(shares.data() + j) - max);
                store<n_lane>(x, shares.data() + j);
                sums += x;
            }
            float sum = 0.0f;
            for (int64_t l = 0; l < n_lane; ++l) {
                sum += sums[l];
            }
            for (int64_t j = 0; j < n_used; ++j) {
                row[j] = shares[j]/sum;
            }
            std::fill(shares.begin() + n_used, shares.end(), -INFINITY);
        }
    }
};

// Puts the columns of F [head_dim, head_dim] side by side in tiles. Rows of F above begin are 0 in all columns of a tile: F is
// often triangular.
void arrange_columns(const float * f, int64_t head_dim, std::vector<float> & columns, std::vector<int64_t> & begin) {
    std::fill(begin.begin(), begin.end(), head_dim);
    for (int64_t o = 0; o < head_dim; ++o) {
        int64_t top = head_dim;
        for (int64_t i = head_dim - 1; i >= 0; --i) {
            columns[(o/n_col*head_dim + i)*n_col + o%n_col] = f[o*head_dim + i];
            top = f[o*head_dim + i] != 0.0f ? i : top;
        }
        begin[o/n_col] = std::min(begin[o/n_col], top);
    }
}

// n: a multiple of n_lane
template <int64_t n_lane>
RESTKV_INLINE float norm_of_difference(const float * a, const float * b, int64_t n) {
    vec<n_lane> sums = {};
    for (int64_t i = 0; i < n; i += n_lane) {
        const vec<n_lane> diff = load<n_lane>(a + i) - load<n_lane>(b + i);
        sums += diff*diff;
    }
    for (int64_t half = n_lane/2; half > 0; half /= 2) {
        for (int64_t l = 0; l < half; ++l) {
            sums[l] += sums[l + half];
        }
    }
    return std::sqrt(sums[0]);
}

// ||v F - z|| in one pass: the images v F, as large as the cache for each query head of a group, never reach memory.
struct distance {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * v       = dst->src[0];
        const ggml_tensor * factors = dst->src[1]; // [head_dim, head_dim*n_gqa, n_head_kv]
        const ggml_tensor * z       = dst->src[2];
        GGML_UNUSED(userdata);

        const int64_t head_dim = v->ne[0];
        const int64_t n_used   = v->ne[1];
        const int64_t n_z      = dst->ne[1];
        const int64_t n_head   = dst->ne[2];
        const int64_t n_gqa    = n_head/v->ne[2];
        const int64_t n_tile   = (head_dim + n_col - 1)/n_col;
        const int64_t n_block  = (n_used + n_row - 1)/n_row;

        std::vector<float> columns(n_tile*head_dim*n_col); // the last tile filled up with 0
        std::vector<int64_t> begin(n_tile);
        std::vector<float> target(n_tile*n_col);
        std::vector<float> image(n_row*n_tile*n_col);

        for (int64_t h = 0; h < n_head; ++h) {
            arrange_columns((const float *) factors->data + h*head_dim*head_dim, head_dim, columns, begin);
            for (int64_t block = n_block*ith/nth; block < n_block*(ith + 1)/nth; ++block) {
                const int64_t first = block*n_row;
                const float * rows[n_row];
                for (int64_t r = 0; r < n_row; ++r) {
                    rows[r] = (const float *) v->data + (h/n_gqa*n_used + std::min(first + r, n_used - 1))*head_dim;
                }
                for (int64_t t = 0; t < n_tile; ++t) {
                    vec<n_lane> sum[n_row][n_col/n_lane];
                    multiply_tile<n_lane>(rows, columns.data() + t*head_dim*n_col, begin[t], head_dim, sum);
                    for (int64_t r = 0; r < n_row; ++r) {
                        store_tile_row<n_lane>(sum[r], image.data() + (r*n_tile + t)*n_col);
                    }
                }
                for (int64_t w = 0; w < n_z; ++w) {
                    if (z) {
                        const float * from = (const float *) z->data + (h*n_z + w)*head_dim;
                        std::copy(from, from + head_dim, target.begin());
                    }
                    for (int64_t r = 0; r < n_row && first + r < n_used; ++r) {
                        ((float *) dst->data)[(h*n_z + w)*n_used + first + r] = norm_of_difference<n_lane>(image.data() + r*n_tile*n_col, target.data(), n_tile*n_col);
                    }
                }
            }
        }
    }
};

#endif

} // namespace

const llama_restkv_score_cpu & llama_restkv_score_on_cpu() {
#ifdef __GNUC__
    static const llama_restkv_score_cpu ops = {
        restkv_widest<gather>(), restkv_widest<maximum>(), restkv_widest<logits>(), restkv_widest<softmax>(), restkv_widest<distance>(),
    };
#else
    static const llama_restkv_score_cpu ops = { nullptr, restkv_widest<maximum>(), nullptr, nullptr, nullptr };
#endif
    return ops;
}
