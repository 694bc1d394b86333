// Executes a plan: all its ops on one step, inside one parallel region. Read transom.h first.
#include "attention.h"
#include "cells.h"
#include "experts.h"
#include "ops.h"
#include "sampling.h"
#include "threads.h"
#include "transom.h"

#include <cerrno>
#include <memory>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace transom {

// Zeroed memory at the beginning of a line of cache; large pieces in large pages, so that a walk through the
// weights does not wait for translations. Null where there is none.
static char* allocate(size_t bytes) {
    constexpr size_t huge = size_t(2) << 20;
    const size_t unit = bytes >= huge ? huge : 64, size = (bytes + unit) / unit * unit;
    char* memory = static_cast<char*>(std::aligned_alloc(unit, size));
    if (!memory) return nullptr;
#if defined(__linux__)
    if (unit == huge) madvise(memory, size, MADV_HUGEPAGE);
#endif
    std::memset(memory, 0, size);
    return memory;
}

struct Free {
    void operator()(char* memory) const { std::free(memory); }
};
typedef std::unique_ptr<char, Free> Memory;

struct Buffer {
    int32_t width, format;
    int64_t row_bytes, capacity;
    Memory memory;
    int64_t per = 1; // rows of a token

    bool reserve(int64_t n) {
        if (n <= capacity) return true;
        memory.reset();
        capacity = 0;
        memory.reset(allocate(size_t((n + SLACK_ROWS) * row_bytes)));
        if (!memory) return false;
        capacity = n;
        return true;
    }
    Rows rows() const { return {memory.get(), row_bytes, format}; }
};

static int32_t number_bytes(int32_t format) { return format == TRANSOM_F32 ? 4 : 2; }

} // namespace transom

using namespace transom;

struct TransomPlan {
    int32_t format;
    std::vector<TransomOp> ops;
    std::vector<Buffer> buffers;
    Memory pages;
    Cache cache;
    int32_t n_layers;
    // Of the step that runs.
    std::vector<PageRun> runs;
    std::vector<Look> looks, source_looks;
    std::vector<int32_t> places;
    std::vector<Adapted> adapted;
    std::vector<Scratch> scratch;
    Groups groups;
    std::vector<Ranking> rankings; // of each thread
    std::vector<Turn> turns;
    int64_t n_cells = 0, n_pieces = 0;
    std::unique_ptr<Pieces[]> pieces; // of each op, and then of each place of each CELL
};

namespace transom {

// One op in one thread: pieces are taken one after the other by whoever is free, so that a thread that a busy
// machine holds up does not hold up the step.
class Worker {
  public:
    Worker(TransomPlan& plan, const TransomStep& step, int thread)
        : plan_(plan), step_(step), thread_(thread) {}

    template <class F> void run(size_t i) {
        const TransomOp& op = plan_.ops[i];
        pieces_ = &plan_.pieces[i];
        switch (op.kind) {
        case TRANSOM_EMBED: return embed<F>(op);
        case TRANSOM_NORM: return norm(op);
        case TRANSOM_PRODUCT: return product<F>(op);
        case TRANSOM_HEADS: return heads<F>(op);
        case TRANSOM_ATTEND: return attend<F>(op);
        case TRANSOM_THIN: return thin<F>(op);
        case TRANSOM_ENCODE: return encode<F>(op);
        case TRANSOM_POOL: return pool(op);
        case TRANSOM_ROUTE: return route(op);
        case TRANSOM_GROUP: return group(op);
        case TRANSOM_GATHER: return gather(op);
        case TRANSOM_EXPERTS: return experts<F>(op);
        case TRANSOM_CELL: return cell<F>(op);
        }
    }

  private:
    template <class Work> void share(int64_t n, const Work& work) { pieces_->share(n, work); }

    int64_t n_rows(const TransomOp& op) const {
        return op.wanted ? step_.n_wanted : step_.n_tokens * int64_t(std::max(op.n_active, 1));
    }

    Rows rows(int32_t buffer) const { return plan_.buffers[size_t(buffer)].rows(); }

