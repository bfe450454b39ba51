// Softmax rows one after another, lanes are classes: every row stays in the cache for its three sweeps.
namespace FX_NS { namespace {

// Bytes: a longer row is not asked for by the row before it, where e shares the cache with it (twice that where e overwrites the logits)
// and where it does not; one that would fill the first-level cache is asked for into the second there; from e to the line of it that is
// asked for; from there on gradients go past the cache, where one row's ends cost less than its lines gain.
enum { AHEAD = 1 << 17, AHEAD_OTHERWISE = 1 << 20, NEAR = 1 << 14, WRITE_AHEAD = 1024, PAST_FROM = 1536 };
// Vectors between two additions to the double sums: lanes that added up many more of them would lose a digit.
enum { BETWEEN = 64 };

// What a row, or a piece of it, adds up lane by lane: e without and with the maximum; q (m - u), q, and where q (m - u) is infinite.
template <class T> struct Parts { typename Vec<T>::V rest = {}, all = {}, far = {}, share = {}, infinite = {}; typename Vec<T>::IV odd = {}; };

// Lanes of the overlapping last vector of K classes that no vector before it has counted
template <class T> FX_INLINE typename Vec<T>::IV fresh_lanes(ptrdiff_t K) {
  enum { N = Vec<T>::N }; typename Vec<T>::IV lane; for (int i = 0; i < N; i++) lane[i] = (typename Vec<T>::I)i;
  return lane >= (typename Vec<T>::I)(N - K % N);
}
// The row that comes, in numbers of `item` bytes, and its targets
template <class T> struct Next {
  const char* z; const T* goal; ptrdiff_t item;
  template <int MODE, bool FAR> FX_INLINE_MEMBER void ask(ptrdiff_t j) const {
    __builtin_prefetch(z + j * item, 0, FAR ? 2 : 3);
    if (MODE == SOFT || MODE == SOFT_WEIGHTED) __builtin_prefetch(goal + j, 0, FAR ? 2 : 3);
  }
};
// (2): e into `e` if STORE, and the sums, over the whole vectors of [j, stop).  The ragged end, where K is given, is one overlapping
// vector, `last`: loaded before its lanes are overwritten (e may be z), its old lanes masked out of the sums.
//
// The exponentials leave memory idle: meanwhile lines of the row that comes and of e are asked for. The hardware's prefetcher ends with
// each row's first sweep; without this a forward pass takes 1.2 to 1.4 times as long.
//
// `beside` is done with every vector of e but the last few of a row.
template <class T, int MODE, bool STORE, bool FAR, class Beside> FX_INLINE void row_part(
    const T* z, T* e, const T* goal, const Target<T>& target, ptrdiff_t j, ptrdiff_t stop, ptrdiff_t K, const typename Vec<T>::V last,
    const typename Vec<T>::IV fresh, const VShift<T>& sh, const typename Vec<T>::V mm, Parts<T>& o, const Next<T>& next, Beside& beside) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose;
  enum { N = Vec<T>::N, CH = sizeof(T) == 8 ? 4 : 2 };
  const T alpha = target.alpha, beta = target.beta; const T* const w = target.w; V rest[CH] = {}, all[CH] = {};
  auto one = [&](const V u, ptrdiff_t at, int c, bool end) __attribute__((always_inline)) {
    V x = exp_of<T>(u, sh);
    if (STORE) *(Loose*)(e + at) = x;
    if (MODE != LABEL) {
      V q = V{} + T(1), d = mm - u;
      if (MODE == SOFT || MODE == SOFT_WEIGHTED) { const V g = *(const Loose*)(goal + at); o.odd |= ~is_share<T>(g); q = g * alpha + beta; }
      if (MODE == SMOOTH_WEIGHTED || MODE == SOFT_WEIGHTED) q *= *(const Loose*)(w + at);
      if (end) q = fresh ? q : V{};
      if (MODE == SMOOTH || MODE == SMOOTH_WEIGHTED) {                  // -inf apart: the label's share may be 0
        const V one_or_0 = q != T(0) ? V{} + T(1) : V{};
        o.infinite += d > T(Num<T>::most) ? one_or_0 : V{}; d = d > T(Num<T>::most) ? V{} : d;
      } else d = q != T(0) ? d : V{};
      o.far += q * d; o.share += q;
    }
    if (end) x = fresh ? x : V{};
    rest[c] = add_below<T>(rest[c], x, u, mm); all[c] += x;
  };
  for (; j + CH * N <= stop; j += CH * N) {
    V u[CH];
#pragma GCC unroll 4
    for (int c = 0; c < CH; c++) {
      u[c] = *(const Loose*)(z + j + c * N); next.template ask<MODE, FAR>(j + c * N);
      if (STORE) beside(e + j + c * N);
    }
#pragma GCC unroll 4
    for (int c = 0; c < CH; c++) one(u[c], j + c * N, c, false);
  }
  for (; j < stop; j += N) { next.template ask<MODE, FAR>(j); one(*(const Loose*)(z + j), j, 0, false); }
  if (K > stop) one(last, K - N, 1, true);
  for (int c = 1; c < CH; c++) { rest[0] += rest[c]; all[0] += all[c]; }
  o.rest = rest[0]; o.all = all[0];
}

// What stands beside the exponentials of a row that is written where it stays: its lines are asked for.
template <class T> struct Asking { FX_INLINE_MEMBER void operator()(const T* e) const { __builtin_prefetch((const char*)e + WRITE_AHEAD, 1); } };

template <class T> struct RowSums { double rest, all, far, goal, infinite; T top; bool odd; };

template <class T, int MODE, bool STORE, bool FAR, class Beside> FX_INLINE RowSums<T> row_sums(
    const T* z, T* e, const T* goal, const Target<T>& target, ptrdiff_t K, T m, const typename Vec<T>::V last, const Next<T>& next, Beside& beside) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; enum { N = Vec<T>::N };
  const ptrdiff_t body = K / N * N; const Shift<T> s = shift_of(m); const VShift<T> sh = splat(s); const V mm = V{} + m;
  const IV fresh = fresh_lanes<T>(K); IV odd = {};
  RowSums<T> o = {0, 0, 0, 0, 0, exp_of(m, s), false};
  // In the order of batch.hpp, which may take the same rows without a gradient
  auto folded = [](V x) __attribute__((always_inline)) {
    for (int h = N / 2; h > 0; h /= 2) for (int i = 0; i < h; i++) x[i] += x[i + h];
    return (double)x[0];
  };
  for (ptrdiff_t j = 0; j < body; j += BETWEEN * N) {
    const bool rest_of_row = body - j <= BETWEEN * N;
    Parts<T> p; row_part<T, MODE, STORE, FAR>(z, e, goal, target, j, rest_of_row ? body : j + BETWEEN * N, rest_of_row ? K : 0, last, fresh, sh, mm, p, next, beside);
    o.rest += folded(p.rest); o.all += folded(p.all);
    if (MODE != LABEL) { o.far += folded(p.far); o.goal += folded(p.share); }
    if (MODE == SMOOTH || MODE == SMOOTH_WEIGHTED) o.infinite += folded(p.infinite);
    odd |= p.odd;
  }
  for (int i = 0; i < N; i++) o.odd |= odd[i] != 0;
  return o;
}

