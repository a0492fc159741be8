// Products of rows sorted by expert with each expert's weight. Block (x, y, e) computes the 64 columns from 64 x and
// the 64 rows from 64 y of expert e. It may have no rows, because only the device knows the number of rows per expert.
struct GroupedParams {
    const void* xs;      // [.., k]
    const void* weight;  // [experts, n, k]
    const int* offsets;  // [experts + 1]: first sorted row of each expert
    const int* sources;  // [rows]: row of xs is sources[row] / divisor; null: row
    void* out;           // [rows, n]
    int n, k, divisor;
    int vector;  // xs and weight are aligned to 16 bytes, k a multiple of their elements
};

constexpr int TILE = 64, THREADS = 128;

DEVICE u64 source_of(const GroupedParams& p, int row) { return p.sources ? p.sources[row] / p.divisor : row; }

// 16-bit types on tensor cores, in steps of 32 columns; the next step is copied while the current one is multiplied.
// Each of four warps computes 32 x 32 outputs. Chunk c (16 bytes) of row r is stored at c ^ (r / 2 % 4), so that the
// rows of a matrix are in different banks.
constexpr int STEP = 32;
template <class T> DEVICE T* chunk_at(T* tile, int row, int chunk) {
    return tile + row * STEP + ((chunk ^ (row >> 1 & 3)) * 8);
}

template <class T> DEVICE void load_step(
    const GroupedParams& p, T* xs_tile, T* weight_tile, const T* weight, int row, int end, int column, int k
) {
    for (int i = thread_index(); i < TILE * (STEP / 8); i += THREADS) {
        int r = i / (STEP / 8), chunk = i % (STEP / 8), at = k + chunk * 8;
        int valid_x = row + r < end ? p.k - at : 0, valid_w = column + r < p.n ? p.k - at : 0;
        const T* x = static_cast<const T*>(p.xs);
        const T* w = weight;
        if (valid_x > 0) x += source_of(p, row + r) * p.k + at;
        if (valid_w > 0) w += static_cast<u64>(column + r) * p.k + at;
        if (p.vector) {
            copy_async(chunk_at(xs_tile, r, chunk), x, valid_x > 0);
            copy_async(chunk_at(weight_tile, r, chunk), w, valid_w > 0);
        } else {
            Raw8<T>::load_some(x, valid_x).store(chunk_at(xs_tile, r, chunk));
            Raw8<T>::load_some(w, valid_w).store(chunk_at(weight_tile, r, chunk));
        }
    }
}

template <class T> DEVICE void grouped(const GroupedParams& p) {
    DYNAMIC_SHARED(shared);
    T* tiles = reinterpret_cast<T*>(shared);
    int expert = block_z(), column = block_x() * TILE;
    int row = p.offsets[expert] + block_y() * TILE, end = p.offsets[expert + 1];
    if (row >= end) return;
    const T* weight = static_cast<const T*>(p.weight) + static_cast<u64>(expert) * p.n * p.k;
    int lane = thread_index() % WARP, warp = thread_index() / WARP;
    int warp_row = warp / 2 * 32, warp_column = warp % 2 * 32;
    float sums[2][4][4] = {};
    int steps = ceil_div(p.k, STEP);
    load_step(p, tiles, tiles + TILE * STEP, weight, row, end, column, 0);
    commit_copies();
    for (int step = 0; step < steps; ++step) {
        T* xs_tile = tiles + step % 2 * 2 * TILE * STEP;
        T* weight_tile = xs_tile + TILE * STEP;
        if (step + 1 < steps) {
            T* next = tiles + (step + 1) % 2 * 2 * TILE * STEP;
            load_step(p, next, next + TILE * STEP, weight, row, end, column, (step + 1) * STEP);
        }
        commit_copies();
        wait_copies<1>();
        block_barrier();
#pragma unroll
        for (int k = 0; k < STEP / 16; ++k) {
            u32 a[2][4], b[2][4];
            for (int i = 0; i < 2; ++i) {
                load_matrices(a[i], chunk_at(xs_tile, warp_row + i * 16 + lane % 16, 2 * k + lane / 16));
                int w = warp_column + i * 16 + lane % 8 + lane / 16 * 8;
                load_matrices(b[i], chunk_at(weight_tile, w, 2 * k + lane / 8 % 2));
            }
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) mma<T>(sums[i][j], a[i], b[j / 2][j % 2 * 2], b[j / 2][j % 2 * 2 + 1]);
        }
        block_barrier();
    }
    T* out = static_cast<T*>(p.out);
    for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
            for (int e = 0; e < 4; ++e) {
                int r = row + warp_row + i * 16 + lane / 4 + e / 2 * 8;
                int c = column + warp_column + j * 8 + lane % 4 * 2 + e % 2;
                if (r < end && c < p.n) out[static_cast<u64>(r) * p.n + c] = narrow<T>(sums[i][j][e]);
            }
        }
    }
}

