// Prints how far scoring's operations of each vector width are from those of width 1, relative to 1 + |value|. Fails where some
// half is not the float it should be, or some float not the half that ggml makes of it.

#include "llama-restkv-score-cpu.cpp"

#include <cstdio>
#include <numeric>
#include <random>

namespace {

constexpr int64_t n_head    = 6;
constexpr int64_t n_head_kv = 2;

struct operand {
    std::vector<float> values;
    ggml_tensor        tensor{};

    operand(std::vector<float> made, int64_t ne0, int64_t ne1, int64_t ne2) : values(std::move(made)) {
        tensor.ne[0] = ne0;
        tensor.ne[1] = ne1;
        tensor.ne[2] = ne2;
        tensor.ne[3] = 1;
        tensor.nb[1] = ne0*sizeof(float);
        tensor.data  = values.data();
    }
};

operand integers(const std::vector<int32_t> & made) {
    std::vector<float> words(made.size());
    std::memcpy(words.data(), made.data(), made.size()*sizeof(float));
    return operand(std::move(words), made.size(), 1, 1);
}

template <typename op, int64_t n_lane>
void run(operand & out, std::vector<float> & all, std::initializer_list<operand *> srcs, void * userdata = nullptr) {
    std::fill(std::begin(out.tensor.src), std::end(out.tensor.src), nullptr);
    int i = 0;
    for (operand * src : srcs) {
        out.tensor.src[i++] = src ? &src->tensor : nullptr;
    }
    for (int ith = 0; ith < 2; ++ith) { // as two threads would
        op::template run<n_lane>(&out.tensor, ith, 2, userdata);
    }
    all.insert(all.end(), out.values.begin(), out.values.end());
}

// softmax in double, a soft cap and a sink among it; heads of a group have the same number of absent rows
bool equals_attention(const operand & kv, const operand & idxs, const operand & absent, const operand & q, const operand & mask,
                      const operand * sinks, const llama_restkv_attention_args & args, const operand & attn) {
    const int64_t n_used = attn.tensor.ne[0], n_window = attn.tensor.ne[1], head_dim = q.tensor.ne[0];
    for (int64_t i = 0; i < n_window*n_head; ++i) {
        const int64_t h_kv = i/n_window/(n_head/n_head_kv);
        std::vector<double> shares(n_used, 0.0);
        double total = sinks ? std::exp((double) sinks->values[i/n_window]) : 0.0;
        for (int64_t j = ((const int32_t *) absent.tensor.data)[h_kv]; j < n_used; ++j) {
            const float * key = kv.values.data() + ((const int32_t *) idxs.tensor.data)[h_kv*n_used + j]*head_dim;
            double product = 0.0;
            for (int64_t d = 0; d < head_dim; ++d) {
                product += (double) key[d]*q.values[i*head_dim + d];
            }
            product *= args.scale;
            product  = args.softcap ? args.softcap*std::tanh(product/args.softcap) : product;
            total += shares[j] = std::exp(product + mask.values[i%n_window*n_used + j]);
        }
        for (int64_t j = 0; j < n_used; ++j) {
            if (!(std::abs(shares[j]/total - attn.values[i*n_used + j]) < 1e-5)) {
                return false;
            }
        }
    }
    return true;
}

// two weighted sums over the queries of attn [n_used, n_window, n_head], then the maximum
bool equals_reductions(const operand & attn, const operand & weights, const operand & reduced) {
    const int64_t n_used = attn.tensor.ne[0], n_window = attn.tensor.ne[1];
    for (int64_t i = 0; i < n_used*n_head; ++i) {
        double sums[2] = {}, most = 0;
        for (int64_t w = 0; w < n_window; ++w) {
            const int64_t query = i/n_used*n_window + w;
            const double share = attn.values[query*n_used + i%n_used];
            sums[0] += share*weights.values[2*query];
            sums[1] += share*weights.values[2*query + 1];
            most = std::max(most, share);
        }
        const double off = std::abs(sums[0] - reduced.values[i]) + std::abs(sums[1] - reduced.values[n_used*n_head + i])
            + std::abs(most - reduced.values[2*n_used*n_head + i]);
        if (!(off < 1e-5)) {
            return false;
        }
    }
    return true;
}

template <int64_t n_lane>
std::vector<float> results() {
    std::vector<float> all;
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    const auto random = [&](int64_t ne0, int64_t ne1, int64_t ne2) {
        std::vector<float> values(ne0*ne1*ne2);
        for (float & value : values) {
            value = normal(generator);
        }
        return operand(std::move(values), ne0, ne1, ne2);
    };
    for (const int64_t n_used : { 1, 5, 16, 37, 100 }) {
        for (const int64_t head_dim : { 20, 64 }) {
            for (const int64_t n_window : { 1, 7, 50 }) {
                operand kv = random(head_dim, n_used*n_head_kv, 1);
                std::vector<int32_t> rows(n_used*n_head_kv);
                std::iota(rows.rbegin(), rows.rend(), 0); // not in order
                operand idxs    = integers(rows);
                operand q       = random(head_dim, n_window, n_head);
                operand factors = random(head_dim, head_dim*n_head/n_head_kv, n_head_kv);
                operand mask    = random(n_used, n_window, 1);
                for (size_t i = 0; i < mask.values.size(); ++i) {
                    mask.values[i] = i%n_used + 1 != size_t(n_used) && mask.values[i] > 1.0f ? -INFINITY : 0.0f;
                }
                operand triangles = factors;
                triangles.tensor.data = triangles.values.data();
                for (size_t i = 0; i < triangles.values.size(); ++i) {
                    if (int64_t(i)%head_dim < int64_t(i)/head_dim%head_dim) {
                        triangles.values[i] = 0.0f;
                    }
                }
                operand attn = random(n_used, n_window, n_head);
                operand most = random(n_used, 1, n_head);
                operand norm = random(n_used, 1, n_head);
                operand sinks = random(n_head, 1, 1);
                operand weights = random(2, n_window, n_head);
                const int64_t n_part = (n_window + LLAMA_RESTKV_N_QUERY - 1)/LLAMA_RESTKV_N_QUERY;
                operand parts = random(n_used, n_head, 3*n_part);
                parts.tensor.ne[2] = 3;
                parts.tensor.ne[3] = n_part;
                operand reduced = random(n_used, n_head, 3);
                operand sizes = random(n_head/n_head_kv + 1, n_used*n_head_kv, 1); // wider than needed
                operand out = random(head_dim, n_window, n_head);
                for (const int32_t n_absent : { 0, int32_t(n_used/3), int32_t(n_used - 1) }) {
                    operand absent = integers({ n_absent, n_absent/2 });
                    for (const float softcap : { 0.0f, 5.0f }) {
                        llama_restkv_attention_args args = { 0.3f, softcap, 2 };
                        operand * sunk = softcap ? &sinks : nullptr;
                        run<attention,  n_lane>(attn, all, { &kv, &idxs, &absent, &q, &mask, sunk }, &args);
                        run<reductions, n_lane>(parts, all, { &kv, &idxs, &absent, &q, &mask, sunk, &weights }, &args);
                        run<combined,   n_lane>(reduced, all, { &parts }, &args);
                        if (!equals_attention(kv, idxs, absent, q, mask, sunk, args, attn) || !equals_reductions(attn, weights, reduced)) {
                            all.push_back(NAN);
                        }
                    }
                    run<maximum,  n_lane>(most, all, { &attn });
                    run<outputs,  n_lane>(out, all, { &kv, &idxs, &absent, &attn });
                    for (operand * some : { &factors, &triangles }) {
                        uint32_t n_normed = 0;
                        run<norms,    n_lane>(sizes, all, { &sizes, &kv, &idxs, &absent, some }, &n_normed);
                        run<distance, n_lane>(norm, all, { &kv, &idxs, &absent, some, &sizes });
                        run<distance, n_lane>(attn, all, { &kv, &idxs, &absent, some, &sizes, &out });
                    }
                }
            }
        }
    }
    return all;
}

// what a half says
float read_half(uint16_t bits) {
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    float size = std::ldexp(exponent ? 1024 + fraction : fraction, std::max(exponent, 1) - 25);
    if (exponent == 31) {
        size = fraction ? NAN : INFINITY;
    }
    return bits & 0x8000 ? -size : size;
}

bool widens_all_halves() {
    std::vector<uint16_t> halves(65536 + 3); // and no whole number of vectors
    for (size_t i = 0; i < halves.size(); ++i) {
        halves[i] = uint16_t(i);
    }
    std::vector<float> floats(halves.size());
    restkv_widen(halves.data(), floats.data(), floats.size());
    for (size_t i = 0; i < halves.size(); ++i) {
        const float expected = read_half(halves[i]);
        if (std::isnan(expected) ? !std::isnan(floats[i]) : std::memcmp(&expected, &floats[i], sizeof(float)) != 0) {
            return false;
        }
    }
    return true;
}

bool narrows_as_ggml() {
    std::vector<float> floats; // every half, what is halfway to the next, and the floats beside both
    for (uint32_t i = 0; i < 65536; ++i) {
        const float here = read_half(i), next = read_half(uint16_t(i + 1));
        for (const float value : { here, here + (next - here)/2 }) {
            floats.insert(floats.end(), { value, std::nextafter(value, -INFINITY), std::nextafter(value, INFINITY) });
        }
    }
    floats.insert(floats.end(), { 65519.0f, 65520.0f, 65536.0f, 1e9f, -1e9f, 3e38f, 1e-30f, -1e-45f });
    std::vector<uint16_t> halves(floats.size());
    restkv_narrow(floats.data(), halves.data(), floats.size());
    for (size_t i = 0; i < floats.size(); ++i) {
        if (std::isnan(floats[i]) ? !std::isnan(read_half(halves[i])) : halves[i] != ggml_fp32_to_fp16(floats[i])) {
            return false;
        }
    }
    return true;
}

template <int64_t n_lane>
void compare(const std::vector<float> & expected) {
    const std::vector<float> found = results<n_lane>();
    double most = 0.0;
    for (size_t i = 0; i < expected.size(); ++i) {
        const double off = std::abs(found[i] - expected[i])/(1.0 + std::abs(expected[i]));
        most = off > most || std::isnan(off) ? off : most; // NaN stays
    }
    std::printf("%d %g\n", int(n_lane), most);
}

} // namespace

int main() {
    const std::vector<float> expected = results<1>();
    compare<4>(expected);
    compare<8>(expected);
    compare<16>(expected);
    return widens_all_halves() && narrows_as_ggml() ? 0 : 1;
}
