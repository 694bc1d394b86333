// From logits to tokens: the largest, a draw among those that filters leave, log-probabilities. A row is one
// piece. The twin that says what each of them means is transom/inference/sampling.py.
//
// A vocabulary is looked through a few times while it lies in a core's cache. Nothing is sorted but what may
// still be the answer: the k largest by a bound that rises, a nucleus by the bits of its numbers.
#pragma once
#include "product.h"
#include "simd.h"
#include "transom.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace transom {

constexpr int BIN_BITS = 17;                         // a bin of weights is 1.6% wide
constexpr int N_BINS = (0x3f800000 >> BIN_BITS) + 1; // weights are 0 to 1
constexpr int DRAWN = 512;                           // tokens that are summed together
constexpr float NO_NUMBER = std::numeric_limits<float>::quiet_NaN();

// One row of logits; its lanes are loaded with -infinity behind the last.
struct Logits {
    const float* x;
    int64_t n;

    int64_t vectors() const { return round_up(n, LANES) / LANES; }
    Vec at(int64_t vector) const {
        const int64_t left = n - vector * LANES;
        if (left >= LANES) return load(x + vector * LANES);
        Vec v = broadcast(-INFINITY);
        std::memcpy(&v, x + vector * LANES, size_t(left) * sizeof(float));
        return v;
    }
};

// What each thread keeps from row to row.
struct Room {
    std::vector<float> weights, some;
    std::vector<double> bins, sums;
    std::vector<int32_t> places;
};

// The largest; no number where one is not, or the largest is endless.
static inline float largest_of(const Logits& row) {
    Vec most = broadcast(-INFINITY), none = {};
    for (int64_t i = 0; i < row.vectors(); i++) {
        const Vec v = row.at(i);
        most = larger(v, most);
        none += select(v == v, Vec{}, v);
    }
    const float found = largest(most);
    return sum(none) == 0 && std::fabs(found) < INFINITY ? found : NO_NUMBER;
}

static inline int32_t first_equal(const Logits& row, float value) {
    return int32_t(std::find(row.x, row.x + row.n, value) - row.x);
}

// The k-th largest, or -infinity where fewer than k are larger than that.
static inline float kth_largest(const Logits& row, int64_t k, std::vector<float>& some) {
    const auto shorten = [&] { // to the k largest, the smallest of them last
        if (int64_t(some.size()) < k) return float(-INFINITY);
        std::nth_element(some.begin(), some.begin() + (k - 1), some.end(), std::greater<float>());
        some.resize(size_t(k));
        return some.back();
    };
    some.clear();
    float bound = -INFINITY;
    for (int64_t i = 0; i < row.vectors(); i++) {
        const Vec v = row.at(i);
        if (!(largest(v) > bound)) continue;
        for (int lane = 0; lane < LANES; lane++)
            if (v[lane] > bound) some.push_back(v[lane]);
        if (int64_t(some.size()) >= 2 * k + 256) bound = shorten();
    }
    return shorten();
}

// e^((x - most) / temperature) of what is not below `floor`, 0 of the rest: to `weights`, whole vectors.
static inline void weigh(const Logits& row, float most, float temperature, float floor, float* weights) {
    for (int64_t i = 0; i < row.vectors(); i++) {
        const Vec v = row.at(i);
        store(weights + i * LANES, select(v < floor, Vec{}, exp((v - most) / temperature)));
    }
}

// The smallest weight of the nucleus of whole vectors of them: a token is in it when all likelier ones have less
// than `share` of all.
static inline float nucleus_floor(const float* weights, int64_t n, double share, Room& room) {
    const auto bin_of = [](float w) {
        int32_t bits;
        std::memcpy(&bits, &w, sizeof bits);
        return bits >> BIN_BITS; // numbers from 0 on are in the order of their bits
    };
    room.bins.assign(N_BINS, 0.0);
    for (int64_t first = 0; first < n; first += LANES)
        if (largest(load(weights + first)) > 0) // of most vectors top-k leaves nothing
            for (int64_t i = first; i < first + LANES; i++) room.bins[size_t(bin_of(weights[i]))] += weights[i];
    double total = 0, above = 0;
    for (double mass : room.bins) total += mass;
    int32_t bin = N_BINS - 1;
    const double aim = share * total;
    while (bin > 0 && above + room.bins[size_t(bin)] < aim) above += room.bins[size_t(bin--)];
    room.some.clear();
    for (int64_t i = 0; i < n; i++)
        if (bin_of(weights[i]) == bin) room.some.push_back(weights[i]);
    std::sort(room.some.begin(), room.some.end(), std::greater<float>());
    float floor = room.some.empty() ? 0.0f : room.some.front();
    for (float w : room.some) {
        if (!(above < aim)) break;
        floor = w, above += w;
    }
    return floor;
}

