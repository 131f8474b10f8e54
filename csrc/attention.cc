#include "attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.h"
#include "levels.h"
#include "linear.h"

namespace psyfast {
namespace {

// Tasks a thread at least, so that a few queries still keep every thread at work.
constexpr int64_t kTasksPerThread = 6;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("attention: " + what); }

std::string text(int64_t number) { return std::to_string(number); }

void check_sizes(const AttentionArgs& args, int num_threads) {
  const KvPages& pages = args.pages;
  if (args.num_queries < 0 || args.num_segments < 0 || pages.num_pages < 0) refuse("a count is negative");
  if (pages.num_kv_heads < 1 || args.num_heads < 1 || args.num_heads % pages.num_kv_heads != 0) {
    refuse("got " + text(args.num_heads) + " query heads and " + text(pages.num_kv_heads) +
           " kv heads, expected a multiple of the kv heads");
  }
  if (args.num_heads / pages.num_kv_heads > kMaxTaskRows) {
    refuse("got " + text(args.num_heads / pages.num_kv_heads) + " query heads a kv head, expected at most " +
           text(kMaxTaskRows));
  }
  if (pages.head_dim < 1) refuse("head_dim is " + text(pages.head_dim) + ", expected 1 or more");
  if (!(args.scale > 0.0f) || !std::isfinite(args.scale)) refuse("scale is not a positive number");
  if (!(args.soft_cap >= 0.0f) || !std::isfinite(args.soft_cap)) {
    refuse("soft_cap is not usable, expected a positive number, or 0 for none");
  }
  if (args.window < 0) refuse("window is " + text(args.window) + ", expected 1 or more, or 0 for none");
  if (num_threads < 1) refuse("num_threads is " + text(num_threads) + ", expected 1 or more");
}

void check_pointers(const AttentionArgs& args) {
  if (args.num_queries == 0) return;
  if (args.q == nullptr || args.out == nullptr || args.position == nullptr) {
    refuse("queries, results or positions are null, expected memory of all three");
  }
  if (args.pages.k == nullptr || args.pages.v == nullptr) refuse("pages of K or V are null");
  if (args.qo_indptr == nullptr || args.kv_indptr == nullptr || args.kv_indices == nullptr) {
    refuse("a page table is null, expected qo_indptr, kv_indptr and kv_indices");
  }
}

void check_indptr(const char* name, const int64_t* indptr, int64_t count, int64_t end) {
  if (indptr[0] != 0) refuse(std::string(name) + " begins with " + text(indptr[0]) + ", expected 0");
  for (int64_t i = 0; i < count; ++i) {
    if (indptr[i + 1] < indptr[i])
      refuse(std::string(name) + " falls at entry " + text(i + 1) + "; it must rise");
  }
  if (end >= 0 && indptr[count] != end) {
    refuse(std::string(name) + " ends with " + text(indptr[count]) + ", expected " + text(end));
  }
}

// The segment of each query; every query must find its position among its segment's pages.
std::vector<int32_t> segments_of_queries(const AttentionArgs& args) {
  check_indptr("qo_indptr", args.qo_indptr, args.num_segments, args.num_queries);
  check_indptr("kv_indptr", args.kv_indptr, args.num_segments, -1);
  for (int64_t i = 0; i < args.kv_indptr[args.num_segments]; ++i) {
    if (args.kv_indices[i] < 0 || args.kv_indices[i] >= args.pages.num_pages) {
      refuse("kv_indices[" + text(i) + "] is " + text(args.kv_indices[i]) + ", but there are " +
             text(args.pages.num_pages) + " pages");
    }
  }
  std::vector<int32_t> segment(static_cast<size_t>(args.num_queries));
  for (int64_t s = 0; s < args.num_segments; ++s) {
    const int64_t num_keys = (args.kv_indptr[s + 1] - args.kv_indptr[s]) * kPageSlots;
    for (int64_t query = args.qo_indptr[s]; query < args.qo_indptr[s + 1]; ++query) {
      if (args.position[query] < 0 || args.position[query] >= num_keys) {
        refuse("query " + text(query) + " is at position " + text(args.position[query]) +
               ", but its segment's pages hold " + text(num_keys));
      }
      segment[static_cast<size_t>(query)] = static_cast<int32_t>(s);
    }
  }
  return segment;
}

struct Span {
  int64_t first;
  int64_t last;
  int64_t num_keys;  // what it costs
};

// Blocks of queries, the costly ones first, so that threads end together.
std::vector<Span> spans_of(const AttentionArgs& args, int num_threads) {
  const int64_t group = args.num_heads / args.pages.num_kv_heads;
  const int64_t rows = args.num_queries * group;
  const int64_t wanted = num_threads * kTasksPerThread / args.pages.num_kv_heads + 1;
  const int64_t task_rows = std::min(kMaxTaskRows, std::max<int64_t>(8 * kTileRows, rows / wanted));
  const int64_t queries = std::max<int64_t>(1, task_rows / group);
  std::vector<Span> spans;
  for (int64_t first = 0; first < args.num_queries; first += queries) {
    Span span = {first, std::min(args.num_queries, first + queries), 0};
    for (int64_t query = span.first; query < span.last; ++query) {
      const int64_t seen = args.position[query] + 1;
      span.num_keys += args.window > 0 ? std::min(args.window, seen) : seen;
    }
    spans.push_back(span);
  }
  std::stable_sort(spans.begin(), spans.end(),
                   [](const Span& a, const Span& b) { return a.num_keys > b.num_keys; });
  return spans;
}

struct Memory {
  Memory(int64_t query_stride, int64_t v_panels)
      : queries(kMaxTaskRows * query_stride),
        out(kMaxTaskRows * v_panels * kPanelColumns),
        offset(kMaxTaskRows),
        threshold(kMaxTaskRows),
        sum(kMaxTaskRows * kMaxLanes),
        position(kMaxTaskRows),
        tops(kTileRows * kMaxLanes),
        scores(2 * kBlockPages * kTileRows * kPageSlots),
        weights(kBlockPages * kTileRows * kPageSlots / 2) {}
  AttentionScratch scratch() const {
    return {queries.data,  out.data,  offset.data, threshold.data, sum.data,
            position.data, tops.data, scores.data, weights.data};
  }
  Buffer<uint32_t> queries;
  Buffer<float> out;
  Buffer<float> offset;
  Buffer<float> threshold;
  Buffer<float> sum;
  Buffer<int64_t> position;
  Buffer<float> tops;
  Buffer<float> scores;
  Buffer<uint32_t> weights;
};

}  // namespace

