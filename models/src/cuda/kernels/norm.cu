// RMS and layer norm of groups of `size` adjacent elements, alone or with the residual stream. One block per group. The
// variance is computed from differences to the mean, which avoids cancellation for a large mean. The group is read
// several times, from the first-level cache.
struct NormParams {
    const void* xs;       // [rows, xs_row], groups side by side from column 0
    void* residual;       // [rows, heads, size]
    const float* weight;  // [size] or [heads, size]; null is ones
    const float* bias;    // as weight; null is zeros
    void* out;            // [rows, out_row]; may be xs
    int size, heads, xs_row, out_row;
    int weight_head;  // elements from one head's weight to the next; 0 shares one
    int form;         // 0: out = norm(xs); 1: residual += xs, out = norm(residual); 2: residual += norm(xs)
    int centred;
    float eps;
};

template <class T> DEVICE void norm(const NormParams& p) {
    SHARED float scratch[32];
    int row = block_x() / p.heads, head = block_x() % p.heads;
    const T* xs = static_cast<const T*>(p.xs) + static_cast<u64>(row) * p.xs_row + head * p.size;
    T* out = static_cast<T*>(p.out) + static_cast<u64>(row) * p.out_row + head * p.size;
    T* residual = static_cast<T*>(p.residual) + static_cast<u64>(block_x()) * p.size;
    const float* weight = p.weight ? p.weight + head * p.weight_head : nullptr;
    const float* bias = p.bias ? p.bias + head * p.weight_head : nullptr;
    bool vector = is_aligned(xs, 16) && (p.form == 0 || is_aligned(residual, 16));
    bool vector_out = p.form == 2 ? vector : is_aligned(out, 16);
    int first = thread_index() * 8, step = thread_count() * 8;
    float x[8], r[8];

    if (p.form == 1) {
        for (int i = first; i < p.size; i += step) {
            load8(x, xs + i, p.size - i, vector);
            load8(r, residual + i, p.size - i, vector);
            for (int j = 0; j < 8; ++j) r[j] += x[j];
            store8(residual + i, r, p.size - i, vector);
        }
        // Each thread reads again only what it has written itself.
        xs = residual;
    }
    float mean = 0.0f;
    if (p.centred) {
        float sum = 0.0f;
        for (int i = first; i < p.size; i += step) {
            load8(x, xs + i, p.size - i, vector);
            for (int j = 0; j < 8; ++j) sum += x[j];
        }
        mean = block_sum(sum, scratch) / p.size;
    }
    float sum = 0.0f;
    for (int i = first; i < p.size; i += step) {
        load8(x, xs + i, p.size - i, vector);
        for (int j = 0; j < 8; ++j) {
            // Elements past the end are zero and must not contribute to the variance.
            float d = i + j < p.size ? x[j] - mean : 0.0f;
            sum += d * d;
        }
    }
    float scale = 1.0f / sqrtf(block_sum(sum, scratch) / p.size + p.eps);
    for (int i = first; i < p.size; i += step) {
        load8(x, xs + i, p.size - i, vector);
        for (int j = 0; j < 8; ++j) {
            if (i + j < p.size) {
                x[j] = (x[j] - mean) * scale;
                if (weight) x[j] *= weight[i + j];
                if (bias) x[j] += bias[i + j];
            }
        }
        if (p.form == 2) {
            load8(r, residual + i, p.size - i, vector);
            for (int j = 0; j < 8; ++j) r[j] += x[j];
            store8(residual + i, r, p.size - i, vector);
        } else {
            store8(out + i, x, p.size - i, vector_out);
        }
    }
}

#ifdef WITH_F32
ENTRY(256, norm_f32, NormParams) { norm<float>(p); }
#endif
#ifdef WITH_BF16
ENTRY(256, norm_bf16, NormParams) { norm<bf16>(p); }
#endif
#ifdef WITH_F16
ENTRY(256, norm_f16, NormParams) { norm<f16>(p); }
#endif
