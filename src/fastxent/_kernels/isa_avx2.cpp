#define FX_NS avx2
#include "isa.inc"
