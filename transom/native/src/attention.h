// Attention over pages. A page holds 16 tokens of one layer and key-value head, twice:
//   keys    [K / group][16 tokens][group]   which is a panel: scores are a product with 16 outputs
//   values  [16 / group][K][group]          whose rows are groups of tokens: mixing is a product over tokens
// K is the head width, padded with zeros to a multiple of 32.
//
// A query is computed over the pages from the first that it may see, in stretches that begin at fixed places
// of its row, so that its bits depend on its place alone (and where it sees all of the row, on the row's
// length): not on how much is read at once, nor beside what.
#pragma once
#include "product.h"

#include <algorithm>
#include <vector>

namespace transom {

constexpr int PAGE = 16;
constexpr int STRETCH = 1024;   // keys whose scores are held at a time; sums are rescaled between stretches
constexpr int SCORES = STRETCH + LANES; // from a row's scores to the next's: not onto the same lines of a cache
constexpr int QUERY_ROWS = 16;  // queries that look together
constexpr int MIXED_ROWS = ROWS_OF_TWO < 8 ? 2 : 8; // queries whose values are summed at once
constexpr float NEVER = -1e30f; // below every score

struct Cache {
    char* data = nullptr;
    int64_t n_pages = 0, n_heads = 0, width = 0; // K, padded
    int32_t number_bytes = 0;
    int64_t state_bytes = 0; // of a recurrence, whose pages hold the state after the last token read of them

    int64_t side_bytes() const { return PAGE * width * number_bytes; }
    int64_t layer_bytes() const { return state_bytes ? state_bytes : n_heads * 2 * side_bytes(); }
    char* at(int64_t layer, int64_t page, int64_t head, int side) const {
        return data + (layer * n_pages + page) * layer_bytes() + (head * 2 + side) * side_bytes();
    }
};

// Tokens of one span that lie in one page: n of them from place `start` of their row on.
struct PageRun {
    int64_t token, span;
    int32_t start, n, page;
};

// Norm of x (n,) by its root mean square, in place.
static inline void head_norm(float* x, int n, const float* weight, float eps, float squares, int over) {
    const float factor = 1.0f / std::sqrt(squares / float(over) + eps);
    for (int i = 0; i < n; i++) x[i] = x[i] * factor * weight[i];
}

static inline float squares_of(const float* x, int n) {
    Vec total = {};
    for (int i = 0; i < n; i += LANES) {
        Vec v = load_part(x + i, std::min(LANES, n - i));
        total += v * v;
    }
    return sum(total);
}

// Channels i and i + K/2 turn by the angle of the place.
static inline void rotate(float* x, int width, const float* cosine, const float* sine) {
    const int half = width / 2;
    for (int i = 0; i < half; i++) {
        const float a = x[i], b = x[i + half];
        x[i] = a * cosine[i] - b * sine[i];
        x[i + half] = b * cosine[i] + a * sine[i];
    }
}

template <class F>
static inline void store_key(char* page, int slot, const typename F::number* x, int width) {
    auto* keys = reinterpret_cast<typename F::number*>(page) + slot * F::group;
    for (int d = 0; d < width; d++) keys[d / F::group * PAGE * F::group + d % F::group] = x[d];
}

template <class F>
static inline void store_value(char* page, int slot, const typename F::number* x, int width, int64_t padded) {
    auto* values =
        reinterpret_cast<typename F::number*>(page) + slot / F::group * padded * F::group + slot % F::group;
    for (int d = 0; d < width; d++) values[d * F::group] = x[d];
}

// What a step's heads need besides the op.
struct Heads {
    const TransomOp& op;
    const TransomStep& step;
    Cache cache;
    int32_t n_source; // tokens of the source, where the cache is that of one
    int64_t n_tokens;
    Rows in;       // (N, (H + 2 G) K) float32: queries, keys, values
    char* queries; // (G, N H/G, K padded): the queries that share a head of keys are rows of one matrix

