// Softmax rows whose classes are many and far apart: lanes are rows, and nothing is kept but a few numbers per row.  Two sweeps over the
// classes, a chunk of them at a time: (1) maximum and sums; (2) the exponentials again, scaled, for the gradient.  lanes.hpp keeps the
// exponentials instead; once they fill the second-level cache it can only take short pieces of each class, every one from another page.
//
// Sums follow the greatest logit so far: the shift of a row is a power of two (math.hpp), so that a new maximum rescales them exactly,
// and all that came before is what lies below it.  A row with a maximum of 208 (1492 in double) or more, where the shift is no power of
// two, or with infinities, sends its group to lanes.hpp.
namespace FX_NS { namespace {
using fx::SWEPT;

enum { STRIP = 256 };                              // rows whose chunk of classes stays in the first-level cache

// What is known of the rows of a group, in the scratch.
template <class T> struct Swept {
  typedef typename Num<T>::I I; enum { MOST = fx::SWEPT_LANES };
  alignas(64) T m[MOST], lo[MOST], magic[MOST], weight[MOST], wy[MOST], zy[MOST], L[MOST], LSE[MOST], by[MOST], gy[MOST], below[MOST], ties[MOST];
  alignas(64) I yi[MOST]; alignas(64) double rest[MOST], all[MOST]; int64_t y[MOST];
  alignas(64) T in[SWEPT * STRIP], out[SWEPT * STRIP];
};
static_assert(sizeof(Swept<double>) <= 8 * fx::SWEPT_SCRATCH, "the scratch of a group");

// Classes [k, k + count) of the rows of a run, `stride` numbers apart: where they lie, or widened and padded to `span` rows.  The
// chunk after it, which the hardware's prefetcher does not foresee, lies `ahead` bytes on; where 0, it has been asked for.
template <class T> struct Chunk { const T* at; ptrdiff_t stride, ahead; };
template <class T> FX_INLINE Chunk<T> chunk_of(int storage, const Run& run, ptrdiff_t cls, ptrdiff_t k, ptrdiff_t count, ptrdiff_t span, T* buffer) {
  if (stored_as_is<T>(storage) && run.count == span && cls % (ptrdiff_t)sizeof(T) == 0) return {(const T*)(run.at + k * cls), cls / (ptrdiff_t)sizeof(T), SWEPT * cls};
  for (ptrdiff_t c = 0; c < count; c++) {
    const char* const at = run.at + (k + c) * cls;
    for (ptrdiff_t i = 0; i < run.count * item_size<T>(storage); i += 64) __builtin_prefetch(at + SWEPT * cls + i, 0, 2);
    widen_run(storage, at, run.count, buffer + c * span);
    for (ptrdiff_t r = run.count; r < span; r++) buffer[c * span + r] = 0;
  }
  return {buffer, span, 0};
}
template <class T> FX_INLINE VShift<T> shift_at(const Swept<T>& s, ptrdiff_t r) {
  typedef typename Vec<T>::Loose Loose; VShift<T> sh;
  sh.c = typename Vec<T>::V{}; sh.lo = *(const Loose*)(s.lo + r); sh.magic = *(const Loose*)(s.magic + r);
  return sh;
}

// (1) of a chunk, z, for a vector of rows; FULL: of SWEPT classes
template <class T, bool FULL> FX_INLINE void sweep_sums(Swept<T>* s, const T* z, ptrdiff_t stride, ptrdiff_t ahead, ptrdiff_t count, ptrdiff_t r) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef typename Vec<T>::Loose Loose;
  enum { N = Vec<T>::N }; const T limit = Num<T>::shift_from; const ptrdiff_t n = FULL ? (ptrdiff_t)SWEPT : count;
  V u[SWEPT]; if (!FULL) for (V& v : u) v = V{};
  const V old = *(const V*)(s->m + r); V m = old;
#pragma GCC unroll 16
  for (ptrdiff_t c = 0; c < n; c++) {
    const T* const at = z + c * stride; __builtin_prefetch((const char*)at + ahead, 0, 2);
    u[c] = *(const Loose*)at; m = u[c] > m ? u[c] : m;
  }
  const IV higher = m > old; VShift<T> sh;
  if (any_of(higher)) {
    sh = shift_of_lanes<T>((m > -limit) & (m < limit) ? m : V{}); sh.c = V{};
    for (int i = 0; i < N; i++) {
      if (!higher[i]) continue;
      const int64_t down = (int64_t)(s->magic[r + i] - sh.magic[i]) / STEPS;   // far beyond 1000 where there was nothing so far
      s->all[r + i] *= down < 1000 ? from_bits((uint64_t)(1023 - down) << 52) : 0.;
      s->rest[r + i] = s->all[r + i];
    }
    *(V*)(s->m + r) = m; *(V*)(s->lo + r) = sh.lo; *(V*)(s->magic + r) = sh.magic;
  } else sh = shift_at(*s, r);
  V rest[2] = {}, all[2] = {};
#pragma GCC unroll 16
  for (ptrdiff_t c = 0; c < n; c++) {
    const V e = exp_of<T>(u[c], sh);
    rest[c % 2] = add_below<T>(rest[c % 2], e, u[c], m); all[c % 2] += e;
  }
  rest[0] += rest[1]; all[0] += all[1];
  for (int i = 0; i < N; i++) { s->rest[r + i] += rest[0][i]; s->all[r + i] += all[0][i]; }
}
// (2) of a chunk for `span` rows from r on; store(class of the chunk, row, number)
template <class T, bool SOME_DEAD, class Store> FX_INLINE void sweep_scale(
    const Swept<T>* s, const Chunk<T>& z, ptrdiff_t k, ptrdiff_t count, ptrdiff_t r, ptrdiff_t span, Store store) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; typedef typename Vec<T>::Loose Loose; typedef typename Num<T>::I I;
  for (ptrdiff_t i = 0; i < span; i += Vec<T>::N) {
    const VShift<T> sh = shift_at(*s, r + i); const IV label = (IV)*(const Loose*)((const T*)s->yi + r + i) - (I)k;
    const V by = *(const Loose*)(s->by + r + i), gy = *(const Loose*)(s->gy + r + i), weight = *(const Loose*)(s->weight + r + i);
    for (ptrdiff_t c = 0; c < count; c++) {
      const T* const at = z.at + c * z.stride + i; __builtin_prefetch((const char*)at + z.ahead, 0, 2);
      V g = exp_of<T>(*(const Loose*)at, sh) * by; g = label == (I)c ? gy : g;
      store(c, i, SOME_DEAD ? weight == T(0) ? V{} : g : g);
    }
  }
}
template <class T, bool SOME_DEAD> static void sweep_gradients(const SoftmaxRows* a, Swept<T>* s, const Run& run, char* to) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  const ptrdiff_t K = a->classes, item = item_size<T>(a->storage), gs = a->grad.cls; const bool as_is = stored_as_is<T>(a->storage), past = a->stream && as_is;
  const bool in_phase = past && gs % FX_BYTES == 0; const ptrdiff_t head = in_phase ? (ptrdiff_t)(-(size_t)to % FX_BYTES / sizeof(T)) : 0;
  for (ptrdiff_t k = 0; k < K; k += SWEPT) {
    const ptrdiff_t count = K - k < SWEPT ? K - k : (ptrdiff_t)SWEPT;
    for (ptrdiff_t r = 0, n; r < run.count; r += n) {                 // a head up to the first whole line, whole vectors, the rest
      n = run.count - r < STRIP ? run.count - r : (ptrdiff_t)STRIP;
      if (r < head && n > head) n = head; else if (n > N) n = n / N * N;
      const ptrdiff_t span = (n + N - 1) / N * N; char* const at = to + k * gs + r * item; const bool whole = n == span && as_is;
      const Chunk<T> z = chunk_of<T>(a->storage, Run{run.at + r * item, n, item}, a->logits.cls, k, count, span, s->in);
      if (whole && in_phase && r >= head)
        sweep_scale<T, SOME_DEAD>(s, z, k, count, r, span, [&](ptrdiff_t c, ptrdiff_t i, const V g) __attribute__((always_inline)) { stream_vector<T>(at + c * gs + i * item, g); });
      else if (whole && !past)
        sweep_scale<T, SOME_DEAD>(s, z, k, count, r, span, [&](ptrdiff_t c, ptrdiff_t i, const V g) __attribute__((always_inline)) { *(Loose*)(at + c * gs + i * item) = g; });
      else {
        sweep_scale<T, SOME_DEAD>(s, z, k, count, r, span, [&](ptrdiff_t c, ptrdiff_t i, const V g) __attribute__((always_inline)) { *(V*)(s->out + c * STRIP + i) = g; });
        for (ptrdiff_t c = 0; c < count; c++)
          if (past) stream((const char*)(s->out + c * STRIP), at + c * gs, n * item); else narrow_run(a->storage, s->out + c * STRIP, n, at + c * gs);
      }
    }
  }
}

