// delta_rule without Python, for sanitizers: every level against the plain recurrence in fp64 along each path
// of a forest, with buffers of exactly the size that the contract names. Exits with 1 and says what differed.
#include "delta_rule.h"

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

typedef std::vector<float> Floats;
typedef std::vector<int64_t> Ints;

struct Shape {
  int64_t hidden, key_heads, value_heads, key_dim, value_dim, taps;
  Element lane;
};

// Segments as the operator takes them: rows, position of the first, the row before it.
struct Forest {
  Ints qo_indptr = {0}, start, parent_row, before;  // before: of each row

  void add(int64_t parent, int64_t count) {
    const int64_t first = qo_indptr.back();
    int64_t position = 0;
    for (int64_t row = parent; row >= 0; row = before[size_t(row)]) ++position;
    start.push_back(position);
    parent_row.push_back(parent);
    for (int64_t i = 0; i < count; ++i) before.push_back(i == 0 ? parent : first + i - 1);
    qo_indptr.push_back(first + count);
  }
  int64_t num_rows() const { return qo_indptr.back(); }
};

Forest make_forest() {
  Forest forest;
  forest.add(-1, 150);  // rows 0 to 149
  forest.add(2, 1);
  forest.add(62, 3);    // forks at 63, over the border
  forest.add(63, 2);    // forks at 64
  forest.add(100, 90);  // over a border, with forks of its own
  forest.add(forest.num_rows() - 1, 2);
  forest.add(forest.num_rows() - 40, 5);
  forest.add(149, 4);
  forest.add(-1, 64);  // ends at a border, and one goes on there
  forest.add(forest.num_rows() - 1, 3);
  forest.add(-1, 1);
  return forest;
}

Floats draw(int64_t count, double scale, std::mt19937& random) {
  std::normal_distribution<float> normal(0.0f, static_cast<float>(scale));
  Floats values;
  for (int64_t i = 0; i < count; ++i) values.push_back(normal(random));
  return values;
}

double rounded(double value, Element lane) {
  return lane == Element::kBf16 ? double(float_from_bf16(bf16_from_float(float(value)))) : value;
}

struct Weights {
  Weights(const Shape& s, std::mt19937& random)
      : channels(2 * s.key_heads * s.key_dim + s.value_heads * s.value_dim),
        qkv(draw(channels * s.hidden, 1.0 / std::sqrt(double(s.hidden)), random)),
        decay_write(draw(2 * s.value_heads * s.hidden, 1.0 / std::sqrt(double(s.hidden)), random)),
        filter(draw(channels * s.taps, 0.7, random)),
        log_rate(draw(s.value_heads, 1.0, random)),
        time_bias(draw(s.value_heads, 1.0, random)),
        head_norm(draw(s.value_dim, 1.0, random)) {}
  int64_t channels;
  Floats qkv, decay_write, filter, log_rate, time_bias, head_norm;
};

int64_t whole_panels(int64_t columns) {
  return (columns + kPanelColumns - 1) / kPanelColumns * kPanelColumns;
}

// The channel in each column, a key head after the other: its q, its k, its value heads.
Ints channel_order(const Shape& s) {
  Ints order;
  const auto put = [&order](int64_t first, int64_t count) {
    for (int64_t i = 0; i < whole_panels(count); ++i) order.push_back(i < count ? first + i : -1);
  };
  const int64_t shared = s.value_heads / s.key_heads, values = 2 * s.key_heads * s.key_dim;
  for (int64_t head = 0; head < s.key_heads; ++head) {
    put(head * s.key_dim, s.key_dim);
    put((s.key_heads + head) * s.key_dim, s.key_dim);
    for (int64_t r = 0; r < shared; ++r) put(values + (head * shared + r) * s.value_dim, s.value_dim);
  }
  return order;
}

std::vector<uint32_t> packed(const Floats& weights, int64_t rows, int64_t inner, const Ints& order,
                             Element lane) {
  std::vector<uint32_t> words(size_t(packed_words(int64_t(order.size()), inner, lane)));
  pack_columns(weights.data(), Element::kFp32, rows, inner, order.data(), int64_t(order.size()), lane,
               words.data(), 2);
  return words;
}

