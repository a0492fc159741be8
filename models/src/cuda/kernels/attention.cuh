// Shared by the attention kernels. A query row is a token and one of the `group` query heads of a key head. Rows of one
// key head are adjacent, row = token * group + head, so that a tile of keys serves all of them.
struct AttentionParams {
    const void* q;         // [batch, tokens, q_row]: head h of kv group g at g q_group + h head_dim
    const void* keys;      // [batch, kv_heads, capacity, head_dim]
    const void* values;    // the same
    const int* first_slot; // slot of the first query token
    const int* ranges;     // [batch, 2]: slots that hold keys
    const u8* visible;     // [batch, visible_row]: 0 is padding inside the range; null is all
    const float* bias;     // [.., q_heads, bias_row] added to scores; null is none
    void* out;             // [batch, tokens, q_heads, head_dim]
    float* parts;          // decode: [batch, q_heads, splits, head_dim + 2]
    int batch, tokens, q_heads, kv_heads, head_dim, capacity, q_row, q_group;
    int visible_row, bias_row, bias_batch;
    int before, after;  // slots that a query sees before and after its own; -1 is no limit
    int splits;         // decode: parts of the keys; prefill: number of multiprocessors
    float scale, soft_cap;  // soft_cap 0 is none
};

// The slots start..end of the keys that a query in a slot sees, including holes. Neither bound decreases with the slot.
struct Seen { int start, end; };
DEVICE Seen keys_seen(const AttentionParams& p, int batch, int slot) {
    Seen seen = {larger(p.ranges[2 * batch], 0), smaller(p.ranges[2 * batch + 1], p.capacity)};
    if (p.before >= 0) seen.start = larger(seen.start, slot - p.before);
    if (p.after >= 0) seen.end = smaller(seen.end, slot + p.after + 1);
    return seen;
}

DEVICE bool is_hole(const AttentionParams& p, int batch, int key) {
    return p.visible && key < p.visible_row && !p.visible[static_cast<u64>(batch) * p.visible_row + key];
}

// The score of a dot product times log2(e), so that exp2 gives its exponential.
DEVICE float score_of(const AttentionParams& p, float dot, int batch, int head, int key) {
    float score = dot * p.scale;
    if (p.soft_cap != 0.0f) score = p.soft_cap * tanhf(score / p.soft_cap);
    if (p.bias && key < p.bias_row) {
        score += p.bias[static_cast<u64>(batch) * p.bias_batch + static_cast<u64>(head) * p.bias_row + key];
    }
    return score * LOG2_E;
}

// Whether a score is only a dot product times a positive factor, so that the factor can be applied in the exponent.
DEVICE bool is_plain(const AttentionParams& p) { return p.soft_cap == 0.0f && !p.bias && p.scale > 0.0f; }

// The base of the exponents: 0 for a row that has seen no key yet, whose scores of minus infinity then give 0.
DEVICE float finite(float most) { return most == LOWEST ? 0.0f : most; }
DEVICE float relative(float score, float most) { return exp2_of(score - finite(most)); }

// The place (row block * kv_heads + key head) of a block in a grid [row blocks * kv_heads, 1, batch]. Later tokens see
// more keys, so their blocks start first. The first p.splits blocks go to one multiprocessor each, the next ones in the
// same order; every second round is reversed, so that the multiprocessor with the longest block gets the shortest as
// its second one.
DEVICE int place_of_block(const AttentionParams& p) {
    int turn = block_x() / p.splits, first = turn * p.splits;
    int at = block_x() - first, most = smaller(p.splits, blocks_x() - first);
    if (turn % 2) at = most - 1 - at;
    return blocks_x() - 1 - (first + at);
}
