// The CUDA kernels without Python and without a GPU, for sanitizers: emulated, against plain loops in double,
// on buffers of exactly the size that the contract names, so that one element too far is seen. Exits with 1
// and says what differed.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.h"
#include "cuda_checks/delta_rule_check.h"
#include "cuda_checks/operands.h"
#include "linear_nll.h"
#include "rows.h"

namespace psy::cuda {
namespace {

double rstd_of(const std::vector<double>& values, double eps) {
  double squares = 0.0;
  for (double value : values) squares += value * value;
  return 1.0 / std::sqrt(squares / static_cast<double>(values.size()) + eps);
}

void check_norm_rows(Operand type, int width) {
  const std::int64_t num_rows = 3;
  const auto x = drawn(num_rows * width), weight = drawn(width);
  Operands y(type, x.size());
  norm_rows(x.data(), y.data(), num_rows, width, {weight.data(), 1e-5f, 1.0f}, type, nullptr);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    const std::vector<double> values(x.begin() + row * width, x.begin() + (row + 1) * width);
    const double rstd = rstd_of(values, 1e-5);
    for (int i = 0; i < width; ++i) {
      const double expected = value_at(x, row * width + i) * rstd * (value_at(weight, i) + 1.0);
      expect_near(y.at(row * width + i), expected, rounding_of(type), "norm_rows");
    }
  }
}

void check_add_rows(int width) {
  const std::int64_t num_rows = 2;
  auto x = drawn(num_rows * width);
  const auto before = x, y = drawn(num_rows * width), bias = drawn(width), weight = drawn(width);
  add_rows(x.data(), y.data(), bias.data(), num_rows, width, {weight.data(), 1e-6f, 0.0f}, nullptr);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    std::vector<double> values;
    for (int i = 0; i < width; ++i) values.push_back(value_at(y, row * width + i) + value_at(bias, i));
    const double rstd = rstd_of(values, 1e-6);
    for (int i = 0; i < width; ++i) {
      const double added = values[static_cast<std::size_t>(i)] * rstd * value_at(weight, i);
      expect_near(value_at(x, row * width + i), value_at(before, row * width + i) + added, 2e-5, "add_rows");
    }
  }
}

void check_gated(Operand type, int width) {
  const std::int64_t num_rows = 3;
  const auto gate_up = drawn(num_rows * 2 * width);
  Operands h(type, static_cast<std::size_t>(num_rows * width));
  gated(gate_up.data(), h.data(), num_rows, width, Activation::kSilu, type, nullptr);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    for (int i = 0; i < width; ++i) {
      const double gate = value_at(gate_up, row * 2 * width + i);
      const double expected = gate / (1.0 + std::exp(-gate)) * value_at(gate_up, row * 2 * width + width + i);
      expect_near(h.at(row * width + i), expected, rounding_of(type), "gated");
    }
  }
}

// One row's head by loops: bias, norm over `width` values from `norm_start`, rotation of the first pairs.
struct HeadCase {
  static constexpr int kHeads = 3, kKvHeads = 2, kWidth = 10, kPairs = 4, kRows = 3, kPages = 2;
  static constexpr int kRow = (kHeads + 2 * kKvHeads) * kWidth;
  std::vector<float> qkv = drawn(kRows * kRow), bias = drawn(kRow), cos = drawn(9 * kPairs),
                     sin = drawn(9 * kPairs);
  std::vector<float> q_weight, k_weight;
  std::vector<std::int64_t> positions{8, 0, 5}, slots{127, 0, 65};
  bool together;

  explicit HeadCase(bool norm_together) : together(norm_together) {
    q_weight = drawn(together ? kHeads * kWidth : kWidth);
    k_weight = drawn(together ? kKvHeads * kWidth : kWidth);
  }