    int per() const { return op.n_heads / op.n_kv_heads; }
};

// One head of a token: its norm and its rotation, into `x`.
static inline void turn(const Heads& heads, float* x, const float* from, const float* weight, float squares,
                        int over, int place) {
    const int width = heads.op.head_dim;
    std::copy(from, from + width, x);
    if (weight) head_norm(x, width, weight, heads.op.eps, squares, over);
    if (heads.step.cosines && heads.op.maps == TRANSOM_ALL) {
        const int64_t at = int64_t(place) * (width / 2);
        rotate(x, width, heads.step.cosines + at, heads.step.sines + at);
    }
}

// A thread's own memory; grown once.
struct Scratch {
    std::vector<float> scores, sums, head;
    std::vector<char> numbers; // of one head, in the format of the pages
    std::vector<bf16> weights;
    float newest[QUERY_ROWS],
        total[QUERY_ROWS]; // of each row: the greatest score and the sum of weights so far

    void reserve(int64_t width) {
        scores.resize(size_t(QUERY_ROWS * SCORES));
        weights.resize(size_t(QUERY_ROWS * SCORES));
        sums.resize(size_t(QUERY_ROWS * width));
        head.resize(size_t(width)), numbers.resize(size_t(width) * sizeof(float));
    }
    void begin() {
        std::fill(newest, newest + QUERY_ROWS, NEVER), std::fill(total, total + QUERY_ROWS, 0.0f);
        std::fill(sums.begin(), sums.end(), 0.0f);
    }
};

// One head (K padded) of a token as numbers of the pages.
template <class F> static inline typename F::number* numbers_of(Scratch& scratch, int64_t padded) {
    auto* numbers = reinterpret_cast<typename F::number*>(scratch.numbers.data());
    for (int64_t d = 0; d < padded; d += LANES) store(numbers + d, load(scratch.head.data() + d));
    return numbers;
}

// The queries that share one key-value head, of one token.
template <class F>
static void store_queries(const Heads& heads, int64_t token, int place, int head, Scratch& scratch) {
    const TransomOp& op = heads.op;
    const int width = op.head_dim, per = heads.per(), all = op.n_heads * width;
    const int64_t padded = heads.cache.width;
    const float* row = heads.in.at<float>(token);
    const float of_all = op.weight && op.whole_norm ? squares_of(row, all) : 0;
    float* x = scratch.head.data();
    for (int h = head * per; h < (head + 1) * per; h++) {
        const float* from = row + int64_t(h) * width;
        const float* weight = op.weight && op.whole_norm ? op.weight + int64_t(h) * width : op.weight;
        const float squares = op.weight && !op.whole_norm ? squares_of(from, width) : of_all;
        turn(heads, x, from, weight, squares, op.whole_norm ? all : width, place);
        const int64_t at = (head * heads.n_tokens + token) * per + h - head * per;
        auto* query = reinterpret_cast<typename F::number*>(heads.queries) + at * padded;
        for (int64_t d = 0; d < padded; d += LANES) store(query + d, load(x + d));
    }
}

// The key and the value of one head, of one token.
template <class F>
static void store_pair(const Heads& heads, int64_t token, int place, int32_t page, int head, Scratch& scratch) {
    const TransomOp& op = heads.op;
    const int width = op.head_dim, all = op.n_kv_heads * width, slot = place % PAGE;
    const int64_t padded = heads.cache.width;
    const float* keys = heads.in.at<float>(token) + (op.maps == TRANSOM_ALL ? int64_t(op.n_heads) * width : 0);
    const float* from = keys + int64_t(head) * width;
    const float* weight = op.bias && op.whole_norm ? op.bias + int64_t(head) * width : op.bias;
    const float squares = !op.bias ? 0 : op.whole_norm ? squares_of(keys, all) : squares_of(from, width);
    float* x = scratch.head.data();
    turn(heads, x, from, weight, squares, op.whole_norm ? all : width, place);
    store_key<F>(heads.cache.at(op.layer, page, head, 0), slot, numbers_of<F>(scratch, padded), width);
    std::copy(from + all, from + all + width, x);
    store_value<F>(heads.cache.at(op.layer, page, head, 1), slot, numbers_of<F>(scratch, padded), width, padded);
}

// What a row holds of one key-value head, for the tokens of one page.
template <class F>
static void store_heads(const Heads& heads, const PageRun& run, int head, Scratch& scratch) {
    const TransomOp& op = heads.op;
    const bool stores = op.maps != TRANSOM_QUERIES;
    // A page's new owner finds zeros: a hidden value has weight 0, and 0 * NaN is NaN.
    if (stores && run.start % PAGE == 0)
        std::memset(heads.cache.at(op.layer, run.page, head, 0), 0, size_t(2 * heads.cache.side_bytes()));
    std::fill(scratch.head.begin(), scratch.head.end(), 0.0f);
    for (int i = 0; i < run.n; i++) {
        const int place = run.start + i;
        if (op.maps != TRANSOM_KEYS_AND_VALUES) store_queries<F>(heads, run.token + i, place, head, scratch);
        if (stores) store_pair<F>(heads, run.token + i, place, run.page, head, scratch);
    }
}

// Queries that look together: rows of one key-value head, and of one span, or of several that follow each
// other and have one source.
struct Look {
    const Heads* heads;
    const TransomSpan* span; // the first
    int64_t token;           // its first
    int head;
    int first, rows; // of the n * H/G queries of all