    template <class F> void embed(const TransomOp& op) {
        const Buffer& out = plan_.buffers[size_t(op.out)];
        share(step_.n_tokens, [&](int64_t row) {
            embed_row<F>(op, out.rows().at<float>(row), out.width, step_.tokens[row],
                         plan_.places[size_t(row)], step_.segments ? step_.segments[row] : 0);
        });
    }

    void norm(const TransomOp& op) {
        const Buffer& in = plan_.buffers[size_t(op.in)];
        const Rows out = plan_.buffers[size_t(op.out)].rows();
        share(n_rows(op), [&](int64_t row) {
            const int64_t token = op.wanted ? step_.wanted[row] : row;
            float* x = in.rows().at<float>(token);
            if (step_.streams && op.layer)
                std::copy(x, x + in.width,
                          step_.streams + ((op.layer - 1) * int64_t(step_.n_tokens) + token) * in.width);
            norm_row(op, x, out, row, in.width);
        });
    }

    void pool(const TransomOp& op) {
        const Buffer& in = plan_.buffers[size_t(op.in)];
        const Rows out = op.store == TRANSOM_RESULT ? Rows{} : plan_.buffers[size_t(op.out)].rows();
        share(step_.n_spans, [&](int64_t s) {
            const int n = op.window ? std::min(op.window, step_.spans[s].n) : step_.spans[s].n;
            pool_rows(op, in.rows(), step_.wanted[s], n, out, step_.result, s, in.width);
        });
    }

    template <class F> void product(const TransomOp& op) {
        const Rows in = plan_.buffers[size_t(op.in)].rows();
        const Rows out = op.store == TRANSOM_RESULT ? Rows{} : plan_.buffers[size_t(op.out)].rows();
        const Rows thin = op.n_parts ? plan_.buffers[size_t(op.thin)].rows() : Rows{};
        const int64_t pairs = (op.matrix->n + PAIR - 1) / PAIR;
        share(pairs, [&](int64_t pair) {
            product_pair<F>(op, in, out, thin, plan_.adapted, step_.result, n_rows(op), pair);
        });
    }

    template <class F> void encode(const TransomOp& op) {
        const Buffer& from = plan_.buffers[size_t(op.in)];
        const Rows in = from.rows(), out = plan_.buffers[size_t(op.out)].rows();
        const int64_t width = round_up(from.width, DEPTH_UNIT);
        share(n_rows(op), [&](int64_t row) { encode_row<F>(in, out, row, width); });
    }

    template <class F> void thin(const TransomOp& op) {
        const Rows in = plan_.buffers[size_t(op.in)].rows(), out = plan_.buffers[size_t(op.out)].rows();
        share(int64_t(plan_.adapted.size()) * op.n_parts, [&](int64_t i) {
            const Adapted& some = plan_.adapted[size_t(i / op.n_parts)];
            const TransomPart& part = op.parts[(some.adapter - 1) * op.n_parts + i % op.n_parts];
            if (part.A) thin_part<F>(part, in, out, some);
        });
    }

    void route(const TransomOp& op) {
        Ranking& mine = plan_.rankings[size_t(thread_)];
        share(step_.n_tokens, [&](int64_t row) { route_row(op, rows(op.in), rows(op.out), row, mine); });
    }

    void group(const TransomOp& op) {
        share(1, [&](int64_t) { transom::group(op, rows(op.in), step_.n_tokens, plan_.groups); });
    }

    void gather(const TransomOp& op) {
        const Rows in = rows(op.in), out = rows(op.out);
        share(n_rows(op), [&](int64_t place) {
            std::memcpy(out.at<char>(place), in.at<char>(plan_.groups.rows[size_t(place)]), size_t(in.row_bytes));
        });
    }

