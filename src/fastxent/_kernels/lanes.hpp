// Softmax rows 32 or more at once, lanes are rows: classes that are not contiguous, and few classes with a Hessian or an affine map.
namespace FX_NS { namespace {

// Whether n rows lie so that register tiles can move them.
template <class T> FX_INLINE bool tiled(int storage, const Matrix& m, ptrdiff_t inner, ptrdiff_t K, ptrdiff_t n, ptrdiff_t B) {
  return stored_as_is<T>(storage) && inner == 1 && m.cls == sizeof(T) && n == fx::LANES && B == fx::LANES && K <= fx::FEW && m.outer % (ptrdiff_t)sizeof(T) == 0;
}
// t[k * S + r] = number k of row i + r; of B lanes those beyond n are 0
template <class T> static void load_lanes(int storage, const Matrix& m, ptrdiff_t inner, ptrdiff_t K, ptrdiff_t i, ptrdiff_t n, ptrdiff_t B, ptrdiff_t S, T* t) {
  const ptrdiff_t item = item_size<T>(storage);
  if (tiled<T>(storage, m, inner, K, n, B)) {
    rows_to_lanes<T, fx::LANES>((const T*)(m.data + i * m.outer), m.outer / (ptrdiff_t)sizeof(T), K, t);
    return;
  }
  if (!stored_as_is<T>(storage) && inner == 1 && m.cls == item && n == fx::LANES && B == fx::LANES && K <= fx::FEW) {
    T flat[fx::LANES * fx::FEW + 16];
    for (ptrdiff_t r = 0; r < n; r++) widen_run(storage, m.data + (i + r) * m.outer, K, flat + r * K);
    rows_to_lanes<T, fx::LANES>(flat, K, K, t);
    return;
  }
  for (ptrdiff_t r0 = 0; r0 < n;) {
    const Run run = run_at(m, inner, i + r0, n - r0);
    if (run.stride == item) for (ptrdiff_t k = 0; k < K; k++) widen_run(storage, run.at + k * m.cls, run.count, t + k * S + r0);
    else
      for (ptrdiff_t r = 0; r < run.count; r++)
        for (ptrdiff_t k = 0; k < K; k++) t[k * S + r0 + r] = number_at<T>(storage, run.at + r * run.stride + k * m.cls);
    r0 += run.count;
  }
  if (n < B) for (ptrdiff_t k = 0; k < K; k++) for (ptrdiff_t r = n; r < B; r++) t[k * S + r] = 0;
}
// `past`: past the cache, where pieces of memory are long enough; then finish_stream()
template <class T> static void store_lanes(int storage, const Matrix& m, ptrdiff_t inner, ptrdiff_t K, ptrdiff_t i, ptrdiff_t n, ptrdiff_t B, ptrdiff_t S, const T* t, bool past) {
  const ptrdiff_t item = item_size<T>(storage);
  if (tiled<T>(storage, m, inner, K, n, B)) {
    lanes_to_rows<T, fx::LANES>(t, (T*)(m.data + i * m.outer), m.outer / (ptrdiff_t)sizeof(T), K);
    return;
  }
  if (!stored_as_is<T>(storage) && inner == 1 && m.cls == item && n == fx::LANES && B == fx::LANES && K <= fx::FEW) {
    T flat[fx::LANES * fx::FEW + 16];
    lanes_to_rows<T, fx::LANES>(t, flat, K, K);
    for (ptrdiff_t r = 0; r < n; r++) narrow_run(storage, flat + r * K, K, m.data + (i + r) * m.outer);
    return;
  }
  for (ptrdiff_t r0 = 0; r0 < n;) {
    const Run run = run_at(m, inner, i + r0, n - r0);
    if (run.stride == item && past && stored_as_is<T>(storage)) for (ptrdiff_t k = 0; k < K; k++) stream((const char*)(t + k * S + r0), run.at + k * m.cls, run.count * item);
    else if (run.stride == item) for (ptrdiff_t k = 0; k < K; k++) narrow_run(storage, t + k * S + r0, run.count, run.at + k * m.cls);
    else
      for (ptrdiff_t r = 0; r < run.count; r++)
        for (ptrdiff_t k = 0; k < K; k++) number_to(storage, t[k * S + r0 + r], run.at + r * run.stride + k * m.cls);
    r0 += run.count;
  }
}

// Ask for rows that a later group will want.  Tiles jump from row to row, which the hardware's prefetcher does not follow:
// without this 262144 x 127 takes twice as long.
FX_INLINE ptrdiff_t rows_ahead(ptrdiff_t row_bytes, ptrdiff_t n) { return n * row_bytes < 8192 ? 8192 / row_bytes / n * n : n; }
template <bool WRITE> FX_INLINE void ask_for(const Matrix& m, ptrdiff_t inner, ptrdiff_t row_bytes, ptrdiff_t i, ptrdiff_t n, ptrdiff_t end) {
  if (inner != 1 || m.outer != row_bytes || i + n > end) return;
  const char* const p = m.data + i * row_bytes;
  for (ptrdiff_t at = 0; at < n * row_bytes; at += 64) __builtin_prefetch(p + at, WRITE, 3);
}

template <class T, bool GENERAL> static void lanes(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out, const ptrdiff_t B) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef Num<T> C; typedef typename C::I I;
  enum { N = Vec<T>::N, CH = CHAINS, FLUSH = 64, MOST = fx::MOST_LANES };
  const ptrdiff_t K = a->classes, S = fx::lane_stride(B), step = S / N, item = item_size<T>(a->storage); const T inf = T(__builtin_inf()), eps = T(__builtin_ldexp(1., -C::mant));
  const Target<T> target(a); const T zeta = target.zeta, beta = target.beta, alpha = target.alpha, top_share = target.top;
  const T* const w = target.w; const T* const bias = (const T*)a->bias; const T inverse = T(1 / a->temperature);
  const bool soft = GENERAL && a->soft.data;
  T* const t = (T*)scratch; T* const ts = t + K * S; T* const hs = ts + (soft ? K * S : 0);
  alignas(64) T weight[MOST], wy[MOST], L[MOST], LSE[MOST]; alignas(64) I yi[MOST]; int64_t y[MOST];
  double total = 0; const bool streamed = a->stream && a->grad.outer == K * item; const ptrdiff_t ahead = rows_ahead(K * item, B);
  for (ptrdiff_t i0 = begin; i0 < end; i0 += B) {
    const ptrdiff_t nb = end - i0 < B ? end - i0 : B;
    take_rows<T>(a, i0, nb, y, weight, out);
    for (ptrdiff_t r = nb; r < B; r++) { y[r] = 0; weight[r] = 0; }
    ask_for<false>(a->logits, a->inner, K * item, i0 + ahead, B, end);
    if (a->grad.data && !streamed) ask_for<true>(a->grad, a->inner, K * item, i0 + ahead, B, end);
    load_lanes<T>(a->storage, a->logits, a->inner, K, i0, nb, B, S, t);
    // Pieces of classes for the next group, which the hardware's prefetcher does not follow from one to the other
    const Run later = run_at(a->logits, a->inner, i0 + nb < end ? i0 + nb : i0, nb);
    const char* const next = later.stride == item ? later.at : (const char*)t; const ptrdiff_t next_cls = later.stride == item ? a->logits.cls : 0;
    if (soft) load_lanes<T>(sizeof(T) == 8 ? fx::DOUBLE : fx::FLOAT, a->soft, a->inner, K, i0, nb, B, S, ts);
    for (ptrdiff_t r = 0; r < B; r++) { yi[r] = soft ? (I)-1 : (I)y[r]; wy[r] = w && !soft ? w[y[r]] : T(1); }
    IV unlimited = ~IV{};
    for (ptrdiff_t r = 0; r < B; r += N) {
      V* const col = (V*)(t + r); const V* const goal = (const V*)(ts + r); V* const hcol = (V*)(hs + r);
      const IV yv = *(const IV*)(yi + r); const V lv = *(const V*)(weight + r), wv = *(const V*)(wy + r);
      if (a->temperature != 1) for (ptrdiff_t k = 0; k < K; k++) col[k * step] *= inverse;   // stored, so rounded as everywhere
      if (bias) for (ptrdiff_t k = 0; k < K; k++) col[k * step] += bias[k];
      V m = V{} - inf, zy = {};
      for (ptrdiff_t k = 0; k < K; k++) { const V u = col[k * step]; m = u > m ? u : m; zy = yv == (I)k ? u : zy; }
      unlimited &= (m > -inf) & (m < inf);
      const VShift<T> sh = shift_of_lanes<T>(m);
      TopAndOthers<T> es[CH]; V As[CH] = {}, Qs[CH] = {}; IV odd = {};
      double sums[N] = {}; ptrdiff_t k = 0;
      while (k < K) {
        const ptrdiff_t stop = K - k > FLUSH ? k + FLUSH : K;
        for (; k + CH <= stop; k += CH) {
#pragma GCC unroll 4
          for (int c = 0; c < CH; c++) {
            const V u = col[(k + c) * step], e = exp_of<T>(u, sh);
            __builtin_prefetch(next + (k + c) * next_cls + r * item, 0, 2);
            if (GENERAL) {
              if (soft) {
                const V tk = goal[(k + c) * step], q = (tk * alpha + beta) * (w ? w[k + c] : T(1)), far = m - u;
                odd |= ~is_share<T>(tk); Qs[c] += q; As[c] += q * (q != T(0) ? far : V{});
              } else if (!w || w[k + c] != 0) { As[c] += (yv == (I)(k + c) ? V{} : m - u) * (w ? w[k + c] : T(1)); }
            }
            col[(k + c) * step] = e; es[c].add(e);
          }
        }
        for (; k < stop; k++) {
          const V u = col[k * step], e = exp_of<T>(u, sh);
          if (GENERAL) {
            if (soft) {
              const V tk = goal[k * step], q = (tk * alpha + beta) * (w ? w[k] : T(1)), far = m - u;
              odd |= ~is_share<T>(tk); Qs[0] += q; As[0] += q * (q != T(0) ? far : V{});
            } else if (!w || w[k] != 0) { As[0] += (yv == (I)k ? V{} : m - u) * (w ? w[k] : T(1)); }
          }
          col[k * step] = e; es[0].add(e);
        }
        es[0] = joined<CH>(es);
        for (int c = 1; c < CH; c++) es[c] = TopAndOthers<T>();
        if (K > FLUSH) { for (int i = 0; i < N; i++) sums[i] += es[0].others[i]; es[0].others = V{}; }
      }
      if (K > FLUSH) for (int i = 0; i < N; i++) es[0].others[i] = T(sums[i]);
      V A = joined<CH>(As), Q = joined<CH>(Qs);
      const V top = es[0].top, others = es[0].others; V ey = {}, near = {};
      if (K <= 8) for (ptrdiff_t j = 0; j < K; j++) ey = yv == (I)j ? col[j * step] : ey;   // cheaper than another exponential
      else ey = exp_of<T>(zy, sh);
      if (soft) {
        near = A;
        for (int i = 0; i < N; i++) if (odd[i] && r + i < nb && (out->bad < 0 || out->bad > i0 + r + i)) out->bad = i0 + r + i;
      } else if (GENERAL) {
        const V own = wv * top_share, far = m - zy;
        Q = own + (T(target.weight_sum) - wv) * beta;
        near = A * beta + own * (own != T(0) ? far : V{});
      }
      const Closed<T> row = close_rows<T, !GENERAL>(a, target, m, zy, ey, top, others, wv, lv, Q, near);
      const V sum = row.sum, no_y = row.no_y, coefficient = row.coefficient; const IV dead = lv == T(0);
      *(V*)(L + r) = row.loss; *(V*)(LSE + r) = row.lse;
      if (a->hess.data) {
        const V one = T(1) / sum, factor = lv * target.hess_scale, high = top * (1 - 8 * eps);
        for (ptrdiff_t j = 0; j < K; j++) {
          const V e = col[j * step], p = e * one, left = (e >= high ? others : sum - e) * one;
          V h = coefficient * (p * left) + 2 * zeta * p * p;
          if (!GENERAL && a->family != fx::CROSS_ENTROPY) {
            const V share = e / no_y;                                     // p_k / q, finite as q -> 0
            h -= row.bend * (yv == (I)j ? no_y * one : no_y > T(0) ? share * p : V{});
          }
          h *= factor;
          hcol[j * step] = dead ? V{} : h;
        }
      }
      if (a->grad.data) {
        if (!GENERAL) {
          for (ptrdiff_t j = 0; j < K; j++) { V g = col[j * step] * row.by; g = yv == (I)j ? row.gy : g; col[j * step] = dead ? V{} : g; }
        } else {
          const V factor = lv * target.grad_scale;
          for (ptrdiff_t j = 0; j < K; j++) {
            const V share = soft ? goal[j * step] * alpha + beta : yv == (I)j ? V{} + top_share : V{} + beta;
            const V g = col[j * step] * row.by - share * (w ? w[j] : T(1)) * factor;
            col[j * step] = dead ? V{} : g;
          }
        }
      }
    }
    if (__builtin_expect(any_of(~unlimited), 0))
      for (ptrdiff_t r = 0; r < nb; r++) {
        const T u = LSE[r];
        if (!(u > -inf && u < inf))
          L[r] = limit_row<T>(a, target, i0 + r, soft ? -1 : y[r], weight[r], a->grad.data ? t + r : 0, a->hess.data ? hs + r : 0, S, LSE + r);
      }
    if (a->grad.data) {
      if (streamed && tiled<T>(a->storage, a->grad, a->inner, K, nb, B)) {
        T* const flat = hs + (a->hess.data ? K * S : 0);
        lanes_to_rows<T, fx::LANES>(t, flat, K, K);
        stream((const char*)flat, a->grad.data + i0 * a->grad.outer, nb * K * item);
      } else store_lanes<T>(a->storage, a->grad, a->inner, K, i0, nb, B, S, t, a->stream);
    }
    if (a->hess.data) store_lanes<T>(a->storage, a->hess, a->inner, K, i0, nb, B, S, hs, false);
    Wide<T> sum;                                                        // lanes beyond nb weigh 0
    for (ptrdiff_t r = 0; r < B; r += N) sum.add(*(const V*)(L + r));
    total += sum.total();
    if (a->loss.data) store_rows(a->loss, a->inner, i0, nb, L);
    if (a->lse.data) store_rows(a->lse, a->inner, i0, nb, LSE);
  }
  if (a->stream) finish_stream();
  out->loss += total;
}

}}  // namespace