  std::vector<double> expected(int row, int head) const {
    std::vector<double> all, values;
    for (int i = 0; i < kRow; ++i) all.push_back(value_at(qkv, row * kRow + i) + value_at(bias, i));
    values.assign(all.begin() + head * kWidth, all.begin() + (head + 1) * kWidth);
    if (head >= kHeads + kKvHeads) return values;
    const bool is_query = head < kHeads;
    const auto& weight = is_query ? q_weight : k_weight;
    const int first = is_query ? 0 : kHeads, count = is_query ? kHeads : kKvHeads;
    const std::vector<double> group(all.begin() + first * kWidth, all.begin() + (first + count) * kWidth);
    const double rstd = rstd_of(together ? group : values, 1e-6);
    for (int i = 0; i < kWidth; ++i) {
      values[static_cast<std::size_t>(i)] *=
          rstd * value_at(weight, together ? (head - first) * kWidth + i : i);
    }
    std::vector<double> turned = values;
    for (int pair = 0; pair < kPairs; ++pair) {
      const std::int64_t angle = positions[static_cast<std::size_t>(row)] * kPairs + pair;
      const double a = values[static_cast<std::size_t>(pair)],
                   b = values[static_cast<std::size_t>(pair + kPairs)];
      turned[static_cast<std::size_t>(pair)] = a * value_at(cos, angle) - b * value_at(sin, angle);
      turned[static_cast<std::size_t>(pair + kPairs)] = b * value_at(cos, angle) + a * value_at(sin, angle);
    }
    return turned;
  }
};

void check_heads(Operand type, bool together) {
  using Case = HeadCase;
  const Case made(together);
  Operands q(type, Case::kRows * Case::kHeads * Case::kWidth);
  Operands k(type, Case::kPages * Case::kKvHeads * kPageSlots * Case::kWidth);
  Operands v(type, k.size());
  heads(made.qkv.data(), made.bias.data(), {made.q_weight.data(), 1e-6f, 0.0f},
        {made.k_weight.data(), 1e-6f, 0.0f}, made.cos.data(), made.sin.data(), made.positions.data(),
        made.slots.data(), q.data(), k.data(), v.data(), Case::kRows,
        {Case::kHeads, Case::kKvHeads, Case::kWidth, Case::kPairs, together}, type, nullptr);
  for (int row = 0; row < Case::kRows; ++row) {
    for (int head = 0; head < Case::kHeads + 2 * Case::kKvHeads; ++head) {
      const std::vector<double> expected = made.expected(row, head);
      const std::int64_t slot = made.slots[static_cast<std::size_t>(row)];
      const int kv_head = (head - Case::kHeads) % Case::kKvHeads;
      const std::int64_t place =
          ((slot / kPageSlots * Case::kKvHeads + kv_head) * kPageSlots + slot % kPageSlots) * Case::kWidth;
      for (int i = 0; i < Case::kWidth; ++i) {
        const double got = head < Case::kHeads ? q.at((row * Case::kHeads + head) * Case::kWidth + i)
                           : head < Case::kHeads + Case::kKvHeads ? k.at(place + i)
                                                                  : v.at(place + i);
        expect_near(got, expected[static_cast<std::size_t>(i)], 2 * rounding_of(type), "heads");
      }
    }
  }
}

// Slots [3, 64) of page 0 and [0, 1) of page 1 to page 2; all else stays. skipped: elements before the pages,
// so that they do not begin at a multiple of 16 bytes.
void check_copy_slots(Operand type, int head_dim, std::size_t skipped) {
  const int num_kv_heads = 2, num_pages = 3;
  const auto a_page = static_cast<std::size_t>(num_kv_heads * kPageSlots * head_dim);
  Operands k(type, skipped + num_pages * a_page), v(type, k.size());
  std::vector<double> k_before, v_before;
  for (std::size_t i = skipped; i < k.size(); ++i) {
    k_before.push_back(k[i]);
    v_before.push_back(v[i]);
  }
  const std::vector<std::int64_t> runs{0, 2, 3, 64, 1, 2, 0, 1};
  const std::size_t start = skipped * Operands::bytes_each(type);
  copy_slots(static_cast<char*>(k.data()) + start, static_cast<char*>(v.data()) + start, runs.data(), 2,
             num_kv_heads, head_dim, type, nullptr);
  for (std::size_t i = 0; i < k_before.size(); ++i) {
    const auto slot = static_cast<std::int64_t>(i) / head_dim % kPageSlots;
    const std::size_t in_page = i % a_page;
    const bool is_copied = i >= 2 * a_page && (slot >= 3 || slot < 1);
    const std::size_t from = !is_copied ? i : slot >= 3 ? in_page : a_page + in_page;
    expect_near(k[skipped + i], k_before[from], 0.0, "copy_slots");
    expect_near(v[skipped + i], v_before[from], 0.0, "copy_slots");
  }
}

