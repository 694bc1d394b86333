// Tiles (AMX): 16 rows of 64 bytes, and the product of two of them in one instruction. Level amx alone.
//
// A panel is what a B tile wants: 16 of its vectors, 1,024 bytes that lie together, are 32 inputs of 16
// outputs. Activations lie row after row, as an A tile wants them. A row of a tile is summed by itself and in
// the order of the inputs, however many rows stand beside it: one row of decoding has the bits it has in a
// prompt.
#pragma once
#if defined(TRANSOM_AMX)
#include "simd.h"

namespace transom::amx {

constexpr int ROWS = 16;
constexpr int DEPTH = 32; // inputs of bfloat16 in a tile

struct alignas(64) Shape {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
};

#if defined(TRANSOM_TILES)
#include TRANSOM_TILES // the same functions over memory, for tests on a CPU without tiles
#else
// Instructions by hand: gcc's own do not say that they read and write memory, so that it may move a store
// past them.
template <int tile> static inline void zero() { asm volatile("tilezero %%tmm%c0" ::"i"(tile)); }

template <int tile> static inline void load(const void* from, size_t stride) {
    asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(from), "r"(stride), "i"(tile) : "memory");
}

template <int tile> static inline void store(void* to, size_t stride) {
    asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(to), "r"(stride), "i"(tile) : "memory");
}

template <int sums, int rows, int panel> static inline void dot() {
    asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(rows), "i"(panel));
}

template <int sums, int rows, int panel> static inline void dot_bytes() { // signed rows, unsigned panel
    asm volatile("tdpbsud %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(sums), "i"(rows), "i"(panel));
}

static inline void shape_tiles(const Shape& shape) { asm volatile("ldtilecfg %0" ::"m"(shape)); }

static inline void release() { asm volatile("tilerelease"); }
#endif

// Tiles 0 to 3 hold sums, 4 and 5 activations, 6 and 7 panels, `depth` inputs deep.
static inline void configure(int depth) {
    Shape shape;
    for (int tile = 0; tile < 8; tile++) shape.rows[tile] = ROWS, shape.row_bytes[tile] = 64;
    for (int tile = 4; tile < 6; tile++) shape.row_bytes[tile] = uint16_t(2 * depth);
    for (int tile = 6; tile < 8; tile++) shape.rows[tile] = uint8_t(depth / 2);
    shape_tiles(shape);
}

// c (32 or 16 rows, 32 columns) = a (rows, 2 * groups) times two panels. Reads whole tiles of rows.
static inline void two_panels(const bf16* a, size_t lda, int rows, const char* one, const char* other,
                              int groups, float* c, int ldc) {
    const size_t stride = lda * sizeof(bf16), row = size_t(ldc) * sizeof(float);
    const int steps = groups / ROWS;
    const bf16* below = a + ROWS * lda;
    const bool both = rows > ROWS;
    zero<0>(), zero<1>(), zero<2>(), zero<3>();
    for (int i = 0; i < steps; i++) {
        load<4>(a + i * DEPTH, stride);
        load<6>(one + i * 1024, 64);
        dot<0, 4, 6>();
        load<7>(other + i * 1024, 64);
        dot<1, 4, 7>();
        if (!both) continue;
        load<5>(below + i * DEPTH, stride);
        dot<2, 5, 6>();
        dot<3, 5, 7>();
    }
    store<0>(c, row), store<1>(c + LANES, row);
    if (both) store<2>(c + ROWS * ldc, row), store<3>(c + ROWS * ldc + LANES, row);
}

// sums (32 or 16 rows, 32 columns) of integers = 32 inputs of rows times 8 vectors of two panels. Configured for
// a depth of 16, which are as many bytes. Reads whole tiles of rows.
static inline void two_coded(const int8_t* a, size_t row_bytes, bool both, const char* one, const char* other,
                             int32_t* sums) {
    zero<0>(), zero<1>(), zero<2>(), zero<3>();
    load<4>(a, row_bytes);
    load<6>(one, 64);
    dot_bytes<0, 4, 6>();
    load<7>(other, 64);
    dot_bytes<1, 4, 7>();
    if (both) {
        load<5>(a + ROWS * row_bytes, row_bytes);
        dot_bytes<2, 5, 6>();
        dot_bytes<3, 5, 7>();
    }
    constexpr size_t row = 2 * LANES * sizeof(int32_t);
    store<0>(sums, row), store<1>(sums + LANES, row);
    if (both) store<2>(sums + ROWS * 2 * LANES, row), store<3>(sums + ROWS * 2 * LANES + LANES, row);
}

// out (16 rows, 64 columns, or 32) += weights (16 rows, 16 a page) times the values of n pages, whose rows
// are `row_bytes` apart. Configured for a depth of 16.
static inline void mix(bool wide, const bf16* weights, size_t ldw, const char* const* pages, int n,
                       size_t row_bytes, float* out, int ldo) {
    const size_t stride = ldw * sizeof(bf16), row = size_t(ldo) * sizeof(float);
    load<0>(out, row), load<1>(out + LANES, row);
    if (wide) load<2>(out + 2 * LANES, row), load<3>(out + 3 * LANES, row);
    for (int i = 0; i < n; i++) {
        load<4>(weights + i * 16, stride);
        load<6>(pages[i], row_bytes);
        dot<0, 4, 6>();
        load<7>(pages[i] + 64, row_bytes);
        dot<1, 4, 7>();
        if (!wide) continue;
        load<6>(pages[i] + 128, row_bytes);
        dot<2, 4, 6>();
        load<7>(pages[i] + 192, row_bytes);
        dot<3, 4, 7>();
    }
    store<0>(out, row), store<1>(out + LANES, row);
    if (wide) store<2>(out + 2 * LANES, row), store<3>(out + 3 * LANES, row);
}

} // namespace transom::amx
#endif
