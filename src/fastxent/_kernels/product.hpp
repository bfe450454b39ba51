// Matrix products in panels, for what wants to stand between two of them.
//
// A matrix (rows, width) in panels: P columns of all rows, row after row, then the next P.  A product goes through tiles of
// ROWS x P accumulators in registers; each number of the left operand is spread over a vector, rows of the right one are P
// contiguous numbers: a panel as it is, or P columns packed.  Lanes beyond the width hold anything.
namespace FX_NS { namespace {

template <class T> struct Shape {
#if FX_BYTES == 64 || defined(__aarch64__)
  enum { ROWS = 6, VECS = 4 };                                       // 24 accumulators of 32 registers
#elif FX_BYTES == 32
  enum { ROWS = 6, VECS = 2 };                                       // 12 of 16
#else
  enum { ROWS = 4, VECS = 2 };
#endif
  enum { N = Vec<T>::N, P = VECS * N, DEPTH = 128 < P ? P : 128 };   // DEPTH: summands per visit to a tile; packed, they fit L1
};

// C[r] = or += sum over p of a[r][p] b[p], b in rows of P numbers of which VECS vectors count.  The summands of a[r] are
// `step` apart, and after every `piece` of them the next piece starts `jump` further.
template <class T, int VECS> static void multiply_tile(const T* const* a, ptrdiff_t step, ptrdiff_t piece, ptrdiff_t jump,
                                                       const T* b, ptrdiff_t depth, T* const* c, bool fresh) {
  typedef typename Vec<T>::V V; typedef typename Vec<T>::Loose Loose; typedef Shape<T> S; V acc[S::ROWS][VECS];
#pragma GCC unroll 8
  for (int r = 0; r < S::ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECS; v++) acc[r][v] = fresh ? V{} : (V)*(const Loose*)(c[r] + v * S::N);
  for (ptrdiff_t start = 0; depth > 0; depth -= piece, start += jump) {
    const ptrdiff_t n = depth < piece ? depth : piece; ptrdiff_t at = start;
    for (ptrdiff_t p = 0; p < n; p++, at += step, b += S::P) {
      V right[VECS];
#pragma GCC unroll 4
      for (int v = 0; v < VECS; v++) right[v] = *(const V*)(b + v * S::N);
#pragma GCC unroll 8
      for (int r = 0; r < S::ROWS; r++) {
        const T left = a[r][at];
#pragma GCC unroll 4
        for (int v = 0; v < VECS; v++) acc[r][v] += left * right[v];
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < S::ROWS; r++)
#pragma GCC unroll 4
    for (int v = 0; v < VECS; v++) *(Loose*)(c[r] + v * S::N) = (V)acc[r][v];
}

// The left operand of a product: where row r begins, and how its summands lie.
template <class T> struct Left {
  const T* at; ptrdiff_t row, step, jump;
};
template <class T> FX_INLINE const T* row_of(const Left<T>& left, ptrdiff_t r) {
  if (left.row) return left.at + r * left.row;                       // rows of panels
  return left.at + r / Shape<T>::P * left.jump + r % Shape<T>::P;    // columns of panels
}

// `count` rows of C, `cols` numbers each and `pitch` apart; whole vectors are written where `padded` allows it.
template <class T> static void multiply(const Left<T>& left, ptrdiff_t count, const T* b, ptrdiff_t depth, T* c, ptrdiff_t pitch,
                                        ptrdiff_t cols, bool padded, bool fresh) {
  typedef Shape<T> S; const int vecs = (int)((cols + S::N - 1) / S::N); const bool direct = padded || cols == vecs * S::N;
  T spare[S::ROWS * S::P] = {}; const T* a[S::ROWS]; T* out[S::ROWS];
  for (ptrdiff_t i = 0; i < count; i += S::ROWS) {
    const ptrdiff_t n = count - i < S::ROWS ? count - i : S::ROWS;
    for (int r = 0; r < S::ROWS; r++) {                              // rows beyond the last repeat it into the spare tile
      a[r] = row_of(left, r < n ? i + r : count - 1);
      out[r] = direct && r < n ? c + (i + r) * pitch : spare + r * S::P;
      if (!direct && !fresh && r < n) __builtin_memcpy(out[r], c + (i + r) * pitch, cols * sizeof(T));
    }
    for (ptrdiff_t r = i + S::ROWS; r < count && r < i + 2 * S::ROWS; r++)   // the next tile, which may lie in memory
      for (ptrdiff_t at = 0; at < cols; at += 64 / (ptrdiff_t)sizeof(T)) __builtin_prefetch(c + r * pitch + at, 1);
    const ptrdiff_t piece = left.row ? S::P : depth;
    switch (vecs) {
      case 1: multiply_tile<T, 1>(a, left.step, piece, left.jump, b, depth, out, fresh); break;
      case 2: multiply_tile<T, 2>(a, left.step, piece, left.jump, b, depth, out, fresh); break;
#if FX_BYTES == 64 || defined(__aarch64__)
      case 3: multiply_tile<T, 3>(a, left.step, piece, left.jump, b, depth, out, fresh); break;
      case 4: multiply_tile<T, 4>(a, left.step, piece, left.jump, b, depth, out, fresh); break;
#endif
    }
    if (!direct) for (int r = 0; r < n; r++) __builtin_memcpy(c + (i + r) * pitch, spare + r * S::P, cols * sizeof(T));
  }
}

// Rows of W, P columns of them, zeros beyond `cols`
template <class T> static void pack_columns(const T* W, ptrdiff_t width, ptrdiff_t depth, ptrdiff_t cols, T* b) {
  typedef Shape<T> S; const ptrdiff_t lanes = (cols + S::N - 1) / S::N * S::N;
  if (cols == S::P) {
    for (ptrdiff_t p = 0; p < depth; p++) {
      for (int c = 0; c < S::P; c += 64 / (int)sizeof(T)) __builtin_prefetch(W + (p + 16) * width + c);
      __builtin_memcpy(b + p * S::P, W + p * width, S::P * sizeof(T));
    }
    return;
  }
  for (ptrdiff_t p = 0; p < depth; p++) {
    for (ptrdiff_t c = 0; c < cols; c++) b[p * S::P + c] = W[p * width + c];
    for (ptrdiff_t c = cols; c < lanes; c++) b[p * S::P + c] = 0;
  }
}
// Columns of W' from `cols` rows of W
template <class T> static void pack_rows(const T* W, ptrdiff_t width, ptrdiff_t depth, ptrdiff_t cols, T* b) {
  typedef Shape<T> S; const ptrdiff_t lanes = (cols + S::N - 1) / S::N * S::N;
  ptrdiff_t c = 0;
  for (; c + S::N <= cols; c += S::N) {
    ptrdiff_t p = 0;
    for (; p + S::N <= depth; p += S::N) tile<T>(W + c * width + p, width, b + p * S::P + c, S::P);
    for (; p < depth; p++) for (int k = 0; k < S::N; k++) b[p * S::P + c + k] = W[(c + k) * width + p];
  }
  for (; c < lanes; c++) for (ptrdiff_t p = 0; p < depth; p++) b[p * S::P + c] = c < cols ? W[c * width + p] : T(0);
}

}}  // namespace
