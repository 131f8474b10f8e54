// Pages: where the keys and values of a forest's tokens lie (psyfast/plan/pages.py says what each table
// means).
#pragma once

#include <cstdint>
#include <vector>

#include "forest.h"

namespace psyfast {

// A segment's pages are consecutive; page `of` its path is first_own_page + of − start / kPageSlots.
struct PageTables {
  int64_t num_pages = 0;
  std::vector<int64_t> slots;             // [num_tokens]
  std::vector<int64_t> qo_indptr;         // [num_segments + 1]
  std::vector<int64_t> kv_indptr;         // [num_segments + 1]
  std::vector<int64_t> kv_indices;        // pages of each segment's path, in order of position
  std::vector<int64_t> kv_last_page_len;  // [num_segments]
  std::vector<int64_t> first_position;    // [num_segments]
  std::vector<int64_t> copy_from;         // slots
  std::vector<int64_t> copy_to;
  std::vector<int64_t> copy_runs;  // [num_runs, 4]: page from, page to, slots of both, half-open
};

// order: [num_segments] segments as the batch holds them, a parent before its children (Forest::batch_order).
PageTables build_pages(const std::vector<Segment>& segments, const std::vector<int64_t>& order);

}  // namespace psyfast
