// The C ABI between transom.native (Python, ctypes) and the kernels. Every level is one shared library with
// exactly these functions. Whoever changes a struct or a meaning here raises TRANSOM_ABI and
// transom/native/abi.py.
#pragma once
#include <cstdint>

#define TRANSOM_ABI 7

extern "C" {

// I8 is of matrices, and of the buffers that are multiplied with them; a plan's own is one of the others. A
// matrix of BF16 is multiplied with rows of F32 too.
enum TransomFormat : int32_t { TRANSOM_F32 = 0, TRANSOM_BF16 = 1, TRANSOM_I8 = 2 };

enum TransomKind : int32_t {
    TRANSOM_EMBED = 0,   // tokens -> residual stream
    TRANSOM_NORM = 1,    // RMS or layer norm, or neither: residual stream -> what a product reads
    TRANSOM_PRODUCT = 2, // a packed matrix, its bias, and what is fused behind it
    TRANSOM_HEADS = 3,   // queries, keys, values: norm, rotation, keys and values into their pages
    TRANSOM_ATTEND = 4,  // queries look into the pages of their row
    TRANSOM_THIN = 5,    // what adapters make of the rows that a product reads: the thin matrices A
    TRANSOM_ENCODE = 6,  // what a product of 8-bit weights reads: rows of the plan's format in 8 bits
    TRANSOM_POOL = 7,    // residual stream of a text -> its mean
    TRANSOM_ROUTE = 8,   // scores of a row's experts -> those that it meets, and their weights
    TRANSOM_GROUP = 9,   // all of them -> for each expert the rows that meet it: a place for each choice
    TRANSOM_GATHER = 10, // rows -> one for each choice, those of an expert side by side
    TRANSOM_EXPERTS = 11, // a product of each expert with its own rows; ADD: weighted, into the stream
    TRANSOM_CELL = 12    // a recurrence: what a product made of each token -> the state after it
};

// What becomes of what an op makes: of a product's sums; of a NORM, WRITE or REPLACE; of a POOL, WRITE or RESULT.
enum TransomStore : int32_t {
    TRANSOM_WRITE = 0, // out = act(sum + bias), in the format of out
    TRANSOM_ADD = 1,   // out += sum + bias: a branch of the residual stream
    TRANSOM_GATE = 2,  // panels alternate gate, up: out = act(gate) * up
    TRANSOM_RESULT = 3, // float32 to the caller's own memory, row after row, nothing behind the last column
    TRANSOM_REPLACE = 4 // out, and in place of what was read: the norm of a sum (post-norm)
};

enum TransomActivation : int32_t {
    TRANSOM_NONE = 0,
    TRANSOM_SILU = 1,
    TRANSOM_GELU = 2,
    TRANSOM_GELU_TANH = 3,
    TRANSOM_RELU = 4,
    TRANSOM_RELU2 = 5,
    TRANSOM_TANH = 6
};

// What HEADS finds in a row: the maps of self-attention, or those of a look into another text, whose queries
// are the looking row's, and whose keys and values are that text's; these are neither normed nor rotated.
enum TransomMaps : int32_t { TRANSOM_ALL = 0, TRANSOM_QUERIES = 1, TRANSOM_KEYS_AND_VALUES = 2 };

// Which recurrence a CELL is. Of 32 units (outputs), the columns of its first gate, of its second and so on: LSTM
// in, forget, new, out; GRU reset, update, new.
enum TransomCell : int32_t { TRANSOM_RNN = 0, TRANSOM_GRU = 1, TRANSOM_LSTM = 2 };

typedef struct TransomMatrix TransomMatrix;
typedef struct TransomPlan TransomPlan;

// What one adapter adds to one linear map: to rows x of which the product makes x W^T, gain x W^T + (x A^T) B^T.
typedef struct {
    const TransomMatrix* A; // (rank, K), or null: it leaves this map alone
    const TransomMatrix* B; // (outputs, rank), scaled, its first output the first of a panel of the product
    const float* gain;      // of B's outputs, whole panels; or null: 1
    int32_t at;             // where its x A^T stands in the buffer of thin products
    int32_t first, step;    // its panels of the product: first, first + step, ...
} TransomPart;

// One op of a plan. Fields that a kind does not name are 0. Buffers are numbered as `transom_plan` was given
// them.
typedef struct {
    int32_t kind;
    int32_t in, out;    // buffers
    int32_t wanted;     // 1: of the rows that are wanted only (NORM, POOL gather them; PRODUCT goes on)
    int32_t store;      // PRODUCT, NORM, POOL
    int32_t activation; // PRODUCT
    // HEADS, ATTEND: whose keys and values; CELL: whose state; NORM: 1 + which piece of `streams` it reads
    int32_t layer;
    // HEADS, ATTEND; window 0: all that came before. POOL: over so many tokens from the first on, 0: all
    int32_t n_heads, n_kv_heads, head_dim, window;
    int32_t bidirectional;       // ATTEND: all of the row is seen, which the step holds whole
    int32_t source;              // HEADS, ATTEND: the pages are those of the row's source, all of which is seen
    int32_t maps;                // HEADS
    int32_t reach;               // ATTEND: of `weight`
    int32_t whole_norm;          // HEADS: norm of all heads of a token together
    int32_t layer_norm;          // NORM: mean and bias too
    int32_t position_offset;     // EMBED: rows left free at the beginning of the table of positions
    int32_t thin;                // PRODUCT: the buffer that THIN wrote
    int32_t n_parts;             // THIN, PRODUCT: linear maps that the product is made of; 0: no adapter
    int32_t n_experts, n_active; // ROUTE to EXPERTS; ENCODE with n_active: so many rows of each token's
    int32_t sigmoid, normalize;  // ROUTE: scores by it, not the softmax; weights over their sum
    int32_t cell;                // CELL: which one
    int32_t state;               // CELL: the buffer of states as its product reads them
    float eps;                   // NORM, HEADS
    float scale;                 // EMBED, NORM, ROUTE: factor of what comes out; ATTEND: factor of the scores
    const TransomMatrix* matrix; // PRODUCT; CELL: what multiplies the state before
    const void* table;           // EMBED: (V, D) in the plan's format
    const void* positions;       // EMBED: (max_len, D) in the plan's format, or null
    const void* segments;        // EMBED: (kinds, D) in the plan's format, or null
    // NORM: (D,), or null: no norm; HEADS: norm of queries (K,) or (H K,), or null; ATTEND: (H, 2 reach), what
    // a key that stands -reach .. reach - 1 behind the query adds to their score, times log2(e); or null
    const float* weight;
    // NORM: (D,) or null; HEADS: norm of keys; PRODUCT: (N,) or null; ROUTE: (E,) or null; CELL: (N,)
    const float* bias;
    const TransomPart* parts;    // THIN, PRODUCT: (adapters, n_parts)
    const TransomMatrix* const* matrices; // EXPERTS: one of each
} TransomOp;

// One row's part of a step: n tokens from place `start` on, whose pages stand in `pages` from `first_page`
// on. adapter: 1 and on, or 0: none.
typedef struct {
    int32_t start, n, first_page, adapter;
} TransomSpan;

// What a row looks into besides: n tokens in pages of their own, (n_layers, ceil(n / 16)), as a cache's. A step
// of the texts themselves, whose pages are numbered from 0, writes them; one of rows that look at them reads.
typedef struct {
    char* pages;
    int64_t n;
} TransomSource;

// What one call of transom_run reads. All pointers are borrowed for the call.
typedef struct {
    int32_t n_tokens, n_spans, n_wanted, n_threads;
    int32_t first_op, n_ops;  // those of the plan that are run
    const int32_t* tokens;    // (n_tokens,), span after span
    const TransomSpan* spans; // (n_spans,)
    const int32_t* pages;     // of all spans
    const int32_t* wanted;    // (n_wanted,): numbers of tokens; where there is a POOL, of each span's first
    const int32_t* segments;  // (n_tokens,): the kind of segment of each; or null: 0
    const TransomSource* sources; // (n_spans,), or null
    const float* cosines;     // (places, K/2), or null where nothing rotates
    const float* sines;
    float* result;  // (n_wanted, N) logits, or what an encoder's head gives
    float* streams; // (n_layers + 1, n_tokens, D) what the layers and the head read, or null
} TransomStep;

// How a row's next token is chosen. temperature 0: the largest. top_k 0, top_p 1, min_p 0: all. uniform: the
// number in [0, 1) that draws it.
typedef struct {
    double uniform, top_p;
    float temperature, min_p;
    int32_t top_k;
} TransomDraw;

int32_t transom_abi(void);
// What this library was compiled for: "scalar", "avx2", "avx512", "amx".
const char* transom_level(void);
// Ask the system for what the level needs of it (AMX: tiles); 0, or an errno.
int32_t transom_prepare(void);
// The best level that this CPU and system run: 0 scalar, 1 avx2 (FMA), 2 avx512 (BF16, VNNI), 3 amx.
// Of the scalar library.
int32_t transom_cpu_level(void);

// A copy of a row-major (n, k) matrix in panels; `format` is that of the copy, and of the numbers given, which
// of I8 are float32.
TransomMatrix* transom_pack(int32_t format, int64_t n, int64_t k, const void* numbers);
void transom_matrix_free(TransomMatrix*);
int64_t transom_matrix_bytes(const TransomMatrix*);

// A plan over buffers of the given widths and formats, with room for n_pages pages of keys and values, or, where
// there are CELLs, of states.
// Null where there is not the memory. Ops and what they point to must outlive the plan.
TransomPlan* transom_plan(int32_t format, const TransomOp* ops, int32_t n_ops, const int32_t* widths,
                          const int32_t* formats, int32_t n_buffers, int32_t n_layers, int32_t n_kv_heads,
                          int32_t head_dim, int64_t n_pages);
void transom_plan_free(TransomPlan*);
// Copy page `from` to page `to` in all layers.
void transom_copy_page(TransomPlan*, int32_t from, int32_t to);
// Run all ops on a step; 0, or -1 where there is not the memory. Calls from several threads take turns.
int32_t transom_run(TransomPlan*, const TransomStep*);
// The next token of each row of logits (n, vocab), `stride` numbers apart; -1 where a row's largest is no
// number, or endless. 0, or -1 where there is not the memory.
int32_t transom_choose(const float* logits, int64_t stride, int32_t n, int32_t vocab, const TransomDraw* draws,
                       int32_t* tokens, int32_t n_threads);
// Of each row the logarithm of the sum of e^x (n,), and its `most` largest with their tokens (n, most), the
// largest first. 0, or -1.
int32_t transom_likeliest(const float* logits, int64_t stride, int32_t n, int32_t vocab, int32_t most,
                          double* normalizers, int32_t* tokens, float* values, int32_t n_threads);
// For tests: a buffer's rows after a run, or before one (room for n rows is made first), and bytes a row.
void* transom_buffer(TransomPlan*, int32_t buffer, int32_t n_rows, int64_t* row_bytes);
// For tests: where a page of keys (side 0) or values (side 1) of a layer's head lies.
void* transom_page(TransomPlan*, int32_t layer, int32_t page, int32_t head, int32_t side);
}
