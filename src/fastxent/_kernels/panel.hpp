// The three products of a linear layer with many classes, around the kernel that turns a block of logits into their
// gradient: Z = X W + b, dW += X' Z, dX = Z W'.  W is the large matrix, X the small one: X lies in panels (product.hpp) for the
// first two products, strips of W and Z are packed where they are used, P classes at a time, and read from memory once a product.
//
// A strip of classes is summed over all of its rows by one thread, dX over a slice of the classes; slices follow from the shape
// alone and are added in their order: the same bits for any number of threads.
//
// Precision: a block's products and sums in T.
namespace FX_NS { namespace {
using fx::Panel;

// Rows of X into panels [begin, end)
template <class T> static void panel_gather(const Panel* p, ptrdiff_t begin, ptrdiff_t end) {
  typedef Shape<T> S;
  for (ptrdiff_t j = begin; j < end; j++) {
    const T* const from = (const T*)p->X + j * S::P * p->col; T* const to = (T*)p->panels + j * S::P * p->rows;
    const ptrdiff_t cols = p->d - j * S::P < S::P ? p->d - j * S::P : S::P;
    if (p->col == 1) pack_columns(from, p->row, p->rows, cols, to); else pack_rows(from, p->col, p->rows, cols, to);
  }
}

// Logits of the classes [begin, end), strip by strip, while a piece of X is in the cache
template <class T> static void panel_logits(const Panel* p, ptrdiff_t begin, ptrdiff_t end, char* scratch) {
  typedef Shape<T> S; const ptrdiff_t rows = p->rows; const T *W = (const T*)p->W, *bias = (const T*)p->bias;
  for (ptrdiff_t l = 0; l < p->d; l += fx::PANEL_DEPTH) {
    const ptrdiff_t depth = p->d - l < fx::PANEL_DEPTH ? p->d - l : fx::PANEL_DEPTH; T* const pack = (T*)scratch;
    for (ptrdiff_t k = begin; k < end; k += S::P) {
      const ptrdiff_t cols = end - k < S::P ? end - k : S::P; const T* const from = W + l * p->row_W + k * p->col_W;
      if (p->col_W == 1) pack_columns(from, p->row_W, depth, cols, pack); else pack_rows(from, p->col_W, depth, cols, pack);
      multiply<T>({(const T*)p->panels + l * rows, S::P, 1, S::P * rows}, rows, pack, depth, (T*)p->Z + k, p->K, cols, false, l == 0);
    }
  }
  if (!bias) return;
  for (ptrdiff_t r = 0; r < rows; r++) {
    T* const Z = (T*)p->Z + r * p->K;
    for (ptrdiff_t k = begin; k < end; k++) Z[k] += bias[k];
  }
}

// With the logits' gradient in Z: dW and db of the classes [begin, end), and what these add to dX, each if there is a place for it
template <class T> static void panel_grads(const Panel* p, ptrdiff_t begin, ptrdiff_t end, void* part, int fresh, char* scratch) {
  typedef Shape<T> S; const ptrdiff_t rows = p->rows, d = p->d, jump = S::P * rows, classes = end - begin;
  T *const G = (T*)scratch, *const pack = G + (classes + S::P - 1) / S::P * jump; const T *X = (const T*)p->panels, *W = (const T*)p->W;
  for (ptrdiff_t r = 0; r < rows; r++) {                             // into panels; the rows lie far apart
    const T* const from = (const T*)p->Z + r * p->K + begin;
    if (r + 4 < rows) for (ptrdiff_t c = 0; c < classes; c += 64 / (ptrdiff_t)sizeof(T)) __builtin_prefetch(from + 4 * p->K + c);
    ptrdiff_t c = 0; T* to = G + r * S::P;
    for (; c + S::P <= classes; c += S::P, to += jump) __builtin_memcpy(to, from + c, S::P * sizeof(T));
    if (c < classes) __builtin_memcpy(to, from + c, (classes - c) * sizeof(T));
    if (p->db) for (c = 0; c < classes; c++) p->db[begin + c] += from[c];
  }
  for (ptrdiff_t j = 0; p->dW && j < d; j += S::P)                   // a panel of X for all strips
    for (ptrdiff_t k = 0; k < classes; k += S::P) {
      const ptrdiff_t width = d - j < S::P ? d - j : S::P, cols = classes - k < S::P ? classes - k : S::P;
      const T *const x = X + j * rows, *const g = G + k * rows; T* const dW = (T*)p->dW + j * p->row_W + (begin + k) * p->col_W;
      if (p->col_W == 1) multiply<T>({x, 0, S::P, 0}, width, g, rows, dW, p->row_W, cols, false, p->first);
      else multiply<T>({g, 0, S::P, 0}, cols, x, rows, dW, p->col_W, width, false, p->first);
    }
  if (!part) return;
  for (ptrdiff_t j = 0; j < d; j += S::P)
    for (ptrdiff_t k = 0; k < classes; k += fx::PANEL_DEPTH) {
      const ptrdiff_t width = d - j < S::P ? d - j : S::P, depth = classes - k < fx::PANEL_DEPTH ? classes - k : fx::PANEL_DEPTH;
      const T* const from = W + j * p->row_W + (begin + k) * p->col_W;
      if (p->col_W == 1) pack_rows(from, p->row_W, depth, width, pack); else pack_columns(from, p->col_W, depth, width, pack);
      multiply<T>({G + k * rows, S::P, 1, jump}, rows, pack, depth, (T*)part + j, d, width, false, fresh && k == 0);
    }
}

// Rows [begin, end) of dX: the slices' parts (rows, d) in their order, which lie one after another
template <class T> static void panel_sum(const Panel* p, const void* parts, ptrdiff_t slices, ptrdiff_t begin, ptrdiff_t end, void* dX) {
  const ptrdiff_t n = (end - begin) * p->d, at = begin * p->d, size = p->rows * p->d; T* const to = (T*)dX + at;
  for (ptrdiff_t s = 0; s < slices; s++) {
    const T* const from = (const T*)parts + s * size + at;
    if (s) { for (ptrdiff_t i = 0; i < n; i++) to[i] += from[i]; } else __builtin_memcpy(to, from, n * sizeof(T));
  }
}

}}  // namespace
