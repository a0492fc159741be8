// Hardware functions for the kernels; `emulated.h` defines the same names for a C++ compiler. All inline assembly is
// here. Requires sm_80. Includes no other header, so that NVRTC needs no toolkit.
#define DEVICE __device__ __forceinline__
// Static shared memory.
#define SHARED __shared__
// Dynamic shared memory, aligned to 16 bytes.
#define DYNAMIC_SHARED(name) extern __shared__ __align__(16) unsigned char name[]
// An entry point that takes the struct PARAMS as `p` and is launched with at most `threads` threads a block.
#define ENTRY(threads, name, PARAMS) DENSE_ENTRY(threads, 1, name, PARAMS)
// As ENTRY, with registers limited so that `blocks` blocks fit on a multiprocessor.
#define DENSE_ENTRY(threads, blocks, name, PARAMS)                                   \
    DEVICE void name##_body(const PARAMS& p);                                        \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const PARAMS p) { \
        wait_for_previous();                                                         \
        name##_body(p);                                                              \
    }                                                                                \
    DEVICE void name##_body(const PARAMS& p)
// As ENTRY, but the kernel itself calls `wait_for_previous` and can do some work before it.
#define EARLY_ENTRY(threads, name, PARAMS) extern "C" __global__ void __launch_bounds__(threads) name(const PARAMS p)

// NVRTC has no offsetof; this is the expression that its front end generates for offsetof.
#define OFFSET_OF(type, member) __INTADDR__(&((static_cast<type*>(0))->member))

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct __align__(16) Vec16 { u32 word[4]; };

DEVICE int thread_index() { return threadIdx.x; }
DEVICE int thread_count() { return blockDim.x; }
DEVICE int block_x() { return blockIdx.x; }
DEVICE int block_y() { return blockIdx.y; }
DEVICE int block_z() { return blockIdx.z; }
DEVICE int blocks_x() { return gridDim.x; }

// If launches overlap (programmatic dependent launch, PTX ISA 9.7.13.13): waits until the previous launch has ended and
// its writes are visible, then allows the next launch to begin. Before this call a kernel must not write, and may read
// only memory that no launch writes (parameters, weights) or that a launch before the previous one wrote: the previous
// launch allowed this one to begin only after its own wait.
DEVICE void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

DEVICE void block_barrier() { __syncthreads(); }
// Barrier of the 32 lanes of a warp. All lanes must take part in it and in the shuffles below.
DEVICE void warp_barrier() { __syncwarp(); }
DEVICE float shuffle_xor(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE int shuffle_xor(int x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
DEVICE u32 ballot(bool x) { return __ballot_sync(0xffffffffu, x); }
DEVICE int ones(u32 x) { return __popc(x); }

DEVICE float bits_to_float(u32 bits) { return __uint_as_float(bits); }

DEVICE float widen(float x) { return x; }
DEVICE float widen(bf16 x) { return __uint_as_float(static_cast<u32>(x.bits) << 16); }
DEVICE float widen(f16 x) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
}

// 2^x with an error of at most 2 units in the last place; subnormal results become 0.
DEVICE float exp2_of(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Load and store of 16 bytes; the address must be aligned to 16 bytes.
DEVICE Vec16 load16(const void* from) { return *static_cast<const Vec16*>(from); }
DEVICE void store16(void* to, const Vec16& x) { *static_cast<Vec16*>(to) = x; }

// Loads 16 bytes of global memory that no launch writes and that is not read again soon. `volatile` keeps the load
// before a following wait.
DEVICE Vec16 load16_once(const void* from) {
    Vec16 y;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
        : "=r"(y.word[0]), "=r"(y.word[1]), "=r"(y.word[2]), "=r"(y.word[3])
        : "l"(from));
    return y;
}

// Rounds to nearest even.
template <class T> DEVICE T narrow(float x);
template <> DEVICE float narrow<float>(float x) { return x; }
template <> DEVICE bf16 narrow<bf16>(float x) {
    bf16 y;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}
template <> DEVICE f16 narrow<f16>(float x) {
    f16 y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
    return y;
}

// Rounds two values and packs them in a word, the first in the low half.
template <class T> DEVICE u32 pack(float low, float high);
template <> DEVICE u32 pack<bf16>(float low, float high) {
    u32 y;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}
template <> DEVICE u32 pack<f16>(float low, float high) {
    u32 y;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
    return y;
}

// c += a b on a warp: a [16, 16], b [16, 8], c [16, 8] in the fragments of mma.m16n8k16 (PTX ISA 9.7.14).
// With g = lane / 4 and t = lane % 4: a[0] holds row g, columns 2t and 2t+1; a[1] row g+8; a[2] and a[3] the same rows,
// columns 2t+8 and 2t+9. b[0] holds rows 2t and 2t+1 of column g; b[1] rows 2t+8 and 2t+9. c[0], c[1]: row g, columns
// 2t and 2t+1; c[2], c[3]: row g+8.
template <class T> DEVICE void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1);
template <> DEVICE void mma<bf16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <> DEVICE void mma<f16>(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

DEVICE u32 shared_address(const void* place) { return static_cast<u32>(__cvta_generic_to_shared(place)); }

// Four 8 x 8 matrices of 16-bit elements from shared memory: lanes 8i to 8i+7 pass the row addresses of matrix i. y[i]
// receives row lane / 4, columns 2 (lane % 4) and 2 (lane % 4) + 1, of matrix i (`_transposed`: of its transpose).
DEVICE void load_matrices(u32 (&y)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3])
                 : "r"(shared_address(row))
                 : "memory");
}
DEVICE void load_matrices_transposed(u32 (&y)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(y[0]), "=r"(y[1]), "=r"(y[2]), "=r"(y[3])
                 : "r"(shared_address(row))
                 : "memory");
}

// Starts a copy of 16 bytes to shared memory. If `valid` is false it writes zeros and does not read `from`.
DEVICE void copy_async(void* to, const void* from, bool valid) {
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(bytes)
                 : "memory");
}
// Closes a group of copies.
DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits for this thread's copies except those of the last N groups; other threads see them after a barrier.
template <int N> DEVICE void wait_copies() { asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory"); }
