// Derivatives of softmax cross-entropy for boosters, float whatever the margins are: gradient v (p - [k = y]) and curvature
// v max(factor p (1 - p), floor), v the row's weight times its label's.  Lanes are rows.  The label's own gradient and the curvature of a
// likely class come from the sum of the others, so both keep their digits as p goes to 1.  Expected: as softmax.hpp, plus one rounding to float.
namespace FX_NS { namespace {

// n numbers of type S, `stride` bytes apart, each through take(r, number).
template <class S, class Take> FX_INLINE void each_number(const char* p, ptrdiff_t stride, ptrdiff_t n, Take take) {
  if (stride == (ptrdiff_t)sizeof(S)) for (ptrdiff_t r = 0; r < n; r++) { S v; __builtin_memcpy(&v, p + r * (ptrdiff_t)sizeof(S), sizeof(S)); take(r, v); }
  else for (ptrdiff_t r = 0; r < n; r++) { S v; __builtin_memcpy(&v, p + r * stride, sizeof(S)); take(r, v); }
}
// Labels as int32; whether all are classes.  Boosters keep them as float.
template <class S> static bool classes_at(const char* p, ptrdiff_t stride, ptrdiff_t n, ptrdiff_t K, int32_t* y) {
  int odd = 0;
  each_number<S>(p, stride, n, [&](ptrdiff_t r, const S v) __attribute__((always_inline)) { const int in = (uint64_t)v < (uint64_t)K; y[r] = in ? (int32_t)v : 0; odd |= !in; });
  return !odd;
}
template <class S> static bool whole_classes_at(const char* p, ptrdiff_t stride, ptrdiff_t n, ptrdiff_t K, int32_t* y) {
  int odd = 0;
  each_number<S>(p, stride, n, [&](ptrdiff_t r, const S v) __attribute__((always_inline)) {
    const S in = (v >= S(0)) & (v < S(K)) ? v : S(0); y[r] = (int32_t)in; odd |= !((S)y[r] == v);
  });
  return !odd;
}
static bool labels_of(const fx::Boost* a, ptrdiff_t i, ptrdiff_t n, int32_t* y) {
  const ptrdiff_t s = a->label_stride, K = a->classes; const char* const p = a->labels + i * s;
  switch (a->label_kind) {
    case 0: return classes_at<uint8_t>(p, s, n, K, y);  case 1: return classes_at<uint16_t>(p, s, n, K, y);
    case 2: return classes_at<uint32_t>(p, s, n, K, y); case 3: return classes_at<uint64_t>(p, s, n, K, y);
    case 4: return classes_at<int8_t>(p, s, n, K, y);   case 5: return classes_at<int16_t>(p, s, n, K, y);
    case 6: return classes_at<int32_t>(p, s, n, K, y);  case 7: return classes_at<int64_t>(p, s, n, K, y);
    case 8: return whole_classes_at<float>(p, s, n, K, y); default: return whole_classes_at<double>(p, s, n, K, y);
  }
}
// Weights as T; whether all are finite and not negative.
template <class T> static bool weights_of(const fx::Boost* a, ptrdiff_t i, ptrdiff_t n, T* weight) {
  const ptrdiff_t s = a->weight_stride; const char* const p = a->weight + i * s; int odd = 0;
  auto take = [&](ptrdiff_t r, auto v) __attribute__((always_inline)) { weight[r] = T(v); odd |= !is_share<T>(weight[r]); };
  if (a->weight_double) each_number<double>(p, s, n, take); else each_number<float>(p, s, n, take);
  return !odd;
}

// Rows [begin, end).  A row with a limit (NaN, infinities), a label that is no class, or a weight that is negative or not
// finite sets a->odd, and the numbers mean nothing.
template <class T> static void boost(const fx::Boost* a, ptrdiff_t begin, ptrdiff_t end, char* scratch) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef typename Num<T>::I I;
  typedef typename Vec<T>::Loose Loose; constexpr int N = Vec<T>::N;
  typedef float F __attribute__((vector_size(N * sizeof(float)))); typedef int32_t Y __attribute__((vector_size(N * sizeof(int32_t))));
  const ptrdiff_t K = a->classes; const T inf = T(__builtin_inf()), factor = T(a->factor), floor = T(a->floor);
  const bool by_row = a->margins.cls == sizeof(T) && a->grad.cls == sizeof(float), weighted = a->weight || a->class_weight;
  const ptrdiff_t B = fx::boost_rows(a), step = B / N;
  T* const t = (T*)scratch; float* const g = (float*)(t + K * B); float* const h = g + K * B; float* const flat = h + K * B;
  alignas(64) int32_t y[fx::BOOST_ROWS]; alignas(64) T weight[fx::BOOST_ROWS];
  const T* const w = (const T*)a->class_weight; IV unlimited = ~IV{}; bool plain = true;
  for (ptrdiff_t i0 = begin; i0 < end; i0 += B) {
    const ptrdiff_t nb = end - i0 < B ? end - i0 : B;
    const char* const from = a->margins.data + i0 * a->margins.outer;
    // Whole columns are read where they lie: u at `in`, one class every `far` bytes.
    const bool direct = a->margins.outer == sizeof(T) && nb == B; const char* const in = direct ? from : (const char*)t;
    const ptrdiff_t far = direct ? a->margins.cls : B * (ptrdiff_t)sizeof(T);
    if (by_row && nb == fx::LANES && B == fx::LANES) rows_to_lanes<T, fx::LANES>((const T*)from, a->margins.outer / (ptrdiff_t)sizeof(T), K, t);
    else if (a->margins.outer == sizeof(T) && !direct)
      for (ptrdiff_t k = 0; k < K; k++) __builtin_memcpy(t + k * B, from + k * a->margins.cls, nb * sizeof(T));
    else if (!direct)
      for (ptrdiff_t r = 0; r < nb; r++)
        for (ptrdiff_t k = 0; k < K; k++) __builtin_memcpy(t + k * B + r, from + r * a->margins.outer + k * a->margins.cls, sizeof(T));
    if (nb < B) for (ptrdiff_t k = 0; k < K; k++) for (ptrdiff_t r = nb; r < B; r++) t[k * B + r] = 0;
    if (nb < B || !a->weight) for (ptrdiff_t r = 0; r < B; r++) { y[r] = 0; weight[r] = T(1); }
    plain &= labels_of(a, i0, nb, y);
    if (a->weight) plain &= weights_of<T>(a, i0, nb, weight);
    for (ptrdiff_t r = 0; r < B; r += N) {
      V* const x = (V*)(t + r); F* const gs = (F*)(g + r); F* const hs = (F*)(h + r);
      const IV yv = __builtin_convertvector(*(const Y*)(y + r), IV); V v = *(const V*)(weight + r);
      const char* const col = in + r * (ptrdiff_t)sizeof(T); V m = *(const Loose*)col;
      for (ptrdiff_t k = 1; k < K; k++) { const V u = *(const Loose*)(col + k * far); m = u > m ? u : m; }
      const VShift<T> shift = shift_of_lanes<T>(m);
      const char* const next = from + (B + r) * a->margins.outer;      // of the next block; between the exponentials it does not wait
      V rest = {}, top = {}, ties = {};
      for (ptrdiff_t k = 0; k < K; k++) {
        __builtin_prefetch(next + k * a->margins.cls, 0, 3);
        const V u = *(const Loose*)(col + k * far), e = exp_of<T>(u, shift); const IV at = u >= m;
        top = at ? e : top; ties += at ? V{} + T(1) : V{}; rest += at ? V{} : e;
        x[k * step] = e;
      }
      const V others = rest + (ties - T(1)) * top, sum = others + top, one = T(1) / sum;
      unlimited &= (m > -inf) & (m < inf) & (sum < inf);
      if (w) { V wy = {}; for (ptrdiff_t k = 0; k < K; k++) wy = yv == (I)k ? V{} + w[k] : wy; v *= wy; }
      auto finish = [&](ptrdiff_t k, bool weigh) __attribute__((always_inline)) {
        const V e = x[k * step], p = e * one, left = (e >= top ? others : sum - e) * one, slope = yv == (I)k ? -left : p;
        V c = factor * (p * left); c = c > floor ? c : V{} + floor;
        gs[k * step] = __builtin_convertvector(weigh ? slope * v : slope, F);
        hs[k * step] = __builtin_convertvector(weigh ? c * v : c, F);
      };
      if (weighted) for (ptrdiff_t k = 0; k < K; k++) finish(k, true);
      else for (ptrdiff_t k = 0; k < K; k++) finish(k, false);
    }
    const float* const sources[2] = {g, h}; const Matrix* const outputs[2] = {&a->grad, &a->hess};
    for (int n = 0; n < 2; n++) {
      const float* const s = sources[n]; const Matrix& m = *outputs[n]; char* const to = m.data + i0 * m.outer;
      if (m.outer == sizeof(float)) {
        for (ptrdiff_t k = 0; k < K; k++)
          if (a->stream) stream((const char*)(s + k * B), to + k * m.cls, nb * sizeof(float)); else __builtin_memcpy(to + k * m.cls, s + k * B, nb * sizeof(float));
      } else if (by_row && nb == fx::LANES && B == fx::LANES && m.outer == K * (ptrdiff_t)sizeof(float)) {
        lanes_to_rows<float, fx::LANES>(s, a->stream ? flat : (float*)to, K, K);
        if (a->stream) stream((const char*)flat, to, nb * K * sizeof(float));
      } else
        for (ptrdiff_t r = 0; r < nb; r++)
          for (ptrdiff_t k = 0; k < K; k++) __builtin_memcpy(to + r * m.outer + k * m.cls, s + k * B + r, sizeof(float));
    }
  }
  if (a->stream) finish_stream();
  if (!plain || any_of(~unlimited)) __atomic_store_n(a->odd, 1, __ATOMIC_RELAXED);
}

}}  // namespace
