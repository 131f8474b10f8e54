#include "delta_walk.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace psyfast {
namespace {

[[noreturn]] void refuse(int64_t segment, const std::string& what) {
  throw std::invalid_argument("delta_rule: segment " + std::to_string(segment) + " " + what);
}

int64_t state_numbers(const DeltaHead& head) {  // float
  return head.num_values * head.v_panels * head.key_dim * kPanelColumns;
}

int64_t row_stride(const DeltaHead& head) { return head.k_panels * kPanelColumns + kRowPadding; }

int64_t product_rows(const DeltaHead& head) { return std::max(head.key_dim, kDeltaChunk); }

int64_t scratch_numbers(const DeltaHead& head) {
  return kDeltaChunk *
             (head.columns + 2 * row_stride(head) + 2 * kDeltaChunk + head.v_panels * kPanelColumns) +
         product_rows(head) * kPanelColumns + 2 * kDeltaChunk + head.key_dim * (kDeltaChunk + kRowPadding);
}

DeltaScratch scratch_in(float* memory, const DeltaHead& head) {
  const auto next = [&memory](int64_t numbers) {
    float* start = memory;
    memory += numbers;
    return start;
  };
  DeltaScratch scratch = {};
  scratch.channels = next(kDeltaChunk * head.columns);
  scratch.row_stride = row_stride(head);
  scratch.keys = next(kDeltaChunk * scratch.row_stride);
  scratch.queries = next(kDeltaChunk * scratch.row_stride);
  scratch.product = next(product_rows(head) * kPanelColumns);
  scratch.key_products = next(kDeltaChunk * kDeltaChunk);
  scratch.query_products = next(kDeltaChunk * kDeltaChunk);
  scratch.values = next(kDeltaChunk * head.v_panels * kPanelColumns);
  scratch.weights = next(2 * kDeltaChunk);
  scratch.decayed_keys = next(head.key_dim * (kDeltaChunk + kRowPadding));
  return scratch;
}

}  // namespace

DeltaSegments::DeltaSegments(int64_t num_segments, const int64_t* qo_indptr_, const int64_t* start_,
                             const int64_t* parent_row_, int64_t num_tokens)
    : qo_indptr(qo_indptr_),
      start(start_),
      parent_row(parent_row_),
      forks(static_cast<size_t>(num_segments)) {
  int64_t next = 0;
  for (int64_t segment = 0; segment < num_segments; ++segment) {
    if (qo_indptr[segment] != next || qo_indptr[segment + 1] <= next || qo_indptr[segment + 1] > num_tokens) {
      refuse(segment, "has rows " + std::to_string(qo_indptr[segment]) + " to " +
                          std::to_string(qo_indptr[segment + 1]) + ", expected some from " +
                          std::to_string(next) + " on, of " + std::to_string(num_tokens) + " tokens");
    }
    next = qo_indptr[segment + 1];
    const int64_t row = parent_row[segment];
    if (row == -1 && start[segment] == 0) {
      parent.push_back(-1);
      roots.push_back(segment);
      continue;
    }
    if (row < 0 || row >= qo_indptr[segment]) {
      refuse(segment,
             "follows row " + std::to_string(row) + ", expected a row before its own, or -1 at position 0");
    }
    const int64_t of = std::upper_bound(qo_indptr, qo_indptr + segment + 1, row) - qo_indptr - 1;
    if (start[segment] != start[of] + row - qo_indptr[of] + 1) {
      refuse(segment, "begins at position " + std::to_string(start[segment]) +
                          ", expected the one after row " + std::to_string(row));
    }
    parent.push_back(of);
    forks[static_cast<size_t>(of)].push_back(segment);
  }
  if (next != num_tokens) {
    throw std::invalid_argument("delta_rule: segments hold " + std::to_string(next) + " rows, expected all " +
                                std::to_string(num_tokens) + " tokens");
  }
  for (auto& children : forks) {
    std::stable_sort(children.begin(), children.end(),
                     [this](int64_t a, int64_t b) { return start[a] < start[b]; });
  }
}

void DeltaSegments::rows_before(int64_t segment, int64_t position, int64_t count, int64_t* rows) const {
  int64_t row = first_row(segment) + position - start[segment];
  for (int64_t i = 0; i < count; ++i) {
    if (row > first_row(segment)) {
      --row;
    } else {
      row = parent_row[segment];
      segment = row < 0 ? segment : parent[static_cast<size_t>(segment)];
    }
    if (row < 0) {
      std::fill(rows + i, rows + count, -1);
      return;
    }
    rows[i] = row;
  }
}

