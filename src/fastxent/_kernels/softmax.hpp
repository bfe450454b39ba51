// Softmax cross-entropy, rows [begin, end): loss, gradient and Hessian diagonal in one sweep structure.
//
// A row, while it stays in cache: (1) maximum; (2) e = exp(u - m) stored where the gradient will stand, with two sums,
// `rest` without the maximum and `all`; (3) scale.  `rest` and `all` find the number of ties and the sum without y, so the
// maximum's place is never searched.  Few classes, or classes that are not contiguous: 32 or more rows at once, lanes are
// rows.  Expected: loss <= 4 ulp, gradient <= 4 (float), 6 (double) ulp for labels; sums over rows are double.
namespace FX_NS { namespace {

enum { CHUNK = 2048, GROUP = 64 };       // classes between two additions to the double sums; rows per batch of logarithms

// ---- lanes are rows ------------------------------------------------------------------------------------------------

// Whether n rows lie so that register tiles can move them.
template <class T> FX_INLINE bool tiled(int storage, const Matrix& m, ptrdiff_t inner, ptrdiff_t K, ptrdiff_t n, ptrdiff_t B) {
  return stored_as_is<T>(storage) && inner == 1 && m.cls == sizeof(T) && n == fx::LANES && B == fx::LANES && K <= fx::FEW && m.outer % (ptrdiff_t)sizeof(T) == 0;
}
// t[k * B + r] = number k of row i + r; lanes beyond n are 0
template <class T> static void load_lanes(int storage, const Matrix& m, ptrdiff_t inner, ptrdiff_t K, ptrdiff_t i, ptrdiff_t n, ptrdiff_t B, T* t) {
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
    if (run.stride == item) for (ptrdiff_t k = 0; k < K; k++) widen_run(storage, run.at + k * m.cls, run.count, t + k * B + r0);
    else
      for (ptrdiff_t r = 0; r < run.count; r++)
        for (ptrdiff_t k = 0; k < K; k++) t[k * B + r0 + r] = number_at<T>(storage, run.at + r * run.stride + k * m.cls);
    r0 += run.count;
  }
  if (n < B) for (ptrdiff_t k = 0; k < K; k++) for (ptrdiff_t r = n; r < B; r++) t[k * B + r] = 0;
}
template <class T> static void store_lanes(int storage, const Matrix& m, ptrdiff_t inner, ptrdiff_t K, ptrdiff_t i, ptrdiff_t n, ptrdiff_t B, const T* t) {
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
    if (run.stride == item) for (ptrdiff_t k = 0; k < K; k++) narrow_run(storage, t + k * B + r0, run.count, run.at + k * m.cls);
    else
      for (ptrdiff_t r = 0; r < run.count; r++)
        for (ptrdiff_t k = 0; k < K; k++) number_to(storage, t[k * B + r0 + r], run.at + r * run.stride + k * m.cls);
    r0 += run.count;
  }
}

// Ask for rows that a later group will want.  Tiles jump from row to row, which the hardware's prefetcher does not follow:
// without this 262144 x 127 takes twice as long.
template <bool WRITE> FX_INLINE void ask_for(const Matrix& m, ptrdiff_t inner, ptrdiff_t row_bytes, ptrdiff_t i, ptrdiff_t n, ptrdiff_t end) {
  if (inner != 1 || m.outer != row_bytes) return;
  i += n * row_bytes < 8192 ? 8192 / row_bytes / n * n : n;
  if (i + n > end) return;
  const char* const p = m.data + i * row_bytes;
  for (ptrdiff_t at = 0; at < n * row_bytes; at += 64) __builtin_prefetch(p + at, WRITE, 3);
}