    // Behind the last token that the one at `place` sees.
    int end_of(int place) const {
        if (heads->op.source) return heads->n_source;
        return heads->op.bidirectional ? span->start + span->n : place + 1;
    }
};

// The weights of a stretch, in the format that they are multiplied in; of float32 the scores themselves.
template <class F> static inline typename F::number* weights_of(Scratch& scratch);
template <> inline float* weights_of<F32>(Scratch& scratch) { return scratch.scores.data(); }
template <> inline bf16* weights_of<Bf16>(Scratch& scratch) { return scratch.weights.data(); }

// sums (rows, width) += weights (rows, 16 a page) times the values of n pages.
template <class F, int R = MIXED_ROWS> static inline void mix(const typename F::number* weights, int rows,
                                                              const char* const* pages, int n, int64_t width,
                                                              float* sums) {
    for (; rows >= R; rows -= R, weights += R * SCORES, sums += R * width)
        for (int64_t d = 0; d < width; d += PAIR) {
            Vec left[R], right[R];
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                left[r] = load(sums + r * width + d), right[r] = load(sums + r * width + d + LANES);
            for (int i = 0; i < n; i++)
                for (int s = 0; s < PAGE; s += F::group) {
                    const auto* values =
                        reinterpret_cast<const float*>(pages[i] + ((s / F::group) * width + d) * 4);
#pragma GCC unroll 2
                    for (int part = 0; part < F::dots; part++) {
                        const Vec one = F::part(load(values), part), other = F::part(load(values + LANES), part);
#pragma GCC unroll 8
                        for (int r = 0; r < R; r++) {
                            const auto* weight = weights + r * SCORES + i * PAGE + s + part;
                            left[r] = F::dot(left[r], weight, one);
                            right[r] = F::dot(right[r], weight, other);
                        }
                    }
                }
#pragma GCC unroll 8
            for (int r = 0; r < R; r++)
                store(sums + r * width + d, left[r]), store(sums + r * width + d + LANES, right[r]);
        }
    if constexpr (R > 1)
        if (rows) mix<F, R / 2>(weights, rows, pages, n, width, sums);
}

#if defined(TRANSOM_AMX)
template <>
inline void mix<Bf16, MIXED_ROWS>(const bf16* weights, int, const char* const* pages, int n, int64_t width, float* sums) {
    amx::configure(PAGE);
    const char* at[STRETCH / PAGE + 1];
    for (int64_t d = 0; d < width; d += 4 * LANES) {
        for (int i = 0; i < n; i++) at[i] = pages[i] + d * 4;
        amx::mix(width - d > PAIR, weights, SCORES, at, n, size_t(width) * 4, sums + d, int(width));
    }
    amx::configure(amx::DEPTH);
}
#endif

// One row's scores of a stretch become weights; `newest` and `total` are the row's greatest score and sum so
// far. Keys begin .. end of the row are seen, of those first .. first + n that the stretch holds. bias: what is
// added to the score of each of these, or null.
template <class F>
static inline float soften(float* scores, typename F::number* weights, int first, int n, int begin, int end,
                           float scale, const float* bias, float& newest, float& total) {
    const int from = std::max(begin - first, 0) / LANES * LANES, to = std::min(end - first, n);
    IntVec lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    Vec most = broadcast(newest);
    for (int i = from; i < to; i += LANES) {
        const IntVec key = lane + (first + i);
        Vec seen = load(scores + i) * scale;
        if (bias) seen += load(bias + i);
        seen = select((key >= begin) & (key < end), seen, broadcast(2 * NEVER));
        store(scores + i, seen);
        most = larger(most, seen);
    }
    const float greatest = largest(most);
    Vec added = {};
    for (int i = 0; i < n; i += LANES) {
        Vec weight = {};
        if (i >= from && i < to) weight = exp2(load(scores + i) - greatest);
        added += weight;
        store(weights + i, weight);
    }
    const float faded = exp2(broadcast(newest - greatest))[0];
    total = total * faded + sum(added);
    newest = greatest;
    return faded;
}

// Some pages of one row and head, whose scores are held at once.
struct Stretch {
    int begin, n_pages; // begin: the place of their first key
    const char *keys[STRETCH / PAGE + 1], *values[STRETCH / PAGE];

