// Head norms, rotary embedding and the cache write. In rope_into_cache a warp processes one head of a token. In
// rope_halves, for heads that are rotated completely in halves and aligned to 16 bytes, head_dim / 16 lanes process one
// head, each lane eight features of both halves.
template <class T> DEVICE void rope_into_cache(const RopeParams& p) {
    DYNAMIC_SHARED(shared);
    int warp = thread_index() / WARP, heads = p.q_heads + 2 * p.kv_heads;
    int index = block_x() * (thread_count() / WARP) + warp;
    // Whole warps return, and there is no block barrier below.
    if (index >= p.rows * heads) return;
    int token = index / heads;
    Head<T> head(p, token, index % heads);
    T* to = head.place;
    if (!head.is_query) {
        int slot = *p.first_slot + token % p.tokens;
        if (slot < 0 || slot >= p.capacity) return;
        to = head.cached(p, token, slot);
    }
    turn(p, token, head, reinterpret_cast<float*>(shared) + warp * p.head_dim, [&](int i, T x) { to[i] = x; });
}

template <class T> DEVICE void rope_halves(const RopeParams& p) {
    int lanes = p.head_dim / 16, lane = thread_index() % lanes, heads = p.q_heads + 2 * p.kv_heads;
    int index = block_x() * (thread_count() / lanes) + thread_index() / lanes;
    bool is_there = index < p.rows * heads;
    // All lanes of a warp must take part in the shuffles below, so lanes without a head read the first one.
    int token = is_there ? index / heads : 0;
    Head<T> head(p, token, is_there ? index % heads : 0);
    T* to = head.place;
    if (!head.is_query) {
        int slot = *p.first_slot + token % p.tokens;
        is_there = is_there && slot >= 0 && slot < p.capacity;
        to = head.cached(p, token, is_there ? slot : 0);
    }
    int low = lane * 8, high = low + p.pairs;
    Raw8<T> raw[2] = {Raw8<T>::load(head.place + low), Raw8<T>::load(head.place + high)};
    float a[8], b[8];
    widen8(a, raw[0]);
    widen8(b, raw[1]);
    bool turns = head.is_query || head.is_key;
    u32 position = p.positions[token];
    bool known = position < static_cast<u32>(p.table_rows);
    u64 row = static_cast<u64>(known ? position : 0) * p.pairs + low;
    float c[8], s[8];
    load8(c, p.cos + row, 8, true);
    load8(s, p.sin + row, 8, true);
    if (p.q_weight || p.k_weight) {
        float mean = 0.0f, sum = 0.0f;
        if (p.centred) {
            for (int j = 0; j < 8; ++j) sum += a[j] + b[j];
            mean = sum_of(sum, lanes) / p.head_dim;
        }
        sum = 0.0f;
        for (int j = 0; j < 8; ++j) sum += (a[j] - mean) * (a[j] - mean) + (b[j] - mean) * (b[j] - mean);
        float scale = 1.0f / sqrtf(sum_of(sum, lanes) / p.head_dim + head.eps);
        if (head.weight) {
            for (int j = 0; j < 8; ++j) {
                a[j] = (a[j] - mean) * scale * head.weight[low + j];
                b[j] = (b[j] - mean) * scale * head.weight[high + j];
            }
        }
    }
    if (!is_there) return;
    if (!turns) {
        raw[0].store(to + low);
        raw[1].store(to + high);
        return;
    }
    float x[8], y[8];
    for (int j = 0; j < 8; ++j) {
        float cos = known ? c[j] : NOT_A_NUMBER, sin = known ? s[j] : NOT_A_NUMBER;
        x[j] = a[j] * cos - b[j] * sin;
        y[j] = b[j] * cos + a[j] * sin;
    }
    store8(to + low, x, 8, true);
    store8(to + high, y, 8, true);
}

#define ENTRIES(T, suffix)                                                          \
    ENTRY(128, rope_into_cache_##suffix, RopeParams) { rope_into_cache<T>(p); }     \
    ENTRY(128, rope_halves_##suffix, RopeParams) { rope_halves<T>(p); }
#ifdef WITH_F32
ENTRIES(float, f32)
#endif
#ifdef WITH_BF16
ENTRIES(bf16, bf16)
#endif
#ifdef WITH_F16
ENTRIES(f16, f16)
#endif
