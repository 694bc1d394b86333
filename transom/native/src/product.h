// Products: rows of activations times a packed matrix, and what is fused behind them.
//
// A panel is 16 outputs. Its vectors of 64 bytes lie one behind the other, one for each group of inputs; lane
// j of a vector is the group's inputs of output j. So a product broadcasts 32 bits of a row and multiplies
// them with 16 outputs at a time, and no sum ever crosses lanes. Every output is summed over its inputs in
// one order, whatever the number of rows and threads: a row alone has the bits that it has beside others.
#pragma once
#include "amx.h"
#include "int8.h"
#include "simd.h"
#include "transom.h"

#include <cstdlib>
#include <vector>

// n outputs, k inputs, both rounded up with zeros; the panels of a matrix lie one behind the other.
struct TransomMatrix {
    int32_t format;
    int64_t n, k;     // as they were given
    int64_t n_panels; // an even number: products take two at a time
    int64_t groups;   // of a panel; where tiles read them, a multiple of 16, which is their depth
    char* panels;

    int64_t panel_bytes() const { return groups * 64; }
    int64_t panels_bytes() const { return n_panels * panel_bytes(); }
    int64_t bytes() const { return panels_bytes() + (format == TRANSOM_I8 ? n_panels * 64 : 0); }
    float* scales() const { return reinterpret_cast<float*>(panels + panels_bytes()); } // of I8, of each output
};

namespace transom {

constexpr int PAIR = 2 * LANES;    // columns that a product makes at a time
constexpr int BLOCK_ROWS = 32;     // rows that it makes at a time
constexpr int64_t SLACK_ROWS = 32; // rows behind a buffer that a tile may read: their sums go nowhere
constexpr int64_t DEPTH_UNIT = 32; // inputs are padded to a multiple of it
#if defined(TRANSOM_AMX)
constexpr bool TILES = true;
#else
constexpr bool TILES = false;
#endif

#if defined(TRANSOM_AVX2)
constexpr int ROWS_OF_TWO = 3, ROWS_OF_ONE = 6; // 12 of 16 registers hold sums
#else
constexpr int ROWS_OF_TWO = 12, ROWS_OF_ONE = 12;
#endif

constexpr int AHEAD = 1024; // bytes of a panel, from what is asked for to what is multiplied

// c (R, 32) = R rows times two panels; or (R, 16), times one.
template <class F, int R, bool two = true> static inline void few_rows(const typename F::number* a, size_t lda,
                                                      const char* one, const char* other, int groups,
                                                      float* c, int ldc) {
    Vec left[R], right[R];
    // All loops over rows unrolled: else the sums have a place in memory, and each dot writes its own there.
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) left[r] = right[r] = Vec{};
    for (int g = 0; g < groups; g++) {
        if (!two) __builtin_prefetch(one + g * 64 + AHEAD); // two keep as many lines under way by themselves
#pragma GCC unroll 2
        for (int i = 0; i < F::dots; i++) {
            const Vec w = F::part(load(reinterpret_cast<const float*>(one + g * 64)), i);
            const Vec v = two ? F::part(load(reinterpret_cast<const float*>(other + g * 64)), i) : w;
#pragma GCC unroll 12
            for (int r = 0; r < R; r++) {
                const typename F::number* x = a + r * lda + g * F::group + i;
                left[r] = F::dot(left[r], x, w);
                if (two) right[r] = F::dot(right[r], x, v);
            }
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; r++) {
        store(c + r * ldc, left[r]);
        if (two) store(c + r * ldc + LANES, right[r]);
    }
}

// The same of at most R rows: a row less is as quick as its share, and each panel is read once.
template <class F, int R, bool two> static inline void last_rows(const typename F::number* a, size_t lda,
                                                                 int rows, const char* one, const char* other,
                                                                 int groups, float* c, int ldc) {
    if (rows == R)
        few_rows<F, R, two>(a, lda, one, other, groups, c, ldc);
    else if constexpr (R > 1)
        last_rows<F, R - 1, two>(a, lda, rows, one, other, groups, c, ldc);
}

// c (rows, 32) = rows of a times two panels; c and a have room for whole tiles of rows.
template <class F> static inline void two_panels(const typename F::number* a, size_t lda, int rows,
                                                 const char* one, const char* other, int groups, float* c,
                                                 int ldc) {
    int r = 0;
    for (; ROWS_OF_ONE > ROWS_OF_TWO && rows - r > ROWS_OF_TWO; r += ROWS_OF_ONE) {
        const int some = rows - r < ROWS_OF_ONE ? rows - r : ROWS_OF_ONE;
        last_rows<F, ROWS_OF_ONE, false>(a + r * lda, lda, some, one, one, groups, c + r * ldc, ldc);
        last_rows<F, ROWS_OF_ONE, false>(a + r * lda, lda, some, other, other, groups, c + r * ldc + LANES, ldc);
    }
    for (; r < rows; r += ROWS_OF_TWO) {
        const int some = rows - r < ROWS_OF_TWO ? rows - r : ROWS_OF_TWO;
        last_rows<F, ROWS_OF_TWO, true>(a + r * lda, lda, some, one, other, groups, c + r * ldc, ldc);
    }
}

// c (rows, 32): in its first 16 columns, rows of a times one panel.
template <class F> static inline void one_panel(const typename F::number* a, size_t lda, int rows,
                                                const char* panel, int groups, float* c) {
    for (int r = 0; r < rows; r += ROWS_OF_ONE) {
        const int some = rows - r < ROWS_OF_ONE ? rows - r : ROWS_OF_ONE;
        last_rows<F, ROWS_OF_ONE, false>(a + r * lda, lda, some, panel, panel, groups, c + r * PAIR, PAIR);
    }
}

#if defined(TRANSOM_AMX)
template <> inline void one_panel<Bf16>(const bf16* a, size_t lda, int rows, const char* panel, int groups,
                                        float* c) {
    amx::two_panels(a, lda, rows, panel, panel, groups, c, PAIR);
}

template <> inline void two_panels<Bf16>(const bf16* a, size_t lda, int rows, const char* one,
                                         const char* other, int groups, float* c, int ldc) {
    amx::two_panels(a, lda, rows, one, other, groups, c, ldc);
}
#endif

// Error function by Abramowitz and Stegun 7.1.26: within 1.5e-7.
static inline Vec erf(Vec x) {
    Vec size = larger(x, -x);
    Vec t = 1.0f / (1.0f + 0.3275911f * size);
    Vec p = broadcast(1.061405429f);
    p = p * t - 1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t - 0.284496736f;
    p = p * t + 0.254829592f;
    Vec value = 1.0f - p * t * exp(-size * size);
    return select(x < Vec{}, -value, value);
}

static inline Vec tanh(Vec x) { return 1.0f - 2.0f / (exp(2.0f * x) + 1.0f); }

static inline Vec activate(int kind, Vec x) {
    switch (kind) {
    case TRANSOM_SILU: return x / (1.0f + exp(-x));
    case TRANSOM_GELU: return 0.5f * x * (1.0f + erf(x * 0.70710678f));
    case TRANSOM_GELU_TANH: return 0.5f * x * (1.0f + tanh(0.79788456f * (x + 0.044715f * x * x * x)));
    case TRANSOM_RELU: return larger(x, Vec{});
    case TRANSOM_RELU2: return larger(x, Vec{}) * larger(x, Vec{});
    case TRANSOM_TANH: return tanh(x);
    default: return x;
    }
}

// Rows of a buffer.
struct Rows {
    char* data;
    int64_t row_bytes;
    int32_t format;

