// Derivatives of softmax cross-entropy for boosters, float whatever the margins are: gradient v (p - [k = y]) and curvature
// v max(factor p (1 - p), floor), v the row's weight times its label's.  Lanes are rows.  The label's own gradient and the curvature of a
// likely class come from the sum of the others, so both keep their digits as p goes to 1.  Expected: as softmax.hpp, plus one rounding to float.
namespace FX_NS { namespace {

// Rows [begin, end).  A row with a limit (NaN, infinities) sets a->odd, and its numbers mean nothing.
template <class T> static void boost(const fx::Boost* a, ptrdiff_t begin, ptrdiff_t end, char* scratch) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef typename Num<T>::I I;
  typedef typename Vec<T>::Loose Loose; constexpr int N = Vec<T>::N;
  typedef float F __attribute__((vector_size(N * sizeof(float)))); typedef int32_t Y __attribute__((vector_size(N * sizeof(int32_t))));
  const ptrdiff_t K = a->classes; const T inf = T(__builtin_inf()), factor = T(a->factor), floor = T(a->floor);
  const bool by_row = a->margins.cls == sizeof(T) && a->grad.cls == sizeof(float), weighted = a->weight || a->class_weight;
  const ptrdiff_t B = fx::boost_rows(a), step = B / N;
  T* const t = (T*)scratch; float* const g = (float*)(t + K * B); float* const h = g + K * B; float* const flat = h + K * B;
  alignas(64) int32_t y[fx::BOOST_ROWS]; alignas(64) T weight[fx::BOOST_ROWS];
  const T* const w = (const T*)a->class_weight; IV unlimited = ~IV{};
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
    for (ptrdiff_t r = 0; r < B; r++) { y[r] = r < nb ? a->labels[i0 + r] : 0; weight[r] = T(1); }
    if (a->weight) __builtin_memcpy(weight, (const T*)a->weight + i0, nb * sizeof(T));
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
  if (any_of(~unlimited)) __atomic_store_n(a->odd, 1, __ATOMIC_RELAXED);
}

}}  // namespace
