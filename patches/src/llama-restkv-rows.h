#pragma once

// Rows of a pool by index, for operations of our own on a CPU.

#include "llama-restkv-vectors.h"

#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <vector>

// Halves as floats, to the bit; ggml's own way in vectors is inside its CPU backend, which may be loaded at run time. A half's
// exponent and fraction read as a float's are too small by 2^112, subnormal or not.
RESTKV_INLINE void restkv_widen(const uint16_t * GGML_RESTRICT from, float * GGML_RESTRICT to, int64_t n) {
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

// Floats as halves, to the nearest, ties to even, as ggml. A float plus 0.5 ends where the last bit of a subnormal half is.
RESTKV_INLINE void restkv_narrow(const float * GGML_RESTRICT from, uint16_t * GGML_RESTRICT to, int64_t n) {
    for (int64_t i = 0; i < n; ++i) {
        uint32_t bits, ended;
        std::memcpy(&bits, from + i, sizeof(bits));
        const uint32_t size = bits & 0x7FFFFFFF;
        float value;
        std::memcpy(&value, &size, sizeof(value));
        value += 0.5f;
        std::memcpy(&ended, &value, sizeof(ended));

        // no branch, so that vectors serve
        const uint32_t is_small = 0u - (int32_t(size) < 0x38800000);
        const uint32_t is_large = 0u - (int32_t(size) > 0x477FFFFF);
        const uint32_t is_nan   = 0u - (int32_t(size) > 0x7F800000);
        const uint32_t small  = ended - 0x3F000000;
        const uint32_t normal = (size - 0x38000000 + 0x0FFF + (size >> 13 & 1)) >> 13;
        const uint32_t large  = 0x7C00 | (is_nan & 0x0200);
        const uint32_t half   = (is_small & small) | (is_large & large) | (~is_small & ~is_large & normal);
        to[i] = uint16_t(half | (bits >> 16 & 0x8000));
    }
}

// Rows [head_dim, n_rows] of any type, by index, as floats.
struct restkv_reader {
    const ggml_tensor * rows;
    const int32_t     * idxs;
    ggml_to_float_t     to_float = nullptr;
    std::vector<float>  whole; // a row of blocks

    restkv_reader(const ggml_tensor * rows, const ggml_tensor * by) : rows(rows), idxs((const int32_t *) by->data) {
        if (rows->type != GGML_TYPE_F16 && rows->type != GGML_TYPE_F32) {
            to_float = ggml_get_type_traits(rows->type)->to_float;
            whole.resize(rows->ne[0]);
        }
    }

    // values [first, first + n) of the row at idxs[i]
    RESTKV_INLINE void read(int64_t i, int64_t first, int64_t n, float * to) {
        const char * row = (const char *) rows->data + idxs[i]*rows->nb[1];
        if (rows->type == GGML_TYPE_F16) {
            restkv_widen((const uint16_t *) row + first, to, n);
        } else if (rows->type == GGML_TYPE_F32) {
            std::memcpy(to, (const float *) row + first, n*sizeof(float));
        } else {
            to_float(row, whole.data(), rows->ne[0]);
            std::copy(whole.begin() + first, whole.begin() + first + n, to);
        }
    }
};

// n slots of a KV head from first on
struct restkv_part {
    int64_t head, first, n;
};

// A thread's share of the rows that KV heads hold in slots [begin, n_used), at most n_some at a time: in the slots before
// absent [n_head_kv] there are none.
inline std::vector<restkv_part> restkv_share(const ggml_tensor * absent, int64_t begin, int64_t n_used, int64_t n_some, int ith, int nth) {
    std::vector<restkv_part> parts;
    for (int64_t h = 0; h < absent->ne[0]; ++h) {
        for (int64_t first = std::max<int64_t>(begin, ((const int32_t *) absent->data)[h]); first < n_used; first += n_some) {
            parts.push_back({ h, first, std::min(n_some, n_used - first) });
        }
    }
    const int64_t n_part = parts.size();
    return { parts.begin() + n_part*ith/nth, parts.begin() + n_part*(ith + 1)/nth };
}
