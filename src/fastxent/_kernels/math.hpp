// exp and log1p as vector code: no calls, no branches, no tables but what fits a register or two.  One source for every instruction set:
// GCC's vector extensions at the width that FX_BYTES gives.
//
// The rounding of u - m is amplified by |u - m| in e^(u-m) (64 ulp at -80 in float, 500 in double).  So nothing inexact
// is subtracted: d = u - c with c = m where that is exact (|m| >= shift_from, Sterbenz) and c = 0 otherwise; what is left
// of the shift is a power of two, folded into the exponent for nothing.  A guard of 2^26 (2^58) keeps every sum normal;
// it cancels in e / sum.  Below the clamp the exponent field is 0 and the result exactly 0.  NaN stays NaN.
#if defined(__AVX512F__)
#define FX_BYTES 64
#elif defined(__AVX__)
#define FX_BYTES 32
#else
#define FX_BYTES 16
#endif
#define FX_INLINE_MEMBER inline __attribute__((always_inline))
#define FX_INLINE static FX_INLINE_MEMBER

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace FX_NS { namespace {

template <class T> struct Num;
template <> struct Num<float> {
  typedef uint32_t U; typedef int32_t I;
  static constexpr int mant = 23, bias = 127, guard = 26;
  static constexpr float magic = 12582912.f, log2e = 1.44269504088896341f, ln2hi = 0x1.62e4p-1f, ln2lo = 0x1.7f7d1cp-20f,
                         ln2 = 0.693147180559945309f, shift_from = 208.f, unguard = 0x1p-26f, most = 0x1.fffffep127f;
};
template <> struct Num<double> {
  typedef uint64_t U; typedef int64_t I;
  static constexpr int mant = 52, bias = 1023, guard = 58;
  static constexpr double magic = 6755399441055744.0, log2e = 1.44269504088896340736, ln2hi = 0x1.62e42fefa3p-1,
                          ln2lo = 0x1.3de6af278ece6p-42, ln2 = 0.693147180559945309417, shift_from = 1492.0,
                          unguard = 0x1p-58, most = 0x1.fffffffffffffp1023;
};

template <class T> struct Vec {
  enum { N = FX_BYTES / sizeof(T) };
  typedef typename Num<T>::I I; typedef typename Num<T>::U U;
  typedef T V __attribute__((vector_size(FX_BYTES)));
  typedef I IV __attribute__((vector_size(FX_BYTES)));
  typedef U UV __attribute__((vector_size(FX_BYTES)));
  typedef V Loose __attribute__((aligned(1), may_alias));        // a vector anywhere in memory
};

static inline uint32_t bits(float f) { uint32_t u; __builtin_memcpy(&u, &f, 4); return u; }
static inline uint64_t bits(double f) { uint64_t u; __builtin_memcpy(&u, &f, 8); return u; }
static inline float from_bits(uint32_t u) { float f; __builtin_memcpy(&f, &u, 4); return f; }
static inline double from_bits(uint64_t u) { double f; __builtin_memcpy(&f, &u, 8); return f; }

#if FX_BYTES == 64
// 2^(j/16), j < 16: how its bits differ from those of 1 with j shifted in, and how far the number is from 2^(j/16), relative.
static constexpr int STEP_BITS = 4;
template <class T> struct Steps;
template <> struct Steps<float> {
  static constexpr float hi = 0x1.62cp-5f, lo = 0x1.217f7ep-16f;     // ln2/16; hi has so few bits that its product with any n is exact
  alignas(64) static constexpr int32_t bits[16] = {
    0, -0x2553d, -0x46a3e, -0x63c2d, -0x7c810, -0x90ace, -0xa0129, -0xaa7c1,
    -0xafb0d, -0xaf75c, -0xa98d6, -0x9db74, -0x8bb03, -0x73321, -0x53f39, -0x2da83};
  alignas(64) static constexpr float rest[16] = {
    0, 0x1.8d96d4p-25f, -0x1.9c0c22p-27f, 0x1.964904p-25f, 0x1.125002p-25f, 0x1.370be4p-25f, -0x1.0a355p-25f, -0x1.00d8acp-27f,
    0x1.26055cp-26f, -0x1.05cb44p-25f, 0x1.67a1cap-28f, 0x1.a3b5e4p-28f, -0x1.f9c304p-27f, -0x1.6961b4p-28f, -0x1.a5217cp-28f, 0x1.61428ep-28f};
};
template <> struct Steps<double> {
  static constexpr double hi = 0x1.62e42fefap-5, lo = 0x1.cf79abc9e3b3ap-44;
  alignas(64) static constexpr int64_t bits[16] = {
    0, -0x4aa7930676f1, -0x8d47c382ae85, -0xc785918a9dc8, -0xf901f5ce48eb, -0x12159b3edcbde, -0x140252ac9d5d9, -0x154f822b7abd7,
    -0x15f619980c433, -0x15eeb8c14fe79, -0x1531abdd55f25, -0x13b6e7d5c0f70, -0x1176066a52c53, -0xe664227aad64, -0xa7e723045b79, -0x5b505d5b6f26};
  alignas(64) static constexpr double rest[16] = {
    0, 0x1.79aa65d837b6dp-54, -0x1.01b15eaa59348p-55, 0x1.68efde3a8a894p-54, 0x1.34d754db0abb6p-55, 0x1.59f48a72a4c6dp-55, 0x1.690cebb7aafb0p-56, 0x1.063e1e21c5409p-54,
    -0x1.3b3efbf5e2228p-54, -0x1.b32dcb94da51dp-56, 0x1.db72fc1f0eab4p-55, 0x1.1affc2b91ce27p-56, 0x1.c1a7792cb3387p-55, 0x1.36eae30af0cb3p-56, 0x1.4a385a63d07a7p-56, -0x1.ff7128fd391f0p-55};
};
// (e^f - 1) / f on |f| <= ln2/32: minimax, 0.03 ulp (float), 0.11 ulp (double) of e^f
template <class X> FX_INLINE X step_poly(X f, float) { return (0x1.555736p-3f * f + 0x1.00022p-1f) * f + 1.f; }
template <class X> FX_INLINE X step_poly(X f, double) {
  X q = 0x1.6c185f83b867cp-10 * f + 0x1.11123ad27d387p-7; q = q * f + 0x1.555555545c756p-5; q = q * f + 0x1.555555548f685p-3;
  return (q * f + 0x1.0000000000005p-1) * f + 1.;
}
// 2^(n + j/16) e^f from the bits 16 (n + bias) + j, whatever stands above them; n + bias = 0 with j = 0 gives 0.  The tables are looked
// up by permutations of registers: a multiplication unit has eight things to do instead of eleven in float, eleven of sixteen in double.
template <class T> FX_INLINE typename Vec<T>::V power_of(typename Vec<T>::V f, typename Vec<T>::UV n) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::UV UV; UV up; V rest;
  if constexpr (sizeof(T) == 4) {
    up = (UV)_mm512_maskz_permutexvar_epi32((__mmask16)-1, (__m512i)n, _mm512_load_si512(Steps<T>::bits));
    rest = (V)_mm512_maskz_permutexvar_ps((__mmask16)-1, (__m512i)n, _mm512_load_ps(Steps<T>::rest));
  } else {
    up = (UV)_mm512_permutex2var_epi64(_mm512_load_si512(Steps<T>::bits), (__m512i)n, _mm512_load_si512(Steps<T>::bits + 8));
    rest = (V)_mm512_permutex2var_pd(_mm512_load_pd(Steps<T>::rest), (__m512i)n, _mm512_load_pd(Steps<T>::rest + 8));
  }
  const V power = (V)((n << (Num<T>::mant - STEP_BITS)) + up);
  return (step_poly(f, T()) * f + rest) * power + power;
}
template <class T> FX_INLINE T power_of(T f, typename Num<T>::U n) {
  const T power = from_bits((typename Num<T>::U)((n << (Num<T>::mant - STEP_BITS)) + (typename Num<T>::U)Steps<T>::bits[n & 15]));
  return (step_poly(f, T()) * f + Steps<T>::rest[n & 15]) * power + power;
}
#else
static constexpr int STEP_BITS = 0;
template <class T> struct Steps { static constexpr T hi = Num<T>::ln2hi, lo = Num<T>::ln2lo; };
// e^f = 1 + f + f^2 q(f) on |f| <= ln2/2: minimax, 0.06 ulp (float), 0.04 ulp (double)
template <class X> FX_INLINE X exp_poly(X f, float) {
  X q = 1.382511342e-03f * f + 8.369384333e-03f; q = q * f + 4.166823253e-02f; q = q * f + 1.666651517e-01f;
  q = q * f + 4.999999404e-01f;
  return (q * f + 1.f) * f + 1.f;
}
template <class X> FX_INLINE X exp_poly(X f, double) {
  X q = 0x1.ad99d06215d60p-26 * f + 0x1.28b1f6dcf5223p-22; q = q * f + 0x1.71df1a807ca31p-19;
  q = q * f + 0x1.a019953731fa3p-16; q = q * f + 0x1.a01a012c9d99ap-13; q = q * f + 0x1.6c16c185ee6b7p-10;
  q = q * f + 0x1.1111111127c70p-7; q = q * f + 0x1.5555555550069p-5; q = q * f + 0x1.55555555554f8p-3;
  q = q * f + 0x1.000000000000bp-1;
  return (q * f + 1.) * f + 1.;
}
template <class T> FX_INLINE typename Vec<T>::V power_of(typename Vec<T>::V f, typename Vec<T>::UV n) {
  return exp_poly(f, T()) * (typename Vec<T>::V)(n << Num<T>::mant);
}
template <class T> FX_INLINE T power_of(T f, typename Num<T>::U n) { return exp_poly(f, T()) * from_bits((typename Num<T>::U)(n << Num<T>::mant)); }
#endif

// The exponential goes in steps of 2^(1/STEPS): x = n ln2 / STEPS + f.
static constexpr int STEPS = 1 << STEP_BITS;
// The exact shift of a row with maximum m (one number, or a vector of rows).  `magic` rounds to whole steps and brings the exponent's
// bias, the guard and the shift along.
template <class T> struct Shift { T c, lo, magic; };
template <class T> FX_INLINE Shift<T> shift_of(T m) {
  typedef Num<T> C; Shift<T> s;
  s.c = (m < 0 ? -m : m) >= C::shift_from ? m : T(0);
  const T n = ((m - s.c) * C::log2e + C::magic) - C::magic - T(C::bias + C::guard);
  s.lo = n * C::ln2; s.magic = C::magic - STEPS * n;
  return s;
}
template <class T> struct VShift { typename Vec<T>::V c, lo, magic; };
template <class T> FX_INLINE VShift<T> splat(const Shift<T>& s) {
  VShift<T> v; v.c = typename Vec<T>::V{} + s.c; v.lo = typename Vec<T>::V{} + s.lo; v.magic = typename Vec<T>::V{} + s.magic;
  return v;
}
template <class T> FX_INLINE typename Vec<T>::V magnitude(typename Vec<T>::V x) {
  typedef typename Vec<T>::UV UV;
  return (typename Vec<T>::V)((UV)x & (UV{} + (typename Num<T>::U)-1 / 2));
}
template <class T> FX_INLINE VShift<T> shift_of_lanes(typename Vec<T>::V m) {
  typedef Num<T> C; typedef typename Vec<T>::V V; VShift<T> s;
  s.c = magnitude<T>(m) >= C::shift_from ? m : V{};
  const V n = ((m - s.c) * C::log2e + C::magic) - C::magic - T(C::bias + C::guard);
  s.lo = n * C::ln2; s.magic = C::magic - STEPS * n;
  return s;
}
// x as it is, rounded: a compiler that may fuse x = a * b with a sum after it does so in one place and not in another.
template <class V> FX_INLINE V rounded(V x) {
#if defined(__x86_64__) && FX_BYTES == 64
  asm("" : "+v"(x));
#elif defined(__x86_64__)
  asm("" : "+x"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
  return x;
}
// d, or lo where d is less; NaN stays.  One instruction: from the ternary GCC makes a comparison and a blend.
template <class T, class V> FX_INLINE V at_least(V d, V lo) {
#if FX_BYTES == 64
  if constexpr (sizeof(T) == 4) return (V)_mm512_maskz_max_ps((__mmask16)-1, (__m512)lo, (__m512)d);
  else return (V)_mm512_maskz_max_pd((__mmask8)-1, (__m512d)lo, (__m512d)d);
#elif FX_BYTES == 32
  if constexpr (sizeof(T) == 4) return (V)_mm256_max_ps((__m256)lo, (__m256)d);
  else return (V)_mm256_max_pd((__m256d)lo, (__m256d)d);
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return (V)_mm_max_ps((__m128)lo, (__m128)d);
  else return (V)_mm_max_pd((__m128d)lo, (__m128d)d);
#else
  return d < lo ? lo : d;
#endif
}
// d, or hi where d is more; NaN stays.
template <class T, class V> FX_INLINE V at_most(V d, V hi) {
#if FX_BYTES == 64
  if constexpr (sizeof(T) == 4) return (V)_mm512_maskz_min_ps((__mmask16)-1, (__m512)hi, (__m512)d);
  else return (V)_mm512_maskz_min_pd((__mmask8)-1, (__m512d)hi, (__m512d)d);
#elif FX_BYTES == 32
  if constexpr (sizeof(T) == 4) return (V)_mm256_min_ps((__m256)hi, (__m256)d);
  else return (V)_mm256_min_pd((__m256d)hi, (__m256d)d);
#elif defined(__x86_64__)
  if constexpr (sizeof(T) == 4) return (V)_mm_min_ps((__m128)hi, (__m128)d);
  else return (V)_mm_min_pd((__m128d)hi, (__m128d)d);
#else
  return d > hi ? hi : d;
#endif
}
// The greatest of numbers that are not negative, and the sum of all others.  NaN goes into the sum and stays there.  In CHAINS of them:
// equal numbers added one after another lose digits all in one direction, and an addition waits for the one before.
enum { CHAINS = 4 };
template <class T> struct TopAndOthers {
  typename Vec<T>::V top = {}, others = {};
  FX_INLINE_MEMBER void add(typename Vec<T>::V e) { others += at_most<T>(e, top); top = at_least<T>(top, e); }
};
// All of n chains as one, added in pairs: late additions, to a large sum, cost the most digits.  NaN goes into one of the two.
template <int n, class V> FX_INLINE V joined(const V* c) {
  if constexpr (n == 1) return c[0]; else return joined<n / 2>(c) + joined<n - n / 2>(c + n / 2);
}
template <int n, class T> FX_INLINE TopAndOthers<T> joined(const TopAndOthers<T>* c) {
  if constexpr (n == 1) return c[0];
  else {
    const TopAndOthers<T> a = joined<n / 2>(c), b = joined<n - n / 2>(c + n / 2);
    return {at_least<T>(a.top, b.top), (a.others + b.others) + at_most<T>(b.top, a.top)};
  }
}
// e^(u-m) * 2^guard.  The clamp is written so that NaN passes; exponents are unsigned, for the bits of a NaN may wrap.
template <class T> FX_INLINE typename Vec<T>::V exp_of(typename Vec<T>::V u, const VShift<T>& s) {
  typedef Num<T> C; typedef typename Vec<T>::V V;
  const V d = at_least<T>(u - s.c, s.lo), t = d * (STEPS * C::log2e) + s.magic, n = t - s.magic;
  V f = d - n * Steps<T>::hi; f = f - n * Steps<T>::lo;
  return power_of<T>(f, (typename Vec<T>::UV)t);
}
template <class T> FX_INLINE T exp_of(T u, const Shift<T>& s) {
  typedef Num<T> C;
  T d = u - s.c; d = d < s.lo ? s.lo : d;
  const T t = d * (STEPS * C::log2e) + s.magic, n = t - s.magic;
  T f = d - n * Steps<T>::hi; f = f - n * Steps<T>::lo;
  return power_of<T>(f, bits(t));
}
// sum + x in the lanes where u is less than m, or NaN.  From the ternary GCC makes one instruction more.
template <class T, class V> FX_INLINE V add_below(V sum, V x, V u, V m) {
#if FX_BYTES == 64
  if constexpr (sizeof(T) == 4)
    return (V)_mm512_mask_add_ps((__m512)sum, _mm512_cmp_ps_mask((__m512)u, (__m512)m, _CMP_NGE_UQ), (__m512)sum, (__m512)x);
  else
    return (V)_mm512_mask_add_pd((__m512d)sum, _mm512_cmp_pd_mask((__m512d)u, (__m512d)m, _CMP_NGE_UQ), (__m512d)sum, (__m512d)x);
#else
  return sum + (u >= m ? V{} : x);
#endif
}
// e^(d + low) * 2^guard for d <= 0 without a shift: the magic number brings the bias along.
template <class T, class... Low> FX_INLINE typename Vec<T>::V guarded_exp_of_negative(typename Vec<T>::V d, const Low... low) {
  typedef Num<T> C; typedef typename Vec<T>::UV UV; const T bias = C::magic + STEPS * (C::bias + C::guard);
  d = at_least<T>(d, typename Vec<T>::V{} - T(C::bias + C::guard) * C::ln2);
  const typename Vec<T>::V t = d * (STEPS * C::log2e) + bias, n = t - bias;
  typename Vec<T>::V f = d - n * Steps<T>::hi; f = f - n * Steps<T>::lo; ((f = f + low), ...);
  return power_of<T>(f, (UV)t);
}
template <class T> FX_INLINE typename Vec<T>::V exp_of_negative(typename Vec<T>::V d) { return guarded_exp_of_negative<T>(d) * Num<T>::unguard; }

// (log1p(f) - f) and the like on [-1/4, 1/2]
template <class X> FX_INLINE X log_poly(X f, float) {
  X q = -4.520768300e-02f * f + 1.048343107e-01f; q = q * f - 1.317050755e-01f; q = q * f + 1.447832882e-01f;
  q = q * f - 1.664632708e-01f; q = q * f + 1.999071836e-01f; q = q * f - 2.500011921e-01f; q = q * f + 3.333345354e-01f;
  q = q * f - 5.000000000e-01f;
  return q * f * f + f;
}
template <class X> FX_INLINE X log_poly(X f, double) {
  const X s = f / (2. + f), t = s * s;
  X q = 0x1.3af32d8740c6ap-3 * t + 0x1.384c0d305a613p-3; q = q * t + 0x1.7475392498068p-3; q = q * t + 0x1.c71bff4b86805p-3;
  q = q * t + 0x1.249249b565872p-2; q = q * t + 0x1.99999998ec24ep-2; q = q * t + 0x1.5555555555787p-1;
  return f - s * (f - t * q);                                      // keeps the leading term exact: 2s = f - s f
}
// log(1 + x), x >= 0 finite: 1 + x = 2^k (1 + f), f in [-1/4, 1/2), f = x 2^-k + (2^-k - 1).  k becomes a number by
// adding magic: int64 -> double does not exist before AVX-512.
template <class T> FX_INLINE typename Vec<T>::V log1p_of(typename Vec<T>::V x) {
  typedef Num<T> C; typedef typename Vec<T>::V V; typedef typename Vec<T>::UV UV; typedef typename C::U U;
  const V u = T(1) + x;
  const UV e = ((UV)u - bits(T(0.75))) & ~(((U)1 << C::mant) - 1);
  const V h = (V)(bits(T(1)) - e), f = x * h + (h - T(1));
  const V k = (V)((e >> C::mant) + bits(T(C::magic))) - C::magic;
  return k * C::ln2hi + (k * C::ln2lo + log_poly(f, T()));
}
template <class T> FX_INLINE T log1p_of(T x) {
  typedef Num<T> C; typedef typename C::U U;
  const T u = T(1) + x;
  const U e = (bits(u) - bits(T(0.75))) & ~(((U)1 << C::mant) - 1);
  const T h = from_bits((U)(bits(T(1)) - e)), f = x * h + (h - T(1));
  const T k = from_bits((U)((e >> C::mant) + bits(T(C::magic)))) - C::magic;
  return k * C::ln2hi + (k * C::ln2lo + log_poly(f, T()));
}

// GCC 12 converts eight floats to doubles in two halves and an insertion: three times the price of the one instruction.
template <class P, class D> FX_INLINE D doubles(P x, D) {
#if FX_BYTES == 64
  if constexpr (sizeof(P) == 32) return (D)_mm512_maskz_cvtps_pd((__mmask8)-1, (__m256)x);
#endif
  return __builtin_convertvector(x, D);
}

// log(1 + e) for e in [0, 1], and x / (1 + e): minimax, 0.12 ulp (float), 0.013 ulp (double).  In double the logarithm wants a
// quotient too, s = e / (2 + e): one division for both.
template <class V> struct Softplus { V tail, quotient; };
FX_INLINE Softplus<Vec<float>::V> softplus_of(Vec<float>::V e, Vec<float>::V x) {
  typedef Vec<float>::V V;
  const V e2 = e * e, e4 = e2 * e2;
  const V a = 0x1.554dd0p-2f * e - 0x1.ffffd2p-2f, b = 0x1.934b54p-3f * e - 0x1.ff23e6p-3f, c = 0x1.b4ae20p-4f * e - 0x1.3a4360p-3f;
  const V d = 0x1.491ee0p-6f * e - 0x1.d6b250p-5f, q = ((-0x1.af68bcp-9f * e2 + d) * e2 + c) * e4 + (b * e2 + a);
  return {q * e2 + e, x / (1.f + e)};
}
FX_INLINE Softplus<Vec<double>::V> softplus_of(Vec<double>::V e, Vec<double>::V x) {
  typedef Vec<double>::V V;
  const V u = 1. + e, w = 2. + e, r = 1. / (u * w), s = e * (u * r), t = s * s, t2 = t * t, t4 = t2 * t2;
  const V a = 0x1.99999999a074fp-2 * t + 0x1.5555555555535p-1, b = 0x1.c71c741c69de7p-3 * t + 0x1.249249208c687p-2;
  const V c = 0x1.3b1ddb4b07d9ap-3 * t + 0x1.745cb401aa76cp-3, d = 0x1.efd825a47eab8p-4 * t + 0x1.1067c751e7208p-3;
  const V f = 0x1.5c78343426ed7p-3 * t + 0x1.55b1c0136e27ep-4, q = (f * t4 + (d * t2 + c)) * t4 + (b * t2 + a);
  return {e - s * (e - t * q), x * (w * r)};                       // 2s = e - s e: the leading term is exact
}

// Whether any bit of a vector is set
template <class M> FX_INLINE bool any_of(const M& mask) {
#if FX_BYTES == 64
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif FX_BYTES == 32
  return !_mm256_testz_si256((__m256i)mask, (__m256i)mask);
#else
  uint64_t any = 0, words[FX_BYTES / 8];
  __builtin_memcpy(words, &mask, sizeof words);
  for (const uint64_t word : words) any |= word;
  return any != 0;
#endif
}

// Double sums of vectors of either type
template <class T> struct Wide {
  typedef double D __attribute__((vector_size(FX_BYTES))); D parts[8 / sizeof(T)] = {};
  FX_INLINE_MEMBER void add(typename Vec<T>::V x) {
    typedef T Part __attribute__((vector_size(FX_BYTES / (8 / sizeof(T))))); Part p[8 / sizeof(T)];
    __builtin_memcpy(p, &x, sizeof x);
    for (unsigned i = 0; i < 8 / sizeof(T); i++) parts[i] += doubles(p[i], D());
  }
  double total() const {                                                 // in pairs: one after another, each waits for the one before
    D s = parts[0]; double d[FX_BYTES / 8];
    for (unsigned i = 1; i < 8 / sizeof(T); i++) s += parts[i];
    for (unsigned c = 0; c < FX_BYTES / 8; c++) d[c] = s[c];
    for (unsigned n = FX_BYTES / 16; n > 0; n /= 2) for (unsigned c = 0; c < n; c++) d[c] += d[c + n];
    return d[0];
  }
};

#if defined(__x86_64__)
enum { STREAMS = 1 };
#else
enum { STREAMS = 0 };
#endif
// Bytes to memory past the cache: a line that is written whole need not be read first, a third of the traffic of an output
// that does not fit the cache.  `from` is aligned like a vector.  Ends with finish_stream().
static inline void stream(const char* from, char* to, ptrdiff_t n) {
#if defined(__x86_64__)
  const ptrdiff_t head = -(ptrdiff_t)(size_t)to & 63;
  if (n > 128) {
    __builtin_memcpy(to, from, head);
    ptrdiff_t at = head;
    for (; at + 64 <= n; at += 64) {
#if FX_BYTES == 64
      _mm512_stream_ps((float*)(to + at), _mm512_loadu_ps((const float*)(from + at)));
#elif FX_BYTES == 32
      for (int k = 0; k < 64; k += 32) _mm256_stream_ps((float*)(to + at + k), _mm256_loadu_ps((const float*)(from + at + k)));
#else
      for (int k = 0; k < 64; k += 16) _mm_stream_ps((float*)(to + at + k), _mm_loadu_ps((const float*)(from + at + k)));
#endif
    }
    __builtin_memcpy(to + at, from + at, n - at);
    return;
  }
#endif
  __builtin_memcpy(to, from, n);
}
// One vector of them; `to` is aligned.
template <class T> FX_INLINE void stream_vector(char* to, const typename Vec<T>::V x) {
#if FX_BYTES == 64
  _mm512_stream_ps((float*)to, (__m512)x);
#elif FX_BYTES == 32
  _mm256_stream_ps((float*)to, (__m256)x);
#elif defined(__x86_64__)
  _mm_stream_ps((float*)to, (__m128)x);
#else
  __builtin_memcpy(to, &x, sizeof x);
#endif
}
#if FX_BYTES == 64
// Lane l is number pick[l] of the two vectors' numbers, those of a first.
template <class T> FX_INLINE typename Vec<T>::V of_two(const typename Vec<T>::V a, const typename Vec<T>::V b, const typename Vec<T>::IV pick) {
  typedef typename Vec<T>::V V;
  if constexpr (sizeof(T) == 4) return (V)_mm512_permutex2var_ps((__m512)a, (__m512i)pick, (__m512)b);
  else return (V)_mm512_permutex2var_pd((__m512d)a, (__m512i)pick, (__m512d)b);
}
#endif
// A run of bytes on its way past the cache, a few whole lines at a time while something else is computed.
struct Outgoing {
  const char* from; char* to; ptrdiff_t bytes, sent;
  void some(ptrdiff_t until) {                                           // of the bytes before `until`
    const ptrdiff_t lines = ((ptrdiff_t)((size_t)to + (size_t)until) & -64) - (ptrdiff_t)(size_t)to;
    if (lines >= sent + 512) { stream(from + sent, to + sent, lines - sent); sent = lines; }
  }
  void rest() { if (bytes > sent) stream(from + sent, to + sent, bytes - sent); sent = bytes; }
};
static inline void finish_stream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

// float16 and bfloat16 bits <-> float, rounding to nearest even; NaN stays NaN
struct half_t { uint16_t b; };
struct bfloat_t { uint16_t b; };
constexpr bool is_half(half_t) { return true; }
constexpr bool is_half(bfloat_t) { return false; }
FX_INLINE float widen(bfloat_t x) { return from_bits((uint32_t)x.b << 16); }
FX_INLINE float widen(half_t x) {
  const uint32_t sign = (uint32_t)(x.b & 0x8000u) << 16, rest = (uint32_t)(x.b & 0x7fffu) << 13;
  // the exponent is rebiased by a multiplication, which is exact and also brings denormals and (2^16 and up) infinities right
  const float scaled = from_bits(rest) * 0x1p112f;
  const uint32_t big = rest >= 0x0f800000u ? 0x7f800000u | rest : bits(scaled);
  return from_bits(sign | big);
}
FX_INLINE void narrow(float x, bfloat_t* o) {
  const uint32_t u = bits(x), round = u + 0x7fffu + ((u >> 16) & 1u);
  o->b = (uint16_t)(((u & 0x7fffffffu) > 0x7f800000u ? u | 0x400000u : round) >> 16);
}
FX_INLINE void narrow(float x, half_t* o) {
  const uint32_t u = bits(x), sign = (u >> 16) & 0x8000u, size = u & 0x7fffffffu;
  const uint32_t normal = (size + 0xfffu + ((size >> 13) & 1u) - 0x38000000u) >> 13;        // rebias, round to even
  const uint32_t tiny = bits(from_bits(size) + 0.5f) - 0x3f000000u;                         // the adder aligns denormals
  const uint32_t finite = size < 0x38800000u ? tiny : normal;
  o->b = (uint16_t)(sign | (size > 0x7f800000u ? 0x7e00u : size >= 0x477ff000u ? 0x7c00u : finite));
}

// Numbers of one storage type as arithmetic ones and back.  Arithmetic in double implies storage in double.
template <class T> FX_INLINE bool stored_as_is(int storage) { return sizeof(T) == 8 || storage == fx::FLOAT; }
template <class T> FX_INLINE ptrdiff_t item_size(int storage) { return sizeof(T) == 8 ? 8 : storage == fx::FLOAT ? 4 : 2; }
template <class T> FX_INLINE T number_at(int storage, const char* p) {
  if (stored_as_is<T>(storage)) { T v; __builtin_memcpy(&v, p, sizeof v); return v; }
  uint16_t b; __builtin_memcpy(&b, p, 2);
  return storage == fx::HALF ? widen(half_t{b}) : widen(bfloat_t{b});
}
template <class T> FX_INLINE void number_to(int storage, T v, char* p) {
  if (stored_as_is<T>(storage)) { __builtin_memcpy(p, &v, sizeof v); return; }
  half_t h; bfloat_t b;
  if (storage == fx::HALF) { narrow((float)v, &h); __builtin_memcpy(p, &h, 2); } else { narrow((float)v, &b); __builtin_memcpy(p, &b, 2); }
}
template <class S, class T> static inline void widen_as(const char* from, ptrdiff_t n, T* to) {
  ptrdiff_t k = 0;
#if FX_BYTES == 64
  if constexpr (sizeof(T) == 4)
    for (; k + 16 <= n; k += 16) {
      const __m256i x = _mm256_loadu_si256((const __m256i*)(from + 2 * k));
      _mm512_storeu_ps((float*)to + k, is_half(S()) ? _mm512_maskz_cvtph_ps((__mmask16)-1, x) : (__m512)_mm512_maskz_slli_epi32((__mmask16)-1, _mm512_maskz_cvtepu16_epi32((__mmask16)-1, x), 16));
    }
#endif
  for (; k < n; k++) to[k] = widen(((const S*)from)[k]);
}
template <class S, class T> static inline void narrow_as(const T* from, ptrdiff_t n, char* to) {
  ptrdiff_t k = 0;
#if FX_BYTES == 64
  if constexpr (sizeof(T) == 4 && is_half(S()))
    for (; k + 16 <= n; k += 16)
      _mm256_storeu_si256((__m256i*)(to + 2 * k), _mm512_maskz_cvtps_ph((__mmask16)-1, _mm512_loadu_ps((const float*)from + k), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#endif
  for (; k < n; k++) narrow((float)from[k], (S*)to + k);
}
template <class T> static void widen_run(int storage, const char* from, ptrdiff_t n, T* to) {
  if (stored_as_is<T>(storage)) __builtin_memcpy(to, from, n * sizeof(T));
  else if (storage == fx::HALF) widen_as<half_t>(from, n, to);
  else widen_as<bfloat_t>(from, n, to);
}
template <class T> static void narrow_run(int storage, const T* from, ptrdiff_t n, char* to) {
  if (stored_as_is<T>(storage)) __builtin_memcpy(to, from, n * sizeof(T));
  else if (storage == fx::HALF) narrow_as<half_t>(from, n, to);
  else narrow_as<bfloat_t>(from, n, to);
}

}}  // namespace