template <class T, bool GENERAL> static void lanes(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef Num<T> C; typedef typename C::I I;
  enum { N = Vec<T>::N, CH = sizeof(T) == 8 ? 4 : 2, FLUSH = 128, MOST = fx::MOST_LANES };
  const ptrdiff_t K = a->classes, B = fx::lanes_of(a), step = B / N, item = item_size<T>(a->storage); const T inf = T(__builtin_inf()), eps = T(__builtin_ldexp(1., -C::mant));
  const Target<T> target(a); const T zeta = target.zeta, beta = target.beta, alpha = target.alpha, top_share = target.top;
  const T* const w = target.w; const T* const bias = (const T*)a->bias; const T inverse = T(1 / a->temperature);
  const bool affine = bias || a->temperature != 1, soft = GENERAL && a->soft.data;
  T* const t = (T*)scratch; T* const ts = t + K * B; T* const hs = ts + (soft ? K * B : 0);
  alignas(64) T weight[MOST], wy[MOST], L[MOST], LSE[MOST]; alignas(64) I yi[MOST]; int64_t y[MOST];
  double total = 0; const bool streamed = a->stream && a->grad.outer == K * item;
  for (ptrdiff_t i0 = begin; i0 < end; i0 += B) {
    const ptrdiff_t nb = end - i0 < B ? end - i0 : B;
    take_rows<T>(a, i0, nb, y, weight, out);
    for (ptrdiff_t r = nb; r < B; r++) { y[r] = 0; weight[r] = 0; }
    ask_for<false>(a->logits, a->inner, K * item, i0, B, end);
    if (a->grad.data && !streamed) ask_for<true>(a->grad, a->inner, K * item, i0, B, end);
    load_lanes<T>(a->storage, a->logits, a->inner, K, i0, nb, B, t);
    if (soft) load_lanes<T>(sizeof(T) == 8 ? fx::DOUBLE : fx::FLOAT, a->soft, a->inner, K, i0, nb, B, ts);
    for (ptrdiff_t r = 0; r < B; r++) { yi[r] = soft ? (I)-1 : (I)y[r]; wy[r] = w && !soft ? w[y[r]] : T(1); }
    IV unlimited = ~IV{};
    for (ptrdiff_t r = 0; r < B; r += N) {
      V* const col = (V*)(t + r); const V* const goal = (const V*)(ts + r); V* const hcol = (V*)(hs + r);
      const IV yv = *(const IV*)(yi + r); const V lv = *(const V*)(weight + r), wv = *(const V*)(wy + r);
      if (affine) for (ptrdiff_t k = 0; k < K; k++) { V u = col[k * step] * inverse; col[k * step] = bias ? u + bias[k] : u; }
      V m = V{} - inf, zy = {};
      for (ptrdiff_t k = 0; k < K; k++) { const V u = col[k * step]; m = u > m ? u : m; zy = yv == (I)k ? u : zy; }
      unlimited &= (m > -inf) & (m < inf);
      const VShift<T> sh = shift_of_lanes<T>(m);
      V rest[CH] = {}, all[CH] = {}, As[CH] = {}, Qs[CH] = {}; IV negative = {};
      double wide_rest[N], wide_all[N]; ptrdiff_t k = 0;
      for (int i = 0; i < N; i++) wide_rest[i] = wide_all[i] = 0;
      while (k < K) {
        const ptrdiff_t stop = K - k > FLUSH ? k + FLUSH : K;
        for (; k + CH <= stop; k += CH) {
#pragma GCC unroll 4
          for (int c = 0; c < CH; c++) {
            const V u = col[(k + c) * step], e = exp_of<T>(u, sh);
            if (GENERAL) {
              if (soft) {
                const V tk = goal[(k + c) * step], q = (tk * alpha + beta) * (w ? w[k + c] : T(1)), far = m - u;
                negative |= ~(tk >= T(0)); Qs[c] += q; As[c] += q * (q != T(0) ? far : V{});
              } else if (!w || w[k + c] != 0) { As[c] += (yv == (I)(k + c) ? V{} : m - u) * (w ? w[k + c] : T(1)); }
            }
            col[(k + c) * step] = e; rest[c] += u >= m ? V{} : e; all[c] += e;
          }
        }
        for (; k < stop; k++) {
          const V u = col[k * step], e = exp_of<T>(u, sh);
          if (GENERAL) {
            if (soft) {
              const V tk = goal[k * step], q = (tk * alpha + beta) * (w ? w[k] : T(1)), far = m - u;
              negative |= ~(tk >= T(0)); Qs[0] += q; As[0] += q * (q != T(0) ? far : V{});
            } else if (!w || w[k] != 0) { As[0] += (yv == (I)k ? V{} : m - u) * (w ? w[k] : T(1)); }
          }
          col[k * step] = e; rest[0] += u >= m ? V{} : e; all[0] += e;
        }
        if (K > FLUSH) {
          for (int c = 1; c < CH; c++) { rest[0] += rest[c]; all[0] += all[c]; rest[c] = all[c] = V{}; }
          for (int i = 0; i < N; i++) { wide_rest[i] += rest[0][i]; wide_all[i] += all[0][i]; }
          rest[0] = all[0] = V{};
        }
      }
      if (K > FLUSH) for (int i = 0; i < N; i++) { rest[0][i] = T(wide_rest[i]); all[0][i] = T(wide_all[i]); }
      else for (int c = 1; c < CH; c++) { rest[0] += rest[c]; all[0] += all[c]; }
      V A = As[0], Q = Qs[0];
      for (int c = 1; c < CH; c++) { A += As[c]; Q += Qs[c]; }
      V top = {}, ey = {};
      if (K <= 8) for (ptrdiff_t j = 0; j < K; j++) { const V e = col[j * step]; top = e > top ? e : top; ey = yv == (I)j ? e : ey; }   // cheaper than two more exps
      else { top = exp_of<T>(m, sh); ey = exp_of<T>(zy, sh); }
      const V ties = (((all[0] - rest[0]) / top) + C::magic) - C::magic;
      const V others = rest[0] + (ties - T(1)) * top, sum = others + top;
      const V lg = log1p_of<T>(others / top), lse = m + lg;
      const V per = (lv * target.grad_scale) / sum; const IV dead = lv == T(0);
      V loss, coefficient = wv, bend = {};
      const V no_y = zy == m ? others : sum - ey;
      if (!GENERAL) {
        const V gap = m - zy, far = lg + (wv != T(0) ? gap : V{});
        loss = wv * far;
        if (a->family != fx::CROSS_ENTROPY) {
          double p[N], q[N], l[N], f[N], G[N], P[N];
          const V pv = ey / sum, qv = no_y / sum;
          for (int i = 0; i < N; i++) { p[i] = pv[i]; q[i] = qv[i]; l[i] = far[i]; }
          family_of(a, N, p, q, l, f, G, P);
          for (int i = 0; i < N; i++) { loss[i] = T(f[i]); coefficient[i] = T(G[i]); bend[i] = T(P[i]); }
          loss *= wv; coefficient *= wv; bend *= wv;
        }
      } else if (soft) {
        loss = Q * lg + A; coefficient = Q;
        for (int i = 0; i < N; i++) if (negative[i] && r + i < nb && (out->bad < 0 || out->bad > i0 + r + i)) out->bad = i0 + r + i;
      } else {
        const V near = wv * top_share, far = m - zy;
        Q = wv * top_share + (T(target.weight_sum) - wv) * beta;
        loss = Q * lg + (A * beta + near * (near != T(0) ? far : V{})); coefficient = Q;
      }
      const V own = coefficient;
      if (zeta != 0) { loss += zeta * lse * lse; coefficient += 2 * zeta * lse; }
      *(V*)(L + r) = dead ? V{} : loss * lv; *(V*)(LSE + r) = lse;
      if (a->hess.data) {
        const V one = T(1) / sum, factor = lv * target.hess_scale, high = top * (1 - 8 * eps);
        for (ptrdiff_t j = 0; j < K; j++) {
          const V e = col[j * step], p = e * one, left = (e >= high ? others : sum - e) * one;
          V h = coefficient * (p * left) + 2 * zeta * p * p;
          if (!GENERAL && a->family != fx::CROSS_ENTROPY) {
            const V share = e / no_y;                                     // p_k / q, finite as q -> 0
            h -= bend * (yv == (I)j ? no_y * one : no_y > T(0) ? share * p : V{});
          }
          h *= factor;
          hcol[j * step] = dead ? V{} : h;
        }
      }
      if (a->grad.data) {
        const V by = coefficient * per;
        if (!GENERAL) {
          const V low = own * no_y;
          const V gy = zeta != 0 ? (2 * zeta * lse * ey - low) * per : low * -per;
          for (ptrdiff_t j = 0; j < K; j++) { V g = col[j * step] * by; g = yv == (I)j ? gy : g; col[j * step] = dead ? V{} : g; }
        } else {
          const V factor = lv * target.grad_scale;
          for (ptrdiff_t j = 0; j < K; j++) {
            const V share = soft ? goal[j * step] * alpha + beta : yv == (I)j ? V{} + top_share : V{} + beta;
            const V g = col[j * step] * by - share * (w ? w[j] : T(1)) * factor;
            col[j * step] = dead ? V{} : g;
          }
        }
      }
    }
    uint64_t all_finite = ~(uint64_t)0, words[FX_BYTES / 8];
    __builtin_memcpy(words, &unlimited, sizeof words);
    for (const uint64_t word : words) all_finite &= word;
    if (__builtin_expect(~all_finite != 0, 0))
      for (ptrdiff_t r = 0; r < nb; r++) {
        const T u = LSE[r];
        if (weight[r] != 0 && !(u > -inf && u < inf))
          L[r] = limit_row<T>(a, target, i0 + r, soft ? -1 : y[r], weight[r], a->grad.data ? t + r : 0, a->hess.data ? hs + r : 0, B, LSE + r);
      }
    if (a->grad.data) {
      if (streamed && tiled<T>(a->storage, a->grad, a->inner, K, nb, B)) {
        T* const flat = hs + (a->hess.data ? K * B : 0);
        lanes_to_rows<T, fx::LANES>(t, flat, K, K);
        stream((const char*)flat, a->grad.data + i0 * a->grad.outer, nb * K * item);
      } else store_lanes<T>(a->storage, a->grad, a->inner, K, i0, nb, B, t);
    }
    if (a->hess.data) store_lanes<T>(a->storage, a->hess, a->inner, K, i0, nb, B, hs);
    Wide<T> sum;                                                        // lanes beyond nb weigh 0
    for (ptrdiff_t r = 0; r < B; r += N) sum.add(*(const V*)(L + r));
    total += sum.total();
    if (a->loss.data) store_rows(a->loss, a->inner, i0, nb, L);
    if (a->lse.data) store_rows(a->lse, a->inner, i0, nb, LSE);
  }
  if (streamed) finish_stream();
  out->loss += total;
}

