// The ops that work on one row at a time: embeddings, norms and means.
#pragma once
#include "product.h"

namespace transom {

// A token's row of the table, scaled, that of its place and that of its segment: into the residual stream.
template <class F>
static void embed_row(const TransomOp& op, float* out, int width, int32_t token, int32_t place,
                      int32_t segment) {
    typedef typename F::number number;
    const number* row = static_cast<const number*>(op.table) + int64_t(token) * width;
    for (int i = 0; i < width; i++) out[i] = F::to(row[i]) * op.scale;
    const auto add = [&](const void* table, int64_t at) {
        for (int i = 0; i < width; i++) out[i] += F::to(static_cast<const number*>(table)[at * width + i]);
    };
    if (op.positions) add(op.positions, place + op.position_offset);
    if (op.segments) add(op.segments, segment);
}

static inline float mean_of(const float* x, int width) {
    Vec total = {};
    int i = 0;
    for (; i + LANES <= width; i += LANES) total += load(x + i);
    if (i < width) total += load_part(x + i, width - i);
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

// RMS norm (x / rms * weight) or layer norm ((x - mean) / deviation * weight + bias), or the row as it is, times
// the op's scale. What comes out is padded with zeros: weight and bias are.
static void norm_row(const TransomOp& op, float* x, const Rows& out, int64_t row, int width) {
    const float mean = op.layer_norm ? mean_of(x, width) : 0.0f;
    const float factor =
        op.weight ? op.scale / std::sqrt(spread_of(x, width, mean) / float(width) + op.eps) : op.scale;
    for (int i = 0; i < width; i += LANES) {
        Vec v = (load(x + i) - mean) * factor;
        if (op.weight) v *= load(op.weight + i);
        if (op.bias) v += load(op.bias + i) * op.scale;
        put_any(out, row, i, v);
        if (op.store == TRANSOM_REPLACE) store(x + i, v);
    }
}

// The mean of rows first .. first + n - 1, added up in their order: row `row` of `out`, or of the result.
static void pool_rows(const TransomOp& op, const Rows& in, int64_t first, int n, const Rows& out, float* result,
                      int64_t row, int width) {
    for (int i = 0; i < width; i += LANES) {
        Vec total = {};
        for (int r = 0; r < n; r++) total += load(in.at<float>(first + r) + i);
        total /= float(n);
        if (op.store == TRANSOM_RESULT)
            std::memcpy(result + row * width + i, &total, sizeof(float) * size_t(std::min(LANES, width - i)));
        else
            put_any(out, row, i, total);
    }
}

// A row of K numbers, padded, in 8 bits.
template <class F> static void encode_row(const Rows& in, const Rows& out, int64_t row, int64_t width) {
    const auto* x = in.at<typename F::number>(row);
    const Coded to{out.at<char>(row), width};
    for (int64_t i = 0; i < width; i += BLOCK) encode_block(to, i / BLOCK, F::to(x + i), F::to(x + i + LANES));
}

} // namespace transom
