// The ops that work on one row at a time: embeddings and norms.
#pragma once
#include "product.h"

namespace transom {

// A token's row of the table, scaled, and that of its place: into the residual stream, float32.
template <class F>
static void embed_row(const TransomOp& op, float* out, int width, int32_t token, int32_t place) {
    typedef typename F::number number;
    const number* row = static_cast<const number*>(op.table) + int64_t(token) * width;
    for (int i = 0; i < width; i++) out[i] = F::to(row[i]) * op.scale;
    if (!op.positions) return;
    const number* learned =
        static_cast<const number*>(op.positions) + int64_t(place + op.position_offset) * width;
    for (int i = 0; i < width; i++) out[i] += F::to(learned[i]);
}

static inline float mean_of(const float* x, int width) {
    Vec total = {};
    for (int i = 0; i < width; i += LANES) total += load_part(x + i, width - i < LANES ? width - i : LANES);
    return sum(total) / float(width);
}

// Sum of (x - mean)^2.
static inline float spread_of(const float* x, int width, float mean) {
    Vec total = {};
    int i = 0;
    for (; i + LANES <= width; i += LANES) {
        Vec away = load(x + i) - mean;
        total += away * away;
    }
    float rest = 0;
    for (; i < width; i++) rest += (x[i] - mean) * (x[i] - mean);
    return sum(total) + rest;
}

// RMS norm (x / rms * weight) or layer norm ((x - mean) / deviation * weight + bias), times the op's scale.
// What comes out is padded with zeros: weight and bias are.
static void norm_row(const TransomOp& op, const float* x, const Rows& out, int64_t row, int width) {
    const float mean = op.layer_norm ? mean_of(x, width) : 0.0f;
    const float factor = op.scale / std::sqrt(spread_of(x, width, mean) / float(width) + op.eps);
    for (int i = 0; i < width; i += LANES) {
        Vec v = (load(x + i) - mean) * factor * load(op.weight + i);
        if (op.bias) v += load(op.bias + i) * op.scale;
        put_any(out, row, i, v);
    }
}

// A row of K numbers, padded, in 8 bits.
template <class F> static void encode_row(const Rows& in, const Rows& out, int64_t row, int64_t width) {
    const auto* x = in.at<typename F::number>(row);
    const Coded to{out.at<char>(row), width};
    for (int64_t i = 0; i < width; i += BLOCK) encode_block(to, i / BLOCK, F::to(x + i), F::to(x + i + LANES));
}

} // namespace transom
