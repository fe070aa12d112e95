#pragma once

// A graph of our own between two decodes: built from nothing, run by the context's scheduler on the devices that own
// its tensors, then forgotten. Used by scoring and compaction.

#include "llama-restkv.h"

#include "ggml-cpp.h"

#include <functional>
#include <memory>
#include <stdexcept>
#include <vector>

struct llama_restkv_error : std::runtime_error {
    llama_restkv_error(llama_restkv_status status, const std::string & what) : std::runtime_error(what), status(status) {}
    llama_restkv_status status;
};

// dimensions 0 and 1 swapped, in memory of its own
inline ggml_tensor * transpose(ggml_context * ctx, ggml_tensor * cur) {
    return ggml_cont(ctx, ggml_permute(ctx, cur, 1, 0, 2, 3));
}

class llama_restkv_run {
public:
    llama_restkv_run(llama_context * ctx, size_t max_nodes);

    ggml_context * get_ctx() const { return ctx_ggml.get(); }

    // a tensor filled from data once the graph has memory; data must live until compute() returns
    ggml_tensor * input(ggml_type type, const void * data, int64_t ne0, int64_t ne1 = 1, int64_t ne2 = 1);

    // computes cur; out (ggml_nbytes(cur) bytes) is filled by compute()
    void output(ggml_tensor * cur, void * out);

    void expand(ggml_tensor * cur);
    void compute(); // throws llama_restkv_error

private:
    void forget_plan();

    llama_context *            lctx;
    std::unique_ptr<uint8_t[]> nodes;
    ggml_context_ptr           ctx_ggml;
    ggml_cgraph *              gf;

    std::vector<std::pair<ggml_tensor *, const void *>> inputs;
    std::vector<std::pair<ggml_tensor *, void *>>       outputs;
};
