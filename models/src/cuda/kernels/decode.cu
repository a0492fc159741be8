// Attention of one query token per sequence, with the keys split among blocks (Dao et al. 2023, "flash-decoding"). A
// block processes up to HEADS query heads of one key head and one part of the keys. HD / 8 lanes hold 8 features each
// of one key, so a block reads THREADS / (HD / 8) keys at once. Each such group of lanes runs its own online softmax;
// the results of the groups are combined at the end.
//
// If `rope.qkv` is set, each block first norms and rotates the heads that it needs. The first block of a key head
// writes its key and value to the cache; no block of this launch reads that slot.
constexpr int THREADS = 256, WARPS = THREADS / WARP;
// Keys that a group of lanes loads before it computes, to hide memory latency; limited by registers.
template <class T, int HEADS> constexpr int KEYS_AHEAD = sizeof(T) * HEADS > 16 ? 1 : sizeof(T) * HEADS > 8 ? 2 : 4;

struct DecodeParams {
    AttentionParams attention;
    RopeParams rope;  // qkv null: queries are rotated and the cache is complete
};

// Keys and values that a group of lanes loads at a time.
template <class T, int AHEAD> struct Ahead {
    Raw8<T> key[AHEAD], value[AHEAD];

    // Loads slots first, first + step, .. below `end`; zeros for slot `fresh` and for slots from `end` on.
    DEVICE void load(const T* keys, const T* values, int first, int step, int end, int fresh, int row, int valid, bool vector) {
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            int slot = first + i * step;
            u64 from = static_cast<u64>(slot) * row;
            if (slot < end && slot != fresh && valid > 0) {
                // Not load_once: other blocks of a large query group read the same keys.
                key[i] = vector ? Raw8<T>::load(keys + from) : Raw8<T>::load_some(keys + from, valid);
                value[i] = vector ? Raw8<T>::load(values + from) : Raw8<T>::load_some(values + from, valid);
            } else {
                key[i] = value[i] = Raw8<T>::zero();
            }
        }
    }
};

template <class T, int HD, int HEADS> DEVICE void decode(const DecodeParams& params) {
    const AttentionParams& p = params.attention;
    const RopeParams& rope = params.rope;
    constexpr int LANES = HD / 8, GROUPS = THREADS / LANES, PART = HD + 2, AHEAD = KEYS_AHEAD<T, HEADS>;
    // Shared memory: the rotated queries and key, and the value [HEADS + 2, HD]; [WARPS, HEADS, HD sums, maximum,
    // total].
    DYNAMIC_SHARED(shared);
    float* staged = reinterpret_cast<float*>(shared);
    float* parts = staged + (HEADS + 2) * HD;
    int lane = thread_index() % WARP, warp = thread_index() / WARP;
    int group = p.q_heads / p.kv_heads, pieces = ceil_div(group, HEADS);
    int split = block_x(), kv_head = block_y() / pieces, batch = block_z();
    int first_head = block_y() % pieces * HEADS, heads = smaller(HEADS, group - first_head);
    int feature = thread_index() % LANES * 8, mine = thread_index() / LANES;
    int valid = p.head_dim - feature;
    bool turns = rope.qkv;
    // Older cache slots were written at least two launches ago; this token's own key may not have been written yet.
    if (!turns) wait_for_previous();

    u64 at = (static_cast<u64>(batch) * p.kv_heads + kv_head) * p.capacity * p.head_dim + feature;
    const T* keys = static_cast<const T*>(p.keys) + at;
    const T* values = static_cast<const T*>(p.values) + at;
    bool vector = p.head_dim % 8 == 0 && is_aligned(keys, 16) && is_aligned(values, 16);

    // This block's part of the keys: equal multiples of GROUPS; the last parts may be shorter or empty.
    int slot = *p.first_slot, fresh = turns ? slot : -1;
    Seen seen = keys_seen(p, batch, slot);
    int part = ceil_div(ceil_div(larger(seen.end - seen.start, 0), p.splits), GROUPS) * GROUPS;
    int start = seen.start + split * part, end = smaller(seen.end, start + part);
    Ahead<T, AHEAD> ahead;
    ahead.load(keys, values, start + mine, GROUPS, end, fresh, p.head_dim, valid, vector);

    if (turns) {
        wait_for_previous();
        bool writes = split == 0 && first_head == 0 && slot >= 0 && slot < p.capacity;
        for (int i = warp; i < heads + 2; i += WARPS) {
            int query = kv_head * group + first_head + i, kv = p.q_heads + (i - heads) * p.kv_heads + kv_head;
            Head<T> head(rope, batch, i < heads ? query : kv);
            float* to = staged + (i < heads ? i : HEADS + i - heads) * HD;
            T* cached = writes && i >= heads ? head.cached(rope, batch, slot) : nullptr;
            turn(rope, batch, head, to, [&](int at, T x) {
                to[at] = widen(x);
                if (cached) cached[at] = x;
            });
        }
        block_barrier();
    }
    float query[HEADS][8], sums[HEADS][8], most[HEADS], total[HEADS];
    const T* q = static_cast<const T*>(p.q) + static_cast<u64>(batch) * p.q_row + kv_head * p.q_group;
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        int there = h < heads ? valid : 0;
        if (turns) load8(query[h], staged + h * HD + feature, there, false);
        else load8(query[h], q + (first_head + h) * p.head_dim + feature, there, false);
        for (int j = 0; j < 8; ++j) sums[h][j] = 0.0f;
        most[h] = LOWEST;
        total[h] = 0.0f;
    }

    bool plain = is_plain(p);
    float factor = plain ? p.scale * LOG2_E : 1.0f;
    for (int first = start + mine; first - mine < end; first += GROUPS * AHEAD) {
        // Loads the next keys and values while these are processed.
        Ahead<T, AHEAD> next;
        if (first - mine + GROUPS * AHEAD < end)
            next.load(keys, values, first + GROUPS * AHEAD, GROUPS, end, fresh, p.head_dim, valid, vector);
        float scores[AHEAD][HEADS];
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            int key = first + i * GROUPS;
            float k[8];
            if (key == fresh) load8(k, staged + HEADS * HD + feature, valid, false);
            else widen8(k, ahead.key[i]);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float dot = 0.0f;
                for (int j = 0; j < 8; ++j) dot += query[h][j] * k[j];
                scores[i][h] = sum_of(dot, LANES);
            }
        }
        if (!plain) {
#pragma unroll
            for (int i = 0; i < AHEAD; ++i)
#pragma unroll
                for (int h = 0; h < HEADS; ++h) {
                    int head = smaller(kv_head * group + first_head + h, p.q_heads - 1);
                    scores[i][h] = score_of(p, scores[i][h], batch, head, first + i * GROUPS);
                }
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            int key = first + i * GROUPS;
            if (key >= end || is_hole(p, batch, key))
                for (int h = 0; h < HEADS; ++h) scores[i][h] = LOWEST;
        }
        float top[HEADS];
