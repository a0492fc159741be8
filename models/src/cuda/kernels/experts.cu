// A mixture of experts on the device alone. An assignment is token * per_token + place. Sorted rows are the assignments
// sorted by expert, then by assignment.
struct RouteParams {
    const void* logits;  // [tokens, num_experts]
    int* experts;        // [tokens, per_token], the most probable first
    float* scores;       // [tokens, per_token]
    int tokens, num_experts, per_token;
    int mode;  // 0 divided by their sum; 1 also rounded to T; 2 rounded only
};

constexpr int MOST_EXPERTS = 512;

// One warp per token; lane l holds the experts l, l + 32, ...
template <class T> DEVICE void route(const RouteParams& p) {
    int lane = thread_index() % WARP;
    int token = block_x() * (thread_count() / WARP) + thread_index() / WARP;
    if (token >= p.tokens) return;
    const T* logits = static_cast<const T*>(p.logits) + static_cast<u64>(token) * p.num_experts;
    float x[MOST_EXPERTS / WARP];
    float most = LOWEST, sum = 0.0f;
    for (int i = 0; i < MOST_EXPERTS / WARP; ++i) {
        int expert = i * WARP + lane;
        x[i] = expert < p.num_experts ? widen(logits[expert]) : LOWEST;
        most = fmaxf(most, x[i]);
    }
    most = most_of(most, WARP);
    for (int i = 0; i < MOST_EXPERTS / WARP; ++i) {
        x[i] = i * WARP + lane < p.num_experts ? expf(x[i] - most) : 0.0f;
        sum += x[i];
    }
    sum = sum_of(sum, WARP);
    // One NaN logit makes every probability NaN, and NaN does not compare: then the first experts are chosen, with NaN
    // scores.
    bool known = sum == sum;
    for (int i = 0; i < MOST_EXPERTS / WARP; ++i) {
        x[i] = i * WARP + lane < p.num_experts ? (known ? x[i] / sum : 0.0f) : LOWEST;
    }
    float chosen = 0.0f;
    for (int place = 0; place < p.per_token; ++place) {
        float best = LOWEST;
        int expert = p.num_experts;
        for (int i = 0; i < MOST_EXPERTS / WARP; ++i) {
            if (x[i] > best) { best = x[i]; expert = i * WARP + lane; }
        }
        for (int step = WARP / 2; step > 0; step /= 2) {
            float other = shuffle_xor(best, step);
            int its = shuffle_xor(expert, step);
            // Of equal probabilities the lower expert index wins.
            if (other > best || (other == best && its < expert)) { best = other; expert = its; }
        }
        for (int i = 0; i < MOST_EXPERTS / WARP; ++i) {
            if (i * WARP + lane == expert) x[i] = LOWEST;
        }
        chosen += best;
        if (lane == 0) {
            p.experts[static_cast<u64>(token) * p.per_token + place] = expert;
            p.scores[static_cast<u64>(token) * p.per_token + place] = known ? best : NOT_A_NUMBER;
        }
    }
    // Lane 0 wrote the scores, so it also updates them.
    if (lane == 0) {
        for (int place = 0; place < p.per_token; ++place) {
            float& score = p.scores[static_cast<u64>(token) * p.per_token + place];
            if (p.mode != 2) score /= chosen;
            if (p.mode != 0) score = widen(narrow<T>(score));
        }
    }
}

struct ExpertRowsParams {
    const int* experts;  // [assignments]
    int* offsets;        // [num_experts + 1]: first sorted row of each expert
    int* sources;        // [assignments]: sorted row to assignment
    int* slots;          // [assignments]: assignment to sorted row
    int assignments, num_experts;
};

// One warp per expert. It counts the assignments of lower experts, which gives its first row, then assigns its rows in
// order. Warps are independent of each other.
DEVICE void expert_rows(const ExpertRowsParams& p) {
    int lane = thread_index() % WARP;
    int expert = block_x() * (thread_count() / WARP) + thread_index() / WARP;
    if (expert >= p.num_experts) return;
    int row = 0;
    for (int first = 0; first < p.assignments; first += WARP) {
        int i = first + lane;
        row += ones(ballot(i < p.assignments && p.experts[i] < expert));
    }
    if (lane == 0) p.offsets[expert] = row;
    for (int first = 0; first < p.assignments; first += WARP) {
        int i = first + lane;
        bool mine = i < p.assignments && p.experts[i] == expert;
        u32 all = ballot(mine);
        if (mine) {
            int at = row + ones(all & ((1u << lane) - 1));
            p.sources[at] = i;
            p.slots[i] = at;
        }
        row += ones(all);
    }
    if (lane == 0 && expert == p.num_experts - 1) p.offsets[p.num_experts] = row;
}

struct MixParams {
    const void* ys;      // [tokens * per_token, hidden], sorted
    const int* slots;    // [tokens * per_token]
    const int* experts;  // [tokens * per_token]
    const float* scores; // [tokens * per_token]
    void* out;           // [tokens, hidden]
    int per_token, hidden;
};

// One block per token. Contributions are summed by ascending expert index, independent of the router's order.
template <class T> DEVICE void mix_experts(const MixParams& p) {
    u64 first = static_cast<u64>(block_x()) * p.per_token;
    const T* ys = static_cast<const T*>(p.ys);
    T* out = static_cast<T*>(p.out) + static_cast<u64>(block_x()) * p.hidden;
    for (int i = thread_index(); i < p.hidden; i += thread_count()) {
        float sum = 0.0f;
        int last = -1;
        for (int done = 0; done < p.per_token; ++done) {
            int next = 0x7fffffff, place = 0;
            for (int j = 0; j < p.per_token; ++j) {
                int expert = p.experts[first + j];
                if (expert > last && expert < next) { next = expert; place = j; }
            }
            sum += p.scores[first + place] * widen(ys[static_cast<u64>(p.slots[first + place]) * p.hidden + i]);
            last = next;
        }
        out[i] = narrow<T>(sum);
    }
}

#define ENTRIES(T, suffix)                                                   \
    ENTRY(128, route_##suffix, RouteParams) { route<T>(p); }                 \
    ENTRY(128, expert_rows_##suffix, ExpertRowsParams) { expert_rows(p); }   \
    ENTRY(128, mix_experts_##suffix, MixParams) { mix_experts<T>(p); }
#ifdef WITH_F32
ENTRIES(float, f32)
#endif
#ifdef WITH_BF16
ENTRIES(bf16, bf16)
#endif
#ifdef WITH_F16
ENTRIES(f16, f16)
#endif
