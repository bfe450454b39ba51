// What Newton steps want of the curvature, row by row, any layout, in double: a diagonal that dominates the Hessian, and the
// solution of (lam I + H) x = r in O(K).
//
// With p = softmax(u) and C = I - 1 p', the Hessian of every softmax loss and of every divergence is C' diag(w) C + 2 zeta p p':
// w = S p - q P / (1 - p), S = sum q G + 2 zeta lse for the family; w = f Q b for a divergence (divergence.hpp).  So Hessians
// over one softmax add up by adding w and zeta.  With m = p.x and t = w.(x - m) - 2 zeta m, a row of the system reads
//     (lam + w) x = r + w m + p t,
// and p.(x - m) = 0 with the definition of t are two equations for m and t:
//     [ sum p lam/d                   -sum p p/d   ] [m]   [sum p r/d]
//     [ sum w lam/d + 2 zeta           sum p lam/d ] [t] = [sum w r/d],      d = lam + w,
// for 1 - sum p w/d = sum p lam/d: nothing cancels as lam goes to 0.  Several softmaxes (temperatures) are two unknowns each.
// Where a d is all but 0 without the matrix being singular, w is moved by 1e-7 of its size: two steps of refinement undo that.
namespace FX_NS { namespace {

FX_INLINE D size_of(D x) { return x < 0. ? -x : x; }
FX_INLINE D positive(D x) { return x > 0. ? x : D{}; }

// The softmax of rows [i, i + n); own = q_k P_k and S of the family's member.  The rows that have a softmax.
template <class T, bool ACROSS> static ID members(
    const SoftmaxRows* a, ptrdiff_t i, ptrdiff_t n, ID y, Dist* Q, D* own, D* slope, BlockOut* out) {
  typedef Lanes<ACROSS> L;
  const ptrdiff_t K = a->classes, S = L::steps(K); const double inverse = 1 / a->temperature, s = a->smoothing;
  const T* const w = (const T*)a->class_weight; const T* const bias = (const T*)a->bias; const D one = D{} + 1.;
  load_doubles<T, ACROSS>(a->storage, a->logits, a->inner, i, n, K, ACROSS ? 0. : -__builtin_inf(), Q->l);
  if (bias || inverse != 1)
    for (ptrdiff_t k = 0; k < S; k++) { const D u = Q->l[k] * inverse; Q->l[k] = bias ? u + L::per_class(bias, k, K) : u; }
  const ID good = soften<ACROSS>(Q, S); D total = {};
  if (!a->soft.data && s == 0) {                                  // of labels, one member per row
    D p = {}, left = {}, l = {}, by = one; ID found = {};
    for (ptrdiff_t k = 0; k < S; k++) {
      const ID here = L::classes(k) == y; const D far = Q->lg - Q->l[k];
      p = here ? Q->p[k] : p; l = here ? far : l; found |= here;
      if (w) by = here ? L::per_class(w, k, K) : by;
    }
    p = L::chosen(p, found); l = L::chosen(l, found); by = L::chosen(by, found); left = without(*Q, p);
    const MemberOf<D> m = member_at<D>(a->family, a->a, a->b, p, left, l); const D P = by * m.P;
    for (ptrdiff_t k = 0; k < S; k++) own[k] = L::classes(k) == y ? P : D{};
    total = by * m.G;
  } else {
    const double b = a->exclude ? (K > 1 ? s / (double)(K - 1) : 0) : s / (double)K, alpha = a->exclude ? 1 - s - b : 1 - s;
    const bool plain = a->family == fx::CROSS_ENTROPY; ID wrong = {};
    if (a->soft.data) load_doubles<T, ACROSS>(sizeof(T) == 8 ? fx::DOUBLE : fx::FLOAT, a->soft, a->inner, i, n, K, 0., own);
    for (ptrdiff_t k = 0; k < S; k++) {
      const ID classes = L::classes(k);
      const D t = a->soft.data ? own[k] : classes == y ? one : D{}; D q = alpha * t + b;
      wrong |= ~(t >= 0.);
      if (w) q *= L::per_class(w, k, K);
      q = classes < (int64_t)K ? q : D{};
      if (plain) { own[k] = D{}; total += q; continue; }
      const D p = Q->p[k]; const MemberOf<D> m = member_at<D>(a->family, a->a, a->b, p, without(*Q, p), Q->lg - Q->l[k]);
      own[k] = q == 0. ? D{} : q * m.P; total += q == 0. ? D{} : q * m.G;
    }
    total = L::total(total); wrong = L::any(wrong);
    if (some(wrong)) report<ACROSS>(wrong, i, n, out);
  }
  *slope = a->z_loss != 0 ? total + 2 * a->z_loss * (Q->m + Q->lg) : total;
  return good;
}

// ---- a diagonal that dominates the Hessian ---------------------------------------------------------------------------

template <class T, bool ACROSS> static void bounding(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  typedef Lanes<ACROSS> L;
  const ptrdiff_t K = a->classes, S = L::steps(K); const double scale = a->scale / (a->temperature * a->temperature);
  D* const q = (D*)scratch; D* const l = q + S; D* const own = l + S; D* const pl = own + S; D* const b = pl + S; Dist Q, P;
  for (ptrdiff_t i = begin; i < end; i += L::rows) {
    const ptrdiff_t n = end - i < L::rows ? end - i : L::rows; const Heads head = heads_of<T, ACROSS>(a, i, n, out);
    ID good, odd = {}; D sum = {}; const D one = D{} + 1., v = head.weight; Q.p = q; Q.l = l; P.p = own; P.l = pl;
    if (a->divergence) {
      good = distributions<T, ACROSS>(a, i, n, head.y, &Q, &P, out); diverge<ACROSS>(a->family, a->a, Q, P, S, b, &odd);
      if (a->family != fx::FORWARD_KL) centre<ACROSS>(Q, S, l);
      bend<ACROSS>(a->family, Q, P, S, b, false);
      const D f = v * factor_of(a);
      for (ptrdiff_t k = 0; k < S; k++) { own[k] = positive(f * q[k] * b[k]) * without(Q, q[k]); sum += own[k]; }
      sum = L::total(sum);
      for (ptrdiff_t k = 0; k < S; k++) own[k] = 2 * scale * (own[k] * without(Q, q[k]) + q[k] * (sum - own[k]));
    } else {
      D slope; good = members<T, ACROSS>(a, i, n, head.y, &Q, own, &slope, out);
      const D sign = v < 0. ? -one : one, factor = size_of(v) * (2 * scale), up = positive(sign * slope);
      const D flat = v > 0. ? one * a->z_loss : D{};
      for (ptrdiff_t k = 0; k < S; k++) { own[k] = positive(-sign * own[k]); sum += own[k]; }
      sum = L::total(sum);
      for (ptrdiff_t k = 0; k < S; k++) {
        const D p = q[k], left = without(Q, p);
        own[k] = (up * p * left + p * (sum - own[k]) + left * own[k] + flat * p) * factor;
      }
    }
    const ID kept = good & ~odd & ~head.dead & (v == v); const D nan = D{} + __builtin_nan(""), fill = head.dead ? D{} : nan;
    for (ptrdiff_t k = 0; k < S; k++) own[k] = kept ? own[k] : fill;
    store_doubles<T, ACROSS>(a->storage, own, a->hess, a->inner, i, n, K);
  }
}
template <class T> static void upper(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  if (fx::in_lanes(a)) bounding<T, true>(a, begin, end, scratch, out);
  else bounding<T, false>(a, begin, end, scratch, out);
}

// ---- (lam I + H) x = r ---------------------------------------------------------------------------------------------------

// The parts of a row's matrix: p, w and zeta of every softmax, lam, and 1 / d; `moved` is what refinement undoes.
struct System { ptrdiff_t S; int G; D *p, *w, *lam, *over, *moved, *zeta, *top, *small; };

// x += the solution for right-hand side r
template <bool ACROSS> static void eliminate(const System& s, const D* r, D* x) {
  typedef Lanes<ACROSS> L; const ptrdiff_t S = s.S;
  if (s.G == 1) {
    D pr = {}, pp = {}, pl = {}, wr = {}, wl = {};
    for (ptrdiff_t k = 0; k < S; k++) {
      const D po = s.p[k] * s.over[k], wo = (s.w[k] + s.moved[k]) * s.over[k];
      pr += po * r[k]; pp += po * s.p[k]; pl += po * s.lam[k]; wr += wo * r[k]; wl += wo * s.lam[k];
    }
    pr = L::total(pr); pp = L::total(pp); pl = L::total(pl); wr = L::total(wr); wl = L::total(wl) + s.zeta[0];
    const D by = 1. / (pl * pl + pp * wl), m = (pl * pr + pp * wr) * by, t = (pl * wr - wl * pr) * by;
    for (ptrdiff_t k = 0; k < S; k++) x[k] += (r[k] + (s.w[k] + s.moved[k]) * m + s.p[k] * t) * s.over[k];
    return;
  }
  // Unknowns m_0, m_g - m_0, t_g: x d = r + (sum w) m_0 + sum w_g (m_g - m_0) + sum p_g t_g; rows p_g.x = m_g and w_g.x = t_g + ...
  const int G = s.G, N = 2 * G; D* const A = s.small; D* const z = A + N * (N + 1);
  auto column = [&](int c, ptrdiff_t k) {
    return c >= G ? s.p[(c - G) * S + k] : c == 0 ? D(1. / s.over[k] - s.lam[k]) : s.w[c * S + k];
  };
  auto row = [&](int g, ptrdiff_t k) { return g >= G ? s.w[(g - G) * S + k] + (g == G ? s.moved[k] : D{}) : s.p[g * S + k]; };
  for (int g = 0; g < N; g++) {
    D whole = {}, right = {}, damped = {};
    for (ptrdiff_t k = 0; k < S; k++) { const D v = row(g, k); whole += v; right += v * s.over[k] * r[k]; damped += v * s.over[k] * s.lam[k]; }
    whole = L::total(whole); A[g * (N + 1) + N] = -L::total(right);
    for (int c = 0; c < N; c++) {
      D v = {};
      if (c == 0) v = -L::total(damped);                          // for sum v (1 - (sum w)/d) = sum v lam/d
      else {
        for (ptrdiff_t k = 0; k < S; k++) v += row(g, k) * column(c, k) * s.over[k];
        v = L::total(v);
        if (c == g) v -= g < G ? D{} + 1. : D{};
        if (c == g - G) v -= whole;
        if (g >= G && c == g) v -= 1.;
      }
      if (g >= G && (c == 0 || c == g - G)) v -= s.zeta[g - G];
      A[g * (N + 1) + c] = v;
    }
  }
  double* const a = (double*)(z + N);
  for (int lane = 0; lane < (ACROSS ? ND : 1); lane++) {
    for (int j = 0; j < N * (N + 1); j++) a[j] = A[j][lane];
    for (int c = 0; c < N; c++) {
      int best = c; double most = -1;
      for (int j = c; j < N; j++) { const double size = a[j * (N + 1) + c] < 0 ? -a[j * (N + 1) + c] : a[j * (N + 1) + c]; if (size > most) { most = size; best = j; } }
      for (int j = 0; j <= N; j++) { const double v = a[c * (N + 1) + j]; a[c * (N + 1) + j] = a[best * (N + 1) + j]; a[best * (N + 1) + j] = v; }
      for (int j = 0; j < N; j++) {
        if (j == c) continue;
        const double by = a[j * (N + 1) + c] / a[c * (N + 1) + c];
        for (int h = c; h <= N; h++) a[j * (N + 1) + h] -= by * a[c * (N + 1) + h];
      }
    }
    for (int j = 0; j < N; j++) z[j][lane] = a[j * (N + 1) + N] / a[j * (N + 1) + j];
  }
  if (!ACROSS) for (int j = 0; j < N; j++) z[j] = D{} + z[j][0];
  for (ptrdiff_t k = 0; k < S; k++) {
    D v = r[k];
    for (int c = 0; c < N; c++) v += column(c, k) * z[c];
    x[k] += v * s.over[k];
  }
}

template <class T, bool ACROSS> static void solving(const fx::Solve* c, ptrdiff_t begin, ptrdiff_t end, char* scratch) {
  typedef Lanes<ACROSS> L; const ptrdiff_t K = c->classes, S = L::steps(K); const int G = c->n_groups, N = 2 * G;
  D* const l = (D*)scratch; D* const own = l + S; D* const pl = own + S; D* const b = pl + S;
  D* const lam = b + S; D* const over = lam + S; D* const moved = over + S; D* const size = moved + S; D* const r = size + S; D* const x = r + S;
  D* const p = x + S; D* const w = p + G * S; D* const small = w + G * S; D* const zeta = small + N * (2 * N + 3); D* const top = zeta + G;
  const System s = {S, G, p, w, lam, over, moved, zeta, top, small};
  bool curved = G > 1;
  for (int t = 0; t < c->n_terms; t++) curved |= c->terms[t].divergence || c->terms[t].family != fx::CROSS_ENTROPY;
  for (ptrdiff_t i = begin; i < end; i += L::rows) {
    const ptrdiff_t n = end - i < L::rows ? end - i : L::rows; ID dead = ~ID{}; const D nan = D{} + __builtin_nan("");
    for (ptrdiff_t k = 0; k < G * S; k++) w[k] = D{};
    for (ptrdiff_t k = 0; k < S; k++) size[k] = D{};
    for (int g = 0; g < G; g++) zeta[g] = D{};
    for (int t = 0; t < c->n_terms; t++) {
      const SoftmaxRows* const a = c->terms + t; const int g = c->groups[t]; BlockOut unused = {0, 0, 0, -1};
      const Heads head = heads_of<T, ACROSS>(a, i, n, &unused); Dist Q, P; Q.p = p + g * S; Q.l = l; P.p = own; P.l = pl;
      D factor = head.dead ? D{} : head.weight * (a->scale / (a->temperature * a->temperature)), slope; ID good, odd = {};
      if (a->divergence) {
        good = distributions<T, ACROSS>(a, i, n, head.y, &Q, &P, &unused); diverge<ACROSS>(a->family, a->a, Q, P, S, b, &odd);
        if (a->family != fx::FORWARD_KL) centre<ACROSS>(Q, S, l);
        bend<ACROSS>(a->family, Q, P, S, b, false);
        factor *= factor_of(a);
      } else good = members<T, ACROSS>(a, i, n, head.y, &Q, own, &slope, &unused);
      factor = (good & ~odd) | head.dead ? factor : nan;
      for (ptrdiff_t k = 0; k < S; k++) {
        const D q = Q.p[k]; D pull, back = {};
        if (a->divergence) pull = q == 0. ? D{} : q * b[k];
        else { pull = q * slope; back = own[k] == 0. ? D{} : own[k] / without(Q, q); }
        const D add = factor * (pull - back), much = factor * (size_of(pull) + size_of(back));
        w[g * S + k] += head.dead ? D{} : add; size[k] += head.dead ? D{} : size_of(much);
      }
      zeta[g] += head.dead ? D{} : 2 * a->z_loss * factor; top[g] = Q.top; dead &= head.dead;
    }
    load_doubles<double, ACROSS>(fx::DOUBLE, c->damping, c->inner, i, n, K, 1., lam);
    load_doubles<double, ACROSS>(fx::DOUBLE, c->rhs, c->inner, i, n, K, 0., r);
    for (ptrdiff_t k = 0; k < S; k++) {
      D d = lam[k], far; const D much = (lam[k] + size[k]) * 1e-7;
      for (int g = 0; g < G; g++) d += w[g * S + k];
      far = size_of(d) < much ? (d < 0. ? -much : much) : d;
      moved[k] = far - d; over[k] = 1. / far; x[k] = D{};
    }
    eliminate<ACROSS>(s, r, x);
    for (int step = 0; curved && step < 2; step++) {              // the residual, in b
      for (ptrdiff_t k = 0; k < S; k++) b[k] = r[k] - lam[k] * x[k];
      for (int g = 0; g < G; g++) {
        Dist Q; Q.p = p + g * S; Q.top = top[g]; D pull = {}, mean = {};
        for (ptrdiff_t k = 0; k < S; k++) { l[k] = x[k]; mean += Q.p[k] * x[k]; }
        centre<ACROSS>(Q, S, l);
        for (ptrdiff_t k = 0; k < S; k++) { l[k] *= w[g * S + k]; pull += l[k]; }
        pull = L::total(pull) - zeta[g] * L::total(mean);
        for (ptrdiff_t k = 0; k < S; k++) b[k] -= l[k] - Q.p[k] * pull;
      }
      eliminate<ACROSS>(s, b, x);
    }
    if (some(dead)) for (ptrdiff_t k = 0; k < S; k++) x[k] = dead ? r[k] / lam[k] : x[k];
    store_doubles<T, ACROSS>(c->storage, x, c->out, c->inner, i, n, K);
  }
}
template <class T> static void solve(const fx::Solve* c, ptrdiff_t begin, ptrdiff_t end, char* scratch) {
  if (fx::in_lanes(c->terms)) solving<T, true>(c, begin, end, scratch);
  else solving<T, false>(c, begin, end, scratch);
}

}}  // namespace
