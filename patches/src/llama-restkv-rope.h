#pragma once

#include "ggml.h"

#include <cstdint>
#include <list>
#include <vector>

struct llama_context;
class llama_restkv_run;

// x [n_embd_head, n] turned by shift [n] positions, with the model's RoPE of layer il. Rotations add up, so
// R(p + shift) = R(shift) R(p) for every type whose angle is linear in the position. Magnitudes stay as they are.
ggml_tensor * llama_restkv_rotate(const llama_context * lctx, ggml_context * ctx, ggml_tensor * x, ggml_tensor * shift, int32_t il);

// Turns many keys by few different shifts: on a CPU sines and cosines cost more than all else, so that each shift's are
// computed once.
class llama_restkv_turner {
public:
    // shift: all n that keys will be turned by. They and this object must live until run.compute() returns.
    llama_restkv_turner(const llama_context * lctx, llama_restkv_run & run, const int32_t * shift, size_t n);

    // rows [n_embd_head, n_rows] at idxs, each turned by its shift: as 32-bit words of their own type (I32) where that is
    // possible, else F32
    ggml_tensor * rotate(ggml_tensor * rows, ggml_tensor * idxs, const int32_t * shift, int32_t il, bool on_host);

private:
    struct table {
        int32_t il; // stands for every layer with the same RoPE
        int64_t head_dim;
        int32_t rope[2];      // rotated dimensions, type
        std::vector<float> unit;
        ggml_tensor * turned; // F32 [head_dim, back.size()]: (1, 0) of each pair
    };

    const table & table_of(int32_t il, int64_t head_dim);

    const llama_context * lctx;
    llama_restkv_run & run;

    std::vector<int32_t> back; // 0, -1, -2, ... as far as keys are turned; empty: no table pays
    std::list<table> tables;
};