// ---- one row after another -------------------------------------------------------------------------------------------

enum Mode { LABEL, SMOOTH, SMOOTH_WEIGHTED, SOFT, SOFT_WEIGHTED };

template <class T> struct RowSums { double rest, all, far, goal, infinite; T top; bool negative; };

// (2): e into `e` if STORE, and the sums.  The ragged end is one overlapping vector, loaded before its lanes are overwritten (e may
// be z); its old lanes are masked out of the sums.
template <class T, int MODE, bool STORE> FX_INLINE RowSums<T> row_sums(
    const T* z, T* e, const T* goal, const Target<T>& target, ptrdiff_t K, T m, const typename Vec<T>::V last) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef typename Vec<T>::Loose Loose;
  enum { N = Vec<T>::N, CH = sizeof(T) == 8 ? 4 : 2 };
  const ptrdiff_t body = K / N * N, lap = body + N - K;               // lap: lanes of the last vector that are counted already
  const Shift<T> s = shift_of(m); const VShift<T> sh = splat(s); const V mm = V{} + m;
  const T alpha = target.alpha, beta = target.beta; const T* const w = target.w;
  IV lane; for (int i = 0; i < N; i++) lane[i] = (typename Vec<T>::I)i;
  const IV fresh = lane >= (typename Vec<T>::I)lap;
  IV negative = {};
  RowSums<T> o = {0, 0, 0, 0, 0, exp_of(m, s), false};
  for (ptrdiff_t j = 0; j < body || (j == body && lap < N);) {
    const ptrdiff_t stop = body - j > CHUNK ? j + CHUNK : body;
    V rest[CH] = {}, all[CH] = {}, far = {}, share = {}, infinite = {};
    auto one = [&](const V u, ptrdiff_t at, int c, bool end) __attribute__((always_inline)) {
      V x = exp_of<T>(u, sh);
      if (STORE) *(Loose*)(e + at) = x;
      if (MODE != LABEL) {
        V q = V{} + T(1), d = mm - u;
        if (MODE == SOFT || MODE == SOFT_WEIGHTED) { const V g = *(const Loose*)(goal + at); negative |= ~(g >= T(0)); q = g * alpha + beta; }
        if (MODE == SMOOTH_WEIGHTED || MODE == SOFT_WEIGHTED) q *= *(const Loose*)(w + at);
        if (end) q = fresh ? q : V{};
        if (MODE == SMOOTH || MODE == SMOOTH_WEIGHTED) {                  // -inf apart: the label's share may be 0
          const V one_or_0 = q != T(0) ? V{} + T(1) : V{};
          infinite += d > T(Num<T>::most) ? one_or_0 : V{}; d = d > T(Num<T>::most) ? V{} : d;
        } else d = q != T(0) ? d : V{};
        far += q * d; share += q;
      }
      if (end) x = fresh ? x : V{};
      rest[c] += u >= mm ? V{} : x; all[c] += x;
    };
    for (; j + CH * N <= stop; j += CH * N) {
      V u[CH];
#pragma GCC unroll 4
      for (int c = 0; c < CH; c++) u[c] = *(const Loose*)(z + j + c * N);
#pragma GCC unroll 4
      for (int c = 0; c < CH; c++) one(u[c], j + c * N, c, false);
    }
    for (; j < stop; j += N) one(*(const Loose*)(z + j), j, 0, false);
    if (j >= body) { if (lap < N) one(last, K - N, 1, true); j = K; }
    for (int c = 1; c < CH; c++) { rest[0] += rest[c]; all[0] += all[c]; }
    for (int h = N / 2; h > 0; h /= 2)
      for (int i = 0; i < h; i++) { rest[0][i] += rest[0][i + h]; all[0][i] += all[0][i + h]; far[i] += far[i + h]; share[i] += share[i + h]; infinite[i] += infinite[i + h]; }
    o.rest += rest[0][0]; o.all += all[0][0]; o.far += far[0]; o.goal += share[0]; o.infinite += infinite[0];
    if (j >= K) break;
  }
  for (int i = 0; i < N; i++) o.negative |= negative[i] != 0;
  return o;
}