    template <class F> void experts(const TransomOp& op) {
        const Rows in = rows(op.in), out = rows(op.out);
        const Groups& groups = plan_.groups;
        const int64_t pairs = op.matrices[0]->n_panels / 2;
        if (op.store == TRANSOM_ADD)
            return share(pairs, [&](int64_t pair) { add_experts<F>(op, in, out, groups, pair); });
        // As many pieces as these tokens can ask for: a thread that comes late, when another layer has other
        // groups, must find the same number, all taken.
        share(std::min(int64_t(op.n_experts), n_rows(op)) * pairs, [&](int64_t i) {
            if (const size_t which = size_t(i / pairs); which < groups.met.size())
                expert_pair<F>(op, in, out, groups, groups.met[which], i % pairs);
        });
    }

    // What comes first, and then place after place: a state needs the whole of the one before.
    template <class F> void cell(const TransomOp& op) {
        const std::vector<Turn>& turns = plan_.turns;
        const Cells cells{op, step_, plan_.cache, rows(op.in), rows(op.out), rows(op.state)};
        share(step_.n_spans, [&](int64_t row) { begin_row(cells, turns[size_t(row)], row); });
        const int32_t longest = turns[0].n();
        int64_t n_rows = step_.n_spans;
        for (int32_t t = 0; t < longest; t++) {
            while (turns[size_t(n_rows - 1)].n() <= t) n_rows--;
            pieces_ = &plan_.pieces[plan_.ops.size() + size_t(op.layer * longest + t)];
            share(cells.units() / PAIR, [&](int64_t block) {
                cell_block<F>(cells, turns.data(), n_rows, t, block);
            });
        }
    }

    // Of a span, whose source has the pages where the op asks for that.
    Heads heads_of(const TransomOp& op, int32_t in, int32_t queries, int64_t span) const {
        Cache cache = plan_.cache;
        int32_t n_source = 0;
        if (op.source) {
            const TransomSource& source = step_.sources[span];
            cache.data = source.pages, cache.n_pages = (source.n + PAGE - 1) / PAGE;
            n_source = int32_t(source.n);
        }
        return {op, step_, cache, n_source, step_.n_tokens, plan_.buffers[size_t(in)].rows(),
                plan_.buffers[size_t(queries)].memory.get()};
    }

    template <class F> void heads(const TransomOp& op) {
        Scratch& scratch = plan_.scratch[size_t(thread_)];
        share(int64_t(plan_.runs.size()) * op.n_kv_heads, [&](int64_t i) {
            const PageRun& run = plan_.runs[size_t(i / op.n_kv_heads)];
            store_heads<F>(heads_of(op, op.in, op.out, run.span), run, int(i % op.n_kv_heads), scratch);
        });
    }

    template <class F> void attend(const TransomOp& op) {
        const std::vector<Look>& looks = op.source ? plan_.source_looks : plan_.looks;
        const Rows out = plan_.buffers[size_t(op.out)].rows();
        Scratch& scratch = plan_.scratch[size_t(thread_)];
        // The longest looks come last in a prompt: taken first, no thread is left alone with one at the end.
        const int64_t n = int64_t(looks.size());
        share(n * op.n_kv_heads, [&](int64_t i) {
            Look look = looks[size_t(n - 1 - i / op.n_kv_heads)];
            const Heads heads = heads_of(op, op.in, op.in, look.span - step_.spans);
            look.heads = &heads, look.head = int(i % op.n_kv_heads);
            look_back<F>(look, out, step_.pages + look.span->first_page, scratch);
        });
    }

