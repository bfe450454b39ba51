// The family L = f(p_y) of softmax losses.  With q = 1 - p summed without y and l = -log p, a member is three numbers:
//     f,   G = -p f'(p),   and   P = q p dG/dp
// (with the factor q it stays finite as q -> 0).  Then g_k = G (p_k - [k = y]) and the Hessian is
//     G (diag p - p p') - P/q d d',   d = p - e_y.
// In double whatever the storage: powers amplify rounding by their logarithm.  A new member: an entry of `Family` and one
// specialization of `family_at`.
namespace FX_NS { namespace {

struct Member { double f, G, P; };

// log x for positive normal x, and e^x for x <= 0: scalar forms that compilers vectorize
FX_INLINE double log_normal(double x) {
  typedef Num<double> C;
  const uint64_t lift = (uint64_t)2048 << C::mant, e = (bits(x) - bits(0.75) + lift) & ~(((uint64_t)1 << C::mant) - 1);
  const double h = from_bits(bits(1.) - (e - lift)), f = x * h - 1;
  const double k = from_bits((e >> C::mant) + bits(double(C::magic))) - C::magic - 2048;
  return k * C::ln2hi + (k * C::ln2lo + log_poly(f, double()));
}
FX_INLINE double exp_down(double x) { return exp_of(x, shift_of(0.)) * Num<double>::unguard; }
// e^x - 1 for x <= 0 (Kahan): the rounding of u = e^x cancels against that of log u
FX_INLINE double expm1_down(double x) {
  const double u = exp_down(x), l = log_normal(u > 0 ? u : 1.);
  return u == 1 ? x : u == 0 ? -1. : (u - 1) * (x / l);
}
FX_INLINE double power(double q, double gamma) {
  const double r = exp_down(gamma * log_normal(q > 0 ? q : 1.));
  return gamma == 2 ? q * q : gamma == 1 ? q : gamma == 0 ? 1. : q > 0 ? r : 0.;
}

template <int F> FX_INLINE Member family_at(double a, double b, double p, double q, double l);
template <> FX_INLINE_MEMBER Member family_at<fx::CROSS_ENTROPY>(double, double, double, double, double l) { return {l, 1, 0}; }
template <> FX_INLINE_MEMBER Member family_at<fx::FOCAL>(double gamma, double, double p, double q, double l) {
  const double part = power(q, gamma), ratio = q > 0 ? l / q : 1, pr = p > 0 ? p * ratio : 0;
  return {q > 0 ? part * l : 0, part * (gamma * pr + 1), gamma * part * (pr * (1 - gamma * p) - 2 * p)};
}
template <> FX_INLINE_MEMBER Member family_at<fx::LINEAR>(double a, double b, double p, double q, double l) {
  return {(a != 0 ? a * l : 0) + b * q, b < 0 ? a + b - b * q : a + b * p, b * p * q};
}
template <> FX_INLINE_MEMBER Member family_at<fx::POWER>(double r, double, double, double q, double l) {
  const double x = l < 1e300 ? -r * l : -1e300, part = exp_down(x);
  return {-expm1_down(x) / r, part, r * part * q};
}
template <int F> static void family_loop(
    double a, double b, int n, const double* p, const double* q, const double* l, double* f, double* G, double* P) {
#pragma omp simd
  for (int i = 0; i < n; i++) { const Member m = family_at<F>(a, b, p[i], q[i], l[i]); f[i] = m.f; G[i] = m.G; P[i] = m.P; }
}
static void family_of(
    const fx::SoftmaxRows* c, int n, const double* p, const double* q, const double* l, double* f, double* G, double* P) {
  switch (c->family) {
    case fx::FOCAL: family_loop<fx::FOCAL>(c->a, c->b, n, p, q, l, f, G, P); break;
    case fx::LINEAR: family_loop<fx::LINEAR>(c->a, c->b, n, p, q, l, f, G, P); break;
    case fx::POWER: family_loop<fx::POWER>(c->a, c->b, n, p, q, l, f, G, P); break;
    default: family_loop<fx::CROSS_ENTROPY>(c->a, c->b, n, p, q, l, f, G, P);
  }
}
static inline Member family_of(const fx::SoftmaxRows* c, double p, double q, double l) {
  Member m; family_of(c, 1, &p, &q, &l, &m.f, &m.G, &m.P); return m;
}

}}  // namespace
