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
template <class T> struct Bent { typename Vec<T>::V loss, grad, hess; };
template <class T> FX_INLINE Bent<T> sigmoid_at(typename Vec<T>::V z, typename Vec<T>::V y, typename Vec<T>::V not_y) {
  typedef typename Vec<T>::V V;
  const V e = exp_of_negative<T>(z < T(0) ? z : -z), big = T(1) / (T(1) + e), small = e * big, tail = log1p_of<T>(e);
  const V far = z > T(0) ? z : -z, share = z > T(0) ? not_y : y;                         // L = (y + 1 - y) tail + |z| share
  const V positive = z > T(0) ? big : small, negative = z > T(0) ? small : big;          // sigma(z), sigma(-z)
  return {(y + not_y) * tail + share * (share != T(0) ? far : V{}), not_y * positive - y * negative, (y + not_y) * positive * negative};
}


// q^gamma: products for the whole powers in use, double for the others.
template <class T> static typename Vec<T>::V slow_power(typename Vec<T>::V q, double gamma) {
  typedef Num<double> C; typedef Vec<double>::V D; typedef Vec<double>::UV UV; enum { HALVES = 8 / sizeof(T) };
  typedef T Part __attribute__((vector_size(FX_BYTES / HALVES))); Part part[HALVES]; typename Vec<T>::V out;
  const uint64_t lift = (uint64_t)2048 << C::mant; const VShift<double> none = splat<double>(shift_of(0.));
  __builtin_memcpy(part, &q, sizeof q);
  for (int i = 0; i < HALVES; i++) {
    const D given = doubles(part[i], D()), x = given > 0. ? given : D{} + 1.;              // log x as in log_normal
    const UV e = ((UV)x - bits(0.75) + lift) & ~(((uint64_t)1 << C::mant) - 1);
    const D f = x * (D)(bits(1.) - (e - lift)) - 1., k = (D)((e >> C::mant) + bits(double(C::magic))) - C::magic - 2048.;
    const D r = exp_of<double>(gamma * (k * C::ln2hi + (k * C::ln2lo + log_poly(f, double()))), none) * C::unguard;
    part[i] = __builtin_convertvector(given > 0. ? r : given, Part);
  }
  __builtin_memcpy(&out, part, sizeof out);
  return out;
}
template <class T> FX_INLINE typename Vec<T>::V power_of(typename Vec<T>::V q, double gamma) {
  if (gamma == 2) return q * q;
  if (gamma == 0) return typename Vec<T>::V{} + T(1);
  if (gamma == 1) return q;
  if (gamma == 3) return q * q * q;
  if (gamma == 4) return (q * q) * (q * q);
  return slow_power<T>(q, gamma);
}
// q^gamma S with S = -log p, and its derivatives along the logit of p
template <class T> FX_INLINE Bent<T> focal_side(typename Vec<T>::V p, typename Vec<T>::V q, typename Vec<T>::V S, double gamma) {
  typedef typename Vec<T>::V V; const T k = T(gamma);
  const V part = power_of<T>(q, gamma), pS = p * (p != T(0) ? S : V{});
  return {part * S, -part * (k * pS + q), part * (pS * (k * k * p - k * q) + (2 * k + 1) * p * q)};
}
// -s^gamma log(1 - s), s = max(p - margin, 0), with its derivative; S = -log q
template <class T> FX_INLINE Bent<T> shifted_side(typename Vec<T>::V p, typename Vec<T>::V q, typename Vec<T>::V S, double gamma, T margin) {
  typedef typename Vec<T>::V V;
  const V d = p - margin, s = d < T(0) ? V{} : d, rest = q + margin;                    // rest = 1 - s
  const V l = margin > 0 ? log1p_of<T>(s / rest) : S, ratio = margin > 0 ? q / rest : V{} + T(1);
  const V part = s > T(0) ? power_of<T>(s, gamma) : s, pq = p * q;
  const V slope = pq * (pq != T(0) ? l / (s > T(0) ? s : V{} + T(1)) : V{});
  return {s > T(0) ? part * l : s, part * (T(gamma) * slope + p * ratio), V{} + T(__builtin_nan(""))};
}
// Focal loss and the asymmetric one; both sides are needed only where targets are mixtures.
template <class T> FX_INLINE Bent<T> member_at(const Elements* a, typename Vec<T>::V z, typename Vec<T>::V y, typename Vec<T>::V not_y) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; enum { N = Vec<T>::N };
  const V e = exp_of_negative<T>(z < T(0) ? z : -z), big = T(1) / (T(1) + e), small = e * big, tail = log1p_of<T>(e);
  const V up = z > T(0) ? z + tail : tail, down = z > T(0) ? tail : tail - z;            // softplus(z), softplus(-z)
  const V p = z > T(0) ? big : small, q = z > T(0) ? small : big;                        // sigma(z), sigma(-z)
  Bent<T> one, zero;
  if (a->family == fx::BINARY_FOCAL) {
    y *= T(a->b); not_y *= T(a->c);
    const IV yes = y != T(0); IV both = yes & (not_y != T(0));
    for (int h = N / 2; h > 0; h /= 2) for (int i = 0; i < h; i++) both[i] |= both[i + h];
    if (!both[0]) {
      const V w = yes ? y : not_y;
      const Bent<T> f = focal_side<T>(yes ? p : q, yes ? q : p, yes ? down : up, a->a);
      return {w * (w != T(0) ? f.loss : z - z), w * (yes ? f.grad : -f.grad), w * f.hess};
    }
    one = focal_side<T>(p, q, down, a->a); zero = focal_side<T>(q, p, up, a->a); zero.grad = -zero.grad;
  } else {
    one = focal_side<T>(p, q, down, a->a); zero = shifted_side<T>(p, q, up, a->b, T(a->c));
  }
  return {y * (y != T(0) ? one.loss : V{}) + not_y * (not_y != T(0) ? zero.loss : V{}), y * one.grad + not_y * zero.grad, y * one.hess + not_y * zero.hess};
}

template <class T, bool PLAIN> static void sigmoid_loop(const Elements* a, ptrdiff_t begin, ptrdiff_t end, ElementsOut* out) {
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
      Bent<T> b = PLAIN ? sigmoid_at<T>(*(const Loose*)(z + k), t, not_t) : member_at<T>(a, *(const Loose*)(z + k), t, not_t);
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
template <class T> static void sigmoid(const Elements* a, ptrdiff_t begin, ptrdiff_t end, ElementsOut* out) {
  if (a->family == fx::BINARY_CROSS_ENTROPY) sigmoid_loop<T, true>(a, begin, end, out);
  else sigmoid_loop<T, false>(a, begin, end, out);
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
