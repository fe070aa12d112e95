#include "llama-restkv-score-cpu.h"
#include "llama-restkv-rows.h"
#include "llama-restkv-tile.h"
#include "llama-restkv-vectors.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace {

// A row times factor into what was reduced so far: the larger of both, or both added up.
RESTKV_INLINE void reduce_into(float * out, const float * row, float factor, int64_t n, bool largest) {
    if (largest) {
        for (int64_t j = 0; j < n; ++j) {
            out[j] = out[j] < row[j]*factor ? row[j]*factor : out[j];
        }
        return;
    }
    for (int64_t j = 0; j < n; ++j) {
        out[j] += row[j]*factor;
    }
}

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
                reduce_into(out, a + w*n_used, 1.0f, n_used, true);
            }
        }
    }
};

#ifdef __GNUC__
using namespace restkv_tile;

// what slots without a row get: dst [n_used, n, n_head]
void zero_absent(ggml_tensor * dst, const ggml_tensor * absent, int ith, int nth) {
    const int64_t n_query = dst->ne[1]*dst->ne[2]/absent->ne[0];
    for (int64_t i = ith; i < dst->ne[1]*dst->ne[2]; i += nth) {
        float * row = (float *) dst->data + i*dst->ne[0];
        std::fill(row, row + ((const int32_t *) absent->data)[i/n_query], 0.0f);
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

// softmax(QK') of a few queries of one query head: no more than what stays in the second cache.
template <int64_t n_lane>
struct attending {
    static constexpr int64_t n_rows = n_row<n_lane>;

    const llama_restkv_attention_args & args;
    restkv_reader       k;
    const ggml_tensor * absent; // [n_head_kv]
    const ggml_tensor * q;      // [head_dim, n_window, n_head]
    const ggml_tensor * mask;   // [n_used, n_window]
    const ggml_tensor * sinks;  // [n_head], or null

    const int64_t head_dim = q->ne[0];
    const int64_t n_window = q->ne[1];
    const int64_t n_used   = mask->ne[0];
    const int64_t n_gqa    = q->ne[2]/absent->ne[0];
    const int64_t n_filled = (n_used + n_col - 1)/n_col*n_col + n_col; // queries a power of two apart would share few places of a cache

    int64_t packed = -1; // KV head
    int64_t first  = 0;  // slot of its oldest row
    int64_t n      = 0;  // its rows
    std::vector<float> keys = std::vector<float>(n_col*head_dim);
    std::unique_ptr<float[]> columns { new float[n_filled*head_dim] }; // sixteen keys side by side, then the next sixteen
    std::unique_ptr<float[]> shares  { new float[LLAMA_RESTKV_N_QUERY*n_filled] };
    float factors[LLAMA_RESTKV_N_QUERY];

    attending(const ggml_tensor * dst, const void * userdata) : args(*(const llama_restkv_attention_args *) userdata),
        k(dst->src[0], dst->src[1]), absent(dst->src[2]), q(dst->src[3]), mask(dst->src[4]), sinks(dst->src[5]) {}

    // A thread's share of the queries: some of a query head's at a time. Heads hold different numbers of rows: those are shared.
    std::vector<restkv_part> share(int ith, int nth) const {
        const auto n_rows_of = [&](int64_t h) { return n_used - ((const int32_t *) absent->data)[h/n_gqa]; };
        int64_t total = 0, done = 0;
        std::vector<restkv_part> parts;
        for (int64_t h = 0; h < q->ne[2]; ++h) {
            total += n_rows_of(h)*n_window;
        }
        for (int64_t h = 0; h < q->ne[2]; ++h) {
            for (int64_t w = 0; w < n_window; w += LLAMA_RESTKV_N_QUERY) {
                const int64_t n_here = std::min(LLAMA_RESTKV_N_QUERY, n_window - w);
                if (done*nth/total == ith) {
                    parts.push_back({ h, w, n_here });
                }
                done += n_rows_of(h)*n_here;
            }
        }
        return parts;
    }

    // of n rows from slot `first` on: query i's shares are shares[i*n_filled...] times factors[i]
    RESTKV_INLINE void run(const restkv_part & part) {
        if (packed != part.head/n_gqa) {
            packed = part.head/n_gqa;
            pack();
        }
        multiply(part);
        for (int64_t i = 0; i < part.n; ++i) {
            factors[i] = exponentiate(part.head, part.first + i, shares.get() + i*n_filled);
        }
    }

private:
    RESTKV_INLINE void pack() {
        first = ((const int32_t *) absent->data)[packed];
        n     = n_used - first;
        for (int64_t j = 0; j < n; j += n_col) {
            for (int64_t c = 0; c < n_col; ++c) { // the last one stands in beyond the end
                k.read(packed*n_used + first + std::min(j + c, n - 1), 0, head_dim, keys.data() + c*head_dim);
            }
            float * to = columns.get() + j*head_dim;
            for (int64_t i = 0; i < head_dim; ++i) {
                for (int64_t c = 0; c < n_col; ++c) {
                    to[i*n_col + c] = keys[c*head_dim + i];
                }
            }
        }
    }

    RESTKV_INLINE void multiply(const restkv_part & part) {
        const float * queries = (const float *) q->data + (part.head*n_window + part.first)*head_dim;
        for (int64_t j = 0; j < n; j += n_col) { // a tile of keys stays in the first cache for all queries
            for (int64_t i = 0; i < part.n; i += n_rows) {
                const float * rows[n_rows];
                for (int64_t r = 0; r < n_rows; ++r) {
                    rows[r] = queries + std::min(i + r, part.n - 1)*head_dim;
                }
                tile<n_lane> sums;
                sums.multiply(rows, columns.get() + j*head_dim, 0, head_dim);
                sums.store_to(shares.get() + i*n_filled + j, n_filled, part.n - i, n_col);
            }
        }
    }

    // products of a query -> shares, but for a factor that is returned
    RESTKV_INLINE float exponentiate(int64_t h, int64_t w, float * row) const {
        const float * m = (const float *) mask->data + w*n_used + first;
        if (args.softcap != 0.0f) {
            for (int64_t j = 0; j < n; ++j) {
                row[j] = args.softcap/args.scale*std::tanh(row[j]*(args.scale/args.softcap));
            }
        }
        const int64_t n_whole = n/n_lane*n_lane, n_padded = (n + n_lane - 1)/n_lane*n_lane;
        vec<n_lane> most = vec<n_lane>{} - INFINITY;
        for (int64_t j = 0; j < n_whole; j += n_lane) {
            const vec<n_lane> x = load<n_lane>(row + j)*args.scale + load<n_lane>(m + j);
            store<n_lane>(x, row + j);
            most = most < x ? x : most;
        }
        float max = sinks ? ((const float *) sinks->data)[h] : -INFINITY;
        for (int64_t l = 0; l < n_lane; ++l) {
            max = std::max<float>(max, most[l]);
        }
        for (int64_t j = n_whole; j < n_padded; ++j) { // the last vector filled up with what has no share
            row[j] = j < n ? row[j]*args.scale + m[j] : -INFINITY;
            max = std::max(max, row[j]);
        }
        vec<n_lane> sums = {};
        for (int64_t j = 0; j < n_padded; j += n_lane) {
            const vec<n_lane> x = exponential<n_lane>(load<n_lane>(row + j) - max);
            store<n_lane>(x, row + j);
            sums += x;
        }
        float lanes[n_lane];
        store<n_lane>(sums, lanes);
        return 1.0f/(sum_lanes<n_lane>(lanes) + (sinks ? std::exp(((const float *) sinks->data)[h] - max) : 0.0f));
    }
};

struct attention {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        attending<n_lane> op(dst, userdata);
        zero_absent(dst, op.absent, ith, nth);
        for (const auto & part : op.share(ith, nth)) {
            op.run(part);
            for (int64_t i = 0; i < part.n; ++i) {
                const float * row = op.shares.get() + i*op.n_filled;
                float * out = (float *) dst->data + (part.head*op.n_window + part.first + i)*op.n_used + op.first;
                for (int64_t j = 0; j < op.n; ++j) {
                    out[j] = row[j]*op.factors[i];
                }
            }
        }
    }
};

// As many queries at a time make a part of each reduction, whoever computes it.
struct reductions {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        attending<n_lane> op(dst, userdata);
        const ggml_tensor * weights = dst->src[6];
        const int64_t n_weights = op.args.n_weights;

        for (const auto & part : op.share(ith, nth)) {
            op.run(part);
            for (int64_t r = 0; r < dst->ne[2]; ++r) {
                float * out = (float *) dst->data + ((part.first/LLAMA_RESTKV_N_QUERY*dst->ne[2] + r)*dst->ne[1] + part.head)*op.n_used;
                std::fill(out, out + op.n_used, 0.0f);
                out += op.first;
                for (int64_t i = 0; i < part.n; ++i) {
                    const float * row = op.shares.get() + i*op.n_filled;
                    float factor = op.factors[i];
                    if (r < n_weights) {
                        factor *= ((const float *) weights->data)[(part.head*op.n_window + part.first + i)*n_weights + r];
                    }
                    reduce_into(out, row, factor, op.n, r == n_weights);
                }
            }
        }
    }
};

