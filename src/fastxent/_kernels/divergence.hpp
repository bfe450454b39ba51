// Entropy of Q = softmax(u), and divergences between Q and a teacher P, row by row, any layout, in double: these sums are
// differences of logarithms, and P close to Q is where a student ends.
//
// Every gradient but forward KL's is f Q_k (r_k - R), R = sum Q r; with a_k = dr_k / d log Q_k, A = sum Q a, b = r - R + a,
// c = b - A and d = x - sum Q x, the Hessian's diagonal is f Q ((1 - Q) b - Q c) and its product with x f Q (d b - sum Q d b).
// Centred numbers (v - sum Q v) are taken relative to the class of the greatest Q first: exact where Q has nearly all of it.
// Divergences are sums of P s - P + X >= 0, s = log(P / X), by a series where s is small: no cancellation as P -> Q.
// Rows are padded to whole vectors with impossible classes (log p = -inf, p = 0), which add nothing to anything.
namespace FX_NS { namespace {

// One distribution of a row: p, and log p = l - lg; the greatest p at `at`, `left` = 1 - p there; mass = sum p = 1 + surplus
struct Dist { double *p, *l, lg, left, mass, surplus; ptrdiff_t at; };

FX_INLINE double log_any(double x) {                              // x > 0, denormal too
  const bool tiny = x < 0x1p-1000;
  return log_normal(tiny ? x * 0x1p200 : x) - (tiny ? 200 * Num<double>::ln2 : 0.);
}
FX_INLINE double log1p_down(double y) {                           // -1 < y <= 0 (Kahan)
  const double w = 1 + y, l = log_normal(w);
  return w == 1 ? y : l * (y / (w - 1));
}
// P s - P + X, s = log(P / X)
FX_INLINE double excess(double P, double s, double X) {
  const double x = -s;
  double q = 1 + x * (1. / 17);
  q = 1 + x * (1. / 16) * q; q = 1 + x * (1. / 15) * q; q = 1 + x * (1. / 14) * q; q = 1 + x * (1. / 13) * q; q = 1 + x * (1. / 12) * q;
  q = 1 + x * (1. / 11) * q; q = 1 + x * (1. / 10) * q; q = 1 + x * (1. / 9) * q; q = 1 + x * (1. / 8) * q; q = 1 + x * (1. / 7) * q;
  q = 1 + x * (1. / 6) * q; q = 1 + x * (1. / 5) * q; q = 1 + x * (1. / 4) * q; q = 1 + x * (1. / 3) * q;
  const double near = P * (x * x / 2 * q), far = P * s - P + X, size = s < 0 ? -s : s;
  return P == 0 ? X : size < 0.5 ? near : far;
}

FX_INLINE ptrdiff_t padded(ptrdiff_t K) { return (K + 7) / 8 * 8; }
template <class T> static void read_doubles(int storage, const char* p, ptrdiff_t stride, ptrdiff_t K, double pad, double* out) {
  if (stored_as_is<T>(storage) && stride == (ptrdiff_t)sizeof(T)) {
    const T* const z = (const T*)p;
#pragma omp simd
    for (ptrdiff_t k = 0; k < K; k++) out[k] = z[k];
  } else for (ptrdiff_t k = 0; k < K; k++) out[k] = number_at<T>(storage, p + k * stride);
  for (ptrdiff_t k = K; k < padded(K); k++) out[k] = pad;
}
template <class T> static void write_doubles(int storage, const double* v, double by, ptrdiff_t K, char* p, ptrdiff_t stride) {
  if (stored_as_is<T>(storage) && stride == (ptrdiff_t)sizeof(T)) {
    T* const out = (T*)p;
#pragma omp simd
    for (ptrdiff_t k = 0; k < K; k++) out[k] = T(v[k] * by);
  } else for (ptrdiff_t k = 0; k < K; k++) number_to(storage, T(v[k] * by), p + k * stride);
}

// Logits in d->l to p and l; false for a row without a softmax: NaN, all -inf, or two +inf.
static bool soften(Dist* d, ptrdiff_t K, double inverse) {
  double* const l = d->l; double* const p = d->p; const double inf = __builtin_inf();
  double m = -inf, rest = 0, ties = 0;
#pragma omp simd reduction(max : m)
  for (ptrdiff_t k = 0; k < K; k++) { l[k] *= inverse; m = l[k] > m ? l[k] : m; }
  if (__builtin_expect(!(m > -inf && m < inf), 0)) {
    ptrdiff_t infinite = 0; bool nan = false;
    for (ptrdiff_t k = 0; k < K; k++) { infinite += l[k] == inf; nan |= l[k] != l[k]; }
    if (nan || infinite != 1) return false;
    for (ptrdiff_t k = 0; k < K; k++) l[k] = l[k] == inf ? 0. : -inf;
    m = 0;
  }
  const Shift<double> s = shift_of(m); const double top = exp_of(m, s);
#pragma omp simd reduction(+ : rest, ties)
  for (ptrdiff_t k = 0; k < K; k++) {
    const double e = exp_of(l[k], s);
    rest += l[k] >= m ? 0. : e; ties += l[k] >= m ? 1. : 0.; p[k] = e;
  }
  if (rest != rest) return false;
  rest += (ties - 1) * top;
  const double sum = rest + top, by = 1 / sum;
  d->at = 0; while (l[d->at] != m) d->at++;
  d->lg = log1p_of(rest / top); d->left = rest / sum; d->mass = 1; d->surplus = 0;
#pragma omp simd
  for (ptrdiff_t k = 0; k < K; k++) { l[k] -= m; p[k] *= by; }
  p[d->at] = top / sum;
  return true;
}
// Weights in d->p, used as given; false where one is negative or NaN
static bool weigh(Dist* d, ptrdiff_t K) {
  double* const l = d->l; const double* const p = d->p; double top = -1, sum = 0; int wrong = 0;
#pragma omp simd reduction(max : top) reduction(| : wrong)
  for (ptrdiff_t k = 0; k < K; k++) { wrong |= !(p[k] >= 0); top = p[k] > top ? p[k] : top; }
  if (wrong) return false;
  d->at = 0; while (p[d->at] != top) d->at++;
  const ptrdiff_t at = d->at;
#pragma omp simd reduction(+ : sum)
  for (ptrdiff_t k = 0; k < K; k++) {
    const double log = log_any(p[k] > 0 ? p[k] : 1.);
    l[k] = p[k] > 0 ? log : -__builtin_inf(); sum += k == at ? 0. : p[k];
  }
  d->lg = 0; d->left = sum; d->mass = sum + top; d->surplus = (top - 1) + sum;
  return true;
}
static void one_hot(Dist* d, ptrdiff_t K, ptrdiff_t y) {
  for (ptrdiff_t k = 0; k < K; k++) { d->p[k] = 0; d->l[k] = -__builtin_inf(); }
  d->p[y] = 1; d->l[y] = 0; d->at = y; d->lg = d->left = d->surplus = 0; d->mass = 1;
}

// v to v - sum Q v, 0 where Q is 0
static void centre(const Dist& Q, ptrdiff_t K, double* v) {
  const double top = v[Q.at]; const double* const p = Q.p; double mean = 0;
#pragma omp simd reduction(+ : mean)
  for (ptrdiff_t k = 0; k < K; k++) { v[k] = p[k] == 0 ? 0. : v[k] - top; mean += p[k] * v[k]; }
#pragma omp simd
  for (ptrdiff_t k = 0; k < K; k++) v[k] = p[k] == 0 ? 0. : v[k] - mean;
}

// Loss; r in Q.l and a in `a` for all but forward KL (a only for Jensen-Shannon: 1 otherwise)
static double diverge(int family, double beta, const Dist& Q, const Dist& P, ptrdiff_t K, double* a, double* infinite) {
  double* const q = Q.p; double* const ql = Q.l; const double* const p = P.p; double* const pl = P.l;
  const double lg = Q.lg - P.lg, inf = __builtin_inf(); double loss = 0, odd = 0;
  switch (family) {
    case fx::ENTROPY:
#pragma omp simd reduction(+ : loss)
      for (ptrdiff_t k = 0; k < K; k++) loss += q[k] * (q[k] == 0 ? 0. : Q.lg - ql[k]);
      break;
    case fx::FORWARD_KL:
#pragma omp simd reduction(+ : loss)
      for (ptrdiff_t k = 0; k < K; k++) loss += excess(p[k], (pl[k] - ql[k]) + lg, q[k]);
      loss += P.surplus;
      break;
    case fx::REVERSE_KL:
#pragma omp simd reduction(+ : loss, odd)
      for (ptrdiff_t k = 0; k < K; k++) {
        const double r = ql[k] - pl[k];
        loss += excess(q[k], r - lg, p[k]); odd += q[k] > 0 && r == inf ? 1. : 0.; ql[k] = r;
      }
      loss -= P.surplus;
      break;
    default:                                                      // in three loops: one would wait for its own results
#pragma omp simd
      for (ptrdiff_t k = 0; k < K; k++) {
        const double gap = (pl[k] - ql[k]) + lg, down = gap <= 0 ? gap : -gap;                // log(P / Q)
        pl[k] = gap; a[k] = expm1_down(down < -1e300 ? -1e300 : down);
      }
#pragma omp simd
      for (ptrdiff_t k = 0; k < K; k++) ql[k] = log1p_down((pl[k] <= 0 ? beta : 1 - beta) * a[k]);
#pragma omp simd reduction(+ : loss)
      for (ptrdiff_t k = 0; k < K; k++) {
        const double gap = pl[k], log = ql[k], x = a[k], M = beta * p[k] + (1 - beta) * q[k]; const bool near = gap <= 0;
        const double s = near ? gap - log : -log, r = near ? -log : -gap - log;               // log(P / M), log(Q / M)
        loss += beta * excess(p[k], s, M) + (1 - beta) * excess(q[k], r, M);
        ql[k] = r; a[k] = beta * (near ? 1 + x : 1.) / (1 + (near ? beta : 1 - beta) * x);     // beta P / M
      }
  }
  *infinite = odd;
  return loss;
}

// The softmax of row i, and its teacher: false where the row's numbers are NaN
template <class T> static bool distributions(const SoftmaxRows* a, ptrdiff_t i, int64_t y, Dist* Q, Dist* P, BlockOut* out) {
  const ptrdiff_t K = a->classes; const double inverse = 1 / a->temperature; bool good = true;
  const int wide = sizeof(T) == 8 ? fx::DOUBLE : fx::FLOAT;
  if (a->soft.data) {
    read_doubles<T>(wide, run_at(a->soft, a->inner, i, 1).at, a->soft.cls, K, a->teacher_logits ? -__builtin_inf() : 0., a->teacher_logits ? P->l : P->p);
    good = a->teacher_logits ? soften(P, padded(K), inverse) : weigh(P, padded(K));
    if (!good && !a->teacher_logits && (out->bad < 0 || out->bad > i)) out->bad = i;
  } else one_hot(P, padded(K), y);
  read_doubles<T>(a->storage, run_at(a->logits, a->inner, i, 1).at, a->logits.cls, K, -__builtin_inf(), Q->l);
  return soften(Q, padded(K), inverse) && good;
}

// Losses with gradient and Hessian diagonal; or, where a->x is given, grad = Hessian times x.
template <class T> static void divergence(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  const ptrdiff_t K = a->classes, N = padded(K); const double inverse = 1 / a->temperature, inf = __builtin_inf(), nan = __builtin_nan("");
  double* const q = (double*)scratch; double* const r = q + N; double* const p = r + N; double* const pl = p + N;
  double* const b = pl + N; double* const x = b + N; double total = 0;
  const double f = a->family == fx::ENTROPY ? -1 : a->family == fx::JENSEN_SHANNON ? 1 - a->a : 1;
  const bool curved = a->hess.data || a->x.data, forward = a->family == fx::FORWARD_KL;
  int64_t labels[GROUP]; T weights[GROUP];
  for (ptrdiff_t i = begin; i < end; i++) {
    const ptrdiff_t in = (i - begin) % GROUP;
    if (in == 0) take_rows<T>(a, i, end - i < GROUP ? end - i : GROUP, labels, weights, out);
    const int64_t y = labels[in]; const T weight = weights[in]; T loss; double odd;
    char* const gp = a->grad.data ? run_at(a->grad, a->inner, i, 1).at : 0;
    char* const hp = a->hess.data ? run_at(a->hess, a->inner, i, 1).at : 0;
    Dist Q = {q, r, 0, 0, 1, 0, 0}, P = {p, pl, 0, 0, 1, 0, 0};
    const bool good = distributions<T>(a, i, y, &Q, &P, out);
    if (weight == 0 || !good) {
      const double v = weight == 0 ? 0. : nan;
      for (ptrdiff_t k = 0; k < K; k++) q[k] = v;
      if (gp) write_doubles<T>(a->storage, q, 1, K, gp, a->grad.cls);
      if (hp) write_doubles<T>(a->storage, q, 1, K, hp, a->hess.cls);
      loss = T(v); total += v;
      if (a->loss.data) store_rows(a->loss, a->inner, i, 1, &loss);
      continue;
    }
    const double value = diverge(a->family, a->a, Q, P, N, b, &odd) * weight;
    loss = T(value); total += value;
    if (a->loss.data) store_rows(a->loss, a->inner, i, 1, &loss);
    if (!gp && !hp) continue;
    const double slope = weight * a->scale * inverse, bend = slope * inverse * f;
    if (odd > 0) {                                                // reverse KL = +inf: uphill at P = 0, downhill elsewhere
      bool elsewhere = false;
      for (ptrdiff_t k = 0; k < N; k++) elsewhere |= q[k] > 0 && r[k] < inf;
      for (ptrdiff_t k = 0; k < N; k++) {
        b[k] = q[k] == 0 ? 0. : nan;
        r[k] = q[k] == 0 || !elsewhere ? 0. : r[k] == inf ? inf : -inf;
      }
      if (gp) write_doubles<T>(a->storage, a->x.data ? b : r, slope, K, gp, a->grad.cls);
      if (hp) write_doubles<T>(a->storage, b, 1, K, hp, a->hess.cls);
      continue;
    }
    if (forward) {
      if (gp && !a->x.data) {
        const double mass = P.mass, high = mass / 2; const double qy = q[Q.at], py = p[Q.at];
#pragma omp simd
        for (ptrdiff_t k = 0; k < N; k++) r[k] = mass * q[k] - p[k];
        if (qy > 0.5 && py > high) r[Q.at] = (P.at == Q.at ? P.left : mass - py) - mass * Q.left;
        write_doubles<T>(a->storage, r, slope, K, gp, a->grad.cls);
      }
      if (curved) for (ptrdiff_t k = 0; k < N; k++) { r[k] = 0; b[k] = P.mass; }
    } else {
      centre(Q, N, r);
      if (gp && !a->x.data) {
#pragma omp simd
        for (ptrdiff_t k = 0; k < N; k++) p[k] = q[k] * r[k];
        write_doubles<T>(a->storage, p, slope * f, K, gp, a->grad.cls);
      }
      if (curved) {
        if (a->family == fx::JENSEN_SHANNON) {
          for (ptrdiff_t k = 0; k < N; k++) { p[k] = b[k]; b[k] = q[k] == 0 ? 0. : r[k] + b[k]; }
          centre(Q, N, p);
          for (ptrdiff_t k = 0; k < N; k++) r[k] += p[k];                 // c
        } else for (ptrdiff_t k = 0; k < N; k++) b[k] = q[k] == 0 ? 0. : r[k] + 1;
      }
    }
    if (hp) {
#pragma omp simd
      for (ptrdiff_t k = 0; k < N; k++) p[k] = q[k] * ((1 - q[k]) * b[k] - q[k] * r[k]);
      p[Q.at] = q[Q.at] * (Q.left * b[Q.at] - q[Q.at] * r[Q.at]);
      write_doubles<T>(a->storage, p, bend, K, hp, a->hess.cls);
    }
    if (a->x.data) {
      read_doubles<T>(sizeof(T) == 8 ? fx::DOUBLE : fx::FLOAT, run_at(a->x, a->inner, i, 1).at, a->x.cls, K, 0., x);
      centre(Q, N, x);
      for (ptrdiff_t k = 0; k < N; k++) x[k] *= b[k];
      centre(Q, N, x);
      for (ptrdiff_t k = 0; k < N; k++) x[k] *= q[k];
      write_doubles<T>(a->storage, x, bend, K, gp, a->grad.cls);
    }
  }
  out->loss += total;
}

}}  // namespace
