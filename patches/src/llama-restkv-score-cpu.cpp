#include "llama-restkv-score-cpu.h"
#include "llama-restkv-rows.h"
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

// Products of short rows: ggml's kernels sum along a row, and with so few values they mostly add up what is left in their
// registers. Here columns stand side by side, and the sums of some rows with them stay in registers (AVX2, AVX-512, NEON).
constexpr int64_t n_col = 16;
template <int64_t n_lane>
constexpr int64_t n_row = n_lane == 16 ? 8 : 6; // AVX-512 has twice as many registers

// n vectors side by side: members by name, because GCC keeps an array that a loop of its own fills in memory
template <int64_t n_lane, int64_t n>
struct line {
    vec<n_lane> first;
    line<n_lane, n - 1> others;

    RESTKV_INLINE void clear() {
        first = vec<n_lane>{};
        others.clear();
    }
    RESTKV_INLINE void load_from(const float * from) {
        first = load<n_lane>(from);
        others.load_from(from + n_lane);
    }
    RESTKV_INLINE void store_to(float * to) const {
        store<n_lane>(first, to);
        others.store_to(to + n_lane);
    }
    RESTKV_INLINE void add(float scale, const line & x) {
        first += scale*x.first;
        others.add(scale, x.others);
    }
    RESTKV_INLINE vec<n_lane> add_squares(vec<n_lane> sum, const line & from) const { // of the difference
        const vec<n_lane> diff = first - from.first;
        return others.add_squares(sum + diff*diff, from.others);
    }
};

template <int64_t n_lane>
struct line<n_lane, 0> {
    RESTKV_INLINE void clear() {}
    RESTKV_INLINE void load_from(const float *) {}
    RESTKV_INLINE void store_to(float *) const {}
    RESTKV_INLINE void add(float, const line &) {}
    RESTKV_INLINE vec<n_lane> add_squares(vec<n_lane> sum, const line &) const { return sum; }
};

// n_rows rows of n_cols sums
template <int64_t n_lane, int64_t n_cols = n_col, int64_t n_rows = n_row<n_lane>>
struct tile {
    typedef line<n_lane, n_cols/n_lane> line_of;

    line_of top;
    tile<n_lane, n_cols, n_rows - 1> below;

    RESTKV_INLINE void clear() {
        top.clear();
        below.clear();
    }
    RESTKV_INLINE void add(const float * const * rows, int64_t i, const line_of & x) {
        top.add(rows[0][i], x);
        below.add(rows + 1, i, x);
    }
    // the same rows[r][i] with columns[i], i from begin to end
    RESTKV_INLINE void multiply(const float * const * rows, const float * columns, int64_t begin, int64_t end) {
        clear();
        for (int64_t i = begin; i < end; ++i) {
            line_of x;
            x.load_from(columns + i*n_cols);
            add(rows, i, x);
        }
    }
    // the first n_there rows, stride apart, the first n_wide columns
    RESTKV_INLINE void store_to(float * to, int64_t stride, int64_t n_there, int64_t n_wide) const {
        if (n_there < 1) {
            return;
        }
        if (n_wide == n_cols) {
            top.store_to(to);
        } else {
            float all[n_cols];
            top.store_to(all);
            std::copy(all, all + n_wide, to);
        }
        below.store_to(to + stride, stride, n_there - 1, n_wide);
    }
    RESTKV_INLINE void add_squares(float * sums, const line_of & from) const { // n_lane floats a row
        store<n_lane>(top.add_squares(load<n_lane>(sums), from), sums);
        below.add_squares(sums + n_lane, from);
    }
};

template <int64_t n_lane, int64_t n_cols>
struct tile<n_lane, n_cols, 0> {
    typedef line<n_lane, n_cols/n_lane> line_of;

    RESTKV_INLINE void clear() {}
    RESTKV_INLINE void add(const float * const *, int64_t, const line_of &) {}
    RESTKV_INLINE void store_to(float *, int64_t, int64_t, int64_t) const {}
    RESTKV_INLINE void add_squares(float *, const line_of &) const {}
};

// what slots without a row get: dst [n_used, n, n_head]
void zero_absent(ggml_tensor * dst, const ggml_tensor * absent, int ith, int nth) {
    const int64_t n_query = dst->ne[1]*dst->ne[2]/absent->ne[0];
    for (int64_t i = ith; i < dst->ne[1]*dst->ne[2]; i += nth) {
        float * row = (float *) dst->data + i*dst->ne[0];
        std::fill(row, row + ((const int32_t *) absent->data)[i/n_query], 0.0f);
    }
}

struct logits {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * absent = dst->src[2];
        const ggml_tensor * q      = dst->src[3];
        GGML_UNUSED(userdata);

