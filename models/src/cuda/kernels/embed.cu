// Embedding lookup. One block per output row.
struct EmbedParams {
    const void* table;  // [vocab, hidden]
    const u32* ids;     // [rows]
    void* out;          // [rows, hidden]
    int vocab, hidden;
    float scale;
    int add;  // whether to add to out
};

template <class T> DEVICE void embed(const EmbedParams& p) {
    u32 id = p.ids[block_x()];
    bool known = id < static_cast<u32>(p.vocab);
    const T* from = static_cast<const T*>(p.table) + (known ? static_cast<u64>(id) * p.hidden : 0);
    T* to = static_cast<T*>(p.out) + static_cast<u64>(block_x()) * p.hidden;
    for (int i = thread_index(); i < p.hidden; i += thread_count()) {
        // The product is rounded before it is added, as in two separate steps.
        T x = narrow<T>(known ? widen(from[i]) * p.scale : NOT_A_NUMBER);
        to[i] = p.add ? narrow<T>(widen(to[i]) + widen(x)) : x;
    }
}

#ifdef WITH_F32
ENTRY(128, embed_f32, EmbedParams) { embed<float>(p); }
#endif
#ifdef WITH_BF16
ENTRY(128, embed_bf16, EmbedParams) { embed<bf16>(p); }
#endif
#ifdef WITH_F16
ENTRY(128, embed_f16, EmbedParams) { embed<f16>(p); }
#endif
