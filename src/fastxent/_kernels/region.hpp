// Region losses (dice, Tversky): sums of true positives, false positives and false negatives over regions, and the gradient once
// their loss is known.  An array is (regions, outer, classes, inner); positions are pairs (outer, inner), lanes are positions.
// A region is all of one index of the first axis, or, with `per_class`, of one class of it.  In double.
namespace FX_NS { namespace {

template <class T> struct Overlap { D *p, *q, *t, *v; Dist d; };

// p, 1 - p, targets and weights of n positions of a region; 0 for lanes without one
template <class T> static void overlap_of(const fx::Region* a, ptrdiff_t region, ptrdiff_t i, ptrdiff_t n, Overlap<T>* o) {
  const ptrdiff_t K = a->classes, C = a->inner; const int wide = sizeof(T) == 8 ? fx::DOUBLE : fx::FLOAT; const D one = D{} + 1.;
  auto in = [&](const fx::Box& b) { return Matrix{b.at.data + region * b.region, b.at.outer, b.at.cls, b.at.inner}; };
  load_doubles<T, true>(a->storage, in(a->values), C, i, n, K, 0., o->p);
  load_doubles<T, true>(wide, in(a->targets), C, i, n, K, 0., o->t);
  if (a->weight.at.data) load_doubles<T, true>(wide, in(a->weight), C, i, n, K, 0., o->v);
  else { D v = {}; for (ptrdiff_t r = 0; r < n; r++) v[r] = 1; for (ptrdiff_t k = 0; k < K; k++) o->v[k] = v; }
  if (a->activation == fx::SOFTMAX) {
    for (ptrdiff_t k = 0; k < K; k++) o->q[k] = o->p[k];
    o->d.p = o->p; o->d.l = o->q; soften<true>(&o->d, K);
    for (ptrdiff_t k = 0; k < K; k++) o->q[k] = without(o->d, o->p[k]);
  } else if (a->activation == fx::SIGMOID) {
    for (ptrdiff_t k = 0; k < K; k++) {
      const D z = o->p[k], e = exp_down(z > 0. ? -z : z), big = 1. / (1. + e), small = e * big;
      o->p[k] = z > 0. ? big : small; o->q[k] = z > 0. ? small : big;
    }
  } else for (ptrdiff_t k = 0; k < K; k++) o->q[k] = one - o->p[k];
}

template <class T> static void region(const fx::Region* a, ptrdiff_t at, ptrdiff_t begin, ptrdiff_t end, double* sums, char* scratch) {
  const ptrdiff_t K = a->classes, rows = a->per_class ? K : 1; D* const s = (D*)scratch; D* const room = s + 3 * rows;
  Overlap<T> o; o.p = room; o.q = room + K; o.t = room + 2 * K; o.v = room + 3 * K;
  for (ptrdiff_t k = 0; k < 3 * rows; k++) s[k] = D{};
  for (ptrdiff_t i = begin; i < end; i += ND) {
    overlap_of<T>(a, at, i, end - i < ND ? end - i : ND, &o);
    for (ptrdiff_t k = 0; k < K; k++) {
      const D p = o.p[k], t = o.t[k], v = o.v[k]; D hit, wrong, missed; D* const to = s + (a->per_class ? 3 * k : 0);
      if (a->soft_labels) { const D over = p - t; hit = over > 0. ? t : p; wrong = over < 0. ? D{} : over; missed = over > 0. ? D{} : -over; }
      else { hit = p * t; wrong = p * (1. - t); missed = o.q[k] * t; }
      hit *= v; wrong *= v; missed *= v;
      to[0] += v == 0. ? D{} : hit; to[1] += v == 0. ? D{} : wrong; to[2] += v == 0. ? D{} : missed;
    }
  }
  for (ptrdiff_t k = 0; k < 3 * rows; k++) sums[k] = Lanes<false>::total(s[k])[0];
}

// d loss / d p = v (bend slopes[0] - hit slopes[1]), through the activation
template <class T> static void region_grad(const fx::Region* a, ptrdiff_t at, ptrdiff_t begin, ptrdiff_t end, double*, char* scratch) {
  const ptrdiff_t K = a->classes, rows = a->per_class ? K : 1; D* const room = (D*)scratch; const D one = D{} + 1., half = D{} + .5;
  const Matrix to = {a->grad.at.data + at * a->grad.region, a->grad.at.outer, a->grad.at.cls, a->grad.at.inner};
  const double* const slopes = a->slopes + at * rows * 2;
  Overlap<T> o; o.p = room; o.q = room + K; o.t = room + 2 * K; o.v = room + 3 * K;
  for (ptrdiff_t i = begin; i < end; i += ND) {
    const ptrdiff_t n = end - i < ND ? end - i : ND;
    overlap_of<T>(a, at, i, n, &o);
    for (ptrdiff_t k = 0; k < K; k++) {
      const D p = o.p[k], t = o.t[k], v = o.v[k]; const double* const by = slopes + (a->per_class ? 2 * k : 0); D hit, bend;
      if (a->soft_labels) {
        hit = p < t ? one : p > t ? D{} : half;
        bend = a->alpha * (p > t ? one : p < t ? D{} : half) - a->beta * hit;
      } else { hit = t; bend = a->alpha * (1. - t) - a->beta * t; }
      const D slope = (bend * by[0] - hit * by[1]) * v;
      o.t[k] = v == 0. ? D{} : slope;
    }
    if (a->activation == fx::SOFTMAX) {
      centre<true>(o.d, K, o.t);
      for (ptrdiff_t k = 0; k < K; k++) { const D g = o.t[k] * o.p[k]; o.t[k] = o.v[k] == 0. ? D{} : g; }
    } else if (a->activation == fx::SIGMOID)
      for (ptrdiff_t k = 0; k < K; k++) { const D g = o.t[k] * o.p[k] * o.q[k]; o.t[k] = o.v[k] == 0. ? D{} : g; }
    store_doubles<T, true>(a->storage, o.t, to, a->inner, i, n, K);
  }
}

}}  // namespace
