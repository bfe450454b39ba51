// A small team of parked threads that takes blocks from an atomic counter.
//
// Not OpenMP: its closing barrier waits for workers that have claimed nothing, its threads spin beside BLAS threads after a
// region (a product, a kernel and a product took 5 times their sum), and a child of fork hangs in it.  Here workers sleep
// when idle, the caller takes blocks itself and waits only for blocks that are being worked on, a second caller at the same
// time works alone, and a forked child starts a team of its own.  The price: waking a worker costs some 50 us, so the doors
// keep work below a million numbers on the calling thread.
#pragma once
#include <stddef.h>

namespace fx {
typedef void (*block_fn)(void* context, ptrdiff_t block, int slot);   // slot < threads: which scratch may be used
typedef int (*poll_fn)(void);                                         // on the caller, some ten times a second; nonzero: stop

// Run blocks [0, blocks) on at most `threads` threads; returns what `poll` returned if that was not 0.
int run_blocks(block_fn, void* context, ptrdiff_t blocks, int threads, poll_fn poll);
// OMP_NUM_THREADS, CPU affinity and cgroup quota, whichever is least.
int default_threads();
bool has_threads();
}  // namespace fx
