// The threads of one process: whoever calls `run` works with them, they wait for it, one region at a time.
//
// A region is a whole step, some 200 ops, each cut into pieces that threads take (`Pieces`). Nobody waits for
// a thread, only for pieces: one that a busy machine does not let run holds nothing up until it holds a
// piece. Waiting is by spinning, since waking a thread takes as long as an op. The spin is bounded, then the
// thread sleeps (a futex): a core that another program needs is not burnt.
#pragma once
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace transom {

// Pauses before sleeping. One is about 140 cycles on Intel since Skylake and 40 to 65 on AMD.
constexpr int SPINS = 1000;

static inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Until `value` is no longer `old`.
static inline void wait_for_change(const std::atomic<uint32_t>& value, uint32_t old) {
    for (int i = 0; i < SPINS; i++) {
        if (value.load(std::memory_order_acquire) != old) return;
        pause();
    }
    while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

// The pieces of one op.
class alignas(64) Pieces {
  public:
    void reset() { next_.store(0, std::memory_order_relaxed), done_.store(0, std::memory_order_relaxed); }

    // Do pieces 0 .. n - 1 with whoever else calls this; returns when all are done.
    template <class Work> void share(int64_t n, const Work& work) {
        uint32_t mine = 0;
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < n; mine++) work(i);
        if (mine && done_.fetch_add(mine, std::memory_order_acq_rel) + mine == n) done_.notify_all();
        for (uint32_t done; (done = done_.load(std::memory_order_acquire)) != n;)
            wait_for_change(done_, done);
    }

  private:
    std::atomic<int64_t> next_{0};
    std::atomic<uint32_t> done_{0};
};

// Made once and never ended: at the end of the process they sleep, and the system takes them.
class Threads {
  public:
    // Call work(thread) in up to n threads, 0 being the caller's own, which must do all that no other does;
    // returns when nobody is in it any more.
    template <class Work> void run(int n, const Work& work) {
        std::lock_guard<std::mutex> turn(turn_);
        grow(n - 1);
        call_ = [](const void* w, int thread) { (*static_cast<const Work*>(w))(thread); };
        work_ = &work;
        n_ = n;
        inside_.store(OPEN, std::memory_order_release);
        start_.fetch_add(1, std::memory_order_acq_rel);
        start_.notify_all();
        work(0);
        inside_.fetch_and(~OPEN, std::memory_order_acq_rel); // who has not come by now need not come
        for (uint32_t inside; (inside = inside_.load(std::memory_order_acquire)) != 0;)
            wait_for_change(inside_, inside);
    }

  private:
    static constexpr uint32_t OPEN = 1u << 31;

    void grow(int n) {
        while (int(workers_.size()) < n) {
            int thread = int(workers_.size()) + 1;
            workers_.emplace_back([this, thread, seen = start_.load()] { loop(thread, seen); });
        }
    }

    void loop(int thread, uint32_t seen) {
        for (;;) {
            wait_for_change(start_, seen);
            seen = start_.load(std::memory_order_acquire);
            if (!enter()) continue;
            if (thread < n_) call_(work_, thread);
            inside_.fetch_sub(1, std::memory_order_acq_rel);
            inside_.notify_all();
        }
    }

    bool enter() {
        uint32_t inside = inside_.load(std::memory_order_acquire);
        while (inside & OPEN)
            if (inside_.compare_exchange_weak(inside, inside + 1, std::memory_order_acq_rel)) return true;
        return false;
    }

    std::mutex turn_;
    std::vector<std::thread> workers_;
    void (*call_)(const void*, int) = nullptr;
    const void* work_ = nullptr;
    int n_ = 1;
    alignas(64) std::atomic<uint32_t> start_{0};
    alignas(64) std::atomic<uint32_t> inside_{
        0}; // how many workers are in the region, and whether more may come
};

} // namespace transom
