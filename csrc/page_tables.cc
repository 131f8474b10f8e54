#include "page_tables.h"

#include <algorithm>
#include <utility>

namespace psyfast {
namespace {

// Grows the tables segment by segment; parents come first.
class PageBuilder {
 public:
  explicit PageBuilder(const std::vector<Segment>& segments)
      : segments_(segments), place_(segments.size()), first_own_page_(segments.size()) {
    tables_.qo_indptr.push_back(0);
    tables_.kv_indptr.push_back(0);
  }

  void add(int64_t segment_idx) {
    const Segment& segment = at(segment_idx);
    const int64_t head_start = segment.start / kPageSlots * kPageSlots;
    const int64_t first_page = tables_.num_pages;
    place_[static_cast<size_t>(segment_idx)] = static_cast<int64_t>(tables_.first_position.size());
    first_own_page_[static_cast<size_t>(segment_idx)] = first_page;
    tables_.num_pages += segment.num_pages();
    tables_.first_position.push_back(segment.start);
    tables_.kv_last_page_len.push_back((segment.stop() - 1) % kPageSlots + 1);
    tables_.qo_indptr.push_back(tables_.qo_indptr.back() + static_cast<int64_t>(segment.ids.size()));
    for (int64_t position = segment.start; position < segment.stop(); ++position) {
      tables_.slots.push_back(first_page * kPageSlots + position - head_start);
    }
    list_pages(segment, first_page);
    copy_head(segment.parent, head_start, segment.start, first_page);
  }

  PageTables take() { return std::move(tables_); }

 private:
  const Segment& at(int64_t i) const { return segments_[static_cast<size_t>(i)]; }

  // Whole pages before the fork are the parent's path's; the rest are the segment's own.
  void list_pages(const Segment& segment, int64_t first_page) {
    std::vector<int64_t>& pages = tables_.kv_indices;
    const size_t num_inherited = static_cast<size_t>(segment.start / kPageSlots);
    const size_t begin = pages.size();
    pages.resize(begin + num_inherited);
    if (num_inherited > 0) {
      const int64_t parent = place_[static_cast<size_t>(segment.parent)];
      const int64_t inherited = tables_.kv_indptr[static_cast<size_t>(parent)];
      std::copy_n(pages.begin() + inherited, num_inherited, pages.begin() + static_cast<int64_t>(begin));
    }
    for (int64_t page = first_page; page < tables_.num_pages; ++page) pages.push_back(page);
    tables_.kv_indptr.push_back(static_cast<int64_t>(pages.size()));
  }

  // Positions [head_start, stop) of an ancestor's path lie in one page of it and of each of its ancestors;
  // they are copied from where they were written, never from a copy.
  void copy_head(int64_t ancestor, int64_t head_start, int64_t stop, int64_t page_to) {
    runs_.clear();
    while (stop > head_start) {
      const Segment& source = at(ancestor);
      const int64_t begin = std::max(head_start, source.start);
      if (begin < stop) {
        const int64_t page_in_source = head_start / kPageSlots - source.start / kPageSlots;
        const int64_t page_from = first_own_page_[static_cast<size_t>(ancestor)] + page_in_source;
        runs_.push_back({page_from, begin - head_start, stop - head_start});
        stop = begin;
      }
      ancestor = source.parent;
    }
    for (auto run = runs_.rbegin(); run != runs_.rend(); ++run) {
      tables_.copy_runs.insert(tables_.copy_runs.end(),
                               {run->page_from, page_to, run->slot_start, run->slot_stop});
      for (int64_t slot = run->slot_start; slot < run->slot_stop; ++slot) {
        tables_.copy_from.push_back(run->page_from * kPageSlots + slot);
        tables_.copy_to.push_back(page_to * kPageSlots + slot);
      }
    }
  }

  struct Run {
    int64_t page_from, slot_start, slot_stop;
  };

  const std::vector<Segment>& segments_;
  std::vector<int64_t> place_;           // of each segment in the batch's order
  std::vector<int64_t> first_own_page_;  // of each segment
  std::vector<Run> runs_;                // of one head, last first
  PageTables tables_;
};

}  // namespace

PageTables build_pages(const std::vector<Segment>& segments, const std::vector<int64_t>& order) {
  PageBuilder builder(segments);
  for (int64_t segment : order) builder.add(segment);
  return builder.take();
}

}  // namespace psyfast