// (3) g = e * by - q * factor
template <class T, int MODE> FX_INLINE void row_scale(T* e, const T* goal, const Target<T>& target, ptrdiff_t K, T by, T factor) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  const V vb = V{} + by, vf = V{} + factor, flat = V{} + target.beta * factor; const T alpha = target.alpha, beta = target.beta;
  auto value = [&](ptrdiff_t at) __attribute__((always_inline)) {
    V g = *(const Loose*)(e + at) * vb;
    if (MODE == SMOOTH) g -= flat;
    if (MODE == SMOOTH_WEIGHTED) g -= *(const Loose*)(target.w + at) * flat;
    if (MODE == SOFT) g -= (*(const Loose*)(goal + at) * alpha + beta) * vf;
    if (MODE == SOFT_WEIGHTED) g -= (*(const Loose*)(goal + at) * alpha + beta) * *(const Loose*)(target.w + at) * vf;
    return g;
  };
  const V tail = value(K - N); ptrdiff_t j = 0;
  for (; j + N <= K; j += N) *(Loose*)(e + j) = value(j);
  if (j < K) *(Loose*)(e + K - N) = tail;
}
template <class T> static void row_hess(const T* e, T* h, ptrdiff_t K, double rest, double sum, T top, T coefficient, T zeta, T bend, T factor) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  const T high = top * (1 - 8 * T(__builtin_ldexp(1., -Num<T>::mant))); const V one = V{} + T(1 / sum), all = V{} + T(sum), others = V{} + T(rest);
  auto value = [&](ptrdiff_t at) __attribute__((always_inline)) {
    const V x = *(const Loose*)(e + at), p = x * one, left = (x >= high ? others : all - x) * one;
    return (coefficient * (p * left) + (2 * zeta - bend) * p * p) * factor;
  };
  const V tail = value(K - N); ptrdiff_t j = 0;
  for (; j + N <= K; j += N) *(Loose*)(h + j) = value(j);
  if (j < K) *(Loose*)(h + K - N) = tail;
}

