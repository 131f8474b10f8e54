#include "attn_in.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "buffer.h"
#include "linear.h"

namespace psyfast {
namespace {

// The normalised rows of a block should stay in the second-level cache beside a stretch of the weights.
constexpr int64_t kBlockBytes = 192 * 1024;

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument("attn_in: " + what); }

std::string text(int64_t number) { return std::to_string(number); }

void check_sizes(const AttnInArgs& args, int num_threads) {
  const KvPages& pages = args.pages;
  if (args.num_tokens < 0 || args.num_rows < 0 || args.num_copy_runs < 0 || pages.num_pages < 0) {
    refuse("a count is negative, expected 0 or more tokens, rows, copy runs and pages");
  }
  if (args.hidden < 1 || args.num_heads < 1 || pages.num_kv_heads < 1) {
    refuse("hidden size " + text(args.hidden) + ", " + text(args.num_heads) + " query and " +
           text(pages.num_kv_heads) + " kv heads, expected all to be positive");
  }
  if (pages.head_dim < 2 || pages.head_dim % 2 != 0) {
    refuse("head_dim is " + text(pages.head_dim) + ", expected an even number from 2 on; pad the heads");
  }
  if (args.num_pairs < 0 || 2 * args.num_pairs > pages.head_dim) {
    refuse("the rotary embedding turns " + text(args.num_pairs) + " pairs, but a head has " +
           text(pages.head_dim) + " dimensions; expected half of them at most");
  }
  if (args.row == nullptr && args.num_rows != args.num_tokens) {
    refuse("q has " + text(args.num_rows) + " rows, expected one for each of the " + text(args.num_tokens) +
           " tokens where no rows are named");
  }
  if (num_threads < 1) refuse("num_threads is " + std::to_string(num_threads) + ", expected 1 or more");
}

void check_pointers(const AttnInArgs& args) {
  if (args.panels == nullptr || args.bias == nullptr) {
    refuse("packed weights or bias are null, expected memory of each");
  }
  if (args.heads_together && (args.q_norm.scale == nullptr || args.k_norm.scale == nullptr)) {
    refuse("q_norm or k_norm is null, expected both where heads are normalised together");
  }
  if (args.num_copy_runs > 0 && args.copy_run == nullptr)
    refuse("copy runs are null, expected memory of them");
  if (args.num_tokens == 0) return;
  if (args.x == nullptr || args.position == nullptr || args.slot == nullptr) {
    refuse("x, positions or slots are null, expected memory of each");
  }
  if (args.num_rows > 0 && args.q == nullptr) refuse("q is null, expected memory of the queries");
  if (args.pages.k == nullptr || args.pages.v == nullptr)
    refuse("pages are null, expected memory of K and V");
  if (args.num_pairs > 0 && (args.cos == nullptr || args.sin == nullptr)) {
    refuse("cos or sin are null, expected tables as pairs are to be turned");
  }
}

void check_rows(const AttnInArgs& args) {
  if (args.row == nullptr) return;
  for (int64_t i = 0; i < args.num_rows; ++i) {
    const int64_t above = i == 0 ? -1 : args.row[i - 1];
    if (args.row[i] <= above || args.row[i] >= args.num_tokens) {
      refuse("row " + text(i) + " of the wanted ones is token " + text(args.row[i]) + ", expected above " +
             text(above) + " and below " + text(args.num_tokens) + "; sort them and name each once");
    }
  }
}

typedef std::vector<uint64_t> SlotMasks;  // a bit for each slot of each page

// Threads write K and V without knowing of each other, so no two tokens may have one slot.
SlotMasks check_tokens(const AttnInArgs& args) {
  SlotMasks written(static_cast<size_t>(args.pages.num_pages), 0);
  for (int64_t token = 0; token < args.num_tokens; ++token) {
    const int64_t slot = args.slot[token];
    if (slot < 0 || slot >= args.pages.num_pages * kPageSlots) {
      refuse("token " + text(token) + " has slot " + text(slot) + ", but the " + text(args.pages.num_pages) +
             " pages hold " + text(args.pages.num_pages * kPageSlots) + "; allocate more pages");
    }
    uint64_t& mask = written[static_cast<size_t>(slot / kPageSlots)];
    const uint64_t bit = uint64_t{1} << (slot % kPageSlots);
    if ((mask & bit) != 0)
      refuse("token " + text(token) + " has slot " + text(slot) + ", as a token before it");
    mask |= bit;
    if (args.num_pairs > 0 && (args.position[token] < 0 || args.position[token] >= args.num_positions)) {
      refuse("token " + text(token) + " is at position " + text(args.position[token]) +
             ", but the rotary tables hold " + text(args.num_positions) + "; make longer ones");
    }
  }
  return written;
}

// Runs are copied in any order, so none may touch what another or a token writes.
void check_runs(const AttnInArgs& args, const SlotMasks& written) {
  SlotMasks copied(written.size(), 0);
  for (int64_t i = 0; i < args.num_copy_runs; ++i) {
    const int64_t* run = args.copy_run + 4 * i;
    const std::string name = "copy run " + text(i) + " (page " + text(run[0]) + " to " + text(run[1]) +
                             ", slots " + text(run[2]) + " to " + text(run[3]) + ")";
    if (std::min(run[0], run[1]) < 0 || std::max(run[0], run[1]) >= args.pages.num_pages) {
      refuse(name + " leaves the pages, expected 0 to " + text(args.pages.num_pages - 1));
    }
    if (run[2] < 0 || run[2] >= run[3] || run[3] > kPageSlots) {
      refuse(name + " is no run inside a page, expected slots from 0 to " + text(kPageSlots));
    }
    const uint64_t mask = (~uint64_t{0} >> (kPageSlots - (run[3] - run[2]))) << run[2];
    uint64_t& target = copied[static_cast<size_t>(run[1])];
    if (((written[static_cast<size_t>(run[1])] | target) & mask) != 0) {
      refuse(name + " ends in slots that a token or another run writes; each slot is written once");
    }
    target |= mask;
  }
  for (int64_t i = 0; i < args.num_copy_runs; ++i) {
    const int64_t* run = args.copy_run + 4 * i;
    const uint64_t mask = (~uint64_t{0} >> (kPageSlots - (run[3] - run[2]))) << run[2];
    if ((copied[static_cast<size_t>(run[0])] & mask) != 0) {
      refuse("copy run " + text(i) + " reads slots that another run writes; copy from where a token wrote");
    }
  }
}

// Slots [start, stop) of one head from page to page.
void copy_keys(const KvPages& pages, const uint32_t* from, uint32_t* to, int64_t start, int64_t stop) {
  const size_t bytes = static_cast<size_t>(stop - start) * sizeof(uint32_t);
  for (int64_t step = 0; step < pages.k_steps; ++step) {
    std::memcpy(to + step * kPageSlots + start, from + step * kPageSlots + start, bytes);
  }
}

// Where slots are pairs, an edge may take half a word; the other half is another writer's.
void copy_half(const uint32_t* from, uint32_t* to, int64_t slot) {
  const char* source = reinterpret_cast<const char*>(from + slot / 2 * kPanelColumns) + slot % 2 * 2;
  char* target = reinterpret_cast<char*>(to + slot / 2 * kPanelColumns) + slot % 2 * 2;
  for (int64_t c = 0; c < kPanelColumns; ++c) std::memcpy(target + 4 * c, source + 4 * c, 2);
}

void copy_values(const KvPages& pages, const uint32_t* from, uint32_t* to, int64_t start, int64_t stop) {
  const int64_t slots_a_step = kPageSlots / pages.v_steps;
  for (int64_t panel = 0; panel < pages.v_panels; ++panel) {
    int64_t first = start;
    int64_t last = stop;
    if (first % slots_a_step != 0) copy_half(from, to, first++);
    if (last % slots_a_step != 0 && last > first) copy_half(from, to, --last);
    if (first < last) {
      const int64_t at = first / slots_a_step * kPanelColumns;
      const int64_t words = (last - first) / slots_a_step * kPanelColumns;
      std::memcpy(to + at, from + at, static_cast<size_t>(words) * sizeof(uint32_t));
    }
    from += pages.v_steps * kPanelColumns;
    to += pages.v_steps * kPanelColumns;
  }
}

void copy_run(const AttnInArgs& args, int64_t run_idx, int64_t kv_head) {
  const KvPages& pages = args.pages;
  const int64_t* run = args.copy_run + 4 * run_idx;
  const int64_t from = run[0] * pages.num_kv_heads + kv_head;
  const int64_t to = run[1] * pages.num_kv_heads + kv_head;
  const int64_t k_words = pages.k_steps * kPageSlots;
  const int64_t v_words = pages.v_panels * pages.v_steps * kPanelColumns;
  copy_keys(pages, pages.k + from * k_words, pages.k + to * k_words, run[2], run[3]);
  copy_values(pages, pages.v + from * v_words, pages.v + to * v_words, run[2], run[3]);
}

// Heads whose products are kept until the last of them is there.
int64_t heads_at_once(const AttnInTask& task) {
  return task.heads_together ? std::max(task.num_heads, task.num_kv_heads) : 1;
}

struct Memory {
  Memory(const AttnInTask& task, int64_t num_rows, int64_t row_stride_)
      : row_stride(row_stride_),
        angle_stride((task.num_pairs + kVectorPadding - 1) / kVectorPadding * kVectorPadding),
        head_columns(task.panels_a_head * kPanelColumns),
        rows(num_rows * row_stride),
        product(num_rows * heads_at_once(task) * head_columns),
        inverse(num_rows),
        angles(num_rows * 2 * angle_stride),
        head(2 * (head_columns + kVectorPadding)),
        words(num_rows * (head_columns + kRowPadding)) {}
  AttnInScratch scratch() const {
    return {rows.data,    row_stride,  product.data,
            inverse.data, angles.data, angle_stride,
            head.data,    words.data,  head_columns + kRowPadding};
  }
  int64_t row_stride;
  int64_t angle_stride;
  int64_t head_columns;
  Buffer<uint32_t> rows;
  Buffer<float> product;
  Buffer<float> inverse;
  Buffer<float> angles;
  Buffer<float> head;
  Buffer<uint32_t> words;
};

AttnInTask task_of(const AttnInArgs& args) {
  AttnInTask task = {};
  task.bf16 = args.lane == Element::kBf16;
  task.x = args.x;
  task.hidden = args.hidden;
  task.norm = args.norm;
  task.panels = args.panels;
  task.num_steps = inner_steps(args.hidden, args.lane);
  task.bias = args.bias;
  task.q_norm = args.q_norm;
  task.k_norm = args.k_norm;
  task.heads_together = args.heads_together;
  task.cos = args.cos;
  task.sin = args.sin;
  task.num_pairs = args.num_pairs;
  task.num_heads = args.num_heads;
  task.num_kv_heads = args.pages.num_kv_heads;
  task.head_dim = args.pages.head_dim;
  task.panels_a_head = args.pages.v_panels;
  task.position = args.position;
  task.slot = args.slot;
  task.pages = args.pages;
  task.q = args.q;
  return task;
}

}  // namespace

