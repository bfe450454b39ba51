#include "team.hpp"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <chrono>
#ifndef FX_NO_THREADS
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <signal.h>
#define FX_POSIX 1
#endif
#ifdef __linux__
#include <sched.h>
#endif

namespace fx {
namespace {
typedef std::chrono::steady_clock Clock;

struct Job {
  block_fn run;
  void* context;
  ptrdiff_t blocks;
  std::atomic<ptrdiff_t> next{0};
  int busy = 0;  // workers on it; under the team's mutex
  Job(block_fn f, void* c, ptrdiff_t n) : run(f), context(c), blocks(n) {}
};

// The caller's share: blocks until none is left, and a look at the signals every 0.1 s.  By time, not by count: taking the
// GIL from a busy Python thread costs 5 ms.
int take_blocks(Job& job, poll_fn poll) {
  Clock::time_point last = Clock::now();
  for (;;) {
    const ptrdiff_t block = job.next.fetch_add(1, std::memory_order_relaxed);
    if (block >= job.blocks) return 0;
    job.run(job.context, block, 0);
    if (poll) {
      const Clock::time_point now = Clock::now();
      if (now - last > std::chrono::milliseconds(100)) {
        last = now;
        if (const int stop = poll()) { job.next.store(job.blocks, std::memory_order_relaxed); return stop; }
      }
    }
  }
}

#ifndef FX_NO_THREADS
struct Team {
  std::mutex mutex;
  std::condition_variable wake, done;
  int workers = 0, wanted = 0, working = 0;
  unsigned long generation = 0;
  Job* job = nullptr;
};
// Never destroyed: workers sleep on it until the process ends.
Team* team = new Team;

void work(Team* t) {
  unsigned long seen = 0;
  std::unique_lock<std::mutex> lock(t->mutex);
  for (;;) {
    t->wake.wait(lock, [&] { return t->job && t->generation != seen && t->working < t->wanted; });
    seen = t->generation;
    Job* const job = t->job;
    const int slot = ++t->working;
    job->busy++;
    lock.unlock();
    for (;;) {
      const ptrdiff_t block = job->next.fetch_add(1, std::memory_order_relaxed);
      if (block >= job->blocks) break;
      job->run(job->context, block, slot);
    }
    lock.lock();
    if (--job->busy == 0) t->done.notify_all();  // all: callers whose last worker is still at it wait here too
  }
}

// More workers, as many as can be had.  They leave every signal to the caller's threads.
void hire(Team* t, int count) {
#ifdef FX_POSIX
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
#endif
  try {
    while (t->workers < count) { std::thread(work, t).detach(); t->workers++; }
  } catch (const std::exception&) {                            // no more threads allowed, or no memory for one
  }
#ifdef FX_POSIX
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
#endif
}

#ifdef FX_POSIX
// A forked child has none of its parent's threads, and the mutex may be held by one of them: start anew.
void in_child() { team = new Team; }
const int registered = pthread_atfork(nullptr, nullptr, in_child);
#endif
#endif

int number_in(const char* path) {
  int value = 0;
  if (FILE* f = fopen(path, "r")) { if (fscanf(f, "%d", &value) != 1) value = 0; fclose(f); }
  return value;
}

// CPUs that the cgroup's quota pays for, rounded up; 0 if there is no quota.
int cgroup_cpus() {
#ifdef __linux__
  char line[512], path[640]; int least = 0;
  if (FILE* f = fopen("/proc/self/cgroup", "r")) {
    while (fgets(line, sizeof line, f)) {
      if (strncmp(line, "0::", 3) != 0) continue;
      char* group = line + 3;
      group[strcspn(group, "\n")] = 0;
      for (;;) {                                              // a quota of any ancestor counts
        snprintf(path, sizeof path, "/sys/fs/cgroup%s/cpu.max", strcmp(group, "/") ? group : "");
        if (FILE* q = fopen(path, "r")) {
          long long quota, period;
          if (fscanf(q, "%lld %lld", &quota, &period) == 2 && quota > 0 && period > 0) {
            const int cpus = (int)((quota + period - 1) / period);
            if (!least || cpus < least) least = cpus;
          }
          fclose(q);
        }
        char* slash = strrchr(group, '/');
        if (!slash || !*group || !strcmp(group, "/")) break;
        *slash = 0;
      }
    }
    fclose(f);
  }
  const int quota = number_in("/sys/fs/cgroup/cpu/cpu.cfs_quota_us"), period = number_in("/sys/fs/cgroup/cpu/cpu.cfs_period_us");
  if (quota > 0 && period > 0) { const int cpus = (quota + period - 1) / period; if (!least || cpus < least) least = cpus; }
  return least;
#else
  return 0;
#endif
}
}  // namespace

int run_blocks(block_fn run, void* context, ptrdiff_t blocks, int threads, poll_fn poll) {
  Job job(run, context, blocks);
#ifndef FX_NO_THREADS
  if (threads > blocks) threads = (int)blocks;
  if (threads > 1) {
    Team* const t = team;
    std::unique_lock<std::mutex> lock(t->mutex);
    if (!t->job) {
      if (t->workers < threads - 1) hire(t, threads - 1);
      t->job = &job; t->generation++; t->working = 0; t->wanted = threads - 1;
      lock.unlock();
      t->wake.notify_all();
      const int stop = take_blocks(job, poll);
      lock.lock();
      t->job = nullptr;                                        // nobody joins from here on
      t->done.wait(lock, [&] { return job.busy == 0; });
      return stop;
    }
  }
#endif
  return take_blocks(job, poll);
}

int default_threads() {
  int n = 1;
#ifndef FX_NO_THREADS
#ifdef __linux__
  cpu_set_t set;
  CPU_ZERO(&set);
  n = sched_getaffinity(0, sizeof set, &set) == 0 ? CPU_COUNT(&set) : (int)std::thread::hardware_concurrency();
#else
  n = (int)std::thread::hardware_concurrency();
#endif
  static const int quota = cgroup_cpus();
  if (quota && quota < n) n = quota;
  static const int wish = getenv("OMP_NUM_THREADS") ? atoi(getenv("OMP_NUM_THREADS")) : 0;
  if (wish > 0 && wish < n) n = wish;
#endif
  return n > 0 ? n : 1;
}

bool has_threads() {
#ifdef FX_NO_THREADS
  return false;
#else
  return true;
#endif
}
}  // namespace fx
