// Attention of more than one query token in 16-bit types, on tensor cores, with an online softmax (Dao et al. 2022 and
// 2023). A block processes 64 query rows of one key head and loops over tiles of PARTS * KEYS keys; the next tile is
// copied while the current one is multiplied. Tiles that no row sees are not loaded. A warp processes 16 rows and KEYS
// keys of a tile; the parts are added at the end. Scores, maxima, sums and the output accumulator are F32;
// probabilities are rounded to T for the product with the values. Heads with fewer than HD features are padded with
// zeros.
//
// Shared memory: queries [64, HD], keys [2, PARTS * KEYS, HD], values likewise, in chunks of 8 elements (16 bytes).
// Chunk c of row r is stored at c ^ (r % 8), so that the eight rows of a loaded matrix are in different banks.
constexpr int ROWS = 64, ROW_WARPS = ROWS / 16;

template <class T, int HD> DEVICE T* chunk_at(T* tile, int row, int chunk) {
    return tile + row * HD + ((chunk ^ (row & 7)) * 8);
}

// Loads rows first..end of a cache [.., head_dim]. Other rows, and features from head_dim on, become zeros, because
// zero times an arbitrary value can be NaN.
template <class T, int HD, int KEYS, int THREADS>
DEVICE void load_tile(T* tile, const T* rows, int first, int end, int head_dim, bool vector) {
    constexpr int CHUNKS = HD / 8, STEP = THREADS / CHUNKS;
    if (vector) {
        // A thread copies one chunk of every STEP-th row.
        int row = thread_index() / CHUNKS, chunk = thread_index() % CHUNKS;
        bool is_feature = chunk * 8 < head_dim;
        const T* from = rows + static_cast<u64>(first + row) * head_dim + chunk * 8;
#pragma unroll
        for (int i = 0; i < KEYS / STEP; ++i, row += STEP, from += STEP * head_dim)
            copy_async(chunk_at<T, HD>(tile, row, chunk), from, is_feature && first + row < end);
        return;
    }
    for (int i = thread_index(); i < KEYS * CHUNKS; i += THREADS) {
        int row = i / CHUNKS, chunk = i % CHUNKS;
        int valid = first + row < end ? head_dim - chunk * 8 : 0;
        const T* from = rows + (valid > 0 ? static_cast<u64>(first + row) * head_dim + chunk * 8 : 0);
        Raw8<T>::load_some(from, valid).store(chunk_at<T, HD>(tile, row, chunk));
    }
}

