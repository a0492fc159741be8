// Shared by several kernels: loads of 8 elements, sums over warps and blocks, activations. Arithmetic is F32; the
// element type is only the storage type.
constexpr int WARP = 32;
constexpr float LOG2_E = 1.4426950408889634f;
// Minus infinity.
#define LOWEST bits_to_float(0xff800000u)
#define NOT_A_NUMBER bits_to_float(0x7fc00000u)

template <class T> DEVICE T smaller(T a, T b) { return a < b ? a : b; }
template <class T> DEVICE T larger(T a, T b) { return a > b ? a : b; }
DEVICE int ceil_div(int a, int b) { return (a + b - 1) / b; }
DEVICE bool is_aligned(const void* place, int bytes) { return reinterpret_cast<u64>(place) % bytes == 0; }

// Eight elements in their storage type.
template <class T> struct Raw8 {
    Vec16 part[sizeof(T) / 2];

    // `from` must be aligned to 16 bytes.
    DEVICE static Raw8 load(const T* from) {
        Raw8 raw;
        for (int i = 0; i < int(sizeof(T) / 2); ++i) raw.part[i] = load16(reinterpret_cast<const Vec16*>(from) + i);
        return raw;
    }
    // As load, for global memory that is not read again soon: does not allocate in the first-level cache.
    DEVICE static Raw8 load_once(const T* from) {
        Raw8 raw;
        for (int i = 0; i < int(sizeof(T) / 2); ++i) raw.part[i] = load16_once(reinterpret_cast<const Vec16*>(from) + i);
        return raw;
    }
    // Loads the first `valid` elements; the rest are zeros.
    DEVICE static Raw8 load_some(const T* from, int valid) {
        Raw8 raw;
        T* to = reinterpret_cast<T*>(raw.part);
        for (int i = 0; i < 8; ++i) to[i] = i < valid ? from[i] : T{};
        return raw;
    }
    DEVICE static Raw8 zero() {
        Raw8 raw;
        for (int i = 0; i < int(sizeof(T) / 2); ++i)
            for (int j = 0; j < 4; ++j) raw.part[i].word[j] = 0;
        return raw;
    }
    DEVICE void store(T* to) const {
        for (int i = 0; i < int(sizeof(T) / 2); ++i) store16(reinterpret_cast<Vec16*>(to) + i, part[i]);
    }
};

DEVICE void widen8(float (&y)[8], const Raw8<float>& raw) {
    for (int i = 0; i < 8; ++i) y[i] = bits_to_float(raw.part[i / 4].word[i % 4]);
}
template <class T> DEVICE void widen8(float (&y)[8], const Raw8<T>& raw) {
    for (int i = 0; i < 4; ++i) {
        u32 word = raw.part[0].word[i];
        y[2 * i] = widen(T{static_cast<u16>(word)});
        y[2 * i + 1] = widen(T{static_cast<u16>(word >> 16)});
    }
}

// Loads the first `valid` (at most 8) elements; the rest are zeros. `vector`: `from` is aligned to 16 bytes.
template <class T> DEVICE void load8(float (&y)[8], const T* from, int valid, bool vector) {
    if (vector && valid >= 8) {
        widen8(y, Raw8<T>::load(from));
    } else {
        for (int i = 0; i < 8; ++i) y[i] = i < valid ? widen(from[i]) : 0.0f;
    }
}

DEVICE void store8(float* to, const float (&x)[8], int valid, bool vector) {
    (void)vector;
    for (int i = 0; i < 8; ++i)
        if (i < valid) to[i] = x[i];
}
template <class T> DEVICE void store8(T* to, const float (&x)[8], int valid, bool vector) {
    if (vector && valid >= 8) {
        Vec16 packed;
        for (int i = 0; i < 4; ++i) packed.word[i] = pack<T>(x[2 * i], x[2 * i + 1]);
        store16(to, packed);
    } else {
        for (int i = 0; i < 8; ++i)
            if (i < valid) to[i] = narrow<T>(x[i]);
    }
}

// Sum over groups of `lanes` adjacent lanes, a power of two; every lane gets the result.
DEVICE float sum_of(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x += shuffle_xor(x, step);
    return x;
}
DEVICE float most_of(float x, int lanes) {
    for (int step = lanes / 2; step > 0; step /= 2) x = fmaxf(x, shuffle_xor(x, step));
    return x;
}

// Sum over a block; every thread gets the result. The second barrier allows the caller to reuse `scratch`.
DEVICE float block_sum(float x, float (&scratch)[32]) {
    x = sum_of(x, WARP);
    if (thread_index() % WARP == 0) scratch[thread_index() / WARP] = x;
    block_barrier();
    float total = 0.0f;
    for (int i = 0; i < thread_count() / WARP; ++i) total += scratch[i];
    block_barrier();
    return total;
}
DEVICE float block_most(float x, float (&scratch)[32]) {
    x = most_of(x, WARP);
    if (thread_index() % WARP == 0) scratch[thread_index() / WARP] = x;
    block_barrier();
    float most = LOWEST;
    for (int i = 0; i < thread_count() / WARP; ++i) most = fmaxf(most, scratch[i]);
    block_barrier();
    return most;
}

DEVICE float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// `activation` is a value of `Activation` in elementwise.rs.
DEVICE float activate(int activation, float x) {
    switch (activation) {
        case 0: return x * sigmoid(x);
        // x/2 (1 + tanh u) = x sigmoid(2u), which does not cancel for negative x.
        case 1: return x * sigmoid(1.5957691216057308f * x * (1.0f + 0.044715f * x * x));
        case 2: return 0.5f * x * (1.0f + erff(x * 0.7071067811865476f));
        case 3: return x * sigmoid(1.702f * x);
        case 4: return fmaxf(x, 0.0f);
        case 5: { float r = fmaxf(x, 0.0f); return r * r; }
        default: return tanhf(x);
    }
}
