// N rows of K numbers that lie one after another <-> K columns of N lanes, for small K known to the compiler.
//
// The rows are K vectors.  With G = gcd(K, N) they fall into G groups of K / G vectors, N / G whole rows each.  At a lane l of
// a group's vectors stand the classes l modulo G, each once.  So blends, of which a processor does more at a time than permutations,
// bring classes G q .. G q + G - 1 into one vector, and log2 G steps of permutations of two vectors (one of one vector where G = 1) put
// rows in order: K (K / G - 1) blends and K max(1, log2 G) permutations, with 16 lanes 6 and 3 for three classes, 40 and 10 for ten,
// instead of 64 permutations through a square tile.
namespace FX_NS { namespace {

template <int... k> struct Seq {};
template <int n, int... k> struct Make : Make<n - 1, n - 1, k...> {};
template <int... k> struct Make<0, k...> { typedef Seq<k...> type; };

template <class T, int K> struct Weave {
  typedef typename Vec<T>::V V;
  static constexpr int gcd(int a, int b) { return b ? gcd(b, a % b) : a; }
  static constexpr int N = Vec<T>::N, G = gcd(K, N), R = K / G, ROWS = N / G;

  // Lane l of a group's vector v has a class of the set q = ((vN + l) mod K) / G, which is (l / G + vN / G) mod R.
  static constexpr int set_of(int d, int v) { return (d + v * (N / G)) % R; }
  static constexpr int vector_of(int d, int q) { int v = 0; while (set_of(d, v) != q) v++; return v; }
  // Where class c of row r of a group stands in its vector, and which row stands at lane l among the set q
  static constexpr int lane_of(int r, int c) { return (r * K + c) % N; }
  static constexpr int row_at(int l, int q) { return (vector_of(l / G % R, q) * N + l) / K; }

  template <int D, int... l> static FX_INLINE_MEMBER V blend(V x, V y, Seq<l...>) { return __builtin_shufflevector(x, y, (l / G % R == D ? N + l : l)...); }
  template <int Q, int... d> static FX_INLINE_MEMBER V gather(const V* from, Seq<d...>) {
    V x = from[vector_of(0, Q)];
    ((x = d ? blend<d>(x, from[vector_of(d, Q)], typename Make<N>::type()) : x), ...);
    return x;
  }
  template <int v, int... d> static FX_INLINE_MEMBER V scatter(const V* from, Seq<d...>) {
    V x = from[set_of(0, v)];
    ((x = d ? blend<d>(x, from[set_of(d, v)], typename Make<N>::type()) : x), ...);
    return x;
  }

  // Of one set, a vector of each group to a vector of each class, by halves.  When M groups are one there are M parts of it,
  // x[group * M + part]: a part has G / M classes, each in M * ROWS lanes in a row, at first (M = 1) as the groups have them.
  static constexpr int joined(int M, int h, int q, int l) {
    const int c = l / (2 * M * ROWS), rr = l % (2 * M * ROWS), r = rr % (M * ROWS), k = h * (G / (2 * M)) + c;
    return rr / (M * ROWS) * N + (M == 1 ? lane_of(r, G * q + k) : k * (M * ROWS) + r);
  }
  static constexpr int parted(int M, int group, int q, int l) {
    const int k = M == 1 ? l % G : l / (M * ROWS), r = M == 1 ? row_at(l, q) : l % (M * ROWS), half = G / (2 * M);
    return k / half * N + k % half * (2 * M * ROWS) + group * (M * ROWS) + r;
  }
  template <int M, int q, int h, int... l> static FX_INLINE_MEMBER V join(V a, V b, Seq<l...>) { return __builtin_shufflevector(a, b, joined(M, h, q, l)...); }
  template <int M, int q, int g, int... l> static FX_INLINE_MEMBER V part(V a, V b, Seq<l...>) { return __builtin_shufflevector(a, b, parted(M, g, q, l)...); }
  template <int q, int... l> static FX_INLINE_MEMBER V sorted(V a, Seq<l...>) { return __builtin_shufflevector(a, a, lane_of(l, q)...); }
  template <int q, int... l> static FX_INLINE_MEMBER V unsorted(V a, Seq<l...>) { return __builtin_shufflevector(a, a, row_at(l, q)...); }
  template <int M, int q> static FX_INLINE_MEMBER void join_all(V* x) {
    if constexpr (M < G) {
      V y[G];
#pragma GCC unroll 8
      for (int i = 0; i < G / (2 * M); i++)
#pragma GCC unroll 8
        for (int p = 0; p < M; p++) {
          const V a = x[2 * i * M + p], b = x[(2 * i + 1) * M + p];
          y[i * 2 * M + 2 * p] = join<M, q, 0>(a, b, typename Make<N>::type()); y[i * 2 * M + 2 * p + 1] = join<M, q, 1>(a, b, typename Make<N>::type());
        }
#pragma GCC unroll 8
      for (int i = 0; i < G; i++) x[i] = y[i];
      join_all<2 * M, q>(x);
    }
  }
  template <int M, int q> static FX_INLINE_MEMBER void part_all(V* x) {
    if constexpr (M >= 1) {
      V y[G];
#pragma GCC unroll 8
      for (int i = 0; i < G / (2 * M); i++)
#pragma GCC unroll 8
        for (int p = 0; p < M; p++) {
          const V a = x[i * 2 * M + 2 * p], b = x[i * 2 * M + 2 * p + 1];
          y[2 * i * M + p] = part<M, q, 0>(a, b, typename Make<N>::type()); y[(2 * i + 1) * M + p] = part<M, q, 1>(a, b, typename Make<N>::type());
        }
#pragma GCC unroll 8
      for (int i = 0; i < G; i++) x[i] = y[i];
      part_all<M / 2, q>(x);
    }
  }
  template <int q> static FX_INLINE_MEMBER void set_to_columns(const V* from, V* x) {
    V y[G];
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) y[g] = gather<q>(from + g * R, typename Make<R>::type());
    if constexpr (G == 1) y[0] = sorted<q>(y[0], typename Make<N>::type()); else join_all<1, q>(y);
#pragma GCC unroll 8
    for (int c = 0; c < G; c++) x[G * q + c] = y[c];
  }
  template <int q> static FX_INLINE_MEMBER void set_to_rows(const V* x, V* sets) {
    V y[G];
#pragma GCC unroll 8
    for (int c = 0; c < G; c++) y[c] = x[G * q + c];
    if constexpr (G == 1) y[0] = unsorted<q>(y[0], typename Make<N>::type()); else part_all<G / 2, q>(y);
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) sets[g * R + q] = y[g];
  }
  template <int... q> static FX_INLINE_MEMBER void to_columns(const T* rows, V* x, Seq<q...>) {
    V from[K];
#pragma GCC unroll 16
    for (int v = 0; v < K; v++) from[v] = *(const typename Vec<T>::Loose*)(rows + v * N);
    (set_to_columns<q>(from, x), ...);
  }
  template <int... q> static FX_INLINE_MEMBER void to_rows(const V* x, T* rows, Seq<q...> sets) {
    V from[K]; (set_to_rows<q>(x, from), ...);
#pragma GCC unroll 8
    for (int g = 0; g < G; g++) ((*(typename Vec<T>::Loose*)(rows + (g * R + q) * N) = scatter<q>(from + g * R, sets)), ...);
  }
  static FX_INLINE_MEMBER void to_columns(const T* rows, V* x) { to_columns(rows, x, typename Make<R>::type()); }
  static FX_INLINE_MEMBER void to_rows(const V* x, T* rows) { to_rows(x, rows, typename Make<R>::type()); }
};

}}  // namespace
