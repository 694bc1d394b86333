// A vector of 16 numbers as two registers of 8: GCC has no register for one of 64 bytes here and keeps it in
// memory. Level avx2 alone.
#pragma once
#if defined(TRANSOM_AVX2)
#include <cstdint>
#include <cstring>
#include <immintrin.h>

namespace transom {

// Behaves as GCC's own vectors do: operators are of each number, comparisons give masks of integers, and a cast
// takes the bits as they are.
template <class N> struct Two {
    typedef N Half __attribute__((vector_size(32)));
    Half low, high;

    Two() = default;
    Two(Half low, Half high) : low(low), high(high) {}
    Two(N x) : low{x, x, x, x, x, x, x, x}, high(low) {}
    template <class M> explicit operator Two<M>() const {
        return {(typename Two<M>::Half)low, (typename Two<M>::Half)high};
    }
    N& operator[](int i) { return reinterpret_cast<N*>(this)[i]; }
    N operator[](int i) const { return i < 8 ? low[i] : high[i - 8]; }

    Two operator-() const { return {-low, -high}; }
#define TRANSOM_EACH(result, op)                                                                                \
    friend inline result operator op(Two a, Two b) { return {a.low op b.low, a.high op b.high}; }
    TRANSOM_EACH(Two, +)
    TRANSOM_EACH(Two, -)
    TRANSOM_EACH(Two, *)
    TRANSOM_EACH(Two, /)
    TRANSOM_EACH(Two, &)
    TRANSOM_EACH(Two<int32_t>, <)
    TRANSOM_EACH(Two<int32_t>, >)
    TRANSOM_EACH(Two<int32_t>, >=)
    TRANSOM_EACH(Two<int32_t>, ==)
#undef TRANSOM_EACH
    friend inline Two operator<<(Two a, int n) { return {a.low << n, a.high << n}; }
    Two& operator+=(Two b) { return *this = *this + b; }
    Two& operator*=(Two b) { return *this = *this * b; }
    Two& operator/=(Two b) { return *this = *this / b; }
};

typedef Two<float> Vec;
typedef Two<int32_t> IntVec;
typedef Two<uint32_t> WordVec;

static inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void store(float* p, Vec v) { _mm256_storeu_ps(p, v.low), _mm256_storeu_ps(p + 8, v.high); }
static inline Vec broadcast(float x) { return x; }
static inline Vec select(IntVec which, Vec a, Vec b) {
    return {which.low ? a.low : b.low, which.high ? a.high : b.high};
}
static inline Vec floats(IntVec v) {
    return {_mm256_cvtepi32_ps((__m256i)v.low), _mm256_cvtepi32_ps((__m256i)v.high)};
}
static inline Vec add_product(Vec sum, Vec x, Vec weights) {
    return {_mm256_fmadd_ps(x.low, weights.low, sum.low), _mm256_fmadd_ps(x.high, weights.high, sum.high)};
}

namespace avx2 {

static inline Vec widen(const uint16_t* p) {
    const __m128i* from = reinterpret_cast<const __m128i*>(p);
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(from));
    const __m256i high = _mm256_cvtepu16_epi32(_mm_loadu_si128(from + 1));
    return {(__m256)_mm256_slli_epi32(low, 16), (__m256)_mm256_slli_epi32(high, 16)};
}

// As `narrow`, of 8 numbers, each in 32 bits.
static inline __m256i narrow(__m256 v) {
    const __m256i bits = (__m256i)v, odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i none = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256 is_none = _mm256_cmp_ps(v, v, _CMP_UNORD_Q);
    return _mm256_srli_epi32(_mm256_blendv_epi8(up, none, (__m256i)is_none), 16);
}

static inline void store_narrow(uint16_t* p, Vec v) {
    const __m256i halves = _mm256_packus_epi32(narrow(v.low), narrow(v.high)); // of both in turns
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(halves, 0xd8));
}

} // namespace avx2

} // namespace transom
#endif
