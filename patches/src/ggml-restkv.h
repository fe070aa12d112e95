#pragma once

// What a pool asks of flash attention on a CPU: the last parameter of the operation, which upstream leaves at 0 and other
// devices do not look at.

#include "ggml.h"

enum restkv_tiles : int32_t {
    RESTKV_TILES_UPSTREAM = 0, // upstream's loops
    RESTKV_TILES_EQUAL    = 1, // ours wherever they give upstream's values to the bit
    RESTKV_TILES_ANY      = 2, // ours for fewer tokens too, which upstream sums up in halves
};

inline void restkv_ask_for_tiles(ggml_tensor * attention, restkv_tiles tiles) {
    attention->op_params[GGML_MAX_OP_PARAMS/sizeof(int32_t) - 1] = tiles;
}

inline restkv_tiles restkv_tiles_asked(const ggml_tensor * attention) {
    return restkv_tiles(attention->op_params[GGML_MAX_OP_PARAMS/sizeof(int32_t) - 1]);
}
