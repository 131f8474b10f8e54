// attn_in, attn_out and mlp without Python, for sanitizers: every level against a naive fp64 evaluation, with
// buffers of exactly the size that the contract names. Exits with 1 and says what differed.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "attn_in.h"
#include "attn_out.h"
#include "cpu_checks/naive.h"
#include "mlp.h"

namespace psyfast {
namespace {

void check_mlp(const Shape& s, Isa isa, std::mt19937& random) {
  const int64_t D = s.hidden, F = s.feed_forward;
  const Floats x = draw(s.num_tokens * D, 1.0, random), scale = draw(D, 1.0, random);
  const Floats gate_up = draw(2 * F * D, 1.0 / std::sqrt(double(D)), random);
  const Floats down = draw(D * F, 1.0 / std::sqrt(double(F)), random);
  const std::vector<int64_t> order = gate_up_order(F);
  const std::vector<uint32_t> packed_up = packed(gate_up, 2 * F, D, order, s.lane);
  const std::vector<uint32_t> packed_down = packed(down, D, F, in_order(D), s.lane);
  const Floats norm = padded(scale, D);
  const auto run = [&](int num_threads) {
    Floats out = x;
    mlp({out.data(),
         s.num_tokens,
         D,
         {norm.data(), 1e-5},
         packed_up.data(),
         packed_down.data(),
         s.lane,
         F,
         Activation::kSilu,
         {nullptr, 0.0}},
        isa, num_threads);
    return out;
  };
  const Floats out = run(1);
  if (run(3) != out) throw std::runtime_error("mlp: three threads give other bits than one");
  for (int64_t t = 0; t < s.num_tokens; ++t) {
    const std::vector<double> y = normed(x.data() + t * D, scale, D, s.lane);
    std::vector<double> gated;
    for (int64_t f = 0; f < F; ++f) {
      const double gate = dot(y, gate_up, f, s.lane);
      gated.push_back(rounded(gate / (1.0 + std::exp(-gate)) * dot(y, gate_up, F + f, s.lane), s.lane));
    }
    for (int64_t d = 0; d < D; ++d) {
      const double expected = double(x[size_t(t * D + d)]) + dot(gated, down, d, s.lane);
      expect_near(double(out[size_t(t * D + d)]), expected, s.lane == Element::kFp32 ? 2e-5 : 2e-2, "mlp");
    }
  }
}

void check_attn_out(const Shape& s, bool gated, Isa isa, std::mt19937& random) {
  const int64_t D = s.hidden, width = s.num_heads * s.head_dim;
  const Floats x = draw(s.num_tokens * D, 1.0, random);
  const Floats weights = draw(D * width, 1.0 / std::sqrt(double(width)), random);
  const std::vector<uint32_t> o = stored(draw(s.num_tokens * width, 1.0, random), s.lane);
  const std::vector<uint32_t> panels = packed(weights, D, width, in_order(D), s.lane);
  const Floats scale = draw(D, 1.0, random), norm = padded(scale, D);
  const Floats gate_proj = draw(width * D, 1.0 / std::sqrt(double(D)), random);
  const std::vector<uint32_t> gate_panels = packed(gate_proj, width, D, in_order(width), s.lane);
  const OutputGate gate = {
      gated ? gate_panels.data() : nullptr, 0, {norm.data(), 1e-5}, GateActivation::kSilu};
  const auto run = [&](int num_threads) {
    Floats out = x;
    attn_out(
        {o.data(), s.num_tokens, width, panels.data(), s.lane, nullptr, {nullptr, 0.0}, out.data(), D, gate},
        isa, num_threads);
    return out;
  };
  const Floats out = run(1);
  if (run(3) != out) throw std::runtime_error("attn_out: three threads give other bits than one");
  for (int64_t t = 0; t < s.num_tokens; ++t) {
    std::vector<double> row;
    const std::vector<double> y = normed(x.data() + t * D, scale, D, s.lane);
    for (int64_t i = 0; i < width; ++i) {
      const double value = value_at(o, size_t(t * width + i), s.lane), z = dot(y, gate_proj, i, s.lane);
      row.push_back(gated ? rounded(z / (1.0 + std::exp(-z)) * value, s.lane) : value);
    }
    for (int64_t d = 0; d < D; ++d) {
      const double expected = double(x[size_t(t * D + d)]) + dot(row, weights, d, s.lane);
      const double tolerance = gated && s.lane == Element::kBf16 ? 2e-2 : 2e-5;
      expect_near(double(out[size_t(t * D + d)]), expected, tolerance, "attn_out");
    }
  }
}

// heads [first, last) of a row's products, normalised together: RMSNorm over all of them, times `scale` of
// each.
void norm_together(std::vector<double>& products, int64_t first, int64_t last, int64_t head_dim,
                   const Floats& scale) {
  double squares = 0.0;
  for (int64_t i = first * head_dim; i < last * head_dim; ++i)
    squares += products[size_t(i)] * products[size_t(i)];
  const double inverse = 1.0 / std::sqrt(squares / double((last - first) * head_dim) + 1e-5);
  for (int64_t i = first * head_dim; i < last * head_dim; ++i) {
    products[size_t(i)] *= inverse * double(scale[size_t(i - first * head_dim)]);
  }
}

// Each head's factors, padded to whole panels.
Floats padded_heads(const Floats& scale, int64_t num_heads, int64_t head_dim, int64_t columns) {
  Floats out(size_t(num_heads * columns + kVectorPadding), 0.0f);
  for (int64_t head = 0; head < num_heads; ++head) {
    for (int64_t e = 0; e < head_dim; ++e)
      out[size_t(head * columns + e)] = scale[size_t(head * head_dim + e)];
  }
  return out;
}

// Queries and keys turned, values as they are; the slot of token t is t + 3, so that no run begins a page.
// together: rows as they are, and q and k normalised over all heads; otherwise rows normalised, heads not.
void check_attn_in(const Shape& s, bool together, Isa isa, std::mt19937& random) {
  const int64_t D = s.hidden, E = s.head_dim, heads = s.num_heads + 2 * s.num_kv_heads, half = E / 2;
  const int64_t columns = (E + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
  const int64_t num_pages = (s.num_tokens + 3 + kPageSlots - 1) / kPageSlots + 1;
  const Floats x = draw(s.num_tokens * D, 1.0, random), scale = draw(D, 1.0, random);
  const Floats weights = draw(heads * E * D, 1.0 / std::sqrt(double(D)), random);
  std::vector<int64_t> order, position, slot;
  for (int64_t head = 0; head < heads; ++head) {
    for (int64_t e = 0; e < columns; ++e) order.push_back(e < E ? head * E + e : -1);
  }
  const std::vector<uint32_t> panels = packed(weights, heads * E, D, order, s.lane);
  const Floats norm = padded(scale, D), bias = padded({}, heads * columns);
  const Floats q_scale = draw(s.num_heads * E, 1.0, random), k_scale = draw(s.num_kv_heads * E, 1.0, random);
  const Floats q_norm = padded_heads(q_scale, s.num_heads, E, columns);
  const Floats k_norm = padded_heads(k_scale, s.num_kv_heads, E, columns);
  Floats cos, sin;
  for (int64_t t = 0; t < s.num_tokens; ++t) {
    position.push_back(t);
    slot.push_back(t + 3);
    for (int64_t i = 0; i < half; ++i) {
      cos.push_back(std::cos(float(t) / float(i + 1)));
      sin.push_back(std::sin(float(t) / float(i + 1)));
    }
  }
  // The page of the first slots is copied into the last page.
  const int64_t run_of_copies[4] = {0, num_pages - 1, 3, 3 + (s.num_tokens < 5 ? s.num_tokens : 5)};
  const KvPages sizes = kv_pages(nullptr, nullptr, num_pages, s.num_kv_heads, E, s.lane);
  struct Out {
    std::vector<uint32_t> q, k, v;
  };
  const auto run = [&](int num_threads) {
    const size_t q_words = size_t(inner_steps(s.num_tokens * s.num_heads * E, s.lane));
    Out out = {
        std::vector<uint32_t>(q_words),
        std::vector<uint32_t>(size_t(num_pages * s.num_kv_heads * sizes.k_steps * 64)),
        std::vector<uint32_t>(size_t(num_pages * s.num_kv_heads * sizes.v_panels * sizes.v_steps * 64))};
    AttnInArgs args = {};
    args.x = x.data();
    args.num_tokens = s.num_tokens;
    args.hidden = D;
    if (together) {
      args.q_norm = {q_norm.data(), 1e-5};
      args.k_norm = {k_norm.data(), 1e-5};
      args.heads_together = true;
    } else {
      args.norm = {norm.data(), 1e-5};
    }
    args.panels = panels.data();
    args.lane = s.lane;
    args.bias = bias.data();
    args.cos = cos.data();
    args.sin = sin.data();
    args.num_positions = s.num_tokens;
    args.num_pairs = half;
    args.num_heads = s.num_heads;
    args.pages = kv_pages(out.k.data(), out.v.data(), num_pages, s.num_kv_heads, E, s.lane);
    args.position = position.data();
    args.slot = slot.data();
    args.copy_run = run_of_copies;
    args.num_copy_runs = 1;
    args.num_rows = s.num_tokens;
    args.q = out.q.data();
    attn_in(args, isa, num_threads);
    return out;
  };
  const Out out = run(1), threaded = run(3);
  if (threaded.q != out.q || threaded.k != out.k || threaded.v != out.v) {
    throw std::runtime_error("attn_in: three threads give other bits than one");
  }
  const double tolerance = s.lane == Element::kFp32 ? 2e-5 : 2e-2;
  const int64_t a_step = s.lane == Element::kFp32 ? 1 : 2;
  for (int64_t t = 0; t < s.num_tokens; ++t) {
    std::vector<double> y, products;
    for (int64_t d = 0; d < D; ++d) y.push_back(rounded(double(x[size_t(t * D + d)]), s.lane));
    if (!together) y = normed(x.data() + t * D, scale, D, s.lane);
    for (int64_t i = 0; i < heads * E; ++i) products.push_back(dot(y, weights, i, s.lane));
    if (together) {
      norm_together(products, 0, s.num_heads, E, q_scale);
      norm_together(products, s.num_heads, s.num_heads + s.num_kv_heads, E, k_scale);
    }
    for (int64_t head = 0; head < heads; ++head) {
      for (int64_t e = 0; e < E; ++e) {
        double expected = products[size_t(head * E + e)];
        if (head < s.num_heads + s.num_kv_heads) {
          const size_t pair = size_t(t * half + e % half);
          const double partner = products[size_t(head * E + (e + half) % E)];
          expected = expected * double(cos[pair]) + (e < half ? -partner : partner) * double(sin[pair]);
        }
        for (int64_t copy = 0; copy < 2; ++copy) {
          const int64_t at = slot[size_t(t)];
          if (copy == 1 && (at >= run_of_copies[3] || head < s.num_heads)) continue;
          const int64_t page = copy == 1 ? num_pages - 1 : at / 64, place = at % 64;
          double got;
          if (head < s.num_heads) {
            got = value_at(out.q, size_t((t * s.num_heads + head) * E + e), s.lane);
          } else if (head < s.num_heads + s.num_kv_heads) {
            const int64_t row = (page * s.num_kv_heads + head - s.num_heads) * sizes.k_steps + e / a_step;
            got = value_at(out.k, size_t((row * 64 + place) * a_step + e % a_step), s.lane);
          } else {
            const int64_t kv = page * s.num_kv_heads + head - s.num_heads - s.num_kv_heads;
            const int64_t row = (kv * sizes.v_panels + e / 64) * sizes.v_steps + place / a_step;
            got = value_at(out.v, size_t((row * 64 + e % 64) * a_step + place % a_step), s.lane);
          }
          expect_near(got, expected, tolerance, "attn_in, head " + std::to_string(head));
        }
      }
    }
  }
}

}  // namespace
}  // namespace psyfast

int main() {
  using namespace psyfast;
  return check_shapes([](const Shape& shape, Isa isa, std::mt19937& random) {
    for (bool together : {false, true}) check_attn_in(shape, together, isa, random);
    for (bool gated : {false, true}) check_attn_out(shape, gated, isa, random);
    check_mlp(shape, isa, random);
  });
}
