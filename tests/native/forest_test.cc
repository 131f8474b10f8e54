// The batch builder without Python, for sanitizers: random requests, and every scored token's past read back
// through the page tables against the request's own ids. Arrays have exactly the size that they need, so that
// one element too far is seen. Exits with 1 and says what differed.
#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "batch_plan.h"

namespace psyfast {
namespace {

using Ids = std::vector<int64_t>;

struct BranchCase {
  int64_t start;
  Ids ids;
  int64_t score_start, score_stop;
};

struct RequestCase {
  Ids ids, scored;
  std::vector<BranchCase> branches;
};

// Concatenated arrays that own their memory.
struct Arrays {
  Ids ids, ids_indptr = {0}, scored, scored_indptr = {0}, branch_indptr = {0};
  Ids branch_start, branch_ids, branch_ids_indptr = {0}, score_start, score_stop;

  explicit Arrays(const std::vector<RequestCase>& requests) {
    for (const RequestCase& request : requests) {
      append(request.ids, &ids, &ids_indptr);
      append(request.scored, &scored, &scored_indptr);
      for (const BranchCase& branch : request.branches) {
        append(branch.ids, &branch_ids, &branch_ids_indptr);
        branch_start.push_back(branch.start);
        score_start.push_back(branch.score_start);
        score_stop.push_back(branch.score_stop);
      }
      branch_indptr.push_back(static_cast<int64_t>(branch_start.size()));
    }
    for (Ids* array : {&ids, &scored, &branch_ids, &branch_start, &score_start, &score_stop}) {
      array->shrink_to_fit();  // the address sanitizer sees what lies behind the memory, not behind the size
    }
  }

  static void append(const Ids& run, Ids* array, Ids* indptr) {
    array->insert(array->end(), run.begin(), run.end());
    indptr->push_back(static_cast<int64_t>(array->size()));
  }

  Requests view() const {
    const auto ints = [](const Ids& array) { return Ints{array.data(), static_cast<int64_t>(array.size())}; };
    return {ints(ids),           ints(ids_indptr),   ints(scored),     ints(scored_indptr),
            ints(branch_indptr), ints(branch_start), ints(branch_ids), ints(branch_ids_indptr),
            ints(score_start),   ints(score_stop)};
  }
};

Ids random_ids(int64_t count, std::mt19937& random) {
  Ids ids;
  for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int64_t>(random() % 3));
  return ids;
}

int64_t below(int64_t bound, std::mt19937& random) {
  return static_cast<int64_t>(random() % static_cast<uint64_t>(bound));
}

// Cuts fall on a page's border half of the time.
int64_t random_cut(int64_t length, std::mt19937& random) {
  const int64_t cut = below(length + 1, random);
  return random() % 2 == 0 ? cut : cut / kPageSlots * kPageSlots;
}

RequestCase random_request(const Ids& stem, std::mt19937& random) {
  RequestCase request;
  request.ids.assign(stem.begin(), stem.begin() + random_cut(static_cast<int64_t>(stem.size()), random));
  for (int64_t id : random_ids(below(150, random), random)) request.ids.push_back(id);
  const int64_t length = static_cast<int64_t>(request.ids.size());
  for (int64_t i = 0; length > 1 && i < 4; ++i) request.scored.push_back(1 + below(length - 1, random));
  for (int64_t i = below(5, random); i > 0; --i) {
    BranchCase branch;
    branch.start = random_cut(length, random);
    branch.ids = random_ids(2 + below(4, random), random);
    branch.score_stop = branch.start + static_cast<int64_t>(branch.ids.size()) - below(2, random);
    branch.score_start = branch.start > 0 ? branch.start : 1;
    request.branches.push_back(branch);
  }
  return request;
}

void expect(bool holds, const std::string& what) {
  if (!holds) throw std::runtime_error(what);
}

// What the engine would do with a plan: writes (token) into slots, copies heads, reads pasts through the
// pages.
class PastReader {
 public:
  explicit PastReader(const BatchPlan& plan) : plan_(plan) {
    const PageTables& pages = plan.pages;
    held_.assign(static_cast<size_t>(pages.num_pages * kPageSlots), -1);
    for (size_t i = 0; i < plan.token_ids.size(); ++i) held_.at(size_t(pages.slots[i])) = plan.token_ids[i];
    for (size_t i = 0; i < pages.copy_from.size(); ++i) {
      expect(held_.at(size_t(pages.copy_to[i])) == -1, "a copy overwrites a token");
      held_[size_t(pages.copy_to[i])] = held_.at(size_t(pages.copy_from[i]));
    }
    for (size_t s = 0; s + 1 < pages.qo_indptr.size(); ++s) {
      for (int64_t row = pages.qo_indptr[s]; row < pages.qo_indptr[s + 1]; ++row) segment_of_.push_back(s);
    }
  }

  // Whether token `position` of `ids` stands at this place, behind exactly ids[0 .. position).
  bool agrees(int64_t entry, int64_t column, const Ids& ids, int64_t position) const {
    const size_t e = static_cast<size_t>(entry);
    const int64_t id = column < 0 ? plan_.targets.at(e)
                                  : plan_.option_ids.at(e * size_t(plan_.num_columns) + size_t(column));
    const size_t row = static_cast<size_t>(plan_.rows.at(e));
    if (id != ids[size_t(position)] || plan_.positions.at(row) != position - 1) return false;
    const int64_t first = plan_.pages.kv_indptr[segment_of_.at(row)];
    for (int64_t p = 0; p < position; ++p) {
      const int64_t page = plan_.pages.kv_indices.at(size_t(first + p / kPageSlots));
      if (held_.at(size_t(page * kPageSlots + p % kPageSlots)) != ids[size_t(p)]) return false;
    }
    return true;
  }