        restkv_reader k(dst->src[0], dst->src[1]);
        const int64_t head_dim = q->ne[0];
        const int64_t n_used   = dst->ne[0];
        const int64_t n_query  = q->ne[1]*q->ne[2]/absent->ne[0]; // of the heads that share a KV head
        constexpr int64_t n_rows = n_row<n_lane>;

        std::vector<float> keys(n_col*head_dim);
        std::vector<float> columns(head_dim*n_col); // sixteen keys side by side

        zero_absent(dst, absent, ith, nth);
        for (const auto & [h, first, n] : restkv_share(absent, n_used, n_col, ith, nth)) {
            for (int64_t j = 0; j < n; ++j) {
                k.read(h*n_used + first + j, 0, head_dim, keys.data() + j*head_dim);
            }
            for (int64_t i = 0; i < head_dim; ++i) {
                for (int64_t j = 0; j < n_col; ++j) {
                    columns[i*n_col + j] = keys[j*head_dim + i];
                }
            }
            for (int64_t w = 0; w < n_query; w += n_rows) {
                const float * rows[n_rows];
                for (int64_t r = 0; r < n_rows; ++r) {
                    rows[r] = (const float *) q->data + (h*n_query + std::min(w + r, n_query - 1))*head_dim;
                }
                tile<n_lane> sums;
                sums.multiply(rows, columns.data(), 0, head_dim);
                sums.store_to((float *) dst->data + (h*n_query + w)*n_used + first, n_used, n_query - w, n);
            }
        }
    }
};

// Halves added until one float is left; GCC takes a vector apart lane by lane.
template <int64_t n_lane>
RESTKV_INLINE float sum_lanes(const float * from) {
    if constexpr (n_lane == 1) {
        return from[0];
    } else {
        float half[n_lane/2];
        store<n_lane/2>(load<n_lane/2>(from) + load<n_lane/2>(from + n_lane/2), half);
        return sum_lanes<n_lane/2>(half);
    }
}

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
        const ggml_tensor * mask   = dst->src[1];
        const ggml_tensor * absent = dst->src[2];
        const float         scale  = *(const float *) userdata;

        const int64_t n_used   = dst->ne[0];
        const int64_t n_window = dst->ne[1];
        const int64_t n_query  = n_window*dst->ne[2]/absent->ne[0];

        std::vector<float> shares(n_used + n_lane);

        for (int64_t i = ith; i < n_window*dst->ne[2]; i += nth) { // in turn: heads hold rows of different numbers
            const int64_t first    = ((const int32_t *) absent->data)[i/n_query];
            const int64_t n        = n_used - first;
            const int64_t n_padded = (n + n_lane - 1)/n_lane*n_lane;
            const float * m   = (const float *) mask->data + i%n_window*n_used + first;
            float *       row = (float *) dst->data + i*n_used + first;

            for (int64_t j = 0; j < n; ++j) {
                shares[j] = row[j]*scale + m[j];
            }
            std::fill(shares.begin() + n, shares.begin() + n_padded, -INFINITY); // the last vector filled up with what has no share
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
            float lanes[n_lane];
            store<n_lane>(sums, lanes);
            const float share_of_1 = 1.0f/sum_lanes<n_lane>(lanes);
            for (int64_t j = 0; j < n; ++j) {
                row[j] = shares[j]*share_of_1;
            }
        }
    }
};

// The rows of a KV head weighted by attention: its query heads, all queries. Few at a time, for a group has few, and
// wide, for a row is read once for each width.
struct outputs {
    static constexpr int64_t n_few  = 3;
    static constexpr int64_t n_wide = 32;

    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * absent = dst->src[2];
        const ggml_tensor * attn   = dst->src[3];
        GGML_UNUSED(userdata);

        restkv_reader v(dst->src[0], dst->src[1]);
        const int64_t head_dim  = dst->ne[0];
        const int64_t n_used    = attn->ne[0];
        const int64_t n_head_kv = absent->ne[0];
        const int64_t n_tile    = (head_dim + n_wide - 1)/n_wide;
        const int64_t n_query   = attn->ne[1]*attn->ne[2]/n_head_kv;

        std::vector<float> columns(n_used*n_wide);

        for (int64_t task = ith; task < n_tile*n_head_kv; task += nth) {
            const int64_t h     = task/n_tile;
            const int64_t first = task%n_tile*n_wide;
            const int64_t n     = std::min(n_wide, head_dim - first);
            const int64_t begin = ((const int32_t *) absent->data)[h];
            for (int64_t j = begin; j < n_used; ++j) {
                v.read(h*n_used + j, first, n, columns.data() + j*n_wide); // what is beyond n counts for nothing
            }
            for (int64_t w = 0; w < n_query; w += n_few) {
                const float * rows[n_few];
                for (int64_t r = 0; r < n_few; ++r) {
                    rows[r] = (const float *) attn->data + (h*n_query + std::min(w + r, n_query - 1))*n_used;
                }
                tile<n_lane, n_wide, n_few> sums;
                sums.multiply(rows, columns.data(), begin, n_used);
                sums.store_to((float *) dst->data + (h*n_query + w)*head_dim + first, head_dim, n_query - w, n);
            }
        }
    }
};

