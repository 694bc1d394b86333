// Mixture of experts: which of them a row meets, the rows of each side by side, and their products.
//
// A row's choice and its weights are made of its own scores. Its experts are added to the stream one after the
// other in the order of their numbers, each by the products that `product.h` has for any rows: a row has its
// bits whoever else meets the same experts.
#pragma once
#include "product.h"

#include <algorithm>
#include <utility>
#include <vector>

namespace transom {

// What ROUTE writes of each of the k experts of a row.
struct Choice {
    int32_t expert;
    float weight;
};

// The choices of a step's rows at one layer, those of an expert side by side.
struct Groups {
    std::vector<int64_t> first; // (E + 1,): where each expert's places begin
    std::vector<int32_t> met;   // experts that any row meets
    std::vector<int32_t> rows;  // of each place: whose it is
    std::vector<float> weights; // of each place

    void reserve(int64_t n_experts, int64_t n_places) {
        first.resize(std::max(first.size(), size_t(n_experts + 1)));
        rows.resize(size_t(n_places)), weights.resize(size_t(n_places));
    }
};

// What one thread works with.
struct Ranking {
    std::vector<float> scores;
    std::vector<std::pair<float, int32_t>> ranked;
};

// x (E,) -> their softmax or sigmoid, in whole vectors.
static inline void score(const TransomOp& op, const float* x, std::vector<float>& scores) {
    const int n = op.n_experts;
    scores.assign(size_t(round_up(n, LANES)), -INFINITY);
    std::copy(x, x + n, scores.begin());
    Vec most = broadcast(-INFINITY), total = {};
    for (int i = 0; i < n && !op.sigmoid; i += LANES) most = larger(most, load(scores.data() + i));
    const float top = op.sigmoid ? 0.0f : largest(most);
    for (int i = 0; i < n; i += LANES) {
        float* at = scores.data() + i;
        const Vec v = op.sigmoid ? 1.0f / (1.0f + exp(-load(at))) : exp(load(at) - top);
        store(at, v), total += v;
    }
    const float whole = op.sigmoid ? 1.0f : sum(total);
    for (float& each : scores) each /= whole;
}

// The k best experts of a row. Which of several that tie is what `torch.topk` says on a CPU, by the same calls.
static void route_row(const TransomOp& op, const Rows& in, const Rows& out, int64_t row, Ranking& mine) {
    score(op, in.at<float>(row), mine.scores);
    auto& ranked = mine.ranked;
    ranked.clear();
    for (int32_t e = 0; e < op.n_experts; e++)
        ranked.emplace_back(mine.scores[size_t(e)] + (op.bias ? op.bias[e] : 0.0f), e);
    const auto better = [](const auto& one, const auto& other) {
        return (one.first != one.first && other.first == other.first) || one.first > other.first;
    };
    const auto begin = ranked.begin(), end = begin + op.n_active;
    if (op.n_active * 64 <= op.n_experts) {
        std::partial_sort(begin, end, ranked.end(), better);
    } else {
        std::nth_element(begin, end - 1, ranked.end(), better);
        std::sort(begin, end - 1, better);
    }
    float total = 0;
    for (auto each = begin; each != end; ++each) total += mine.scores[size_t(each->second)];
    const float over = op.normalize ? total + 1e-20f : 1.0f;
    Choice* chosen = out.at<Choice>(row);
    for (auto each = begin; each != end; ++each)
        *chosen++ = {each->second, mine.scores[size_t(each->second)] / over * op.scale};
}

// A place for each choice: expert after expert, the rows of one in their order.
static void group(const TransomOp& op, const Rows& in, int64_t n_rows, Groups& groups) {
    std::vector<int64_t>& first = groups.first;
    std::fill(first.begin(), first.end(), 0);
    groups.met.clear();
    const auto each = [&](const auto& work) {
        for (int64_t row = 0; row < n_rows; row++)
            for (int32_t i = 0; i < op.n_active; i++) work(row, in.at<Choice>(row)[i]);
    };
    each([&](int64_t, const Choice& choice) { first[size_t(choice.expert + 1)]++; });
    for (int32_t e = 0; e < op.n_experts; e++) {
        if (first[size_t(e + 1)]) groups.met.push_back(e);
        first[size_t(e + 1)] += first[size_t(e)];
    }
    each([&](int64_t row, const Choice& choice) {
        const size_t place = size_t(first[size_t(choice.expert)]++);
        groups.rows[place] = int32_t(row), groups.weights[place] = choice.weight;
    });
    // Each has moved to where the next begins.
    std::copy_backward(first.begin(), first.begin() + op.n_experts, first.begin() + op.n_experts + 1);
    first[0] = 0;
}

// Columns 32 * pair on of one expert's product, of the rows that meet it.
template <class F>
static void expert_pair(const TransomOp& op, const Rows& in, const Rows& out, const Groups& groups, int32_t expert,
                        int64_t pair) {
    const int64_t begin = groups.first[size_t(expert)], n = groups.first[size_t(expert + 1)] - begin;
    alignas(64) float c[BLOCK_ROWS * PAIR];
    for (int64_t first = 0; first < n; first += BLOCK_ROWS) {
        const int rows = int(std::min<int64_t>(n - first, BLOCK_ROWS));
        pair_sums<F>(*op.matrices[expert], in.from(begin), first, rows, pair, c);
        finish(op, out.from(begin), first, rows, pair * PAIR, c);
    }
}

// Columns 32 * pair on of all experts' products, weighted and added to the rows of the stream.
template <class F>
static void add_experts(const TransomOp& op, const Rows& in, const Rows& out, const Groups& groups, int64_t pair) {
    alignas(64) float c[BLOCK_ROWS * PAIR];
    for (int32_t expert : groups.met)
        for (int64_t first = groups.first[size_t(expert)], n = groups.first[size_t(expert + 1)]; first < n;
             first += BLOCK_ROWS) {
            const int rows = int(std::min<int64_t>(n - first, BLOCK_ROWS));
            pair_sums<F>(*op.matrices[expert], in, first, rows, pair, c);
            for (int r = 0; r < rows; r++) {
                float* x = out.at<float>(groups.rows[size_t(first + r)]) + pair * PAIR;
                const float weight = groups.weights[size_t(first + r)];
                for (int i = 0; i < PAIR; i += LANES)
                    store(x + i, load(x + i) + weight * load(c + r * PAIR + i));
            }
        }
}

} // namespace transom