    TransomPlan& plan_;
    const TransomStep& step_;
    int thread_;
    Pieces* pieces_ = nullptr;
};

// Queries that look together, at most QUERY_ROWS of `n` that follow each other.
static void add_looks(std::vector<Look>& looks, const TransomSpan& span, int64_t token, int n) {
    for (int32_t first = 0; first < n; first += QUERY_ROWS)
        looks.push_back({nullptr, &span, token, 0, first, std::min(QUERY_ROWS, n - first)});
}

// Those of spans that follow each other and have one source.
static void add_source_looks(TransomPlan& plan, const TransomStep& step, int32_t per) {
    int64_t token = 0;
    for (int32_t s = 0; s < step.n_spans;) {
        const int32_t first = s;
        int32_t n = 0;
        for (; s < step.n_spans && step.sources[s].pages == step.sources[first].pages; s++) n += step.spans[s].n;
        add_looks(plan.source_looks, step.spans[first], token, n * per);
        token += n;
    }
}

// Where each token stands, which run of a page it belongs to, and which queries look back together.
static void lay_out(TransomPlan& plan, const TransomStep& step) {
    plan.runs.clear(), plan.looks.clear(), plan.source_looks.clear(), plan.places.clear(), plan.adapted.clear();
    plan.turns.clear();
    int32_t per = 1;
    for (const TransomOp& op : plan.ops)
        if (op.kind == TRANSOM_ATTEND) per = op.n_heads / op.n_kv_heads;
    int64_t token = 0;
    for (int32_t s = 0; s < step.n_spans; s++) {
        const TransomSpan& span = step.spans[s];
        for (int32_t place = span.start, stop = span.start + span.n; place < stop;) {
            const int32_t n = std::min(stop, (place / PAGE + 1) * PAGE) - place;
            plan.runs.push_back(
                {token + place - span.start, s, place, n, step.pages[span.first_page + place / PAGE]});
            for (int32_t i = 0; i < n; i++) plan.places.push_back(place + i);
            place += n;
        }
        add_looks(plan.looks, span, token, span.n * per);
        plan.turns.push_back({&span, token});
        for (int64_t first = token, stop = token + span.n; span.adapter && first < stop;) {
            const int64_t end = std::min(stop, (first / BLOCK_ROWS + 1) * BLOCK_ROWS);
            Adapted* last = plan.adapted.empty() ? nullptr : &plan.adapted.back();
            if (last && last->adapter == span.adapter && last->first + last->rows == first && first % BLOCK_ROWS)
                last->rows += int(end - first);
            else
                plan.adapted.push_back({span.adapter, first, int(end - first)});
            first = end;
        }
        token += span.n;
    }
    if (step.sources) add_source_looks(plan, step, per);
    std::stable_sort(plan.turns.begin(), plan.turns.end(),
                     [](const Turn& one, const Turn& other) { return one.n() > other.n(); });
}

static bool make_room(TransomPlan& plan, const TransomStep& step) {
    const int64_t most = std::max(step.n_tokens, step.n_wanted);
    for (Buffer& buffer : plan.buffers)
        if (!buffer.reserve(most * buffer.per)) return false;
    if (int(plan.scratch.size()) < step.n_threads) plan.scratch.resize(size_t(step.n_threads));
    for (Scratch& scratch : plan.scratch) scratch.reserve(plan.cache.width);
    plan.rankings.resize(plan.scratch.size());
    for (const TransomOp& op : plan.ops)
        if (op.kind == TRANSOM_GROUP) plan.groups.reserve(op.n_experts, int64_t(step.n_tokens) * op.n_active);
    int64_t longest = 0;
    for (int32_t s = 0; s < step.n_spans && plan.n_cells; s++)
        longest = std::max<int64_t>(longest, step.spans[s].n);
    const int64_t n_pieces = int64_t(plan.ops.size()) + plan.n_cells * longest;
    if (n_pieces > plan.n_pieces) {
        plan.pieces.reset(new Pieces[size_t(n_pieces)]);
        plan.n_pieces = n_pieces;
    }
    for (int64_t i = 0; i < n_pieces; i++) plan.pieces[size_t(i)].reset();
    return true;
}

static std::atomic<Threads*> the_threads{nullptr};
static std::mutex the_turn; // a plan's buffers, and the cores, are one caller's at a time

// A child of fork has none of its parent's threads: it begins with its own, and with a turn that none of them has.
static Threads& threads() {
    static const bool known = [] {
        the_threads.store(new Threads);
#if defined(__unix__) || defined(__APPLE__)
        pthread_atfork(nullptr, nullptr, [] { the_threads.store(new Threads), new (&the_turn) std::mutex; });
#endif
        return true;
    }();
    (void)known;
    return *the_threads.load();
}

// Call work(row, room) for rows 0 .. n - 1, each by one thread; 0, or -1 where there is not the memory.
template <class Work> static int32_t each_row(int32_t n, int32_t n_threads, const Work& work) try {
    std::lock_guard<std::mutex> mine(the_turn);
    static std::vector<Room> rooms;
    if (int(rooms.size()) < n_threads) rooms.resize(size_t(n_threads));
    Pieces pieces;
    std::atomic<bool> failed{false};
    threads().run(std::min(n, n_threads), [&](int thread) {
        pieces.share(n, [&](int64_t row) {
            try {
                work(row, rooms[size_t(thread)]);
            } catch (const std::bad_alloc&) {
                failed = true;
            }
        });
    });
    return failed ? -1 : 0;
} catch (const std::exception&) {
    return -1;
}

template <class F> static void run_in(TransomPlan& plan, const TransomStep& step, int thread) {
#if defined(TRANSOM_AMX)
    amx::configure(amx::DEPTH);
#endif
    Worker worker(plan, step, thread);
    for (int32_t i = step.first_op; i < step.first_op + step.n_ops; i++) worker.run<F>(size_t(i));
#if defined(TRANSOM_AMX)
    amx::release();
#endif
}

template <class F> static void pack(const void* numbers, const TransomMatrix& m) {
    typedef typename F::number number;
    const number* from = static_cast<const number*>(numbers);
    number* to = reinterpret_cast<number*>(m.panels);
    for (int64_t row = 0; row < m.n; row++)
        for (int64_t i = 0; i < m.k; i++) {
            const int64_t vector = row / LANES * m.groups + i / F::group;
            to[(vector * LANES + row % LANES) * F::group + i % F::group] = from[row * m.k + i];
        }
}

static void pack_any(const void* numbers, const TransomMatrix& m) {
    switch (m.format) {
    case TRANSOM_F32: return pack<F32>(numbers, m);
    case TRANSOM_BF16: return pack<Bf16>(numbers, m);
    default:
        std::memset(m.panels, OFFSET, size_t(m.panels_bytes())); // a weight of 0
        pack_coded(m.n, m.k, static_cast<const float*>(numbers), m.groups, m.panels, m.scales());
    }
}

} // namespace transom