    Stretch(const Look& look, const int32_t* table, int from, int to)
        : begin(from), n_pages((to - from + PAGE - 1) / PAGE) {
        const Heads& heads = *look.heads;
        for (int i = 0; i < n_pages; i++) {
            const int32_t number = begin / PAGE + i, page = heads.op.source ? number : table[number];
            // Products take two panels at a time: what comes of one more than there are is not read.
            keys[i] = keys[i + 1] = heads.cache.at(heads.op.layer, page, look.head, 0);
            values[i] = heads.cache.at(heads.op.layer, page, look.head, 1);
        }
    }
};

// Scores of all rows for a stretch become weights, and what was summed before fades to the new scale.
template <class F>
static inline void soften_rows(const Look& look, const Stretch& stretch, Scratch& scratch) {
    const Heads& heads = *look.heads;
    const int64_t width = heads.cache.width;
    for (int r = 0; r < look.rows; r++) {
        const int place = look.span->start + (look.first + r) / heads.per();
        const int seen_from = heads.op.window ? std::max(0, place - heads.op.window + 1) : 0;
        const int64_t reach = heads.op.reach, head = look.head * heads.per() + (look.first + r) % heads.per();
        const float* bias =
            heads.op.weight ? heads.op.weight + (2 * head + 1) * reach + stretch.begin - place : nullptr;
        const float faded =
            soften<F>(scratch.scores.data() + r * SCORES, weights_of<F>(scratch) + r * SCORES,
                      stretch.begin, stretch.n_pages * PAGE, seen_from, look.end_of(place),
                      heads.op.scale * 1.44269504f, bias, scratch.newest[r], scratch.total[r]);
        float* sums = scratch.sums.data() + r * width;
        if (faded == 1.0f) continue;
        for (int64_t d = 0; d < width; d += LANES) store(sums + d, load(sums + d) * faded);
    }
}

// The rows' sums, divided by their totals, are what the heads give to the next product.
template <class F> static inline void write_mixed(const Look& look, const Scratch& scratch, const Rows& out) {
    const Heads& heads = *look.heads;
    const int per = heads.per(), width = heads.op.head_dim;
    for (int r = 0; r < look.rows; r++) {
        const int query = look.first + r;
        auto* mixed = out.at<typename F::number>(look.token + query / per) +
                      int64_t(look.head * per + query % per) * width;
        const float* sums = scratch.sums.data() + r * heads.cache.width;
        const float factor = 1.0f / scratch.total[r];
        for (int d = 0; d < width; d++) mixed[d] = F::from(sums[d] * factor);
    }
}

template <class F>
static void look_back(const Look& look, const Rows& out, const int32_t* table, Scratch& scratch) {
    const Heads& heads = *look.heads;
    const int per = heads.per(), window = heads.op.window;
    const int first_place = look.span->start + look.first / per;
    const int end = look.end_of(look.span->start + (look.first + look.rows - 1) / per);
    const int oldest = window ? std::max(0, first_place - window + 1) / PAGE * PAGE : 0;
    const int64_t width = heads.cache.width;
    const auto* queries = reinterpret_cast<const typename F::number*>(heads.queries) +
                          ((look.head * heads.n_tokens + look.token) * per + look.first) * width;
    scratch.begin();
    for (int at = oldest / STRETCH * STRETCH; at < end; at += STRETCH) {
        const Stretch stretch(look, table, std::max(at, oldest), std::min(at + STRETCH, end));
        for (int i = 0; i < stretch.n_pages; i += 2)
            two_panels<F>(queries, size_t(width), look.rows, stretch.keys[i], stretch.keys[i + 1],
                          int(width / F::group), scratch.scores.data() + i * PAGE, SCORES);
        soften_rows<F>(look, stretch, scratch);
        mix<F>(weights_of<F>(scratch), look.rows, stretch.values, stretch.n_pages, width,
               scratch.sums.data());
    }
    write_mixed<F>(look, scratch, out);
}

} // namespace transom
