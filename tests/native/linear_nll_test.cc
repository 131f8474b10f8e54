// linear_nll without Python, for sanitizers: every level against a naive fp64 evaluation, with buffers of
// exactly the size that the contract names, so that one element too far is seen. Exits with 1 and says what
// differed.
#include "linear_nll.h"

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "bf16.h"

namespace psyfast {
namespace {

struct Problem {
  int64_t num_rows, vocab, hidden, num_options;
  Element lane;
  float scale, soft_cap;
  std::vector<float> x, norm_weight, head;
  std::vector<int64_t> target, option_id;
};

struct Scores {
  std::vector<float> nll, entropy, option_nll;
  std::vector<int64_t> argmax, rank;
};

Problem make_problem(int64_t num_rows, int64_t vocab, int64_t hidden, int64_t num_options, Element lane,
                     float soft_cap, std::mt19937& random) {
  std::normal_distribution<float> normal;
  std::uniform_int_distribution<int64_t> id(0, vocab - 1);
  std::uniform_int_distribution<int64_t> option(-1, vocab - 1);
  Problem p = {num_rows, vocab, hidden, num_options, lane, 1.25f, soft_cap, {}, {}, {}, {}, {}};
  for (int64_t i = 0; i < num_rows * hidden; ++i) p.x.push_back(normal(random));
  for (int64_t i = 0; i < hidden; ++i) p.norm_weight.push_back(normal(random));
  for (int64_t i = 0; i < vocab * hidden; ++i) p.head.push_back(normal(random) / std::sqrt(float(hidden)));
  for (int64_t i = 0; i < num_rows; ++i) p.target.push_back(id(random));
  for (int64_t i = 0; i < num_rows * num_options; ++i) p.option_id.push_back(option(random));
  return p;
}

Scores run(const Problem& p, Isa isa, int num_threads) {
  const size_t rows = static_cast<size_t>(p.num_rows);
  std::vector<uint32_t> panels(static_cast<size_t>(packed_words(p.vocab, p.hidden, p.lane)));
  pack_columns(p.head.data(), Element::kFp32, p.vocab, p.hidden, nullptr, p.vocab, p.lane, panels.data(),
               num_threads);
  Scores s = {std::vector<float>(rows), std::vector<float>(rows), std::vector<float>(p.option_id.size()),
              std::vector<int64_t>(rows), std::vector<int64_t>(rows)};
  const LinearNllArgs args = {p.x.data(),
                              p.num_rows,
                              p.hidden,
                              p.norm_weight.data(),
                              1e-5,
                              true,
                              panels.data(),
                              p.lane,
                              p.vocab,
                              p.scale,
                              p.soft_cap,
                              p.target.data(),
                              p.option_id.data(),
                              p.num_options,
                              s.nll.data(),
                              s.argmax.data(),
                              s.rank.data(),
                              s.entropy.data(),
                              s.option_nll.data()};
  linear_nll(args, isa, num_threads);
  return s;
}

double rounded(float value, Element lane) {
  return double(lane == Element::kBf16 ? float_from_bf16(bf16_from_float(value)) : value);
}

// The logits of one row, in fp64 from operands rounded as the lane says.
std::vector<double> naive_logits(const Problem& p, int64_t row) {
  const float* x = p.x.data() + row * p.hidden;
  double squares = 0.0;
  for (int64_t d = 0; d < p.hidden; ++d) squares += double(x[d]) * double(x[d]);
  const float inverse = float(1.0 / std::sqrt(squares / double(p.hidden) + 1e-5));
  std::vector<double> logits;
  for (int64_t v = 0; v < p.vocab; ++v) {
    double sum = 0.0;
    for (int64_t d = 0; d < p.hidden; ++d) {
      const float y = (x[d] * inverse) * (p.norm_weight[size_t(d)] + 1.0f);
      sum += rounded(y, p.lane) * rounded(p.head[size_t(v * p.hidden + d)], p.lane);
    }
    const double logit = sum * double(p.scale);
    logits.push_back(p.soft_cap == 0.0f ? logit : double(p.soft_cap) * std::tanh(logit / double(p.soft_cap)));
  }
  return logits;
}

void expect_near(double got, double expected, const std::string& what) {
  if (std::fabs(got - expected) <= 2e-5 * (1.0 + std::fabs(expected))) return;
  throw std::runtime_error(what + " is " + std::to_string(got) + ", expected " + std::to_string(expected));
}

void check(const Problem& p, Isa isa) {
  const Scores scores = run(p, isa, 1);
  const Scores threaded = run(p, isa, 3);
  for (size_t row = 0; row < size_t(p.num_rows); ++row) {
    const std::vector<double> logits = naive_logits(p, int64_t(row));
    double sum = 0.0;
    double weighted = 0.0;
    for (double logit : logits) sum += std::exp(logit);
    for (double logit : logits) weighted += logit * std::exp(logit) / sum;
    const std::string where = " of row " + std::to_string(row);
    expect_near(double(scores.nll[row]), std::log(sum) - logits[size_t(p.target[row])], "nll" + where);
    expect_near(double(scores.entropy[row]), std::log(sum) - weighted, "entropy" + where);
    for (size_t k = 0; k < size_t(p.num_options); ++k) {
      const size_t i = row * size_t(p.num_options) + k;
      if (p.option_id[i] < 0) continue;
      expect_near(double(scores.option_nll[i]), std::log(sum) - logits[size_t(p.option_id[i])],
                  "option" + where);
    }
    if (scores.nll[row] != threaded.nll[row] || scores.rank[row] != threaded.rank[row]) {
      throw std::runtime_error("three threads give other bits than one" + where);
    }
  }
}

void check_bad_target(Isa isa, std::mt19937& random) {
  Problem p = make_problem(2, 10, 4, 0, Element::kFp32, 0.0f, random);
  p.target[1] = 10;
  try {
    run(p, isa, 1);
  } catch (const std::invalid_argument&) {
    return;
  }
  throw std::runtime_error("a target outside the vocabulary was not refused");
}

}  // namespace
}  // namespace psyfast

int main() {
  using namespace psyfast;
  const int64_t shapes[][4] = {{0, 3, 2, 1},   {1, 1, 1, 0},    {2, 63, 7, 1},     {3, 64, 8, 2},
                               {5, 65, 9, 64}, {7, 200, 33, 3}, {13, 1025, 21, 5}, {31, 2100, 70, 2}};
  for (Isa isa : available_isas()) {
    std::mt19937 random(12345);
    try {
      for (const auto& shape : shapes) {
        for (Element lane : {Element::kFp32, Element::kBf16}) {
          for (float soft_cap : {0.0f, 3.0f}) {
            check(make_problem(shape[0], shape[1], shape[2], shape[3], lane, soft_cap, random), isa);
          }
        }
      }
      check_bad_target(isa, random);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", isa_name(isa), error.what());
      return 1;
    }
    std::printf("%s: ok\n", isa_name(isa));
  }
  return 0;
}