const AttentionKernels& attention_kernels(Isa isa) { return PSY_TABLE_OF(isa, kAttention); }

void attention(const AttentionArgs& args, Isa isa, int num_threads) {
  const AttentionKernels& kernels = attention_kernels(isa);
  check_sizes(args, num_threads);
  check_pointers(args);
  if (args.num_queries == 0) return;
  const std::vector<int32_t> segment = segments_of_queries(args);
  const std::vector<Span> spans = spans_of(args, num_threads);
  const int64_t query_stride = operand_stride(row_form(args.lane, kernels.bf16_rows), args.pages.head_dim);
  const int64_t num_kv_heads = args.pages.num_kv_heads;
  const int64_t num_tasks = static_cast<int64_t>(spans.size()) * num_kv_heads;
#pragma omp parallel num_threads(num_threads)
  {
    const Memory memory(query_stride, args.pages.v_panels);
    const AttentionScratch scratch = memory.scratch();
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < num_tasks; ++i) {
      const Span& span = spans[static_cast<size_t>(i / num_kv_heads)];
      const AttentionTask task = {
          args.pages,       args.lane == Element::kBf16,
          args.q,           args.out,
          query_stride,     args.num_heads,
          i % num_kv_heads, span.first,
          span.last,        args.position,
          segment.data(),   args.kv_indptr,
          args.kv_indices,  args.scale,
          args.soft_cap,    args.window > 0 ? args.window : std::numeric_limits<int64_t>::max(),
          args.sinks,       args.join_segments};
      kernels.attend(task, scratch);
    }
  }
}

}  // namespace psyfast
