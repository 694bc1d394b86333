// What a level is: 16 floats at a time, the dots, and the roundings. Everything else is written once over
// these.
//
// Vec is GCC's vector type, which clang has too: + - * / and comparisons are the compiler's; on the avx2 level
// (avx2.h) two of them. A level adds only what no compiler finds by itself: dots, rounding to bfloat16, and
// (amx.h) tiles. The scalar level is the same source without any of it: it runs everywhere, is slow, and is
// what the other levels are tested against.
#pragma once
#include "avx2.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(TRANSOM_AVX512)
#include <immintrin.h>
#endif

namespace transom {

constexpr int LANES = 16;
typedef uint16_t bf16;

#if !defined(TRANSOM_AVX2)
typedef float Vec __attribute__((vector_size(64)));
typedef int32_t IntVec __attribute__((vector_size(64)));
typedef uint32_t WordVec __attribute__((vector_size(64)));
typedef uint16_t HalfVec __attribute__((vector_size(32)));

static inline Vec load(const float* p) {
    Vec v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
static inline void store(float* p, Vec v) { std::memcpy(p, &v, sizeof v); }
static inline Vec broadcast(float x) { return Vec{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
static inline Vec select(IntVec which, Vec a, Vec b) { return which ? a : b; }
static inline Vec floats(IntVec v) { return __builtin_convertvector(v, Vec); }
static inline Vec add_product(Vec sum, Vec x, Vec weights) { return sum + x * weights; }
#endif
static inline Vec larger(Vec a, Vec b) { return select(a > b, a, b); }
static inline Vec smaller(Vec a, Vec b) { return select(a < b, a, b); }

// The lanes below n of p, zeros behind: nothing behind them is read.
static inline Vec load_part(const float* p, int n) {
    Vec v = {};
    std::memcpy(&v, p, size_t(n) * sizeof(float));
    return v;
}

// Halves onto halves, always in one order, so that a sum depends on its terms alone.
template <class Join> static inline float fold(Vec v, const Join& join) {
    typedef float Half __attribute__((vector_size(32)));
    typedef float Quarter __attribute__((vector_size(16)));
    Half halves[2];
    std::memcpy(halves, &v, sizeof v);
    const Half half = join(halves[0], halves[1]);
    Quarter quarters[2];
    std::memcpy(quarters, &half, sizeof half);
    const Quarter four = join(quarters[0], quarters[1]);
    return join(join(four[0], four[2]), join(four[1], four[3]));
}
static inline float sum(Vec v) {
    return fold(v, [](auto a, auto b) { return a + b; });
}
static inline float largest(Vec v) {
    return fold(v, [](auto a, auto b) { return a > b ? a : b; });
}

static inline float widen(bf16 x) {
    uint32_t bits = uint32_t(x) << 16;
    float out;
    std::memcpy(&out, &bits, sizeof out);
    return out;
}

static inline Vec widen(const bf16* p) {
#if defined(TRANSOM_AVX2)
    return avx2::widen(p);
#else
    HalfVec half;
    std::memcpy(&half, p, sizeof half);
    WordVec bits = __builtin_convertvector(half, WordVec) << 16;
    return (Vec)bits;
#endif
}

// To nearest, ties to even; what is no number stays none.
static inline bf16 narrow(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return bf16(bits >> 16 | 0x40);
    return bf16((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static inline void store(bf16* p, Vec v) {
#if defined(TRANSOM_AVX512)
    __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    std::memcpy(p, &half, sizeof half);
#elif defined(TRANSOM_AVX2)
    avx2::store_narrow(p, v);
#else
    for (int i = 0; i < LANES; i++) p[i] = narrow(v[i]);
#endif
}

// 2^x to about one unit in the last place; 0 below 2^-126, where a softmax no longer sees it.
static inline Vec exp2(Vec x) {
    const Vec low = broadcast(-126.0f), magic = broadcast(12582912.0f); // 1.5 * 2^23: rounds to an integer
    Vec bounded = smaller(larger(x, low), broadcast(127.0f));
    Vec shifted = bounded + magic;
    Vec rest = bounded - (shifted - magic); // -0.5 .. 0.5, where a Taylor series of ln 2 is short
    Vec p = broadcast(1.54035304e-4f);
    p = p * rest + 1.33335581e-3f;
    p = p * rest + 9.61812911e-3f;
    p = p * rest + 5.55041087e-2f;
    p = p * rest + 0.240226507f;
    p = p * rest + 0.693147181f;
    p = p * rest + 1.0f;
    IntVec scaled = (IntVec)p + ((IntVec)shifted << 23);
    // What is no number stays none: it must show in the logits.
    return select(x < low, Vec{}, select(x == x, (Vec)scaled, x));
}

static inline Vec exp(Vec x) { return exp2(x * 1.44269504f); }

// A number format of weights, activations and pages. A group is what 32 bits hold: the unit that an
// activation is broadcast by, and that a lane of a panel's vector multiplies with it. It takes so many `dots`, of
// each a `part` of the weights, which all rows share. `dot` is written by hand where the level has an instruction
// for it: with the intrinsic gcc 12 copies accumulators about and spills them.
struct F32 {
    typedef float number;
    static constexpr int group = 1, dots = 1;
    static inline Vec part(Vec weights, int) { return weights; }
    static inline Vec dot(Vec sum, const number* x, Vec weights) {
#if defined(TRANSOM_AVX512)
        asm("vfmadd231ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(weights), "m"(*x));
        return sum;
#else
        return add_product(sum, broadcast(*x), weights);
#endif
    }
    static inline float from(float x) { return x; }
    static inline float to(number x) { return x; }
    static inline Vec to(const number* x) { return load(x); }
};

// Rows of float32 times weights of bfloat16, which become float32 in registers: the bits that both in float32
// give, and half the bytes to read.
struct Widened {
    typedef float number;
    static constexpr int group = 2, dots = 2;
    static inline Vec part(Vec weights, int i) {
        const WordVec both = (WordVec)weights;
        return i ? (Vec)(both & 0xffff0000u) : (Vec)(both << 16);
    }
    static inline Vec dot(Vec sum, const number* x, Vec weights) { return F32::dot(sum, x, weights); }
};

struct Bf16 {
    typedef bf16 number;
    static constexpr int group = 2;
#if defined(TRANSOM_AVX512)
    struct Pair {
        bf16 first, second;
    };
    static constexpr int dots = 1;
    static inline Vec part(Vec weights, int) { return weights; }
    static inline Vec dot(Vec sum, const number* x, Vec weights) {
        asm("vdpbf16ps %2%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(weights), "m"(*reinterpret_cast<const Pair*>(x)));
        return sum;
    }
#else
    static constexpr int dots = 2;
    static inline Vec part(Vec weights, int i) { return Widened::part(weights, i); }
    static inline Vec dot(Vec sum, const number* x, Vec weights) {
        return add_product(sum, broadcast(widen(*x)), weights);
    }
#endif
    static inline bf16 from(float x) { return narrow(x); }
    static inline float to(number x) { return widen(x); }
    static inline Vec to(const number* x) { return widen(x); }
};

static inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

} // namespace transom
