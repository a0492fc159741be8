// Norms of q and k heads and rotary embedding (Su et al. 2021), before the cache write. Intermediate values are F32.
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

// Norms a head in shared memory in place, by one warp.
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

// Address and norm of head `which` of a token; heads are numbered queries, then keys, then values.
template <class T> struct Head {
    T* place;
    const float* weight;
    float eps;
    int kv;  // index of a key or value head
    bool is_query, is_key;

    DEVICE Head(const RopeParams& p, int token, int which) {
        place = static_cast<T*>(p.qkv) + static_cast<u64>(token) * p.row;
        is_query = which < p.q_heads;
        is_key = !is_query && which < p.q_heads + p.kv_heads;
        kv = which - p.q_heads - (is_key ? 0 : p.kv_heads);
        if (is_query) {
            int group = p.q_heads / p.kv_heads;
            place += p.q_first + which / group * p.q_group + which % group * p.head_dim;
            weight = p.q_weight ? p.q_weight + which * p.q_weight_head : nullptr;
            eps = p.q_eps;
        } else {
            place += (is_key ? p.k_first : p.v_first) + kv * p.kv_head;
            weight = is_key && p.k_weight ? p.k_weight + kv * p.k_weight_head : nullptr;
            eps = p.k_eps;
        }
    }

    // Cache address of this token's key or value.
    DEVICE T* cached(const RopeParams& p, int token, int slot) const {
        u64 row = (static_cast<u64>(token / p.tokens) * p.kv_heads + kv) * p.capacity + slot;
        return static_cast<T*>(is_key ? p.keys : p.values) + row * p.head_dim;
    }
};

// Norms and rotates a head, by one warp, with `head` in shared memory as scratch. Calls `put(i, x)` for each feature i
// of the result. A value head is passed unchanged.
template <class T, class Put> DEVICE void turn(const RopeParams& p, int token, const Head<T>& from, float* head, Put put) {
    int lane = thread_index() % WARP;
    if (!from.is_query && !from.is_key) {
        for (int i = lane; i < p.head_dim; i += WARP) put(i, from.place[i]);
        return;
    }
    for (int i = lane; i < p.head_dim; i += WARP) head[i] = widen(from.place[i]);
    if (from.weight) norm_head(head, from.weight, p.head_dim, p.centred, from.eps);
    warp_barrier();
    u32 position = p.pairs ? p.positions[token] : 0;
    bool known = position < static_cast<u32>(p.table_rows);
    const float* cos = p.cos + static_cast<u64>(known ? position : 0) * p.pairs;
    const float* sin = p.sin + static_cast<u64>(known ? position : 0) * p.pairs;
    for (int i = lane; i < p.pairs; i += WARP) {
        int low = p.interleaved ? 2 * i : i, high = p.interleaved ? 2 * i + 1 : i + p.pairs;
        float a = head[low], b = head[high];
        float c = known ? cos[i] : NOT_A_NUMBER, s = known ? sin[i] : NOT_A_NUMBER;
        put(low, narrow<T>(a * c - b * s));
        put(high, narrow<T>(b * c + a * s));
    }
    // Features that partial rotary embedding does not rotate.
    for (int i = 2 * p.pairs + lane; i < p.head_dim; i += WARP) put(i, narrow<T>(head[i]));
}