struct combined {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * parts = dst->src[0];
        const int64_t n_weights = ((const llama_restkv_attention_args *) userdata)->n_weights;
        const int64_t n = dst->ne[0];
        for (int64_t i = ith; i < dst->ne[1]*dst->ne[2]; i += nth) {
            const float * part = (const float *) parts->data + i*n;
            float * out = (float *) dst->data + i*n;
            std::copy(part, part + n, out);
            for (int64_t p = 1; p < parts->ne[3]; ++p) {
                reduce_into(out, part + p*dst->ne[1]*dst->ne[2]*n, 1.0f, n, i/dst->ne[1] == n_weights);
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

// What the factors F make of a KV head's rows, for each of its query heads: as large as the cache for each, and never in memory.
template <int64_t n_lane>
struct images {
    static constexpr int64_t n_rows = n_row<n_lane>;

    const ggml_tensor * factors; // [head_dim, head_dim*n_gqa, n_head_kv]
    const int64_t head_dim = factors->ne[0];
    const int64_t n_gqa    = factors->ne[1]/head_dim;
    const int64_t n_tile   = (head_dim + n_col - 1)/n_col;
    const int64_t n_filled = n_tile*n_col;

    int64_t head = -1;
    std::vector<float>   columns = std::vector<float>(n_gqa*head_dim*n_filled); // the last tile of a head filled up with 0
    std::vector<int64_t> begin   = std::vector<int64_t>(n_gqa*n_tile);
    std::vector<float>   sums    = {};

    explicit images(const ggml_tensor * factors) : factors(factors) {}

    const float * of(int64_t h_kv, int64_t g) const { return (const float *) factors->data + (h_kv*n_gqa + g)*head_dim*head_dim; }

    void arrange(int64_t h_kv) {
        for (int64_t g = 0; g < n_gqa && head != h_kv; ++g) {
            arrange_columns(of(h_kv, g), head_dim, columns.data() + g*head_dim*n_filled, begin.data() + g*n_tile);
        }
        head = h_kv;
    }

    // ||rows[r] F - z||^2 for query head g, z [n_filled, n_z] -> out[w*n_rows + r]
    RESTKV_INLINE void squares(const float * const * rows, int64_t g, const float * z, int64_t n_z, float * out) {
        sums.assign(n_z*n_rows*n_lane, 0.0f);
        for (int64_t t = 0; t < n_tile; ++t) {
            tile<n_lane> image;
            image.multiply(rows, columns.data() + (g*n_tile + t)*head_dim*n_col, begin[g*n_tile + t], head_dim);
            for (int64_t w = 0; w < n_z; ++w) {
                typename tile<n_lane>::line_of target;
                target.load_from(z + w*n_filled + t*n_col);
                image.add_squares(sums.data() + w*n_rows*n_lane, target);
            }
        }
        for (int64_t i = 0; i < n_z*n_rows; ++i) {
            out[i] = sum_lanes<n_lane>(sums.data() + i*n_lane);
        }
    }
};

template <int64_t n_lane>
constexpr int64_t n_some = 8*n_row<n_lane>; // rows that stay in the first cache for all heads of a group

struct norms {
    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * absent = dst->src[3];
        const uint32_t    n_normed = *(const uint32_t *) userdata;
        constexpr int64_t n_rows   = n_row<n_lane>;

        restkv_reader v(dst->src[1], dst->src[2]);
        images<n_lane> image(dst->src[4]);
        const int64_t n_used = dst->src[2]->ne[0]/absent->ne[0];

        std::vector<float> values(n_some<n_lane>*image.head_dim);
        const std::vector<float> zero(image.n_filled);

        for (const auto & [h, first, n] : restkv_share(absent, n_normed, n_used, n_some<n_lane>, ith, nth)) {
            image.arrange(h);
            for (int64_t j = 0; j < n; ++j) {
                v.read(h*n_used + first + j, 0, image.head_dim, values.data() + j*image.head_dim);
            }
            for (int64_t g = 0; g < image.n_gqa; ++g) {
                for (int64_t j = 0; j < n; j += n_rows) {
                    const float * rows[n_rows];
                    for (int64_t r = 0; r < n_rows; ++r) {
                        rows[r] = values.data() + std::min(j + r, n - 1)*image.head_dim;
                    }
                    float squares[n_rows];
                    image.squares(rows, g, zero.data(), 1, squares);
                    for (int64_t r = 0; r < n_rows && j + r < n; ++r) {
                        ((float *) dst->data)[v.idxs[h*n_used + first + j + r]*dst->ne[0] + g] = squares[r];
                    }
                }
            }
        }
    }
};

// ||v F - z||, by ||v F||^2 - 2 v (F z) + ||z||^2 unless that cancels: where a row takes all the attention, exactly. Such rows, by
// direct difference. A sixteenth of the two squares leaves 20 bits.
struct distance {
    static constexpr float least = 1.0f/16;

    template <int64_t n_lane>
    static RESTKV_INLINE void run(ggml_tensor * dst, int ith, int nth, void * userdata) {
        const ggml_tensor * absent = dst->src[2];
        const ggml_tensor * norms  = dst->src[4];
        const ggml_tensor * z      = dst->src[5];
        GGML_UNUSED(userdata);
        constexpr int64_t n_rows = n_row<n_lane>;

        restkv_reader v(dst->src[0], dst->src[1]);
        images<n_lane> image(dst->src[3]);
        const int64_t head_dim = image.head_dim;
        const int64_t n_gqa    = image.n_gqa;
        const int64_t n_filled = image.n_filled;
        const int64_t n_used   = dst->ne[0];
        const int64_t n_z      = dst->ne[1];

        std::vector<float> values(n_some<n_lane>*n_filled); // filled up with 0, as what follows
        std::vector<float> targets(n_gqa*n_z*n_filled);     // z
        std::vector<float> duals(n_gqa*n_z*n_filled);       // F z
        std::vector<float> sizes(n_gqa*n_z);                // ||z||^2
        std::vector<float> squares(n_z*n_rows);
        int64_t cancelled[n_some<n_lane>];

        int64_t head = -1;
        zero_absent(dst, absent, ith, nth);
        for (const auto & [h_kv, first, n] : restkv_share(absent, 0, n_used, n_some<n_lane>, ith, nth)) {
            for (int64_t i = 0; z && head != h_kv && i < n_gqa*n_z; ++i) {
                const float * from = (const float *) z->data + (h_kv*n_gqa*n_z + i)*head_dim;
                const float * f    = image.of(h_kv, i/n_z);
                float * dual = duals.data() + i*n_filled;
                std::copy(from, from + head_dim, targets.begin() + i*n_filled);
                std::fill(dual, dual + head_dim, 0.0f);
                sizes[i] = 0.0f;
                for (int64_t o = 0; o < head_dim; ++o) {
                    sizes[i] += from[o]*from[o];
                    for (int64_t d = 0; d < head_dim; ++d) {
                        dual[d] += from[o]*f[o*head_dim + d];
                    }
                }
            }
            head = h_kv;

            for (int64_t j = 0; z && j < n; ++j) {
                v.read(h_kv*n_used + first + j, 0, head_dim, values.data() + j*n_filled);
            }
            for (int64_t g = 0; g < n_gqa; ++g) {
                float * out = (float *) dst->data + (h_kv*n_gqa + g)*n_z*n_used + first;
                int64_t n_cancelled = 0;
                for (int64_t j = 0; j < n; ++j) {
                    const float own = ((const float *) norms->data)[v.idxs[h_kv*n_used + first + j]*norms->ne[0] + g];
                    if (!z) {
                        out[j] = std::sqrt(own);
                        continue;
                    }
                    bool cancels = false;
                    for (int64_t w = 0; w < n_z; ++w) {
                        const float * dual = duals.data() + (g*n_z + w)*n_filled;
                        vec<n_lane> sum = {};
                        for (int64_t d = 0; d < n_filled; d += n_lane) {
                            sum += load<n_lane>(values.data() + j*n_filled + d)*load<n_lane>(dual + d);
                        }
                        float lanes[n_lane];
                        store<n_lane>(sum, lanes);
                        const float both   = own + sizes[g*n_z + w];
                        const float square = both - 2.0f*sum_lanes<n_lane>(lanes);
                        cancels = cancels || !(square >= least*both); // what is not a number, too
                        out[w*n_used + j] = std::sqrt(square);
                    }
                    if (cancels) {
                        cancelled[n_cancelled++] = j;
                    }
                }
                for (int64_t k = 0; k < n_cancelled; k += n_rows) {
                    const float * rows[n_rows];
                    for (int64_t r = 0; r < n_rows; ++r) {
                        rows[r] = values.data() + cancelled[std::min(k + r, n_cancelled - 1)]*n_filled;
                    }
                    image.arrange(h_kv);
                    image.squares(rows, g, targets.data() + g*n_z*n_filled, n_z, squares.data());
                    for (int64_t w = 0; w < n_z; ++w) {
                        for (int64_t r = 0; r < n_rows && k + r < n_cancelled; ++r) {
                            out[w*n_used + cancelled[k + r]] = std::sqrt(squares[w*n_rows + r]);
                        }
                    }
                }
            }
        }
    }
};

#endif

} // namespace

// RESTKV_VECTORS=0: ggml's operations serve, as on other devices, to compare with.
const llama_restkv_score_cpu & llama_restkv_score_on_cpu() {
    static const llama_restkv_score_cpu ops = [] {
        llama_restkv_score_cpu res = {};
        res.maximum = restkv_widest<maximum>();
#ifdef __GNUC__
        const char * env = std::getenv("RESTKV_VECTORS");
        if (!env || std::strcmp(env, "0") != 0) {
            res.attention  = restkv_widest<attention>();
            res.reductions = restkv_widest<reductions>();
            res.combined   = restkv_widest<combined>();
            res.outputs    = restkv_widest<outputs>();
            res.norms      = restkv_widest<norms>();
            res.distance   = restkv_widest<distance>();
        }
#endif
        return res;
    }();
    return ops;
}
