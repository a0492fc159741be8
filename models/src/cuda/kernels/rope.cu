// Norms of q and k heads, rotary embedding (Su et al. 2021) and the way into the cache. A warp takes a head of a
// token: first the queries, then the keys, then the values. In F32 between reading and writing.
struct RopeParams {
    void* qkv;  // [rows, row]: head h of kv group g at q_first + g q_group + h head_dim, and so on
    void* keys;    // [batch, kv_heads, capacity, head_dim]
    void* values;  // the same
    const int* first_slot;
    const u32* positions;  // [rows]: rows of the tables
    const float* cos;      // [table_rows, pairs]
    const float* sin;
    const float* q_weight;  // [head_dim] or [q_heads, head_dim]; null is no norm
    const float* k_weight;
    int tokens, rows, q_heads, kv_heads, head_dim, capacity;
    int row, q_first, k_first, v_first, q_group, kv_head;
    int pairs;  // 0 is no rotation
    int interleaved, table_rows;
    int q_weight_head, k_weight_head, centred;
    float q_eps, k_eps;
};

// Norms a head that lies in shared memory, one feature in 32 a lane.
DEVICE void norm_head(float* head, const float* weight, int size, bool centred, float eps) {
    int lane = thread_index() % WARP;
    float mean = 0.0f, sum = 0.0f;
    if (centred) {
        for (int i = lane; i < size; i += WARP) sum += head[i];
        mean = sum_of(sum, WARP) / size;
    }
    sum = 0.0f;
    for (int i = lane; i < size; i += WARP) sum += (head[i] - mean) * (head[i] - mean);
    float scale = 1.0f / sqrtf(sum_of(sum, WARP) / size + eps);
    for (int i = lane; i < size; i += WARP) head[i] = (head[i] - mean) * scale * weight[i];
}

template <class T> DEVICE void rope_into_cache(const RopeParams& p) {
    DYNAMIC_SHARED(shared);
    int warp = thread_index() / WARP, lane = thread_index() % WARP;
    int heads = p.q_heads + 2 * p.kv_heads;
    int index = block_x() * (thread_count() / WARP) + warp;
    // A whole warp at a time: nothing below waits for the block.
    if (index >= p.rows * heads) return;
    int token = index / heads, which = index % heads;
    float* head = reinterpret_cast<float*>(shared) + warp * p.head_dim;
    T* from = static_cast<T*>(p.qkv) + static_cast<u64>(token) * p.row;
    const float* weight;
    float eps;
    int kv = 0;
    if (which < p.q_heads) {
        int group = p.q_heads / p.kv_heads;
        from += p.q_first + which / group * p.q_group + which % group * p.head_dim;
        weight = p.q_weight ? p.q_weight + which * p.q_weight_head : nullptr;
        eps = p.q_eps;
    } else {
        bool is_key = which < p.q_heads + p.kv_heads;
        kv = which - p.q_heads - (is_key ? 0 : p.kv_heads);
        from += (is_key ? p.k_first : p.v_first) + kv * p.kv_head;
        weight = is_key && p.k_weight ? p.k_weight + kv * p.k_weight_head : nullptr;
        eps = p.k_eps;
    }
    T* to = from;
    if (which >= p.q_heads) {
        int slot = *p.first_slot + token % p.tokens;
        if (slot < 0 || slot >= p.capacity) return;
        T* cache = static_cast<T*>(which < p.q_heads + p.kv_heads ? p.keys : p.values);
        to = cache + ((static_cast<u64>(token / p.tokens) * p.kv_heads + kv) * p.capacity + slot) * p.head_dim;
    }
    if (which >= p.q_heads + p.kv_heads) {
        for (int i = lane; i < p.head_dim; i += WARP) to[i] = from[i];
        return;
    }
    for (int i = lane; i < p.head_dim; i += WARP) head[i] = widen(from[i]);
    if (weight) norm_head(head, weight, p.head_dim, p.centred, eps);
    warp_barrier();
    u32 position = p.pairs ? p.positions[token] : 0;
    bool known = position < static_cast<u32>(p.table_rows);
    const float* cos = p.cos + static_cast<u64>(known ? position : 0) * p.pairs;
    const float* sin = p.sin + static_cast<u64>(known ? position : 0) * p.pairs;
    for (int i = lane; i < p.pairs; i += WARP) {
        int low = p.interleaved ? 2 * i : i, high = p.interleaved ? 2 * i + 1 : i + p.pairs;
        float a = head[low], b = head[high];
        float c = known ? cos[i] : NOT_A_NUMBER, s = known ? sin[i] : NOT_A_NUMBER;
        to[low] = narrow<T>(a * c - b * s);
        to[high] = narrow<T>(b * c + a * s);
    }
    // What partial rotary leaves as it is.
    for (int i = 2 * p.pairs + lane; i < p.head_dim; i += WARP) to[i] = narrow<T>(head[i]);
}

#ifdef WITH_F32
ENTRY(128, rope_into_cache_f32, RopeParams) { rope_into_cache<float>(p); }
#endif
#ifdef WITH_BF16
ENTRY(128, rope_into_cache_bf16, RopeParams) { rope_into_cache<bf16>(p); }
#endif
#ifdef WITH_F16
ENTRY(128, rope_into_cache_f16, RopeParams) { rope_into_cache<f16>(p); }
#endif
