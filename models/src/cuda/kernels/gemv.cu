// Products of 1 to 8 rows. The weight is read once, 16 bytes per lane; a warp computes one output column at a time. The
// rows are staged in shared memory and normed there if requested, so that the norm needs no launch of its own.
struct GemvParams {
    const void* xs;      // [rows, xs_row]
    const void* weight;  // [n, k]; with the gate epilogue [2 n, k], gate over up
    const void* bias;    // as many as the weight has rows, in out's type; null is none
    const float* norm_weight;  // [k]; null is ones
    const float* norm_bias;    // [k]; null is zeros
    void* out;                 // [rows, out_row], T or float
    const void* residual;      // added to the sum; layout of out, may be out
    int rows, n, k, xs_row, out_row;
    int epilogue;  // 1 times factor, 2 residual + factor sum, 3 activation, 4 soft cap of factor, 5 gate
    int activation;
    int wide;    // out and bias are float
    int norm;    // 0 none, 1 rms, 2 layer
    int vector;  // rows of xs and weight are aligned to 16 bytes, k a multiple of 8
    float factor, eps;
};

// Units of 8 elements of each weight row that a lane loads before it computes, to hide memory latency.
template <int COLUMNS> constexpr int AHEAD = COLUMNS == 1 ? 6 : 4;

// Row stride in shared memory, in elements: a multiple of 16 bytes.
template <class T> DEVICE int staged_row(int k) {
    constexpr int unit = 16 / sizeof(T);
    return ceil_div(k, unit) * unit;
}

// Loads, norms and stores the rows to shared memory; rows from p.rows on become zeros. `norm_weight` holds the norm
// weights of the thread's first 8 elements.
template <class T, int ROWS> DEVICE void stage(const GemvParams& p, const float (&norm_weight)[8], T* rows) {
    SHARED float scratch[32];
    int stride = staged_row<T>(p.k), first = thread_index() * 8, step = thread_count() * 8;
    for (int r = 0; r < ROWS; ++r) {
        const T* from = static_cast<const T*>(p.xs) + static_cast<u64>(r) * p.xs_row;
        int size = r < p.rows ? p.k : 0, held = -1;
        float x[8];
        // The thread keeps its last 8 elements, so that short rows are read from memory only once.
        auto read = [&](int i) {
            if (i != held) load8(x, from + i, size - i, p.vector);
            held = i;
        };
        float mean = 0.0f, scale = 1.0f, sum = 0.0f;
        if (p.norm == 2) {
            for (int i = first; i < size; i += step) {
                read(i);
                for (int j = 0; j < 8; ++j) sum += x[j];
            }
            mean = block_sum(sum, scratch) / p.k;
            sum = 0.0f;
        }
        if (p.norm) {
            for (int i = first; i < size; i += step) {
                read(i);
                for (int j = 0; j < 8; ++j) {
                    float d = i + j < size ? x[j] - mean : 0.0f;
                    sum += d * d;
                }
            }
            scale = 1.0f / sqrtf(block_sum(sum, scratch) / p.k + p.eps);
        }
        for (int i = first; i < p.k; i += step) {
            read(i);
            held = -1;
            for (int j = 0; j < 8; ++j) {
                if (p.norm && i + j < size) {
                    x[j] = (x[j] - mean) * scale;
                    if (p.norm_weight) x[j] *= i == first ? norm_weight[j] : p.norm_weight[i + j];
                    if (p.norm_bias) x[j] += p.norm_bias[i + j];
                }
            }
            store8(rows + r * stride + i, x, p.k - i, p.vector);
        }
    }
    block_barrier();
}

// Weight elements that a lane loads at a time: AHEAD units of 8 elements from `first` on, 32 units apart, of each
// column's row.
template <class T, int COLUMNS> struct Chunk {
    Raw8<T> part[AHEAD<COLUMNS>][COLUMNS];

    DEVICE static Chunk load(const T* const (&weight)[COLUMNS], int first, int k) {
        Chunk chunk;
#pragma unroll
        for (int a = 0; a < AHEAD<COLUMNS>; ++a) {
            int i = first + a * WARP * 8;
#pragma unroll
            for (int c = 0; c < COLUMNS; ++c)
                chunk.part[a][c] = i < k ? Raw8<T>::load_once(weight[c] + i) : Raw8<T>::zero();
        }
        return chunk;
    }
};

