// Entropy of Q = softmax(u), and divergences between Q and a teacher P, row by row, any layout, in double: these sums are
// differences of logarithms, and P close to Q is where a student ends.
//
// Every gradient but forward KL's is f Q_k (r_k - R), R = sum Q r; with a_k = dr_k / d log Q_k, A = sum Q a, b = r - R + a,
// c = b - A and d = x - sum Q x, the Hessian's diagonal is f Q ((1 - Q) b - Q c) and its product with x f Q (d b - sum Q d b).
// Divergences are sums of P s - P + X >= 0, s = log(P / X), by a series where s is small: no cancellation as P -> Q.
namespace FX_NS { namespace {

FX_INLINE D log_any(D x) {                                        // x > 0, denormal too
  const ID tiny = x < 0x1p-1000; const D lift = tiny ? D{} + 200 * Num<double>::ln2 : D{};
  return log_normal(tiny ? x * 0x1p200 : x) - lift;
}
FX_INLINE D log1p_down(D y) {                                     // -1 < y <= 0 (Kahan)
  const D w = 1. + y, l = log_normal(w), near = l * (y / (w - 1.));
  return w == 1. ? y : near;
}
// P s - P + X, s = log(P / X)
FX_INLINE D excess(D P, D s, D X) {
  static constexpr double c[] = {1. / 43589145600., 1. / 3113510400., 1. / 239500800., 1. / 19958400., 1. / 1814400., 1. / 181440.,
                                 1. / 20160., 1. / 2520., 1. / 360., 1. / 60., 1. / 12., 1. / 3., 1.};   // 2 / n!, n = 14 ... 2
  const D x = -s; D q = D{} + 1. / 653837184000.;
  for (const double each : c) q = q * x + each;
  const D near = P * (x * x * .5 * q), far = P * s - P + X, size = s < 0. ? -s : s;
  return P == 0. ? X : size < 0.5 ? near : far;
}

// Weights in d->p, used as given; lanes that are not set in the answer have one that is no share of a target.
template <bool ACROSS> static ID weigh(Dist* d, ptrdiff_t S) {
  typedef Lanes<ACROSS> L; D* const l = d->l; const D* const p = d->p; D top = {}, sum = {}, ties = {}; ID wrong = {};
  const D one = D{} + 1., never = D{} - __builtin_inf();
  for (ptrdiff_t k = 0; k < S; k++) { wrong |= ~is_share<double>(p[k]); top = p[k] > top ? p[k] : top; }
  top = L::greatest(top); wrong = L::any(wrong);
  for (ptrdiff_t k = 0; k < S; k++) {
    const ID high = p[k] == top; const D log = log_any(p[k] > 0. ? p[k] : one);
    l[k] = p[k] > 0. ? log : never; sum += high ? D{} : p[k]; ties += high ? one : D{};
  }
  d->left = L::total(sum) + (L::total(ties) - 1.) * top;
  d->lg = D{}; d->mass = d->left + top; d->surplus = (top - 1.) + d->left; d->top = top;
  return ~wrong;
}
template <bool ACROSS> static void one_hot(Dist* d, ptrdiff_t S, ID y) {
  const D one = D{} + 1., never = D{} - __builtin_inf();
  for (ptrdiff_t k = 0; k < S; k++) { const ID own = Lanes<ACROSS>::classes(k) == y; d->p[k] = own ? one : D{}; d->l[k] = own ? D{} : never; }
  d->lg = d->left = d->surplus = D{}; d->mass = d->top = one;
}

// Loss; r in Q.l and a in `a` for all but forward KL (a only for Jensen-Shannon: 1 otherwise); rows whose loss is infinite
template <bool ACROSS> static D diverge(int family, double beta, const Dist& Q, const Dist& P, ptrdiff_t S, D* a, ID* infinite) {
  typedef Lanes<ACROSS> L;
  D* const q = Q.p; D* const ql = Q.l; const D* const p = P.p; D* const pl = P.l; const D lg = Q.lg - P.lg; const double inf = __builtin_inf();
  D loss = {}; ID odd = {};
  switch (family) {
    case fx::ENTROPY:
      for (ptrdiff_t k = 0; k < S; k++) { const D own = q[k] * (Q.lg - ql[k]); loss += q[k] == 0. ? D{} : own; }
      break;
    case fx::FORWARD_KL:
      for (ptrdiff_t k = 0; k < S; k++) loss += excess(p[k], (pl[k] - ql[k]) + lg, q[k]);
      break;
    case fx::REVERSE_KL:
      for (ptrdiff_t k = 0; k < S; k++) {
        const D r = ql[k] - pl[k];
        loss += excess(q[k], r - lg, p[k]); odd |= (q[k] > 0.) & (r == inf); ql[k] = r;
      }
      break;
    default: {                                                    // in three loops: one would wait for its own results
      const D one = D{} + 1., low = D{} - 1e300;
      for (ptrdiff_t k = 0; k < S; k++) {
        const D gap = (pl[k] - ql[k]) + lg, down = gap <= 0. ? gap : -gap;                    // log(P / Q)
        pl[k] = gap; a[k] = expm1_down(down < -1e300 ? low : down);
      }
      for (ptrdiff_t k = 0; k < S; k++) ql[k] = log1p_down((pl[k] <= 0. ? D{} + beta : D{} + (1 - beta)) * a[k]);
      for (ptrdiff_t k = 0; k < S; k++) {
        const D gap = pl[k], log = ql[k], x = a[k], M = beta * p[k] + (1 - beta) * q[k]; const ID near = gap <= 0.;
        const D s = near ? gap - log : -log, r = near ? -log : -gap - log;                    // log(P / M), log(Q / M)
        loss += beta * excess(p[k], s, M) + (1 - beta) * excess(q[k], r, M);
        ql[k] = r; a[k] = beta * (near ? 1. + x : one) / (1. + (near ? D{} + beta : D{} + (1 - beta)) * x);   // beta P / M
      }
    }
  }
  *infinite = L::any(odd);
  loss = L::total(loss);
  return family == fx::FORWARD_KL ? loss + P.surplus : family == fx::REVERSE_KL ? loss - P.surplus : loss;
}
// After `diverge`: r in Q.l is centred, b in `b`; with C, c in Q.l.  P.p is overwritten.
template <bool ACROSS> static void bend(int family, const Dist& Q, const Dist& P, ptrdiff_t S, D* b, bool c) {
  D* const r = Q.l; const D* const q = Q.p;
  if (family == fx::JENSEN_SHANNON) {
    D* const p = P.p;
    for (ptrdiff_t k = 0; k < S; k++) { p[k] = b[k]; const D both = r[k] + b[k]; b[k] = q[k] == 0. ? D{} : both; }
    if (!c) return;
    centre<ACROSS>(Q, S, p);
    for (ptrdiff_t k = 0; k < S; k++) r[k] += p[k];
  } else if (family == fx::FORWARD_KL) for (ptrdiff_t k = 0; k < S; k++) { r[k] = D{}; b[k] = P.mass; }
  else for (ptrdiff_t k = 0; k < S; k++) { const D both = r[k] + 1.; b[k] = q[k] == 0. ? D{} : both; }
}

// The softmax of rows [i, i + n), and their teacher; the rows whose numbers are not NaN
template <class T, bool ACROSS> static ID distributions(
    const SoftmaxRows* a, ptrdiff_t i, ptrdiff_t n, ID y, Dist* Q, Dist* P, BlockOut* out) {
  const ptrdiff_t K = a->classes, S = Lanes<ACROSS>::steps(K); const double inverse = 1 / a->temperature; ID good = ~ID{};
  const int wide = sizeof(T) == 8 ? fx::DOUBLE : fx::FLOAT;
  auto softened = [&](int storage, const Matrix& m, Dist* d) {
    load_doubles<T, ACROSS>(storage, m, a->inner, i, n, K, ACROSS ? 0. : -__builtin_inf(), d->l);
    if (inverse != 1) for (ptrdiff_t k = 0; k < S; k++) d->l[k] *= inverse;
    return soften<ACROSS>(d, S);
  };
  if (a->soft.data && a->teacher_logits) good = softened(wide, a->soft, P);
  else if (a->soft.data) {
    load_doubles<T, ACROSS>(wide, a->soft, a->inner, i, n, K, 0., P->p);
    good = weigh<ACROSS>(P, S); if (some(~good)) report<ACROSS>(~good, i, n, out);
  } else one_hot<ACROSS>(P, S, y);
  return softened(a->storage, a->logits, Q) & good;
}
FX_INLINE double factor_of(const SoftmaxRows* a) { return a->family == fx::ENTROPY ? -1 : a->family == fx::JENSEN_SHANNON ? 1 - a->a : 1; }

// Losses with gradient and Hessian diagonal; or, where a->x is given, grad = Hessian times x.
template <class T, bool ACROSS> static void diverging(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  typedef Lanes<ACROSS> L;
  const ptrdiff_t K = a->classes, S = L::steps(K); const double inverse = 1 / a->temperature, inf = __builtin_inf(), f = factor_of(a);
  D* const q = (D*)scratch; D* const r = q + S; D* const p = r + S; D* const pl = p + S; D* const b = pl + S; D* const x = b + S;
  const bool curved = a->hess.data || a->x.data, sloped = a->grad.data && !a->x.data, forward = a->family == fx::FORWARD_KL;
  double sum = 0;
  for (ptrdiff_t i = begin; i < end; i += L::rows) {
    const ptrdiff_t n = end - i < L::rows ? end - i : L::rows;
    const Heads head = heads_of<T, ACROSS>(a, i, n, out);
    Dist Q, P; ID odd; Q.p = q; Q.l = r; P.p = p; P.l = pl;
    const ID good = distributions<T, ACROSS>(a, i, n, head.y, &Q, &P, out);
    const D value = diverge<ACROSS>(a->family, a->a, Q, P, S, b, &odd) * head.weight, nan = D{} + __builtin_nan("");
    const ID kept = good & ~head.dead, limit = odd & kept; const D fill = head.dead ? D{} : nan, loss = kept ? value : fill;
    T stored[ND];
    for (ptrdiff_t lane = 0; lane < n; lane++) { stored[lane] = T(loss[lane]); sum += loss[lane]; }
    if (a->loss.data) store_rows(a->loss, a->inner, i, n, stored);
    if (!sloped && !curved) continue;
    const D slope = head.weight * (a->scale * inverse), turn = slope * (inverse * f);
    const bool limits = some(limit);
    if (limits && sloped) {                                       // reverse KL = +inf: uphill at P = 0, downhill elsewhere
      ID elsewhere = {};
      for (ptrdiff_t k = 0; k < S; k++) elsewhere |= (q[k] > 0.) & (r[k] < inf);
      elsewhere = L::any(elsewhere);
      for (ptrdiff_t k = 0; k < S; k++) { const D way = r[k] == inf ? D{} + inf : D{} - inf; x[k] = (q[k] == 0.) | ~elsewhere ? D{} : way * slope; }
    }
    if (!forward) centre<ACROSS>(Q, S, r);
    if (sloped) {
      for (ptrdiff_t k = 0; k < S; k++) {
        D g;
        if (forward) {
          const D far = P.mass * q[k] - p[k], near = P.left - P.mass * Q.left;
          g = ((q[k] > 0.5) & (p[k] > P.mass * .5) ? near : far) * slope;
        } else g = q[k] * r[k] * (slope * f);
        pl[k] = kept ? g : fill;
      }
      if (limits) for (ptrdiff_t k = 0; k < S; k++) pl[k] = limit ? x[k] : pl[k];
      store_doubles<T, ACROSS>(a->storage, pl, a->grad, a->inner, i, n, K);
    }
    if (!curved) continue;
    bend<ACROSS>(a->family, Q, P, S, b, a->hess.data);
    if (a->hess.data) {
      for (ptrdiff_t k = 0; k < S; k++) { const D h = q[k] * (without(Q, q[k]) * b[k] - q[k] * r[k]) * turn; pl[k] = kept ? h : fill; }
      if (limits) for (ptrdiff_t k = 0; k < S; k++) pl[k] = limit ? q[k] == 0. ? D{} : nan : pl[k];
      store_doubles<T, ACROSS>(a->storage, pl, a->hess, a->inner, i, n, K);
    }
    if (a->x.data) {
      load_doubles<T, ACROSS>(sizeof(T) == 8 ? fx::DOUBLE : fx::FLOAT, a->x, a->inner, i, n, K, 0., x);
      centre<ACROSS>(Q, S, x);
      for (ptrdiff_t k = 0; k < S; k++) x[k] *= b[k];
      centre<ACROSS>(Q, S, x);
      for (ptrdiff_t k = 0; k < S; k++) { const D h = q[k] * x[k] * turn; x[k] = kept ? h : fill; }
      if (limits) for (ptrdiff_t k = 0; k < S; k++) x[k] = limit ? q[k] == 0. ? D{} : nan : x[k];
      store_doubles<T, ACROSS>(a->storage, x, a->grad, a->inner, i, n, K);
    }
  }
  out->loss += sum;
}

template <class T> static void divergence(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  if (fx::in_lanes(a)) diverging<T, true>(a, begin, end, scratch, out);
  else diverging<T, false>(a, begin, end, scratch, out);
}

}}  // namespace
