// Softmax rows of two classes with labels, N rows at once, lanes are rows: one exponential, one division and one logarithm of a
// number in [0, 1] for a row, e = e^-(m - l) of its greater logit m and its lesser one l.
//
// The rounding of m - l, which e^ would amplify, is found exactly (Knuth's TwoSum) and goes into the exponential behind its
// reduction.  The two gradients are one number and its negative: the probability of the class that is not the label.
//
// Two short loops in the first-level cache, for the reason that sigmoid.hpp gives: e, then loss and gradient.
namespace FX_NS { namespace {

enum { PAIRS = 256 };

template <class T> static void pairs(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char*, BlockOut* out) {
  typedef Num<T> C; typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef typename Vec<T>::UV UV; typedef typename C::I I; enum { N = Vec<T>::N };
  const Target<T> target(a); const T* const w = target.w; const T inf = T(__builtin_inf()), beyond = T(C::bias + C::guard) * C::ln2;
  const UV sign = UV{} + ((typename C::U)1 << (8 * sizeof(T) - 1));
  alignas(64) T weight[PAIRS], wy[PAIRS], flat[2 * PAIRS], m[PAIRS], e[PAIRS], gap[PAIRS], L[PAIRS], LSE[PAIRS], g[2 * PAIRS];
  alignas(64) I yi[PAIRS]; int64_t y[PAIRS]; double total = 0;
  const bool gradient = a->grad.data, weighted = a->weight.data || a->has_ignore, as_is = stored_as_is<T>(a->storage), past = a->stream && as_is;
  const ptrdiff_t item = item_size<T>(a->storage), ahead = rows_ahead(2 * item, N);
  for (ptrdiff_t r = 0; r < PAIRS; r++) wy[r] = T(1);
  for (ptrdiff_t i0 = begin; i0 < end; i0 += PAIRS) {
    const ptrdiff_t nb = end - i0 < PAIRS ? end - i0 : PAIRS, lanes = (nb + N - 1) / N * N;
    take_rows<T>(a, i0, nb, y, weight, out);
    for (ptrdiff_t r = nb; r < lanes; r++) { y[r] = 0; weight[r] = 0; }
    for (ptrdiff_t r = 0; r < lanes; r++) yi[r] = (I)y[r];
    if (w) for (ptrdiff_t r = 0; r < lanes; r++) wy[r] = w[y[r]];
    const char* const from = a->logits.data + i0 * 2 * item; const T* z = (const T*)from;
    if (!as_is || lanes > nb) {
      widen_run(a->storage, from, nb * 2, flat); z = flat;
      for (ptrdiff_t i = 2 * nb; i < 2 * lanes; i++) flat[i] = 0;
    }
    const char* const next = from + (i0 + nb + ahead <= end ? ahead : 0) * 2 * item;
    IV unlimited = ~IV{};
    for (ptrdiff_t r = 0; r < lanes; r += N) {
      V t[2]; Weave<T, 2>::to_columns(z + 2 * r, t);
      __builtin_prefetch(next + 2 * r * item, 0, 2); __builtin_prefetch(next + (2 * r + N) * item, 0, 2);
      ask_for_labels(a, i0 + r + 2 * PAIRS, N, end);
      const V first = t[0], second = t[1];
      const IV later = first < second, lesser = (*(const IV*)(yi + r) != 0) != later;      // the label is not the greater one
      const V top = later ? second : first, low = later ? first : second, d = top - low, back = top - d;
      const V lost = (top - (d + back)) - (low - back);
      unlimited &= (top > -inf) & (top < inf);
      *(V*)(m + r) = top; *(V*)(gap + r) = lesser ? d : V{};
      *(V*)(e + r) = guarded_exp_of_negative<T>(-d, d < beyond ? -lost : V{});
    }
    char* const to = gradient ? a->grad.data + i0 * 2 * item : 0; Outgoing sent = {(const char*)g, to, nb * 2 * item, 0}; Wide<T> sum;
    for (ptrdiff_t r = 0; r < lanes; r += N) {
      const V er = *(const V*)(e + r), lv = *(const V*)(weight + r), wv = *(const V*)(wy + r), far = *(const V*)(gap + r);
      const V at = er * C::unguard, per = lv * (target.grad_scale * C::unguard); const Softplus<V> s = softplus_of(at, per);
      const V loss = wv * (s.tail + (wv != T(0) ? far : V{})) * lv, weighed = lv == T(0) ? V{} : loss;
      *(V*)(L + r) = weighed; *(V*)(LSE + r) = *(const V*)(m + r) + s.tail; sum.add(weighed);
      if (gradient) {
        V G = wv * (far != T(0) ? V{} + T(1) / C::unguard : er) * (sizeof(T) == 8 ? per / (T(1) + at) : s.quotient);   // in double the shared division costs an ulp
        if (weighted) G = lv == T(0) ? V{} : G;
        const UV late = (UV)*(const IV*)(yi + r) << (int)(8 * sizeof(T) - 1);             // the label's gradient is the negative one
        const V t[2] = {(V)((UV)G ^ late ^ sign), (V)((UV)G ^ late)};
        Weave<T, 2>::to_rows(t, g + 2 * r);
        if (past && r + N < nb) sent.some(2 * (r + N) * item);
      }
    }
    if (__builtin_expect(any_of(~unlimited), 0)) {
      for (ptrdiff_t r = 0; r < nb; r++)
        if (!(LSE[r] > -inf && LSE[r] < inf)) L[r] = limit_row<T>(a, target, i0 + r, y[r], weight[r], gradient ? g + 2 * r : 0, (T*)0, 1, LSE + r);
      sum = Wide<T>(); sent.sent = 0;
      for (ptrdiff_t r = 0; r < lanes; r += N) sum.add(*(const V*)(L + r));
    }
    total += sum.total();
    if (gradient) {
      if (!as_is) narrow_run(a->storage, g, nb * 2, to);
      else if (past) sent.rest();
      else __builtin_memcpy(to, g, nb * 2 * item);
    }
    if (a->loss.data) store_rows(a->loss, a->inner, i0, nb, L);
    if (a->lse.data) store_rows(a->lse, a->inner, i0, nb, LSE);
  }
  if (a->stream) finish_stream();
  out->loss += total;
}

}}  // namespace