// F32 without TF32: steps of 16 columns, both tiles transposed to [16, 64 + 4]; thread (x, y) of 16 by 8 computes the 4
// columns from 4 x and the 8 rows from 8 y.
constexpr int STEP_F32 = 16, ROW_F32 = TILE + 4;

template <> DEVICE void grouped<float>(const GroupedParams& p) {
    DYNAMIC_SHARED(shared);
    float* xs_tile = reinterpret_cast<float*>(shared);
    float* weight_tile = xs_tile + STEP_F32 * ROW_F32;
    int expert = block_z(), column = block_x() * TILE;
    int row = p.offsets[expert] + block_y() * TILE, end = p.offsets[expert + 1];
    if (row >= end) return;
    const float* xs = static_cast<const float*>(p.xs);
    const float* weight = static_cast<const float*>(p.weight) + static_cast<u64>(expert) * p.n * p.k;
    int x = thread_index() % 16, y = thread_index() / 16;
    float sums[8][4] = {};
    for (int step = 0; step < p.k; step += STEP_F32) {
        for (int i = thread_index(); i < TILE * STEP_F32; i += THREADS) {
            int r = i / STEP_F32, k = i % STEP_F32;
            bool inside = step + k < p.k;
            xs_tile[k * ROW_F32 + r] = inside && row + r < end ? xs[source_of(p, row + r) * p.k + step + k] : 0.0f;
            weight_tile[k * ROW_F32 + r] =
                inside && column + r < p.n ? weight[static_cast<u64>(column + r) * p.k + step + k] : 0.0f;
        }
        block_barrier();
#pragma unroll
        for (int k = 0; k < STEP_F32; ++k) {
            float a[8], b[4];
            for (int i = 0; i < 8; ++i) a[i] = xs_tile[k * ROW_F32 + y * 8 + i];
            for (int j = 0; j < 4; ++j) b[j] = weight_tile[k * ROW_F32 + x * 4 + j];
            for (int i = 0; i < 8; ++i)
                for (int j = 0; j < 4; ++j) sums[i][j] += a[i] * b[j];
        }
        block_barrier();
    }
    float* out = static_cast<float*>(p.out);
    for (int i = 0; i < 8; ++i) {
        for (int j = 0; j < 4; ++j) {
            int r = row + y * 8 + i, c = column + x * 4 + j;
            if (r < end && c < p.n) out[static_cast<u64>(r) * p.n + c] = sums[i][j];
        }
    }
}

#ifdef WITH_F32
ENTRY(128, grouped_f32, GroupedParams) { grouped<float>(p); }
#endif
#ifdef WITH_BF16
ENTRY(128, grouped_bf16, GroupedParams) { grouped<bf16>(p); }
#endif
#ifdef WITH_F16
ENTRY(128, grouped_f16, GroupedParams) { grouped<f16>(p); }
#endif
