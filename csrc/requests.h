// Requests as concatenated arrays: what a batch is planned from (psyfast/plan/records.py says what each
// means).
#pragma once

#include <cstdint>

namespace psyfast {

struct Ints {
  const int64_t* data;
  int64_t size;

  int64_t operator[](int64_t i) const { return data[i]; }
  // Run i of this array under an indptr.
  Ints run(const Ints& indptr, int64_t i) const { return {data + indptr[i], indptr[i + 1] - indptr[i]}; }
};

// R requests with B branches in all. Every indptr begins with 0, does not fall and ends with the size of its
// array.
struct Requests {
  Ints ids, ids_indptr;                  // [R + 1]
  Ints scored_positions, scored_indptr;  // [R + 1]; a token is scored by its position, ≥ 1
  Ints branch_indptr;                    // [R + 1] into the branches
  Ints branch_start;                     // [B] a branch is its request's first `start` ids, then its own
  Ints branch_ids, branch_ids_indptr;    // [B + 1]
  Ints score_start, score_stop;          // [B] positions of a branch's sequence whose tokens are scored

  int64_t num_requests() const { return ids_indptr.size - 1; }
};

// Tokens of its own that branch b needs computed: its last scored one is never an input.
inline int64_t own_tokens(const Requests& requests, int64_t b) {
  const int64_t count = requests.score_stop[b] - 1 - requests.branch_start[b];
  return count > 0 ? count : 0;
}

// Throws std::invalid_argument for sizes that do not match, an indptr that falls, negative ids, scored
// positions outside 1 to the request's last, branches that start beyond their request or score beyond their
// end.
void check_requests(const Requests& requests);

}  // namespace psyfast
