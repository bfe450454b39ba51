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

template <class T, bool GENERAL> static void lanes(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef Num<T> C; typedef typename C::I I;
  enum { N = Vec<T>::N, CH = sizeof(T) == 8 ? 4 : 2, FLUSH = 128, MOST = fx::MOST_LANES };
  const ptrdiff_t K = a->classes, B = fx::lanes_of(a), step = B / N; const T inf = T(__builtin_inf()), eps = T(__builtin_ldexp(1., -C::mant));
  const Target<T> target(a); const T zeta = target.zeta, beta = target.beta, alpha = target.alpha, top_share = target.top;
  const T* const w = target.w; const T* const bias = (const T*)a->bias; const T inverse = T(1 / a->temperature);
  const bool affine = bias || a->temperature != 1, soft = GENERAL && a->soft.data;
  T* const t = (T*)scratch; T* const ts = t + K * B; T* const hs = ts + (soft ? K * B : 0);
  alignas(64) T weight[MOST], wy[MOST], L[MOST], LSE[MOST]; alignas(64) I yi[MOST]; int64_t y[MOST];
  double total = 0;
  for (ptrdiff_t i0 = begin; i0 < end; i0 += B) {
    const ptrdiff_t nb = end - i0 < B ? end - i0 : B;
    take_rows<T>(a, i0, nb, y, weight, out);
    for (ptrdiff_t r = nb; r < B; r++) { y[r] = 0; weight[r] = 0; }
    load_lanes<T>(a->storage, a->logits, a->inner, K, i0, nb, B, t);
    if (soft) load_lanes<T>(sizeof(T) == 8 ? fx::DOUBLE : fx::FLOAT, a->soft, a->inner, K, i0, nb, B, ts);
    for (ptrdiff_t r = 0; r < B; r++) { yi[r] = soft ? (I)-1 : (I)y[r]; wy[r] = w && !soft ? w[y[r]] : T(1); }
    bool odd = false;
    for (ptrdiff_t r = 0; r < B; r += N) {
      V* const col = (V*)(t + r); const V* const goal = (const V*)(ts + r); V* const hcol = (V*)(hs + r);
      const IV yv = *(const IV*)(yi + r); const V lv = *(const V*)(weight + r), wv = *(const V*)(wy + r);
      if (affine) for (ptrdiff_t k = 0; k < K; k++) { V u = col[k * step] * inverse; col[k * step] = bias ? u + bias[k] : u; }
      V m = V{} - inf, zy = {};
      for (ptrdiff_t k = 0; k < K; k++) { const V u = col[k * step]; m = u > m ? u : m; zy = yv == (I)k ? u : zy; }
      const IV fin = (m > -inf) & (m < inf); IV some = fin;
      for (int h = N / 2; h > 0; h /= 2) for (int i = 0; i < h; i++) some[i] &= some[i + h];
      odd |= !some[0];
      const VShift<T> sh = shift_of_lanes<T>(m);
      V rest[CH] = {}, all[CH] = {}, A = {}, Q = {}; IV negative = {};
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
                negative |= ~(tk >= T(0)); Q += q; A += q * (q != T(0) ? far : V{});
              } else if (!w || w[k + c] != 0) { A += (m - u) * (w ? w[k + c] : T(1)); }
            }
            col[(k + c) * step] = e; rest[c] += u >= m ? V{} : e; all[c] += e;
          }
        }
        for (; k < stop; k++) {
          const V u = col[k * step], e = exp_of<T>(u, sh);
          if (GENERAL) {
            if (soft) {
              const V tk = goal[k * step], q = (tk * alpha + beta) * (w ? w[k] : T(1)), far = m - u;
              negative |= ~(tk >= T(0)); Q += q; A += q * (q != T(0) ? far : V{});
            } else if (!w || w[k] != 0) { A += (m - u) * (w ? w[k] : T(1)); }
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
      const V top = exp_of<T>(m, sh), ey = exp_of<T>(zy, sh);
      const V ties = (((all[0] - rest[0]) / top) + C::magic) - C::magic;
      const V others = rest[0] + (ties - T(1)) * top, sum = others + top;
      const V lg = log1p_of<T>(others / top), lse = m + lg;
      const V per = (lv * target.grad_scale) / sum; const IV dead = lv == T(0);
      V loss, coefficient = wv;
      if (!GENERAL) {
        const V far = m - zy;
        loss = wv * (lg + (wv != T(0) ? far : V{}));
      } else if (soft) {
        loss = Q * lg + A; coefficient = Q;
        for (int i = 0; i < N; i++) if (negative[i] && r + i < nb && (out->bad < 0 || out->bad > i0 + r + i)) out->bad = i0 + r + i;
      } else {
        const V near = wv * alpha, far = m - zy;
        Q = wv * top_share + (T(target.weight_sum) - wv) * beta;
        loss = Q * lg + (A * beta + near * (near != T(0) ? far : V{})); coefficient = Q;
      }
      if (zeta != 0) { loss += zeta * lse * lse; coefficient += 2 * zeta * lse; }
      *(V*)(L + r) = dead ? V{} : loss * lv; *(V*)(LSE + r) = lse;
      if (a->hess.data) {
        const V one = T(1) / sum, factor = lv * target.hess_scale, high = top * (1 - 8 * eps);
        for (ptrdiff_t j = 0; j < K; j++) {
          const V e = col[j * step], p = e * one, left = (e >= high ? others : sum - e) * one;
          const V h = (coefficient * (p * left) + 2 * zeta * p * p) * factor;
          hcol[j * step] = dead ? V{} : h;
        }
      }
      if (a->grad.data) {
        const V by = coefficient * per;
        if (!GENERAL) {
          const V no_y = zy == m ? others : sum - ey, low = wv * no_y;
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
    if (__builtin_expect(odd, 0))
      for (ptrdiff_t r = 0; r < nb; r++) {
        const T u = LSE[r];
        if (weight[r] != 0 && !(u > -inf && u < inf))
          L[r] = limit_row<T>(a, target, i0 + r, soft ? -1 : y[r], weight[r], a->grad.data ? t + r : 0, a->hess.data ? hs + r : 0, B, LSE + r);
      }
    if (a->grad.data) store_lanes<T>(a->storage, a->grad, a->inner, K, i0, nb, B, t);
    if (a->hess.data) store_lanes<T>(a->storage, a->hess, a->inner, K, i0, nb, B, hs);
    double sum = 0;
    for (ptrdiff_t r = 0; r < nb; r++) sum += L[r];
    total += sum;
    if (a->loss.data) store_rows(a->loss, a->inner, i0, nb, L);
    if (a->lse.data) store_rows(a->lse, a->inner, i0, nb, LSE);
  }
  out->loss += total;
}

// ---- one row after another -------------------------------------------------------------------------------------------

enum Mode { LABEL, SMOOTH, SMOOTH_WEIGHTED, SOFT, SOFT_WEIGHTED };

template <class T> struct RowSums { double rest, all, far, goal; T top; bool negative; };

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
  RowSums<T> o = {0, 0, 0, 0, exp_of(m, s), false};
  for (ptrdiff_t j = 0; j < body || (j == body && lap < N);) {
    const ptrdiff_t stop = body - j > CHUNK ? j + CHUNK : body;
    V rest[CH] = {}, all[CH] = {}, far = {}, share = {};
    auto one = [&](const V u, ptrdiff_t at, int c, bool end) __attribute__((always_inline)) {
      V x = exp_of<T>(u, sh);
      if (STORE) *(Loose*)(e + at) = x;
      if (MODE != LABEL) {
        V q = V{} + T(1), d = mm - u;
        if (MODE == SOFT || MODE == SOFT_WEIGHTED) { const V g = *(const Loose*)(goal + at); negative |= ~(g >= T(0)); q = g * alpha + beta; }
        if (MODE == SMOOTH_WEIGHTED || MODE == SOFT_WEIGHTED) q *= *(const Loose*)(w + at);
        if (end) q = fresh ? q : V{};
        if (MODE == SMOOTH) far += end ? (fresh ? d : V{}) : d;
        else { far += q * (q != T(0) ? d : V{}); share += q; }
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
      for (int i = 0; i < h; i++) { rest[0][i] += rest[0][i + h]; all[0][i] += all[0][i + h]; far[i] += far[i + h]; share[i] += share[i + h]; }
    o.rest += rest[0][0]; o.all += all[0][0]; o.far += far[0]; o.goal += share[0];
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
template <class T> static void row_hess(const T* e, T* h, ptrdiff_t K, double rest, double sum, T top, T coefficient, T zeta, T factor) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  const T high = top * (1 - 8 * T(__builtin_ldexp(1., -Num<T>::mant))); const V one = V{} + T(1 / sum), all = V{} + T(sum), others = V{} + T(rest);
  auto value = [&](ptrdiff_t at) __attribute__((always_inline)) {
    const V x = *(const Loose*)(e + at), p = x * one, left = (x >= high ? others : all - x) * one;
    return (coefficient * (p * left) + 2 * zeta * p * p) * factor;
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
          near = beta * s.far; mass = wy * target.top; Q = mass + beta * (target.weight_sum - wy);
          if (wy * target.alpha != 0) near += wy * target.alpha * (double)(m - zy);
        }
        ratio[r] = T(q); far[r] = T(near); share[r] = T(Q); high[r] = m;
        double coefficient = Q, lse = 0;
        if (zeta != 0) { lse = m + (double)log1p_of(T(q)); extra[r] = T(zeta * lse * lse) * weight[r]; coefficient += 2 * zeta * lse; }
        if (weight[r] == 0) extra[r] = 0;
        if (h) row_hess(e, h, K, rest, sum, s.top, T(coefficient), T(zeta), weight[r] * target.hess_scale);
        if (gp) {
          const double factor = (double)weight[r] * target.grad_scale, by = coefficient * factor / sum;
          double gy = 0;
          if (MODE == LABEL) {
            const double ey = exp_of(zy, shift_of(m)), no_y = zy == m ? rest : sum - ey;
            gy = (2 * zeta * lse * ey - wy * no_y) * (factor / sum);
          } else if (MODE < SOFT) {
            gy = (coefficient * (double)exp_of(zy, shift_of(m)) / sum - mass) * factor;
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

template <class T> static void softmax(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  const bool general = a->soft.data || a->smoothing != 0;
  if (!fx::in_lanes(a)) {
    if (!general) wide<T, LABEL>(a, begin, end, scratch, out);
    else if (a->soft.data) { if (a->class_weight) wide<T, SOFT_WEIGHTED>(a, begin, end, scratch, out); else wide<T, SOFT>(a, begin, end, scratch, out); }
    else if (a->class_weight) wide<T, SMOOTH_WEIGHTED>(a, begin, end, scratch, out);
    else wide<T, SMOOTH>(a, begin, end, scratch, out);
  } else if (general) lanes<T, true>(a, begin, end, scratch, out);
  else lanes<T, false>(a, begin, end, scratch, out);
}

// ---- Hessian-vector product: v (c (p x - p (p.x)) + 2 zeta p (p.x)), row by row ----------------------------------------
template <class T> static void hvp(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  const ptrdiff_t K = a->classes; const T inf = T(__builtin_inf()), inverse = T(1 / a->temperature); const Target<T> target(a);
  const T* const bias = (const T*)a->bias; T* const u = (T*)scratch; T* const x = u + K;
  for (ptrdiff_t i = begin; i < end; i++) {
    int64_t y; T weight; take_rows<T>(a, i, 1, &y, &weight, out);
    const char* const zp = run_at(a->logits, a->inner, i, 1).at; const char* const xp = run_at(a->x, a->inner, i, 1).at;
    char* const gp = run_at(a->grad, a->inner, i, 1).at;
    if (weight == 0) { for (ptrdiff_t k = 0; k < K; k++) number_to(a->storage, T(0), gp + k * a->grad.cls); continue; }
    T m = -inf; ptrdiff_t infinite = 0;
    for (ptrdiff_t k = 0; k < K; k++) {
      T v = number_at<T>(a->storage, zp + k * a->logits.cls) * inverse; if (bias) v += bias[k];
      u[k] = v; m = v > m ? v : m; infinite += v == inf; x[k] = *(const T*)(xp + k * a->x.cls);
    }
    double Q = 0;
    if (a->soft.data) {
      const char* tp = run_at(a->soft, a->inner, i, 1).at; bool negative = false;
      for (ptrdiff_t k = 0; k < K; k++) { const T t = *(const T*)(tp + k * a->soft.cls); negative |= !(t >= 0); Q += (target.alpha * t + target.beta) * (target.w ? target.w[k] : T(1)); }
      if (negative && out->bad < 0) out->bad = i;
    } else { const double wy = target.w ? target.w[y] : 1; Q = wy * target.top + target.beta * (target.weight_sum - wy); }
    if (m == inf && infinite == 1) { for (ptrdiff_t k = 0; k < K; k++) u[k] = u[k] == inf ? T(0) : u[k] != u[k] ? u[k] : -inf; m = 0; }
    else if (!(m > -inf && m < inf)) { m = 0; u[0] = T(__builtin_nan("")); }
    const Shift<T> s = shift_of(m); double sum = 0, mean = 0;
    for (ptrdiff_t k = 0; k < K; k++) { u[k] = exp_of(u[k], s); sum += u[k]; mean += (double)u[k] * x[k]; }
    mean /= sum;
    double c = Q; const double zeta = a->z_loss, factor = (double)weight * target.hess_scale / sum;
    if (zeta != 0) c += 2 * zeta * (m + (double)log1p_of(T((sum - exp_of(m, s)) / exp_of(m, s))));
    for (ptrdiff_t k = 0; k < K; k++) number_to(a->storage, T((double)u[k] * (c * (x[k] - mean) + 2 * zeta * mean) * factor), gp + k * a->grad.cls);
  }
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