void check_linear_nll(Operand type, int num_rows, int hidden, int vocab, int num_slots, float soft_cap) {
  Operands y(type, static_cast<std::size_t>(num_rows * hidden)),
      lm_head(type, static_cast<std::size_t>(vocab * hidden), 2.0f / std::sqrt(static_cast<float>(hidden)));
  std::uniform_int_distribution<std::int64_t> id(-1, vocab - 1);
  std::vector<std::int64_t> ids(static_cast<std::size_t>(num_rows * num_slots));
  for (std::size_t i = 0; i < ids.size(); ++i) {
    ids[i] = i % static_cast<std::size_t>(num_slots) == 0 ? std::abs(id(random_bits)) : id(random_bits);
  }
  const std::size_t rows = static_cast<std::size_t>(num_rows),
                    partials = rows * static_cast<std::size_t>((vocab + kBlockTokens - 1) / kBlockTokens);
  std::vector<float> logits(ids.size()), nll(ids.size()), entropy(rows), m(partials), s(partials),
      t(partials), largest(partials);
  std::vector<int> first(partials), ahead(partials);
  std::vector<std::int64_t> argmax(rows), rank(rows);
  linear_nll({y.data(), lm_head.data(), ids.data(), num_rows, hidden, vocab, num_slots, 1.25f, soft_cap},
             logits.data(), {m.data(), s.data(), t.data(), largest.data(), first.data(), ahead.data()},
             {nll.data(), entropy.data(), argmax.data(), rank.data()}, type, nullptr);
  for (std::int64_t row = 0; row < num_rows; ++row) {
    std::vector<double> z;
    double sum = 0.0, weighted = 0.0;
    for (std::int64_t token = 0; token < vocab; ++token) {
      double product = 0.0;
      for (std::int64_t i = 0; i < hidden; ++i)
        product += y.at(row * hidden + i) * lm_head.at(token * hidden + i);
      product *= 1.25;
      z.push_back(soft_cap == 0.0f ? product : double{soft_cap} * std::tanh(product / double{soft_cap}));
      sum += std::exp(z.back());
    }
    for (double logit : z) weighted += logit * std::exp(logit) / sum;
    expect_near(value_at(entropy, row), std::log(sum) - weighted, 5e-5, "entropy");
    for (std::int64_t slot = 0; slot < num_slots; ++slot) {
      const std::int64_t at = row * num_slots + slot, wanted = ids[static_cast<std::size_t>(at)];
      if (wanted < 0) continue;
      expect_near(value_at(nll, at), std::log(sum) - z[static_cast<std::size_t>(wanted)], 5e-5, "nll");
    }
    const std::int64_t best = argmax[static_cast<std::size_t>(row)];
    for (double logit : z) {
      if (logit > value_at(z, best) + 1e-5) throw std::runtime_error("argmax is not the largest logit");
    }
  }
}

// Two segments that share no page: rows 0 to 2 see positions 0 to 69, rows 3 and 4 see 0 to 4; a query at
// position p sees keys up to p.
struct AttentionCase {
  std::vector<std::int64_t> positions{67, 68, 69, 3, 4};
  std::vector<int> tile_rows{0, 3, 3, 5}, index{0, 1, 0}, pages{2, 0, 1}, block_rows{0, 3, 0, 3, 3, 5},
      bounds{0, 0, 1, 2, 2, 2, 2, 3};
  AttentionTables tables() const {
    return {tile_rows.data(), bounds.data(), index.data(), pages.data(), block_rows.data(), 2};
  }
  int page_of(int row, int position) const { return row >= 3 ? 1 : position < kPageSlots ? 2 : 0; }
};

