// Attention of one token, the keys split among blocks (Dao et al. 2023, "flash-decoding"). A block takes up to HEADS
// query heads of one key head and one part of the keys. HD / 8 lanes hold 8 features each of one key, so a block reads
// 128 / (HD / 8) keys at once; each such group of lanes runs its own online softmax, and the groups meet at the end.
constexpr int THREADS = 128;
// Keys that a group of lanes reads before it computes: reads under way hide the memory's latency.
constexpr int AHEAD = 4;

template <class T, int HD, int HEADS> DEVICE void decode(const AttentionParams& p) {
    constexpr int LANES = HD / 8, GROUPS = THREADS / LANES, PART = HD + 2;
    DYNAMIC_SHARED(shared);
    int group = p.q_heads / p.kv_heads, pieces = ceil_div(group, HEADS);
    int split = block_x(), kv_head = block_y() / pieces, batch = block_z();
    int first_head = block_y() % pieces * HEADS, heads = smaller(HEADS, group - first_head);
    int feature = thread_index() % LANES * 8, mine = thread_index() / LANES;
    int valid = p.head_dim - feature;

    const T* q = static_cast<const T*>(p.q) + static_cast<u64>(batch) * p.q_row + kv_head * p.q_group;
    u64 at = (static_cast<u64>(batch) * p.kv_heads + kv_head) * p.capacity * p.head_dim;
    const T* keys = static_cast<const T*>(p.keys) + at;
    const T* values = static_cast<const T*>(p.values) + at;
    bool vector = p.head_dim % 8 == 0 && is_aligned(keys, 16) && is_aligned(values, 16);

    float query[HEADS][8], sums[HEADS][8], most[HEADS], total[HEADS];
    for (int h = 0; h < HEADS; ++h) {
        load8(query[h], q + (first_head + h) * p.head_dim + feature, h < heads ? valid : 0, false);
        for (int j = 0; j < 8; ++j) sums[h][j] = 0.0f;
        most[h] = LOWEST;
        total[h] = 0.0f;
    }

    // This block's part of the keys: equal parts of whole rounds, the last ones shorter or empty.
    Seen seen = keys_seen(p, batch, *p.first_slot);
    int part = ceil_div(ceil_div(larger(seen.end - seen.start, 0), p.splits), GROUPS) * GROUPS;
    int start = seen.start + split * part, end = smaller(seen.end, start + part);

    for (int first = start; first < end; first += GROUPS * AHEAD) {
        Raw8<T> key[AHEAD], value[AHEAD];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            int slot = first + i * GROUPS + mine;
            u64 from = static_cast<u64>(slot) * p.head_dim + feature;
            if (slot < end && valid > 0) {
                // Not read once only: the pieces of a wide group read the same keys.
                key[i] = vector ? Raw8<T>::load(keys + from) : Raw8<T>::load_some(keys + from, valid);
                value[i] = vector ? Raw8<T>::load(values + from) : Raw8<T>::load_some(values + from, valid);
            } else {
                key[i] = value[i] = Raw8<T>::zero();
            }
        }
        float scores[AHEAD][HEADS];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            int slot = first + i * GROUPS + mine;
            bool hidden = slot >= end || is_hole(p, batch, slot);
            float k[8];
            widen8(k, key[i]);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float dot = 0.0f;
                for (int j = 0; j < 8; ++j) dot += query[h][j] * k[j];
                dot = sum_of(dot, LANES);
                int head = kv_head * group + first_head + h;
                scores[i][h] = hidden || h >= heads ? LOWEST : score_of(p, dot, batch, head, slot);
            }
        }
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float now = most[h];
            for (int i = 0; i < AHEAD; ++i) now = fmaxf(now, scores[i][h]);
            float keep = relative(most[h], now);
            most[h] = now;
            total[h] *= keep;
            for (int j = 0; j < 8; ++j) sums[h][j] *= keep;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            float v[8];
            widen8(v, value[i]);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float probability = relative(scores[i][h], most[h]);
                total[h] += probability;
                for (int j = 0; j < 8; ++j) sums[h][j] += probability * v[j];
            }
        }
    }

    // Shared memory: [GROUPS, HEADS, HD sums, maximum, total].
    float* parts = reinterpret_cast<float*>(shared);
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        float* to = parts + (mine * HEADS + h) * PART;
        for (int j = 0; j < 8; ++j) to[feature + j] = sums[h][j];
        if (feature == 0) {
            to[HD] = most[h];
            to[HD + 1] = total[h];
        }
    }
    block_barrier();
    for (int i = thread_index(); i < heads * p.head_dim; i += THREADS) {
        int h = i / p.head_dim, column = i % p.head_dim;
        const float* from = parts + h * PART;
        float top = LOWEST, sum = 0.0f, all = 0.0f;
        for (int g = 0; g < GROUPS; ++g) top = fmaxf(top, from[g * HEADS * PART + HD]);
        for (int g = 0; g < GROUPS; ++g) {
            const float* its = from + g * HEADS * PART;
            float weight = relative(its[HD], top);
            sum += weight * its[column];
            all += weight * its[HD + 1];
        }
        u64 head = static_cast<u64>(batch) * p.q_heads + kv_head * group + first_head + h;
        if (p.splits == 1) {
            static_cast<T*>(p.out)[head * p.head_dim + column] = narrow<T>(all > 0.0f ? sum / all : 0.0f);
        } else {
            float* to = p.parts + (head * p.splits + split) * (p.head_dim + 2);
            to[column] = sum;
            if (column == 0) {
                to[p.head_dim] = top;
                to[p.head_dim + 1] = all;
            }
        }
    }
}