// What lies at `aim` when numbers (n,) that are 0 or more stand one behind the other, and what is before it;
// where rounding puts the aim behind all of them, the last that has width.
template <class Number> static inline int64_t lies_at(const Number* widths, int64_t n, double aim, double& before) {
    double end = 0, begin = 0;
    int64_t last = 0;
    for (int64_t i = 0; i < n; i++) {
        if (!(widths[i] > 0)) continue;
        last = i, begin = end, end += double(widths[i]);
        if (aim < end) break;
    }
    before = begin;
    return last;
}

// The token at `uniform` of the row, by weights of which those below `floor` are none.
static inline int32_t draw(float* weights, int64_t vectors, float floor, double uniform, Room& room) {
    room.sums.clear();
    double total = 0;
    for (int64_t first = 0; first < vectors; first += DRAWN / LANES) {
        Vec all = {};
        for (int64_t i = first; i < std::min(first + DRAWN / LANES, vectors); i++) {
            const Vec w = load(weights + i * LANES), kept = select(w < floor, Vec{}, w);
            store(weights + i * LANES, kept);
            all += kept;
        }
        room.sums.push_back(sum(all)), total += room.sums.back();
    }
    double before;
    const double aim = uniform * total;
    const int64_t first = DRAWN * lies_at(room.sums.data(), int64_t(room.sums.size()), aim, before);
    double within;
    return int32_t(first + lies_at(weights + first, std::min(int64_t(DRAWN), vectors * LANES - first),
                                   aim - before, within));
}

static inline int32_t choose(const Logits& row, const TransomDraw& how, Room& room) {
    const float most = largest_of(row);
    if (most != most) return -1;
    if (how.temperature == 0) return first_equal(row, most);
    const bool all = how.top_k <= 0 || how.top_k >= row.n;
    room.weights.resize(size_t(row.vectors()) * LANES);
    float* weights = room.weights.data();
    weigh(row, most, how.temperature, all ? -INFINITY : kth_largest(row, how.top_k, room.some), weights);
    float floor = how.min_p; // of the largest, which is 1
    if (how.top_p < 1) floor = std::max(floor, nucleus_floor(weights, row.vectors() * LANES, how.top_p, room));
    return draw(weights, row.vectors(), floor, how.uniform, room);
}

// log of the sum of e^x over a row, and its n largest, of equal ones the first: their places and themselves.
// None of them is a number where the row's largest is none or endless.
static inline double likeliest(const Logits& row, int64_t n, int32_t* tokens, float* values, Room& room) {
    const float most = largest_of(row);
    if (most != most) {
        std::fill(tokens, tokens + n, 0), std::fill(values, values + n, most);
        return most;
    }
    double total = 0;
    for (int64_t first = 0; first < row.vectors(); first += DRAWN / LANES) {
        Vec all = {};
        for (int64_t i = first; i < std::min(first + DRAWN / LANES, row.vectors()); i++)
            all += exp(row.at(i) - most);
        total += double(sum(all));
    }
    const float bound = n ? kth_largest(row, n, room.some) : INFINITY;
    room.places.clear();
    for (int64_t i = 0; i < row.vectors(); i++) {
        if (largest(row.at(i)) < bound) continue;
        for (int64_t at = i * LANES; at < std::min((i + 1) * LANES, row.n); at++)
            if (!(row.x[at] < bound)) room.places.push_back(int32_t(at));
    }
    const auto ahead = [&](int32_t a, int32_t b) {
        return row.x[a] > row.x[b] || (row.x[a] == row.x[b] && a < b);
    };
    std::partial_sort(room.places.begin(), room.places.begin() + n, room.places.end(), ahead);
    for (int64_t i = 0; i < n; i++) tokens[i] = room.places[size_t(i)], values[i] = row.x[tokens[i]];
    return double(most) + std::log(total);
}

} // namespace transom
