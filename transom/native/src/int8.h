// Products of 8-bit weights: a scale for each output, and activations in 8 bits with a scale for each 32 of a
// row. Sums of 32 inputs are exact integers; they become float32 by their activations' scale, one after the
// other, and the whole by the output's. Every level gives the same bits.
//
// A vector of a panel holds 4 inputs of 16 outputs. Weights lie there as q + 128, without a sign, since that
// is what `vpdpbusd` multiplies with signed activations a; a sum begins at -128 times the sum of its a.
#pragma once
#include "amx.h"
#include "simd.h"
#if defined(TRANSOM_AVX2)
#include <immintrin.h>
#endif

namespace transom {

constexpr int BLOCK = 32;       // inputs of a row that share a scale
constexpr int OFFSET = 128;     // what is added to a weight
constexpr float LARGEST = 127;  // of a weight and an activation, by their scales
constexpr float SMALL = 1e-30f; // a block whose numbers are all smaller is 0: 127 over it would be no number

// What a row of encoded activations holds, K padded: numbers (K,), then of each block its scale and -128 times
// its sum.
struct Coded {
    char* row;
    int64_t width; // K, padded to whole blocks

    int8_t* numbers() const { return reinterpret_cast<int8_t*>(row); }
    float* scales() const { return reinterpret_cast<float*>(row + width); }
    int32_t* begins() const { return reinterpret_cast<int32_t*>(row + width) + width / BLOCK; }
    static int64_t bytes(int64_t width) { return round_up(width + width / BLOCK * 8, 64); }
};

// To the nearest integer, ties to even, of -127 .. 127; what was stored.
static inline IntVec store_rounded(int8_t* to, Vec v) {
    IntVec whole;
#if defined(TRANSOM_AVX512)
    // Those with a mask: gcc 12 warns of what its own others leave undefined.
    whole = (IntVec)_mm512_maskz_cvtps_epi32(0xffff, (__m512)v);
    const __m128i bytes = _mm512_maskz_cvtepi32_epi8(0xffff, (__m512i)whole);
    std::memcpy(to, &bytes, sizeof bytes);
#elif defined(TRANSOM_AVX2)
    __m256 halves[2];
    std::memcpy(halves, &v, sizeof v);
    const __m256i both[2] = {_mm256_cvtps_epi32(halves[0]), _mm256_cvtps_epi32(halves[1])};
    std::memcpy(&whole, both, sizeof whole);
    // Quarters of 4, in turns of the two halves: put in order before the last step.
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packs_epi32(both[0], both[1]), 0xd8);
    const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
    std::memcpy(to, &bytes, sizeof bytes);
#else
    for (int i = 0; i < LANES; i++) whole[i] = int32_t(std::nearbyint(v[i])), to[i] = int8_t(whole[i]);
#endif
    return whole;
}

// One block of activations x (32,). Where one of them is no number, or endless, neither is the scale.
static inline void encode_block(const Coded& to, int64_t block, Vec left, Vec right) {
    const Vec size = larger(larger(left, -left), larger(right, -right));
    const float most = largest(size), none = sum(left * 0.0f + right * 0.0f);
    const float factor = most > SMALL ? LARGEST / most : 0.0f;
    int8_t* numbers = to.numbers() + block * BLOCK;
    IntVec whole = {};
    if (none == none)
        whole = store_rounded(numbers, left * factor) + store_rounded(numbers + LANES, right * factor);
    else
        std::memset(numbers, 0, BLOCK);
    to.scales()[block] = factor > 0 ? most / LARGEST + none : none;
    to.begins()[block] = -OFFSET * int32_t(sum(floats(whole))); // exact: they are small
}

#if defined(TRANSOM_AVX2)
// sum (8,) + 4 activations x times 4 weights of each of 8 outputs; exact. `vpmaddubsw` multiplies what has no
// sign with what has one and holds a sum of two products in 16 bits, so of 127 * 127 at most: the weights are
// their sizes, and x has their signs.
static inline void dot_bytes(__m256i& sum, __m256i x, __m256i weights, __m256i sizes, __m256i ones) {
    __m256i products;
    asm("vpsignb %3, %2, %1\n\tvpmaddubsw %1, %4, %1\n\tvpmaddwd %5, %1, %1\n\tvpaddd %1, %0, %0"
        : "+x"(sum), "=&x"(products)
        : "x"(x), "x"(weights), "x"(sizes), "x"(ones));
}

