// Rows in double whatever the storage, a vector at a time.  ACROSS: the lanes are ND rows, the steps are classes.  Otherwise the
// lanes are ND classes of one row, padded to whole vectors with impossible ones (l = -inf, p = 0), which add nothing to
// anything.  One source serves both: a sum over the classes ends with `total`, which adds the lanes up, or lets them be.
namespace FX_NS { namespace {

template <bool ACROSS> struct Lanes {
  static constexpr ptrdiff_t rows = ACROSS ? ND : 1;
  static FX_INLINE_MEMBER ptrdiff_t steps(ptrdiff_t K) { return ACROSS ? K : (K + ND - 1) / ND; }
  static FX_INLINE_MEMBER D total(D v) {
    if (ACROSS) return v;
    double sum = 0; for (int i = 0; i < ND; i++) sum += v[i];
    return D{} + sum;
  }
  static FX_INLINE_MEMBER D greatest(D v) {
    if (ACROSS) return v;
    double most = v[0]; for (int i = 1; i < ND; i++) most = v[i] > most ? v[i] : most;
    return D{} + most;
  }
  static FX_INLINE_MEMBER ID any(ID v) {
    if (ACROSS) return v;
    int64_t some = 0; for (int i = 0; i < ND; i++) some |= v[i];
    return ID{} + some;
  }
  // v where `found`, which is one lane at least
  static FX_INLINE_MEMBER D chosen(D v, ID found) {
    if (ACROSS) return v;
    double one = v[0]; for (int i = 0; i < ND; i++) if (found[i]) one = v[i];
    return D{} + one;
  }
  static FX_INLINE_MEMBER ID classes(ptrdiff_t step) {
    if (ACROSS) return ID{} + (int64_t)step;
    ID k; for (int i = 0; i < ND; i++) k[i] = (int64_t)(step * ND + i);
    return k;
  }
  // One number per class; 0 for the padding
  template <class T> static FX_INLINE_MEMBER D per_class(const T* values, ptrdiff_t step, ptrdiff_t K) {
    if (ACROSS) return D{} + (double)values[step];
    D v = {}; for (ptrdiff_t i = 0; i < ND; i++) if (step * ND + i < K) v[i] = values[step * ND + i];
    return v;
  }
  // One number per row, or per lane
  template <class T> static FX_INLINE_MEMBER D per_row(const T* values) {
    if (!ACROSS) return D{} + (double)values[0];
    D v; for (int i = 0; i < ND; i++) v[i] = values[i];
    return v;
  }
};

FX_INLINE bool some(ID v) {
  uint64_t words[ND], any = 0;
  __builtin_memcpy(words, &v, sizeof words);
  for (const uint64_t word : words) any |= word;
  return any != 0;
}

// ND x ND numbers between rows of classes and lanes: the last tile of a row overlaps the one before.
template <class T> struct Tile { typedef T Half __attribute__((vector_size(ND * sizeof(T)))); };
template <class T> static void tiles_in(const char* p, ptrdiff_t stride, ptrdiff_t K, D* out) {
  for (ptrdiff_t k = 0; k < K; k += ND) {
    const ptrdiff_t at = k + ND <= K ? k : K - ND; D x[ND];
#pragma GCC unroll 8
    for (int r = 0; r < ND; r++) { typename Tile<T>::Half v; __builtin_memcpy(&v, p + r * stride + at * (ptrdiff_t)sizeof(T), sizeof v); x[r] = doubles(v, D()); }
    Stage<ND, ND / 2, D>::run(x);
#pragma GCC unroll 8
    for (int c = 0; c < ND; c++) out[at + c] = x[c];
  }
}
template <class T> static void tiles_out(const D* from, ptrdiff_t K, char* p, ptrdiff_t stride) {
  for (ptrdiff_t k = 0; k < K; k += ND) {
    const ptrdiff_t at = k + ND <= K ? k : K - ND; D x[ND];
#pragma GCC unroll 8
    for (int c = 0; c < ND; c++) x[c] = from[at + c];
    Stage<ND, ND / 2, D>::run(x);
#pragma GCC unroll 8
    for (int r = 0; r < ND; r++) { const auto v = __builtin_convertvector(x[r], typename Tile<T>::Half); __builtin_memcpy(p + r * stride + at * (ptrdiff_t)sizeof(T), &v, sizeof v); }
  }
}

// Where ND rows [i, i + ND) begin that lie one behind the other, class by class; null: they do not.
template <class T> FX_INLINE char* lined_up(int storage, const Matrix& m, ptrdiff_t inner, ptrdiff_t i, ptrdiff_t n) {
  const Run run = run_at(m, inner, i, n);
  return stored_as_is<T>(storage) && run.count == ND && run.stride == (ptrdiff_t)sizeof(T) ? run.at : 0;
}
// Rows [i, i + n) into `out`; of lanes without a row, and of padding, `pad`.
template <class T, bool ACROSS> static void load_doubles(
    int storage, const Matrix& m, ptrdiff_t inner, ptrdiff_t i, ptrdiff_t n, ptrdiff_t K, double pad, D* to) {
  double* const out = (double*)to;
  if (!ACROSS) {
    const char* const p = run_at(m, inner, i, 1).at;
    if (stored_as_is<T>(storage) && m.cls == (ptrdiff_t)sizeof(T)) {
      const T* const z = (const T*)p;
#pragma omp simd
      for (ptrdiff_t k = 0; k < K; k++) out[k] = z[k];
    } else for (ptrdiff_t k = 0; k < K; k++) out[k] = number_at<T>(storage, p + k * m.cls);
    for (ptrdiff_t k = K; k < Lanes<ACROSS>::steps(K) * ND; k++) out[k] = pad;
    return;
  }
  if (stored_as_is<T>(storage) && inner == 1 && m.cls == (ptrdiff_t)sizeof(T) && n == ND && K >= ND) { tiles_in<T>(m.data + i * m.outer, m.outer, K, to); return; }
  if (const char* const at = lined_up<T>(storage, m, inner, i, n)) {
    for (ptrdiff_t k = 0; k < K; k++) { typename Tile<T>::Half v; __builtin_memcpy(&v, at + k * m.cls, sizeof v); to[k] = doubles(v, D()); }
    return;
  }
  for (ptrdiff_t r0 = 0; r0 < n;) {
    const Run run = run_at(m, inner, i + r0, n - r0); double* const t = out + r0;
    if (stored_as_is<T>(storage))
      for (ptrdiff_t r = 0; r < run.count; r++)
        for (ptrdiff_t k = 0; k < K; k++) { T v; __builtin_memcpy(&v, run.at + r * run.stride + k * m.cls, sizeof v); t[k * ND + r] = v; }
    else
      for (ptrdiff_t r = 0; r < run.count; r++)
        for (ptrdiff_t k = 0; k < K; k++) t[k * ND + r] = number_at<T>(storage, run.at + r * run.stride + k * m.cls);
    r0 += run.count;
  }
  if (n < ND) for (ptrdiff_t k = 0; k < K; k++) for (ptrdiff_t r = n; r < ND; r++) out[k * ND + r] = pad;
}
template <class T, bool ACROSS> static void store_doubles(
    int storage, const D* from, const Matrix& m, ptrdiff_t inner, ptrdiff_t i, ptrdiff_t n, ptrdiff_t K) {
  const double* const v = (const double*)from;
  if (!ACROSS) {
    char* const p = run_at(m, inner, i, 1).at;
    if (stored_as_is<T>(storage) && m.cls == (ptrdiff_t)sizeof(T)) {
      T* const out = (T*)p;
#pragma omp simd
      for (ptrdiff_t k = 0; k < K; k++) out[k] = T(v[k]);
    } else for (ptrdiff_t k = 0; k < K; k++) number_to(storage, T(v[k]), p + k * m.cls);
    return;
  }
  if (stored_as_is<T>(storage) && inner == 1 && m.cls == (ptrdiff_t)sizeof(T) && n == ND && K >= ND) { tiles_out<T>(from, K, m.data + i * m.outer, m.outer); return; }
  if (char* const at = lined_up<T>(storage, m, inner, i, n)) {
    for (ptrdiff_t k = 0; k < K; k++) { const auto x = __builtin_convertvector(from[k], typename Tile<T>::Half); __builtin_memcpy(at + k * m.cls, &x, sizeof x); }
    return;
  }
  for (ptrdiff_t r0 = 0; r0 < n;) {
    const Run run = run_at(m, inner, i + r0, n - r0); const double* const t = v + r0;
    if (stored_as_is<T>(storage))
      for (ptrdiff_t r = 0; r < run.count; r++)
        for (ptrdiff_t k = 0; k < K; k++) { const T x = T(t[k * ND + r]); __builtin_memcpy(run.at + r * run.stride + k * m.cls, &x, sizeof x); }
    else
      for (ptrdiff_t r = 0; r < run.count; r++)
        for (ptrdiff_t k = 0; k < K; k++) number_to(storage, T(t[k * ND + r]), run.at + r * run.stride + k * m.cls);
    r0 += run.count;
  }
}

// Labels, weights and whether a row counts, of rows [i, i + n); lanes without a row weigh 0.
struct Heads { ID y; D weight; ID dead; };
template <class T, bool ACROSS> static Heads heads_of(const SoftmaxRows* a, ptrdiff_t i, ptrdiff_t n, BlockOut* out) {
  int64_t y[ND]; T weight[ND]; Heads h;
  take_rows<T>(a, i, n, y, weight, out);
  for (ptrdiff_t r = n; r < Lanes<ACROSS>::rows; r++) { y[r] = 0; weight[r] = 0; }
  for (int r = 0; r < ND; r++) h.y[r] = ACROSS ? y[r] : y[0];
  h.weight = Lanes<ACROSS>::per_row(weight); h.dead = h.weight == 0.;
  return h;
}
// The first row, of those whose lane is set, that has a bad target
template <bool ACROSS> static void report(ID wrong, ptrdiff_t i, ptrdiff_t n, BlockOut* out) {
  for (ptrdiff_t r = 0; r < (ACROSS ? n : 1); r++) if (wrong[r] && (out->bad < 0 || out->bad > i + r)) out->bad = i + r;
}

// A distribution of every row: p, and log p = l - lg; the greatest p, `left` = 1 - p there; mass = sum p = 1 + surplus.
// m: the logits' maximum.
struct Dist { D *p, *l, lg, left, mass, surplus, top, m; };

// Logits in d->l to p and l.  Lanes that are not set in the answer have no softmax: NaN, all -inf, or two +inf.
template <bool ACROSS> static ID soften(Dist* d, ptrdiff_t S) {
  typedef Lanes<ACROSS> L; D* const l = d->l; D* const p = d->p; const double inf = __builtin_inf();
  D m = D{} - inf, rest = {}, ties = {};
  for (ptrdiff_t k = 0; k < S; k++) m = l[k] > m ? l[k] : m;
  m = L::greatest(m);
  const ID odd = ~((m > -inf) & (m < inf));
  if (__builtin_expect(some(odd), 0)) {
    D infinite = {}, nan = {};
    for (ptrdiff_t k = 0; k < S; k++) { infinite += l[k] == inf ? D{} + 1. : D{}; nan = l[k] != l[k] ? l[k] : nan; }
    infinite = L::total(infinite); nan = L::total(nan);
    const ID limit = odd & (infinite == 1.) & (nan == nan);
    const D empty = D{} - inf, none = D{} + __builtin_nan("");
    for (ptrdiff_t k = 0; k < S; k++) { const D one = l[k] == inf ? D{} : empty; l[k] = limit ? one : odd ? none : l[k]; }
    m = odd ? D{} : m;
  }
  const VShift<double> s = shift_of_lanes<double>(m); const D top = exp_of<double>(m, s), one = D{} + 1.;
  for (ptrdiff_t k = 0; k < S; k++) {
    const D e = exp_of<double>(l[k], s); const ID high = l[k] >= m;
    rest += high ? D{} : e; ties += high ? one : D{}; p[k] = e;
  }
  rest = L::total(rest) + (L::total(ties) - 1.) * top;
  const D sum = rest + top, by = 1. / sum;
  d->m = m; d->lg = log1p_of<double>(rest / top); d->left = rest / sum; d->mass = one; d->surplus = D{}; d->top = top / sum;
  for (ptrdiff_t k = 0; k < S; k++) { const ID high = l[k] >= m; p[k] = high ? d->top : p[k] * by; l[k] -= m; }
  return sum == sum;
}
// 1 - p without cancellation
FX_INLINE D without(const Dist& d, D p) { return p >= d.top ? d.left : 1. - p; }

// v to v - sum p v, 0 where p is 0.  Taken relative to the class of the greatest p first: exact where it has nearly all of p.
template <bool ACROSS> static void centre(const Dist& d, ptrdiff_t S, D* v) {
  typedef Lanes<ACROSS> L; const D* const p = d.p; D top = {}, mean = {}; ID found = {};
  for (ptrdiff_t k = 0; k < S; k++) { const ID high = p[k] >= d.top; top = high ? v[k] : top; found |= high; }
  top = L::chosen(top, found);
  for (ptrdiff_t k = 0; k < S; k++) { const D far = v[k] - top; v[k] = p[k] == 0. ? D{} : far; mean += p[k] * v[k]; }
  mean = L::total(mean);
  for (ptrdiff_t k = 0; k < S; k++) { const D far = v[k] - mean; v[k] = p[k] == 0. ? D{} : far; }
}

}}  // namespace
