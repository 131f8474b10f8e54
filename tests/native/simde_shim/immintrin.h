// Stands in for the compiler's <immintrin.h> when PSY_EMULATE_AVX512 is on: every intrinsic becomes a
// function of plain C from SIMDe, so that the unchanged AVX-512 sources run on a processor without AVX-512.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#define SIMDE_NO_NATIVE
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>
