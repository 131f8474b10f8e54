#include "batch_plan.h"

#include <algorithm>

#include "head_entries.h"
#include "linear_nll.h"

namespace psyfast {

static_assert(kMaxOptionColumns <= kMaxOptions, "an entry must not have more options than linear_nll takes");

void BatchBuilder::Wanted::push(const Path& path, int64_t scored_position, int64_t scored_id) {
  const int64_t row_position = scored_position - 1;
  const auto part = std::upper_bound(path.begin(), path.end(), row_position,
                                     [](int64_t value, const PathPart& p) { return value < p.stop; });
  segment.push_back(part->segment);
  position.push_back(row_position);
  id.push_back(scored_id);
}

void BatchBuilder::Wanted::keep_runs(size_t num_runs) {
  indptr.resize(num_runs + 1);
  const size_t num_kept = static_cast<size_t>(indptr.back());
  segment.resize(num_kept);
  position.resize(num_kept);
  id.resize(num_kept);
}

int64_t BatchBuilder::add(const Requests& requests, int64_t max_slots) {
  check_requests(requests);
  for (int64_t r = 0; r < requests.num_requests(); ++r) {
    const int64_t num_request_tokens_before = num_request_tokens_;
    forest_.begin();
    add_request(requests, r);
    if (max_slots >= 0 && num_slots() > max_slots) {
      remove_last_request(num_request_tokens_before);
      return r;
    }
  }
  return requests.num_requests();
}

void BatchBuilder::add_request(const Requests& requests, int64_t r) {
  const Ints ids = requests.ids.run(requests.ids_indptr, r);
  const Ints scored = requests.scored_positions.run(requests.scored_indptr, r);
  const int64_t branch_begin = requests.branch_indptr[r], branch_end = requests.branch_indptr[r + 1];
  // Nothing is computed after the last row that predicts a scored token or starts a branch.
  int64_t num_inputs = scored.size > 0 ? *std::max_element(scored.data, scored.data + scored.size) : 0;
  int64_t num_trunk = num_inputs;
  for (int64_t b = branch_begin; b < branch_end; ++b) {
    num_inputs = std::max(num_inputs, requests.branch_start[b]);
    if (share_ || own_tokens(requests, b) == 0) num_trunk = std::max(num_trunk, requests.branch_start[b]);
  }
  num_request_tokens_ += num_inputs;
  forest_.add(ids.data, num_trunk, &trunk_);
  for (int64_t i = 0; i < scored.size; ++i) requests_.push(trunk_, scored[i], ids[scored[i]]);
  requests_.close_run();
  for (int64_t b = branch_begin; b < branch_end; ++b) add_branch(requests, r, b);
  branch_indptr_.push_back(branch_indptr_.back() + branch_end - branch_begin);
}

void BatchBuilder::add_branch(const Requests& requests, int64_t r, int64_t b) {
  const Ints ids = requests.ids.run(requests.ids_indptr, r);
  const Ints own = requests.branch_ids.run(requests.branch_ids_indptr, b);
  const int64_t start = requests.branch_start[b];
  const int64_t num_own = own_tokens(requests, b);
  num_request_tokens_ += num_own;
  if (num_own > 0 && share_) {
    forest_.branch(trunk_, start, own.data, num_own, &path_);
  } else if (num_own > 0) {
    whole_copy_.assign(ids.data, ids.data + start);
    whole_copy_.insert(whole_copy_.end(), own.data, own.data + num_own);
    forest_.add(whole_copy_.data(), start + num_own, &path_);
  }
  // A branch without tokens of its own is predicted from rows of its trunk: it costs none.
  const Path& path = num_own > 0 ? path_ : trunk_;
  for (int64_t p = requests.score_start[b]; p < requests.score_stop[b]; ++p) {
    branches_.push(path, p, p < start ? ids[p] : own[p - start]);
  }
  branches_.close_run();
}

void BatchBuilder::remove_last_request(int64_t num_request_tokens_before) {
  forest_.undo();
  branch_indptr_.pop_back();
  requests_.keep_runs(branch_indptr_.size() - 1);
  branches_.keep_runs(static_cast<size_t>(branch_indptr_.back()));
  num_request_tokens_ = num_request_tokens_before;
}

BatchPlan BatchBuilder::finish() const {
  BatchPlan plan;
  const std::vector<Segment>& segments = forest_.segments();
  const std::vector<int64_t> order = forest_.batch_order();
  std::vector<int64_t> row_of_position_0(segments.size());  // a row is its position plus this of its segment
  plan.token_ids.reserve(static_cast<size_t>(num_tokens()));
  plan.positions.reserve(static_cast<size_t>(num_tokens()));
  for (int64_t i : order) {
    const Segment& segment = segments[static_cast<size_t>(i)];
    row_of_position_0[static_cast<size_t>(i)] = static_cast<int64_t>(plan.token_ids.size()) - segment.start;
    plan.token_ids.insert(plan.token_ids.end(), segment.ids.begin(), segment.ids.end());
    for (int64_t p = segment.start; p < segment.stop(); ++p) plan.positions.push_back(p);
  }
  plan.pages = build_pages(segments, order);

  HeadEntries entries(num_tokens(), static_cast<int64_t>(requests_.id.size() + branches_.id.size()));
  const auto place = [&](const Wanted& wanted, Place (HeadEntries::*find)(int64_t, int64_t)) {
    ScoredRuns runs;
    runs.indptr = wanted.indptr;
    runs.entry.reserve(wanted.id.size());
    runs.column.reserve(wanted.id.size());
    for (size_t i = 0; i < wanted.id.size(); ++i) {
      const int64_t row = row_of_position_0[static_cast<size_t>(wanted.segment[i])] + wanted.position[i];
      const Place found = (entries.*find)(row, wanted.id[i]);
      runs.entry.push_back(found.entry);
      runs.column.push_back(found.column);
    }
    return runs;
  };
  plan.requests = place(requests_, &HeadEntries::target);
  plan.branches = place(branches_, &HeadEntries::option);
  plan.branch_indptr = branch_indptr_;
  plan.rows = entries.rows();
  plan.targets = entries.targets();
  plan.option_ids = entries.option_matrix();
  plan.num_columns = entries.num_columns();
  return plan;
}

}  // namespace psyfast
