// Threads that go through many short pieces of work together, a few microseconds each.
//
// The parked team (team.hpp) takes 50 us to wake, as long as a whole piece: so it is woken once for a run of batches, and
// in between the helpers watch one word: how many items the piece has, and how many are claimed.  Raising it claims one.  The caller never waits for a helper that has claimed nothing, so a helper that
// is not scheduled, or was never hired, costs nothing but its help.
#pragma once
#include <stddef.h>
#include <stdint.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace fx {
typedef void (*item_fn)(void* context, ptrdiff_t item, int slot);

inline double seconds_now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

class Crew {
  std::atomic<uint64_t> word_{0};
  std::atomic<ptrdiff_t> done_{0};
  std::atomic<bool> over_{false};
  item_fn run_;
  void* context_;

  // A piece takes microseconds; whoever waits longer waits for a thread that wants this core.
  static void pause(int spins) {
    if (spins > 500) std::this_thread::yield();
#if defined(__x86_64__)
    else __builtin_ia32_pause();
#endif
  }
  bool work(int slot) {
    uint64_t word = word_.load(std::memory_order_acquire);
    for (;;) {
      const uint32_t next = (uint32_t)word;
      if (next >= (uint32_t)(word >> 32)) return false;
      if (word_.compare_exchange_weak(word, word + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
        run_(context_, (ptrdiff_t)next, slot);
        done_.fetch_add(1, std::memory_order_release);
        return true;
      }
    }
  }

 public:
  Crew(item_fn run, void* context) : run_(run), context_(context) {}
  // The caller: all items of a piece, with whoever helps.
  void all(ptrdiff_t items) {
    if (items == 1) { run_(context_, 0, 0); return; }
    done_.store(0, std::memory_order_relaxed);
    word_.store((uint64_t)items << 32, std::memory_order_release);
    while (work(0)) {}
    for (int spins = 0; done_.load(std::memory_order_acquire) < items; spins++) pause(spins);
  }
  void end() { over_.store(true, std::memory_order_release); }
  bool over() const { return over_.load(std::memory_order_acquire); }
  // Everyone else: items of whatever piece there is, until the end.
  void help(int slot) { for (int spins = 0; !over(); ) { if (work(slot)) spins = 0; else pause(spins++); } }
};
}  // namespace fx
