#include "requests.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace psyfast {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

std::string text(int64_t value) { return std::to_string(value); }

void check_size(const char* name, const Ints& array, int64_t expected, const char* why) {
  if (array.size == expected) return;
  refuse(std::string(name) + " has " + text(array.size) + " elements, expected " + text(expected) + " (" +
         why + "); pass arrays of the same requests");
}

void check_indptr(const char* name, const Ints& indptr, int64_t num_runs, const char* target, int64_t size) {
  check_size(name, indptr, num_runs + 1, "one more than there are runs");
  for (int64_t i = 0; i < num_runs; ++i) {
    if (indptr[i + 1] < indptr[i]) {
      refuse(std::string(name) + " falls from " + text(indptr[i]) + " to " + text(indptr[i + 1]) + " at " +
             text(i + 1) + ", expected it never to fall; build it by a running sum of lengths");
    }
  }
  if (indptr[0] != 0 || indptr[num_runs] != size) {
    refuse(std::string(name) + " runs from " + text(indptr[0]) + " to " + text(indptr[num_runs]) +
           ", expected 0 to " + text(size) + ", the size of " + target +
           "; build it by a running sum of lengths");
  }
}

void check_ids(const std::string& whose, const Ints& ids) {
  for (int64_t i = 0; i < ids.size; ++i) {
    if (ids[i] < 0) {
      refuse(whose + " has token id " + text(ids[i]) + " at " + text(i) +
             ", expected 0 or more; pass ids of the model's vocabulary");
    }
  }
}

void check_branch(const Requests& requests, int64_t r, int64_t b) {
  const std::string whose =
      "request " + text(r) + ", branch " + text(b - requests.branch_indptr[r]);  // counted within its request
  const int64_t length = requests.ids_indptr[r + 1] - requests.ids_indptr[r];
  const int64_t start = requests.branch_start[b];
  if (start < 0 || start > length) {
    refuse(whose + " starts at " + text(start) + ", expected 0 to " + text(length) +
           ", the length of its request; fork it off tokens that are there");
  }
  const Ints ids = requests.branch_ids.run(requests.branch_ids_indptr, b);
  check_ids(whose, ids);
  const int64_t begin = requests.score_start[b], end = requests.score_stop[b];
  if (begin < 1 || end < begin || end > start + ids.size) {
    refuse(whose + " scores positions " + text(begin) + " to " + text(end) +
           " (half-open), expected them within 1 to " + text(start + ids.size) +
           ", where its tokens end; score what it holds");
  }
}

}  // namespace

void check_requests(const Requests& requests) {
  if (requests.ids_indptr.size < 1)
    refuse("ids_indptr is empty, expected one element more than requests; begin it with 0");
  const int64_t num_requests = requests.num_requests();
  const int64_t num_branches = requests.branch_start.size;
  check_indptr("ids_indptr", requests.ids_indptr, num_requests, "ids", requests.ids.size);
  check_indptr("scored_indptr", requests.scored_indptr, num_requests, "scored_positions",
               requests.scored_positions.size);
  check_indptr("branch_indptr", requests.branch_indptr, num_requests, "branch_start", num_branches);
  check_indptr("branch_ids_indptr", requests.branch_ids_indptr, num_branches, "branch_ids",
               requests.branch_ids.size);
  check_size("score_start", requests.score_start, num_branches, "one a branch");
  check_size("score_stop", requests.score_stop, num_branches, "one a branch");
  for (int64_t r = 0; r < num_requests; ++r) {
    const Ints ids = requests.ids.run(requests.ids_indptr, r);
    check_ids("request " + text(r), ids);
    const Ints scored = requests.scored_positions.run(requests.scored_indptr, r);
    for (int64_t i = 0; i < scored.size; ++i) {
      if (scored[i] < 1 || scored[i] >= ids.size) {
        refuse("request " + text(r) + " scores position " + text(scored[i]) + ", expected 1 to " +
               text(ids.size - 1) + ", a token of its own with one before it; leave it out");
      }
    }
    for (int64_t b = requests.branch_indptr[r]; b < requests.branch_indptr[r + 1]; ++b)
      check_branch(requests, r, b);
  }
}

}  // namespace psyfast
