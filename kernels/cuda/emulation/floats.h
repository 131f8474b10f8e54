// bf16 and fp16 as CUDA's headers name them: bits, and conversions that round to nearest, ties to even.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
  std::uint16_t bits;
};
struct __half {
  std::uint16_t bits;
};

inline std::uint32_t __float_as_uint(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}
inline float __uint_as_float(std::uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
inline int __float_as_int(float value) { return static_cast<int>(__float_as_uint(value)); }
inline float __int_as_float(int bits) { return __uint_as_float(static_cast<std::uint32_t>(bits)); }

inline float __bfloat162float(__nv_bfloat16 value) {
  return __uint_as_float(std::uint32_t{value.bits} << 16);
}
inline __nv_bfloat16 __float2bfloat16_rn(float value) {
  const std::uint32_t bits = __float_as_uint(value);
  if (std::isnan(value)) return {0x7FFF};
  return {static_cast<std::uint16_t>((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16)};
}

inline float __half2float(__half value) {
  const std::uint32_t sign = std::uint32_t{value.bits & 0x8000u} << 16;
  const std::uint32_t exponent = (value.bits >> 10) & 31, mantissa = value.bits & 1023;
  if (exponent == 31) return __uint_as_float(sign | 0x7F80'0000 | (mantissa << 13));
  if (exponent == 0) return std::ldexp(static_cast<float>(mantissa), -24) * (sign != 0 ? -1.0f : 1.0f);
  return __uint_as_float(sign | ((exponent + 112) << 23) | (mantissa << 13));
}
inline __half __float2half_rn(float value) {
  const std::uint32_t bits = __float_as_uint(value), sign = (bits >> 16) & 0x8000;
  const std::uint32_t magnitude = bits & 0x7FFF'FFFF;
  if (magnitude > 0x7F80'0000) return {static_cast<std::uint16_t>(0x7FFF)};
  if (magnitude >= 0x477F'F000)
    return {static_cast<std::uint16_t>(sign | 0x7C00)};  // rounds to 65,536 or more
  if (magnitude < 0x3880'0000) {                         // below 2^-14: steps of 2^-24
    const float steps = std::nearbyint(std::ldexp(std::fabs(value), 24));
    return {static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(steps))};
  }
  const std::uint32_t rounded = magnitude + 0xFFF + ((magnitude >> 13) & 1);
  return {static_cast<std::uint16_t>(sign | ((rounded - (112u << 23)) >> 13))};
}
