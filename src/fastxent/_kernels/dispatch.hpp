// The tables that this build has, and the choice among those that this CPU runs.
#pragma once
#include <string.h>
#include "table.hpp"

namespace fx {
extern const Table table_baseline;
#if defined(__x86_64__) && !defined(FX_NO_AVX2)
extern const Table table_avx2;
#define FX_HAS_AVX2 1
#endif
#if defined(__x86_64__) && !defined(FX_NO_AVX512)
extern const Table table_avx512;
#define FX_HAS_AVX512 1
#endif

enum { MOST_TABLES = 3 };
// Tables of this build that this CPU runs, slowest first.
static inline int usable_tables(const Table** out) {
  int n = 0;
  out[n++] = &table_baseline;
#ifdef FX_HAS_AVX2
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) out[n++] = &table_avx2;
#endif
#ifdef FX_HAS_AVX512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")) out[n++] = &table_avx512;
#endif
  return n;
}
// The fastest, or the one named; null if there is none of that name.
static inline const Table* choose(const char* name) {
  const Table* tables[MOST_TABLES]; const int n = usable_tables(tables);
  if (!*name) return tables[n - 1];
  for (int i = 0; i < n; i++) if (!strcmp(name, tables[i]->name)) return tables[i];
  return 0;
}
}  // namespace fx