// Puts the columns of F [head_dim, head_dim] side by side in tiles. Rows of F above begin are 0 in all columns of a tile: F is
// often triangular.
void arrange_columns(const float * f, int64_t head_dim, float * columns, int64_t * begin) {
    std::fill(begin, begin + (head_dim + n_col - 1)/n_col, head_dim);
    for (int64_t o = 0; o < head_dim; ++o) {
        int64_t top = head_dim;
        for (int64_t i = head_dim - 1; i >= 0; --i) {
            columns[(o/n_col*head_dim + i)*n_col + o%n_col] = f[o*head_dim + i];
            top = f[o*head_dim + i] != 0.0f ? i : top;
        }
        begin[o/n_col] = std::min(begin[o/n_col], top);
    }
}


// ||v F - z|| in one pass: the images v F, as large as the cache for each query head of a group, never reach memory.
struct distance {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * absent  = dst->src[2];
        const ggml_tensor * factors = dst->src[3]; // [head_dim, head_dim*n_gqa, n_head_kv]
        const ggml_tensor * z       = dst->src[4];
        GGML_UNUSED(userdata);

        restkv_reader v(dst->src[0], dst->src[1]);
        const int64_t head_dim  = factors->ne[0];
        const int64_t n_used    = dst->ne[0];
        const int64_t n_z       = dst->ne[1];
        const int64_t n_gqa     = dst->ne[2]/absent->ne[0];
        const int64_t n_tile    = (head_dim + n_col - 1)/n_col;
        const int64_t n_filled  = n_tile*n_col;
        constexpr int64_t n_rows = n_row<n_lane>;
        constexpr int64_t n_some = 8*n_rows; // rows that stay in the first cache for all heads of a group

        std::vector<float> columns(n_gqa*head_dim*n_filled); // the last tile of a head filled up with 0
        std::vector<int64_t> begin(n_gqa*n_tile);
        std::vector<float> values(n_some*head_dim);
        std::vector<float> targets(n_z*n_filled);
        std::vector<float> sums(n_z*n_rows*n_lane);

        int64_t arranged = -1;
        zero_absent(dst, absent, ith, nth);
        for (const auto & [h_kv, first, n] : restkv_share(absent, n_used, n_some, ith, nth)) {
            for (int64_t g = 0; g < n_gqa && arranged != h_kv; ++g) {
                arrange_columns((const float *) factors->data + (h_kv*n_gqa + g)*head_dim*head_dim, head_dim, columns.data() + g*head_dim*n_filled, begin.data() + g*n_tile);
            }
            arranged = h_kv;

            for (int64_t j = 0; j < n; ++j) {
                v.read(h_kv*n_used + first + j, 0, head_dim, values.data() + j*head_dim);
            }
            for (int64_t g = 0; g < n_gqa; ++g) {
                const int64_t h = h_kv*n_gqa + g;
                for (int64_t w = 0; z && w < n_z; ++w) {
                    const float * from = (const float *) z->data + (h*n_z + w)*head_dim;
                    std::copy(from, from + head_dim, targets.begin() + w*n_filled);
                }
                for (int64_t j = 0; j < n; j += n_rows) {
                    const float * rows[n_rows];
                    for (int64_t r = 0; r < n_rows; ++r) {
                        rows[r] = values.data() + std::min(j + r, n - 1)*head_dim;
                    }
                    std::fill(sums.begin(), sums.end(), 0.0f);
                    for (int64_t t = 0; t < n_tile; ++t) {
                        tile<n_lane> image;
                        image.multiply(rows, columns.data() + (g*n_tile + t)*head_dim*n_col, begin[g*n_tile + t], head_dim);
                        for (int64_t w = 0; w < n_z; ++w) {
                            typename tile<n_lane>::line_of target;
                            target.load_from(targets.data() + w*n_filled + t*n_col);
                            image.add_squares(sums.data() + w*n_rows*n_lane, target);
                        }
                    }
                    for (int64_t w = 0; w < n_z; ++w) {
                        float * out = (float *) dst->data + (h*n_z + w)*n_used + first + j;
                        for (int64_t r = 0; r < n_rows && j + r < n; ++r) {
                            out[r] = std::sqrt(sum_lanes<n_lane>(sums.data() + (w*n_rows + r)*n_lane));
                        }
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
        restkv_widest<maximum>(), restkv_widest<logits>(), restkv_widest<softmax>(), restkv_widest<outputs>(), restkv_widest<distance>(),
    };
#else
    static const llama_restkv_score_cpu ops = { restkv_widest<maximum>(), nullptr, nullptr, nullptr, nullptr };
#endif
    return ops;
}
