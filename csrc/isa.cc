#include "isa.h"

#include <algorithm>
#include <cstdlib>
#include <stdexcept>

namespace psyfast {
namespace {

constexpr Isa kAllIsas[] = {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Bf16};

bool compiled(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return true;
#ifdef PSY_HAVE_AVX2
    case Isa::kAvx2:
      return true;
#endif
#ifdef PSY_HAVE_AVX512
    case Isa::kAvx512:
      return true;
#endif
#ifdef PSY_HAVE_AVX512_BF16
    case Isa::kAvx512Bf16:
      return true;
#endif
    default:
      return false;
  }
}

// __builtin_cpu_supports reads CPUID and, for AVX and AVX-512, whether the operating system saves the
// registers (XGETBV).
bool machine_has(Isa isa) {
  if (isa == Isa::kPortable) return true;
#ifdef PSY_EMULATE_AVX512
  if (isa != Isa::kAvx2) return true;  // test build: AVX-512 intrinsics are functions of plain C
#endif
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::kAvx2) return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (isa == Isa::kAvx512) return avx512;
#ifdef PSY_HAVE_AVX512_BF16
  if (isa == Isa::kAvx512Bf16) return avx512 && __builtin_cpu_supports("avx512bf16");
#endif
#endif
  return false;
}

std::string join(const std::vector<Isa>& isas) {
  std::string names;
  for (Isa isa : isas) names += (names.empty() ? "" : ", ") + std::string(isa_name(isa));
  return names;
}

Isa choose() {
  const char* forced = std::getenv("PSYFAST_FORCE_ISA");
  if (forced == nullptr || *forced == '\0') return available_isas().back();
  try {
    const Isa isa = parse_isa(forced);
    require_isa(isa);
    return isa;
  } catch (const std::invalid_argument& error) {
    throw std::invalid_argument("PSYFAST_FORCE_ISA: " + std::string(error.what()));
  }
}

}  // namespace

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
  }
  return "unknown";
}

Isa parse_isa(const std::string& name) {
  for (Isa isa : kAllIsas) {
    if (name == isa_name(isa)) return isa;
  }
  throw std::invalid_argument("unknown ISA level '" + name +
                              "', expected portable, avx2, avx512 or avx512_bf16; this machine has " +
                              join(available_isas()));
}

std::vector<Isa> compiled_isas() {
  std::vector<Isa> isas;
  std::copy_if(std::begin(kAllIsas), std::end(kAllIsas), std::back_inserter(isas), compiled);
  return isas;
}

std::vector<Isa> available_isas() {
  std::vector<Isa> isas;
  for (Isa isa : compiled_isas()) {
    if (machine_has(isa)) isas.push_back(isa);
  }
  return isas;
}

void require_isa(Isa isa) {
  const std::vector<Isa> isas = available_isas();
  if (std::find(isas.begin(), isas.end(), isa) != isas.end()) return;
  const std::string why = compiled(isa) ? "this machine lacks it" : "this build was compiled without it";
  throw std::invalid_argument("ISA level '" + std::string(isa_name(isa)) + "' cannot run: " + why +
                              "; it has " + join(isas) + ", choose one of these");
}

Isa selected_isa() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace psyfast