 private:
  const BatchPlan& plan_;
  Ids held_;
  std::vector<size_t> segment_of_;
};

void check_plan(const BatchPlan& plan, const std::vector<RequestCase>& requests) {
  const PastReader reader(plan);
  expect(plan.requests.indptr.size() == requests.size() + 1, "another number of requests came back");
  size_t b = 0;
  for (size_t r = 0; r < requests.size(); ++r) {
    const RequestCase& request = requests[r];
    const std::string where = " of request " + std::to_string(r);
    for (size_t i = 0; i < request.scored.size(); ++i) {
      const size_t place = static_cast<size_t>(plan.requests.indptr[r]) + i;
      expect(reader.agrees(plan.requests.entry.at(place), plan.requests.column.at(place), request.ids,
                           request.scored[i]),
             "a scored token" + where + " is not where the plan says");
    }
    for (const BranchCase& branch : request.branches) {
      Ids full(request.ids.begin(), request.ids.begin() + branch.start);
      full.insert(full.end(), branch.ids.begin(), branch.ids.end());
      size_t place = static_cast<size_t>(plan.branches.indptr.at(b++));
      for (int64_t p = branch.score_start; p < branch.score_stop; ++p, ++place) {
        expect(reader.agrees(plan.branches.entry.at(place), plan.branches.column.at(place), full, p),
               "an option's token" + where + " is not where the plan says");
      }
    }
  }
}

// Every distinct past that must be computed, as the prefixes of the computed sequences.
size_t num_distinct_tokens(const std::vector<RequestCase>& requests) {
  std::set<Ids> prefixes;
  const auto add = [&](const Ids& ids, int64_t count) {
    for (int64_t stop = 1; stop <= count; ++stop) prefixes.emplace(ids.begin(), ids.begin() + stop);
  };
  for (const RequestCase& request : requests) {
    int64_t num_inputs = 0;
    for (int64_t position : request.scored) num_inputs = std::max(num_inputs, position);
    for (const BranchCase& branch : request.branches) {
      num_inputs = std::max(num_inputs, branch.start);
      Ids full(request.ids.begin(), request.ids.begin() + branch.start);
      full.insert(full.end(), branch.ids.begin(), branch.ids.end());
      add(full, std::max(branch.start, branch.score_stop - 1));
    }
    add(request.ids, num_inputs);
  }
  return prefixes.size();
}

void check_random(bool share, std::mt19937& random) {
  std::vector<RequestCase> requests = {random_request(random_ids(300, random), random)};
  while (requests.size() < 25) {
    const Ids stem = requests[random() % requests.size()].ids;
    requests.push_back(random_request(stem, random));
  }
  BatchBuilder at_once(share), with_limit(share);
  const Arrays arrays(requests);
  expect(at_once.add(arrays.view(), -1) == 25, "not all requests were added");
  const BatchPlan plan = at_once.finish();
  check_plan(plan, requests);
  expect(at_once.num_tokens() == static_cast<int64_t>(plan.token_ids.size()),
         "num_tokens is not what came out");
  expect(at_once.num_slots() == plan.pages.num_pages * kPageSlots, "num_slots is not what came out");
  expect(!share || plan.token_ids.size() == num_distinct_tokens(requests),
         "a token is computed twice, or in vain");

  std::vector<RequestCase> kept;
  for (const RequestCase& request : requests) {
    const Arrays one({request});
    if (with_limit.add(one.view(), with_limit.num_slots() + 3 * kPageSlots) == 1) kept.push_back(request);
  }
  expect(kept.size() < requests.size(), "no request was left out");
  check_plan(with_limit.finish(), kept);
  BatchBuilder of_kept(share);
  of_kept.add(Arrays(kept).view(), -1);
  expect(of_kept.finish().token_ids == with_limit.finish().token_ids,
         "a request that was left out left a trace");
}

void check_refusals() {
  const RequestCase good = {{1, 2, 3}, {1, 2}, {{2, {5, 6}, 2, 4}}};
  const std::vector<RequestCase> bad = {
      {{1, -2}, {}, {}},
      {{1, 2}, {0}, {}},
      {{1, 2}, {2}, {}},
      {{}, {1}, {}},
      {{1, 2}, {}, {{3, {1}, 3, 4}}},
      {{1, 2}, {}, {{1, {1}, 1, 3}}},
      {{1, 2}, {}, {{0, {1, 1}, 0, 1}}},
      {{1, 2}, {}, {{1, {-1}, 1, 2}}},
  };
  for (size_t i = 0; i < bad.size(); ++i) {
    BatchBuilder builder(true);
    bool refused = false;
    try {
      builder.add(Arrays({good, bad[i]}).view(), -1);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    expect(refused && builder.num_requests() == 0,
           "bad request " + std::to_string(i) + " was not refused whole");
  }
  Arrays falling({good, good});
  falling.ids_indptr[1] = 7;
  Arrays short_stops({good});
  short_stops.score_stop.pop_back();
  for (const Arrays* arrays : {&falling, &short_stops}) {
    bool refused = false;
    try {
      BatchBuilder(true).add(arrays->view(), -1);
    } catch (const std::invalid_argument&) {
      refused = true;
    }
    expect(refused, "arrays that do not fit one another were not refused");
  }
}

}  // namespace
}  // namespace psyfast

int main() {
  using namespace psyfast;
  std::mt19937 random(12345);
  try {
    for (int i = 0; i < 40; ++i) check_random(i % 2 == 0, random);
    check_refusals();
    BatchBuilder empty(true);
    expect(empty.add(Arrays({}).view(), 0) == 0 && empty.finish().token_ids.empty(),
           "nothing gives something");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "forest: %s\n", error.what());
    return 1;
  }
  std::printf("forest: ok\n");
  return 0;
}
