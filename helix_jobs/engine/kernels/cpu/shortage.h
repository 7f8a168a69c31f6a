// Memory that a call asks for and does not get. The caller is C, so no exception may reach it; and one that leaves a
// parallel region ends the process.

#pragma once

#include <atomic>
#include <cstdint>
#include <new>

namespace {

// What a kernel that asks for memory returns; `kernels.py` raises an error for the second.
enum : int32_t { kDone = 0, kNoMemory = 1 };

// Shared by the threads of a call.
class Shortage {
  public:
    // Does a piece of work; false if it did not get its memory.
    template <typename Work>
    bool run(Work work) noexcept {
        try {
            work();
            return true;
        } catch (const std::bad_alloc &) {
            is_met_.store(true, std::memory_order_relaxed);
            return false;
        }
    }
    int32_t status() const { return is_met_.load(std::memory_order_relaxed) ? kNoMemory : kDone; }

  private:
    std::atomic<bool> is_met_{false};
};

// The status of work that asks for memory before its threads start.
template <typename Work>
int32_t status_of(Work work) noexcept {
    Shortage shortage;
    shortage.run(work);
    return shortage.status();
}

}  // namespace