struct CombineParams {
    const float* parts;  // [heads, splits, head_dim + 2]: sums, maximum, total
    void* out;           // [heads, head_dim]
    int head_dim, splits;
};

// A block takes a head of a sequence, a thread a feature.
template <class T> DEVICE void combine(const CombineParams& p) {
    int feature = thread_index(), row = p.head_dim + 2;
    if (feature >= p.head_dim) return;
    const float* parts = p.parts + static_cast<u64>(block_x()) * p.splits * row;
    float top = LOWEST, sum = 0.0f, all = 0.0f;
    for (int i = 0; i < p.splits; ++i) top = fmaxf(top, parts[i * row + p.head_dim]);
    for (int i = 0; i < p.splits; ++i) {
        float weight = relative(parts[i * row + p.head_dim], top);
        sum += weight * parts[i * row + feature];
        all += weight * parts[i * row + p.head_dim + 1];
    }
    T* out = static_cast<T*>(p.out) + static_cast<u64>(block_x()) * p.head_dim;
    out[feature] = narrow<T>(all > 0.0f ? sum / all : 0.0f);
}

#define ENTRIES_OF(T, suffix, HD)                                                      \
    ENTRY(128, decode_##HD##_1_##suffix, AttentionParams) { decode<T, HD, 1>(p); }     \
    ENTRY(128, decode_##HD##_2_##suffix, AttentionParams) { decode<T, HD, 2>(p); }     \
    ENTRY(128, decode_##HD##_4_##suffix, AttentionParams) { decode<T, HD, 4>(p); }     \
    ENTRY(128, decode_##HD##_8_##suffix, AttentionParams) { decode<T, HD, 8>(p); }
#define ENTRIES(T, suffix)          \
    ENTRIES_OF(T, suffix, 64)       \
    ENTRIES_OF(T, suffix, 128)      \
    ENTRIES_OF(T, suffix, 256)      \
    ENTRY(256, decode_combine_##suffix, CombineParams) { combine<T>(p); }
#ifdef WITH_F32
ENTRIES(float, f32)
#endif
#ifdef WITH_BF16
ENTRIES(bf16, bf16)
#endif
#ifdef WITH_F16
ENTRIES(f16, f16)
#endif