int CountedBlocks::take() {
  if (free_.empty()) {
    blocks_.emplace_back(numbers_);
    holders_.push_back(0);
    free_.push_back(static_cast<int>(blocks_.size()) - 1);
  }
  const int block = free_.back();
  free_.pop_back();
  holders_[static_cast<size_t>(block)] = 1;
  return block;
}

void CountedBlocks::drop(int block) {
  if (block >= 0 && --holders_[static_cast<size_t>(block)] == 0) free_.push_back(block);
}

DeltaWalk::DeltaWalk(const DeltaHead& sizes, const DeltaSegments& segments)
    : segments_(segments),
      key_numbers_(sizes.key_dim * kDeltaChunk / 2),  // of double: the sums stand behind
      write_numbers_(sizes.num_values * sizes.v_panels * kDeltaChunk * kPanelColumns / 2),
      states_(state_numbers(sizes) / 2),
      chunks_(key_numbers_ + write_numbers_ + sizes.num_values * kDeltaChunk),
      before_(static_cast<size_t>(std::max<int64_t>(1, sizes.conv_width))),
      memory_(scratch_numbers(sizes)),
      scratch_(scratch_in(memory_.data, sizes)) {}

DeltaChunk DeltaWalk::chunk_at(int block) const {
  double* memory = chunks_.data(block);
  return {reinterpret_cast<float*>(memory), reinterpret_cast<float*>(memory + key_numbers_),
          memory + key_numbers_ + write_numbers_};
}

void DeltaWalk::run(const DeltaHead& head, int64_t root, const DeltaKernels& kernels) {
  pending_.push_back({root, 0, kNone, kNone});
  while (!pending_.empty()) {
    const Visit next = pending_.back();
    pending_.pop_back();
    visit(head, next, kernels);
  }
}

void DeltaWalk::visit(const DeltaHead& head, const Visit& at, const DeltaKernels& kernels) {
  const int64_t border = at.position / kDeltaChunk * kDeltaChunk;
  const int64_t next_border = border + kDeltaChunk;
  const int64_t segment_stop = segments_.stop(at.segment);
  const int64_t stop = std::min(segment_stop, next_border);
  const auto& forks = segments_.forks[static_cast<size_t>(at.segment)];
  const bool ends_there =
      segment_stop == next_border && !forks.empty() && segments_.start[forks.back()] == next_border;
  const bool goes_on = segment_stop > next_border;
  const int next_state = goes_on || ends_there ? states_.take() : kNone;
  const int chunk = at.chunk == kNone ? chunks_.take() : at.chunk;

  DeltaRows rows = {};
  rows.first_row = segments_.first_row(at.segment) + at.position - segments_.start[at.segment];
  rows.offset = at.position - border;
  rows.count = stop - at.position;
  segments_.rows_before(at.segment, at.position, head.conv_width - 1, before_.data());
  rows.before = before_.data();
  rows.state = at.state == kNone ? nullptr : state_at(at.state);
  rows.next_state = next_state == kNone ? nullptr : state_at(next_state);
  kernels.chunk(head, chunk_at(chunk), rows, scratch_);

  if (goes_on) {
    states_.hold(next_state);
    pending_.push_back({at.segment, next_border, next_state, kNone});
  }
  if (ends_there) push_forks(at, next_border, next_border + 1, next_state, kNone);
  push_forks(at, at.position, next_border, at.state, chunk);
  states_.drop(next_state);
  states_.drop(at.state);
  chunks_.drop(chunk);
}

// Those that begin at positions [from, to), so that the last of them is visited first.
void DeltaWalk::push_forks(const Visit& at, int64_t from, int64_t to, int state, int chunk) {
  const auto& forks = segments_.forks[static_cast<size_t>(at.segment)];
  auto fork = std::lower_bound(forks.begin(), forks.end(), from, [this](int64_t segment, int64_t position) {
    return segments_.start[segment] < position;
  });
  for (; fork != forks.end() && segments_.start[*fork] < to; ++fork) {
    const bool inside = segments_.start[*fork] % kDeltaChunk != 0;
    if (state != kNone) states_.hold(state);
    if (inside) chunks_.hold(chunk);
    pending_.push_back({*fork, segments_.start[*fork], state, inside ? chunk : kNone});
  }
}

}  // namespace psyfast