template <class T, int MODE> static void wide(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose;
  enum { N = Vec<T>::N };
  const bool direct = stored_as_is<T>(a->storage); const ptrdiff_t item = item_size<T>(a->storage);
  const ptrdiff_t K = a->classes; const T inf = T(__builtin_inf()), inverse = T(1 / a->temperature);
  const Target<T> target(a); const T* const bias = (const T*)a->bias; const bool affine = bias || a->temperature != 1;
  const double zeta = a->z_loss, beta = target.beta;
  T* const zs = (T*)scratch; T* const es = zs + K; T* const hs = es + K; double total = 0;
  for (ptrdiff_t i0 = begin; i0 < end; i0 += GROUP) {
    const ptrdiff_t nb = end - i0 < GROUP ? end - i0 : GROUP;
    int64_t y[GROUP]; alignas(64) T weight[GROUP], L[GROUP], ratio[GROUP], far[GROUP], share[GROUP], high[GROUP], extra[GROUP];
    take_rows<T>(a, i0, nb, y, weight, out);
    for (ptrdiff_t r = 0; r < GROUP; r++) ratio[r] = far[r] = share[r] = high[r] = extra[r] = 0;
    for (ptrdiff_t r = 0; r < nb; r++) {
      const char* const zp = run_at(a->logits, a->inner, i0 + r, 1).at; const int64_t label = y[r];
      char* const gp = a->grad.data ? run_at(a->grad, a->inner, i0 + r, 1).at : 0;
      char* const hp = a->hess.data ? run_at(a->hess, a->inner, i0 + r, 1).at : 0;
      if (weight[r] == 0 && !a->lse.data) {
        if (gp) __builtin_memset(gp, 0, K * item);
        if (hp) __builtin_memset(hp, 0, K * item);
        continue;
      }
      const T* z = (const T*)zp; T* const h = !hp ? 0 : direct ? (T*)hp : hs; T* const e = !gp ? h : direct ? (T*)gp : es;
      const T* const goal = MODE >= SOFT ? (const T*)run_at(a->soft, a->inner, i0 + r, 1).at : 0;
      if (!direct || affine) {
        widen_run(a->storage, zp, K, zs);
        if (a->temperature != 1) for (ptrdiff_t k = 0; k < K; k++) zs[k] *= inverse;
        if (bias) for (ptrdiff_t k = 0; k < K; k++) zs[k] += bias[k];
        z = zs;
      }
      const T zy = z[label]; const V last = *(const Loose*)(z + K - N);
      V m0 = last > -inf ? last : V{} - inf, m1 = m0; ptrdiff_t j = 0;
      for (; j + 2 * N <= K; j += 2 * N) {
        const V u = *(const Loose*)(z + j), v = *(const Loose*)(z + j + N);
        m0 = u > m0 ? u : m0; m1 = v > m1 ? v : m1;
      }
      if (j + N <= K) { const V u = *(const Loose*)(z + j); m0 = u > m0 ? u : m0; }
      m0 = m0 > m1 ? m0 : m1; T m = -inf;
      for (int i = 0; i < N; i++) m = m0[i] > m ? m0[i] : m;
      if (__builtin_expect(!(m > -inf && m < inf), 0)) {               // `extra` carries the whole loss of such a row
        extra[r] = limit_row<T>(a, target, i0 + r, MODE >= SOFT ? -1 : label, weight[r], gp ? e : 0, h, 1, high + r);
        if (weight[r] == 0) { extra[r] = 0; if (gp) for (ptrdiff_t k = 0; k < K; k++) e[k] = 0; if (h) for (ptrdiff_t k = 0; k < K; k++) h[k] = 0; }
        if (MODE >= SOFT) for (ptrdiff_t k = 0; k < K; k++) if (!(goal[k] >= 0) && out->bad < 0) out->bad = i0 + r;
        weight[r] = 0;
      } else {
        const RowSums<T> s = e ? row_sums<T, MODE, true>(z, e, goal, target, K, m, last) : row_sums<T, MODE, false>(z, e, goal, target, K, m, last);
        if (MODE >= SOFT && s.negative && (out->bad < 0 || out->bad > i0 + r)) out->bad = i0 + r;
        const double top = s.top, ties = __builtin_rint((s.all - s.rest) / top), rest = s.rest + (ties - 1) * top, sum = rest + top;
        const double wy = target.w && MODE < SOFT ? target.w[label] : 1, q = rest / top;
        double near = 0, Q = wy, mass = wy;                               // mass = q_y
        if (MODE == LABEL) near = wy == 0 ? 0 : wy * (double)(m - zy);
        else if (MODE >= SOFT) { near = s.far; Q = s.goal; mass = 0; }
        else {
          mass = wy * target.top; Q = mass + beta * (target.weight_sum - wy);
          const bool gone = zy == -inf;                                   // beta of the label's own distance is in s.far
          near = beta * s.far + (gone ? mass != 0 ? inf : 0 : (mass - wy * beta) * (double)(m - zy));
          if (beta > 0 && s.infinite - (gone && wy != 0) > 0.5) near = inf;
        }
        ratio[r] = T(q); far[r] = T(near); share[r] = T(Q); high[r] = m;
        const double ey = exp_of(zy, shift_of(m)), no_y = zy == m ? rest : sum - ey;
        double bend = 0, own = Q;
        if (MODE == LABEL && a->family != fx::CROSS_ENTROPY) {
          const Member member = family_of(a, ey / sum, no_y / sum, log1p_of(q) + (wy == 0 ? 0 : (double)(m - zy)));
          far[r] = T(wy * member.f); share[r] = 0; own = wy * member.G; bend = wy * member.P;
        }
        double coefficient = own, lse = 0;
        if (zeta != 0) { lse = m + (double)log1p_of(T(q)); extra[r] = T(zeta * lse * lse) * weight[r]; coefficient += 2 * zeta * lse; }
        if (weight[r] == 0) extra[r] = 0;
        if (h) {                                                          // bend: P / q of the family, times p^2
          const double curve = no_y > 0 ? bend * sum / no_y : 0;
          row_hess(e, h, K, rest, sum, s.top, T(coefficient), T(zeta), T(curve), weight[r] * target.hess_scale);
          if (bend != 0) {
            const double p = ey / sum, left = no_y / sum;
            h[label] = T((coefficient * p * left + 2 * zeta * p * p - bend * left) * weight[r] * target.hess_scale);
          }
        }
        if (gp) {
          const double factor = (double)weight[r] * target.grad_scale, by = coefficient * factor / sum;
          double gy = 0;
          if (MODE == LABEL) {
            gy = (2 * zeta * lse * ey - own * no_y) * (factor / sum);
          } else if (MODE < SOFT) {
            gy = (coefficient * ey / sum - mass) * factor;
          }
          row_scale<T, MODE>(e, goal, target, K, T(by), T(factor));
          if (MODE < SOFT) e[label] = T(gy);
          if (weight[r] == 0) for (ptrdiff_t k = 0; k < K; k++) e[k] = 0;
        }
        if (h && weight[r] == 0) for (ptrdiff_t k = 0; k < K; k++) h[k] = 0;
      }
      if (!direct) {
        if (gp) narrow_run(a->storage, e, K, gp);
        if (hp) narrow_run(a->storage, h, K, hp);
      }
    }
    for (ptrdiff_t r = 0; r < GROUP; r += N) {
      const V lg = log1p_of<T>(*(const V*)(ratio + r));
      *(V*)(L + r) = *(const V*)(share + r) * lg + *(const V*)(far + r); *(V*)(high + r) += lg;
    }
    double sum = 0;
    for (ptrdiff_t r = 0; r < nb; r++) { L[r] = (weight[r] == 0 ? T(0) : L[r] * weight[r]) + extra[r]; sum += L[r]; }
    total += sum;
    if (a->loss.data) store_rows(a->loss, a->inner, i0, nb, L);
    if (a->lse.data) store_rows(a->lse, a->inner, i0, nb, high);
  }
  out->loss += total;
}