// Taps in the columns' order, [key heads, taps, columns].
Floats filter_of(const Shape& s, const Weights& w, const Ints& order) {
  const int64_t columns = int64_t(order.size()) / s.key_heads;
  Floats out;
  for (int64_t head = 0; head < s.key_heads; ++head) {
    for (int64_t tap = 0; tap < s.taps; ++tap) {
      for (int64_t c = 0; c < columns; ++c) {
        const int64_t channel = order[size_t(head * columns + c)];
        out.push_back(channel < 0 ? 0.0f : w.filter[size_t(channel * s.taps + tap)]);
      }
    }
  }
  return out;
}

// Products of a row with a matrix of the lane's operands.
std::vector<double> times(const Floats& x, int64_t row, const Floats& matrix, const Shape& s) {
  std::vector<double> out(matrix.size() / size_t(s.hidden), 0.0);
  for (size_t o = 0; o < out.size(); ++o) {
    for (int64_t d = 0; d < s.hidden; ++d) {
      out[o] += rounded(double(x[size_t(row * s.hidden + d)]), s.lane) *
                rounded(double(matrix[o * size_t(s.hidden) + size_t(d)]), s.lane);
    }
  }
  return out;
}

// What every value head of the path's last row gives, [value heads, value_dim], by the plain recurrence.
std::vector<double> truth_of(const Ints& path, const Floats& x, const Weights& w, const Shape& s) {
  const int64_t E = s.key_dim, V = s.value_dim, shared = s.value_heads / s.key_heads;
  std::vector<std::vector<double>> projected;
  std::vector<double> states(size_t(s.value_heads * E * V), 0.0), out(size_t(s.value_heads * V));
  for (size_t t = 0; t < path.size(); ++t) {
    projected.push_back(times(x, path[t], w.qkv, s));
    std::vector<double> mixed(size_t(w.channels), 0.0);
    for (int64_t c = 0; c < w.channels; ++c) {
      for (int64_t back = 0; back < s.taps && back <= int64_t(t); ++back) {
        mixed[size_t(c)] +=
            projected[t - size_t(back)][size_t(c)] * double(w.filter[size_t(c * s.taps + s.taps - 1 - back)]);
      }
      mixed[size_t(c)] /= 1.0 + std::exp(-mixed[size_t(c)]);
    }
    const std::vector<double> ab = times(x, path[t], w.decay_write, s);
    for (int64_t h = 0; h < s.value_heads; ++h) {
      const double* q = mixed.data() + h / shared * E;
      const double* k = q + s.key_heads * E;
      const double* v = mixed.data() + 2 * s.key_heads * E + h * V;
      double* state = states.data() + h * E * V;
      double q_squares = kUnitEps, k_squares = kUnitEps;
      for (int64_t e = 0; e < E; ++e) {
        q_squares += q[e] * q[e];
        k_squares += k[e] * k[e];
      }
      const double a = ab[size_t(h)] + double(w.time_bias[size_t(h)]);
      const double decay = std::exp(-std::exp(double(w.log_rate[size_t(h)])) * std::log1p(std::exp(a)));
      const double write = 1.0 / (1.0 + std::exp(-ab[size_t(s.value_heads + h)]));
      double squares = 0.0;
      for (int64_t c = 0; c < V; ++c) {
        double known = 0.0, read = 0.0;
        for (int64_t e = 0; e < E; ++e) {
          state[e * V + c] *= decay;
          known += state[e * V + c] * k[e] / std::sqrt(k_squares);
        }
        for (int64_t e = 0; e < E; ++e) {
          state[e * V + c] += k[e] / std::sqrt(k_squares) * write * (v[c] - known);
          read += state[e * V + c] * q[e] / std::sqrt(q_squares) / std::sqrt(double(E));
        }
        out[size_t(h * V + c)] = read;
        squares += read * read;
      }
      const double inverse = 1.0 / std::sqrt(squares / double(V) + 1e-6);
      for (int64_t c = 0; c < V; ++c) out[size_t(h * V + c)] *= inverse * double(w.head_norm[size_t(c)]);
    }
  }
  return out;
}

