#pragma once

#include "ggml.h"

#include <cstdint>

struct llama_context;

// x [n_embd_head, n] turned by shift [n] positions, with the model's RoPE of layer il. Rotations add up, so
// R(p + shift) = R(shift) R(p) for every type whose angle is linear in the position. Magnitudes stay as they are.
ggml_tensor * llama_restkv_rotate(const llama_context * lctx, ggml_context * ctx, ggml_tensor * x, ggml_tensor * shift, int32_t il);
