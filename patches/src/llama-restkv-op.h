#pragma once

// An operation of our own runs on threads of ggml's, where an exception ends the process: one that gets no memory is counted
// instead, and llama_restkv_run::compute() fails.

#include "ggml.h"

#include <atomic>
#include <cstdint>
#include <new>

inline std::atomic<uint64_t> restkv_n_lacking { 0 };

template <ggml_custom_op_t op>
void restkv_counted(ggml_tensor * dst, int ith, int nth, void * userdata) {
    try {
        op(dst, ith, nth, userdata);
    } catch (const std::bad_alloc &) {
        ++restkv_n_lacking;
    }
}
