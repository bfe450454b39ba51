// Elementwise losses over elements [begin, end) of a (rows, cols) matrix: binary cross-entropy of logits, and of probabilities.
//
// sigma(z) and sigma(-z) both come from e = e^-|z|, never from 1 - sigma.  A factor of 0 annihilates an infinite term.
// Expected for targets 0 and 1: loss and gradient <= 4 ulp.
//
// A piece goes through three short loops in the first-level cache: e, then loss and gradient, then the sum of the losses.
// In one loop the chain exp - log1p is longer than what the processor looks ahead (2/3 of the speed).
namespace FX_NS { namespace {
using fx::Elements; using fx::ElementsOut;

enum { PIECE = 512 };                    // elements per local buffer and per addition to the double sums
enum Kind { LOGITS, MEMBER, PROBABILITIES };   // cross-entropy of logits, the rest of their family, cross-entropy of probabilities

// Elements [i, i + n) as a pointer: their own place if they lie together, a copy in `local` if not.
template <class S> static inline const S* piece(const Matrix& m, ptrdiff_t cols, ptrdiff_t cls, ptrdiff_t i, ptrdiff_t n, S* local) {
  const ptrdiff_t item = sizeof(S); ptrdiff_t row = i / cols, col = i % cols;
  if (cls == item && (col + n <= cols || m.outer == cols * item)) return (const S*)(m.data + row * m.outer + col * item);
  for (ptrdiff_t k = 0; k < n;) {
    const ptrdiff_t run = cols - col < n - k ? cols - col : n - k; const char* p = m.data + row * m.outer + col * cls;
    if (cls == item) __builtin_memcpy(local + k, p, run * sizeof(S));
    else if (cls == 0) { S one; __builtin_memcpy(&one, p, sizeof one); for (ptrdiff_t c = 0; c < run; c++) local[k + c] = one; }
    else for (ptrdiff_t c = 0; c < run; c++) __builtin_memcpy(local + k + c, p + c * cls, sizeof(S));
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
// Bits that gather in `odd` where a target lies outside [0, 1] (or is -0): the sign of y or of 1 - y, or an exponent of 2 and more.
template <class T> FX_INLINE typename Vec<T>::UV odd_bits(typename Vec<T>::V y, typename Vec<T>::V not_y) {
  typedef typename Vec<T>::UV UV; return (UV)y | (UV)not_y;
}
template <class T> FX_INLINE bool is_odd(const typename Vec<T>::UV& odd) { return any_of(odd >> (int)(8 * sizeof(T) - 2)) != 0; }
// The first of n numbers outside [0, 1], or -1
template <class T> static ptrdiff_t first_outside(const T* y, ptrdiff_t n) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N }; typename Vec<T>::UV odd = {}; ptrdiff_t whole = 0;
  for (; whole + N <= n; whole += N) { const V x = *(const Loose*)(y + whole); odd |= odd_bits<T>(x, T(1) - x); }
  if (whole < n) { const V x = n < N ? V{} : *(const Loose*)(y + n - N); odd |= odd_bits<T>(x, T(1) - x); }
  if (n >= N && !is_odd<T>(odd)) return -1;
  for (ptrdiff_t k = 0; k < n; k++) if (!(y[k] >= 0 && y[k] <= 1)) return k;
  return -1;
}

// Sum of l[0 .. n), which zeros follow to a multiple of four vectors.  Four vectors are added before they become doubles: two
// roundings on top of the losses' own, for a third of the price.  What is too large for that is added one by one.
template <class T> static double sum_of(const T* l, ptrdiff_t n) {
  typedef typename Vec<T>::V V; enum { N = Vec<T>::N }; Wide<T> sum; const V* at = (const V*)l;
  for (ptrdiff_t k = 0; k < n; k += 4 * N, at += 4) sum.add((at[0] + at[1]) + (at[2] + at[3]));
  double total = sum.total();
  if (sizeof(T) < 8 && !(total <= Num<T>::most)) { total = 0; for (ptrdiff_t k = 0; k < n; k++) total += l[k]; }
  return total;
}

// Loss, gradient and second derivative of elements in vectors.
template <class T> struct Bent { typename Vec<T>::V loss, grad, hess; };
// With z >= 0: L = (y + 1 - y) tail + |z| (1 - y) and dL/dz = (1 - y - y e) / (1 + e); z < 0 swaps y and 1 - y, and the sign.
template <class T, bool PLAIN> FX_INLINE Bent<T> sigmoid_at(typename Vec<T>::V z, typename Vec<T>::V e, typename Vec<T>::V y, typename Vec<T>::V not_y) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::UV UV; typedef typename Vec<T>::IV IV;
  const UV sign = UV{} + ((typename Num<T>::U)1 << (8 * sizeof(T) - 1));
  const IV minus = (IV)z < 0;
  const V share = minus ? y : not_y, other = minus ? not_y : y, below = (V)((UV)z | sign), both = y + not_y, u = T(1) + e;
  const Softplus<V> s = softplus_of(e, share - other * e);
  const V tail = PLAIN ? s.tail : both * s.tail;
  return {share != T(0) ? tail - share * below : tail, (V)((UV)s.quotient ^ ((UV)z & sign)), both * (e / (u * u))};
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
template <class T> FX_INLINE Bent<T> member_at(const Elements* a, typename Vec<T>::V z, typename Vec<T>::V e, typename Vec<T>::V y, typename Vec<T>::V not_y) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::UV UV; typedef typename Vec<T>::IV IV;
  const Softplus<V> s = softplus_of(e, V{} + T(1)); const V big = s.quotient, small = e * big, tail = s.tail;
  const V up = z > T(0) ? z + tail : tail, down = z > T(0) ? tail : tail - z;            // softplus(z), softplus(-z)
  const V p = z > T(0) ? big : small, q = z > T(0) ? small : big;                        // sigma(z), sigma(-z)
  Bent<T> one, zero;
  if (a->family == fx::BINARY_FOCAL) {
    y *= T(a->b); not_y *= T(a->c);
    const IV yes = y != T(0);
    if (!any_of((UV)(yes & (not_y != T(0))))) {
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

// log p, or log(1 - p) where not `of_p`, for p in [0, 1]: 2^k (1 + f), f exact or rounded once.
template <class T> FX_INLINE typename Vec<T>::V log_share(typename Vec<T>::V p, typename Vec<T>::IV of_p) {
  typedef Num<T> C; typedef typename Vec<T>::V V; typedef typename Vec<T>::UV UV; typedef typename C::U U;
  enum { DOWN = 2 * C::mant }; const V tiny = V{} + T(__builtin_ldexp(1., 2 - C::bias)), up = V{} + T(__builtin_ldexp(1., DOWN));
  const auto small = of_p & (p < tiny);                                  // subnormal numbers
  const V x = of_p ? (small ? p * up : p) : -p, u = of_p ? x : T(1) - p;
  const U lift = (U)(C::bias + 1) << C::mant;
  const UV e = ((UV)u - bits(T(0.75)) + lift) & ~(((U)1 << C::mant) - 1);
  const V h = (V)(bits(T(1)) - (e - lift)), f = x * h + (of_p ? V{} - T(1) : h - T(1));
  const V k = (V)((e >> C::mant) + bits(T(C::magic))) - C::magic - (small ? V{} + T(C::bias + 1 + DOWN) : V{} + T(C::bias + 1));
  return u == T(0) ? V{} - T(__builtin_inf()) : k * C::ln2hi + (k * C::ln2lo + log_poly(f, T()));
}
// L = -(y log p + (1 - y) log(1 - p)), dL/dp = (p - y) / (p (1 - p)), without a clamp; `difference` is p - y, or what weights make of it.
template <class T> FX_INLINE Bent<T> probability_at(typename Vec<T>::V p, typename Vec<T>::V y, typename Vec<T>::V not_y, typename Vec<T>::V difference, bool bent) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::UV UV; typedef typename Vec<T>::IV IV;
  const IV yes = y != T(0), no = not_y != T(0); const V rest = T(1) - p, nan = V{} + T(__builtin_nan(""));
  const IV valid = (p >= T(0)) & (p <= T(1)), inside = (p > T(0)) & (p < T(1));
  V loss = (yes ? y : not_y) * log_share<T>(p, yes);
  if (any_of((UV)(yes & no))) loss += yes & no ? not_y * log_share<T>(p, IV{}) : V{};
  loss = yes | no ? T(0) - loss : V{};
  const V ends = (no ? not_y / rest : V{}) - (yes ? y / p : V{}), grad = inside ? difference / (p * rest) : ends;
  V hess = {}; if (bent) hess = (yes ? y / (p * p) : V{}) + (no ? not_y / (rest * rest) : V{});
  return {valid ? loss : nan, valid ? grad : nan, valid ? hess : nan};
}

// Where the numbers of a piece lie; null: absent.  `e` and `loss` may be the same, and `g` may be z.
template <class T> struct Piece { const T *z, *y, *v, *pi; T *e, *loss, *g, *h; };

// Elements [0, n) of a piece, n a multiple of the vector.  True if a target may lie outside [0, 1].
template <class T, bool PLAIN, Kind KIND> static bool whole_vectors(const Elements* a, const Piece<T>& p, ptrdiff_t n) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::UV UV; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  const V keep = V{} + T(1 - a->smoothing), half = V{} + T(a->smoothing / 2), scale = V{} + T(a->scale); const bool smooth = a->smoothing != 0;
  const T *z = p.z, *y = p.y, *v = p.v, *pi = p.pi; T *e = p.e, *loss = p.loss, *g = p.g, *h = p.h;
  const UV sign = UV{} + ((typename Num<T>::U)1 << (8 * sizeof(T) - 1));
  UV odd = {};
  for (ptrdiff_t k = 0; k < n; k += N) {
    __builtin_prefetch(y + n + k);                                     // of the next piece
    if (!PLAIN && v) __builtin_prefetch(v + n + k);
    if (KIND != PROBABILITIES) *(V*)(e + k) = exp_of_negative<T>((V)((UV)*(const Loose*)(z + k) | sign));
  }
  for (ptrdiff_t k = 0; k < n; k += N) {
    __builtin_prefetch(z + n + k);
    const V x = *(const Loose*)(z + k); V t = *(const Loose*)(y + k), not_t = T(1) - t;
    odd |= odd_bits<T>(t, not_t);
    if (!PLAIN) {
      if (smooth) { not_t = not_t * keep + half; t = t * keep + half; }
      if (pi) t *= *(const Loose*)(pi + k);
    }
    Bent<T> b;
    if constexpr (KIND == MEMBER) b = member_at<T>(a, x, *(const V*)(e + k), t, not_t);
    else if constexpr (KIND == PROBABILITIES) b = probability_at<T>(x, t, not_t, !PLAIN && pi ? not_t * x - t * (T(1) - x) : x - t, !PLAIN && h);
    else b = sigmoid_at<T, PLAIN>(x, *(const V*)(e + k), t, not_t);
    if (!PLAIN && v) {
      const V w = *(const Loose*)(v + k); const auto none = w == T(0);
      b.loss = none ? V{} : b.loss * w; b.grad = none ? V{} : b.grad * w; if (h) b.hess = none ? V{} : b.hess * w;
    }
    if (g) *(Loose*)(g + k) = b.grad * scale;
    if (!PLAIN && h) *(Loose*)(h + k) = b.hess * scale;
    *(V*)(loss + k) = b.loss;
  }
  return is_odd<T>(odd);
}
template <class T, bool PLAIN, Kind KIND> static void sigmoid_loop(const Elements* a, ptrdiff_t begin, ptrdiff_t end, ElementsOut* out) {
  enum { N = Vec<T>::N };
  alignas(64) T z_here[PIECE], g_here[PIECE], h_here[PIECE], y_here[PIECE], v_here[PIECE], p_here[PIECE], l_here[PIECE];
  const ptrdiff_t cols = a->cols; const bool direct = stored_as_is<T>(a->storage); double total = 0;
  const bool streamed = a->stream && direct && a->grad.outer == cols * (ptrdiff_t)sizeof(T);
  for (ptrdiff_t i = begin; i < end; i += PIECE) {
    const ptrdiff_t n = end - i < PIECE ? end - i : ptrdiff_t(PIECE), whole = n / N * N, left = n - whole;
    Piece<T> p = {};
    p.z = direct ? piece<T>(a->values, cols, sizeof(T), i, n, z_here) : widened(a, a->values, i, n, z_here);
    p.y = piece<T>(a->targets, cols, sizeof(T), i, n, y_here);
    if (a->weight.data) p.v = piece<T>(a->weight, cols, a->weight.cls, i, n, v_here);
    if (a->pos_weight.data) p.pi = piece<T>(a->pos_weight, cols, a->pos_weight.cls, i, n, p_here);
    if (a->grad.data) p.g = direct && !streamed ? place<T>(a->grad, cols, i, n, g_here) : g_here;
    if (a->hess.data) p.h = direct ? place<T>(a->hess, cols, i, n, h_here) : h_here;
    p.e = p.loss = l_here;
    if (KIND == PROBABILITIES && out->bad_value < 0) { const ptrdiff_t bad = first_outside(p.z, n); if (bad >= 0) out->bad_value = i + bad; }
    bool odd = whole_vectors<T, PLAIN, KIND>(a, p, whole);
    if (left) {                                                        // the ragged end, padded
      alignas(64) T pad[7][N] = {};
      const size_t bytes = left * sizeof(T); Piece<T> last = {pad[0], pad[1], p.v ? pad[2] : 0, p.pi ? pad[3] : 0, pad[4], pad[4], 0, 0};
      if (p.g) last.g = pad[5];
      if (p.h) last.h = pad[6];
      __builtin_memcpy(pad[0], p.z + whole, bytes); __builtin_memcpy(pad[1], p.y + whole, bytes);
      if (p.v) __builtin_memcpy(pad[2], p.v + whole, bytes);
      if (p.pi) __builtin_memcpy(pad[3], p.pi + whole, bytes);
      odd |= whole_vectors<T, PLAIN, KIND>(a, last, N);
      __builtin_memcpy(l_here + whole, pad[4], bytes);
      if (p.g) __builtin_memcpy(p.g + whole, pad[5], bytes);
      if (p.h) __builtin_memcpy(p.h + whole, pad[6], bytes);
    }
    if (odd && out->bad_target < 0) { const ptrdiff_t bad = first_outside(p.y, n); if (bad >= 0) out->bad_target = i + bad; }
    if (streamed) stream((const char*)g_here, a->grad.data + i * sizeof(T), n * sizeof(T));
    else if (p.g == g_here) put<T>(a, a->grad, i, n, g_here);
    if (p.h == h_here) put<T>(a, a->hess, i, n, h_here);
    if (a->loss.data) put_as_is(a->loss, cols, i, n, l_here);
    for (ptrdiff_t k = n; k % (4 * N); k++) l_here[k] = 0;
    total += sum_of(l_here, n);
  }
  if (streamed) finish_stream();
  out->loss += total;
}
template <class T, Kind KIND> static void elements(const Elements* a, ptrdiff_t begin, ptrdiff_t end, ElementsOut* out) {
  if (KIND == MEMBER || a->weight.data || a->pos_weight.data || a->smoothing != 0 || a->hess.data) sigmoid_loop<T, false, KIND>(a, begin, end, out);
  else sigmoid_loop<T, KIND != MEMBER, KIND>(a, begin, end, out);
}
template <class T> static void sigmoid(const Elements* a, ptrdiff_t begin, ptrdiff_t end, ElementsOut* out) {
  (a->family == fx::BINARY_CROSS_ENTROPY ? elements<T, LOGITS> : elements<T, MEMBER>)(a, begin, end, out);
}
template <class T> static void binary(const Elements* a, ptrdiff_t begin, ptrdiff_t end, ElementsOut* out) { elements<T, PROBABILITIES>(a, begin, end, out); }

// Sum of the weights (element count without weights), and the first target outside [0, 1].
template <class T> static void weights(const Elements* a, ptrdiff_t begin, ptrdiff_t end, ElementsOut* out) {
  typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  alignas(64) T y_here[PIECE], v_here[PIECE]; Wide<T> sum; double rest = 0;
  for (ptrdiff_t i = begin; i < end; i += PIECE) {
    const ptrdiff_t n = end - i < PIECE ? end - i : ptrdiff_t(PIECE), whole = n / N * N;
    const T* const y = piece<T>(a->targets, a->cols, sizeof(T), i, n, y_here);
    typename Vec<T>::UV odd = {};
    for (ptrdiff_t k = 0; k < whole; k += N) odd |= odd_bits<T>(*(const Loose*)(y + k), T(1) - *(const Loose*)(y + k));
    if ((is_odd<T>(odd) || whole < n) && out->bad_target < 0) { const ptrdiff_t bad = first_outside(y, n); if (bad >= 0) out->bad_target = i + bad; }
    if (!a->weight.data) { rest += (double)n; continue; }
    const T* const v = piece<T>(a->weight, a->cols, a->weight.cls, i, n, v_here);
    for (ptrdiff_t k = 0; k < whole; k += N) sum.add(*(const Loose*)(v + k));
    for (ptrdiff_t k = whole; k < n; k++) rest += v[k];
  }
  out->total += sum.total() + rest;
}

}}  // namespace