void check_attention(Operand type, int head_dim, int window, float soft_cap) {
  AttentionCase made;
  if (window != 0) made.bounds = {0, 0, 0, 2, 2, 2, 2, 3};  // a window may end in any block: none is whole
  const int num_heads = 2, num_rows = 5;
  Operands q(type, static_cast<std::size_t>(num_rows * num_heads * head_dim)), o(type, q.size());
  Operands k(type, static_cast<std::size_t>(3 * kPageSlots * head_dim)), v(type, k.size());
  const std::vector<float> sinks{0.5f, -1.0f};
  const bool with_sinks = window != 0;
  attention({q.data(), k.data(), v.data(), o.data(), made.positions.data(),
             with_sinks ? sinks.data() : nullptr, num_heads, 1, head_dim, 0.1f, soft_cap, window},
            made.tables(), type, nullptr);
  for (int row = 0; row < num_rows; ++row) {
    const int position = static_cast<int>(made.positions[static_cast<std::size_t>(row)]);
    for (int head = 0; head < num_heads; ++head) {
      const int q_start = (row * num_heads + head) * head_dim;
      double total = with_sinks ? std::exp(value_at(sinks, head)) : 0.0;
      std::vector<double> sums(static_cast<std::size_t>(head_dim));
      for (int key = window == 0 ? 0 : std::max(0, position - window + 1); key <= position; ++key) {
        const int start = (made.page_of(row, key) * kPageSlots + key % kPageSlots) * head_dim;
        double s = 0.0;
        for (int i = 0; i < head_dim; ++i) s += q.at(q_start + i) * k.at(start + i);
        s *= double{0.1f};
        const double p = std::exp(soft_cap == 0.0f ? s : double{soft_cap} * std::tanh(s / double{soft_cap}));
        total += p;
        for (int i = 0; i < head_dim; ++i) sums[static_cast<std::size_t>(i)] += p * v.at(start + i);
      }
      for (int i = 0; i < head_dim; ++i) {
        expect_near(o.at(q_start + i), sums[static_cast<std::size_t>(i)] / total, 2 * rounding_of(type),
                    "attention");
      }
    }
  }
}

constexpr Operand kTypes[] = {Operand::kFp32, Operand::kBf16, Operand::kFp16};

void check_all_rows() {
  for (Operand type : kTypes) {
    for (int width : {1, 8, 270, 1036}) {  // 8, 1036: 16 bytes at a time, all threads once and three twice
      check_norm_rows(type, width);
      check_gated(type, width);
    }
    for (bool together : {false, true}) check_heads(type, together);
    check_copy_slots(type, 6, 0);   // runs that begin and end inside of 16 bytes
    check_copy_slots(type, 64, 0);  // none does
    check_copy_slots(type, 64, 1);  // by elements
  }
  for (int width : {1, 8, 270, 1036}) check_add_rows(width);
}

void check_all_linear_nll() {
  for (Operand type : kTypes) {
    check_linear_nll(type, 2, 13, 70, 1, 4.0f);    // rows that asynchronous copies cannot take
    check_linear_nll(type, 3, 40, 1030, 3, 0.0f);  // aligned rows, two blocks of tokens
  }
}

void check_all_attention() {
  for (Operand type : kTypes) {
    check_attention(type, 64, 0, 0.0f);
    check_attention(type, 80, 5, 3.0f);
  }
  check_attention(Operand::kBf16, 256, 0, 0.0f);  // q stays in shared memory
}

}  // namespace
}  // namespace psy::cuda

// cuda_test [FILE]: of rows, linear_nll or attention the checks of that one's kernels alone.
int main(int count, char** arguments) {
  const std::string only = count > 1 ? arguments[1] : "";
  try {
    for (unsigned seed : {0u, 1u}) {
      psy::emulation::seed() = seed;
      if (only.empty() || only == "rows") psy::cuda::check_all_rows();
      if (only.empty() || only == "linear_nll") psy::cuda::check_all_linear_nll();
      if (only.empty() || only == "attention") psy::cuda::check_all_attention();
      if (only.empty() || only == "delta_rule") psy::cuda::check_all_delta_rule();
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "emulated CUDA kernels: %s\n", error.what());
    return 1;
  }
  std::printf("emulated CUDA kernels: ok\n");
  return 0;
}
