// Stands in for the compiler's <immintrin.h> when PSY_EMULATE_AVX512 is on: every intrinsic becomes a
// function of plain C from SIMDe, so that the unchanged AVX-512 sources run on a processor without AVX-512.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_NATIVE
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

// SIMDe lacks vcvtne2ps2bf16: round to nearest even, a NaN stays one; the first operand gives the upper half.
static inline unsigned short psy_bf16_from_float(float value) {
  unsigned bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return (unsigned short)((bits >> 16) | 0x40u);
  return (unsigned short)((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
static inline simde__m512bh _mm512_cvtne2ps_pbh(simde__m512 high, simde__m512 low) {
  float values[32];
  unsigned short halves[32];
  __builtin_memcpy(values, &low, sizeof low);
  __builtin_memcpy(values + 16, &high, sizeof high);
  for (int i = 0; i < 32; ++i) halves[i] = psy_bf16_from_float(values[i]);
  simde__m512bh pairs;
  __builtin_memcpy(&pairs, halves, sizeof pairs);
  return pairs;
}

// SIMDe lacks vpmovzxwd in 512 bits.
static inline simde__m512i _mm512_cvtepu16_epi32(simde__m256i halves) {
  unsigned short values[16];
  unsigned words[16];
  __builtin_memcpy(values, &halves, sizeof values);
  for (int i = 0; i < 16; ++i) words[i] = values[i];
  simde__m512i widened;
  __builtin_memcpy(&widened, words, sizeof widened);
  return widened;
}