// ---- one row, any layout, in double ---------------------------------------------------------------------------------
// Targets that are mixtures over a family other than cross-entropy, and Hessian-vector products: L = sum_k q_k f(p_k), so
//     g_j = S p_j - q_j G_j,   S = sum_k q_k G_k,   H = S (diag p - p p') - sum_k q_k P_k / (1 - p_k) d_k d_k',   d_k = p - e_k,
// and the z-loss adds 2 zeta lse to S and 2 zeta p p' to H.  Not a hot path: one scalar loop for all of it.

struct Row { double m, top, rest, sum, log_sum, lse; ptrdiff_t at; };

// u, e and their sums; false for a row of the limits, or one that weighs nothing.
template <class T> static bool read_row(const SoftmaxRows* a, ptrdiff_t i, double* u, double* e, Row* o) {
  const ptrdiff_t K = a->classes; const T inverse = T(1 / a->temperature); const T* const bias = (const T*)a->bias;
  const char* const zp = run_at(a->logits, a->inner, i, 1).at; const double inf = __builtin_inf();
  o->m = -inf; o->at = 0; bool nan = false;
  for (ptrdiff_t k = 0; k < K; k++) {
    T v = number_at<T>(a->storage, zp + k * a->logits.cls) * inverse; if (bias) v += bias[k];
    u[k] = v; nan |= v != v; if (v > o->m) { o->m = v; o->at = k; }
  }
  if (nan || !(o->m > -inf && o->m < inf)) return false;
  const Shift<double> s = shift_of(o->m); o->top = exp_of(o->m, s); o->rest = 0;
  for (ptrdiff_t k = 0; k < K; k++) { e[k] = exp_of(u[k], s); if (k != o->at) o->rest += e[k]; }
  o->sum = o->rest + o->top; o->log_sum = log1p_of(o->rest / o->top); o->lse = o->m + o->log_sum;
  return true;
}
// q_k, f, G and P of every class with a share in the target
template <class T> FX_INLINE double share_of(const SoftmaxRows* a, const Target<T>& target, const char* goal, int64_t y, ptrdiff_t k) {
  const double w = target.w ? target.w[k] : 1;
  return w * (goal ? (double)target.alpha * *(const T*)(goal + k * a->soft.cls) + target.beta : k == y ? target.top : target.beta);
}
FX_INLINE Member member_of(const SoftmaxRows* a, const Row& row, const double* u, const double* e, ptrdiff_t k) {
  const double left = k == row.at ? row.rest : row.sum - e[k];
  return family_of(a, e[k] / row.sum, left / row.sum, row.log_sum + (row.m - u[k]));
}

