// attention without Python, for sanitizers: every level against a naive fp64 evaluation, over a trunk and two
// branches that share its pages. Exits with 1 and says what differed.
#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "bf16.h"

namespace psyfast {
namespace {

constexpr int64_t kTrunk = 330;
constexpr int64_t kForks[] = {70, 300};
constexpr int64_t kBranch = 5;

struct Problem {
  int64_t num_heads, num_kv_heads, head_dim;
  Element lane;
  int64_t window;
  float soft_cap;
};

// The trunk's pages, then those of each branch: copies up to the fork, its own tokens behind.
struct Tables {
  std::vector<int64_t> position, qo_indptr = {0}, kv_indptr = {0}, kv_indices;
  int64_t num_pages = 0;
};

Tables make_tables() {
  Tables t;
  const auto add = [&t](int64_t start, int64_t stop, int64_t shared_pages) {
    for (int64_t p = start; p < stop; ++p) t.position.push_back(p);
    t.qo_indptr.push_back(int64_t(t.position.size()));
    for (int64_t page = 0; page < shared_pages; ++page) t.kv_indices.push_back(page);
    for (int64_t page = shared_pages; page * kPageSlots < stop; ++page) t.kv_indices.push_back(t.num_pages++);
    t.kv_indptr.push_back(int64_t(t.kv_indices.size()));
  };
  add(0, kTrunk, 0);
  for (int64_t fork : kForks) add(fork, fork + kBranch, fork / kPageSlots);
  return t;
}

float rounded(float value, Element lane) {
  return lane == Element::kBf16 ? float_from_bf16(bf16_from_float(value)) : value;
}

// Plain keys and values [num_pages, 64, num_kv_heads, head_dim], and the same packed.
struct Keys {
  Keys(const Problem& p, const Tables& t, std::mt19937& random)
      : pages(kv_pages(nullptr, nullptr, t.num_pages, p.num_kv_heads, p.head_dim, p.lane)) {
    std::normal_distribution<float> normal;
    const size_t plain = size_t(t.num_pages * kPageSlots * p.num_kv_heads * p.head_dim);
    for (size_t i = 0; i < plain; ++i) k.push_back(rounded(normal(random), p.lane));
    for (size_t i = 0; i < plain; ++i) v.push_back(rounded(normal(random), p.lane));
    packed_k.resize(size_t(t.num_pages * p.num_kv_heads * pages.k_steps * 64));
    packed_v.resize(size_t(t.num_pages * p.num_kv_heads * pages.v_panels * pages.v_steps * 64));
    pages.k = packed_k.data();
    pages.v = packed_v.data();
    const int64_t shift = p.lane == Element::kBf16 ? 2 : 1;
    for (int64_t page = 0; page < t.num_pages; ++page) {
      for (int64_t slot = 0; slot < kPageSlots; ++slot) {
        for (int64_t head = 0; head < p.num_kv_heads; ++head) {
          for (int64_t e = 0; e < p.head_dim; ++e) {
            const int64_t base = page * p.num_kv_heads + head;
            const size_t from = size_t(((page * kPageSlots + slot) * p.num_kv_heads + head) * p.head_dim + e);
            put(packed_k[size_t((base * pages.k_steps + e / shift) * 64 + slot)], k[from], e % shift, p.lane);
            const int64_t panel = base * pages.v_panels + e / 64;
            put(packed_v[size_t((panel * pages.v_steps + slot / shift) * 64 + e % 64)], v[from], slot % shift,
                p.lane);
          }
        }
      }
    }
  }

  static void put(uint32_t& word, float value, int64_t half, Element lane) {
    if (lane == Element::kFp32) {
      std::memcpy(&word, &value, sizeof word);
    } else {
      word |= uint32_t(bf16_from_float(value)) << (16 * half);
    }
  }