void attn_in(const AttnInArgs& args, Isa isa, int num_threads) {
  const LinearKernels& kernels = linear_kernels(isa);
  check_sizes(args, num_threads);
  check_pointers(args);
  check_rows(args);
  check_runs(args, check_tokens(args));

  const AttnInTask task = task_of(args);
  const int64_t row_stride = operand_stride(row_form(args.lane, kernels.bf16_rows), args.hidden);
  const int64_t product_bytes =
      task.heads_together ? heads_at_once(task) * task.panels_a_head * kPanelColumns * 4 : 0;
  const int64_t max_rows =
      fitting_rows(row_stride * 4 + product_bytes, task.heads_together ? 2 * kBlockBytes : kBlockBytes);
  const RowBlocks tokens = split_rows(args.num_tokens, max_rows, num_threads);
  const RowBlocks queries =
      args.row == nullptr ? RowBlocks{1, 0} : split_rows(args.num_rows, max_rows, num_threads);
  const int64_t num_heads = task.num_heads + 2 * task.num_kv_heads;
  const int64_t first_head = args.row == nullptr ? 0 : task.num_heads;
  const int64_t copies = args.num_copy_runs * task.num_kv_heads;
#pragma omp parallel num_threads(team_of(tokens.count + queries.count, num_threads))
  {
    const Memory memory(task, std::max(tokens.rows, queries.rows), row_stride);
    const AttnInScratch scratch = memory.scratch();
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < tokens.count + queries.count; ++i) {
      AttnInBlock block;
      if (i < tokens.count) {
        const int64_t first = i * tokens.rows;
        block = {nullptr, first, std::min(args.num_tokens, first + tokens.rows), first_head, num_heads};
      } else {
        const int64_t first = (i - tokens.count) * queries.rows;
        block = {args.row, first, std::min(args.num_rows, first + queries.rows), 0, task.num_heads};
      }
      kernels.attn_in(task, block, scratch);
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < copies; ++i) copy_run(args, i / task.num_kv_heads, i % task.num_kv_heads);
  }
}

}  // namespace psyfast
