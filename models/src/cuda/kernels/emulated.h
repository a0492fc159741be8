// The functions of device.cuh for a C++ compiler: a block's threads are fibers of one operating-system thread, which
// switch only at barriers and shuffles. A missing barrier changes the result when the order of threads is reversed.
// Asynchronous copies take effect only when they are waited for. Shared memory starts as NaN. A barrier that some
// threads do not reach is an error.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <type_traits>
#if !defined(__x86_64__)
#include <ucontext.h>
#endif

#define DEVICE inline
#define SHARED static
#define DYNAMIC_SHARED(name) unsigned char* name = emulated::shared
#define EXPORTED extern "C" __attribute__((visibility("default")))
#define ENTRY(threads, name, PARAMS)                                                                                \
    static void name##_body(const PARAMS p);                                                                        \
    EXPORTED void name(const void* params) { name##_body(*static_cast<const PARAMS*>(params)); }                  \
    static void name##_body(const PARAMS p)
#define DENSE_ENTRY(threads, blocks, name, PARAMS) ENTRY(threads, name, PARAMS)
#define EARLY_ENTRY ENTRY
#define OFFSET_OF(type, member) __builtin_offsetof(type, member)

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 { u16 bits; };
struct f16 { u16 bits; };
struct alignas(16) Vec16 { u32 word[4]; };

namespace emulated {
enum State { READY, AT_BLOCK_BARRIER, AT_WARP_BARRIER, DONE };
constexpr int MOST_THREADS = 1024, WARP = 32, MOST_COPIES = 256;
constexpr size_t STACK = 128 << 10, MOST_SHARED = 227 << 10;

struct Copy { void* to; const void* from; bool valid; int group; };

struct Fiber {
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t context;
#endif
    State state;
    int thread;
    // Number of warp exchanges of this lane, modulo 2; all lanes of a warp take part in the same exchange.
    int parity;
    int copies, groups;
    Copy copy[MOST_COPIES];
};

// Values that the lanes of a warp exchange. Two alternating copies make one barrier per exchange sufficient.
struct Exchange {
    u64 word[WARP];
    float a[WARP][8], b[WARP][4];
    const void* row[WARP];
};

alignas(16) static unsigned char shared[MOST_SHARED];
static Fiber fibers[MOST_THREADS];
static Exchange exchanges[MOST_THREADS / WARP][2];
static unsigned char* stacks;
static Fiber* self;
static int block[3], grid[3], threads;
static void (*kernel)(const void*);
static const void* params;
static const char* failure;

static void run_kernel() { kernel(params); self->state = DONE; }

#if defined(__x86_64__)
static void* scheduler;
extern "C" __attribute__((visibility("hidden"))) void emulator_switch(void** save, void* load);
asm(R"(
    .text
    .globl emulator_switch
    .hidden emulator_switch
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");
static void leave() { emulator_switch(&self->stack_pointer, scheduler); }
static void enter(Fiber& fiber) { self = &fiber; emulator_switch(&scheduler, fiber.stack_pointer); }
static void body() { run_kernel(); leave(); abort(); }
static void prepare(Fiber& fiber, unsigned char* stack) {
    // Six saved registers and the address to return to; at a function's entry the stack pointer is 8 bytes off a
    // multiple of 16.
    void** top = reinterpret_cast<void**>(stack + STACK) - 1;
    top[0] = nullptr;
    *--top = reinterpret_cast<void*>(&body);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
}
#else
static ucontext_t scheduler;
static void leave() { swapcontext(&self->context, &scheduler); }
static void enter(Fiber& fiber) { self = &fiber; swapcontext(&scheduler, &fiber.context); }
static void body() { run_kernel(); leave(); abort(); }
static void prepare(Fiber& fiber, unsigned char* stack) {
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = stack;
    fiber.context.uc_stack.ss_size = STACK;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, body, 0);
}
#endif

static void wait(State state) { self->state = state; leave(); }

// Runs the lanes of a warp until each one waits at a block barrier or is done.
static void run_warp(int warp, bool reversed) {
    Fiber* lanes = fibers + warp * WARP;
    while (!failure) {
        int at_warp = 0, at_block = 0, done = 0;
        for (int i = 0; i < WARP; ++i) {
            Fiber& fiber = lanes[reversed ? WARP - 1 - i : i];
            if (fiber.state == READY) enter(fiber);
            at_warp += fiber.state == AT_WARP_BARRIER;
            at_block += fiber.state == AT_BLOCK_BARRIER;
            done += fiber.state == DONE;
        }
        if (at_block + done == WARP) return;
        if (at_warp != WARP) { failure = "some lanes of a warp are at an exchange and some are not"; return; }
        for (int i = 0; i < WARP; ++i) lanes[i].state = READY;
    }
}

static void run_block(bool reversed) {
    memset(shared, 0xff, sizeof shared);
    for (int i = 0; i < threads; ++i) {
        Fiber& fiber = fibers[i];
        fiber.state = READY;
        fiber.thread = i;
        fiber.parity = fiber.copies = fiber.groups = 0;
        prepare(fiber, stacks + i * STACK);
    }
    int warps = threads / WARP;
    while (!failure) {
        for (int i = 0; i < warps && !failure; ++i) run_warp(reversed ? warps - 1 - i : i, reversed);
        int done = 0;
        for (int i = 0; i < threads; ++i) done += fibers[i].state == DONE;
        if (done == threads || failure) return;
        if (done) { failure = "some threads of a block are at a barrier and some have ended"; return; }
        for (int i = 0; i < threads; ++i) fibers[i].state = READY;
    }
}

static Exchange& exchange() {
    int parity = self->parity;
    self->parity ^= 1;
    return exchanges[self->thread / WARP][parity];
}

static void finish_copies(int keep) {
    int left = 0;
    for (int i = 0; i < self->copies; ++i) {
        Copy& copy = self->copy[i];
        if (copy.group < self->groups - keep) {
            if (copy.valid) memcpy(copy.to, copy.from, 16); else memset(copy.to, 0, 16);
        } else {
            self->copy[left++] = copy;
        }
    }
    self->copies = left;
}
}  // namespace emulated

// Runs a grid; returns null, or an error message.
EXPORTED const char* emulator_launch(
    void (*kernel)(const void*), const void* params, const unsigned* grid, unsigned threads, unsigned shared, int reversed
) {
    using namespace emulated;
    if (threads == 0 || threads > MOST_THREADS || threads % WARP) return "a block is 32 to 1024 threads, whole warps";
    if (shared > MOST_SHARED) return "more shared memory than a multiprocessor has";
    if (!stacks) {
        void* memory = mmap(nullptr, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (memory == MAP_FAILED) return "no memory for stacks";
        stacks = static_cast<unsigned char*>(memory);
    }
    emulated::kernel = kernel;
    emulated::params = params;
    emulated::threads = threads;
    failure = nullptr;
    for (int i = 0; i < 3; ++i) emulated::grid[i] = grid[i];
    u64 blocks = u64(grid[0]) * grid[1] * grid[2];
    for (u64 i = 0; i < blocks && !failure; ++i) {
        u64 at = reversed ? blocks - 1 - i : i;
        block[0] = at % grid[0];
        block[1] = at / grid[0] % grid[1];
        block[2] = at / grid[0] / grid[1];
        run_block(reversed);
    }
    return failure;
}

DEVICE int thread_index() { return emulated::self->thread; }
DEVICE int thread_count() { return emulated::threads; }
DEVICE int block_x() { return emulated::block[0]; }
DEVICE int block_y() { return emulated::block[1]; }
DEVICE int block_z() { return emulated::block[2]; }
DEVICE int blocks_x() { return emulated::grid[0]; }

DEVICE void block_barrier() { emulated::wait(emulated::AT_BLOCK_BARRIER); }
DEVICE void warp_barrier() { emulated::wait(emulated::AT_WARP_BARRIER); }

template <class T> DEVICE T shuffle_bits(T x, int mask) {
    auto& exchange = emulated::exchange();
    int lane = emulated::self->thread % 32;
    memcpy(&exchange.word[lane], &x, sizeof x);
    warp_barrier();
    memcpy(&x, &exchange.word[lane ^ mask], sizeof x);
    return x;
}
DEVICE float shuffle_xor(float x, int mask) { return shuffle_bits(x, mask); }
DEVICE int shuffle_xor(int x, int mask) { return shuffle_bits(x, mask); }
DEVICE u32 ballot(bool x) {
    auto& exchange = emulated::exchange();
    exchange.word[emulated::self->thread % 32] = x;
    warp_barrier();
    u32 y = 0;
    for (int i = 0; i < 32; ++i) y |= u32(exchange.word[i] & 1) << i;
    return y;
}
DEVICE int ones(u32 x) { return __builtin_popcount(x); }

DEVICE float bits_to_float(u32 bits) { float x; memcpy(&x, &bits, 4); return x; }
DEVICE u32 float_to_bits(float x) { u32 bits; memcpy(&bits, &x, 4); return bits; }

DEVICE float widen(float x) { return x; }
DEVICE float widen(bf16 x) { return bits_to_float(u32(x.bits) << 16); }
DEVICE float widen(f16 x) {
    u32 sign = u32(x.bits & 0x8000) << 16, exponent = x.bits >> 10 & 31, fraction = x.bits & 0x3ff;
    if (exponent == 31) return bits_to_float(sign | 0x7f800000 | fraction << 13);
    if (exponent == 0) return std::copysign(std::ldexp(float(fraction), -24), bits_to_float(sign | 0x3f800000));
    return bits_to_float(sign | (exponent + 112) << 23 | fraction << 13);
}

DEVICE void check_alignment(const void* place) {
    if (uintptr_t(place) % 16) emulated::failure = "16 bytes at an address that is not aligned to them";
}
DEVICE Vec16 load16(const void* from) {
    check_alignment(from);
    Vec16 x;
    memcpy(x.word, from, 16);
    return x;
}
DEVICE void store16(void* to, const Vec16& x) {
    check_alignment(to);
    memcpy(to, x.word, 16);
}
DEVICE void wait_for_previous() {}
DEVICE float exp2_of(float x) { return exp2f(x); }
DEVICE Vec16 load16_once(const void* from) { return load16(from); }

template <class T> T narrow(float x);
template <> float narrow<float>(float x) { return x; }
template <> bf16 narrow<bf16>(float x) {
    u32 bits = float_to_bits(x);
    if (x != x) return {0x7fff};
    return {u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}
template <> f16 narrow<f16>(float x) {
    u16 sign = float_to_bits(x) >> 16 & 0x8000;
    float a = std::fabs(x);
    if (x != x) return {0x7fff};
    if (a >= 65520.0f) return {u16(sign | 0x7c00)};
    // `exponent` gives the unit in the last place of the result; nearbyint rounds to even.
    int exponent = a < 6.103515625e-5f ? -14 : std::ilogb(a);
    float units = std::nearbyint(std::ldexp(a, 10 - exponent));
    // 1024 units at the lowest exponent are the first normal number; a carry moves to the next exponent.
    return {u16(sign | u16((exponent + 14) * 1024 + int(units)))};
}

template <class T> u32 pack(float low, float high) {
    return narrow<T>(low).bits | u32(narrow<T>(high).bits) << 16;
}

template <class T> void mma(float (&c)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    auto& exchange = emulated::exchange();
    int lane = emulated::self->thread % 32;
    for (int i = 0; i < 4; ++i) {
        exchange.a[lane][2 * i] = widen(T{u16(a[i])});
        exchange.a[lane][2 * i + 1] = widen(T{u16(a[i] >> 16)});
    }
    exchange.b[lane][0] = widen(T{u16(b0)});
    exchange.b[lane][1] = widen(T{u16(b0 >> 16)});
    exchange.b[lane][2] = widen(T{u16(b1)});
    exchange.b[lane][3] = widen(T{u16(b1 >> 16)});
    warp_barrier();
    for (int i = 0; i < 4; ++i) {
        int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
        for (int k = 0; k < 16; ++k) {
            float x = exchange.a[row % 8 * 4 + k % 8 / 2][k % 2 + row / 8 * 2 + k / 8 * 4];
            c[i] += x * exchange.b[column * 4 + k % 8 / 2][k % 2 + k / 8 * 2];
        }
    }
}

DEVICE void load_matrices_by(u32 (&y)[4], const void* row, bool transposed) {
    auto& exchange = emulated::exchange();
    int lane = emulated::self->thread % 32;
    exchange.row[lane] = row;
    warp_barrier();
    for (int i = 0; i < 4; ++i) {
        u32 pair[2];
        for (int j = 0; j < 2; ++j) {
            int r = lane / 4, c = lane % 4 * 2 + j;
            if (transposed) { int swap = r; r = c; c = swap; }
            pair[j] = static_cast<const u16*>(exchange.row[8 * i + r])[c];
        }
        y[i] = pair[0] | pair[1] << 16;
    }
    // The hardware reads for all lanes before any lane continues.
    warp_barrier();
}
DEVICE void load_matrices(u32 (&y)[4], const void* row) { load_matrices_by(y, row, false); }
DEVICE void load_matrices_transposed(u32 (&y)[4], const void* row) { load_matrices_by(y, row, true); }

DEVICE void copy_async(void* to, const void* from, bool valid) {
    emulated::Fiber& fiber = *emulated::self;
    check_alignment(to);
    if (valid) check_alignment(from);
    if (fiber.copies == emulated::MOST_COPIES) { emulated::failure = "too many copies under way"; return; }
    fiber.copy[fiber.copies++] = {to, from, valid, fiber.groups};
}
DEVICE void commit_copies() { emulated::self->groups++; }
template <int N> DEVICE void wait_copies() { emulated::finish_copies(N); }
