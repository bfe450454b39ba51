// A mini-batch step of a multi-layer perceptron, in pieces that a crew of threads can share (table.hpp: Network, Piece).
//
// The products are those of product.hpp: at 32 to 256 rows packing both operands, as BLAS does, costs as much as the arithmetic,
// and what stands between the products (bias, activation, optimizer) wants a tile while it lies in cache.  One thread, 64 rows,
// float32: 784 x 256 forward 110 GF/s where OpenBLAS reaches 68, weight gradients 133 and 94; equal from 256 rows on.
//
// Matrices of a batch lie in panels.  The summed dimension is never split between threads, and pieces follow from shapes alone:
// the same bits for any team.
//
// Precision: products and optimizer in the dtype of the weights; the sum of squares in double over pieces.
namespace FX_NS { namespace {
using fx::Network; using fx::NetLayer; using fx::Rule;

// Gather, products and sums ---------------------------------------------------------------------------------------------

// Rows [begin, end) of the next batch into panels.
template <class T> static void gather(const Network* net, ptrdiff_t begin, ptrdiff_t end) {
  typedef Shape<T> S; const ptrdiff_t width = net->layer[0].in, jump = net->capacity * S::P; T* const x = (T*)net->next_x;
  for (ptrdiff_t r = begin; r < end; r++) {
    const char* from = net->X + net->next_rows[r] * net->row_stride;
    for (ptrdiff_t j = 0; j * S::P < width; j++) {
      T* to = x + j * jump + r * S::P; const ptrdiff_t cols = width - j * S::P < S::P ? width - j * S::P : S::P;
      if (net->col_stride == (ptrdiff_t)sizeof(T)) __builtin_memcpy(to, from + j * S::P * sizeof(T), cols * sizeof(T));
      else for (ptrdiff_t c = 0; c < cols; c++) __builtin_memcpy(to + c, from + (j * S::P + c) * net->col_stride, sizeof(T));
    }
  }
}

// Z of the first layer for CSR rows: sums of rows of W
template <class T, class I> static void sparse_forward(const Network* net, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j, T* z,
                                                       ptrdiff_t pitch, ptrdiff_t cols) {
  const NetLayer& layer = net->layer[0]; const I* const start = (const I*)net->indptr; const I* const at = (const I*)net->indices;
  for (ptrdiff_t r = begin; r < end; r++) {
    T* const out = z + (r - begin) * pitch;
    for (ptrdiff_t c = 0; c < cols; c++) out[c] = 0;
    const ptrdiff_t row = net->rows[r];
    for (I k = start[row]; k < start[row + 1]; k++) {
      const T x = ((const T*)net->X)[k]; const T* const w = (const T*)layer.W + (ptrdiff_t)at[k] * layer.out + j * Shape<T>::P;
#pragma omp simd
      for (ptrdiff_t c = 0; c < cols; c++) out[c] += x * w[c];
    }
  }
}
// P columns of the first layer's gradient for CSR rows
template <class T, class I> static void sparse_gradient(const Network* net, ptrdiff_t j, ptrdiff_t cols) {
  typedef Shape<T> S; const NetLayer& layer = net->layer[0];
  const I* const start = (const I*)net->indptr; const I* const at = (const I*)net->indices;
  T* const g = (T*)layer.gW + j * S::P; const T* const delta = (const T*)layer.delta + j * net->capacity * S::P;
  for (ptrdiff_t i = 0; i < layer.in; i++) for (ptrdiff_t c = 0; c < cols; c++) g[i * layer.out + c] = 0;
  for (ptrdiff_t r = 0; r < net->count; r++) {
    const ptrdiff_t row = net->rows[r]; const T* const d = delta + r * S::P;
    for (I k = start[row]; k < start[row + 1]; k++) {
      const T x = ((const T*)net->X)[k]; T* const out = g + (ptrdiff_t)at[k] * layer.out;
#pragma omp simd
      for (ptrdiff_t c = 0; c < cols; c++) out[c] += x * d[c];
    }
  }
}

// Z = A W for rows [begin, end) and panel j of a layer, into rows of `pitch` numbers
template <class T> static void layer_product(const Network* net, int l, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j, T* z,
                                             ptrdiff_t pitch, bool padded, T* pack) {
  typedef Shape<T> S; const NetLayer& layer = net->layer[l];
  const ptrdiff_t jump = net->capacity * S::P, cols = layer.out - j * S::P < S::P ? layer.out - j * S::P : S::P;
  if (l == 0 && net->indptr) {
    if (net->wide_indices) sparse_forward<T, int64_t>(net, begin, end, j, z, pitch, cols);
    else sparse_forward<T, int32_t>(net, begin, end, j, z, pitch, cols);
    return;
  }
  const T* const a = l ? (const T*)net->layer[l - 1].a : (const T*)net->x;
  for (ptrdiff_t k = 0; k < layer.in; k += S::DEPTH) {
    const ptrdiff_t depth = layer.in - k < S::DEPTH ? layer.in - k : S::DEPTH;
    pack_columns((const T*)layer.W + k * layer.out + j * S::P, layer.out, depth, cols, pack);
    multiply<T>({a + k / S::P * jump + begin * S::P, S::P, 1, jump}, end - begin, pack, depth, z, pitch, cols, padded, k == 0);
  }
}

// SplitMix64 (Steele, Lea and Flood, 2014) at a position of its stream: what is dropped depends on the place alone.
FX_INLINE uint64_t random_bits(uint64_t seed, uint64_t place) {
  uint64_t z = seed + (place + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u; z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

template <class T> static void forward(const Network* net, int l, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j, T* pack) {
  typedef Shape<T> S; typedef typename Vec<T>::V V; const NetLayer& layer = net->layer[l];
  const ptrdiff_t cols = layer.out - j * S::P < S::P ? layer.out - j * S::P : S::P, vecs = (cols + S::N - 1) / S::N;
  const ptrdiff_t place = j * net->capacity * S::P + begin * S::P;
  T* a = (T*)layer.a + place; T* slope = layer.slope ? (T*)layer.slope + place : 0;
  layer_product<T>(net, l, begin, end, j, a, S::P, true, pack);
  T bias[S::P] = {}, keep[S::P]; __builtin_memcpy(bias, (const T*)layer.b + j * S::P, cols * sizeof(T));
  for (ptrdiff_t r = begin; r < end; r++, a += S::P) {
    for (ptrdiff_t v = 0; v < vecs; v++) {
      V z, d = V{}; __builtin_memcpy(&z, bias + v * S::N, sizeof z);
      z += *(const V*)(a + v * S::N);
      *(V*)(a + v * S::N) = activate<T>(net->activation, z, slope != 0, &d);
      if (slope) *(V*)(slope + v * S::N) = d;
    }
    if (net->drop_below) {
      const uint64_t first = layer.drop_at + r * layer.out + j * S::P, seed = net->drop_seed, below = net->drop_below;
      const T scale = T(net->drop_scale);
      for (ptrdiff_t c = 0; c < cols; c++) keep[c] = (random_bits(seed, first + c) >> 11) >= below ? scale : T(0);
      for (ptrdiff_t c = 0; c < cols; c++) { a[c] *= keep[c]; slope[c] *= keep[c]; }
    }
    if (slope) slope += S::P;
  }
}

// Logits of rows [begin, end), row after row
template <class T> static void logits(const Network* net, ptrdiff_t begin, ptrdiff_t end, T* pack) {
  typedef Shape<T> S; const int l = net->layers - 1; const NetLayer& layer = net->layer[l]; const T* const b = (const T*)layer.b;
  T* const z = (T*)net->logits + begin * layer.out;
  for (ptrdiff_t j = 0; j * S::P < layer.out; j++) layer_product<T>(net, l, begin, end, j, z + j * S::P, layer.out, false, pack);
  for (ptrdiff_t r = 0; r < end - begin; r++) for (ptrdiff_t c = 0; c < layer.out; c++) z[r * layer.out + c] += b[c];
}
// Their gradient, which has replaced them, into panels
template <class T> static void logit_delta(const Network* net, ptrdiff_t begin, ptrdiff_t end) {
  typedef Shape<T> S; const NetLayer& layer = net->layer[net->layers - 1];
  for (ptrdiff_t j = 0; j * S::P < layer.out; j++) {
    const ptrdiff_t cols = layer.out - j * S::P < S::P ? layer.out - j * S::P : S::P;
    T* const to = (T*)layer.delta + j * net->capacity * S::P; const T* const from = (const T*)net->logits + j * S::P;
    for (ptrdiff_t r = begin; r < end; r++) __builtin_memcpy(to + r * S::P, from + r * layer.out, cols * sizeof(T));
  }
}

// Gradient of layer l - 1's output before its activation, from that of layer l
template <class T> static void backward(const Network* net, int l, ptrdiff_t begin, ptrdiff_t end, ptrdiff_t j, T* pack) {
  typedef Shape<T> S; typedef typename Vec<T>::V V; const NetLayer &layer = net->layer[l], &below = net->layer[l - 1];
  const ptrdiff_t cols = layer.in - j * S::P < S::P ? layer.in - j * S::P : S::P, jump = net->capacity * S::P;
  const ptrdiff_t place = j * jump + begin * S::P, vecs = (cols + S::N - 1) / S::N;
  T* const d = (T*)below.delta + place;
  for (ptrdiff_t k = 0; k < layer.out; k += S::DEPTH) {
    const ptrdiff_t depth = layer.out - k < S::DEPTH ? layer.out - k : S::DEPTH;
    pack_rows((const T*)layer.W + j * S::P * layer.out + k, layer.out, depth, cols, pack);
    multiply<T>({(const T*)layer.delta + k / S::P * jump + begin * S::P, S::P, 1, jump}, end - begin, pack, depth, d, S::P, cols,
                true, k == 0);
  }
  const T* const a = (const T*)below.a + place; const T* const slope = below.slope ? (const T*)below.slope + place : 0;
  if (!slope && net->activation != fx::RELU) return;
  for (ptrdiff_t r = 0; r < end - begin; r++)
    for (ptrdiff_t v = 0; v < vecs; v++) {
      V* const out = (V*)(d + r * S::P + v * S::N);
      if (slope) *out *= *(const V*)(slope + r * S::P + v * S::N);
      else *out = *(const V*)(a + r * S::P + v * S::N) > 0 ? *out : V{};
    }
}

// Rows [begin, end) of a layer's weight gradient, row after row: A' delta
template <class T> static void gradient(const Network* net, int l, ptrdiff_t begin, ptrdiff_t end, T* g) {
  typedef Shape<T> S; const NetLayer& layer = net->layer[l]; const ptrdiff_t jump = net->capacity * S::P;
  const T* const a = l ? (const T*)net->layer[l - 1].a : (const T*)net->x;
  for (ptrdiff_t k = 0; k < net->count; k += fx::NET_ROWS)
    for (ptrdiff_t j = 0; j * S::P < layer.out; j++) {
      const ptrdiff_t cols = layer.out - j * S::P < S::P ? layer.out - j * S::P : S::P;
      const ptrdiff_t depth = net->count - k < fx::NET_ROWS ? net->count - k : fx::NET_ROWS;
      // bands begin at multiples of a panel, so that column r of the band is column begin + r of the panels
      multiply<T>({a + begin / S::P * jump + k * S::P, 0, S::P, jump}, end - begin,
                  (const T*)layer.delta + j * jump + k * S::P, depth, g + j * S::P, layer.out, cols, false, k == 0);
    }
}
// Sums of delta's columns
template <class T> static void bias_gradient(const Network* net, int l, T* g) {
  typedef Shape<T> S; const NetLayer& layer = net->layer[l];
  for (ptrdiff_t j = 0; j * S::P < layer.out; j++) {
    const ptrdiff_t cols = layer.out - j * S::P < S::P ? layer.out - j * S::P : S::P;
    const T* d = (const T*)layer.delta + j * net->capacity * S::P; T sum[S::P] = {};
    for (ptrdiff_t r = 0; r < net->count; r++, d += S::P) for (int c = 0; c < S::P; c++) sum[c] += d[c];
    __builtin_memcpy(g + j * S::P, sum, cols * sizeof(T));
  }
}

// The optimizer -----------------------------------------------------------------------------------------------------------


// Sum of the squares of g + shrink w, which replaces g
template <class T> static double penalize(ptrdiff_t n, T shrink, const T* w, T* g) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (ptrdiff_t i = 0; i < n; i++) { const T x = g[i] + shrink * w[i]; g[i] = x; sum += (double)x * (double)x; }
  return sum;
}

// One step over n weights; returns the sum of the squares of coefficients before it.
template <class T> static double update(const Rule* rule, bool coef, ptrdiff_t n, T* w, const T* g, T* m, T* v) {
  const T clip = T(rule->clip), shrink = coef ? T(rule->shrink) : T(0), keep = coef ? T(rule->keep) : T(1); T ww = 0;
  const T b1 = T(rule->b1), b2 = T(rule->b2), c = T(rule->c), e = T(rule->e);
  switch (rule->kind) {
    case fx::SGD:
#pragma omp simd reduction(+ : ww)
      for (ptrdiff_t i = 0; i < n; i++) {
        const T x = c * (clip * g[i] + shrink * w[i]), u = b1 * m[i] - x;
        ww += w[i] * w[i]; m[i] = u; w[i] += u;
      }
      break;
    case fx::NESTEROV:
#pragma omp simd reduction(+ : ww)
      for (ptrdiff_t i = 0; i < n; i++) {
        const T x = c * (clip * g[i] + shrink * w[i]), u = b1 * m[i] - x;
        ww += w[i] * w[i]; m[i] = u; w[i] += b1 * u - x;
      }
      break;
    case fx::ADAM:
#pragma omp simd reduction(+ : ww)
      for (ptrdiff_t i = 0; i < n; i++) {
        const T x = clip * g[i] + shrink * w[i], m1 = b1 * m[i] + x, v1 = b2 * v[i] + x * x;
        ww += w[i] * w[i]; m[i] = m1; v[i] = v1; w[i] = keep * w[i] - c * (m1 / (root(v1) + e));
      }
      break;
    default:  // Adam's moments, a step without the second
#pragma omp simd reduction(+ : ww)
      for (ptrdiff_t i = 0; i < n; i++) {
        const T x = clip * g[i] + shrink * w[i], m1 = b1 * m[i] + x;
        ww += w[i] * w[i]; m[i] = m1; v[i] = b2 * v[i] + x * x; w[i] = keep * w[i] - c * m1;
      }
  }
  return coef ? (double)ww : 0;
}

// Pieces ------------------------------------------------------------------------------------------------------------------

template <class T> static void network_piece(const Network* net, int piece, int l, ptrdiff_t i, char* scratch, double* sum) {
  typedef Shape<T> S; T* const work = (T*)scratch;
  const bool head = piece == fx::LOGITS || piece == fx::LOGIT_DELTA;
  const ptrdiff_t step = head ? net->head : fx::NET_ROWS, row_blocks = (net->count + step - 1) / step;
  const ptrdiff_t begin = i % row_blocks * step, end = begin + step < net->count ? begin + step : net->count;
  const ptrdiff_t group = i / row_blocks * (fx::NET_COLS / S::P), last = group + fx::NET_COLS / S::P;
  NetLayer& layer = net->layer[l]; const ptrdiff_t width = piece == fx::BACKWARD ? layer.in : layer.out;
  switch (piece) {
    case fx::GATHER: gather<T>(net, i * fx::NET_GATHER, (i + 1) * fx::NET_GATHER < net->next_count ? (i + 1) * fx::NET_GATHER : net->next_count); break;
    case fx::FORWARD: for (ptrdiff_t j = group; j < last && j * S::P < width; j++) forward<T>(net, l, begin, end, j, work); break;
    case fx::LOGITS: logits<T>(net, begin, end, work); break;
    case fx::LOGIT_DELTA: logit_delta<T>(net, begin, end); break;
    case fx::BACKWARD: for (ptrdiff_t j = group; j < last && j * S::P < width; j++) backward<T>(net, l, begin, end, j, work); break;
    case fx::SPARSE_GRADIENT:
      for (ptrdiff_t j = i * (fx::NET_COLS / S::P); j < (i + 1) * (fx::NET_COLS / S::P) && j * S::P < layer.out; j++) {
        const ptrdiff_t cols = layer.out - j * S::P < S::P ? layer.out - j * S::P : S::P;
        if (net->wide_indices) sparse_gradient<T, int64_t>(net, j, cols); else sparse_gradient<T, int32_t>(net, j, cols);
      }
      break;
    default: {  // GRADIENT, NORM, UPDATE: bands of rows of W, then the intercepts
      const ptrdiff_t first = i * layer.band, stop = first + layer.band < layer.in ? first + layer.band : layer.in;
      const bool coef = first < layer.in; const ptrdiff_t at = coef ? first * layer.out : 0, n = coef ? (stop - first) * layer.out : layer.out;
      T* const w = (T*)(coef ? layer.W : layer.b) + at; T* const m = (T*)(coef ? layer.mW : layer.mb) + at;
      T* const v = (coef ? layer.vW : layer.vb) ? (T*)(coef ? layer.vW : layer.vb) + at : 0;
      T* g = layer.gW ? (T*)(coef ? layer.gW : layer.gb) + at : work;
      if (piece == fx::GRADIENT || (piece == fx::UPDATE && !layer.gW)) {
        if (!coef) bias_gradient<T>(net, l, g);
        else if (l || !net->indptr) gradient<T>(net, l, first, stop, g);  // else SPARSE_GRADIENT does
      }
      if (piece == fx::NORM) *sum = penalize<T>(n, coef ? T(net->penalty) : T(0), w, g);
      if (piece == fx::UPDATE) *sum = update<T>(&net->rule, coef, n, w, g, m, v);
    }
  }
}

}}  // namespace
