#pragma once

// Operations of our own on a CPU, compiled for vectors of several widths: a compiler takes a vector that is wider than the
// CPU's apart in memory, and one that is narrower leaves the CPU half idle.

#include "llama-restkv-op.h"

#ifdef _MSC_VER
#define RESTKV_INLINE __forceinline
#else
#define RESTKV_INLINE __attribute__((always_inline)) inline // into each of the functions below, with its vectors
#endif

// MinGW's GCC keeps no stack aligned to wide vectors (its bug 54412).
#if defined(__GNUC__) && defined(__x86_64__) && (!defined(_WIN32) || defined(__clang__))
#define RESTKV_WIDER
#endif

namespace restkv_vectors {

#ifdef RESTKV_WIDER
template <typename op> __attribute__((target("avx512f")))
void run_16(ggml_tensor * dst, int ith, int nth, void * userdata) { op::template run<16>(dst, ith, nth, userdata); }

template <typename op> __attribute__((target("avx2,fma")))
void run_8(ggml_tensor * dst, int ith, int nth, void * userdata) { op::template run<8>(dst, ith, nth, userdata); }
#endif

template <typename op>
void run_4(ggml_tensor * dst, int ith, int nth, void * userdata) { op::template run<4>(dst, ith, nth, userdata); }

} // namespace restkv_vectors

// op: has a template <int64_t n_lane> static RESTKV_INLINE void run(dst, ith, nth, userdata), n_lane floats a vector
template <typename op>
ggml_custom_op_t restkv_widest() {
#ifdef RESTKV_WIDER
    if (__builtin_cpu_supports("avx512f")) {
        return restkv_counted<restkv_vectors::run_16<op>>;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return restkv_counted<restkv_vectors::run_8<op>>;
    }
#endif
    return restkv_counted<restkv_vectors::run_4<op>>;
}