// c (R, 16) = R encoded rows times a panel, whose outputs have these scales.
template <int R> static inline void panel_coded(const char* rows, int64_t row_bytes, int64_t width,
                                                const char* panel, const float* scales, float* c, int ldc) {
    const __m256i ones = _mm256_set1_epi16(1), offset = _mm256_set1_epi8(char(OFFSET));
    Coded row[R];
    __m256 left[R], right[R];
    // All loops over rows unrolled, as in `few_rows`.
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        row[r] = {const_cast<char*>(rows) + r * row_bytes, width};
        left[r] = right[r] = _mm256_setzero_ps();
    }
    for (int64_t block = 0; block < width / BLOCK; block++) {
        __m256i low[R], high[R];
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) low[r] = high[r] = _mm256_setzero_si256();
#pragma GCC unroll 8
        for (int g = 0; g < BLOCK / 4; g++) {
            const int64_t at = block * (BLOCK / 4) + g;
            const auto* from = reinterpret_cast<const __m256i*>(panel + at * 64);
            const __m256i w = _mm256_xor_si256(_mm256_load_si256(from), offset);
            const __m256i v = _mm256_xor_si256(_mm256_load_si256(from + 1), offset);
            const __m256i w_size = _mm256_abs_epi8(w), v_size = _mm256_abs_epi8(v);
#pragma GCC unroll 6
            for (int r = 0; r < R; r++) {
                int32_t four;
                std::memcpy(&four, row[r].numbers() + at * 4, sizeof four);
                const __m256i x = _mm256_set1_epi32(four);
                dot_bytes(low[r], x, w, w_size, ones);
                dot_bytes(high[r], x, v, v_size, ones);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const __m256 scale = _mm256_set1_ps(row[r].scales()[block]);
            left[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(low[r]), scale, left[r]);
            right[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(high[r]), scale, right[r]);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        _mm256_storeu_ps(c + r * ldc, _mm256_mul_ps(left[r], _mm256_loadu_ps(scales)));
        _mm256_storeu_ps(c + r * ldc + 8, _mm256_mul_ps(right[r], _mm256_loadu_ps(scales + 8)));
    }
}

// c (R, 32) = R encoded rows times two panels, one after the other: 16 registers hold the sums of one.
template <int R> static inline void few_coded(const char* rows, int64_t row_bytes, int64_t width,
                                              const char* one, const char* other, const float* scales,
                                              float* c, int ldc) {
    panel_coded<R>(rows, row_bytes, width, one, scales, c, ldc);
    panel_coded<R>(rows, row_bytes, width, other, scales + LANES, c + LANES, ldc);
}
#else
// sum (16,) + 4 signed activations times 4 unsigned weights of each of 16 outputs; exact.
#if defined(TRANSOM_AVX512)
static inline IntVec dot_bytes(IntVec sum, const int8_t* x, IntVec weights) {
    asm("vpdpbusd %2%{1to16%}, %1, %0"
        : "+v"(sum)
        : "v"(weights), "m"(*reinterpret_cast<const int32_t*>(x)));
    return sum;
}
#else
__attribute__((noinline)) static IntVec dot_bytes(IntVec sum, const int8_t* x, IntVec weights) {
    uint8_t bytes[4 * LANES];
    std::memcpy(bytes, &weights, sizeof bytes);
    for (int i = 0; i < 4 * LANES; i++) sum[i / 4] += int32_t(bytes[i]) * x[i % 4];
    return sum;
}
#endif

// sum + a * x, rounded once: on every level, whatever the compiler makes of it elsewhere.
static inline Vec add_scaled(Vec sum, IntVec a, float x) {
    const Vec v = floats(a);
#if defined(TRANSOM_AVX512)
    return (Vec)_mm512_fmadd_ps((__m512)v, _mm512_set1_ps(x), (__m512)sum);
#else
    for (int i = 0; i < LANES; i++) sum[i] = std::fma(v[i], x, sum[i]);
    return sum;
#endif
}

