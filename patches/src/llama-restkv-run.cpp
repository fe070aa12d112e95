#include "llama-restkv-run.h"

#include "llama-restkv-op.h"
#include "llama-restkv-pool.h"

#include "llama-context.h"

// these belong to llama_context because the previous graphs and the memory are private to it
void llama_context::restkv_reset_graphs() {
    for (auto & res : gf_res_prev) {
        if (res) {
            res->reset();
        }
    }
    gf_res_prev_active = nullptr;
}

uint32_t llama_context::restkv_graph_nodes() const {
    const auto * pool = llama_restkv_pool_of(memory.get());
    return pool ? pool->n_nodes_extra() : 0;
}

// for a graph of one node
static const size_t n_nodes_tiny = 2;

llama_restkv_run::llama_restkv_run(llama_context * lctx, size_t max_nodes) : lctx(lctx) {
    // inputs and leaves come on top of the nodes
    const size_t size = 2*max_nodes*ggml_tensor_overhead() + ggml_graph_overhead_custom(2*max_nodes, false)
                      + 2*ggml_tensor_overhead() + ggml_graph_overhead_custom(n_nodes_tiny, false);
    nodes.reset(new uint8_t[size]); // ggml ends the process where it gets none itself
    ggml_init_params params = {
        /*.mem_size   =*/ size,
        /*.mem_buffer =*/ nodes.get(),
        /*.no_alloc   =*/ true,
    };
    ctx_ggml.reset(ggml_init(params));
    gf = ggml_new_graph_custom(ctx_ggml.get(), 2*max_nodes, false);
}

ggml_tensor * llama_restkv_run::input(ggml_type type, const void * data, int64_t ne0, int64_t ne1, int64_t ne2) {
    ggml_tensor * cur = ggml_new_tensor_3d(ctx_ggml.get(), type, ne0, ne1, ne2);
    ggml_set_input(cur);
    inputs.emplace_back(cur, data);
    return cur;
}

void llama_restkv_run::output(ggml_tensor * cur, void * out) {
    ggml_set_output(cur);
    ggml_build_forward_expand(gf, cur);
    outputs.emplace_back(cur, out);
}

void llama_restkv_run::expand(ggml_tensor * cur) {
    ggml_build_forward_expand(gf, cur);
}

// The allocator keeps the plan of a graph that it got no memory for, and would take the same graph for allocated the next
// time: another one in between makes it plan anew.
void llama_restkv_run::forget_plan() {
    auto * sched = lctx->get_sched();
    auto * tiny  = ggml_new_graph_custom(ctx_ggml.get(), n_nodes_tiny, false);
    auto * one   = ggml_new_tensor_1d(ctx_ggml.get(), GGML_TYPE_F32, 1);
    ggml_set_input(one);
    ggml_build_forward_expand(tiny, ggml_dup(ctx_ggml.get(), one));
    ggml_backend_sched_reset(sched);
    ggml_backend_sched_alloc_graph(sched, tiny);
    ggml_backend_sched_reset(sched);
}

void llama_restkv_run::compute() {
    auto * sched = lctx->get_sched();

    lctx->synchronize();
    lctx->restkv_reset_graphs();
    ggml_backend_sched_reset(sched);

    if (!ggml_backend_sched_alloc_graph(sched, gf)) {
        forget_plan();
        throw llama_restkv_error(LLAMA_RESTKV_NO_MEMORY, "no device memory for a graph of scoring or compaction");
    }
    for (const auto & [tensor, data] : inputs) {
        // an input that no node reads has no memory
        if (tensor->buffer) {
            ggml_backend_tensor_set(tensor, data, 0, ggml_nbytes(tensor));
        }
    }

    const uint64_t n_lacking = restkv_n_lacking;
    auto status = GGML_STATUS_ALLOC_FAILED;
    try {
        status = lctx->graph_compute(gf, true);
    } catch (const std::bad_alloc &) {
    }
    lctx->synchronize();

    if (status == GGML_STATUS_ABORTED) {
        throw llama_restkv_error(LLAMA_RESTKV_ABORTED, "stopped by llama_restkv_abort()");
    }
    if (status == GGML_STATUS_ALLOC_FAILED || restkv_n_lacking != n_lacking) {
        throw llama_restkv_error(LLAMA_RESTKV_FAILED, "no memory left in the middle of a graph of scoring or compaction");
    }
    if (status != GGML_STATUS_SUCCESS) {
        throw llama_restkv_error(LLAMA_RESTKV_FAILED, "the backend could not compute a graph of scoring or compaction");
    }
    for (const auto & [tensor, out] : outputs) {
        ggml_backend_tensor_get(tensor, out, 0, ggml_nbytes(tensor));
    }
}
