// Activations of hidden layers and their derivatives, a vector at a time: one exponential each, of a number that is never
// positive, so that nothing overflows.  NaN stays NaN.  Error: tanh, logistic 2 ulp; gelu, silu 3 ulp in float, 8 in double.
namespace FX_NS { namespace {

// tanh z = z + z s q(s), s = z^2, where 1 - e^(-2|z|) would cancel
template <class X> FX_INLINE X tanh_poly(X s, float) {
  X q = -0x1.acc5a4p-8f * s + 0x1.5c886p-6f; q = q * s - 0x1.b99384p-5f; q = q * s + 0x1.110fcp-3f;
  return q * s - 0x1.555554p-2f;
}
template <class X> FX_INLINE X tanh_poly(X s, double) {
  X q = -0x1.51eb0f790fd4cp-16 * s + 0x1.6227bf9d410dfp-14; q = q * s - 0x1.eb2f1f90d81f4p-13; q = q * s + 0x1.34b253ea057a5p-11;
  q = q * s - 0x1.7d95d08f04614p-10; q = q * s + 0x1.d6d318a012c9ep-9; q = q * s - 0x1.226e324ef7265p-7;
  q = q * s + 0x1.664f487384560p-6; q = q * s - 0x1.ba1ba1b9f49e6p-5; q = q * s + 0x1.1111111110fd9p-3;
  return q * s - 0x1.5555555555555p-2;
}
// e^(x^2) erfc(x) for x >= 0 as a polynomial in (x - k) / (x + k): Chebyshev interpolation in 50 digits, 1.4 and 6 ulp
template <class X> FX_INLINE X erfcx_poly(X x, float) {
  const X u = (x - 3.5f) / (x + 3.5f);
  X q = 0x1.d4b92p-12f * u + 0x1.4d06ccp-12f; q = q * u - 0x1.195616p-8f; q = q * u + 0x1.159256p-6f; q = q * u - 0x1.74335cp-5f;
  q = q * u + 0x1.82cc6cp-4f; q = q * u - 0x1.4a6ba2p-3f; q = q * u + 0x1.dd736p-3f; q = q * u - 0x1.28351ap-2f;
  return q * u + 0x1.3e0a9ap-3f;
}
template <class X> FX_INLINE X erfcx_poly(X x, double) {
  const X u = (x - 3.) / (x + 3.);
  X q = 0x1.4081a8e582f66p-32 * u + 0x1.d4d18e4ec51adp-31; q = q * u - 0x1.a0efbbe185addp-30; q = q * u - 0x1.102d949ae4050p-27;
  q = q * u + 0x1.8920ff3244f73p-30; q = q * u + 0x1.89cdcad153b66p-25; q = q * u + 0x1.e6bab26e96e8dp-26;
  q = q * u - 0x1.f653a41fe9e22p-23; q = q * u - 0x1.3b9d512b9358bp-22; q = q * u + 0x1.501f1c6069d04p-20;
  q = q * u + 0x1.1c8bc27865be7p-19; q = q * u - 0x1.0bb2b4e9429d6p-17; q = q * u - 0x1.af86e700814dbp-17;
  q = q * u + 0x1.0cac2df73a324p-14; q = q * u + 0x1.7ba1045070988p-15; q = q * u - 0x1.39084c3fac906p-11;
  q = q * u + 0x1.73101e7762be7p-11; q = q * u + 0x1.17c838ee4c9ccp-8; q = q * u - 0x1.8fa58eb5d8a9ep-6;
  q = q * u + 0x1.258b13b017cc1p-4; q = q * u - 0x1.336ffbef08b58p-3; q = q * u + 0x1.f6ff204105970p-3;
  q = q * u - 0x1.4e102b9cf8513p-2;
  return q * u + 0x1.6e9827d229d2dp-3;
}

// The activation of z, and its derivative where it is wanted.
template <class T> FX_INLINE typename Vec<T>::V activate(int kind, typename Vec<T>::V z, bool wanted, typename Vec<T>::V* slope) {
  typedef typename Vec<T>::V V;
  const V one = V{} + T(1), size = z < 0 ? -z : z;
  switch (kind) {
    case fx::RELU:
      if (wanted) *slope = z > 0 ? one : V{};
      return z < 0 ? V{} : z;
    case fx::LOGISTIC: {
      const V e = exp_of_negative<T>(-size), r = one / (one + e), s = z < 0 ? e * r : r;
      if (wanted) *slope = s * (one - s);
      return s;
    }
    case fx::SILU: {
      const V e = exp_of_negative<T>(-size), r = one / (one + e), s = z < 0 ? e * r : r, other = z < 0 ? r : e * r;
      if (wanted) *slope = s * (one + z * other);
      return z * s;
    }
    case fx::TANH: {
      const V e = exp_of_negative<T>(T(-2) * size), s = z * z, far = (one - e) / (one + e);
      const V a = size < T(0.56) ? z + z * s * tanh_poly(s, T()) : z < 0 ? -far : far;
      if (wanted) *slope = one - a * a;
      return a;
    }
    case fx::GELU: {
      const T most = sizeof(T) == 4 ? T(9) : T(26);                  // beyond, e^(-x^2) is 0
      V x = size * T(0.70710678118654752440); x = x > most ? V{} + most : x;
      const V e = exp_of_negative<T>(T(-0.5) * z * z), tail = T(0.5) * erfcx_poly(x, T()) * e, below = z < 0 ? tail : one - tail;
      if (wanted) *slope = below + z * e * T(0.39894228040143267794);
      return z * below;
    }
    default:
      if (wanted) *slope = one;
      return z;
  }
}

}}  // namespace
