#define FX_NS avx512
#include "isa.inc"
