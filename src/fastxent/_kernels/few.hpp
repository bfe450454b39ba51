// Softmax rows of few classes, N rows at once, lanes are rows: rows that lie one after another in memory, loss and
// gradient.  For labels of up to MOST_KNOWN classes (or N, if that is less) their number is a template's argument, and loops unroll.
namespace FX_NS { namespace {

// Labels and weights are taken, and gradients handed on, a block of rows at a time; a block's gradients stay in the first-level cache.
// batch.hpp is the quicker one the sooner the shorter a vector is, with a gradient earlier than without: it need not transpose that back.
// One limit for both, so that a loss has the same bits with its gradient and alone.
enum { FEW_ROWS = 128, FEW_BYTES = 4096, MOST_COLUMNS = FX_BYTES == 64 ? 56 : FX_BYTES == 32 ? 32 : 24, MOST_KNOWN = 10 };

// N rows of K numbers from z, K apart, as K columns.  With K = 0, k classes: then fewer than N of them read N - k numbers beyond the
// last row, and write N columns.
template <class T, int K> FX_INLINE void columns_of(const T* z, ptrdiff_t k, typename Vec<T>::V* x) {
  enum { N = Vec<T>::N };
  if constexpr (K == 0) {
    ptrdiff_t j = 0;
    for (; j + N <= k; j += N) tile<T>(z + j, k, (T*)(x + j), N);
    if (j < k) { j = k < N ? 0 : k - N; tile<T>(z + j, k, (T*)(x + j), N); }
  } else Weave<T, K>::to_columns(z, x);
}
// The way back, with the same overrun.
template <class T, int K> FX_INLINE void rows_of(const typename Vec<T>::V* x, ptrdiff_t k, T* g) {
  enum { N = Vec<T>::N };
  if constexpr (K == 0) {
    ptrdiff_t j = 0;
    for (; j + N <= k; j += N) tile<T>((const T*)(x + j), N, g + j, k);
    if (j < k) { j = k < N ? 0 : k - N; tile<T>((const T*)(x + j), N, g + j, k); }
  } else Weave<T, K>::to_rows(x, g);
}

// The maximum of K vectors; NaN may be lost.  In four chains, for a comparison waits for the one before.
template <class T, class V> FX_INLINE V highest(const V* x, ptrdiff_t K) {
  V top[4] = {x[0], x[0], x[0], x[0]}; ptrdiff_t k = 1;
  if (K < 6) {
    for (; k < K; k++) top[0] = at_least<T>(top[0], x[k]);
    return top[0];
  }
#pragma GCC unroll 4
  for (; k + 4 <= K; k += 4) for (int c = 0; c < 4; c++) top[c] = at_least<T>(top[c], x[k + c]);
#pragma GCC unroll 4
  for (; k < K; k++) top[0] = at_least<T>(top[0], x[k]);
  return at_least<T>(at_least<T>(top[0], top[1]), at_least<T>(top[2], top[3]));
}
// KNOWN: the number of classes, or 0.  A block goes through three short loops in the first-level cache: columns and their maximum,
// exponentials and their sums, loss and gradient.  In one loop the chain from the logits to the gradient is longer than what the
// processor looks ahead.
template <class T, int KNOWN, int MODE> static void few(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char*, BlockOut* out) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef typename Num<T>::I I;
  constexpr int N = Vec<T>::N, CH = KNOWN && KNOWN < CHAINS ? KNOWN : (int)CHAINS, FETCHED = KNOWN == 0 && MODE == LABEL;
  constexpr int MOST = FEW_BYTES / sizeof(T), NUMBERS = MOST + (KNOWN ? 0 : N * N);       // tiles fill N columns, also where classes are fewer
  static_assert(MOST >= N * MOST_COLUMNS, "a block holds a vector of rows");
  const ptrdiff_t K = KNOWN ? KNOWN : a->classes, rows = FEW_ROWS * K <= MOST ? (ptrdiff_t)FEW_ROWS : MOST / K / N * N;
  const Target<T> target(a); const T* const w = target.w; const T beta = target.beta, alpha = target.alpha, inf = T(__builtin_inf());
  alignas(64) T M[FEW_ROWS], ZY[FEW_ROWS], EY[FEW_ROWS], TOP[FEW_ROWS], OTHERS[FEW_ROWS]; Packed<T, FEW_ROWS> block;
  alignas(64) T x_of[NUMBERS], q_of[MODE == SOFT ? NUMBERS : 1], NEAR[MODE == LABEL ? 1 : FEW_ROWS], QS[MODE == SOFT ? FEW_ROWS : 1];
  alignas(64) T g[MOST + N], wide_z[MOST + N], pad[N * (KNOWN ? KNOWN : (int)MOST_COLUMNS) + N], pad_soft[MODE == SOFT ? N * MOST_COLUMNS + N : 1];
  double total = 0; VShift<T> shifts[FEW_ROWS / N];
  const bool gradient = a->grad.data, weighted = a->weight.data || a->has_ignore, as_is = stored_as_is<T>(a->storage), past = a->stream && as_is;
  const bool plain = MODE == LABEL && a->family == fx::CROSS_ENTROPY && a->z_loss == 0;
  const ptrdiff_t item = item_size<T>(a->storage), ahead = rows_ahead(K * item, N);
  Lines<T> onward(gradient ? a->grad.data + begin * K * item : 0);
  for (ptrdiff_t i0 = begin; i0 < end; i0 += rows) {
    const ptrdiff_t nb = end - i0 < rows ? end - i0 : rows, lanes = (nb + N - 1) / N * N;
    const bool even = block.take(a, w, i0, nb, lanes, out);
    const char* const from = a->logits.data + i0 * K * item;
    if (!as_is) widen_run(a->storage, from, nb * K, wide_z);
    IV unlimited = ~IV{}; Wide<T> sum;
    for (ptrdiff_t r = 0; r < lanes; r += N) {
      const T* z = (as_is ? (const T*)from : wide_z) + r * K; const T* t = MODE == SOFT ? (const T*)a->soft.data + (i0 + r) * K : 0;
      if (MODE != SOFT) ask_for_labels(a, i0 + r + 2 * FEW_ROWS, N, end);
      const bool inside = KNOWN ? r + N <= nb : (i0 + r + N) * K + (K < N ? N - K : 0) <= end * K;
      if (__builtin_expect(!inside, 0)) {
        const ptrdiff_t left = (nb - r < N ? nb - r : N) * K;
        for (ptrdiff_t i = 0; i < N * K + (KNOWN ? 0 : N); i++) pad[i] = i < left ? z[i] : T(0);
        z = pad;
        if (MODE == SOFT) { for (ptrdiff_t i = 0; i < N * K + N; i++) pad_soft[i] = i < left ? t[i] : T(0); t = pad_soft; }
      }
      V* const x = (V*)(x_of + r * K); V c[KNOWN ? KNOWN : 1], zy = {};
      if constexpr (KNOWN != 0) { columns_of<T, KNOWN>(z, K, c); for (int k = 0; k < KNOWN; k++) x[k] = c[k]; } else columns_of<T, 0>(z, K, x);
      if (MODE == SOFT) columns_of<T, KNOWN>(t, K, (V*)(q_of + r * K));
      const V m = highest<T>(KNOWN ? c : x, K);
      unlimited &= magnitude<T>(m) < inf;
      if (FETCHED) {
        alignas(64) T own[N];
#pragma GCC unroll 16
        for (int i = 0; i < N; i++) own[i] = z[i * K + block.y[r + i]];
        zy = *(const V*)own;
      } else if (MODE != SOFT) {
        const IV yv = *(const IV*)(block.y + r); const V* const u = KNOWN ? c : x;
        zy = u[0];
#pragma GCC unroll 10
        for (ptrdiff_t k = 1; k < K; k++) zy = yv == (I)k ? u[k] : zy;
      }
      shifts[r / N] = shift_of_lanes<T>(m); *(V*)(M + r) = m; *(V*)(ZY + r) = zy;
    }
    for (ptrdiff_t r = 0; r < lanes; r += N) {
      const ptrdiff_t later = i0 + r + (i0 + r + ahead + N <= end ? ahead : 0);
      const char* const next = a->logits.data + later * K * item; const T* const next_goal = MODE == SOFT ? (const T*)a->soft.data + later * K : 0;
      const IV yv = *(const IV*)(block.y + r); const V m = *(const V*)(M + r); const VShift<T> sh = shifts[r / N];
      V* const x = (V*)(x_of + r * K); V* const q = (V*)(q_of + (MODE == SOFT ? r * K : 0));
      TopAndOthers<T> es[CH]; V ey = {}, nears[CH] = {}, Qs[CH] = {}; IV odd = {};
      auto column = [&](ptrdiff_t k, int c, bool first) __attribute__((always_inline)) {
        const V u = x[k], e = exp_of<T>(u, sh), far = m - u;
        __builtin_prefetch(next + k * N * item, 0, 2);
        if (MODE == SOFT) {
          __builtin_prefetch(next_goal + k * N, 0, 2);
          odd |= ~is_share<T>(q[k]); q[k] = q[k] * alpha + beta;
          Qs[c] += q[k]; nears[c] += q[k] * (q[k] != T(0) ? far : V{});
        } else if (!FETCHED) ey = first && c == 0 ? e : yv == (I)k ? e : ey;
        if (MODE == SMOOTH) nears[c] += yv == (I)k ? V{} : far;
        if (first) es[c].top = e; else es[c].add(e);
        x[k] = e;
      };
      ptrdiff_t k = 0;
#pragma GCC unroll 8
      for (; k + CH <= K; k += CH) {
#pragma GCC unroll 4
        for (int c = 0; c < CH; c++) column(k + c, c, KNOWN && k == 0);
      }
#pragma GCC unroll 4
      for (int c = 0; k < K; k++) column(k, KNOWN ? c++ : 0, false);
      const TopAndOthers<T> all = joined<CH>(es);
      if (FETCHED) ey = exp_of<T>(*(const V*)(ZY + r), sh);
      *(V*)(EY + r) = ey; *(V*)(TOP + r) = all.top; *(V*)(OTHERS + r) = all.others;
      if (MODE != LABEL) *(V*)(NEAR + r) = joined<CH>(nears);
      if (MODE == SOFT) {
        *(V*)(QS + r) = joined<CH>(Qs);
        for (int i = 0; i < N; i++) if (odd[i] && r + i < nb && (out->bad < 0 || out->bad > i0 + r + i)) out->bad = i0 + r + i;
      }
    }
    char* const to = gradient ? a->grad.data + i0 * K * item : 0; Outgoing sent = {(const char*)g, to, nb * K * item, 0};
    const bool limits = any_of(~unlimited), even_run = KNOWN && as_is && nb == lanes && !limits, direct = even_run && !past, straight = even_run && past && onward.possible;
    T* const into = direct ? (T*)to : g;
    if constexpr (Lines<T>::POSSIBLE && KNOWN) if (!straight && gradient) onward.end(to);
    // `sums`: no weights and no limits, and only sums of losses are wanted
    auto close = [&](const bool sums) __attribute__((always_inline)) {
      for (ptrdiff_t r = 0; r < lanes; r += N) {
        const IV yv = *(const IV*)(block.y + r); const V lv = sums ? V{} + T(1) : *(const V*)(block.weight + r), wv = sums ? V{} + T(1) : *(const V*)(block.wy + r);
        const V m = *(const V*)(M + r), zy = *(const V*)(ZY + r), ey = *(const V*)(EY + r), top = *(const V*)(TOP + r), others = *(const V*)(OTHERS + r);
        V near = {}, Q = {};
        if (MODE == SOFT) { near = *(const V*)(NEAR + r); Q = *(const V*)(QS + r); }
        if (MODE == SMOOTH) {
          const V own = V{} + target.top, far = m - zy;
          Q = own + (T(target.weight_sum) - T(1)) * beta; near = *(const V*)(NEAR + r) * beta + own * (own != T(0) ? far : V{});
        }
        Closed<T> row;
        if (plain) {
          const V lg = log1p_of<T>(others / top), loss = wv * (lg + (wv != T(0) ? m - zy : V{}));
          row = close_gradients<T>(target, m, zy, ey, top, others, wv, lv);
          row.lse = m + lg; row.loss = lv == T(0) ? V{} : loss * lv;
        } else row = close_rows<T, MODE == LABEL>(a, target, m, zy, ey, top, others, wv, lv, Q, near);
        if (!sums) { *(V*)(block.L + r) = row.loss; *(V*)(block.LSE + r) = row.lse; }
        sum.add(row.loss);
        if (gradient) {
          V* const x = (V*)(x_of + r * K); const V* const q = (const V*)(q_of + (MODE == SOFT ? r * K : 0)); V c[KNOWN ? KNOWN : 1]; V* const d = KNOWN ? c : x;
          const IV dead = lv == T(0); const bool some = weighted && !sums; V factor = lv * target.grad_scale;
          if (some) { row.by = dead ? V{} : row.by; row.gy = dead ? V{} : row.gy; factor = dead ? V{} : factor; }
#pragma GCC unroll 16
          for (ptrdiff_t k = 0; k < K; k++) {
            const V by = x[k] * row.by;
            d[k] = MODE == LABEL ? (yv == (I)k ? row.gy : by) : by - (MODE == SOFT ? q[k] : yv == (I)k ? V{} + target.top : V{} + beta) * factor;
          }
          if (some && (MODE == SOFT || any_of(dead & (row.lse != row.lse)))) for (ptrdiff_t k = 0; k < K; k++) d[k] = dead ? V{} : d[k];  // NaN times 0
          if constexpr (Lines<T>::POSSIBLE && KNOWN) {
            if (straight) { V line[KNOWN]; rows_of<T, KNOWN>(d, K, (T*)line); onward.template put<KNOWN>(line, to + r * K * item); continue; }
          }
          rows_of<T, KNOWN>(d, K, into + r * K);
          if (KNOWN && past && r + N < nb) sent.some((r + N) * K * item);
        }
      }
    };
    if (even && !a->loss.data && !a->lse.data && !limits) close(true);
    else close(false);
    if (__builtin_expect(limits, 0)) { sum = block.limits(a, target, i0, nb, lanes, g); sent.sent = 0; }
    total += sum.total();
    if (gradient && !straight) {
      if (!as_is) narrow_run(a->storage, g, nb * K, to);
      else if (past) sent.rest();
      else if (!direct) __builtin_memcpy(to, g, nb * K * item);
    }
    block.store(a, i0, nb);
  }
  if constexpr (Lines<T>::POSSIBLE && KNOWN) if (gradient) onward.end(a->grad.data + end * K * item);
  if (a->stream) finish_stream();
  out->loss += total;
}

template <class T> static bool in_columns(const SoftmaxRows* a) {
  const ptrdiff_t K = a->classes, item = item_size<T>(a->storage); const bool general = a->soft.data || a->smoothing != 0;
  return K >= 2 && K <= MOST_COLUMNS && a->inner == 1 && a->logits.outer == K * item && a->logits.cls == item && !a->hess.data &&
         (!a->grad.data || (a->grad.outer == K * item && a->grad.cls == item)) && !a->bias && a->temperature == 1 &&
         (!a->soft.data || (a->soft.outer == K * (ptrdiff_t)sizeof(T) && a->soft.cls == sizeof(T))) && !(general && a->class_weight);
}
// The kernel for K or fewer classes, for any number if none fits
template <class T, int K> static void few_labels(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  if constexpr (K == 1) few<T, 0, LABEL>(a, begin, end, scratch, out);
  else if (a->classes == K) few<T, K, LABEL>(a, begin, end, scratch, out);
  else few_labels<T, K - 1>(a, begin, end, scratch, out);
}

}}  // namespace