template <class T> static void sweep(const SoftmaxRows* a, ptrdiff_t begin, ptrdiff_t end, char* scratch, BlockOut* out) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; enum { N = Vec<T>::N };
  const ptrdiff_t K = a->classes, B = fx::lanes_of(a), item = item_size<T>(a->storage), cls = a->logits.cls; const T limit = Num<T>::shift_from;
  const Target<T> target(a); Swept<T>* const s = (Swept<T>*)scratch; double total = 0;
  for (ptrdiff_t i0 = begin, nb; i0 < end; i0 += nb) {
    const Run run = run_at(a->logits, a->inner, i0, end - i0 < B ? end - i0 : B); nb = run.count;
    const ptrdiff_t span = (nb + N - 1) / N * N; const BlockOut before = *out;
    take_rows<T>(a, i0, nb, s->y, s->weight, out);
    for (ptrdiff_t r = nb; r < span; r++) { s->y[r] = 0; s->weight[r] = 0; }
    for (ptrdiff_t r = 0; r < span; r++) { s->m[r] = -T(__builtin_inf()); s->lo[r] = 0; s->magic[r] = 2 * Num<T>::magic; s->rest[r] = s->all[r] = 0; }
    for (ptrdiff_t k = 0; k < K; k += SWEPT) {
      const ptrdiff_t count = K - k < SWEPT ? K - k : (ptrdiff_t)SWEPT;
      for (ptrdiff_t r = 0; r < nb; r += STRIP) {
        const ptrdiff_t n = nb - r < STRIP ? nb - r : (ptrdiff_t)STRIP, padded = (n + N - 1) / N * N;
        const Chunk<T> z = chunk_of<T>(a->storage, Run{run.at + r * item, n, item}, cls, k, count, padded, s->in);
        for (ptrdiff_t i = 0; i < padded; i += N)
          (count == SWEPT ? sweep_sums<T, true> : sweep_sums<T, false>)(s, z.at + i, z.stride, z.ahead, count, r + i);
      }
    }
    bool odd = false;
    for (ptrdiff_t r = 0; r < nb; r++) odd |= !(s->m[r] > -limit && s->m[r] < limit);
    if (__builtin_expect(odd, 0)) { *out = before; lanes<T, false>(a, i0, i0 + nb, (char*)(s + 1), out, fx::LANES); continue; }
    for (ptrdiff_t r = 0; r < span; r++) {
      s->zy[r] = r < nb ? number_at<T>(a->storage, run.at + r * item + s->y[r] * cls) : T(0);
      s->wy[r] = target.w ? target.w[s->y[r]] : T(1); s->yi[r] = (typename Num<T>::I)s->y[r];
      s->below[r] = T(s->rest[r]); s->ties[r] = T(s->all[r] - s->rest[r]);
    }
    IV dead = {}; Wide<T> sum;
    for (ptrdiff_t r = 0; r < span; r += N) {
      const V m = *(const V*)(s->m + r), zy = *(const V*)(s->zy + r), lv = *(const V*)(s->weight + r); const VShift<T> sh = shift_at(*s, r);
      const V top = exp_of<T>(m, sh), ties = *(const V*)(s->ties + r) / top + Num<T>::magic - Num<T>::magic;
      const V others = *(const V*)(s->below + r) + (ties - T(1)) * top;
      const Closed<T> row = close_rows<T, true>(a, target, m, zy, exp_of<T>(zy, sh), top, others, *(const V*)(s->wy + r), lv, V{}, V{});
      *(V*)(s->L + r) = row.loss; *(V*)(s->LSE + r) = row.lse; *(V*)(s->by + r) = row.by; *(V*)(s->gy + r) = row.gy;
      dead |= lv == T(0); sum.add(row.loss);
    }
    total += sum.total();
    if (a->loss.data) store_rows(a->loss, a->inner, i0, nb, s->L);
    if (a->lse.data) store_rows(a->lse, a->inner, i0, nb, s->LSE);
    if (a->grad.data) (any_of(dead) ? sweep_gradients<T, true> : sweep_gradients<T, false>)(a, s, run, run_at(a->grad, a->inner, i0, nb).at);
  }
  if (a->stream) finish_stream();
  out->loss += total;
}

}}  // namespace
