#pragma once

// Explicit vectors, and products of short rows whose sums stay in registers. For GCC and Clang.

#include "llama-restkv-vectors.h"

#ifdef __GNUC__

#include <algorithm>
#include <cstdint>
#include <cstring>

#pragma GCC diagnostic ignored "-Wpsabi" // no vector is passed to a function that is not inlined

namespace restkv_tile {

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

} // namespace restkv_tile

#endif