double value_at(const std::vector<uint32_t>& words, int64_t i, Element lane) {
  if (lane == Element::kFp32) {
    float value;
    std::memcpy(&value, &words[size_t(i)], 4);
    return double(value);
  }
  uint16_t half;
  std::memcpy(&half, reinterpret_cast<const char*>(words.data()) + 2 * i, 2);
  return double(float_from_bf16(half));
}

void check(const Shape& s, Isa isa, std::mt19937& random) {
  const Forest forest = make_forest();
  const int64_t T = forest.num_rows(), width = s.value_heads * s.value_dim;
  const Floats x = draw(T * s.hidden, 1.0, random);
  const Weights w(s, random);
  const Ints order = channel_order(s);
  Ints heads_order;
  for (int64_t i = 0; i < whole_panels(2 * s.value_heads); ++i) {
    heads_order.push_back(i < 2 * s.value_heads ? i : -1);
  }
  const std::vector<uint32_t> panels = packed(w.qkv, w.channels, s.hidden, order, s.lane);
  const std::vector<uint32_t> ab = packed(w.decay_write, 2 * s.value_heads, s.hidden, heads_order, s.lane);
  const Floats filter = filter_of(s, w, order);
  Floats head_norm = w.head_norm;
  head_norm.resize(size_t(s.value_dim + kVectorPadding), 0.0f);
  const auto run = [&](int num_threads) {
    std::vector<uint32_t> o(size_t(s.lane == Element::kFp32 ? T * width : (T * width + 1) / 2), 0);
    delta_rule({x.data(),
                T,
                s.hidden,
                {nullptr, 0.0},
                panels.data(),
                ab.data(),
                s.lane,
                filter.data(),
                w.log_rate.data(),
                w.time_bias.data(),
                {head_norm.data(), 1e-6},
                s.key_heads,
                s.value_heads,
                s.key_dim,
                s.value_dim,
                s.taps,
                int64_t(forest.start.size()),
                forest.qo_indptr.data(),
                forest.start.data(),
                forest.parent_row.data(),
                o.data()},
               isa, num_threads);
    return o;
  };
  const std::vector<uint32_t> o = run(1);
  if (run(3) != o) throw std::runtime_error("three threads give other bits than one");
  const double tolerance = s.lane == Element::kFp32 ? 2e-4 : 2e-2;
  for (size_t segment = 0; segment < forest.start.size(); ++segment) {
    const int64_t last = forest.qo_indptr[segment + 1] - 1;
    Ints path;
    for (int64_t row = last; row >= 0; row = forest.before[size_t(row)]) path.push_back(row);
    std::reverse(path.begin(), path.end());
    const std::vector<double> truth = truth_of(path, x, w, s);
    for (int64_t c = 0; c < width; ++c) {
      const double got = value_at(o, last * width + c, s.lane), expected = truth[size_t(c)];
      if (std::fabs(got - expected) > tolerance * (1.0 + std::fabs(expected))) {
        throw std::runtime_error("row " + std::to_string(last) + ", column " + std::to_string(c) + " is " +
                                 std::to_string(got) + ", expected " + std::to_string(expected));
      }
    }
  }
}

}  // namespace
}  // namespace psyfast

int main() {
  using namespace psyfast;
  const Shape shapes[] = {{9, 1, 1, 3, 5, 1, Element::kFp32},
                          {20, 2, 4, 20, 34, 4, Element::kFp32},
                          {16, 1, 1, 70, 66, 3, Element::kFp32},
                          {20, 2, 4, 20, 34, 4, Element::kBf16},
                          {16, 1, 2, 128, 128, 4, Element::kBf16}};
  for (Isa isa : available_isas()) {
    std::mt19937 random(12345);
    try {
      for (const Shape& shape : shapes) check(shape, isa, random);
    } catch (const std::exception& error) {
      std::fprintf(stderr, "%s: %s\n", isa_name(isa), error.what());
      return 1;
    }
    std::printf("%s: ok\n", isa_name(isa));
  }
  return 0;
}
