#include "llama-restkv-state.h"
#include "llama-restkv-run.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>

namespace {

constexpr uint32_t version = 2;

std::vector<int32_t> rows_per_segment(const llama_restkv_pool & pool, uint32_t n_used) {
    std::vector<int32_t> n_rows;
    for (const auto & layer : pool.layers) {
        for (const uint32_t absent : layer.segments.absent) {
            n_rows.push_back(n_used - absent);
        }
    }
    return n_rows;
}

size_t bytes_query(const llama_restkv_pool & pool) {
    size_t res = 0;
    for (const auto & layer : pool.layers) {
        res += layer.ring->nb[1];
    }
    return res;
}

llama_restkv_state_head head_of(const llama_restkv_pool & pool, uint32_t n_used, int32_t pos) {
    const auto & first = pool.layers.front();
    return { version, pool.n_cols, (uint32_t) first.pool_k->nb[1], (uint32_t) first.pool_v->nb[1],
        (uint32_t) pool.window_rows(n_used, pool.n_ring).size(), (uint32_t) bytes_query(pool), n_used, pos,
        pool.rope_long };
}

int64_t bytes_of(const llama_restkv_state_head & head, const int32_t * n_rows) {
    const int64_t n = std::accumulate(n_rows, n_rows + head.n_col, int64_t(0));
    return sizeof(head) + head.n_col*sizeof(int32_t) + n*(head.row_k + head.row_v) + int64_t(head.n_query)*head.bytes_query;
}

// calls fn(tensor, byte offset, bytes) for every run of rows, in the order of the format
template<typename F>
void for_each_run(const llama_restkv_pool & pool, const int32_t * n_rows, F && fn) {
    for (const bool is_k : { true, false }) {
        for (const auto & layer : pool.layers) {
            auto * rows = is_k ? layer.pool_k : layer.pool_v;
            for (uint32_t h = 0; h < layer.n_head_kv; ++h) {
                const size_t n = n_rows[layer.idx_col + h];
                fn(rows, (layer.segments.base[h] + layer.segments.absent[h])*rows->nb[1], n*rows->nb[1]);
            }
        }
    }
}

} // namespace

int64_t llama_restkv_state_bytes(const llama_restkv_pool & pool, uint32_t n_used) {
    return bytes_of(head_of(pool, n_used, -1), rows_per_segment(pool, n_used).data());
}

void llama_restkv_state_write(const llama_restkv_pool & pool, uint32_t n_used, int32_t pos, void * data) {
    const auto head   = head_of(pool, n_used, pos);
    const auto n_rows = rows_per_segment(pool, n_used);

    auto * out = static_cast<uint8_t *>(data);
    std::memcpy(out, &head, sizeof(head));
    out += sizeof(head);
    std::memcpy(out, n_rows.data(), n_rows.size()*sizeof(int32_t));
    out += n_rows.size()*sizeof(int32_t);
    for_each_run(pool, n_rows.data(), [&](const ggml_tensor * rows, size_t offset, size_t size) {
        if (size > 0) {
            ggml_backend_tensor_get(rows, out, offset, size);
        }
        out += size;
    });
    for (const int32_t row : pool.window_rows(n_used, pool.n_ring)) {
        for (const auto & layer : pool.layers) {
            ggml_backend_tensor_get(layer.ring, out, row*layer.ring->nb[1], layer.ring->nb[1]);
            out += layer.ring->nb[1];
        }
    }
}

llama_restkv_state_head llama_restkv_state_check(const llama_restkv_pool & pool, const void * data, int64_t size) {
    const auto fail = [](const std::string & what) {
        throw llama_restkv_error(LLAMA_RESTKV_BAD_ARG, "this state " + what);
    };
    llama_restkv_state_head head;
    const int64_t size_min = sizeof(head) + pool.n_cols*sizeof(int32_t);
    if (size < size_min) {
        fail("has " + std::to_string(size) + " bytes; its head alone has " + std::to_string(size_min));
    }
    std::memcpy(&head, data, sizeof(head));
    const auto want = head_of(pool, 0, -1);
    if (head.version != want.version) {
        fail("has format " + std::to_string(head.version) + "; this library reads " + std::to_string(want.version));
    }
    if (head.n_col != want.n_col || head.row_k != want.row_k || head.row_v != want.row_v || head.bytes_query != want.bytes_query) {
        fail("belongs to another model or KV type");
    }
    if (head.rope_long != want.rope_long) {
        fail("has keys turned by other RoPE factors: the model has two sets, and the size of a context says which one counts");
    }
    std::vector<int32_t> n_rows(head.n_col);
    std::memcpy(n_rows.data(), static_cast<const uint8_t *>(data) + sizeof(head), n_rows.size()*sizeof(int32_t));

    const int64_t n_most = *std::max_element(n_rows.begin(), n_rows.end());
    const int64_t total  = std::accumulate(n_rows.begin(), n_rows.end(), int64_t(0));
    const int32_t n_least = *std::min_element(n_rows.begin(), n_rows.end());
    if (n_least < (head.n_used > 0 ? 1 : 0) || n_most != head.n_used || head.pos < n_most - 1 || head.pos > INT32_MAX/2
            || head.n_query > std::min(pool.n_ring, head.n_used)) {
        fail("contradicts itself");
    }
    if (size != bytes_of(head, n_rows.data())) {
        fail("has " + std::to_string(size) + " bytes and describes " + std::to_string(bytes_of(head, n_rows.data())));
    }
    const bool equal = std::all_of(n_rows.begin(), n_rows.end(), [&](int32_t n) { return n == n_most; });
    if (n_most > pool.n_slots || total > int64_t(pool.n_rows)*pool.n_cols || (!equal && pool.n_slots == pool.n_rows)) {
        fail("needs " + std::to_string(total/pool.n_cols + 1) + " rows a segment, unequal ones if need be; this context has " + std::to_string(pool.n_rows));
    }
    if (const auto [n, buft] = pool.n_lacking(n_rows.data()); n > 0) {
        fail(std::string("needs ") + std::to_string(n) + " rows more of " + ggml_backend_buft_name(buft) + " than this context has there");
    }
    return head;
}

void llama_restkv_state_read(llama_restkv_pool & pool, const void * data) {
    const auto * in = static_cast<const uint8_t *>(data);
    llama_restkv_state_head head;
    std::memcpy(&head, in, sizeof(head));
    in += sizeof(head);
    std::vector<int32_t> n_rows(head.n_col);
    std::memcpy(n_rows.data(), in, n_rows.size()*sizeof(int32_t));
    in += n_rows.size()*sizeof(int32_t);

    pool.zero_rows();
    pool.set_layout(pool.layout(n_rows.data()));
    for_each_run(pool, n_rows.data(), [&](ggml_tensor * rows, size_t offset, size_t size) {
        if (size > 0) {
            ggml_backend_tensor_set(rows, in, offset, size);
        }
        in += size;
    });
    for (uint32_t i = 0; i < head.n_query; ++i) {
        for (const auto & layer : pool.layers) {
            ggml_backend_tensor_set(layer.ring, in, i*layer.ring->nb[1], layer.ring->nb[1]);
            in += layer.ring->nb[1];
        }
    }
    pool.set_queries(head.n_query, head.n_used);
    pool.n_normed = 0;
}
