// The team of threads and the kernels on it, for ThreadSanitizer: `make tsan`.
//
// Several callers at once, each with teams of one to four, with a call that is stopped now and then.  Every answer must have
// the bits of the same call on one thread.  Kernels of the baseline, whose code is that of every instruction set.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "dispatch.hpp"
#include "team.hpp"

namespace {
enum { CALLERS = 4, ROUNDS = 40, THREADS = 4, ROWS = 3001, CLASSES = 67, STEP = 50, BLOCKS = (ROWS + STEP - 1) / STEP };
std::atomic<int> failures{0};

void expect(bool right, const char* what) {
  if (!right) { fprintf(stderr, "wrong: %s\n", what); failures++; }
}

// Softmax cross-entropy with its gradient: what softmax_rows in _core.pyx does, block by block.
struct Rows {
  fx::SoftmaxRows call;
  std::vector<char> scratch;
  ptrdiff_t scratch_size;
  std::vector<fx::BlockOut> out;
};
void rows_block(void* context, ptrdiff_t block, int slot) {
  Rows* const r = (Rows*)context;
  const ptrdiff_t begin = block * STEP, end = begin + STEP < ROWS ? begin + STEP : ROWS;
  char* const aligned = r->scratch.data() + (64 - (size_t)r->scratch.data() % 64);
  fx::table_baseline.softmax[0](&r->call, begin, end, aligned + slot * r->scratch_size, &r->out[block]);
}

struct Answer { double loss = 0; std::vector<float> grad; };

Answer softmax(const std::vector<float>& logits, const std::vector<int64_t>& labels, int threads) {
  Answer answer; answer.grad.assign(ROWS * CLASSES, 7.f);
  Rows r; memset(&r.call, 0, sizeof r.call);
  fx::SoftmaxRows& a = r.call;
  a.inner = 1; a.classes = CLASSES; a.temperature = 1; a.scale = 1.0 / ROWS;
  a.logits = {(char*)logits.data(), CLASSES * 4, 4, 4};
  a.labels = {(char*)labels.data(), 8, 0, 8}; a.label_kind = 3 | 4;
  a.grad = {(char*)answer.grad.data(), CLASSES * 4, 4, 4};
  r.scratch_size = (fx::scratch_of(&a) * 8 + 127) / 64 * 64;
  r.scratch.resize(THREADS * r.scratch_size + 64);
  r.out.assign(BLOCKS, fx::BlockOut{0, 0, 0, -1});
  expect(fx::run_blocks(rows_block, &r, BLOCKS, threads, nullptr) == 0, "a call without poll was stopped");
  for (const fx::BlockOut& b : r.out) { answer.loss += b.loss; expect(b.bad == -1, "bad label"); }
  return answer;
}

// Every block once, on a slot that no other thread has meanwhile; stopped calls do no block twice.
struct Count { std::vector<int> blocks; std::vector<long> slots; };
void count_block(void* context, ptrdiff_t block, int slot) {
  Count* const c = (Count*)context;
  c->blocks[block]++; c->slots[slot]++;
  std::this_thread::sleep_for(std::chrono::milliseconds(block % 16 == 0));
}
std::atomic<int> polls{0};
int stop_sometimes() { return ++polls % 3 == 0; }

void caller(const std::vector<float>& logits, const std::vector<int64_t>& labels, const Answer& expected, int number) {
  for (int round = 0; round < ROUNDS; round++) {
    const int threads = 1 + (round + number) % THREADS;
    const Answer answer = softmax(logits, labels, threads);
    expect(answer.loss == expected.loss && answer.grad == expected.grad, "other bits than on one thread");
    Count c{std::vector<int>(600), std::vector<long>(THREADS)};
    const int stopped = fx::run_blocks(count_block, &c, (ptrdiff_t)c.blocks.size(), threads, round % 8 == 7 ? stop_sometimes : nullptr);
    for (int n : c.blocks) expect(stopped ? n <= 1 : n == 1, "a block was not done once");
  }
}
}  // namespace

int main() {
  std::vector<float> logits(ROWS * CLASSES); std::vector<int64_t> labels(ROWS);
  for (size_t i = 0; i < logits.size(); i++) logits[i] = float((i * 2654435761u >> 8) % 1000) / 100 - 5;
  for (size_t i = 0; i < labels.size(); i++) labels[i] = int64_t(i % CLASSES);
  const Answer expected = softmax(logits, labels, 1);
  expect(expected.loss > 0, "no loss");
  std::vector<std::thread> callers;
  for (int i = 0; i < CALLERS; i++) callers.emplace_back(caller, std::cref(logits), std::cref(labels), std::cref(expected), i);
  for (std::thread& t : callers) t.join();
  printf("%d callers, %d rounds, %d failures\n", (int)CALLERS, (int)ROUNDS, failures.load());
  return failures != 0;
}
