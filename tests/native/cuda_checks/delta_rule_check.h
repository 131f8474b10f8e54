// short_convolution and delta_rule, emulated: a path of two chunks and a branch off its second one, against
// the recurrence token by token in double, on buffers of exactly the contract's sizes.
#pragma once

#include "delta_rule.h"
#include "operands.h"

namespace psy::cuda {

struct DeltaCase {
  static constexpr int kTrunk = 74, kFork = 70, kBranch = 5, kRows = kTrunk + kBranch, kTaps = 3;
  DeltaSizes sizes;
  std::vector<float> x, taps, log_decay, write;
  std::vector<std::int32_t> path;

  explicit DeltaCase(DeltaSizes of)
      : sizes(of),
        x(drawn(std::int64_t{kRows} * of.channels())),
        taps(drawn(std::int64_t{kTaps} * of.channels())),
        log_decay(drawn(std::int64_t{kRows} * of.num_value_heads)),
        write(log_decay.size()) {
    for (float& value : log_decay) value = -std::fabs(value) / 8.0f;
    for (float& value : write) value = 0.9f;
    for (int tap = 0; tap < kTaps; ++tap) {
      for (int row = 0; row < kRows; ++row) path.push_back(before(row, kTaps - 1 - tap));
    }
  }

  // The row so many positions before another on its path, −1 where it had not begun.
  static int before(int row, int steps) {
    for (; steps > 0 && row >= 0; --steps) row = row == kTrunk ? kFork - 1 : row - 1;
    return row;
  }

  std::vector<float> convolved() const {
    std::vector<float> y(x.size());
    short_convolution(x.data(), path.data(), taps.data(), y.data(), kRows, kTaps, sizes, nullptr);
    return y;
  }

  // Channel c of a row after the filter and silu, and, for q and k, its head's factor to unit length.
  double filtered(int row, int c) const {
    double sum = 0.0;
    for (int tap = 0; tap < kTaps; ++tap) {
      const std::int32_t from = path[static_cast<std::size_t>(tap * kRows + row)];
      if (from >= 0)
        sum += value_at(x, from * sizes.channels() + c) * value_at(taps, tap * sizes.channels() + c);
    }
    return sum / (1.0 + std::exp(-sum));
  }
  double expected(int row, int c) const {
    const int E = sizes.key_dim, keys = sizes.num_key_heads * E;
    if (c >= 2 * keys) return filtered(row, c);
    double squares = 1e-6;
    for (int e = 0; e < E; ++e) squares += std::pow(filtered(row, c / E * E + e), 2);
    return filtered(row, c) / std::sqrt(squares) / (c < keys ? std::sqrt(static_cast<double>(E)) : 1.0);
  }

  // Output of a head after one more token, which the state [E, V] takes in.
  std::vector<double> step(const std::vector<float>& qkv, int row, int head,
                           std::vector<double>& state) const {
    const int E = sizes.key_dim, V = sizes.value_dim, K = sizes.num_key_heads, H = sizes.num_value_heads;
    const std::int64_t q = std::int64_t{row} * sizes.channels() + head / (H / K) * E, k = q + K * E,
                       v = std::int64_t{row} * sizes.channels() + 2 * K * E + head * V;
    std::vector<double> out(static_cast<std::size_t>(V));
    for (int column = 0; column < V; ++column) {
      const auto of_state = [&](int e) -> double& { return state[static_cast<std::size_t>(e * V + column)]; };
      double known = 0.0, sum = 0.0;
      for (int e = 0; e < E; ++e) {
        of_state(e) *= std::exp(value_at(log_decay, row * H + head));
        known += of_state(e) * value_at(qkv, k + e);
      }
      const double wrote = value_at(write, row * H + head) * (value_at(qkv, v + column) - known);
      for (int e = 0; e < E; ++e) {
        of_state(e) += value_at(qkv, k + e) * wrote;
        sum += of_state(e) * value_at(qkv, q + e);
      }
      out[static_cast<std::size_t>(column)] = sum;
    }
    return out;
  }
};

// The trunk's two chunks and, in a group behind them, the branch's one, which begins with 6 of the trunk's
// rows.
inline std::vector<float> run_delta_rule(const DeltaCase& one, const std::vector<float>& qkv) {
  const int E = one.sizes.key_dim, V = one.sizes.value_dim, H = one.sizes.num_value_heads;
  std::vector<std::int32_t> rows(3 * kChunkRows, -1);
  for (int row = 0; row < DeltaCase::kTrunk; ++row) rows[static_cast<std::size_t>(row)] = row;
  for (int place = 0; place < 6 + DeltaCase::kBranch; ++place)
    rows[static_cast<std::size_t>(2 * kChunkRows + place)] =
        place < 6 ? 64 + place : DeltaCase::kTrunk + place - 6;
  const std::vector<std::int32_t> chunks{0, 0, 0, -1, 6, -1}, pieces{0, 2, -1, 2, 3, 0};
  const auto numbers = [](std::int64_t count) { return std::vector<float>(static_cast<std::size_t>(count)); };
  auto states = numbers(std::int64_t{H} * E * V), o = numbers(std::int64_t{DeltaCase::kRows} * H * V);
  const DeltaProblem problem{qkv.data(),    one.log_decay.data(), one.write.data(), rows.data(),
                             chunks.data(), pieces.data(),        states.data(),    o.data()};
  for (const DeltaGroup group : {DeltaGroup{0, 1, 0, 2}, DeltaGroup{1, 1, 2, 1}}) {
    const std::int64_t count = std::int64_t{group.num_chunks} * H * kChunkRows;
    auto w = numbers(count * E), u0 = numbers(count * V), mixing = numbers(count * kChunkRows),
         fading = numbers(2 * count);
    delta_rule(problem, {w.data(), u0.data(), mixing.data(), fading.data()}, group, one.sizes, nullptr);
  }
  return o;
}

inline void check_delta_rule(DeltaSizes sizes) {
  const DeltaCase one(sizes);
  const auto qkv = one.convolved();
  for (int row : {0, 1, 2, DeltaCase::kTrunk - 1, DeltaCase::kTrunk, DeltaCase::kTrunk + 1}) {
    for (int c = 0; c < sizes.channels(); ++c)
      expect_near(value_at(qkv, row * sizes.channels() + c), one.expected(row, c), 2e-5, "short_convolution");
  }
  const auto o = run_delta_rule(one, qkv);
  const int H = sizes.num_value_heads, V = sizes.value_dim;
  for (int head = 0; head < H; ++head) {
    std::vector<double> state(static_cast<std::size_t>(sizes.key_dim * V)), at_fork;
    for (int row = 0; row < DeltaCase::kRows; ++row) {
      if (row == DeltaCase::kTrunk) state = at_fork;
      const auto expected = one.step(qkv, row, head, state);
      if (row == DeltaCase::kFork - 1) at_fork = state;
      for (int column = 0; column < V; ++column)
        expect_near(value_at(o, (row * H + head) * V + column), value_at(expected, column), 2e-5,
                    "delta_rule");
    }
  }
}

// Heads that end inside of a tile, one that shares its keys, and one above all tiles.
inline void check_all_delta_rule() {
  check_delta_rule({1, 2, 20, 40});
  check_delta_rule({1, 1, 140, 130});
}

}  // namespace psy::cuda