extern "C" {

int32_t transom_abi(void) { return TRANSOM_ABI; }

const char* transom_level(void) {
#if defined(TRANSOM_AMX)
    return "amx";
#elif defined(TRANSOM_AVX512)
    return "avx512";
#elif defined(TRANSOM_AVX2)
    return "avx2";
#else
    return "scalar";
#endif
}

int32_t transom_prepare(void) {
#if defined(TRANSOM_AMX) && !defined(TRANSOM_TILES)
    const long request = 0x1023 /* ARCH_REQ_XCOMP_PERM */, tiles = 18 /* XFEATURE_XTILEDATA */;
    return syscall(SYS_arch_prctl, request, tiles) == 0 ? 0 : errno;
#else
    return 0;
#endif
}

TransomMatrix* transom_pack(int32_t format, int64_t n, int64_t k, const void* numbers) {
    TransomMatrix* m = new (std::nothrow) TransomMatrix;
    if (!m) return nullptr;
    const int64_t group = format == TRANSOM_F32 ? F32::group : format == TRANSOM_BF16 ? Bf16::group : 4;
    const int64_t depth = format == TRANSOM_I8 || (TILES && format == TRANSOM_BF16) ? DEPTH_UNIT : group;
    m->format = format, m->n = n, m->k = k;
    m->n_panels = round_up(n, PAIR) / LANES;
    m->groups = round_up(k, depth) / group;
    m->panels = allocate(size_t(m->bytes()));
    if (m->panels) return pack_any(numbers, *m), m;
    delete m;
    return nullptr;
}

void transom_matrix_free(TransomMatrix* m) {
    if (m) std::free(m->panels);
    delete m;
}

int64_t transom_matrix_bytes(const TransomMatrix* m) { return m->bytes(); }

TransomPlan* transom_plan(int32_t format, const TransomOp* ops, int32_t n_ops, const int32_t* widths,
                          const int32_t* formats, int32_t n_buffers, int32_t n_layers, int32_t n_kv_heads,
                          int32_t head_dim, int64_t n_pages) try {
    auto plan = std::make_unique<TransomPlan>();
    plan->format = format, plan->n_layers = n_layers;
    plan->ops.assign(ops, ops + n_ops);
    for (int32_t i = 0; i < n_buffers; i++) {
        const int64_t width = round_up(widths[i], DEPTH_UNIT);
        const int64_t row_bytes =
            formats[i] == TRANSOM_I8 ? Coded::bytes(width) : width * number_bytes(formats[i]);
        plan->buffers.push_back({widths[i], formats[i], row_bytes, 0, nullptr});
    }
    for (const TransomOp& op : plan->ops) // a row for each choice
        if (op.n_active && op.kind != TRANSOM_ROUTE && op.kind != TRANSOM_GROUP && op.store != TRANSOM_ADD)
            plan->buffers[size_t(op.out)].per = op.n_active;
    Cache& cache = plan->cache;
    cache.n_pages = n_pages, cache.n_heads = n_kv_heads, cache.width = round_up(head_dim, DEPTH_UNIT);
    cache.number_bytes = number_bytes(format);
    for (const TransomOp& op : plan->ops) {
        if (op.kind != TRANSOM_CELL) continue;
        plan->n_cells++, plan->buffers[size_t(op.state)].per = 2;
        cache.state_bytes = op.matrix->n / GATES[op.cell] * (op.cell == TRANSOM_LSTM ? 2 : 1) * 4;
    }
    // Not touched here: a page takes memory when it is first written, which also fills it with zeros.
    const size_t bytes = size_t(n_layers * n_pages * cache.layer_bytes() + 64) / 64 * 64;
    plan->pages.reset(static_cast<char*>(std::aligned_alloc(64, bytes)));
    cache.data = plan->pages.get();
    return cache.data ? plan.release() : nullptr;
} catch (const std::bad_alloc&) {
    return nullptr;
}

void transom_plan_free(TransomPlan* plan) { delete plan; }

void transom_copy_page(TransomPlan* plan, int32_t from, int32_t to) {
    for (int32_t layer = 0; layer < plan->n_layers; layer++)
        std::memcpy(plan->cache.at(layer, to, 0, 0), plan->cache.at(layer, from, 0, 0),
                    size_t(plan->cache.layer_bytes()));
}

int32_t transom_run(TransomPlan* plan, const TransomStep* step) try {
    std::lock_guard<std::mutex> mine(the_turn);
    if (!make_room(*plan, *step)) return -1;
    lay_out(*plan, *step);
    threads().run(step->n_threads, [&](int thread) {
        plan->format == TRANSOM_BF16 ? run_in<Bf16>(*plan, *step, thread) : run_in<F32>(*plan, *step, thread);
    });
    return 0;
} catch (const std::exception&) { // no memory, or no thread to be had
    return -1;
}

int32_t transom_choose(const float* logits, int64_t stride, int32_t n, int32_t vocab, const TransomDraw* draws,
                       int32_t* tokens, int32_t n_threads) {
    return each_row(n, n_threads, [&](int64_t row, Room& room) {
        tokens[row] = choose({logits + row * stride, vocab}, draws[row], room);
    });
}

int32_t transom_likeliest(const float* logits, int64_t stride, int32_t n, int32_t vocab, int32_t most,
                          double* normalizers, int32_t* tokens, float* values, int32_t n_threads) {
    return each_row(n, n_threads, [&](int64_t row, Room& room) {
        normalizers[row] = likeliest({logits + row * stride, vocab}, most, tokens + row * most,
                                     values + row * most, room);
    });
}

void* transom_buffer(TransomPlan* plan, int32_t buffer, int32_t n_rows, int64_t* row_bytes) {
    Buffer& found = plan->buffers[size_t(buffer)];
    if (!found.reserve(n_rows)) return nullptr;
    *row_bytes = found.row_bytes;
    return found.memory.get();
}

void* transom_page(TransomPlan* plan, int32_t layer, int32_t page, int32_t head, int32_t side) {
    return plan->cache.at(layer, page, head, side);
}
}
