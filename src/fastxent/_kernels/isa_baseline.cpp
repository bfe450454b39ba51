#define FX_NS baseline
#include "isa.inc"
