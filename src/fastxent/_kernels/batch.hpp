// Softmax rows in batches of N, lanes are classes: the sums of N rows are folded together, so that what is done once a row is done for
// N rows at once.  For rows that are too short to pay for that alone (wide.hpp), with contiguous classes; loss and gradient.
namespace FX_NS { namespace {

// Without a gradient, rows that are one piece in wide.hpp too: then the sums are the same.
template <class T> static bool in_batches(const SoftmaxRows* a) {
  constexpr ptrdiff_t PIECE_OF_ROW = BETWEEN * Vec<T>::N, GRADIENTS = fx::MOST_BATCHED_GRADIENTS, ALONE = PIECE_OF_ROW > GRADIENTS ? PIECE_OF_ROW : GRADIENTS;
  static_assert(ALONE <= fx::MOST_BATCHED, "scratch for as many");
  return a->classes >= Vec<T>::N && a->classes <= (a->grad.data ? GRADIENTS : ALONE) && !a->hess.data && a->logits.cls == item_size<T>(a->storage) &&
         (!a->grad.data || a->grad.cls == item_size<T>(a->storage)) && (!a->soft.data || a->soft.cls == sizeof(T));
}

template <class T, int MODE> static void batch(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  const ptrdiff_t K = a->classes, item = item_size<T>(a->storage), body = K / N * N; const T inf = T(__builtin_inf()), inverse = T(1 / a->temperature);
  const Target<T> target(a); const T* const w = target.w; const T beta = target.beta; const T* const bias = (const T*)a->bias;
  const bool as_is = stored_as_is<T>(a->storage), in_line = a->inner == 1 && a->logits.outer == K * item;
  const bool copied = !as_is || bias || a->temperature != 1, streamed = a->stream && a->inner == 1 && a->grad.outer == K * item;
  const bool direct = as_is && !streamed, out_in_line = a->inner == 1 && a->grad.outer == K * item;
  T* const zs = (T*)scratch; T* es = zs + N * K; Outgoing sent = {}; Asking<T> asking; const IV fresh = fresh_lanes<T>(K);
  double total = 0; int64_t y[GROUP]; alignas(64) T weights[GROUP];
  for (ptrdiff_t g0 = begin; g0 < end; g0 += GROUP) {
    const ptrdiff_t in_group = end - g0 < GROUP ? end - g0 : GROUP;
    take_rows<T>(a, g0, in_group, y, weights, out);
    for (ptrdiff_t r = in_group; r < GROUP; r++) weights[r] = 0;
    for (ptrdiff_t at = 0; at < in_group; at += N) {
      const ptrdiff_t i0 = g0 + at, nb = in_group - at < N ? in_group - at : N; const T* const weight = weights + at;
      const T* z[N]; T* e[N]; const T* goal[N]; V part[5][N]; alignas(64) T zy[N], wy[N], limit_loss[N], limit_lse[N];
      if (copied && in_line) widen_run(a->storage, a->logits.data + i0 * a->logits.outer, nb * K, zs);
      for (ptrdiff_t r = 0; r < nb; r++) {
        const char* const from = run_at(a->logits, a->inner, i0 + r, 1).at;
        z[r] = copied ? zs + r * K : (const T*)from;
        e[r] = a->grad.data && direct ? (T*)run_at(a->grad, a->inner, i0 + r, 1).at : es + r * K;
        goal[r] = MODE >= SOFT ? (const T*)run_at(a->soft, a->inner, i0 + r, 1).at : 0;
        if (copied) {
          T* const row = zs + r * K;
          if (!in_line) widen_run(a->storage, from, K, row);
          if (a->temperature != 1) for (ptrdiff_t k = 0; k < K; k++) row[k] *= inverse;
          if (bias) for (ptrdiff_t k = 0; k < K; k++) row[k] += bias[k];
        }
        V m0 = *(const Loose*)(z[r] + K - N), m1 = m0; ptrdiff_t j = 0;
        for (; j + 2 * N <= K; j += 2 * N) {
          const V u = *(const Loose*)(z[r] + j), v = *(const Loose*)(z[r] + j + N);
          m0 = u > m0 ? u : m0; m1 = v > m1 ? v : m1;
        }
        if (j + N <= K) { const V u = *(const Loose*)(z[r] + j); m0 = u > m0 ? u : m0; }
        part[0][r] = m0 > m1 ? m0 : m1;
        const int64_t label = MODE >= SOFT ? 0 : y[at + r];
        zy[r] = z[r][label]; wy[r] = w && MODE < SOFT ? w[label] : T(1);
      }
      for (ptrdiff_t r = nb; r < N; r++) { part[0][r] = V{}; zy[r] = 0; wy[r] = 1; z[r] = z[0]; e[r] = e[0]; }
      const V m = fold_max<T>(part[0]);
      const VShift<T> sh = shift_of_lanes<T>(m);
      alignas(64) T c[N], lo[N], magic[N], high[N];
      *(V*)c = sh.c; *(V*)lo = sh.lo; *(V*)magic = sh.magic; *(V*)high = m;
      // Rows of the limits, before their logits are overwritten.  The maximum may be NaN or pass over one; then the sum tells.
      uint64_t skip = 0; const IV limited = ~((m > -inf) & (m < inf));
      if (__builtin_expect(any_of(limited), 0))
        for (ptrdiff_t r = 0; r < nb; r++)
          if (limited[r]) {
            skip |= (uint64_t)1 << r;
            T* const to = a->grad.data ? e[r] : (T*)0;
            limit_loss[r] = limit_row<T>(a, target, i0 + r, MODE >= SOFT ? -1 : y[at + r], weight[r], to, (T*)0, 1, limit_lse + r);
            if (MODE >= SOFT) for (ptrdiff_t k = 0; k < K; k++) if (!is_share<T>(goal[r][k]) && (out->bad < 0 || out->bad > i0 + r)) out->bad = i0 + r;
          }
      const bool lesser = (MODE == SMOOTH || MODE == SMOOTH_WEIGHTED) && target.top < beta; alignas(64) T apart[N];
      if (lesser) for (ptrdiff_t r = 0; r < N; r++) apart[r] = r < nb ? T(far_of_others(z[r], MODE == SMOOTH ? (const T*)0 : w, K, y[at + r], high[r])) : T(0);
      for (ptrdiff_t r = 0; r < N; r++) {
        Parts<T> p;
        const ptrdiff_t coming = i0 + N + r < end ? i0 + N + r : end - 1;
        const Next<T> next = {in_line ? a->logits.data + coming * a->logits.outer : (const char*)z[r], MODE >= SOFT ? (const T*)run_at(a->soft, a->inner, coming, 1).at : 0, item};
        if (r < nb && !(skip >> r & 1)) {
          const VShift<T> s = {V{} + c[r], V{} + lo[r], V{} + magic[r]}; const V mm = V{} + high[r], last = *(const Loose*)(z[r] + K - N);
          if (a->grad.data) row_part<T, MODE, true, false>(z[r], e[r], goal[r], target, 0, body, K, last, fresh, s, mm, p, next, asking);
          else row_part<T, MODE, false, false>(z[r], (T*)0, goal[r], target, 0, body, K, last, fresh, s, mm, p, next, asking);
          if (MODE >= SOFT && any_of(p.odd) && (out->bad < 0 || out->bad > i0 + r)) out->bad = i0 + r;
        }
        sent.some((r + 1) * sent.bytes / N);
        part[0][r] = p.rest; part[1][r] = p.all;
        if (MODE != LABEL) { part[2][r] = p.far; part[3][r] = p.share; }
        if (MODE == SMOOTH || MODE == SMOOTH_WEIGHTED) part[4][r] = p.infinite;
      }
      const V rest = fold_sum<T>(part[0]), all = fold_sum<T>(part[1]), wv = *(const V*)wy, lv = *(const V*)weight, zv = *(const V*)zy;
      const V top = exp_of<T>(m, sh), ey = exp_of<T>(zv, sh), ties = (((all - rest) / top) + Num<T>::magic) - Num<T>::magic;
      V Q = {}, near = {}, mass = {};                                    // mass: the label's share q_y
      if (MODE >= SOFT) { near = fold_sum<T>(part[2]); Q = fold_sum<T>(part[3]); }
      else if (MODE != LABEL) {
        const V far = lesser ? *(const V*)apart : fold_sum<T>(part[2]), infinite = fold_sum<T>(part[4]), distance = m - zv;
        const V extra = wv * (lesser ? target.top : target.top - beta); const IV gone = ~(distance <= Num<T>::most);
        mass = wv * target.top; Q = mass + beta * (T(target.weight_sum) - wv);
        near = gone ? (mass != T(0) ? V{} + inf : V{}) : extra * distance;
        near += beta * far;
        const V others = infinite - (gone ? (wv != T(0) ? V{} + T(1) : V{}) : V{});
        if (beta > 0) near = others > T(0.5) ? V{} + inf : near;
      }
      const Closed<T> row = close_rows<T, MODE == LABEL>(a, target, m, zv, ey, top, rest + (ties - T(1)) * top, wv, lv, Q, near);
      alignas(64) T L[N], LSE[N], by[N], gy[N], factor[N];
      const V share = lv * target.grad_scale;
      *(V*)L = row.loss; *(V*)LSE = row.lse; *(V*)by = row.by; *(V*)factor = share;
      *(V*)gy = MODE == LABEL ? row.gy : ey * row.by - mass * share;
      if (a->grad.data)
        for (ptrdiff_t r = 0; r < nb; r++) {
          if (!(skip >> r & 1)) {
            row_scale<T, MODE>(e[r], goal[r], target, K, by[r], factor[r]);
            if (MODE < SOFT) e[r][y[at + r]] = gy[r];
            if (weight[r] == 0) for (ptrdiff_t k = 0; k < K; k++) e[r][k] = 0;
          }
          if (!direct && !out_in_line) narrow_run(a->storage, e[r], K, run_at(a->grad, a->inner, i0 + r, 1).at);
        }
      for (ptrdiff_t r = 0; skip; r++, skip >>= 1) if (skip & 1) { L[r] = limit_loss[r]; LSE[r] = limit_lse[r]; }
      if (a->grad.data && !direct && out_in_line) {
        char* const to = a->grad.data + i0 * a->grad.outer;
        if (as_is) { sent.rest(); sent = {(const char*)es, to, nb * K * item, 0}; es = es == zs + N * K ? es + N * K : zs + N * K; }
        else narrow_run(a->storage, es, nb * K, to);
      }
      Wide<T> sum; sum.add(*(const V*)L); total += sum.total();
      if (a->loss.data) store_rows(a->loss, a->inner, i0, nb, L);
      if (a->lse.data) store_rows(a->lse, a->inner, i0, nb, LSE);
    }
  }
  sent.rest();
  if (streamed) finish_stream();
  out->loss += total;
}

}}  // namespace
