// Recurrences: RNN, GRU, LSTM. What a token brings is a product like any other, of all tokens of a step at once;
// here each row goes from place to place, and adds what its state before makes of it.
//
// A state (h, and c of an LSTM) is float32 and lies in the row's pages, each of which holds the one after the last
// token that was read of it: so a full page is what another row that begins alike goes on from. What the next
// place's product reads, h in its format, is kept beside, rows of the same place side by side, the longest first.
#pragma once
#include "attention.h"

namespace transom {

constexpr int GATES[] = {1, 3, 4}; // by TransomCell

// A row's turn: it has tokens in this step from number `token` on.
struct Turn {
    const TransomSpan* span;
    int64_t token;

    int32_t n() const { return span->n; }
};

// What all pieces of a CELL need. state: two rows for each of the step's, for what is read and what is written.
struct Cells {
    const TransomOp& op;
    const TransomStep& step;
    const Cache& cache;
    Rows in, out, state;

    int64_t units() const { return op.matrix->n / GATES[op.cell]; } // padded to whole pairs

    // The state of a row after place `place`; null before its first.
    float* after(const Turn& turn, int32_t place) const {
        if (place < 0) return nullptr;
        const int32_t page = step.pages[turn.span->first_page + place / PAGE];
        return reinterpret_cast<float*>(cache.at(op.layer, page, 0, 0));
    }

    // 32 units of a state for place `t`'s product.
    void put_state(int64_t row, int32_t t, int64_t unit, Vec left, Vec right) const {
        row += t % 2 * step.n_spans;
        if (state.format == TRANSOM_I8)
            return encode_block({state.at<char>(row), op.matrix->groups * 4}, unit / BLOCK, left, right);
        put_any(state, row, unit, left);
        put_any(state, row, unit + LANES, right);
    }
};

static_assert(PAIR == BLOCK, "a piece of a CELL makes what shares a scale in 8 bits");

// What the first place's product reads.
static void begin_row(const Cells& cells, const Turn& turn, int64_t row) {
    const float* h = cells.after(turn, turn.span->start - 1);
    for (int64_t unit = 0; unit < cells.units(); unit += PAIR)
        cells.put_state(row, 0, unit, h ? load(h + unit) : Vec{}, h ? load(h + unit + LANES) : Vec{});
}

static inline Vec sigmoid(Vec x) { return 1.0f / (1.0f + exp(-x)); }

// 16 units: what the token brings, x + gate * 32, what the state does, sums + gate * ldc, with its bias, and the
// state before, of which null is 0; the state after, whose h is given back.
static inline Vec next_state(int32_t cell, const float* x, const float* sums, int ldc, const float* bias,
                             const float* before, float* after, int64_t units) {
    const auto brought = [&](int gate) { return load(x + gate * PAIR); };
    const auto kept = [&](int gate) { return load(sums + gate * ldc) + load(bias + gate * PAIR); };
    const auto both = [&](int gate) { return brought(gate) + kept(gate); };
    Vec h;
    if (cell == TRANSOM_LSTM) {
        const Vec c = before ? load(before + units) : Vec{};
        const Vec memory = sigmoid(both(1)) * c + sigmoid(both(0)) * tanh(both(2));
        store(after + units, memory);
        h = sigmoid(both(3)) * tanh(memory);
    } else if (cell == TRANSOM_GRU) {
        const Vec reset = sigmoid(both(0)), update = sigmoid(both(1));
        const Vec fresh = tanh(brought(2) + reset * kept(2));
        h = (1.0f - update) * fresh + update * (before ? load(before) : Vec{});
    } else {
        h = tanh(both(0));
    }
    store(after, h);
    return h;
}

// Units 32 * block on at place t of the step, of the first n rows.
template <class F>
static void cell_block(const Cells& cells, const Turn* turns, int64_t n, int32_t t, int64_t block) {
    constexpr int GATE = BLOCK_ROWS * PAIR;
    alignas(64) float sums[4 * GATE];
    const TransomOp& op = cells.op;
    const int n_gates = GATES[op.cell];
    const int64_t column = block * n_gates * PAIR, unit = block * PAIR, units = cells.units();
    const Rows state = cells.state.from(t % 2 * cells.step.n_spans);
    for (int64_t first = 0; first < n; first += BLOCK_ROWS) {
        const int rows = int(std::min<int64_t>(n - first, BLOCK_ROWS));
        for (int gate = 0; gate < n_gates; gate++)
            pair_sums<F>(*op.matrix, state, first, rows, block * n_gates + gate, sums + gate * GATE);
        for (int r = 0; r < rows; r++) {
            const Turn& turn = turns[first + r];
            const int64_t token = turn.token + t;
            const int32_t place = turn.span->start + t;
            const float* before = cells.after(turn, place - 1);
            float* after = cells.after(turn, place);
            Vec h[2];
            for (int i = 0; i < 2; i++) {
                const int64_t at = i * LANES;
                h[i] = next_state(op.cell, cells.in.at<float>(token) + column + at, sums + r * PAIR + at, GATE,
                                  op.bias + column + at, before ? before + unit + at : nullptr,
                                  after + unit + at, units);
                put_any(cells.out, token, unit + at, h[i]);
            }
            if (t + 1 < turn.n()) cells.put_state(first + r, t + 1, unit, h[0], h[1]);
        }
    }
}

} // namespace transom