template <class T> static void mixtures(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  const ptrdiff_t K = a->classes; const Target<T> target(a); const double zeta = a->z_loss; double total = 0;
  double* const u = (double*)scratch; double* const e = u + K; T* const g = (T*)(e + K); T* const h = g + K;
  for (ptrdiff_t i = begin; i < end; i++) {
    int64_t y; T weight, lse = 0, loss = 0; Row row;
    take_rows<T>(a, i, 1, &y, &weight, out);
    const char* const goal = a->soft.data ? run_at(a->soft, a->inner, i, 1).at : 0;
    if (goal) { y = -1; for (ptrdiff_t k = 0; k < K; k++) if (!(*(const T*)(goal + k * a->soft.cls) >= 0) && out->bad < 0) out->bad = i; }
    if (!read_row<T>(a, i, u, e, &row)) loss = limit_row<T>(a, target, i, y, weight, g, h, 1, &lse);
    else {
      double S = 0, bent = 0, L = 0; lse = T(row.lse);
      for (ptrdiff_t k = 0; k < K; k++) {
        const double q = share_of(a, target, goal, y, k); if (q == 0) continue;
        const Member m = member_of(a, row, u, e, k); const double left = (k == row.at ? row.rest : row.sum - e[k]) / row.sum;
        L += q * m.f; S += q * m.G; bent += left > 0 ? q * m.P / left : 0;
      }
      const double c = S + 2 * zeta * row.lse;
      loss = T((L + zeta * row.lse * row.lse) * weight);
      for (ptrdiff_t k = 0; k < K; k++) {
        const double q = share_of(a, target, goal, y, k), p = e[k] / row.sum, left = (k == row.at ? row.rest : row.sum - e[k]) / row.sum;
        const Member m = q == 0 ? Member{0, 0, 0} : member_of(a, row, u, e, k);
        const double own = left > 0 ? q * m.P / left : 0;
        g[k] = T(((c - q * m.G) * p - q * m.G * left) * weight * target.grad_scale);   // a label's own terms cancel exactly
        h[k] = T((c * p * left + 2 * zeta * p * p - (bent - own) * p * p - q * m.P * left) * weight * target.hess_scale);
      }
    }
    if (weight == 0) { loss = 0; for (ptrdiff_t k = 0; k < K; k++) g[k] = h[k] = 0; }
    total += loss;
    if (a->grad.data) { char* to = run_at(a->grad, a->inner, i, 1).at; for (ptrdiff_t k = 0; k < K; k++) number_to(a->storage, g[k], to + k * a->grad.cls); }
    if (a->hess.data) { char* to = run_at(a->hess, a->inner, i, 1).at; for (ptrdiff_t k = 0; k < K; k++) number_to(a->storage, h[k], to + k * a->hess.cls); }
    if (a->loss.data) store_rows(a->loss, a->inner, i, 1, &loss);
    if (a->lse.data) store_rows(a->lse, a->inner, i, 1, &lse);
  }
  out->loss += total;
}

