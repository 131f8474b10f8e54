// From requests to one batch of the engine, request by request (psyfast/plan/batch.py; reference.py is its
// oracle).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "forest.h"
#include "page_tables.h"
#include "requests.h"

namespace psyfast {

// Places of the scores of runs of tokens, one after another; run i is [indptr[i], indptr[i + 1]).
struct ScoredRuns {
  std::vector<int64_t> entry;
  std::vector<int64_t> column;  // option column of the entry, −1 for its target
  std::vector<int64_t> indptr;
};

struct BatchPlan {
  std::vector<int64_t> token_ids;  // [num_tokens]
  std::vector<int64_t> positions;  // [num_tokens]
  PageTables pages;
  std::vector<int64_t> rows;        // [num_entries]
  std::vector<int64_t> targets;     // [num_entries]
  std::vector<int64_t> option_ids;  // [num_entries, num_columns]
  int64_t num_columns = 0;
  ScoredRuns requests;                 // one run a request
  ScoredRuns branches;                 // one run a branch
  std::vector<int64_t> branch_indptr;  // [num_requests + 1] into the branches' runs
};

class BatchBuilder {
 public:
  // share = false: every request, and every branch with tokens of its own, gets all its tokens to itself.
  explicit BatchBuilder(bool share) : share_(share), forest_(share) {}

  // Adds requests in their order and returns how many; the first that would take the batch past max_slots is
  // left out, and all after it. max_slots < 0: no limit. Throws std::invalid_argument (check_requests) and
  // adds nothing.
  int64_t add(const Requests& requests, int64_t max_slots);

  int64_t num_requests() const { return static_cast<int64_t>(branch_indptr_.size()) - 1; }
  int64_t num_tokens() const { return forest_.num_tokens(); }
  int64_t num_slots() const { return forest_.num_pages() * kPageSlots; }
  // Tokens to compute where only a branch's first tokens are shared, with its own request.
  int64_t num_request_tokens() const { return num_request_tokens_; }

  // The batch of what was added; more may be added after.
  BatchPlan finish() const;

 private:
  // Tokens whose score is wanted, by the segment and position of the row that predicts them.
  struct Wanted {
    std::vector<int64_t> segment, position, id;
    std::vector<int64_t> indptr = {0};

    void push(const Path& path, int64_t scored_position, int64_t scored_id);
    void close_run() { indptr.push_back(static_cast<int64_t>(id.size())); }
    void keep_runs(size_t num_runs);
  };

  void add_request(const Requests& requests, int64_t r);
  void add_branch(const Requests& requests, int64_t r, int64_t b);
  void remove_last_request(int64_t num_request_tokens_before);

  bool share_;
  Forest forest_;
  Wanted requests_, branches_;
  std::vector<int64_t> branch_indptr_ = {0};
  int64_t num_request_tokens_ = 0;
  Path trunk_, path_;                // of the request at hand
  std::vector<int64_t> whole_copy_;  // of a branch where nothing is shared
};

}  // namespace psyfast
