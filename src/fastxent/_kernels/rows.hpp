// What the softmax kernels share: addressing rows, loading labels and weights, the algebra of targets, and the limits.
namespace FX_NS { namespace {
using fx::Matrix; using fx::SoftmaxRows; using fx::BlockOut;

enum { GROUP = 64 };                     // rows whose labels are taken at once
enum Mode { LABEL, SMOOTH, SMOOTH_WEIGHTED, SOFT, SOFT_WEIGHTED };   // targets: labels; smoothed, with class weights; distributions

// A run of rows that lie evenly: rows [i, i + count) start at `at`, `stride` bytes apart.
struct Run { char* at; ptrdiff_t count, stride; };
FX_INLINE Run run_at(const Matrix& m, ptrdiff_t inner, ptrdiff_t i, ptrdiff_t n) {
  if (inner == 1) return {m.data + i * m.outer, n, m.outer};
  const ptrdiff_t o = i / inner, s = i % inner;
  return {m.data + o * m.outer + s * m.inner, n < inner - s ? n : inner - s, m.inner};
}
template <class T> static inline void load_rows(const Matrix& m, ptrdiff_t inner, ptrdiff_t i, ptrdiff_t n, T* out) {
  while (n > 0) {
    const Run run = run_at(m, inner, i, n);
    if (run.stride == (ptrdiff_t)sizeof(T)) __builtin_memcpy(out, run.at, run.count * sizeof(T));
    else for (ptrdiff_t k = 0; k < run.count; k++) __builtin_memcpy(out + k, run.at + k * run.stride, sizeof(T));
    out += run.count; i += run.count; n -= run.count;
  }
}
template <class T> static inline void store_rows(const Matrix& m, ptrdiff_t inner, ptrdiff_t i, ptrdiff_t n, const T* from) {
  while (n > 0) {
    const Run run = run_at(m, inner, i, n);
    if (run.stride == (ptrdiff_t)sizeof(T)) __builtin_memcpy(run.at, from, run.count * sizeof(T));
    else for (ptrdiff_t k = 0; k < run.count; k++) __builtin_memcpy(run.at + k * run.stride, from + k, sizeof(T));
    from += run.count; i += run.count; n -= run.count;
  }
}
template <class I> static inline void widen_labels(const char* p, ptrdiff_t stride, ptrdiff_t n, int64_t* out) {
  if (stride == (ptrdiff_t)sizeof(I)) {
    for (ptrdiff_t i = 0; i < n; i++) { I v; __builtin_memcpy(&v, p + i * (ptrdiff_t)sizeof(I), sizeof(I)); out[i] = (int64_t)v; }
  } else {
    for (ptrdiff_t i = 0; i < n; i++) { I v; __builtin_memcpy(&v, p + i * stride, sizeof(I)); out[i] = (int64_t)v; }
  }
}
// Labels of any integer type as int64, a block at a time: kernels are never instantiated per label type.  A uint64 beyond
// int64 becomes negative, which is no class either.
static void load_labels(const SoftmaxRows* a, ptrdiff_t i, ptrdiff_t n, int64_t* out) {
  while (n > 0) {
    const Run run = run_at(a->labels, a->inner, i, n);
    const char* p = run.at; const ptrdiff_t s = run.stride, c = run.count;
    switch (a->label_kind) {
      case 0: widen_labels<uint8_t>(p, s, c, out); break;  case 1: widen_labels<uint16_t>(p, s, c, out); break;
      case 2: widen_labels<uint32_t>(p, s, c, out); break; case 3: widen_labels<uint64_t>(p, s, c, out); break;
      case 4: widen_labels<int8_t>(p, s, c, out); break;   case 5: widen_labels<int16_t>(p, s, c, out); break;
      case 6: widen_labels<int32_t>(p, s, c, out); break;  default: widen_labels<int64_t>(p, s, c, out);
    }
    out += c; i += c; n -= c;
  }
}
// A hint that the labels of rows [i, i + n) are needed soon, where these rows lie before `end` and lie evenly.
FX_INLINE void ask_for_labels(const SoftmaxRows* a, ptrdiff_t i, ptrdiff_t n, ptrdiff_t end) {
  if (i + n > end) return;
  const char* const from = a->labels.data + i * a->labels.outer;
  for (ptrdiff_t at = 0; at < n * a->labels.outer; at += 64) __builtin_prefetch(from + at);
}
// Labels checked and weights of rows [i, i + n).  A label that is no class becomes 0, so that nothing is read or written out
// of bounds, and its row's weight NaN; the weight of an ignored row is 0.  Whether every weight is 1.
template <class T> static __attribute__((noinline)) bool take_rows(const SoftmaxRows* a, ptrdiff_t i, ptrdiff_t n, int64_t* y, T* weight, BlockOut* out) {
  if (a->weight.data) load_rows(a->weight, a->inner, i, n, weight);
  else for (ptrdiff_t r = 0; r < n; r++) weight[r] = 1;
  if (!a->labels.data) { for (ptrdiff_t r = 0; r < n; r++) y[r] = 0; out->counted += n; return !a->weight.data; }
  load_labels(a, i, n, y);
  const int64_t K = a->classes, ignore = a->ignore; const bool has = a->has_ignore; int64_t skipped = 0; uint64_t most = 0;
  for (ptrdiff_t r = 0; r < n; r++) most = (uint64_t)y[r] > most ? (uint64_t)y[r] : most;
  if (has) for (ptrdiff_t r = 0; r < n; r++) skipped += y[r] == ignore;
  const bool some = skipped || most >= (uint64_t)K;
  if (some) {
    ptrdiff_t faults = 0;
    for (ptrdiff_t r = 0; r < n; r++) faults += ((uint64_t)y[r] >= (uint64_t)K) & !(has & (y[r] == ignore));
    for (ptrdiff_t r = 0; faults && r < n; r++)
      if ((uint64_t)y[r] >= (uint64_t)K && !(has && y[r] == ignore)) { if (out->bad < 0 || out->bad > i + r) out->bad = i + r; break; }
    for (ptrdiff_t r = 0; r < n; r++) {
      const bool skip = has & (y[r] == ignore), wrong = (uint64_t)y[r] >= (uint64_t)K;
      weight[r] = skip ? T(0) : wrong ? T(__builtin_nan("")) : weight[r];
      y[r] = wrong ? 0 : y[r];
    }
  }
  out->counted += n - skipped;
  return !a->weight.data && !some;
}

// Whether t, a number or a vector of them, may be a class's share of a target: not negative, infinite or NaN.
template <class T, class X> FX_INLINE auto is_share(const X t) -> decltype(t >= t) { return (t >= T(0)) & (t <= T(Num<T>::most)); }

// q_k = w_k (alpha t_k + beta); for a label, q_y = w_y top and q_k = w_k beta
template <class T> struct Target {
  T alpha, beta, top, zeta, grad_scale, hess_scale; double weight_sum; const T* w;
  explicit Target(const SoftmaxRows* a) {
    const double s = a->smoothing, K = (double)a->classes;
    const double b = a->exclude ? (K > 1 ? s / (K - 1) : 0) : s / K;
    beta = T(b); alpha = T(a->exclude ? 1 - s - b : 1 - s); top = T(a->exclude ? 1 - s : 1 - s + b);
    zeta = T(a->z_loss); w = (const T*)a->class_weight; weight_sum = K;
    if (w) { weight_sum = 0; for (ptrdiff_t k = 0; k < a->classes; k++) weight_sum += w[k]; }
    const double inverse = 1 / a->temperature;
    grad_scale = T(a->scale * inverse); hess_scale = T(a->scale * inverse * inverse);
  }
};

// Loss and coefficients of N rows, lanes are rows.  m maximum, zy and ey the label's logit and e, top e at the maximum, others the sum
// of e without one maximum, wv the label's class weight, lv the row's weight.  LABELS: targets are labels without smoothing; else Q is
// the sum of the target's shares q and near = sum q (m - u).  The gradient is e * by - q * lv * grad_scale, for a label gy.
template <class T> struct Closed { typename Vec<T>::V loss, lse, by, gy, sum, no_y, coefficient, bend; };
template <class T> static __attribute__((noinline)) void family_rows(
    const SoftmaxRows* a, typename Vec<T>::V ey, typename Vec<T>::V far, typename Vec<T>::V wv, Closed<T>* o) {
  typedef typename Vec<T>::V V; enum { N = Vec<T>::N };
  double p[N], q[N], l[N], f[N], G[N], P[N];
  const V pv = ey / o->sum, qv = o->no_y / o->sum;
  for (int i = 0; i < N; i++) { p[i] = pv[i]; q[i] = qv[i]; l[i] = far[i]; }
  family_of(a, N, p, q, l, f, G, P);
  for (int i = 0; i < N; i++) { o->loss[i] = T(f[i]); o->coefficient[i] = T(G[i]); o->bend[i] = T(P[i]); }
  o->loss *= wv; o->coefficient *= wv; o->bend *= wv;
}
// The part of close_rows that the gradient of the plain cross-entropy wants.
template <class T> FX_INLINE Closed<T> close_gradients(
    const Target<T>& target, const typename Vec<T>::V m, const typename Vec<T>::V zy, const typename Vec<T>::V ey,
    const typename Vec<T>::V top, const typename Vec<T>::V others, const typename Vec<T>::V wv, const typename Vec<T>::V lv) {
  Closed<T> o;
  o.sum = others + top; o.no_y = zy == m ? others : o.sum - ey;
  o.by = wv * (lv * target.grad_scale) / o.sum; o.gy = o.no_y * -o.by;    // in this order a huge weight meets a tiny scale first
  return o;
}
template <class T, bool LABELS> FX_INLINE Closed<T> close_rows(
    const SoftmaxRows* a, const Target<T>& target, const typename Vec<T>::V m, const typename Vec<T>::V zy, const typename Vec<T>::V ey,
    const typename Vec<T>::V top, const typename Vec<T>::V others, const typename Vec<T>::V wv, const typename Vec<T>::V lv,
    const typename Vec<T>::V Q, const typename Vec<T>::V near) {
  typedef typename Vec<T>::V V; const T zeta = target.zeta; Closed<T> o;
  o.sum = others + top; o.no_y = zy == m ? others : o.sum - ey; o.bend = V{};
  const V lg = log1p_of<T>(others / top), factor = lv * target.grad_scale;
  o.lse = m + lg;
  if (LABELS) {
    const V gap = m - zy, far = lg + (wv != T(0) ? gap : V{});
    o.loss = wv * far; o.coefficient = wv;
    if (a->family != fx::CROSS_ENTROPY) family_rows<T>(a, ey, far, wv, &o);
  } else { o.loss = Q * lg + near; o.coefficient = Q; }
  o.gy = o.no_y * -(o.coefficient * factor / o.sum);
  if (zeta != 0) {
    o.loss += zeta * o.lse * o.lse; o.coefficient += 2 * zeta * o.lse;
    o.gy += 2 * zeta * o.lse * (ey * (factor / o.sum));   // in this order a huge lse does not overflow before it is scaled
  }
  o.loss = lv == T(0) ? V{} : o.loss * lv;
  o.by = o.coefficient * factor / o.sum;
  return o;
}

// u_k = z_k / T + b_k of the row at `from`.  Every kernel stores z_k / T before it adds b_k; a fused multiply-add would be
// another number, and where u is large the losses of two layouts would differ by as much as its last digit.
template <class T> FX_INLINE T logit_at(const SoftmaxRows* a, const char* from, T inverse, const T* bias, ptrdiff_t k) {
  const volatile T scaled = number_at<T>(a->storage, from + k * a->logits.cls) * inverse;
  return bias ? scaled + bias[k] : scaled;
}

// The rows of the limits, whose maximum is not finite: one +inf takes all the probability, any other such row is NaN.
// Fills g[k * step], h[k * step] where not null; returns the loss (weight included).  Of a row of weight 0 only lse is left.
template <class T> __attribute__((noinline, cold)) static T limit_row(
    const SoftmaxRows* a, const Target<T>& target, ptrdiff_t i, int64_t y, T weight, T* g, T* h, ptrdiff_t step, T* lse) {
  const ptrdiff_t K = a->classes, inner = a->inner; const T inf = T(__builtin_inf()), inverse = T(1 / a->temperature);
  const char* const zp = run_at(a->logits, inner, i, 1).at; const char* const tp = a->soft.data ? run_at(a->soft, inner, i, 1).at : 0;
  const T* bias = (const T*)a->bias; ptrdiff_t at = -1, count = 0; bool nan = false, wrong = weight != weight;
  for (ptrdiff_t k = 0; k < K; k++) {
    const T u = logit_at(a, zp, inverse, bias, k);
    nan |= u != u; if (u == inf) { at = k; count++; }
    if (tp) { const T t = *(const T*)(tp + k * a->soft.cls); wrong |= t != t; }
  }
  *lse = nan || count != 1 ? T(__builtin_nan("")) : inf;
  if (*lse != inf || weight == 0 || wrong) {
    const T q = weight == 0 ? T(0) : T(__builtin_nan(""));
    for (ptrdiff_t k = 0; k < K; k++) { if (g) g[k * step] = q; if (h) h[k * step] = q; }
    return q;
  }
  const Member zero = family_of(a, 0., 1., __builtin_inf());                  // every other class has probability 0
  double mass = 0, low = 0, loss = 0;                                         // mass of the other classes, and what its sum rounded off
  for (ptrdiff_t k = 0; k < K; k++) {
    const T w = target.w ? target.w[k] : T(1);
    const T q = w * (tp ? target.alpha * *(const T*)(tp + k * a->soft.cls) + target.beta : k == y ? target.top : target.beta);
    if (k != at && q != 0) {
      const double next = q + low, sum = mass + next; low = next - (sum - mass); mass = sum;
      loss += q * zero.f;
    }
    if (g) g[k * step] = k == at ? T(0) : -q * T(zero.G) * weight * target.grad_scale;
    if (h) h[k * step] = k == at ? 2 * target.zeta * weight * target.hess_scale : T(0);
  }
  if (g) g[at * step] = (target.zeta > 0 ? inf : T(mass * zero.G)) * weight * target.grad_scale;
  return target.zeta > 0 ? inf * weight : T(loss) * weight;
}

}}  // namespace