// Sum of w_k (m - u_k) over the classes but the label, infinite distances apart.  For smoothing that leaves the label a lesser share
// than any other class: its own distance must not be added with theirs and taken off again, for it may be the greatest by far.
template <class T> static __attribute__((noinline, cold)) double far_of_others(const T* z, const T* w, ptrdiff_t K, ptrdiff_t label, T m) {
  double far = 0;
  for (ptrdiff_t k = 0; k < K; k++) {
    const T d = m - z[k], share = w ? w[k] : T(1);
    if (k != label && share != 0 && d <= Num<T>::most) far += (double)share * d;
  }
  return far;
}

// (3) g = e * by - q * factor, a vector from class k on
template <class T, int MODE> struct Gradient {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose;
  const T *e = 0, *goal = 0, *w = 0; T by = 0, factor = 0, flat = 0, alpha = 0, beta = 0;
  Gradient() = default;
  Gradient(const T* e, const T* goal, const Target<T>& target, T by, T factor)
      : e(e), goal(goal), w(target.w), by(by), factor(factor), flat(target.beta * factor), alpha(target.alpha), beta(target.beta) {}
  FX_INLINE_MEMBER V at(ptrdiff_t k) const {
    V g = *(const Loose*)(e + k) * by;
    if (MODE == SMOOTH) g -= flat;
    if (MODE == SMOOTH_WEIGHTED) g -= rounded(*(const Loose*)(w + k) * flat);
    if (MODE == SOFT) g -= rounded((*(const Loose*)(goal + k) * alpha + beta) * factor);
    if (MODE == SOFT_WEIGHTED) g -= rounded((*(const Loose*)(goal + k) * alpha + beta) * *(const Loose*)(w + k) * factor);
    return g;
  }
};
template <class T, int MODE> FX_INLINE void row_scale(T* e, const T* goal, const Target<T>& target, ptrdiff_t K, T by, T factor) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  const Gradient<T, MODE> g(e, goal, target, by, factor);
  const V tail = g.at(K - N); ptrdiff_t j = 0;
  for (; j + N <= K; j += N) *(Loose*)(e + j) = g.at(j);
  if (j < K) *(Loose*)(e + K - N) = tail;
}
// A gradient larger than the cache goes past it, each row while the exponentials of the next one are computed: memory is neither read for
// lines that are written whole, nor idle.  From 400 classes in float on that takes 0.7 to 0.8 of the time (AMD Zen 4).
//
// A load waits for an earlier store whose address ends in the same 12 bits.  So a row leaves LAG lines behind the loads of the next, three
// times as many where those would end as the loads do, and e lies 512 bytes or more from the logits and from the e that is leaving,
// modulo 4096.
template <class T, int MODE> struct Leaving {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N, LINE = 64 / sizeof(T), LAG = 4, PAGE = 4096, SPARE = PAGE + 64, APART = 512 };
  Gradient<T, MODE> g; T* to = 0; ptrdiff_t at = 0, body = 0, label = 0; T gy = 0;    // whole lines of `to`: [0, body)
  FX_INLINE_MEMBER void operator()(const T*) {
    if ((size_t)at < (size_t)body && (N == LINE || at % LINE == 0))          // the parts of a line at once
#pragma GCC unroll 4
      for (ptrdiff_t k = at; k < at + LINE; k += N) {
        V x = g.at(k);
        if (MODE < SOFT && __builtin_expect((size_t)(label - k) < (size_t)N, 0)) x[label - k] = gy;
        stream_vector<T>((char*)(to + k), x);
      }
    at += N;
  }
  void rest() { for (at = at < 0 ? 0 : (at + LINE - 1) / LINE * LINE; at < body; at += LINE - N) (*this)(0); body = 0; }
  // The row of K classes at `row`, whose e is in `from`; the ends of it, which are no whole lines, at once
  void start(Gradient<T, MODE> from, T* row, ptrdiff_t K, ptrdiff_t own, T own_g) {
    const ptrdiff_t head = (ptrdiff_t)(-(size_t)row % 64 / sizeof(T)), lines = (K - head) / LINE * LINE, tail = head + lines;
    alignas(64) T end[LINE];
    rest();
    for (ptrdiff_t k = 0; k < head; k += N) *(Loose*)(end + k) = from.at(k);
    for (ptrdiff_t k = 0; k < head; k++) row[k] = end[k];
    for (ptrdiff_t k = K - LINE; k < K; k += N) *(Loose*)(end + k - (K - LINE)) = from.at(k);
    for (ptrdiff_t k = tail; k < K; k++) row[k] = end[k - (K - LINE)];
    if (MODE < SOFT && (own < head || own >= tail)) row[own] = own_g;
    from.e += head; from.goal += MODE >= SOFT ? head : 0; from.w += from.w ? head : 0;
    g = from; to = row + head; at = -LAG * LINE; body = lines; label = own - head; gy = own_g;
  }
  // Where the e of the logits at z may lie in `room`, of a row and SPARE bytes; what is leaving keeps its distance too
  T* place(char* room, const char* z) {
    if (((size_t)to - (size_t)z - LAG * 64 + 128) % PAGE < 384) at = -3 * LAG * LINE;
    room += -(size_t)room % 64;
    auto apart = [&](size_t offset) { return room + (((size_t)z + offset - (size_t)room) & (PAGE - 64)); };
    char* const e = apart(PAGE / 4);
    return (T*)((((size_t)e - (size_t)g.e + APART) & (PAGE - 1)) < 2 * APART ? apart(PAGE / 4 * 3) : e);
  }
};
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
  const bool streamed = STREAMS && a->stream && a->grad.data && direct && !a->hess.data && K * item >= PAST_FROM;
  Asking<T> asking; Leaving<T, MODE> leaving; char* room = (char*)(zs + K); char* other_room = room + K * item + Leaving<T, MODE>::SPARE;
  for (ptrdiff_t i0 = begin; i0 < end; i0 += GROUP) {
    const ptrdiff_t nb = end - i0 < GROUP ? end - i0 : GROUP;
    int64_t y[GROUP]; alignas(64) T weight[GROUP], L[GROUP], ratio[GROUP], far[GROUP], share[GROUP], high[GROUP], extra[GROUP];
    take_rows<T>(a, i0, nb, y, weight, out);
    for (ptrdiff_t r = 0; r < GROUP; r++) ratio[r] = far[r] = share[r] = high[r] = extra[r] = 0;
    for (ptrdiff_t r = 0; r < nb; r++) {
      const char* const zp = run_at(a->logits, a->inner, i0 + r, 1).at; const int64_t label = y[r];
      char* const gp = a->grad.data ? run_at(a->grad, a->inner, i0 + r, 1).at : 0;
      char* const hp = a->hess.data ? run_at(a->hess, a->inner, i0 + r, 1).at : 0;
      if (weight[r] == 0 && !a->lse.data && MODE < SOFT) {                 // other targets are checked on the way
        if (gp) __builtin_memset(gp, 0, K * item);
        if (hp) __builtin_memset(hp, 0, K * item);
        continue;
      }
      const T* z = (const T*)zp; T* const h = !hp ? 0 : direct ? (T*)hp : hs; const bool past = streamed && (size_t)gp % sizeof(T) == 0;
      if (past && (size_t)(gp + K * item) % 64) __builtin_prefetch(gp + K * item - 1, 1);     // its last line is shared with the row after
      T* const e = !gp ? h : past ? leaving.place(room, affine ? (char*)zs : zp) : direct ? (T*)gp : es;
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
        extra[r] = limit_row<T>(a, target, i0 + r, MODE >= SOFT ? -1 : label, weight[r], !gp ? 0 : past ? (T*)gp : e, h, 1, high + r);
        if (MODE >= SOFT) for (ptrdiff_t k = 0; k < K; k++) if (!is_share<T>(goal[k]) && out->bad < 0) out->bad = i0 + r;
        weight[r] = 0;
      } else {
        const ptrdiff_t asked = past || !e ? AHEAD_OTHERWISE : e != z ? AHEAD : 2 * AHEAD;
        const ptrdiff_t coming = i0 + r + (i0 + r + 1 < end && K * item <= asked);
        const Next<T> next = {run_at(a->logits, a->inner, coming, 1).at, MODE >= SOFT ? (const T*)run_at(a->soft, a->inner, coming, 1).at : 0, item};
        const bool lesser = (MODE == SMOOTH || MODE == SMOOTH_WEIGHTED) && target.top < target.beta;
        const double apart = lesser ? far_of_others(z, MODE == SMOOTH ? (const T*)0 : target.w, K, label, m) : 0;
        RowSums<T> s;
        if (past && K * item <= NEAR) s = row_sums<T, MODE, true, false>(z, e, goal, target, K, m, last, next, leaving);
        else if (past) s = row_sums<T, MODE, true, true>(z, e, goal, target, K, m, last, next, leaving);
        else if (e && (e != z || K * item <= NEAR)) s = row_sums<T, MODE, true, false>(z, e, goal, target, K, m, last, next, asking);
        else if (e) s = row_sums<T, MODE, true, true>(z, e, goal, target, K, m, last, next, asking);
        else if (K * item <= NEAR) s = row_sums<T, MODE, false, false>(z, e, goal, target, K, m, last, next, asking);
        else s = row_sums<T, MODE, false, true>(z, e, goal, target, K, m, last, next, asking);
        if (MODE >= SOFT && s.odd && (out->bad < 0 || out->bad > i0 + r)) out->bad = i0 + r;
        const double top = s.top, ties = __builtin_rint((s.all - s.rest) / top), rest = s.rest + (ties - 1) * top, sum = rest + top;
        const double wy = target.w && MODE < SOFT ? target.w[label] : 1, q = rest / top;
        double near = 0, Q = wy, mass = wy;                               // mass = q_y
        if (MODE == LABEL) near = wy == 0 ? 0 : wy * (double)(m - zy);
        else if (MODE >= SOFT) { near = s.far; Q = s.goal; mass = 0; }
        else {
          mass = wy * target.top; Q = mass + beta * (target.weight_sum - wy);
          const bool gone = !(m - zy <= Num<T>::most);                    // beta of the label's own distance is in s.far
          near = beta * (lesser ? apart : s.far) + (gone ? mass != 0 ? inf : 0 : (lesser ? mass : mass - wy * beta) * (double)(m - zy));
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
            gy = 2 * zeta * lse * (ey * (factor / sum)) - own * no_y * (factor / sum);
          } else if (MODE < SOFT) {
            gy = (coefficient * (ey / sum) - mass) * factor;
          }
          if (weight[r] == 0) __builtin_memset(direct ? gp : (char*)e, 0, K * sizeof(T));
          else if (past) {
            leaving.start({e, goal, target, T(by), T(factor)}, (T*)gp, K, label, T(gy));
            char* const free = other_room; other_room = room; room = free;
          } else {
            row_scale<T, MODE>(e, goal, target, K, T(by), T(factor));
            if (MODE < SOFT) e[label] = T(gy);
          }
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
  leaving.rest();
  if (streamed) finish_stream();
  out->loss += total;
}

}}  // namespace