template <class T> static void hvp(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  const ptrdiff_t K = a->classes; const Target<T> target(a); const double zeta = a->z_loss;
  double* const u = (double*)scratch; double* const e = u + K;
  for (ptrdiff_t i = begin; i < end; i++) {
    int64_t y; T weight; Row row;
    take_rows<T>(a, i, 1, &y, &weight, out);
    const char* const goal = a->soft.data ? run_at(a->soft, a->inner, i, 1).at : 0;
    if (goal) { y = -1; for (ptrdiff_t k = 0; k < K; k++) if (!(*(const T*)(goal + k * a->soft.cls) >= 0) && out->bad < 0) out->bad = i; }
    const char* const xp = run_at(a->x, a->inner, i, 1).at; char* const to = run_at(a->grad, a->inner, i, 1).at;
    auto x = [&](ptrdiff_t k) { return (double)*(const T*)(xp + k * a->x.cls); };
    if (weight == 0) { for (ptrdiff_t k = 0; k < K; k++) number_to(a->storage, T(0), to + k * a->grad.cls); continue; }
    if (!read_row<T>(a, i, u, e, &row)) {                   // one +inf: p is 1 there, and only the z-loss bends
      ptrdiff_t at = -1, infinite = 0; bool nan = weight != weight;
      for (ptrdiff_t k = 0; k < K; k++) { nan |= u[k] != u[k]; if (u[k] == __builtin_inf()) { at = k; infinite++; } }
      const bool limit = !nan && infinite == 1;
      for (ptrdiff_t k = 0; k < K; k++)
        number_to(a->storage, T(!limit ? __builtin_nan("") : k == at ? 2 * zeta * x(k) * weight * target.hess_scale : 0.), to + k * a->grad.cls);
      continue;
    }
    double mean = 0, S = 0, bent = 0;
    for (ptrdiff_t k = 0; k < K; k++) mean += e[k] * x(k);
    mean /= row.sum;
    const bool plain = a->family == fx::CROSS_ENTROPY;
    for (ptrdiff_t k = 0; k < K; k++) {
      const double q = share_of(a, target, goal, y, k); if (q == 0) continue;
      if (plain) { S += q; continue; }
      const Member m = member_of(a, row, u, e, k); const double left = (k == row.at ? row.rest : row.sum - e[k]) / row.sum;
      S += q * m.G; bent += left > 0 ? q * m.P / left * (mean - x(k)) : 0;
    }
    const double c = S + 2 * zeta * row.lse, factor = (double)weight * target.hess_scale;
    for (ptrdiff_t k = 0; k < K; k++) {
      const double p = e[k] / row.sum; double value = p * (c * (x(k) - mean) + 2 * zeta * mean - bent);
      if (!plain) {
        const double q = share_of(a, target, goal, y, k), left = (k == row.at ? row.rest : row.sum - e[k]) / row.sum;
        if (q != 0 && left > 0) value += q * member_of(a, row, u, e, k).P / left * (mean - x(k));
      }
      number_to(a->storage, T(value * factor), to + k * a->grad.cls);
    }
  }
}

template <class T> static void softmax(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  const bool general = a->soft.data || a->smoothing != 0;
  if (general && a->family != fx::CROSS_ENTROPY) mixtures<T>(a, begin, end, scratch, out);
  else if (!fx::in_lanes(a)) {
    if (!general) wide<T, LABEL>(a, begin, end, scratch, out);
    else if (a->soft.data) { if (a->class_weight) wide<T, SOFT_WEIGHTED>(a, begin, end, scratch, out); else wide<T, SOFT>(a, begin, end, scratch, out); }
    else if (a->class_weight) wide<T, SMOOTH_WEIGHTED>(a, begin, end, scratch, out);
    else wide<T, SMOOTH>(a, begin, end, scratch, out);
  } else if (general) lanes<T, true>(a, begin, end, scratch, out);
  else lanes<T, false>(a, begin, end, scratch, out);
}

// ---- denominators of the reductions, and the check of the targets, without the logits --------------------------------
template <class T> static void totals(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char*, BlockOut* out) {
  const T* const w = (const T*)a->class_weight; double total = 0;
  int64_t y[GROUP]; T weight[GROUP];
  for (ptrdiff_t i0 = begin; i0 < end; i0 += GROUP) {
    const ptrdiff_t nb = end - i0 < GROUP ? end - i0 : GROUP;
    const int64_t before = out->counted;
    take_rows<T>(a, i0, nb, y, weight, out);
    if (a->labels.data) {
      if (!w && !a->weight.data) { total += (double)(out->counted - before); continue; }
      for (ptrdiff_t r = 0; r < nb; r++) { const double v = weight[r] == weight[r] ? weight[r] : T(1); total += v == 0 ? 0 : v * (w ? w[y[r]] : T(1)); }
    } else {
      for (ptrdiff_t r = 0; r < nb; r++) {
        const char* tp = run_at(a->soft, a->inner, i0 + r, 1).at; const ptrdiff_t K = a->classes, cls = a->soft.cls;
        double sum = 0; bool wrong = false;
        for (ptrdiff_t k0 = 0; k0 < K; k0 += CHUNK) {
          const ptrdiff_t stop = K - k0 > CHUNK ? k0 + CHUNK : K; T part = 0; int negative = 0;
          if (cls == sizeof(T) && !w) {
            const T* t = (const T*)tp;
#pragma omp simd reduction(+ : part) reduction(| : negative)
            for (ptrdiff_t k = k0; k < stop; k++) { part += t[k]; negative |= !(t[k] >= 0); }
          } else {
            for (ptrdiff_t k = k0; k < stop; k++) { const T t = *(const T*)(tp + k * cls); part += t * (w ? w[k] : T(1)); negative |= !(t >= 0); }
          }
          sum += part; wrong |= negative != 0;
        }
        if (wrong && (out->bad < 0 || out->bad > i0 + r)) out->bad = i0 + r;
        if (weight[r] != 0) total += sum * weight[r];
      }
    }
  }
  out->total += total;
}

}}  // namespace