static inline IntVec load_ints(const char* from) {
    IntVec v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

// c (R, 32) = R encoded rows times two panels, whose outputs have these scales.
template <int R> static inline void few_coded(const char* rows, int64_t row_bytes, int64_t width,
                                              const char* one, const char* other, const float* scales,
                                              float* c, int ldc) {
    Coded row[R];
    Vec left[R], right[R];
    // All loops over rows unrolled, as in `few_rows`.
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        row[r] = {const_cast<char*>(rows) + r * row_bytes, width};
        left[r] = right[r] = Vec{};
    }
    for (int64_t block = 0; block < width / BLOCK; block++) {
        IntVec low[R], high[R];
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) low[r] = high[r] = IntVec{} + row[r].begins()[block];
#pragma GCC unroll 8
        for (int g = 0; g < BLOCK / 4; g++) {
            const int64_t at = block * (BLOCK / 4) + g;
            const IntVec w = load_ints(one + at * 64), v = load_ints(other + at * 64);
#pragma GCC unroll 6
            for (int r = 0; r < R; r++) {
                const int8_t* x = row[r].numbers() + at * 4;
                low[r] = dot_bytes(low[r], x, w);
                high[r] = dot_bytes(high[r], x, v);
            }
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; r++) {
            const float scale = row[r].scales()[block];
            left[r] = add_scaled(left[r], low[r], scale);
            right[r] = add_scaled(right[r], high[r], scale);
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < R; r++) {
        store(c + r * ldc, left[r] * load(scales));
        store(c + r * ldc + LANES, right[r] * load(scales + LANES));
    }
}
#endif

template <int R>
static inline void last_coded(const char* rows, int64_t row_bytes, int64_t width, int n, const char* one,
                              const char* other, const float* scales, float* c, int ldc) {
    if (n == R)
        few_coded<R>(rows, row_bytes, width, one, other, scales, c, ldc);
    else if constexpr (R > 1)
        last_coded<R - 1>(rows, row_bytes, width, n, one, other, scales, c, ldc);
}

#if defined(TRANSOM_AMX)
constexpr int TILE_ROWS = 8; // from so many rows on tiles multiply them; the bits are the same

// As `two_coded`, of at most 32 rows: integers by tiles, the rest as it is there.
static inline void tiles_coded(const char* rows, int64_t row_bytes, int64_t width, int n, const char* one,
                               const char* other, const float* scales, float* c, int ldc) {
    alignas(64) int32_t sums[2 * amx::ROWS * 2 * LANES];
    amx::configure(BLOCK / 2);
    for (int64_t block = 0; block < width / BLOCK; block++) {
        const int64_t at = block * (BLOCK / 4) * 64;
        amx::two_coded(reinterpret_cast<const int8_t*>(rows) + block * BLOCK, size_t(row_bytes), n > amx::ROWS,
                       one + at, other + at, sums);
        for (int r = 0; r < n; r++) {
            const Coded row{const_cast<char*>(rows) + r * row_bytes, width};
            const IntVec begin = IntVec{} + row.begins()[block];
            for (int i = 0; i < 2 * LANES; i += LANES) {
                const IntVec whole = load_ints(reinterpret_cast<const char*>(sums + r * 2 * LANES + i)) + begin;
                const Vec before = block ? load(c + r * ldc + i) : Vec{};
                store(c + r * ldc + i, add_scaled(before, whole, row.scales()[block]));
            }
        }
    }
    for (int r = 0; r < n; r++)
        for (int i = 0; i < 2 * LANES; i += LANES)
            store(c + r * ldc + i, load(c + r * ldc + i) * load(scales + i));
    amx::configure(amx::DEPTH);
}
#endif

// c (n, 32) = n encoded rows, K wide, times two panels.
static inline void two_coded(const char* rows, int64_t row_bytes, int64_t width, int n, const char* one,
                             const char* other, const float* scales, float* c, int ldc) {
#if defined(TRANSOM_AMX)
    if (n >= TILE_ROWS) return tiles_coded(rows, row_bytes, width, n, one, other, scales, c, ldc);
#endif
    int r = 0;
    for (; n - r >= 6; r += 6)
        few_coded<6>(rows + r * row_bytes, row_bytes, width, one, other, scales, c + r * ldc, ldc);
    last_coded<5>(rows + r * row_bytes, row_bytes, width, n - r, one, other, scales, c + r * ldc, ldc);
}

// A row-major (n, k) matrix in panels: each output's largest number is 127 of its scale.
static inline void pack_coded(int64_t n, int64_t k, const float* numbers, int64_t groups, char* panels,
                              float* scales) {
    for (int64_t row = 0; row < n; row++, numbers += k) {
        float most = 0, none = 0;
        for (int64_t i = 0; i < k; i++) {
            const float size = std::fabs(numbers[i]);
            most = size > most ? size : most, none += numbers[i] * 0.0f;
        }
        const float factor = most > SMALL ? LARGEST / most : 0.0f;
        scales[row] = factor > 0 ? most / LARGEST + none : none;
        for (int64_t i = 0; i < k && none == none; i++)
            panels[((row / LANES * groups + i / 4) * LANES + row % LANES) * 4 + i % 4] =
                char(uint8_t(OFFSET + int(std::nearbyint(numbers[i] * factor))));
    }
}

} // namespace transom