// sums[c][r] = dot product of weight row c and row r, over a warp; every lane gets the result. `chunk` holds the first
// part of the weight rows.
template <class T, int ROWS, int COLUMNS>
DEVICE void dot(
    const GemvParams& p, const T* rows, const T* const (&weight)[COLUMNS], Chunk<T, COLUMNS>& chunk,
    float (&sums)[COLUMNS][ROWS]
) {
    int lane = thread_index() % WARP, stride = staged_row<T>(p.k);
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) sums[c][r] = 0.0f;
    if (p.vector) {
        for (int first = lane * 8; first < p.k; first += AHEAD<COLUMNS> * WARP * 8) {
            if (first != lane * 8) chunk = Chunk<T, COLUMNS>::load(weight, first, p.k);
#pragma unroll
            for (int a = 0; a < AHEAD<COLUMNS>; ++a) {
                int i = first + a * WARP * 8;
                if (i >= p.k) break;
                float wide[COLUMNS][8], x[8];
                for (int c = 0; c < COLUMNS; ++c) widen8(wide[c], chunk.part[a][c]);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    widen8(x, Raw8<T>::load(rows + r * stride + i));
                    for (int c = 0; c < COLUMNS; ++c)
                        for (int j = 0; j < 8; ++j) sums[c][r] += wide[c][j] * x[j];
                }
            }
        }
    } else {
        for (int i = lane; i < p.k; i += WARP)
#pragma unroll
            for (int r = 0; r < ROWS; ++r)
#pragma unroll
                for (int c = 0; c < COLUMNS; ++c) sums[c][r] += widen(weight[c][i]) * widen(rows[r * stride + i]);
    }
#pragma unroll
    for (int c = 0; c < COLUMNS; ++c)
#pragma unroll
        for (int r = 0; r < ROWS; ++r) sums[c][r] = sum_of(sums[c][r], WARP);
}

// The residual, loaded before the sum is computed.
template <class O> DEVICE float residual_of(const GemvParams& p, int row, int column) {
    return widen(static_cast<const O*>(p.residual)[static_cast<u64>(row) * p.out_row + column]);
}

// Applies the epilogue to one element and stores it.
template <class O> DEVICE void finish(const GemvParams& p, int row, int column, float y, float up, float residual) {
    const O* bias = static_cast<const O*>(p.bias);
    O* out = static_cast<O*>(p.out) + static_cast<u64>(row) * p.out_row + column;
    if (bias) y += widen(bias[column]);
    switch (p.epilogue) {
        case 1: y *= p.factor; break;
        case 2: y = residual + p.factor * y; break;
        case 3: y = activate(p.activation, y); break;
        case 4: y = p.factor * tanhf(y / p.factor); break;
        case 5: y = activate(p.activation, y) * (bias ? up + widen(bias[p.n + column]) : up); break;
    }
    *out = narrow<O>(y);
}

template <class T, int ROWS, int COLUMNS> DEVICE void columns(const GemvParams& p, T* rows) {
    int warps = thread_count() / WARP, lane = thread_index() % WARP, step = blocks_x() * warps;
    int column = block_x() * warps + thread_index() / WARP;
    const T* weight[COLUMNS];
    Chunk<T, COLUMNS> chunk;
    auto begin = [&](int column) {
        if (column >= p.n) return;
        for (int c = 0; c < COLUMNS; ++c)
            weight[c] = static_cast<const T*>(p.weight) + (static_cast<u64>(c) * p.n + column) * p.k;
        if (p.vector) chunk = Chunk<T, COLUMNS>::load(weight, lane * 8, p.k);
    };
    // Loads of the first weight part begin before the previous launch has ended, and overlap with staging.
    begin(column);
    float norm_weight[8];
    int first = thread_index() * 8;
    if (p.norm_weight) load8(norm_weight, p.norm_weight + first, p.k - first, is_aligned(p.norm_weight, 16));
    wait_for_previous();
    stage<T, ROWS>(p, norm_weight, rows);
    for (; column < p.n; column += step) {
        float residual = 0.0f;
        if (p.epilogue == 2 && lane < p.rows)
            residual = p.wide ? residual_of<float>(p, lane, column) : residual_of<T>(p, lane, column);
        float sums[COLUMNS][ROWS];
        dot<T, ROWS, COLUMNS>(p, rows, weight, chunk, sums);
        begin(column + step);
        float y = sums[0][0], up = sums[COLUMNS - 1][0];
#pragma unroll
        for (int r = 1; r < ROWS; ++r) {
            y = lane == r ? sums[0][r] : y;
            up = lane == r ? sums[COLUMNS - 1][r] : up;
        }
        if (lane < p.rows) {
            if (p.wide) finish<float>(p, lane, column, y, up, residual);
            else finish<T>(p, lane, column, y, up, residual);
        }
    }
}

template <class T, int ROWS> DEVICE void gemv(const GemvParams& p) {
    DYNAMIC_SHARED(shared);
    T* rows = reinterpret_cast<T*>(shared);
    if (p.epilogue == 5) columns<T, ROWS, 2>(p, rows);
    else columns<T, ROWS, 1>(p, rows);
}

#define ENTRIES(T, suffix)                                     \
    EARLY_ENTRY(128, gemv_1_##suffix, GemvParams) { gemv<T, 1>(p); } \
    EARLY_ENTRY(128, gemv_2_##suffix, GemvParams) { gemv<T, 2>(p); } \
    EARLY_ENTRY(128, gemv_4_##suffix, GemvParams) { gemv<T, 4>(p); } \
    EARLY_ENTRY(128, gemv_8_##suffix, GemvParams) { gemv<T, 8>(p); }
#ifdef WITH_F32
ENTRIES(float, f32)
#endif
#ifdef WITH_BF16
ENTRIES(bf16, bf16)
#endif
#ifdef WITH_F16
ENTRIES(f16, f16)
#endif
