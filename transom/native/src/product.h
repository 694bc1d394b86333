// Products: rows of activations times a packed matrix, and what is fused behind them.
//
// A panel is 16 outputs. Its vectors of 64 bytes lie one behind the other, one for each group of inputs; lane
// j of a vector is the group's inputs of output j. So a product broadcasts 32 bits of a row and multiplies
// them with 16 outputs at a time, and no sum ever crosses lanes. Every output is summed over its inputs in
// one order, whatever the number of rows and threads: a row alone has the bits that it has beside others.
#pragma once
#include "amx.h"
#include "simd.h"
#include "transom.h"

#include <cstdlib>

// n outputs, k inputs, both rounded up with zeros; the panels of a matrix lie one behind the other.
struct TransomMatrix {
    int32_t format;
    int64_t n, k;     // as they were given
    int64_t n_panels; // an even number: products take two at a time
    int64_t groups;   // of a panel: a multiple of 16, which is the depth of a tile
    char* panels;

    int64_t panel_bytes() const { return groups * 64; }
    int64_t bytes() const { return n_panels * panel_bytes(); }
};

namespace transom {

constexpr int PAIR = 2 * LANES;    // columns that a product makes at a time
constexpr int BLOCK_ROWS = 32;     // rows that it makes at a time
constexpr int64_t SLACK_ROWS = 32; // rows behind a buffer that a tile may read: their sums go nowhere
constexpr int64_t DEPTH_UNIT = 32; // inputs are padded to a multiple of it

// c (R, 32) = R rows times two panels.
template <class F, int R> static inline void few_rows(const typename F::number* a, size_t lda,
                                                      const char* one, const char* other, int groups,
                                                      float* c, int ldc) {
    Vec left[R], right[R];
    for (int r = 0; r < R; r++) left[r] = right[r] = Vec{};
    for (int g = 0; g < groups; g++) {
        const Vec w = load(reinterpret_cast<const float*>(one + g * 64));
        const Vec v = load(reinterpret_cast<const float*>(other + g * 64));
#pragma GCC unroll 12
        for (int r = 0; r < R; r++) {
            const typename F::number* x = a + r * lda + g * F::group;
            left[r] = F::dot(left[r], x, w);
            right[r] = F::dot(right[r], x, v);
        }
    }
    for (int r = 0; r < R; r++) store(c + r * ldc, left[r]), store(c + r * ldc + LANES, right[r]);
}

// c (rows, 32) = rows of a times two panels; c and a have room for whole tiles of rows.
template <class F> static inline void two_panels(const typename F::number* a, size_t lda, int rows,
                                                 const char* one, const char* other, int groups, float* c,
                                                 int ldc) {
    int r = 0;
    for (; rows - r >= 12; r += 12) few_rows<F, 12>(a + r * lda, lda, one, other, groups, c + r * ldc, ldc);
    for (; rows - r >= 6; r += 6) few_rows<F, 6>(a + r * lda, lda, one, other, groups, c + r * ldc, ldc);
    for (; rows - r >= 3; r += 3) few_rows<F, 3>(a + r * lda, lda, one, other, groups, c + r * ldc, ldc);
    for (; r < rows; r++) few_rows<F, 1>(a + r * lda, lda, one, other, groups, c + r * ldc, ldc);
}

#if defined(TRANSOM_AMX)
template <> inline void two_panels<Bf16>(const bf16* a, size_t lda, int rows, const char* one,
                                         const char* other, int groups, float* c, int ldc) {
    amx::two_panels(a, lda, rows, one, other, groups, c, ldc);
}
#endif

// Error function by Abramowitz and Stegun 7.1.26: within 1.5e-7.
static inline Vec erf(Vec x) {
    Vec size = x < Vec{} ? -x : x;
    Vec t = 1.0f / (1.0f + 0.3275911f * size);
    Vec p = broadcast(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    Vec value = 1.0f - p * t * exp(-size * size);
    return x < Vec{} ? -value : value;
}

static inline Vec tanh(Vec x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

static inline Vec activate(int kind, Vec x) {
    switch (kind) {
    case TRANSOM_SILU: return x / (1.0f + exp(-x));
    case TRANSOM_GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678f));
    case TRANSOM_GELU_TANH: return 0.5f * x * (1.0f + tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case TRANSOM_RELU: return larger(x, Vec{});
    case TRANSOM_RELU2: return larger(x, Vec{}) * larger(x, Vec{});
    default: return x;
    }
}

// Rows of a buffer.
struct Rows {
    char* data;
    int64_t row_bytes;
    int32_t format;

    template <class T> T* at(int64_t row) const { return reinterpret_cast<T*>(data + row * row_bytes); }
};

template <class F> static inline void put(const Rows& out, int64_t row, int64_t column, Vec v) {
    store(out.at<typename F::number>(row) + column, v);
}

static inline void put_any(const Rows& out, int64_t row, int64_t column, Vec v) {
    out.format == TRANSOM_BF16 ? put<Bf16>(out, row, column, v) : put<F32>(out, row, column, v);
}

// What is done with the sums c (rows, 32) of columns `column` on, of rows `first` on.
static inline void finish(const TransomOp& op, const Rows& out, int64_t first, int rows, int64_t column,
                          const float* c) {
    const float* bias = op.bias ? op.bias + column : nullptr;
    for (int r = 0; r < rows; r++, c += PAIR) {
        Vec left = load(c), right = load(c + LANES);
        if (bias) left += load(bias), right += load(bias + LANES);
        if (op.store == TRANSOM_GATE) {
            put_any(out, first + r, column / 2, activate(op.activation, left) * right);
        } else if (op.store == TRANSOM_ADD) {
            float* x = out.at<float>(first + r) + column;
            store(x, load(x) + left);
            store(x + LANES, load(x + LANES) + right);
        } else {
            put_any(out, first + r, column, activate(op.activation, left));
            put_any(out, first + r, column + LANES, activate(op.activation, right));
        }
    }
}

// Logits go to the caller's memory, where nothing stands behind a row's last column but the next row.
static inline void finish_logits(const TransomOp& op, float* out, int64_t width, int64_t first, int rows,
                                 int64_t column, const float* c) {
    const int valid = int(width - column < PAIR ? width - column : PAIR);
    for (int r = 0; r < rows; r++, c += PAIR) {
        float* x = out + (first + r) * width + column;
        for (int i = 0; i < valid; i++) x[i] = c[i] + (op.bias ? op.bias[column + i] : 0.0f);
    }
}

// Columns 32 * pair on of the product, all rows.
template <class F> static void product_pair(const TransomOp& op, const Rows& in, const Rows& out,
                                            float* logits, int64_t n_rows, int64_t pair) {
    const TransomMatrix& m = *op.matrix;
    const char* one = m.panels + 2 * pair * m.panel_bytes();
    const size_t lda = size_t(in.row_bytes) / sizeof(typename F::number);
    alignas(64) float c[BLOCK_ROWS * PAIR];
    for (int64_t first = 0; first < n_rows; first += BLOCK_ROWS) {
        int rows = int(n_rows - first < BLOCK_ROWS ? n_rows - first : BLOCK_ROWS);
        two_panels<F>(in.at<typename F::number>(first), lda, rows, one, one + m.panel_bytes(), int(m.groups),
                      c, PAIR);
        if (op.store == TRANSOM_LOGITS)
            finish_logits(op, logits, m.n, first, rows, pair * PAIR, c);
        else
            finish(op, out, first, rows, pair * PAIR, c);
    }
}

} // namespace transom
