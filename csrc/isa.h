// Instruction-set levels: which were compiled, which this machine has, which one is used.
#pragma once

#include <string>
#include <vector>

namespace psyfast {

// In rising order: a level may be used wherever a higher one is.
enum class Isa { kPortable, kAvx2, kAvx512, kAvx512Bf16 };

const char* isa_name(Isa isa);

// Throws std::invalid_argument for a name that is no level.
Isa parse_isa(const std::string& name);

std::vector<Isa> compiled_isas();

// Compiled, and present in both the processor and the operating system.
std::vector<Isa> available_isas();

// Throws std::invalid_argument, naming what the machine has, when `isa` cannot run here.
void require_isa(Isa isa);

// The highest available level, or the one that PSYFAST_FORCE_ISA names; throws if that one is unknown or
// absent. Decided at the first call and kept for the life of the process.
Isa selected_isa();

}  // namespace psyfast
