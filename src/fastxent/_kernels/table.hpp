// What every instruction set offers to the doors (_core.pyx, _dense.pyx, _step.pyx): plain structs and a table of functions.
// Nothing here emits code: the translation units of the instruction sets share no symbol but their table.
//
// Precision: storage float, double, float16 or bfloat16; arithmetic float (double for double); sums over rows double.
// Strides are in bytes and may be 0 or negative.  A row is a pair (outer, inner); row i is (i / inner, i % inner).
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace fx {

enum Storage { FLOAT = 0, DOUBLE = 1, HALF = 2, BFLOAT = 3 };   // of logits, gradients and Hessians

// Members of the family L = f(p_y): cross-entropy l; focal (1 - p)^a l; a l + b (1 - p); (1 - p^a) / a.
enum Family { CROSS_ENTROPY = 0, FOCAL = 1, LINEAR = 2, POWER = 3 };

// Divergences of a softmax from a teacher's distribution.
enum Divergence { ENTROPY = 0, FORWARD_KL = 1, REVERSE_KL = 2, JENSEN_SHANNON = 3 };

// Losses on logits, element by element; the last two with parameters a, b, c.
enum Binary { BINARY_CROSS_ENTROPY = 0, BINARY_FOCAL = 1, ASYMMETRIC = 2 };

struct Matrix {                     // rows and classes somewhere in memory; data null: absent
  char* data;
  ptrdiff_t outer, cls, inner;
};

struct SoftmaxRows {
  int storage, family;
  double a, b;                      // parameters of the family's member
  int divergence;                   // `family` is one of Divergence
  int teacher_logits;               // divergences: `soft` holds logits, not probabilities
  ptrdiff_t inner, classes;
  Matrix logits;
  Matrix labels; int label_kind;    // log2(itemsize) | 4 if signed; cls unused
  Matrix soft;                      // soft targets in the dtype of the arithmetic
  Matrix weight;                    // one per row, in the dtype of the arithmetic
  const void *class_weight, *bias;  // (classes,) in the dtype of the arithmetic, or null
  double smoothing; int exclude;    // smoothing over all classes, or over all but the target
  int has_ignore; int64_t ignore;
  double z_loss, temperature, scale;
  Matrix loss, lse, grad, hess;     // outputs; loss and lse in the dtype of the arithmetic
  int stream;                       // the gradient is larger than the cache and lies apart from the logits
  Matrix x;                         // Hessian-vector product only: grad = H x
};

// (damping + H) out = rhs row by row, H the sum of the terms' Hessians.  Terms of one group have one softmax.
struct Solve {
  const SoftmaxRows* terms; const int* groups;
  int n_terms, n_groups, storage;   // storage of `out`
  ptrdiff_t inner, classes;
  Matrix damping, rhs, out;         // damping and rhs are double
};

// Some columns of every row, from class `start` on.  States of all rows, double; the rest for the gradient.
struct Shard {
  int storage; ptrdiff_t classes;
  Matrix logits; const int64_t* labels; int64_t start;
  double *m, *r, *t, *Z;
  const double *pull, *weight;      // 2 z_loss lse; the row's weight over the denominator
  double spread, share;             // smoothing per class, 0 without; what smoothing leaves of the label
  Matrix grad;
};

// Region losses: (regions, outer, classes, inner).
enum Chance { SIGMOID = 0, SOFTMAX = 1, PROBABILITY = 2 };   // how values become probabilities
struct Box { Matrix at; ptrdiff_t region; };   // region: stride of the first axis
struct Region {
  int storage, activation, soft_labels, per_class;
  ptrdiff_t inner, classes;
  double alpha, beta;
  Box values, targets, weight, grad;
  const double* slopes;             // two per region, or per class of it
};

struct BlockOut { double loss, total; int64_t counted, bad; };   // bad: first row with a bad target, or -1

struct Elements {                   // (rows, cols), the last axis of values, targets, grad and hess contiguous
  int storage, family;
  double a, b, c;                   // parameters of the family's member
  ptrdiff_t cols;
  Matrix values, targets;           // outer: stride of a row; the rest unused
  Matrix weight, pos_weight;        // outer, cls: strides of rows and columns
  double smoothing, scale;
  Matrix loss, grad, hess;
  int stream;                       // the gradient is larger than the cache and lies apart from the values
};

struct ElementsOut { double loss, total; int64_t bad_target, bad_value; };

struct Tall {                       // a block of rows of X beside few outputs; strides in numbers, one of them 1
  ptrdiff_t rows, d, K;
  const void* X; ptrdiff_t row, col;
  const void *W, *bias;             // (d, width) and (width,), width = tall_width(K), zeros behind K
  void* Z;                          // (rows, K), and a vector of room behind
  double* sums;                     // (d, width): X' Z is added; nothing is promised of the columns behind K
};

// A block of rows of a linear layer with many classes; strides in numbers, one of each pair 1.
struct Panel {
  ptrdiff_t rows, d, K;
  const void* X; ptrdiff_t row, col;
  void* panels;                     // of X: rows numbers for each column, of whole panels
  const void* W; ptrdiff_t row_W, col_W;
  const void* bias;                 // (K,), or null
  void* Z;                          // (rows, K): logits, then their gradient
  void* dW; int first;              // or null; laid out as W; the first block's gradient replaces what is there, others are added
  double* db;                       // (K,), added to, or null
};

// Margins of a booster, and the derivatives it wants: float, whatever the margins are.
struct Boost {
  ptrdiff_t classes;
  Matrix margins, grad, hess;       // outer: stride of a row; cls: of a class
  const char* labels; ptrdiff_t label_stride; int label_kind;     // log2(itemsize) | 4 if signed; 8 float, 9 double
  const char* weight; ptrdiff_t weight_stride; int weight_double;  // or null; float or double
  const void* class_weight;         // in the dtype of the margins, one after another, or null
  double factor, floor;             // curvature: weight max(factor p (1 - p), floor)
  int stream;                       // gradient and curvature are larger than the cache
  int* odd;                         // set where a row has a limit, a label that is no class, or a weight that is negative or not finite
};

typedef void (*rows_fn)(const SoftmaxRows*, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut*);
typedef void (*solve_fn)(const Solve*, ptrdiff_t begin, ptrdiff_t end, char* scratch);
typedef void (*shard_fn)(const Shard*, ptrdiff_t begin, ptrdiff_t end);
typedef void (*region_fn)(const Region*, ptrdiff_t region, ptrdiff_t begin, ptrdiff_t end, double* sums, char* scratch);
typedef void (*elements_fn)(const Elements*, ptrdiff_t begin, ptrdiff_t end, ElementsOut*);

// One layer of a perceptron, and one mini-batch of it, for `network_piece` (network.hpp).
struct NetLayer {
  ptrdiff_t in, out, band;          // weights (in, out), row after row; rows of a band
  char *W, *b, *mW, *mb, *vW, *vb;  // weights and moments (v null where the optimizer has one)
  char *gW, *gb;                    // gradients; null where the update follows at once
  char *a, *slope, *delta;          // panels; slope null where the activation needs none
  uint64_t drop_at;                 // place in the stream of the first number of this batch's mask
};
enum Activation { IDENTITY = 0, LOGISTIC = 1, TANH = 2, RELU = 3, GELU = 4, SILU = 5 };
enum Optimizer { SGD = 0, NESTEROV = 1, ADAM = 2, ADAM_FIRST = 3 };
// x = clip g + shrink w; u = b1 m - c x (SGD), or m = b1 m + x, v = b2 v + x^2, w = keep w - c m / (sqrt(v) + e)
struct Rule { int kind; double b1, b2, c, e, shrink, keep, clip; };
struct Network {
  int layers, activation;
  NetLayer* layer;
  ptrdiff_t capacity, count;        // rows that the panels hold, rows of this batch
  const ptrdiff_t *rows, *next_rows; ptrdiff_t next_count;
  const char* X; ptrdiff_t row_stride, col_stride;         // dense; or the values of CSR rows
  const char *indptr, *indices; int wide_indices;          // null for dense X
  char *x, *next_x, *logits;        // panels of this batch and the next; (rows, outputs)
  uint64_t drop_seed, drop_below; double drop_scale;       // dropped where the stream's 53 bits are less
  ptrdiff_t head;                                          // rows of an item of the logits
  double penalty;                                          // on the coefficients in NORM
  Rule rule;
};
// Pieces of a step, each cut into items: rows NET_ROWS at a time, columns NET_COLS at a time (row blocks run fastest);
// LOGITS and LOGIT_DELTA by `head` rows, GATHER by NET_GATHER; the last three by bands of rows of W, the intercepts being the
// last item.  `sum` is filled by NORM (squares of the penalized gradient) and UPDATE (squares of the coefficients before it).
enum Piece { GATHER = 0, FORWARD = 1, LOGITS = 2, LOGIT_DELTA = 3, BACKWARD = 4, SPARSE_GRADIENT = 5, GRADIENT = 6, NORM = 7, UPDATE = 8 };
enum { NET_ROWS = 128, NET_COLS = 64, NET_GATHER = 16, NET_PACK = 1 << 15 };
// NET_PACK: bytes of scratch of the products; GRADIENT and UPDATE want those of a band where gW is null.
typedef void (*piece_fn)(const Network*, int piece, int layer, ptrdiff_t item, char* scratch, double* sum);
typedef void (*tall_fn)(const Tall*);
typedef void (*panel_gather_fn)(const Panel*, ptrdiff_t begin, ptrdiff_t end);
typedef void (*panel_logits_fn)(const Panel*, ptrdiff_t begin, ptrdiff_t end, char* scratch);
typedef void (*panel_grads_fn)(const Panel*, ptrdiff_t begin, ptrdiff_t end, void* part, int fresh, char* scratch);
typedef void (*panel_sum_fn)(const Panel*, const void* parts, ptrdiff_t slices, ptrdiff_t begin, ptrdiff_t end, void* dX);
typedef void (*boost_fn)(const Boost*, ptrdiff_t begin, ptrdiff_t end, char* scratch);

struct Table {
  const char* name;
  rows_fn softmax[2], hvp[2], totals[2], divergence[2], upper[2];   // by arithmetic: float, double
  solve_fn solve[2];
  shard_fn partial[2], partial_grad[2];
  region_fn region[2], region_grad[2];
  elements_fn sigmoid[2], binary[2], weights[2];
  piece_fn network[2];
  tall_fn tall_logits[2], tall_sums[2];
  boost_fn boost[2];
  panel_gather_fn panel_gather[2];
  panel_logits_fn panel_logits[2];
  panel_grads_fn panel_grads[2];
  panel_sum_fn panel_sum[2];
  int panel_width[2];               // columns of a panel
  int lanes[2];                     // of a vector
};

// Classes that are not contiguous, and few ones where no quicker kernel fits, go through blocks of transposed rows: lanes are rows.
// Rows of up to MOST_BATCHED contiguous classes are taken as many at once as a vector has lanes; with a gradient, which goes from
// memory to memory, up to MOST_BATCHED_GRADIENTS.
enum { VECTOR = 16, FEW = 128, LANES = 32, MOST_LANES = 256, MOST_BATCHED = 1024, MOST_BATCHED_GRADIENTS = 192 };
// Many classes that are not contiguous: from how many on, how many of them at once, for how many rows, and numbers of scratch.
enum { SWEPT_FROM = 200, SWEPT = 16, SWEPT_LANES = 2048, SWEPT_SCRATCH = 20 * (SWEPT_LANES + 2 * 256) };

static inline bool in_lanes(const SoftmaxRows* a) {
  const ptrdiff_t item = a->storage == DOUBLE ? 8 : a->storage == FLOAT ? 4 : 2, wide = a->storage == DOUBLE ? 8 : 4;
  return a->classes <= FEW || a->logits.cls != item || (a->grad.data && a->grad.cls != item) ||
         (a->hess.data && a->hess.cls != item) || (a->soft.data && a->soft.cls != wide);
}
// Many classes, each contiguous over the rows: labels and gradients alone are swept twice.
static inline bool in_sweeps(const SoftmaxRows* a) {
  const ptrdiff_t item = a->storage == DOUBLE ? 8 : a->storage == FLOAT ? 4 : 2;
  return a->classes >= SWEPT_FROM && a->inner >= 8 * LANES && a->logits.inner == item && a->logits.cls != item && a->labels.data &&
         a->smoothing == 0 && !a->bias && a->temperature == 1 && !a->hess.data && (!a->grad.data || a->grad.inner == item);
}
// Rows per group: as many as keep the scratch in the second-level cache, for then each class is read in longer pieces; where one
// can be found, a number that divides the inner axis, for then no group straddles two pieces of memory.
static inline ptrdiff_t lanes_of(const SoftmaxRows* a) {
  if (a->inner < 2 * LANES) return LANES;
  ptrdiff_t most = (a->storage == DOUBLE ? 65536 : 131072) / a->classes, lanes = LANES;
  if (most > MOST_LANES) most = MOST_LANES;
  if (in_sweeps(a)) {                               // a group is a millisecond of work; longer ones only for longer pieces
    most = (1 << 20) / a->classes;
    if (most < 8 * LANES) most = (1 << 24) / a->classes < 8 * LANES ? (1 << 24) / a->classes : 8 * LANES;
    if (most > SWEPT_LANES) most = SWEPT_LANES;
    if (most < LANES) most = LANES;
  }
  if (most > a->inner) most = a->inner;
  while (2 * lanes <= most) lanes *= 2;
  for (ptrdiff_t n = most / VECTOR * VECTOR; n > lanes; n -= VECTOR) if (a->inner % n == 0) return n;
  for (ptrdiff_t n = lanes; n > lanes / 2 && n >= LANES; n -= VECTOR) if (a->inner % n == 0) return n;
  return lanes;
}
// From class to class of such a group in the scratch: not a power of two, whose columns would share a few sets of the cache.
static inline ptrdiff_t lane_stride(ptrdiff_t lanes) { return lanes > LANES && (lanes & (lanes - 1)) == 0 ? lanes + VECTOR : lanes; }
// Rows per block of work, about `numbers` in all: whole groups, and whole pieces of the inner axis where they are small.
static inline ptrdiff_t rows_per_block(const SoftmaxRows* a, ptrdiff_t numbers) {
  const ptrdiff_t group = a->inner > 1 && in_lanes(a) ? lanes_of(a) : (ptrdiff_t)LANES;
  ptrdiff_t step = numbers / a->classes;
  if (step < 1) step = 1;
  if (group > LANES || step >= LANES) step = (step + group - 1) / group * group;
  return a->inner > 1 && step >= a->inner ? step / a->inner * a->inner : step;
}
// Numbers of scratch that a kernel wants per thread. Long rows (wide.hpp): up to three of them and two times Leaving::SPARE bytes.
static inline ptrdiff_t scratch_of(const SoftmaxRows* a) {
  if (in_sweeps(a)) return SWEPT_SCRATCH + 4 * LANES * a->classes;
  return in_lanes(a) ? 4 * lane_stride(lanes_of(a)) * a->classes : a->classes <= MOST_BATCHED ? LANES * a->classes : 6 * (a->classes + 8);
}
// In double, up to eight rows at once: four arrays for a term, six for the system, two for each softmax, and the small system.
static inline ptrdiff_t scratch_of(const Solve* a) {
  const ptrdiff_t n = 2 * a->n_groups;
  return (in_lanes(a->terms) ? 8 * a->classes : a->classes + 8) * (10 + n) + 8 * n * (2 * n + 4);
}
// Rows per group: columns in long pieces where classes are columns, register tiles where they stand in rows.
enum { BOOST_ROWS = 256 };
static inline ptrdiff_t boost_rows(const Boost* a) { return a->grad.outer == 4 && a->classes <= FEW ? (int)BOOST_ROWS : (int)LANES; }
static inline ptrdiff_t scratch_of(const Boost* a) { return (8 + 3 * 4) * boost_rows(a) * a->classes + 64; }   // bytes
static inline ptrdiff_t scratch_of(const Region* a) { return 8 * (3 + 7 * a->classes); }   // the sums of one region stay where there are no classes

// Outputs that the products for few outputs take at most, and the numbers from one row of their W to the next.
static inline ptrdiff_t tall_most(int lanes) { return 4 * lanes; }
static inline ptrdiff_t tall_width(ptrdiff_t K, int lanes) { return K == 1 ? 1 : (K + lanes - 1) / lanes * lanes; }

// Bytes of scratch of a thread that takes `classes` classes at once, over `rows` rows; PANEL_DEPTH summands are packed at once.
enum { PANEL_DEPTH = 256 };
static inline ptrdiff_t panel_scratch(ptrdiff_t rows, ptrdiff_t classes, int width, int item) {
  return ((classes + width - 1) / width * rows + PANEL_DEPTH) * width * item;
}

}  // namespace fx
