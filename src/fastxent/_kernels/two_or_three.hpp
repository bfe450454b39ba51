// Softmax rows of two or three classes with labels, N rows at once, lanes are rows: of the greatest logit m no exponential is wanted,
// of each lesser one l it is e = e^-(m - l), and the logarithm is that of 1 and their sum.
//
// The rounding of m - l, which e^ would amplify, is found exactly (Knuth's TwoSum) and goes into the exponential behind its
// reduction.  The two gradients of two classes are one number and its negative: the probability of the class that is not the label.
//
// Three short loops in the first-level cache, as in few.hpp: logits in their order, exponentials, loss and gradient.
namespace FX_NS { namespace {

enum { LEAST_ROWS = 256 };

// e^-(top - low) * 2^guard of low <= top, and their difference
template <class T> FX_INLINE typename Vec<T>::V exp_below(typename Vec<T>::V top, typename Vec<T>::V low, typename Vec<T>::V* gap) {
  typedef typename Vec<T>::V V; const V d = top - low, back = top - d, lost = (top - (d + back)) - (low - back);
  *gap = d;
  return guarded_exp_of_negative<T>(-d, d < T(Num<T>::bias + Num<T>::guard) * Num<T>::ln2 ? -lost : V{});
}
template <class T, int K> static void two_or_three(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char*, BlockOut* out) {
  typedef Num<T> C; typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef typename Vec<T>::UV UV; typedef typename C::I I; enum { N = Vec<T>::N, ROWS = LEAST_ROWS };
  const Target<T> target(a); const T* const w = target.w; const T inf = T(__builtin_inf()), whole = T(1) / C::unguard;
  const UV sign = UV{} + ((typename C::U)1 << (8 * sizeof(T) - 1));
  alignas(64) T flat[K * ROWS], m[ROWS], e[ROWS], e_of[K == 3 ? K * ROWS : 1], gap[ROWS], g[K * ROWS]; Packed<T, ROWS> rows;
  double total = 0; IV place[ROWS / N];                              // whether the greatest of the first two is the second, bit 1: of three the last
  const bool gradient = a->grad.data, weighted = a->weight.data || a->has_ignore, as_is = stored_as_is<T>(a->storage), past = a->stream && as_is;
  const ptrdiff_t item = item_size<T>(a->storage), ahead = rows_ahead(K * item, N);
  Lines<T> onward(gradient ? a->grad.data + begin * K * item : 0);
  for (ptrdiff_t i0 = begin; i0 < end; i0 += ROWS) {
    const ptrdiff_t nb = end - i0 < ROWS ? end - i0 : ROWS, lanes = (nb + N - 1) / N * N;
    const bool even = rows.take(a, w, i0, nb, lanes, out);
    const char* const from = a->logits.data + i0 * K * item; const T* z = (const T*)from;
    if (!as_is || lanes > nb) {
      widen_run(a->storage, from, nb * K, flat); z = flat;
      for (ptrdiff_t i = K * nb; i < K * lanes; i++) flat[i] = 0;
    }
    const char* const next = from + (i0 + nb + ahead <= end ? ahead : 0) * K * item;
    IV unlimited = ~IV{};
    for (ptrdiff_t r = 0; r < lanes; r += N) {
      V c[K]; Weave<T, K>::to_columns(z + K * r, c);
      ask_for_labels(a, i0 + r + 2 * ROWS, N, end);
      const IV later = c[0] < c[1]; const V low = later ? c[0] : c[1]; V top = later ? c[1] : c[0];
      if constexpr (K == 2) place[r / N] = later;
      else {
        const IV last = top < c[2], yv = *(const IV*)(rows.y + r);
        *(V*)(e_of + K * r) = last ? top : c[2];
        top = last ? c[2] : top; place[r / N] = (later & (I)1) | (last & (I)2);
        *(V*)(gap + r) = top - (yv == 0 ? c[0] : yv == 1 ? c[1] : c[2]);
      }
      *(V*)(e + r) = low;
      unlimited &= magnitude<T>(top) < inf;
      *(V*)(m + r) = top;
    }
    for (ptrdiff_t r = 0; r < lanes; r += N) {
      const V top = *(const V*)(m + r), low = *(const V*)(e + r); V d;
      for (int k = 0; k < K; k++) __builtin_prefetch(next + (K * r + k * N) * item, 0, 2);
      if constexpr (K == 2) {
        const IV yv = *(const IV*)(rows.y + r);
        *(V*)(e + r) = exp_below<T>(top, low, &d);
        *(V*)(gap + r) = (yv != 0) != place[r / N] ? d : V{};                                // the label is not the greater one
      } else {
        V* const x = (V*)(e_of + K * r);
        const IV at = place[r / N], later = (at & (I)1) != 0, last = (at & (I)2) != 0;
        const V el = exp_below<T>(top, low, &d), em = exp_below<T>(top, x[0], &d), high = last ? em : V{} + whole;
        x[0] = later ? el : high; x[1] = later ? high : el; x[2] = last ? V{} + whole : em;
        *(V*)(e + r) = el + em;
      }
    }
    char* const to = gradient ? a->grad.data + i0 * K * item : 0; Outgoing sent = {(const char*)g, to, nb * K * item, 0}; Wide<T> sum;
    const bool limits = any_of(~unlimited), even_run = as_is && nb == lanes && !limits, direct = even_run && !past, straight = even_run && past && onward.possible;
    T* const into = direct ? (T*)to : g;
    if constexpr (Lines<T>::POSSIBLE) if (!straight && gradient) onward.end(to);
    // `sums`: no weights and no limits, and only sums of losses are wanted
    auto close = [&](const bool sums) __attribute__((always_inline)) {
      for (ptrdiff_t r = 0; r < lanes; r += N) {
        const V er = *(const V*)(e + r), far = *(const V*)(gap + r), lv = sums ? V{} + T(1) : *(const V*)(rows.weight + r), wv = sums ? V{} + T(1) : *(const V*)(rows.wy + r);
        const V at = er * C::unguard, per = (wv * (lv * target.grad_scale)) * C::unguard; const IV yv = *(const IV*)(rows.y + r); V tail, by;
        if constexpr (K == 2) {
          const Softplus<V> s = softplus_of(at, per);
          tail = s.tail; by = sizeof(T) == 8 ? per / (T(1) + at) : s.quotient;               // in double the shared division costs an ulp
        } else { tail = log1p_of<T>(at); by = per / (T(1) + at); }
        const V loss = wv * (tail + (wv != T(0) ? far : V{})) * lv, weighed = lv == T(0) ? V{} : loss;
        if (!sums) { *(V*)(rows.L + r) = weighed; *(V*)(rows.LSE + r) = *(const V*)(m + r) + tail; }
        sum.add(weighed);
        if (gradient) {
          V t[K]; const bool some = weighted && !sums; const IV dead = lv == T(0);
          if constexpr (K == 2) {
            V G = (far != T(0) ? V{} + whole : er) * by;
            if (some) G = dead ? V{} : G;
            const UV late = (UV)yv << (int)(8 * sizeof(T) - 1);                              // the label's gradient is the negative one
            t[0] = (V)((UV)G ^ late ^ sign); t[1] = (V)((UV)G ^ late);
          } else {
            const V* const x = (const V*)(e_of + K * r); const V no_y = (yv == 0 ? x[1] : x[0]) + (yv == 2 ? x[1] : x[2]);
            const V gy = no_y * -by;
            for (int k = 0; k < K; k++) {
              t[k] = yv == (I)k ? gy : x[k] * by;
              if (some) t[k] = dead ? V{} : t[k];
            }
          }
          if constexpr (Lines<T>::POSSIBLE) {
            if (straight) { V line[K]; Weave<T, K>::to_rows(t, (T*)line); onward.template put<K>(line, to + K * r * item); continue; }
          }
          Weave<T, K>::to_rows(t, into + K * r);
          if (past && r + N < nb) sent.some(K * (r + N) * item);
        }
      }
    };
    if (even && !a->loss.data && !a->lse.data && !limits) close(true);
    else close(false);
    if (__builtin_expect(limits, 0)) { sum = rows.limits(a, target, i0, nb, lanes, g); sent.sent = 0; }
    total += sum.total();
    if (gradient && !straight) {
      if (!as_is) narrow_run(a->storage, g, nb * K, to);
      else if (past) sent.rest();
      else if (!direct) __builtin_memcpy(to, g, nb * K * item);
    }
    rows.store(a, i0, nb);
  }
  if constexpr (Lines<T>::POSSIBLE) if (gradient) onward.end(a->grad.data + end * K * item);
  if (a->stream) finish_stream();
  out->loss += total;
}

}}  // namespace
