// The family L = f(p_y) of softmax losses.  With q = 1 - p summed without y and l = -log p, a member is three numbers:
//     f,   G = -p f'(p),   and   P = q p dG/dp
// (with the factor q it stays finite as q -> 0).  Then g_k = G (p_k - [k = y]) and the Hessian is
//     G (diag p - p p') - P/q d d',   d = p - e_y.
// NaN in p, q or l is NaN in all three: comparisons ask for the limit, which NaN is not.
// In double whatever the storage: powers amplify rounding by their logarithm.  A new member: an entry of `Family` and one
// specialization of `member_at`, for one number and for a vector of them alike.
namespace FX_NS { namespace {

typedef Vec<double>::V D; typedef Vec<double>::IV ID; typedef Vec<double>::UV UD; typedef Vec<double>::Loose LooseD;
enum { ND = Vec<double>::N };

template <class X> struct MemberOf { X f, G, P; };
typedef MemberOf<double> Member;

FX_INLINE UD bits(D x) { return (UD)x; }
FX_INLINE D from_bits(UD x) { return (D)x; }
// log x for positive normal x
template <class X> FX_INLINE X log_normal(X x) {
  typedef Num<double> C;
  const uint64_t lift = (uint64_t)2048 << C::mant;
  const auto e = (bits(x) - bits(0.75) + lift) & ~(((uint64_t)1 << C::mant) - 1);
  const X h = from_bits(bits(1.) - (e - lift)), f = x * h - 1.;
  const X k = from_bits((e >> C::mant) + bits(double(C::magic))) - C::magic - 2048.;
  return k * C::ln2hi + (k * C::ln2lo + log_poly(f, double()));
}
// e^x for x <= 0
FX_INLINE double exp_down(double x) { return exp_of(x, shift_of(0.)) * Num<double>::unguard; }
FX_INLINE D exp_down(D x) { return exp_of_negative<double>(x); }
// e^x - 1 for x <= 0 (Kahan): the rounding of u = e^x cancels against that of log u
template <class X> FX_INLINE X expm1_down(X x) {
  const X u = exp_down(x), one = X{} + 1., l = log_normal(u > 0x1p-60 ? u : one), near = (u - 1.) * (x / l);
  return u == 1. ? x : u > 0x1p-60 ? near : u != u ? u : -one;
}
FX_INLINE float root(float x) { return __builtin_sqrtf(x); }
FX_INLINE double root(double x) { return __builtin_sqrt(x); }
FX_INLINE D root(D x) { for (int i = 0; i < ND; i++) x[i] = __builtin_sqrt(x[i]); return x; }
// q^gamma, 0 <= q <= 1 and gamma > 0: by products and a root for multiples of 1/2 up to 8
template <class X> FX_INLINE X power(X q, double gamma) {
  const double twice = 2 * gamma;
  if (twice <= 16 && twice == (int)twice) {
    X r = (int)twice % 2 ? root(q) : X{} + 1.;
    for (int n = (int)twice / 2; n > 0; n--) r *= q;
    return r;
  }
  const X one = X{} + 1., r = exp_down(gamma * log_normal(q == 0. ? one : q));
  return q == 0. ? X{} : r;
}

template <int F, class X> struct MemberAt;
template <class X> struct MemberAt<fx::CROSS_ENTROPY, X> {
  static FX_INLINE_MEMBER MemberOf<X> at(double, double, X, X, X l) { return {l, X{} + 1., X{}}; }
};
template <class X> struct MemberAt<fx::FOCAL, X> {
  static FX_INLINE_MEMBER MemberOf<X> at(double gamma, double, X p, X q, X l) {
    const X part = power(q, gamma), over = l / q, ratio = q == 0. ? X{} + 1. : over, pr = p == 0. ? X{} : p * ratio, f = part * l;
    return {q == 0. ? X{} : f, part * (gamma * pr + 1.), gamma * part * (pr * (1. - gamma * p) - 2. * p)};
  }
};
template <class X> struct MemberAt<fx::LINEAR, X> {
  static FX_INLINE_MEMBER MemberOf<X> at(double a, double b, X p, X q, X l) {
    const X f = b * q;
    return {a != 0 ? a * l + f : f, b < 0 ? a + b - b * q : a + b * p, b * p * q};
  }
};
template <class X> struct MemberAt<fx::POWER, X> {
  static FX_INLINE_MEMBER MemberOf<X> at(double r, double, X, X q, X l) {
    const X x = l > 1e300 ? X{} - 1e300 : -r * l, part = exp_down(x);
    return {-expm1_down(x) / r, part, r * part * q};
  }
};
template <class X> FX_INLINE MemberOf<X> member_at(int family, double a, double b, X p, X q, X l) {
  switch (family) {
    case fx::FOCAL: return MemberAt<fx::FOCAL, X>::at(a, b, p, q, l);
    case fx::LINEAR: return MemberAt<fx::LINEAR, X>::at(a, b, p, q, l);
    case fx::POWER: return MemberAt<fx::POWER, X>::at(a, b, p, q, l);
    default: return MemberAt<fx::CROSS_ENTROPY, X>::at(a, b, p, q, l);
  }
}
static void family_of(
    const fx::SoftmaxRows* c, int n, const double* p, const double* q, const double* l, double* f, double* G, double* P) {
  int i = 0;
  for (; i + ND <= n; i += ND) {
    const MemberOf<D> m = member_at<D>(c->family, c->a, c->b, *(const LooseD*)(p + i), *(const LooseD*)(q + i), *(const LooseD*)(l + i));
    *(LooseD*)(f + i) = m.f; *(LooseD*)(G + i) = m.G; *(LooseD*)(P + i) = m.P;
  }
  for (; i < n; i++) {
    const Member m = member_at<double>(c->family, c->a, c->b, p[i], q[i], l[i]);
    f[i] = m.f; G[i] = m.G; P[i] = m.P;
  }
}
static inline Member family_of(const fx::SoftmaxRows* c, double p, double q, double l) {
  return member_at<double>(c->family, c->a, c->b, p, q, l);
}

}}  // namespace
