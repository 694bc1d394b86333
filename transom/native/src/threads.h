// The threads of one process: whoever calls `run` works with them, they wait for it, one region at a time.
//
// A region is a whole step, some 200 ops with a barrier behind each, so waiting is by spinning: waking a
// thread takes as long as an op. The spin is bounded, then the thread sleeps (a futex): a core that another
// program needs is not burnt, and a step beside a busy program is slow by that program's share, not by its
// time slices.
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

class Barrier {
  public:
    void reset(int n) { size_ = n, left_.store(n, std::memory_order_relaxed); }

    void wait() {
        if (size_ == 1) return;
        uint32_t round = round_.load(std::memory_order_acquire);
        if (left_.fetch_sub(1, std::memory_order_acq_rel) == 1) {
            left_.store(size_, std::memory_order_relaxed);
            round_.fetch_add(1, std::memory_order_acq_rel);
            round_.notify_all();
        } else {
            wait_for_change(round_, round);
        }
    }

  private:
    int size_ = 1;
    alignas(64) std::atomic<int> left_{1};
    alignas(64) std::atomic<uint32_t> round_{0};
};

// Made once and never ended: at the end of the process they sleep, and the system takes them.
class Threads {
  public:
    // Call work(thread) in n threads, 0 being the caller's own; returns when all have returned.
    template <class Work> void run(int n, const Work& work) {
        std::lock_guard<std::mutex> turn(turn_);
        grow(n - 1);
        call_ = [](const void* w, int thread) { (*static_cast<const Work*>(w))(thread); };
        work_ = &work;
        n_ = n;
        barrier.reset(n);
        left_.store(uint32_t(workers_.size()), std::memory_order_relaxed);
        start_.fetch_add(1, std::memory_order_acq_rel);
        start_.notify_all();
        work(0);
        for (uint32_t left; (left = left_.load(std::memory_order_acquire)) != 0;)
            wait_for_change(left_, left);
    }

    Barrier barrier;

  private:
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
            if (thread < n_) call_(work_, thread);
            left_.fetch_sub(1, std::memory_order_acq_rel);
            left_.notify_one();
        }
    }

    std::mutex turn_;
    std::vector<std::thread> workers_;
    void (*call_)(const void*, int) = nullptr;
    const void* work_ = nullptr;
    int n_ = 1;
    alignas(64) std::atomic<uint32_t> start_{0};
    alignas(64) std::atomic<uint32_t> left_{0};
};

} // namespace transom
