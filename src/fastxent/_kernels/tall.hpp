// Products with few columns, C (R, K) = A (R, L) B (L, K) for K up to four vectors: the two products of a linear layer
// with few outputs, where BLAS, which packs for square matrices, reaches a tenth of the arithmetic or of the memory.
//
// Lanes are columns: a row of B is one to four vectors, an entry of A is broadcast from memory straight into the
// multiply-add, the tile of C stays in registers.  Nothing is packed but the few rows of W, padded to whole vectors with
// zeros.  Rows of Z stay K apart: a whole-vector load overruns into the next row (lanes that nobody stores), a store too,
// in ascending order, so that the next row overwrites the overrun; Z has a vector of room behind its last row.  A single
// column has code of its own, whose lanes run along the rows or columns of A.
//
// Precision: products and sums over a block of rows in T, sums over blocks in double.
namespace FX_NS { namespace {

using fx::Tall;

#if defined(__AVX512F__)
enum { TALL_TILE = 24 };                          // vectors of C in registers, of 32
#else
enum { TALL_TILE = 12 };                          // of 16
#endif
enum { TALL_MOST = 16 };

// C tile (R, V vectors): A(r, l) = a[r rs + l ls], one of rs and ls being 1.
template <class T, int V, int R, bool ACROSS> FX_INLINE void tall_tile(const T* a, ptrdiff_t rs, ptrdiff_t ls, ptrdiff_t L,
                                                                      const T* b, ptrdiff_t bs, typename Vec<T>::V (*c)[V]) {
  typedef typename Vec<T>::V Lane; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  Lane acc[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) acc[r][v] = c[r][v];
  const T* row[R];                                // rows of A where its entries l are neighbours
#pragma GCC unroll 16
  for (int r = 0; r < R; r++) row[r] = a + r * rs;
  for (ptrdiff_t l = 0; l < L; l++) {
    if (!ACROSS) __builtin_prefetch(a + R * rs + l * R);   // the next R rows, where they follow each other
    Lane w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) w[v] = *(const Loose*)(b + l * bs + v * N);
#pragma GCC unroll 16
    for (int r = 0; r < R; r++) {
      const T x = ACROSS ? a[l * ls + r] : row[r][l];
#pragma GCC unroll 4
      for (int v = 0; v < V; v++) acc[r][v] += x * w[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int v = 0; v < V; v++) c[r][v] = acc[r][v];
}

template <class T, int V, int R, bool ACROSS> struct TallRows {
  typedef typename Vec<T>::V Lane; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  // Z = bias + X W: C's rows go to z, K apart.
  static void forward(const Tall* t, ptrdiff_t begin) {
    const T *X = (const T*)t->X, *W = (const T*)t->W; T* Z = (T*)t->Z;
    ptrdiff_t i = begin;
    for (; i + R <= t->rows; i += R) {
      Lane c[R][V];
      for (int v = 0; v < V; v++) { const Lane bias = *(const Loose*)((const T*)t->bias + v * N); for (int r = 0; r < R; r++) c[r][v] = bias; }
      tall_tile<T, V, R, ACROSS>(X + i * t->row, t->row, t->col, t->d, W, V * N, c);
      for (int r = 0; r < R; r++) for (int v = 0; v < V; v++) *(Loose*)(Z + (i + r) * t->K + v * N) = c[r][v];
    }
    if (i < t->rows) TallRows<T, V, R / 2, ACROSS>::forward(t, i);
  }
  // sums += X' Z: C's rows are added to double ones, V vectors apart.
  static void backward(const Tall* t, ptrdiff_t begin) {
    const T *X = (const T*)t->X, *Z = (const T*)t->Z;
    ptrdiff_t j = begin;
    for (; j + R <= t->d; j += R) {
      Lane c[R][V] = {};
      tall_tile<T, V, R, ACROSS>(X + j * t->col, t->col, t->row, t->rows, Z, t->K, c);
      double* sums = t->sums + j * V * N;
      const T* flat = (const T*)c;
      for (int k = 0; k < R * V * N; k++) sums[k] += flat[k];
    }
    if (j < t->d) TallRows<T, V, R / 2, ACROSS>::backward(t, j);
  }
};
template <class T, int V, bool ACROSS> struct TallRows<T, V, 0, ACROSS> {
  static void forward(const Tall*, ptrdiff_t) {}
  static void backward(const Tall*, ptrdiff_t) {}
};

template <class T, int V> static void tall_vectors(const Tall* t, bool forward) {
  enum { R = TALL_TILE / V < TALL_MOST ? TALL_TILE / V : TALL_MOST, P = R < 8 ? R : 8 };   // P rows have a pointer each
  if (forward) { if (t->col == 1) TallRows<T, V, P, false>::forward(t, 0); else TallRows<T, V, R, true>::forward(t, 0); }
  else { if (t->col == 1) TallRows<T, V, R, true>::backward(t, 0); else TallRows<T, V, P, false>::backward(t, 0); }
}

// One column: lanes run along the neighbours in A.
//
// emit(i, a_i . w) for the n vectors a_i of L neighbours.
template <class T, class Emit> FX_INLINE void tall_dots(const T* a, ptrdiff_t n, ptrdiff_t stride, const T* w, ptrdiff_t L, Emit emit) {
  typedef typename Vec<T>::V Lane; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N, G = N < 8 ? N : 8 };
  const ptrdiff_t whole = L / N * N;
  for (ptrdiff_t i = 0; i < n; i += N) {
    Lane x[N];
    for (int g = 0; g < N; g += G) {
      const T* row[G]; Lane acc[G] = {};
#pragma GCC unroll 8
      for (int r = 0; r < G; r++) row[r] = a + (i + g + r < n ? i + g + r : n - 1) * stride;
      for (ptrdiff_t l = 0; l < whole; l += N) {
        const Lane v = *(const Loose*)(w + l);
#pragma GCC unroll 8
        for (int r = 0; r < G; r++) acc[r] += *(const Loose*)(row[r] + l) * v;
      }
      for (ptrdiff_t l = whole; l < L; l++)
#pragma GCC unroll 8
        for (int r = 0; r < G; r++) acc[r][0] += row[r][l] * w[l];
#pragma GCC unroll 8
      for (int r = 0; r < G; r++) x[g + r] = acc[r];
    }
    Stage<N, N / 2, Lane>::run(x);
    for (int r = 1; r < N; r++) x[0] += x[r];
    for (int r = 0; r < N && i + r < n; r++) emit(i + r, x[0][r]);
  }
}
// emit(l, sum over i of w_i a_i[l]) for the L places of the n vectors a_i.
template <class T, int R, class Emit> FX_INLINE void tall_combine(const T* a, ptrdiff_t n, ptrdiff_t stride, const T* w, ptrdiff_t begin, ptrdiff_t end, Emit emit) {
  typedef typename Vec<T>::V Lane; typedef typename Vec<T>::Loose Loose; enum { N = Vec<T>::N };
  for (ptrdiff_t l = begin; l + R * N <= end; l += R * N) {
    Lane acc[R] = {};
    for (ptrdiff_t i = 0; i < n; i++)
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) acc[r] += *(const Loose*)(a + i * stride + l + r * N) * w[i];
    const T* flat = (const T*)acc;
    for (int r = 0; r < R * N; r++) emit(l + r, flat[r]);
  }
}
template <class T, class Emit> FX_INLINE void tall_combination(const T* a, ptrdiff_t n, ptrdiff_t stride, const T* w, ptrdiff_t L, Emit emit) {
  enum { N = Vec<T>::N };
  ptrdiff_t l = L / (8 * N) * (8 * N), whole = L / N * N;
  tall_combine<T, 8>(a, n, stride, w, 0, l, emit);
  tall_combine<T, 4>(a, n, stride, w, l, whole, emit); l += (whole - l) / (4 * N) * (4 * N);
  tall_combine<T, 1>(a, n, stride, w, l, whole, emit);
  for (l = whole; l < L; l++) { T sum = 0; for (ptrdiff_t i = 0; i < n; i++) sum += a[i * stride + l] * w[i]; emit(l, sum); }
}
template <class T> static void tall_column(const Tall* t, bool forward) {
  const T *X = (const T*)t->X, *W = (const T*)t->W, bias = *(const T*)t->bias; T* Z = (T*)t->Z; double* sums = t->sums;
  auto logit = [=](ptrdiff_t i, T z) { Z[i] = bias + z; };
  auto add = [=](ptrdiff_t j, T s) { sums[j] += s; };
  if (t->col == 1) {
    if (forward) tall_dots(X, t->rows, t->row, W, t->d, logit); else tall_combination(X, t->rows, t->row, Z, t->d, add);
  } else {
    if (forward) tall_combination(X, t->d, t->col, W, t->rows, logit); else tall_dots(X, t->d, t->col, Z, t->rows, add);
  }
}

template <class T> static void tall_any(const Tall* t, bool forward) {
  if (t->K == 1) return tall_column<T>(t, forward);
  switch ((t->K + Vec<T>::N - 1) / Vec<T>::N) {
    case 1: tall_vectors<T, 1>(t, forward); break;
    case 2: tall_vectors<T, 2>(t, forward); break;
    case 3: tall_vectors<T, 3>(t, forward); break;
    default: tall_vectors<T, 4>(t, forward);
  }
}
template <class T> static void tall_logits(const Tall* t) { tall_any<T>(t, true); }
template <class T> static void tall_sums(const Tall* t) { tall_any<T>(t, false); }

}}  // namespace