#pragma unroll
        for (int h = 0; h < HEADS; ++h) {
            float now = most[h];
            for (int i = 0; i < AHEAD; ++i) now = fmaxf(now, scores[i][h]);
            top[h] = finite(now) * factor;
            float keep = exp2_of(most[h] * factor - top[h]);
            most[h] = now;
            total[h] *= keep;
            for (int j = 0; j < 8; ++j) sums[h][j] *= keep;
        }
#pragma unroll
        for (int i = 0; i < AHEAD; ++i) {
            float v[8];
            if (first + i * GROUPS == fresh) load8(v, staged + (HEADS + 1) * HD + feature, valid, false);
            else widen8(v, ahead.value[i]);
#pragma unroll
            for (int h = 0; h < HEADS; ++h) {
                float probability = exp2_of(scores[i][h] * factor - top[h]);
                total[h] += probability;
                for (int j = 0; j < 8; ++j) sums[h][j] += probability * v[j];
            }
        }
        ahead = next;
    }

    // Combines the groups of a warp by shuffles, then the warps in shared memory.
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
        float top = most[h];
        for (int step = LANES; step < WARP; step *= 2) top = fmaxf(top, shuffle_xor(top, step));
        float keep = relative(most[h] * factor, top * factor);
        total[h] *= keep;
        for (int j = 0; j < 8; ++j) sums[h][j] *= keep;
        for (int step = LANES; step < WARP; step *= 2) {
            total[h] += shuffle_xor(total[h], step);
            for (int j = 0; j < 8; ++j) sums[h][j] += shuffle_xor(sums[h][j], step);
        }
        float* to = parts + (warp * HEADS + h) * PART;
        if (lane < LANES)
            for (int j = 0; j < 8; ++j) to[feature + j] = sums[h][j];
        if (lane == 0) {
            to[HD] = top * factor;
            to[HD + 1] = total[h];
        }
    }
    block_barrier();
    for (int i = thread_index(); i < heads * p.head_dim; i += THREADS) {
        int h = i / p.head_dim, column = i % p.head_dim;
        const float* from = parts + h * PART;
        float top = LOWEST, sum = 0.0f, all = 0.0f;
        for (int w = 0; w < WARPS; ++w) top = fmaxf(top, from[w * HEADS * PART + HD]);
        for (int w = 0; w < WARPS; ++w) {
            const float* its = from + w * HEADS * PART;
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

// One block per head of a sequence, one thread per feature.
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
    EARLY_ENTRY(256, decode_##HD##_1_##suffix, DecodeParams) { decode<T, HD, 1>(p); }     \
    EARLY_ENTRY(256, decode_##HD##_2_##suffix, DecodeParams) { decode<T, HD, 2>(p); }     \
    EARLY_ENTRY(256, decode_##HD##_4_##suffix, DecodeParams) { decode<T, HD, 4>(p); }     \
    EARLY_ENTRY(256, decode_##HD##_8_##suffix, DecodeParams) { decode<T, HD, 8>(p); }
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