    template <class T> T* at(int64_t row) const { return reinterpret_cast<T*>(data + row * row_bytes); }
    Rows from(int64_t first) const { return {data + first * row_bytes, row_bytes, format}; }
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

// A result goes to the caller's memory, where nothing stands behind a row's last column but the next row.
static inline void finish_result(const TransomOp& op, float* out, int64_t width, int64_t first, int rows,
                                 int64_t column, const float* c) {
    const int valid = int(width - column < PAIR ? width - column : PAIR);
    for (int r = 0; r < rows; r++, c += PAIR) {
        float* x = out + (first + r) * width + column;
        for (int i = 0; i < valid; i++) x[i] = c[i] + (op.bias ? op.bias[column + i] : 0.0f);
    }
}

// Rows that one adapter reads, all of them in one block of the product's.
struct Adapted {
    int32_t adapter;
    int64_t first;
    int rows;
};

// One part of an adapter's x A^T, of some of its rows.
template <class F>
static void thin_part(const TransomPart& part, const Rows& in, const Rows& out, const Adapted& some) {
    typedef typename F::number number;
    const size_t lda = size_t(in.row_bytes) / sizeof(number);
    alignas(64) float c[BLOCK_ROWS * PAIR];
    // Tiles read a row of them in whole tiles; else nobody reads more than there is.
    const int64_t panels = TILES ? part.A->n_panels : (part.A->n + LANES - 1) / LANES;
    for (int64_t panel = 0; panel < panels; panel++) {
        one_panel<F>(in.at<number>(some.first), lda, some.rows, part.A->panels + panel * part.A->panel_bytes(),
                     int(part.A->groups), c);
        for (int r = 0; r < some.rows; r++)
            store(out.at<number>(some.first + r) + part.at + panel * LANES, load(c + r * PAIR));
    }
}

// Call work(part, panel of its B, column of the pair) for what an adapter adds to columns 32 * pair on.
template <class Work>
static inline void each_panel(const TransomOp& op, int32_t adapter, int64_t pair, const Work& work) {
    for (int i = 0; i < op.n_parts; i++) {
        const TransomPart& part = op.parts[(adapter - 1) * op.n_parts + i];
        for (int64_t column = 0; part.A && column < PAIR; column += LANES) {
            const int64_t away = 2 * pair + column / LANES - part.first, panel = away / part.step;
            if (away >= 0 && away % part.step == 0 && panel * LANES < part.B->n) work(part, panel, column);
        }
    }
}

// Ask for what `add_thin` will read: no stream that the CPU sees coming, and a wait for memory at each panel.
static inline void fetch_thin(const TransomOp& op, const Adapted& some, int64_t pair) {
    each_panel(op, some.adapter, pair, [](const TransomPart& part, int64_t panel, int64_t) {
        const char* from = part.B->panels + panel * part.B->panel_bytes();
        for (int64_t i = 0; i < part.B->panel_bytes(); i += 64) __builtin_prefetch(from + i, 0, 2);
    });
}

// What an adapter adds to the sums c (rows, 32) of columns 32 * pair on.
template <class F> static inline void add_thin(const TransomOp& op, const Rows& thin, const Adapted& some,
                                               int64_t pair, float* c) {
    typedef typename F::number number;
    const size_t lda = size_t(thin.row_bytes) / sizeof(number);
    alignas(64) float more[BLOCK_ROWS * PAIR];
    each_panel(op, some.adapter, pair, [&](const TransomPart& part, int64_t panel, int64_t column) {
        one_panel<F>(thin.at<number>(some.first) + part.at, lda, some.rows,
                     part.B->panels + panel * part.B->panel_bytes(), int(part.B->groups), more);
        for (int r = 0; r < some.rows; r++) {
            float* sums = c + r * PAIR + column;
            const Vec own = part.gain ? load(sums) * load(part.gain + panel * LANES) : load(sums);
            store(sums, own + load(more + r * PAIR));
        }
    });
}

template <class F>
static inline void pair_of(const TransomMatrix& m, const Rows& in, int64_t first, int rows, const char* one,
                           float* c) {
    typedef typename F::number number;
    two_panels<F>(in.at<number>(first), size_t(in.row_bytes) / sizeof(number), rows, one, one + m.panel_bytes(),
                  int(m.groups), c, PAIR);
}

// c (rows, 32) = at most 32 rows of `in`, from `first` on, times pair `pair` of a matrix.
template <class F>
static inline void pair_sums(const TransomMatrix& m, const Rows& in, int64_t first, int rows, int64_t pair,
                             float* c) {
    const char* one = m.panels + 2 * pair * m.panel_bytes();
    if (m.format == TRANSOM_I8)
        two_coded(in.at<char>(first), in.row_bytes, m.groups * 4, rows, one, one + m.panel_bytes(),
                  m.scales() + pair * PAIR, c, PAIR);
    else if (m.format == TRANSOM_BF16 && in.format == TRANSOM_F32)
        pair_of<Widened>(m, in, first, rows, one, c);
    else
        pair_of<F>(m, in, first, rows, one, c);
}

// Columns 32 * pair on of the product, all rows. adapted: in the order of their rows.
template <class F>
static void product_pair(const TransomOp& op, const Rows& in, const Rows& out, const Rows& thin,
                         const std::vector<Adapted>& adapted, float* result, int64_t n_rows, int64_t pair) {
    alignas(64) float c[BLOCK_ROWS * PAIR];
    size_t next = op.n_parts ? 0 : adapted.size();
    for (int64_t first = 0; first < n_rows; first += BLOCK_ROWS) {
        int rows = int(n_rows - first < BLOCK_ROWS ? n_rows - first : BLOCK_ROWS);
        for (size_t i = next; i < adapted.size() && adapted[i].first < first + rows; i++)
            fetch_thin(op, adapted[i], pair);
        pair_sums<F>(*op.matrix, in, first, rows, pair, c);
        for (; next < adapted.size() && adapted[next].first < first + rows; next++)
            add_thin<F>(op, thin, adapted[next], pair, c + (adapted[next].first - first) * PAIR);
        if (op.store == TRANSOM_RESULT)
            finish_result(op, result, op.matrix->n, first, rows, pair * PAIR, c);
        else
            finish(op, out, first, rows, pair * PAIR, c);
    }
}

} // namespace transom
