// Attention of more than one query token in F32, without TF32: scalar multiply-adds on tiles of 32 query rows and 32
// keys, with an online softmax. Thread 4 r + c holds row r: the scores of keys c, c + 4, ... and the features of chunks
// (4 floats) c, c + 4, ...; rows of a tile are padded by 4 floats, so that neither product has bank conflicts.
constexpr int ROWS = 32, KEYS = 32, THREADS = 128, PROBABILITY_ROW = 36;

// Loads rows first..end of [.., head_dim] into a tile; the rest of the tile becomes zeros.
template <int HD> DEVICE void load_tile(float* tile, const float* rows, int first, int end, int head_dim, bool vector) {
    for (int i = thread_index(); i < KEYS * (HD / 4); i += THREADS) {
        int row = i / (HD / 4), column = i % (HD / 4) * 4;
        bool valid = first + row < end;
        const float* from = rows + static_cast<u64>(first + row) * head_dim + column;
        float* to = tile + row * (HD + 4) + column;
        if (vector && valid && column < head_dim) {
            store16(to, load16(from));
        } else {
            for (int j = 0; j < 4; ++j) to[j] = valid && column + j < head_dim ? from[j] : 0.0f;
        }
    }
}

DEVICE void load4(float (&y)[4], const float* from) {
    Vec16 raw = load16(from);
    for (int i = 0; i < 4; ++i) y[i] = bits_to_float(raw.word[i]);
}

template <int HD> DEVICE void prefill(const AttentionParams& p) {
    DYNAMIC_SHARED(shared);
    float* queries = reinterpret_cast<float*>(shared);
    float* key_tile = queries + ROWS * (HD + 4);
    float* value_tile = key_tile + KEYS * (HD + 4);
    float* probabilities = value_tile + KEYS * (HD + 4);
    int r = thread_index() / 4, c = thread_index() % 4;
    int group = p.q_heads / p.kv_heads, rows = p.tokens * group;
    int batch = block_z(), place = place_of_block(p);
    int kv_head = place % p.kv_heads, first_row = place / p.kv_heads * ROWS;
    int first_slot = *p.first_slot;

    const float* q = static_cast<const float*>(p.q) + static_cast<u64>(batch) * p.tokens * p.q_row + kv_head * p.q_group;
    u64 head = static_cast<u64>(batch) * p.kv_heads + kv_head;
    const float* keys = static_cast<const float*>(p.keys) + head * p.capacity * p.head_dim;
    const float* values = static_cast<const float*>(p.values) + head * p.capacity * p.head_dim;
    bool vector = p.head_dim % 4 == 0 && is_aligned(keys, 16) && is_aligned(values, 16);
    for (int i = thread_index(); i < ROWS * HD; i += THREADS) {
        int row = i / HD, column = i % HD, at = first_row + row;
        bool valid = at < rows && column < p.head_dim;
        u64 from = static_cast<u64>(at / group) * p.q_row + at % group * p.head_dim + column;
        queries[row * (HD + 4) + column] = valid ? q[from] : 0.0f;
    }

    int row = first_row + r, last_row = smaller(first_row + ROWS, rows) - 1;
    int row_head = kv_head * group + row % group;
    Seen first = keys_seen(p, batch, first_slot + first_row / group);
    Seen last = keys_seen(p, batch, first_slot + last_row / group);
    Seen seen = keys_seen(p, batch, first_slot + smaller(row, last_row) / group);
    int start = first.start, end = larger(first.end, last.end);

    float out[HD / 16][4];
    for (int i = 0; i < HD / 16; ++i)
        for (int j = 0; j < 4; ++j) out[i][j] = 0.0f;
    float most = LOWEST, total = 0.0f;
    bool plain = is_plain(p);
    float factor = plain ? p.scale * LOG2_E : 1.0f;
    for (int first_key = start; first_key < end; first_key += KEYS) {
        load_tile<HD>(key_tile, keys, first_key, end, p.head_dim, vector);
        load_tile<HD>(value_tile, values, first_key, end, p.head_dim, vector);
        block_barrier();

        float s[KEYS / 4];
        for (int i = 0; i < KEYS / 4; ++i) s[i] = 0.0f;
        for (int column = 0; column < p.head_dim; column += 4) {
            float x[4], y[4];
            load4(x, queries + r * (HD + 4) + column);
#pragma unroll
            for (int i = 0; i < KEYS / 4; ++i) {
                load4(y, key_tile + (c + 4 * i) * (HD + 4) + column);
                for (int j = 0; j < 4; ++j) s[i] += x[j] * y[j];
            }
        }
        if (!plain) {
#pragma unroll
            for (int i = 0; i < KEYS / 4; ++i) s[i] = score_of(p, s[i], batch, row_head, first_key + c + 4 * i);
        }
        float now = LOWEST;
#pragma unroll
        for (int i = 0; i < KEYS / 4; ++i) {
            int key = first_key + c + 4 * i;
            if (key < seen.start || key >= seen.end || is_hole(p, batch, key)) s[i] = LOWEST;
            now = fmaxf(now, s[i]);
        }
        now = fmaxf(most, most_of(now, 4));
        float top = finite(now) * factor, keep = exp2_of(most * factor - top);
        most = now;
        total *= keep;
#pragma unroll
        for (int i = 0; i < KEYS / 4; ++i) {
            float probability = exp2_of(s[i] * factor - top);
            total += probability;
            probabilities[r * PROBABILITY_ROW + c + 4 * i] = probability;
        }
        // The four threads of a row, all in one warp, share the row's probabilities.
        warp_barrier();
        for (int i = 0; i < HD / 16; ++i)
            for (int j = 0; j < 4; ++j) out[i][j] *= keep;
        for (int key = 0; key < KEYS; ++key) {
            float probability = probabilities[r * PROBABILITY_ROW + key], y[4];
#pragma unroll
            for (int i = 0; i < HD / 16; ++i) {
                int column = (c + 4 * i) * 4;
                if (column < p.head_dim) {
                    load4(y, value_tile + key * (HD + 4) + column);
                    for (int j = 0; j < 4; ++j) out[i][j] += probability * y[j];
                }
            }
        }
        // The next iteration overwrites the tiles.
        block_barrier();
    }

    total = sum_of(total, 4);
    if (row >= rows) return;
    float inverse = total > 0.0f ? 1.0f / total : 0.0f;
    u64 token = static_cast<u64>(batch) * p.tokens + row / group;
    float* to = static_cast<float*>(p.out) + (token * p.q_heads + row_head) * p.head_dim;
    for (int i = 0; i < HD / 16; ++i) {
        for (int j = 0; j < 4; ++j) {
            int column = (c + 4 * i) * 4 + j;
            if (column < p.head_dim) to[column] = out[i][j] * inverse;
        }
    }
}

#ifdef WITH_F32
ENTRY(128, prefill_64_f32, AttentionParams) { prefill<64>(p); }
ENTRY(128, prefill_128_f32, AttentionParams) { prefill<128>(p); }
ENTRY(128, prefill_256_f32, AttentionParams) { prefill<256>(p); }
#endif
