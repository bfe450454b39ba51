// Elementwise losses over elements [begin, end) of a (rows, cols) matrix: binary cross-entropy of logits, and of probabilities.
//
// sigma(z) and sigma(-z) both come from e^-|z|, never from 1 - sigma.  A factor of 0 annihilates an infinite term.
// Expected for targets 0 and 1: loss and gradient <= 4 ulp.
namespace FX_NS { namespace {
using fx::Elements; using fx::ElementsOut;

enum { PIECE = 512 };                    // elements per local buffer and per addition to the double sums

// Elements [i, i + n) as a pointer: their own place if they lie together, a copy in `local` if not.
template <class S> static inline const S* piece(const Matrix& m, ptrdiff_t cols, ptrdiff_t cls, ptrdiff_t i, ptrdiff_t n, S* local) {
  const ptrdiff_t item = sizeof(S); ptrdiff_t row = i / cols, col = i % cols;
  if (cls == item && (col + n <= cols || m.outer == cols * item)) return (const S*)(m.data + row * m.outer + col * item);
  for (ptrdiff_t k = 0; k < n;) {
    const ptrdiff_t run = cols - col < n - k ? cols - col : n - k; const char* p = m.data + row * m.outer + col * cls;
    for (ptrdiff_t c = 0; c < run; c++) __builtin_memcpy(local + k + c, p + c * cls, sizeof(S));
    k += run; col = 0; row++;
  }
  return local;
}
// Where elements [i, i + n) go: their own place, or `local`, which `put` then copies there.
template <class S> static inline S* place(const Matrix& m, ptrdiff_t cols, ptrdiff_t i, ptrdiff_t n, S* local) {
  const ptrdiff_t row = i / cols, col = i % cols;
  return col + n <= cols || m.outer == cols * (ptrdiff_t)sizeof(S) ? (S*)(m.data + row * m.outer) + col : local;
}
template <class T> static inline void put_as_is(const Matrix& m, ptrdiff_t cols, ptrdiff_t i, ptrdiff_t n, const T* local) {
  ptrdiff_t row = i / cols, col = i % cols;
  for (ptrdiff_t k = 0; k < n;) {
    const ptrdiff_t run = cols - col < n - k ? cols - col : n - k;
    __builtin_memcpy((T*)(m.data + row * m.outer) + col, local + k, run * sizeof(T));
    k += run; col = 0; row++;
  }
}
template <class T> static inline void put(const Elements* a, const Matrix& m, ptrdiff_t i, ptrdiff_t n, const T* local) {
  const ptrdiff_t cols = a->cols, item = item_size<T>(a->storage); ptrdiff_t row = i / cols, col = i % cols;
  for (ptrdiff_t k = 0; k < n;) {
    const ptrdiff_t run = cols - col < n - k ? cols - col : n - k;
    narrow_run(a->storage, local + k, run, m.data + row * m.outer + col * item);
    k += run; col = 0; row++;
  }
}
template <class T> static inline const T* widened(const Elements* a, const Matrix& m, ptrdiff_t i, ptrdiff_t n, T* local) {
  const ptrdiff_t cols = a->cols, item = item_size<T>(a->storage); ptrdiff_t row = i / cols, col = i % cols;
  for (ptrdiff_t k = 0; k < n;) {
    const ptrdiff_t run = cols - col < n - k ? cols - col : n - k;
    widen_run(a->storage, m.data + row * m.outer + col * item, run, local + k);
    k += run; col = 0; row++;
  }
  return local;
}
template <class T> static inline ptrdiff_t first_outside(const T* y, ptrdiff_t n) {
  int bad = 0;
#pragma omp simd reduction(| : bad)
  for (ptrdiff_t k = 0; k < n; k++) bad |= !(y[k] >= 0) | !(y[k] <= 1);
  if (bad) for (ptrdiff_t k = 0; k < n; k++) if (!(y[k] >= 0 && y[k] <= 1)) return k;
  return -1;
}

// Loss, gradient and second derivative of elements in vectors.  y, and 1 - y without cancellation.
// Double sums of vectors of either type
template <class T> struct Wide {
  typedef double D __attribute__((vector_size(FX_BYTES))); D parts[8 / sizeof(T)] = {};
  FX_INLINE_MEMBER void add(typename Vec<T>::V x) {
    typedef T Part __attribute__((vector_size(FX_BYTES / (8 / sizeof(T))))); Part p[8 / sizeof(T)];
    __builtin_memcpy(p, &x, sizeof x);
    for (unsigned i = 0; i < 8 / sizeof(T); i++) parts[i] += __builtin_convertvector(p[i], D);
  }
  double total() const { double s = 0; for (const D& d : parts) for (unsigned c = 0; c < FX_BYTES / 8; c++) s += d[c]; return s; }
};

template <class T> struct Bent { typename Vec<T>::V loss, grad, hess; };
template <class T> FX_INLINE Bent<T> sigmoid_at(typename Vec<T>::V z, typename Vec<T>::V y, typename Vec<T>::V not_y) {
  typedef typename Vec<T>::V V;
  const V e = exp_of_negative<T>(z < T(0) ? z : -z), big = T(1) / (T(1) + e), small = e * big, tail = log1p_of<T>(e);
  const V up = z > T(0) ? z + tail : tail, down = z > T(0) ? tail : tail - z;            // softplus(z), softplus(-z)
  const V positive = z > T(0) ? big : small, negative = z > T(0) ? small : big;          // sigma(z), sigma(-z)
  return {y * (y != T(0) ? down : V{}) + not_y * (not_y != T(0) ? up : V{}), not_y * positive - y * negative, (y + not_y) * positive * negative};
}

template <class T> static void sigmoid(const Elements* a, ptrdiff_t begin, ptrdiff_t end, ElementsOut* out) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  alignas(64) T z_here[PIECE], g_here[PIECE], h_here[PIECE], y_here[PIECE], v_here[PIECE], p_here[PIECE], l_here[PIECE];
  const ptrdiff_t cols = a->cols; const T keep = T(1 - a->smoothing), half = T(a->smoothing / 2), scale = T(a->scale); double total = 0;
  const bool smooth = a->smoothing != 0, direct = stored_as_is<T>(a->storage);
  for (ptrdiff_t i = begin; i < end; i += PIECE) {
    const ptrdiff_t n = end - i < PIECE ? end - i : PIECE;
    const T* const y = piece<T>(a->targets, cols, sizeof(T), i, n, y_here);
    const T* const v = a->weight.data ? piece<T>(a->weight, cols, a->weight.cls, i, n, v_here) : 0;
    const T* const pi = a->pos_weight.data ? piece<T>(a->pos_weight, cols, a->pos_weight.cls, i, n, p_here) : 0;
    const ptrdiff_t bad = first_outside(y, n);
    if (bad >= 0 && out->bad_target < 0) out->bad_target = i + bad;
    const T* const z = direct ? piece<T>(a->values, cols, sizeof(T), i, n, z_here) : widened(a, a->values, i, n, z_here);
    T* const g = !a->grad.data ? 0 : direct ? place<T>(a->grad, cols, i, n, g_here) : g_here;
    T* const h = !a->hess.data ? 0 : direct ? place<T>(a->hess, cols, i, n, h_here) : h_here;
    T* const loss = a->loss.data ? place<T>(a->loss, cols, i, n, l_here) : 0;
    Wide<T> sum;
    auto at = [&](ptrdiff_t k, const T* z, const T* y, const T* v, const T* pi, T* g, T* h, T* loss) __attribute__((always_inline)) {
      V t = *(const Loose*)(y + k), not_t = T(1) - t;
      if (smooth) { not_t = not_t * keep + half; t = t * keep + half; }
      if (pi) t *= *(const Loose*)(pi + k);
      Bent<T> b = sigmoid_at<T>(*(const Loose*)(z + k), t, not_t);
      V factor = V{} + scale;
      if (v) { const V w = *(const Loose*)(v + k); b.loss = w == T(0) ? V{} : b.loss * w; b.grad = w == T(0) ? V{} : b.grad * w; b.hess = w == T(0) ? V{} : b.hess * w; }
      if (g) *(Loose*)(g + k) = b.grad * factor;
      if (h) *(Loose*)(h + k) = b.hess * factor;
      if (loss) *(Loose*)(loss + k) = b.loss;
      return b.loss;
    };
    ptrdiff_t k = 0;
    if (!v && !pi && !h && !loss && !smooth && g) for (; k + N <= n; k += N) sum.add(at(k, z, y, 0, 0, g, 0, 0));
    else for (; k + N <= n; k += N) sum.add(at(k, z, y, v, pi, g, h, loss));
    if (k < n) {                                                        // the ragged end, padded
      T pad[7][N] = {}; const ptrdiff_t left = n - k;
      for (ptrdiff_t c = 0; c < left; c++) { pad[0][c] = z[k + c]; pad[1][c] = y[k + c]; if (v) pad[2][c] = v[k + c]; if (pi) pad[3][c] = pi[k + c]; }
      V l = at(0, pad[0], pad[1], v ? pad[2] : 0, pi ? pad[3] : 0, g ? pad[4] : 0, h ? pad[5] : 0, loss ? pad[6] : 0);
      for (ptrdiff_t c = 0; c < N; c++) l[c] = c < left ? l[c] : T(0);
      sum.add(l);
      for (ptrdiff_t c = 0; c < left; c++) { if (g) g[k + c] = pad[4][c]; if (h) h[k + c] = pad[5][c]; if (loss) loss[k + c] = pad[6][c]; }
    }
    if (g == g_here) put<T>(a, a->grad, i, n, g_here);
    if (h == h_here) put<T>(a, a->hess, i, n, h_here);
    if (loss == l_here) put_as_is(a->loss, cols, i, n, l_here);
    total += sum.total();
  }
  out->loss += total;
}

// From probabilities, with libm's logarithms: not a hot loop.  No clamp; p - y is exact where it matters.
static inline float log_of(float x) { return __builtin_logf(x); }
static inline double log_of(double x) { return __builtin_log(x); }
static inline float log1p_any(float x) { return __builtin_log1pf(x); }
static inline double log1p_any(double x) { return __builtin_log1p(x); }
template <class T> static void binary(const Elements* a, ptrdiff_t begin, ptrdiff_t end, ElementsOut* out) {
  const T keep = T(1 - a->smoothing), half = T(a->smoothing / 2), scale = T(a->scale);
  const ptrdiff_t cols = a->cols, item = item_size<T>(a->storage); double total = 0;
  for (ptrdiff_t i = begin; i < end; i++) {
    const ptrdiff_t row = i / cols, col = i % cols;
    const T p = number_at<T>(a->storage, a->values.data + row * a->values.outer + col * item); T y = ((const T*)(a->targets.data + row * a->targets.outer))[col];
    if (!(y >= 0 && y <= 1) && out->bad_target < 0) out->bad_target = i;
    if (!(p >= 0 && p <= 1) && out->bad_value < 0) out->bad_value = i;
    T not_y = 1 - y;
    if (a->smoothing != 0) { not_y = not_y * keep + half; y = y * keep + half; }
    T difference = p - y;
    if (a->pos_weight.data) { y *= *(const T*)(a->pos_weight.data + row * a->pos_weight.outer + col * a->pos_weight.cls); difference = not_y * p - y * (1 - p); }
    const T v = a->weight.data ? *(const T*)(a->weight.data + row * a->weight.outer + col * a->weight.cls) : T(1);
    const bool valid = p >= 0 && p <= 1; const T nan = T(__builtin_nan(""));
    T L = !valid ? nan : T(0) - (y == 0 ? T(0) : y * log_of(p)) - (not_y == 0 ? T(0) : not_y * log1p_any(-p));
    T g = p > 0 && p < 1 ? difference / (p * (1 - p)) : !valid ? nan : (not_y == 0 ? T(0) : not_y / (1 - p)) - (y == 0 ? T(0) : y / p);
    T h = !valid ? nan : (y == 0 ? T(0) : y / (p * p)) + (not_y == 0 ? T(0) : not_y / ((1 - p) * (1 - p)));
    if (v == 0) L = g = h = 0; else { L *= v; g *= v; h *= v; }
    if (a->loss.data) ((T*)(a->loss.data + row * a->loss.outer))[col] = L;
    if (a->grad.data) number_to(a->storage, g * scale, a->grad.data + row * a->grad.outer + col * item);
    if (a->hess.data) number_to(a->storage, h * scale, a->hess.data + row * a->hess.outer + col * item);
    total += L;
  }
  out->loss += total;
}

// Sum of the weights (element count without weights), and the first target outside [0, 1].
template <class T> static void weights(const Elements* a, ptrdiff_t begin, ptrdiff_t end, ElementsOut* out) {
  alignas(64) T y_here[PIECE], v_here[PIECE]; double total = 0;
  for (ptrdiff_t i = begin; i < end; i += PIECE) {
    const ptrdiff_t n = end - i < PIECE ? end - i : PIECE;
    const ptrdiff_t bad = first_outside(piece<T>(a->targets, a->cols, sizeof(T), i, n, y_here), n);
    if (bad >= 0 && out->bad_target < 0) out->bad_target = i + bad;
    if (!a->weight.data) { total += (double)n; continue; }
    const T* v = piece<T>(a->weight, a->cols, a->weight.cls, i, n, v_here);
    for (ptrdiff_t k = 0; k < n; k++) total += v[k];
  }
  out->total += total;
}

}}  // namespace
