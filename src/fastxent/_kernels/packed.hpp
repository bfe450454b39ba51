// What the kernels of few classes share (few.hpp, two_or_three.hpp): a block of rows that lie one after another in memory, its labels
// and weights on the way in, its gradients and losses on the way out.
namespace FX_NS { namespace {

template <class T, int ROWS> struct Packed {
  typedef typename Vec<T>::V V; typedef typename Num<T>::I I; enum { N = Vec<T>::N };
  alignas(64) T weight[ROWS], wy[ROWS], L[ROWS], LSE[ROWS];                    // of the row, of its label's class; loss and logarithm
  alignas(64) I y[ROWS]; bool ones = false;                                    // whether every weight is 1 already
  Packed() { for (int r = 0; r < ROWS; r++) wy[r] = T(1); }

  // Labels and weights of rows [i, i + n), then rows of weight 0 up to `lanes`.  Whether there are none of these and every weight is 1.
  FX_INLINE_MEMBER bool take(const SoftmaxRows* a, const T* w, ptrdiff_t i, ptrdiff_t n, ptrdiff_t lanes, BlockOut* out) {
    if (!take_labels(a, i, n, out)) ones = take_any(a, i, n, out);
    else if (a->weight.data) load_rows(a->weight, a->inner, i, n, weight);     // and `ones` is never true
    else if (!ones) { for (int r = 0; r < ROWS; r++) weight[r] = T(1); ones = true; }
    for (ptrdiff_t r = n; r < lanes; r++) { y[r] = 0; weight[r] = 0; ones = false; }
    if (w) for (ptrdiff_t r = 0; r < lanes; r++) wy[r] = w[y[r]];
    return ones && !w;
  }
  // The common case: int64 in one piece, all of them classes that count
  FX_INLINE_MEMBER bool take_labels(const SoftmaxRows* a, ptrdiff_t i, ptrdiff_t n, BlockOut* out) {
    enum { INT64 = 7 }; const bool skips = a->has_ignore && (uint64_t)a->ignore < (uint64_t)a->classes;
    if (!a->labels.data || a->label_kind != INT64 || a->labels.outer != 8 || skips) return false;
    const char* const from = a->labels.data + i * 8; uint64_t most = 0;
    for (ptrdiff_t r = 0; r < n; r++) { uint64_t v; __builtin_memcpy(&v, from + r * 8, 8); most = v > most ? v : most; y[r] = (I)v; }
    if (__builtin_expect(most >= (uint64_t)a->classes, 0)) return false;
    out->counted += n;
    return true;
  }
  __attribute__((noinline)) bool take_any(const SoftmaxRows* a, ptrdiff_t i, ptrdiff_t n, BlockOut* out) {
    int64_t label[ROWS]; const bool even = take_rows<T>(a, i, n, label, weight, out);
    for (ptrdiff_t r = 0; r < n; r++) y[r] = (I)label[r];
    return even;
  }
  // Rows whose maximum is not finite, once more, with gradients in g, and the sum of all losses
  __attribute__((noinline, cold)) Wide<T> limits(const SoftmaxRows* a, const Target<T>& target, ptrdiff_t i, ptrdiff_t n, ptrdiff_t lanes, T* g) {
    const T inf = T(__builtin_inf()); Wide<T> sum;
    for (ptrdiff_t r = 0; r < n; r++)
      if (!(LSE[r] > -inf && LSE[r] < inf))
        L[r] = limit_row<T>(a, target, i + r, a->soft.data ? -1 : (int64_t)y[r], weight[r], a->grad.data ? g + r * a->classes : 0, (T*)0, 1, LSE + r);
    for (ptrdiff_t r = 0; r < lanes; r += N) sum.add(*(const V*)(L + r));
    return sum;
  }
  FX_INLINE_MEMBER void store(const SoftmaxRows* a, ptrdiff_t i, ptrdiff_t n) const {
    if (a->loss.data) store_rows(a->loss, a->inner, i, n, L);
    if (a->lse.data) store_rows(a->lse, a->inner, i, n, LSE);
  }
};

// Vectors on their way past the cache to one run of memory, in which a line begins anywhere: each line is made from two of them in a
// register.  Only where one instruction does that; elsewhere they go by way of memory (Outgoing).
#if FX_BYTES == 64
template <class T> struct Lines {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::IV IV; enum { N = Vec<T>::N, POSSIBLE = 1 };
  V before = {}; IV pick = {}; ptrdiff_t skew = 0; bool open = false, possible;  // the first `skew` numbers of a vector end a line
  explicit Lines(const char* to) : possible(to && (size_t)to % sizeof(T) == 0) {
    skew = N - (ptrdiff_t)((size_t)to % 64 / sizeof(T));
    for (int l = 0; l < N; l++) pick[l] = (typename Num<T>::I)(skew + l);
  }
  // K vectors that belong to `to`, where the last ones ended
  template <int K> FX_INLINE_MEMBER void put(const V* x, char* to) {
    char* const line = to + skew * (ptrdiff_t)sizeof(T) - 64;
    if (__builtin_expect(open, 1)) stream_vector<T>(line, of_two<T>(before, x[0], pick));
    else { const V first = x[0]; __builtin_memcpy(to, &first, skew * sizeof(T)); open = true; }
#pragma GCC unroll 16
    for (int k = 1; k < K; k++) stream_vector<T>(line + 64 * k, of_two<T>(x[k - 1], x[k], pick));
    before = x[K - 1];
  }
  // What is left of the last vector, which ended at `to`
  void end(char* to) {
    const ptrdiff_t left = (N - skew) * (ptrdiff_t)sizeof(T); const V last = before;
    if (open) __builtin_memcpy(to - left, (const char*)&last + 64 - left, left);
    open = false;
  }
};
#else
template <class T> struct Lines { enum { POSSIBLE = 0 }; static constexpr bool possible = false; explicit Lines(const char*) {} };
#endif

}}  // namespace
