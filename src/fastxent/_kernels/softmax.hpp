// Softmax cross-entropy, rows [begin, end): the choice among the kernels, and the rest of the family in plain double.
//
// A row, while it stays in cache: (1) maximum; (2) e = exp(u - m) stored, mostly where the gradient will stand, with two sums,
// `rest` without the maximum and `all`; (3) scale.  `rest` and `all` find the number of ties and the sum without y, so the
// maximum's place is never searched (few.hpp, lanes.hpp: the greatest e and the sum of the others).  Expected: loss <= 4 ulp, gradient
// <= 4 (float), 6 (double) ulp for labels; sums over rows are double.  By the shape: two_or_three.hpp (so many classes), few.hpp (lanes are rows),
// batch.hpp, wide.hpp; classes that are not contiguous: sweep.hpp, lanes.hpp (any layout).
namespace FX_NS { namespace {

// ---- one row, any layout, in double ---------------------------------------------------------------------------------
// Targets that are mixtures over a family other than cross-entropy, or over a single class, and Hessian-vector products:
// L = sum_k q_k f(p_k), so
//     g_j = S p_j - q_j G_j,   S = sum_k q_k G_k,   H = S (diag p - p p') - sum_k q_k P_k / (1 - p_k) d_k d_k',   d_k = p - e_k,
// and the z-loss adds 2 zeta lse to S and 2 zeta p p' to H.  Not a hot path: one scalar loop for all of it.

struct Row { double m, top, rest, sum, log_sum, lse; ptrdiff_t at; };

// u, e and their sums; false for a row of the limits, or one that weighs nothing.
template <class T> static bool read_row(const SoftmaxRows* a, ptrdiff_t i, double* u, double* e, Row* o) {
  const ptrdiff_t K = a->classes; const T inverse = T(1 / a->temperature); const T* const bias = (const T*)a->bias;
  const char* const zp = run_at(a->logits, a->inner, i, 1).at; const double inf = __builtin_inf();
  o->m = -inf; o->at = 0; bool nan = false;
  for (ptrdiff_t k = 0; k < K; k++) {
    const T v = logit_at(a, zp, inverse, bias, k);
    u[k] = v; nan |= v != v; if (v > o->m) { o->m = v; o->at = k; }
  }
  if (nan || !(o->m > -inf && o->m < inf)) return false;
  const Shift<double> s = shift_of(o->m); o->top = exp_of(o->m, s); o->rest = 0;
  for (ptrdiff_t k = 0; k < K; k++) { e[k] = exp_of(u[k], s); if (k != o->at) o->rest += e[k]; }
  o->sum = o->rest + o->top; o->log_sum = log1p_of(o->rest / o->top); o->lse = o->m + o->log_sum;
  return true;
}
// q_k, f, G and P of every class with a share in the target
template <class T> FX_INLINE double share_of(const SoftmaxRows* a, const Target<T>& target, const char* goal, int64_t y, ptrdiff_t k) {
  const double w = target.w ? target.w[k] : 1;
  return w * (goal ? (double)target.alpha * *(const T*)(goal + k * a->soft.cls) + target.beta : k == y ? target.top : target.beta);
}
FX_INLINE Member member_of(const SoftmaxRows* a, const Row& row, const double* u, const double* e, ptrdiff_t k) {
  const double left = k == row.at ? row.rest : row.sum - e[k];
  return family_of(a, e[k] / row.sum, left / row.sum, row.log_sum + (row.m - u[k]));
}

template <class T> static void mixtures(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  const ptrdiff_t K = a->classes; const Target<T> target(a); const double zeta = a->z_loss, inverse = 1 / a->temperature; double total = 0;
  double* const u = (double*)scratch; double* const e = u + K; T* const g = (T*)(e + K); T* const h = g + K;
  for (ptrdiff_t i = begin; i < end; i++) {
    int64_t y; T weight, lse = 0, loss = 0; Row row;
    take_rows<T>(a, i, 1, &y, &weight, out);
    const char* const goal = a->soft.data ? run_at(a->soft, a->inner, i, 1).at : 0;
    if (goal) { y = -1; for (ptrdiff_t k = 0; k < K; k++) if (!is_share<T>(*(const T*)(goal + k * a->soft.cls)) && out->bad < 0) out->bad = i; }
    if (!read_row<T>(a, i, u, e, &row)) loss = limit_row<T>(a, target, i, y, weight, g, h, 1, &lse);
    else {
      double S = 0, bent = 0, L = 0; lse = T(row.lse);
      for (ptrdiff_t k = 0; k < K; k++) {
        const double q = share_of(a, target, goal, y, k); if (q == 0) continue;
        const Member m = member_of(a, row, u, e, k); const double left = (k == row.at ? row.rest : row.sum - e[k]) / row.sum;
        L += q * m.f; S += q * m.G; bent += left > 0 ? q * m.P / left : 0;
      }
      const double up = 2 * zeta * row.lse;
      loss = T((L + zeta * row.lse * row.lse) * weight);
      for (ptrdiff_t k = 0; k < K; k++) {
        const double q = share_of(a, target, goal, y, k), p = e[k] / row.sum, left = (k == row.at ? row.rest : row.sum - e[k]) / row.sum;
        const Member m = q == 0 ? Member{0, 0, 0} : member_of(a, row, u, e, k);
        const double own = left > 0 ? q * m.P / left : 0;
        // a label's own terms cancel exactly, and leave what the z-loss adds
        g[k] = T(((S - q * m.G) * p - q * m.G * left + up * p) * weight * (a->scale * inverse));
        h[k] = T(((S + up) * p * left + 2 * zeta * p * p - (bent - own) * p * p - q * m.P * left) * weight * (a->scale * inverse * inverse));
      }
    }
    if (weight == 0) { loss = 0; for (ptrdiff_t k = 0; k < K; k++) g[k] = h[k] = 0; }
    total += loss;
    if (a->grad.data) { char* to = run_at(a->grad, a->inner, i, 1).at; for (ptrdiff_t k = 0; k < K; k++) number_to(a->storage, g[k], to + k * a->grad.cls); }
    if (a->hess.data) { char* to = run_at(a->hess, a->inner, i, 1).at; for (ptrdiff_t k = 0; k < K; k++) number_to(a->storage, h[k], to + k * a->hess.cls); }
    if (a->loss.data) store_rows(a->loss, a->inner, i, 1, &loss);
    if (a->lse.data) store_rows(a->lse, a->inner, i, 1, &lse);
  }
  out->loss += total;
}

template <class T> static void hvp(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  const ptrdiff_t K = a->classes; const Target<T> target(a); const double zeta = a->z_loss;
  double* const u = (double*)scratch; double* const e = u + K;
  for (ptrdiff_t i = begin; i < end; i++) {
    int64_t y; T weight; Row row;
    take_rows<T>(a, i, 1, &y, &weight, out);
    const char* const goal = a->soft.data ? run_at(a->soft, a->inner, i, 1).at : 0;
    if (goal) { y = -1; for (ptrdiff_t k = 0; k < K; k++) if (!is_share<T>(*(const T*)(goal + k * a->soft.cls)) && out->bad < 0) out->bad = i; }
    const char* const xp = run_at(a->x, a->inner, i, 1).at; char* const to = run_at(a->grad, a->inner, i, 1).at;
    auto x = [&](ptrdiff_t k) { return (double)*(const T*)(xp + k * a->x.cls); };
    if (weight == 0) { for (ptrdiff_t k = 0; k < K; k++) number_to(a->storage, T(0), to + k * a->grad.cls); continue; }
    if (!read_row<T>(a, i, u, e, &row)) {                   // one +inf: p is 1 there, and only the z-loss bends
      ptrdiff_t at = -1, infinite = 0; bool nan = weight != weight;
      for (ptrdiff_t k = 0; k < K; k++) { nan |= u[k] != u[k]; if (u[k] == __builtin_inf()) { at = k; infinite++; } }
      const bool limit = !nan && infinite == 1;
      for (ptrdiff_t k = 0; k < K; k++)
        number_to(a->storage, T(!limit ? __builtin_nan("") : k == at ? 2 * zeta * x(k) * weight * target.hess_scale : 0.), to + k * a->grad.cls);
      continue;
    }
    double mean = 0, S = 0, bent = 0;
    for (ptrdiff_t k = 0; k < K; k++) mean += e[k] * x(k);
    mean /= row.sum;
    const bool plain = a->family == fx::CROSS_ENTROPY;
    for (ptrdiff_t k = 0; k < K; k++) {
      const double q = share_of(a, target, goal, y, k); if (q == 0) continue;
      if (plain) { S += q; continue; }
      const Member m = member_of(a, row, u, e, k); const double left = (k == row.at ? row.rest : row.sum - e[k]) / row.sum;
      S += q * m.G; bent += left > 0 ? q * m.P / left * (mean - x(k)) : 0;
    }
    const double c = S + 2 * zeta * row.lse, factor = (double)weight * target.hess_scale;
    for (ptrdiff_t k = 0; k < K; k++) {
      const double p = e[k] / row.sum; double value = p * (c * (x(k) - mean) + 2 * zeta * mean - bent);
      if (!plain) {
        const double q = share_of(a, target, goal, y, k), left = (k == row.at ? row.rest : row.sum - e[k]) / row.sum;
        if (q != 0 && left > 0) value += q * member_of(a, row, u, e, k).P / left * (mean - x(k));
      }
      number_to(a->storage, T(value * factor), to + k * a->grad.cls);
    }
  }
}

template <class T> static void softmax(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  const bool general = a->soft.data || a->smoothing != 0, batched = in_batches<T>(a);
  const bool plain = a->family == fx::CROSS_ENTROPY && a->z_loss == 0;
  if (general && (a->family != fx::CROSS_ENTROPY || a->classes == 1)) mixtures<T>(a, begin, end, scratch, out);
  else if (in_columns<T>(a)) {
    if (a->soft.data) few<T, 0, SOFT>(a, begin, end, scratch, out);
    else if (general) few<T, 0, SMOOTH>(a, begin, end, scratch, out);
    else if (plain && a->classes == 2) two_or_three<T, 2>(a, begin, end, scratch, out);
    else if (plain && a->classes == 3) two_or_three<T, 3>(a, begin, end, scratch, out);
    else few_labels<T, MOST_KNOWN < (int)Vec<T>::N ? (int)MOST_KNOWN : (int)Vec<T>::N>(a, begin, end, scratch, out);
  }
  else if (!batched && fx::in_lanes(a)) {
    if (fx::in_sweeps(a)) sweep<T>(a, begin, end, scratch, out);
    else (general ? lanes<T, true> : lanes<T, false>)(a, begin, end, scratch, out, fx::lanes_of(a));
  }
  else {
    const int mode = a->soft.data ? a->class_weight ? SOFT_WEIGHTED : SOFT : !general ? LABEL : a->class_weight ? SMOOTH_WEIGHTED : SMOOTH;
    switch (mode) {
      case LABEL: (batched ? batch<T, LABEL> : wide<T, LABEL>)(a, begin, end, scratch, out); break;
      case SMOOTH: (batched ? batch<T, SMOOTH> : wide<T, SMOOTH>)(a, begin, end, scratch, out); break;
      case SMOOTH_WEIGHTED: (batched ? batch<T, SMOOTH_WEIGHTED> : wide<T, SMOOTH_WEIGHTED>)(a, begin, end, scratch, out); break;
      case SOFT: (batched ? batch<T, SOFT> : wide<T, SOFT>)(a, begin, end, scratch, out); break;
      default: (batched ? batch<T, SOFT_WEIGHTED> : wide<T, SOFT_WEIGHTED>)(a, begin, end, scratch, out);
    }
  }
}

// ---- denominators of the reductions, and the check of the targets, without the logits --------------------------------

enum { CHUNK = 2048 };                   // numbers between two additions to the double sum
// The sum of n numbers; false if one of them is no share of a target.
template <class T> static bool checked_sum(const T* t, ptrdiff_t n, double* sum) {
  double all = 0; int wrong = 0;
  for (ptrdiff_t k0 = 0; k0 < n; k0 += CHUNK) {
    const ptrdiff_t stop = n - k0 > CHUNK ? k0 + CHUNK : n; T part = 0;
#pragma omp simd reduction(+ : part) reduction(| : wrong)
    for (ptrdiff_t k = k0; k < stop; k++) { part += t[k]; wrong |= !is_share<T>(t[k]); }
    all += part;
  }
  *sum = all;
  return !wrong;
}
template <class T> static void totals(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char*, BlockOut* out) {
  const T* const w = (const T*)a->class_weight; double total = 0;
  int64_t y[GROUP]; T weight[GROUP];
  auto counted = [](T v) -> double { return v == v ? v : T(1); };            // a NaN is left to its row
  for (ptrdiff_t i0 = begin; i0 < end; i0 += GROUP) {
    const ptrdiff_t nb = end - i0 < GROUP ? end - i0 : GROUP;
    const int64_t before = out->counted;
    take_rows<T>(a, i0, nb, y, weight, out);
    if (a->labels.data) {
      if (!w && !a->weight.data) { total += (double)(out->counted - before); continue; }
      T wy[GROUP]; double group = 0;
      for (ptrdiff_t r = 0; r < nb; r++) wy[r] = w ? w[y[r]] : T(1);
#pragma omp simd reduction(+ : group)
      for (ptrdiff_t r = 0; r < nb; r++) { const double v = counted(weight[r]); group += v == 0 ? 0 : v * wy[r]; }
      total += group;
    } else {
      const bool in_line = a->inner == 1 && a->soft.cls == sizeof(T) && a->soft.outer == a->classes * (ptrdiff_t)sizeof(T);
      double block = 0;
      if (in_line && !w && !a->weight.data && checked_sum((const T*)(a->soft.data + i0 * a->soft.outer), nb * a->classes, &block)) { total += block; continue; }
      for (ptrdiff_t r = 0; r < nb; r++) {
        const char* tp = run_at(a->soft, a->inner, i0 + r, 1).at; const ptrdiff_t K = a->classes, cls = a->soft.cls;
        double sum = 0; bool right = true;
        if (cls == sizeof(T) && !w) right = checked_sum((const T*)tp, K, &sum);
        else for (ptrdiff_t k = 0; k < K; k++) { const T t = *(const T*)(tp + k * cls); sum += (double)t * (w ? w[k] : T(1)); right &= is_share<T>(t); }
        if (!right && (out->bad < 0 || out->bad > i0 + r)) out->bad = i0 + r;
        if (weight[r] != 0) total += sum * counted(weight[r]);
      }
    }
  }
  out->total += total;
}

}}  // namespace
