// What the tile instructions of src/amx.h do, over memory: so that a CPU without them runs the level's kernels.
struct Tiles {
    int rows[8], bytes[8];
    unsigned char data[8][16][64];
};
inline thread_local Tiles tiles;

static inline void shape_tiles(const Shape& shape) {
    for (int t = 0; t < 8; t++) tiles.rows[t] = shape.rows[t], tiles.bytes[t] = shape.row_bytes[t];
}

static inline void release() {}

template <int t> static inline void zero() { std::memset(tiles.data[t], 0, sizeof tiles.data[t]); }

template <int t> static inline void load(const void* from, size_t stride) {
    zero<t>();
    for (int r = 0; r < tiles.rows[t]; r++)
        std::memcpy(tiles.data[t][r], static_cast<const char*>(from) + r * stride, size_t(tiles.bytes[t]));
}

template <int t> static inline void store(void* to, size_t stride) {
    for (int r = 0; r < tiles.rows[t]; r++)
        std::memcpy(static_cast<char*>(to) + r * stride, tiles.data[t][r], size_t(tiles.bytes[t]));
}

// Each sum of tile `s` += products of 4 bytes of a row of `a` and of `b`, which are n numbers each.
template <int s, int a, int b, class Sum, class Left, class Right, int n, class Times>
static inline void multiply(const Times& times) {
    if (tiles.bytes[a] != 4 * tiles.rows[b]) __builtin_trap();
    for (int row = 0; row < tiles.rows[s]; row++)
        for (int k = 0; k < tiles.rows[b]; k++)
            for (int column = 0; column < 16; column++) {
                Sum sum;
                Left left[n];
                Right right[n];
                std::memcpy(&sum, tiles.data[s][row] + 4 * column, 4);
                std::memcpy(left, tiles.data[a][row] + 4 * k, 4);
                std::memcpy(right, tiles.data[b][k] + 4 * column, 4);
                for (int i = 0; i < n; i++) sum += times(left[i], right[i]);
                std::memcpy(tiles.data[s][row] + 4 * column, &sum, 4);
            }
}

template <int s, int a, int b> static inline void dot() {
    multiply<s, a, b, float, bf16, bf16, 2>([](bf16 x, bf16 w) { return widen(x) * widen(w); });
}

template <int s, int a, int b> static inline void dot_bytes() {
    multiply<s, a, b, int32_t, int8_t, uint8_t, 4>([](int8_t x, uint8_t w) { return int32_t(x) * w; });
}