  KvPages pages;
  std::vector<float> k, v;
  std::vector<uint32_t> packed_k, packed_v;
};

std::vector<double> naive(const Problem& p, const Tables& t, const Keys& keys, const std::vector<float>& q,
                          size_t query, size_t segment, int64_t head) {
  const int64_t kv_head = head / (p.num_heads / p.num_kv_heads);
  const int64_t position = t.position[query];
  std::vector<double> weights, out(size_t(p.head_dim), 0.0);
  double total = 0.0;
  for (int64_t key = 0; key <= position; ++key) {
    const int64_t page = t.kv_indices[size_t(t.kv_indptr[segment] + key / kPageSlots)];
    const size_t at =
        size_t(((page * kPageSlots + key % kPageSlots) * p.num_kv_heads + kv_head) * p.head_dim);
    double score = 0.0;
    for (size_t e = 0; e < size_t(p.head_dim); ++e) {
      score += double(q[(query * size_t(p.num_heads) + size_t(head)) * size_t(p.head_dim) + e]) *
               double(keys.k[at + e]);
    }
    score *= 0.3;
    if (p.soft_cap != 0.0f) score = double(p.soft_cap) * std::tanh(score / double(p.soft_cap));
    if (p.window != 0 && key + p.window <= position) continue;
    total += std::exp(score);
    for (size_t e = 0; e < size_t(p.head_dim); ++e) out[e] += std::exp(score) * double(keys.v[at + e]);
  }
  for (double& value : out) value /= total;
  return out;
}

template <class Stored>
std::vector<Stored> run(const Problem& p, const Tables& t, const Keys& keys, const std::vector<Stored>& q,
                        Isa isa, int num_threads, bool join) {
  std::vector<Stored> out(q.size());
  const AttentionArgs args = {q.data(),
                              out.data(),
                              p.lane,
                              int64_t(t.position.size()),
                              p.num_heads,
                              keys.pages,
                              t.position.data(),
                              t.qo_indptr.data(),
                              t.kv_indptr.data(),
                              t.kv_indices.data(),
                              int64_t(t.qo_indptr.size()) - 1,
                              0.3f,
                              p.soft_cap,
                              p.window,
                              nullptr,
                              join};
  attention(args, isa, num_threads);
  return out;
}

float value_of(float stored) { return stored; }
float value_of(uint16_t stored) { return float_from_bf16(stored); }
void store_as(float value, float& stored) { stored = value; }
void store_as(float value, uint16_t& stored) { stored = bf16_from_float(value); }

template <class Stored>
void check(const Problem& p, Isa isa, std::mt19937& random) {
  const Tables t = make_tables();
  const Keys keys(p, t, random);
  std::normal_distribution<float> normal;
  std::vector<Stored> q(t.position.size() * size_t(p.num_heads * p.head_dim));
  std::vector<float> q_values;
  for (Stored& stored : q) {
    store_as(normal(random), stored);
    q_values.push_back(value_of(stored));
  }
  const std::vector<Stored> out = run(p, t, keys, q, isa, 1, true);
  if (run(p, t, keys, q, isa, 3, false) != out)
    throw std::runtime_error("three threads give other bits than one");
  const double tolerance = p.lane == Element::kFp32 ? 1e-4 : 0.05;
  size_t segment = 0;
  for (size_t query = 0; query < t.position.size(); ++query) {
    while (int64_t(query) >= t.qo_indptr[segment + 1]) ++segment;
    if (query % 7 != 0 && segment == 0) continue;  // the naive one is slow
    for (int64_t head = 0; head < p.num_heads; ++head) {
      const std::vector<double> expected = naive(p, t, keys, q_values, query, segment, head);
      for (size_t e = 0; e < size_t(p.head_dim); ++e) {
        const double got =
            double(value_of(out[(query * size_t(p.num_heads) + size_t(head)) * size_t(p.head_dim) + e]));
        if (!(std::fabs(got - expected[e]) <= tolerance)) {
          throw std::runtime_error("query " + std::to_string(query) + " head " + std::to_string(head) +
                                   " dimension " + std::to_string(e) + " is " + std::to_string(got) +
                                   ", expected " + std::to_string(expected[e]));
        }
      }
    }
  }
}

}  // namespace
}  // namespace psyfast

int main() {
  using namespace psyfast;
  const Problem shapes[] = {{3, 1, 64, Element::kFp32, 0, 0.0f},  {4, 2, 16, Element::kFp32, 100, 0.0f},
                            {2, 2, 6, Element::kFp32, 0, 5.0f},   {2, 1, 80, Element::kFp32, 3, 0.0f},
                            {3, 1, 64, Element::kBf16, 0, 0.0f},  {4, 2, 16, Element::kBf16, 100, 0.0f},
                            {2, 1, 130, Element::kBf16, 0, 5.0f}, {1, 1, 7, Element::kBf16, 0, 0.0f}};
  for (Isa isa : available_isas()) {
    std::mt19937 random(12345);
    try {
      for (const Problem& p : shapes) {
        if (p.lane == Element::kFp32) {
          check<float>(p, isa, random);
        } else {
          check<uint16_t>(p, isa, random);
        }
      }
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", isa_name(isa), error.what());
      return 1;
    }
    std::printf("%s: ok\n", isa_name(isa));
  }
  return 0;
}
