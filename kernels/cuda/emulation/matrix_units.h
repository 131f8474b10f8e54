// The warp's matrix instructions on a CPU: mma.m16n8k16 and ldmatrix, by the layouts of their fragments.
//
// Lane l = 4·g + t holds, of A [16, 16], rows g and g + 8 at columns 2t, 2t + 1 and 2t + 8, 2t + 9; of B [16,
// 8], column g at the same places of k; of C and D [16, 8], rows g and g + 8 at columns 2t, 2t + 1.
#pragma once

#include "cuda_emulation.h"

namespace psy::emulation {

struct Fragments {
  std::uint32_t a[4], b[2];
  float c[4];
};

using ToFloat = float (*)(std::uint16_t);

inline float bf16_value(std::uint16_t bits) { return __bfloat162float({bits}); }
inline float f16_value(std::uint16_t bits) { return __half2float({bits}); }

// D = A · B + C for a whole warp: products exact, their sum in double, rounded to fp32 once.
inline void multiply(std::array<Fragments*, kWarp>& lanes, ToFloat value) {
  float a[16][16], b[16][8];
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int reg = 0; reg < 4; ++reg) {
      for (int half = 0; half < 2; ++half) {
        const auto bits = static_cast<std::uint16_t>(lanes[lane]->a[reg] >> (16 * half));
        a[g + 8 * (reg & 1)][2 * t + half + 8 * (reg >> 1)] = value(bits);
      }
    }
    for (int reg = 0; reg < 2; ++reg) {
      for (int half = 0; half < 2; ++half) {
        b[2 * t + half + 8 * reg][g] = value(static_cast<std::uint16_t>(lanes[lane]->b[reg] >> (16 * half)));
      }
    }
  }
  double d[16][8] = {};
  for (int row = 0; row < 16; ++row) {
    for (int k = 0; k < 16; ++k) {
      for (int column = 0; column < 8; ++column) d[row][column] += double{a[row][k]} * double{b[k][column]};
    }
  }
  for (int lane = 0; lane < kWarp; ++lane) {
    const int g = lane / 4, t = lane % 4;
    for (int reg = 0; reg < 4; ++reg) {
      float& c = lanes[lane]->c[reg];
      c = static_cast<float>(d[g + 8 * (reg >> 1)][2 * t + (reg & 1)] + double{c});
    }
  }
}

inline void mma_m16n8k16(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2],
                         ToFloat value) {
  Fragments mine{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {c[0], c[1], c[2], c[3]}};
  mine = collective("mma", 0xFFFF'FFFFu, mine, [value](auto& lanes) { multiply(lanes, value); });
  std::copy(mine.c, mine.c + 4, c);
}

// Matrices of 8 rows of 16 bytes; lane 8·i + r brings the address of row r of matrix i. Plain, lane 4·g + t
// receives of each matrix row g at columns 2t, 2t + 1; transposed, column g at rows 2t, 2t + 1.
template <int kMatrices>
void ldmatrix(std::uint32_t (&out)[kMatrices], const void* row, bool transposed) {
  const auto rows = gathered(transposed ? "ldmatrix.trans" : "ldmatrix", 0xFFFF'FFFFu, row);
  const unsigned g = self()->lane / 4, t = self()->lane % 4;
  for (int matrix = 0; matrix < kMatrices; ++matrix) {
    std::uint16_t parts[2];
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned at_row = transposed ? 2 * t + half : g, column = transposed ? g : 2 * t + half;
      const void* start = rows[static_cast<unsigned>(8 * matrix) + at_row];
      if (reinterpret_cast<std::uintptr_t>(start) % 16 != 0) {
        throw std::runtime_error("emulation: ldmatrix reads a row that is not aligned to 16 bytes");
      }
      std::memcpy(&parts[half], static_cast<const char*>(start) + 2 * column, 2);
    }
    out[matrix] = parts[0] | std::uint32_t{parts[1]} << 16;
  }
}

}  // namespace psy::emulation
