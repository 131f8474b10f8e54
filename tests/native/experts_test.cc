// experts without Python, for sanitizers: as linear_test.cc has the other operators of rows.
#include "experts.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cpu_checks/naive.h"
#include "mlp.h"

namespace psyfast {
namespace {

// The definition, in fp64: five experts with biases, two a token.
void check_experts(const Shape& s, Isa isa, std::mt19937& random) {
  const int64_t D = s.hidden, F = s.feed_forward, X = 5, used = 2, panels = (F + 31) / 32;
  const int64_t whole = (D + 63) / 64 * 64;
  const Floats x = draw(s.num_tokens * D, 1.0, random), scale = draw(D, 1.0, random);
  const Floats router = draw(X * D, 2.0 / std::sqrt(double(D)), random), router_bias = draw(X, 1.0, random);
  const std::vector<int64_t> order = gate_up_order(F);
  std::vector<Floats> gate_up, down;
  std::vector<std::vector<uint32_t>> packed_up, packed_down;
  std::vector<const uint32_t*> up_addresses, down_addresses;
  Floats up_bias(size_t(X * panels * 64)), down_bias(size_t(X * whole));
  const Floats up_values = draw(X * 2 * F, 1.0, random), down_values = draw(X * D, 1.0, random);
  for (int64_t e = 0; e < X; ++e) {
    gate_up.push_back(draw(2 * F * D, 1.0 / std::sqrt(double(D)), random));
    down.push_back(draw(D * F, 1.0 / std::sqrt(double(F)), random));
    packed_up.push_back(packed(gate_up.back(), 2 * F, D, order, s.lane));
    packed_down.push_back(packed(down.back(), D, F, in_order(D), s.lane));
    for (size_t c = 0; c < order.size(); ++c) {
      if (order[c] >= 0) up_bias[size_t(e * panels * 64) + c] = up_values[size_t(e * 2 * F + order[c])];
    }
    for (int64_t d = 0; d < D; ++d) down_bias[size_t(e * whole + d)] = down_values[size_t(e * D + d)];
  }
  for (int64_t e = 0; e < X; ++e) {
    up_addresses.push_back(packed_up[size_t(e)].data());
    down_addresses.push_back(packed_down[size_t(e)].data());
  }
  const std::vector<uint32_t> packed_router = packed(router, X, D, in_order(X), s.lane);
  const Floats norm = padded(scale, D), padded_bias = padded(router_bias, 64);
  const auto run = [&](int num_threads) {
    Floats out = x;
    experts({out.data(),
             s.num_tokens,
             D,
             {norm.data(), 1e-5},
             packed_router.data(),
             padded_bias.data(),
             X,
             used,
             true,
             up_addresses.data(),
             down_addresses.data(),
             up_bias.data(),
             down_bias.data(),
             s.lane,
             F,
             Activation::kSilu},
            isa, num_threads);
    return out;
  };
  const Floats out = run(1);
  if (run(3) != out) throw std::runtime_error("experts: three threads give other bits than one");
  for (int64_t t = 0; t < s.num_tokens; ++t) {
    const std::vector<double> y = normed(x.data() + t * D, scale, D, s.lane);
    std::vector<std::pair<double, int64_t>> logits;
    for (int64_t e = 0; e < X; ++e)
      logits.push_back({-dot(y, router, e, s.lane) - router_bias[size_t(e)], e});
    std::sort(logits.begin(), logits.end());
    if (logits[2].first - logits[1].first < 0.05) continue;  // a rounding may choose another
    std::vector<double> sum(size_t(D), 0.0);
    double shares = 0.0;
    for (int64_t j = 0; j < used; ++j) {
      const int64_t e = logits[size_t(j)].second;
      const double share = std::exp(logits[0].first - logits[size_t(j)].first);
      shares += share;
      std::vector<double> gated;
      for (int64_t f = 0; f < F; ++f) {
        const double gate = dot(y, gate_up[size_t(e)], f, s.lane) + up_values[size_t(e * 2 * F + f)];
        const double up = dot(y, gate_up[size_t(e)], F + f, s.lane) + up_values[size_t(e * 2 * F + F + f)];
        gated.push_back(rounded(gate / (1.0 + std::exp(-gate)) * up, s.lane));
      }
      for (int64_t d = 0; d < D; ++d) {
        sum[size_t(d)] += share * (dot(gated, down[size_t(e)], d, s.lane) + down_values[size_t(e * D + d)]);
      }
    }
    for (int64_t d = 0; d < D; ++d) {
      const double expected = double(x[size_t(t * D + d)]) + sum[size_t(d)] / shares;
      expect_near(double(out[size_t(t * D + d)]), expected, s.lane == Element::kFp32 ? 2e-5 : 3e-2,
                  "experts");
    }
  }
}

}  // namespace
}  // namespace psyfast

int main() {
  using namespace psyfast;
  return check_shapes(
      [](const Shape& shape, Isa isa, std::mt19937& random) { check_experts(shape, isa, random); });
}