template <class T, int HD, int KEYS, int PARTS> DEVICE void prefill(const AttentionParams& p) {
    constexpr int TILE = PARTS * KEYS, THREADS = PARTS * ROW_WARPS * WARP;
    DYNAMIC_SHARED(shared);
    T* queries = reinterpret_cast<T*>(shared);
    T* key_tiles = queries + ROWS * HD;
    T* value_tiles = key_tiles + 2 * TILE * HD;
    int lane = thread_index() % WARP, warp = thread_index() / WARP % ROW_WARPS;
    int part = thread_index() / WARP / ROW_WARPS;
    int group = p.q_heads / p.kv_heads, rows = p.tokens * group;
    int batch = block_z(), place = place_of_block(p);
    int kv_head = place % p.kv_heads, first_row = place / p.kv_heads * ROWS;
    int first_slot = *p.first_slot;

    const T* q = static_cast<const T*>(p.q) + static_cast<u64>(batch) * p.tokens * p.q_row + kv_head * p.q_group;
    u64 head = static_cast<u64>(batch) * p.kv_heads + kv_head;
    const T* keys = static_cast<const T*>(p.keys) + head * p.capacity * p.head_dim;
    const T* values = static_cast<const T*>(p.values) + head * p.capacity * p.head_dim;
    bool vector = p.head_dim % 8 == 0 && is_aligned(keys, 16) && is_aligned(values, 16);
    bool vector_q = p.head_dim % 8 == 0 && p.q_row % 8 == 0 && is_aligned(q, 16);

    for (int i = thread_index(); i < ROWS * (HD / 8); i += THREADS) {
        int row = i / (HD / 8), chunk = i % (HD / 8), at = first_row + row;
        int valid = at < rows ? p.head_dim - chunk * 8 : 0;
        const T* from = q;
        if (valid > 0) from += static_cast<u64>(at / group) * p.q_row + at % group * p.head_dim + chunk * 8;
        T* to = chunk_at<T, HD>(queries, row, chunk);
        if (vector_q) copy_async(to, from, valid > 0);
        else Raw8<T>::load_some(from, valid).store(to);
    }
    commit_copies();

    // Key ranges of the first and the last row; their union is the range of keys to process.
    int last_row = smaller(first_row + ROWS, rows) - 1;
    Seen first = keys_seen(p, batch, first_slot + first_row / group);
    Seen last = keys_seen(p, batch, first_slot + last_row / group);
    int start = first.start, end = larger(first.end, last.end);
    // This lane holds parts of rows lane_row and lane_row + 8. Values that only a few tiles need are recomputed there,
    // because registers limit the number of blocks per multiprocessor.
    int lane_row = first_row + warp * 16 + lane / 4;

    float out[HD / 8][4];
#pragma unroll
    for (int i = 0; i < HD / 8; ++i)
        for (int j = 0; j < 4; ++j) out[i][j] = 0.0f;
    float most[2] = {LOWEST, LOWEST}, total[2] = {0.0f, 0.0f};
    bool plain = is_plain(p);
    float factor = plain ? p.scale * LOG2_E : 1.0f;

    int tiles = end > start ? ceil_div(end - start, TILE) : 0;
    if (tiles > 0) {
        load_tile<T, HD, TILE, THREADS>(key_tiles, keys, start, end, p.head_dim, vector);
        load_tile<T, HD, TILE, THREADS>(value_tiles, values, start, end, p.head_dim, vector);
    }
    commit_copies();
    // For up to 128 features the queries stay in registers.
    constexpr bool KEPT = HD <= 128;
    u32 kept[KEPT ? HD / 16 : 1][4];
    if constexpr (KEPT) {
        wait_copies<1>();
        block_barrier();
#pragma unroll
        for (int k = 0; k < HD / 16; ++k)
            load_matrices(kept[k], chunk_at<T, HD>(queries, warp * 16 + lane % 16, 2 * k + lane / 16));
    }
    for (int tile = 0; tile < tiles; ++tile) {
        int first_key = start + tile * TILE, stage = tile % 2;
        if (tile + 1 < tiles) {
            load_tile<T, HD, TILE, THREADS>(key_tiles + (1 - stage) * TILE * HD, keys, first_key + TILE, end, p.head_dim, vector);
            load_tile<T, HD, TILE, THREADS>(value_tiles + (1 - stage) * TILE * HD, values, first_key + TILE, end, p.head_dim, vector);
        }
        commit_copies();
        wait_copies<1>();
        block_barrier();
        T* key_tile = key_tiles + (stage * TILE + part * KEYS) * HD;
        T* value_tile = value_tiles + (stage * TILE + part * KEYS) * HD;
        first_key += part * KEYS;

        // scores [16 rows, KEYS] = queries keys^T
        float s[KEYS / 8][4];
        for (int i = 0; i < KEYS / 8; ++i)
            for (int j = 0; j < 4; ++j) s[i][j] = 0.0f;
#pragma unroll
        for (int k = 0; k < HD / 16; ++k) {
            u32 a[4];
            if constexpr (KEPT) for (int i = 0; i < 4; ++i) a[i] = kept[k][i];
            else load_matrices(a, chunk_at<T, HD>(queries, warp * 16 + lane % 16, 2 * k + lane / 16));
#pragma unroll
            for (int n = 0; n < KEYS / 16; ++n) {
                u32 b[4];
                int key = n * 16 + lane % 8 + lane / 16 * 8;
                load_matrices(b, chunk_at<T, HD>(key_tile, key, 2 * k + lane / 8 % 2));
                mma<T>(s[2 * n], a, b[0], b[1]);
                mma<T>(s[2 * n + 1], a, b[2], b[3]);
            }
        }

        // Online softmax step. Element s[i][j] is row j / 2 of this lane and key 8 i + 2 (lane % 4) + j % 2. Each
        // operation that only some tiles need is in a loop of its own, behind one branch.
        int lane_key = first_key + lane % 4 * 2;
        if (!plain) {
            int row_head[2] = {kv_head * group + lane_row % group, kv_head * group + (lane_row + 8) % group};
#pragma unroll
            for (int i = 0; i < KEYS / 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    s[i][j] = score_of(p, s[i][j], batch, row_head[j / 2], lane_key + i * 8 + j % 2);
        }
        if (first_key < last.start || first_key + KEYS > first.end) {
            Seen seen[2];
            for (int r = 0; r < 2; ++r)
                seen[r] = keys_seen(p, batch, first_slot + smaller(lane_row + 8 * r, last_row) / group);
#pragma unroll
            for (int i = 0; i < KEYS / 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    int key = lane_key + i * 8 + j % 2;
                    if (key < seen[j / 2].start || key >= seen[j / 2].end) s[i][j] = LOWEST;
                }
        }
        if (p.visible) {
#pragma unroll
            for (int i = 0; i < KEYS / 8; ++i)
#pragma unroll
                for (int j = 0; j < 4; ++j)
                    if (is_hole(p, batch, lane_key + i * 8 + j % 2)) s[i][j] = LOWEST;
        }
        float keep[2], top[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float now = LOWEST;
#pragma unroll
            for (int i = 0; i < KEYS / 8; ++i) now = fmaxf(now, fmaxf(s[i][2 * r], s[i][2 * r + 1]));
            now = fmaxf(most[r], most_of(now, 4));
            top[r] = finite(now) * factor;
            keep[r] = exp2_of(most[r] * factor - top[r]);
            most[r] = now;
            total[r] *= keep[r];
        }
        u32 probabilities[KEYS / 8][2];
#pragma unroll
        for (int i = 0; i < KEYS / 8; ++i) {
#pragma unroll
            for (int r = 0; r < 2; ++r) {
                float low = exp2_of(s[i][2 * r] * factor - top[r]), high = exp2_of(s[i][2 * r + 1] * factor - top[r]);
                probabilities[i][r] = pack<T>(low, high);
                total[r] += low + high;
            }
        }
#pragma unroll
        for (int i = 0; i < HD / 8; ++i)
            for (int j = 0; j < 4; ++j) out[i][j] *= keep[j / 2];

        // out [16 rows, HD] += probabilities values
#pragma unroll
        for (int k = 0; k < KEYS / 16; ++k) {
            u32 a[4] = {
                probabilities[2 * k][0], probabilities[2 * k][1], probabilities[2 * k + 1][0], probabilities[2 * k + 1][1]
            };
#pragma unroll
            for (int n = 0; n < HD / 16; ++n) {
                u32 b[4];
                load_matrices_transposed(b, chunk_at<T, HD>(value_tile, k * 16 + lane % 16, 2 * n + lane / 16));
                mma<T>(out[2 * n], a, b[0], b[1]);
                mma<T>(out[2 * n + 1], a, b[2], b[3]);
            }
        }
        // The next iteration copies into this stage.
        block_barrier();
    }

    if constexpr (PARTS > 1) {
        // Part 1 stores its sums over the tiles; a row's maxima are equal in its four lanes.
        float* sums = reinterpret_cast<float*>(key_tiles) + warp * WARP + lane;
        constexpr int STEP = ROW_WARPS * WARP, COUNT = HD / 2 + 4;
        static_assert(PARTS == 2 && COUNT * STEP * 4 <= 4 * TILE * HD * 2, "one part of sums in the place of the tiles");
        if (part == 1) {
#pragma unroll
            for (int i = 0; i < HD / 2; ++i) sums[i * STEP] = out[i / 4][i % 4];
            for (int r = 0; r < 2; ++r) sums[(HD / 2 + r) * STEP] = most[r], sums[(HD / 2 + 2 + r) * STEP] = total[r];
        }
        block_barrier();
        if (part == 1) return;
        for (int r = 0; r < 2; ++r) {
            float other = sums[(HD / 2 + r) * STEP];
            float top = finite(fmaxf(most[r], other)) * factor;
            float keep = exp2_of(most[r] * factor - top), take = exp2_of(other * factor - top);
            total[r] = total[r] * keep + sums[(HD / 2 + 2 + r) * STEP] * take;
#pragma unroll
            for (int i = 0; i < HD / 4; ++i) {
                int feature = i / 2 * 4 + 2 * r + i % 2;
                out[i / 2][2 * r + i % 2] = out[i / 2][2 * r + i % 2] * keep + sums[feature * STEP] * take;
            }
        }
    }

#pragma unroll
    for (int r = 0; r < 2; ++r) {
        total[r] = sum_of(total[r], 4);
        float inverse = total[r] > 0.0f ? 1.0f / total[r] : 0.0f;
        int row = lane_row + 8 * r;
        u64 token = static_cast<u64>(batch) * p.tokens + row / group;
        T* to = static_cast<T*>(p.out) + (token * p.q_heads + kv_head * group + row % group) * p.head_dim;
        bool pairs = p.head_dim % 2 == 0 && is_aligned(p.out, 4);
        int width = row < rows ? p.head_dim : 0;
#pragma unroll
        for (int i = 0; i < HD / 8; ++i) {
            int feature = i * 8 + lane % 4 * 2;
            float low = out[i][2 * r] * inverse, high = out[i][2 * r + 1] * inverse;
            if (pairs && feature < width) {
                *reinterpret_cast<u32*>(to + feature) = pack<T>(low, high);
            } else {
                if (feature < width) to[feature] = narrow<T>(low);
                if (feature + 1 < width) to[feature + 1] = narrow<T>(high);
            }
        }
    }
}

// Two parts use a multiprocessor better that has one long block. For more features there are not enough registers.
#define ENTRIES(T, suffix)                                                                  \
    DENSE_ENTRY(256, 2, prefill_64_##suffix, AttentionParams) { prefill<T, 64, 64, 2>(p); } \
    ENTRY(128, prefill_128_##suffix, AttentionParams) { prefill<T, 128, 64, 1>(p); }        \
    ENTRY(128, prefill_256_##suffix, AttentionParams) { prefill<T, 256, 32, 1>(p); }
#ifdef WITH_BF16
ENTRIES(bf16, bf16)
#endif
#ifdef WITH_F16
ENTRIES(f16, f16)
#endif
