// Elementwise and row kernels. A thread processes 8 adjacent elements at a time, or one in some of the row kernels.
struct MapParams {
    const void* xs;
    const void* other;  // null if the operation has one operand
    void* out;
    u64 len;
    int op;  // 0 scale, 1 add, 2 multiply, 3 soft cap, 16 and up activations
    float factor;
};

template <class T> DEVICE void map(const MapParams& p) {
    u64 i = (static_cast<u64>(block_x()) * thread_count() + thread_index()) * 8;
    if (i >= p.len) return;
    int valid = static_cast<int>(smaller<u64>(p.len - i, 8));
    const T* xs = static_cast<const T*>(p.xs) + i;
    const T* other = static_cast<const T*>(p.other) + i;
    T* out = static_cast<T*>(p.out) + i;
    float x[8], y[8] = {};
    load8(x, xs, valid, is_aligned(xs, 16));
    if (p.other) load8(y, other, valid, is_aligned(other, 16));
    for (int j = 0; j < 8; ++j) {
        switch (p.op) {
            case 0: x[j] *= p.factor; break;
            case 1: x[j] += p.factor * y[j]; break;
            case 2: x[j] *= y[j]; break;
            case 3: x[j] = p.factor * tanhf(x[j] / p.factor); break;
            default: x[j] = activate(p.op - 16, x[j]);
        }
    }
    store8(out, x, valid, is_aligned(out, 16));
}

struct GateParams {
    const void* xs;  // [rows, xs_row]: gate from column 0, up from column up_first
    void* out;       // [rows, out_row]
    int rows, n, xs_row, up_first, out_row, activation;
};

template <class T> DEVICE void gate(const GateParams& p) {
    int chunks = ceil_div(p.n, 8);
    u64 index = static_cast<u64>(block_x()) * thread_count() + thread_index();
    u64 row = index / chunks;
    if (row >= static_cast<u64>(p.rows)) return;
    int column = static_cast<int>(index % chunks) * 8, valid = p.n - column;
    const T* gate = static_cast<const T*>(p.xs) + row * p.xs_row + column;
    const T* up = gate + p.up_first;
    T* out = static_cast<T*>(p.out) + row * p.out_row + column;
    float x[8], y[8];
    load8(x, gate, valid, is_aligned(gate, 16));
    load8(y, up, valid, is_aligned(up, 16));
    for (int j = 0; j < 8; ++j) x[j] = activate(p.activation, x[j]) * y[j];
    store8(out, x, valid, is_aligned(out, 16));
}

struct CopyParams {
    const void* from;  // [rows, groups, size] in strides of elements
    void* to;
    int rows, groups, size, from_row, from_group, to_row, to_group;
    int vector;  // everything is a multiple of 16 bytes
};

template <class T> DEVICE void copy(const CopyParams& p) {
    int each = p.vector ? 16 / static_cast<int>(sizeof(T)) : 1, chunks = p.size / each;
    u64 index = static_cast<u64>(block_x()) * thread_count() + thread_index();
    int column = static_cast<int>(index % chunks) * each;
    int group = static_cast<int>(index / chunks % p.groups);
    u64 row = index / chunks / p.groups;
    if (row >= static_cast<u64>(p.rows)) return;
    const T* from = static_cast<const T*>(p.from) + row * p.from_row + static_cast<u64>(group) * p.from_group + column;
    T* to = static_cast<T*>(p.to) + row * p.to_row + static_cast<u64>(group) * p.to_group + column;
    if (p.vector) store16(to, load16(from));
    else *to = *from;
}

struct CastParams {
    const void* from;
    void* to;
    u64 len;
};

template <class From, class To> DEVICE void cast(const CastParams& p) {
    u64 i = (static_cast<u64>(block_x()) * thread_count() + thread_index()) * 8;
    if (i >= p.len) return;
    int valid = static_cast<int>(smaller<u64>(p.len - i, 8));
    const From* from = static_cast<const From*>(p.from) + i;
    To* to = static_cast<To*>(p.to) + i;
    float x[8];
    load8(x, from, valid, is_aligned(from, 16));
    store8(to, x, valid, is_aligned(to, 16));
}

struct SoftmaxParams {
    void* xs;  // [rows, row], in place
    int size, row;
};

// One block per row. The exponentials are computed twice, so that a 16-bit row is rounded only once.
template <class T> DEVICE void softmax(const SoftmaxParams& p) {
    SHARED float scratch[32];
    T* xs = static_cast<T*>(p.xs) + static_cast<u64>(block_x()) * p.row;
    float most = LOWEST, sum = 0.0f;
    for (int i = thread_index(); i < p.size; i += thread_count()) most = fmaxf(most, widen(xs[i]));
    most = block_most(most, scratch);
    // All values are minus infinity: subtracting the maximum would give NaN instead of zeros.
    float base = most == LOWEST ? 0.0f : most;
    for (int i = thread_index(); i < p.size; i += thread_count()) sum += expf(widen(xs[i]) - base);
    sum = block_sum(sum, scratch);
    float inverse = sum > 0.0f ? 1.0f / sum : 0.0f;
    for (int i = thread_index(); i < p.size; i += thread_count()) xs[i] = narrow<T>(expf(widen(xs[i]) - base) * inverse);
}

struct MeanParams {
    const void* xs;  // [batch, tokens, features]
    const u8* real;  // [batch, tokens]; null is all
    void* out;       // [batch, features]
    int tokens, features;
};

// One thread per feature of a sequence.
template <class T> DEVICE void mean(const MeanParams& p) {
    int feature = block_x() * thread_count() + thread_index();
    if (feature >= p.features) return;
    const T* xs = static_cast<const T*>(p.xs) + static_cast<u64>(block_y()) * p.tokens * p.features + feature;
    const u8* real = p.real ? p.real + static_cast<u64>(block_y()) * p.tokens : nullptr;
    float sum = 0.0f;
    int count = 0;
    for (int token = 0; token < p.tokens; ++token) {
        if (real && !real[token]) continue;
        sum += widen(xs[static_cast<u64>(token) * p.features]);
        ++count;
    }
    T* out = static_cast<T*>(p.out) + static_cast<u64>(block_y()) * p.features;
    out[feature] = narrow<T>(count ? sum / count : 0.0f);
}

#define ENTRIES(T, suffix)                                               \
    ENTRY(256, map_##suffix, MapParams) { map<T>(p); }                   \
    ENTRY(256, gate_##suffix, GateParams) { gate<T>(p); }                \
    ENTRY(256, copy_##suffix, CopyParams) { copy<T>(p); }                \
    ENTRY(256, widen_##suffix, CastParams) { cast<T, float>(p); }        \
    ENTRY(256, narrow_##suffix, CastParams) { cast<float, T>(p); }       \
    ENTRY(256, softmax_##suffix, SoftmaxParams) { softmax<T>(p); }       \
    ENTRY(256, mean_##suffix, MeanParams) { mean<T>(p); }
#ifdef WITH_F32
ENTRIES(float, f32)
#endif
#ifdef WITH_BF16
ENTRIES(bf16, bf16)
#endif
#ifdef WITH_F16
ENTRIES(f16, f16)
#endif
