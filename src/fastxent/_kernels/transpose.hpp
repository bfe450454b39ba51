// Blocks of rows <-> lanes: 32 rows of K numbers become K vectors of 32 lanes, through N x N tiles in registers.
// Copying a block through a buffer, or masked moves, is 1.5 to 2.6 times slower than moves that overrun.
namespace FX_NS { namespace {

template <int N, int S, class V, int... k> FX_INLINE void exchange(V& a, V& b, Seq<k...>) {
  const V lo = __builtin_shufflevector(a, b, ((k & S) == 0 ? k : N + k - S)...);
  const V hi = __builtin_shufflevector(a, b, ((k & S) == 0 ? k + S : N + k)...);
  a = lo; b = hi;
}
template <int N, int S, class V> struct Stage {
  static FX_INLINE_MEMBER void run(V* x) {
#pragma GCC unroll 16
    for (int i = 0; i < N; i++) if ((i & S) == 0) exchange<N, S>(x[i], x[i + S], typename Make<N>::type());
    Stage<N, S / 2, V>::run(x);
  }
};
template <int N, class V> struct Stage<N, 0, V> { static FX_INLINE_MEMBER void run(V*) {} };
template <class H, int... k> FX_INLINE auto join(H lo, H hi, Seq<k...>) { return __builtin_shufflevector(lo, hi, k...); }

// N vectors to one, whose lane i is the sum (or what `op` is) of vector i.  x is overwritten.
template <int N, int S, class V, class Op, int... k> FX_INLINE void fold_pair(V* x, int i, Op op, Seq<k...>) {
  const V a = x[i], b = x[i + S];
  x[i] = op(__builtin_shufflevector(a, b, ((k & S) == 0 ? k : N + k - S)...), __builtin_shufflevector(a, b, ((k & S) == 0 ? k + S : N + k)...));
}
template <int N, int S, class V> struct Fold {
  template <class Op> static FX_INLINE_MEMBER void run(V* x, Op op) {
#pragma GCC unroll 8
    for (int i = 0; i < S; i++) fold_pair<N, S>(x, i, op, typename Make<N>::type());
    Fold<N, S / 2, V>::run(x, op);
  }
};
template <int N, class V> struct Fold<N, 0, V> { template <class Op> static FX_INLINE_MEMBER void run(V*, Op) {} };
template <class T> FX_INLINE typename Vec<T>::V fold_sum(typename Vec<T>::V* x) {
  typedef typename Vec<T>::V V; enum { N = Vec<T>::N };
  Fold<N, N / 2, V>::run(x, [](V a, V b) __attribute__((always_inline)) { return a + b; });
  return x[0];
}
template <class T> FX_INLINE typename Vec<T>::V fold_max(typename Vec<T>::V* x) {
  typedef typename Vec<T>::V V; enum { N = Vec<T>::N };
  Fold<N, N / 2, V>::run(x, [](V a, V b) __attribute__((always_inline)) { return a > b ? a : b; });
  return x[0];
}

// N x N numbers at `from` (rows `fs` apart) transposed to `to` (rows `ts` apart).  Stages that move 16 bytes and more are done by
// loading so many at a time: what that inserts into a vector costs less than a permutation.
template <class T, int c> FX_INLINE auto pieces(const T* from, ptrdiff_t apart) {
  if constexpr (c == 1) { typedef T Piece __attribute__((vector_size(16))); Piece x; __builtin_memcpy(&x, from, sizeof x); return x; }
  else return join(pieces<T, c / 2>(from, apart), pieces<T, c / 2>(from + c / 2 * apart, apart), typename Make<c * 16 / sizeof(T)>::type());
}
template <class T> FX_INLINE void tile(const T* from, ptrdiff_t fs, T* to, ptrdiff_t ts) {
  typedef typename Vec<T>::V V; enum { N = Vec<T>::N, P = 16 / sizeof(T) }; V x[N];
#pragma GCC unroll 16
  for (int r = 0; r < N; r++) x[r] = pieces<T, N / P>(from + r % P * fs + r / P * P, P * fs);
  Stage<N, P / 2, V>::run(x);
#pragma GCC unroll 16
  for (int c = 0; c < N; c++) __builtin_memcpy(to + c * ts, &x[c], sizeof(V));
}
template <int K, class T, int B> FX_INLINE void unzip(const T* flat, T* t) {
  typedef typename Vec<T>::V V; enum { N = Vec<T>::N };
  for (int r = 0; r < B; r += N) {
    V x[K]; Weave<T, K>::to_columns(flat + r * K, x);
    for (int j = 0; j < K; j++) *(V*)(t + j * B + r) = x[j];
  }
}
template <int K, class T, int B> FX_INLINE void zip(const T* t, T* flat) {
  typedef typename Vec<T>::V V; enum { N = Vec<T>::N };
  for (int r = 0; r < B; r += N) {
    V x[K];
    for (int j = 0; j < K; j++) x[j] = *(const V*)(t + j * B + r);
    Weave<T, K>::to_rows(x, flat + r * K);
  }
}

// B rows of K contiguous numbers, `zs` apart, to t[K][B]
template <class T, int B> static inline void rows_to_lanes(const T* z, ptrdiff_t zs, ptrdiff_t K, T* t) {
  enum { N = Vec<T>::N };
  if (K >= N) {                                   // the last tile overlaps the one before
    for (int r = 0; r < B; r += N) {
      ptrdiff_t j = 0;
      for (; j + N <= K; j += N) tile<T>(z + r * zs + j, zs, t + j * B + r, B);
      if (j < K) tile<T>(z + r * zs + K - N, zs, t + (K - N) * B + r, B);
    }
    return;
  }
  T flat[B * N + N];
  if (zs != K) { for (int r = 0; r < B; r++) for (ptrdiff_t j = 0; j < K; j++) flat[r * K + j] = z[r * zs + j]; z = flat; }
  if (K == 2) unzip<2, T, B>(z, t);
  else if (K == 3) unzip<3, T, B>(z, t);
  else if (K == 4) unzip<4, T, B>(z, t);
  else {                                          // whole vectors overrun into the next row; the block's last rows are
    typedef typename Vec<T>::V V; T tail[3 * N];  // read from a padded copy
    const ptrdiff_t end = B * K; __builtin_memcpy(tail, z + end - 2 * N, 2 * N * sizeof(T));
    for (int r0 = 0; r0 < B; r0 += N) {
      V x[N];
#pragma GCC unroll 16
      for (int r = 0; r < N; r++) {
        const ptrdiff_t at = (r0 + r) * K;
        __builtin_memcpy(&x[r], at + N <= end ? z + at : tail + (at - (end - 2 * N)), sizeof(V));
      }
      Stage<N, N / 2, V>::run(x);
#pragma GCC unroll 16
      for (int c = 0; c < N; c++) if (c < K) __builtin_memcpy(t + c * B + r0, &x[c], sizeof(V));
    }
  }
}
// t[K][B] to B rows of K contiguous numbers, `gs` apart
template <class T, int B> static inline void lanes_to_rows(const T* t, T* g, ptrdiff_t gs, ptrdiff_t K) {
  enum { N = Vec<T>::N };
  if (K >= N) {
    for (int r = 0; r < B; r += N) {
      ptrdiff_t j = 0;
      for (; j + N <= K; j += N) tile<T>(t + j * B + r, B, g + r * gs + j, gs);
      if (j < K) tile<T>(t + (K - N) * B + r, B, g + r * gs + K - N, gs);
    }
    return;
  }
  T flat[B * N + N]; T* o = gs == K ? g : flat;
  if (K == 2) zip<2, T, B>(t, o);
  else if (K == 3) zip<3, T, B>(t, o);
  else if (K == 4) zip<4, T, B>(t, o);
  else {                                          // ascending, each row overwrites the overrun of the one before; what
    typedef typename Vec<T>::V V; T tail[3 * N];  // would leave the block goes through a copy
    const ptrdiff_t end = B * K; ptrdiff_t first = end;
    for (int r0 = 0; r0 < B; r0 += N) {
      V x[N];
#pragma GCC unroll 16
      for (int c = 0; c < N; c++) if (c < K) __builtin_memcpy(&x[c], t + c * B + r0, sizeof(V)); else x[c] = V{};
      Stage<N, N / 2, V>::run(x);
#pragma GCC unroll 16
      for (int r = 0; r < N; r++) {
        const ptrdiff_t at = (r0 + r) * K; const bool in = at + N <= end;
        if (!in && first == end) first = at;
        __builtin_memcpy(in ? o + at : tail + (at - (end - N)), &x[r], sizeof(V));
      }
    }
    for (ptrdiff_t i = first; i < end; i++) o[i] = tail[i - (end - N)];
  }
  if (gs != K) for (int r = 0; r < B; r++) for (ptrdiff_t j = 0; j < K; j++) g[r * gs + j] = flat[r * K + j];
}

}}  // namespace
