// Which level this CPU and system run. Part of the scalar library alone, so that asking needs no level.
#include "transom.h"

#if defined(__x86_64__)
#include <cpuid.h>

namespace {

struct Words {
    unsigned a = 0, b = 0, c = 0, d = 0;
};

Words ask(unsigned leaf, unsigned part) {
    Words w;
    __get_cpuid_count(leaf, part, &w.a, &w.b, &w.c, &w.d);
    return w;
}

bool has(unsigned word, int bit) { return word >> bit & 1; }

// What registers the system saves: 0x6 SSE and AVX, 0xe0 AVX-512, 0x60000 tiles.
unsigned saved() {
    if (!has(ask(1, 0).c, 27)) return 0;
    unsigned low, high;
    asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

} // namespace

extern "C" int32_t transom_cpu_level(void) {
    const Words one = ask(1, 0), seven = ask(7, 0), more = ask(7, 1);
    const bool fused = has(one.c, 12) && has(one.c, 29) && has(seven.b, 8); // FMA, F16C, BMI2
    if (!fused || !has(seven.b, 5) || (saved() & 0x6) != 0x6) return 0;     // AVX2
    const bool wide =
        has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) && has(seven.b, 31); // F, DQ, BW, VL
    const bool dots = has(seven.c, 11) && has(more.a, 5);                             // VNNI, BF16
    if (!wide || !dots || (saved() & 0xe6) != 0xe6) return 1;
    const bool tiles = has(seven.d, 22) && has(seven.d, 24) && has(seven.d, 25); // AMX-BF16, -TILE, -INT8
    return tiles && (saved() & 0x60000) == 0x60000 ? 3 : 2;
}
#else
extern "C" int32_t transom_cpu_level(void) { return 0; }
#endif
