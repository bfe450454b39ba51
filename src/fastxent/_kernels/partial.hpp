// Rows of which only some columns are here: the state that merges with that of other columns, and the gradient of these columns
// once the states are merged (shards.py says what the numbers mean).  In double, lanes are classes, a piece of a row at a time.
namespace FX_NS { namespace {

enum { STRETCH = 1024 };

template <class T> static void load_piece(const fx::Shard* a, ptrdiff_t i, ptrdiff_t at, ptrdiff_t n, D* x) {
  const Matrix m = {a->logits.data + at * a->logits.cls, a->logits.outer, a->logits.cls, 0};
  load_doubles<T, false>(a->storage, m, 1, i, 1, n, -__builtin_inf(), x);
}

template <class T> static void partial(const fx::Shard* a, ptrdiff_t begin, ptrdiff_t end) {
  typedef Lanes<false> L; const ptrdiff_t K = a->classes; const double inf = __builtin_inf(), nan = __builtin_nan(""); D x[STRETCH / ND];
  for (ptrdiff_t i = begin; i < end; i++) {
    D most = D{} - inf, odd = {};
    for (ptrdiff_t at = 0; at < K; at += STRETCH) {
      const ptrdiff_t n = K - at < STRETCH ? K - at : STRETCH;
      load_piece<T>(a, i, at, n, x);
      for (ptrdiff_t k = 0; k < L::steps(n); k++) { most = x[k] > most ? x[k] : most; odd += x[k] == x[k] ? D{} : x[k]; }
    }
    const double m = L::greatest(most)[0]; const int64_t y = a->labels[i] - a->start; const bool owned = y >= 0 && y < K;
    const double own = owned ? (double)number_at<T>(a->storage, a->logits.data + i * a->logits.outer + y * a->logits.cls) : 0;
    double r, Z, t = !owned ? 0 : own == m ? 0 : m - own;
    if (L::total(odd)[0] != 0) { a->m[i] = a->r[i] = a->Z[i] = nan; a->t[i] = owned ? nan : 0; continue; }
    const bool finite = m > -inf && m < inf; const Shift<double> one = shift_of(finite ? m : 0.); const VShift<double> s = splat(one);
    const double top = exp_of(finite ? m : 0., one); D rest = {}, ties = {}, far = {};
    for (ptrdiff_t at = 0; at < K; at += STRETCH) {
      const ptrdiff_t n = K - at < STRETCH ? K - at : STRETCH, S = L::steps(n);
      load_piece<T>(a, i, at, n, x);
      for (ptrdiff_t k = 0; k < S; k++) {
        const ID high = x[k] >= m; const D gap = m - x[k];
        rest += high ? D{} : exp_of<double>(x[k], s); ties += high ? D{} + 1. : D{}; far += (high | (L::classes(k) >= (int64_t)n)) ? D{} : gap;
      }
    }
    r = (L::total(rest)[0] + (L::total(ties)[0] - 1) * top) / top; Z = L::total(far)[0];
    if (m == inf) r = L::total(ties)[0] > 1 ? nan : 0;
    if (m == -inf) { r = 0; Z = inf; t = owned ? inf : 0; }
    a->m[i] = m; a->r[i] = r; a->t[i] = t; a->Z[i] = Z;
  }
}

template <class T> static void partial_grad(const fx::Shard* a, ptrdiff_t begin, ptrdiff_t end) {
  typedef Lanes<false> L; const ptrdiff_t K = a->classes; const double inf = __builtin_inf(); D x[STRETCH / ND];
  for (ptrdiff_t i = begin; i < end; i++) {
    const double m = a->m[i], t = a->t[i], r = a->r[i], pull = a->pull[i], v = a->weight[i];
    const int64_t y = a->labels[i] - a->start; const bool finite = m > -inf && m < inf, dead = v == 0;
    const Shift<double> one = shift_of(finite ? m : 0.); const VShift<double> s = splat(one);
    const double by = (finite ? 1 / exp_of(m, one) : 1.) / (1 + r), others = (t == 0 ? r : 1 + r - exp_down(-t)) / (1 + r);
    for (ptrdiff_t at = 0; at < K; at += STRETCH) {
      const ptrdiff_t n = K - at < STRETCH ? K - at : STRETCH, S = L::steps(n), here = y - at;
      load_piece<T>(a, i, at, n, x);
      const Matrix to = {a->grad.data + at * a->grad.cls, a->grad.outer, a->grad.cls, 0};
      for (ptrdiff_t k = 0; k < S; k++) {
        D e = exp_of<double>(x[k], s);
        if (!finite) { const D below = x[k] < m ? D{} : D{} + __builtin_nan(""); e = x[k] == m ? D{} + 1. : below; }
        const D none = e * (by * v), g = (e == 0. ? none : e * (by * v * (1 + pull))) - a->spread * v;   // no product before the last is subnormal
        const D own = a->spread != 0 ? g - a->share * v : (e == 0. ? none : e * (by * v * pull)) - others * v;
        const D value = L::classes(k) == (int64_t)here ? own : g;
        x[k] = dead ? D{} : value;
      }
      store_doubles<T, false>(a->storage, x, to, 1, i, 1, n);
    }
  }
}

}}  // namespace
