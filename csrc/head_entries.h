// Entries: the rows that meet the LM head, one for each (row, target); options ride on an entry of their row.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace psyfast {

constexpr int64_t kMaxOptionColumns = 64;

// Where a token's score stands: in an option column of an entry, or (−1) as its target.
struct Place {
  int64_t entry;
  int64_t column;
};

class HeadEntries {
 public:
  // num_tokens: rows are below it. expected_pairs: distinct (row, token) pairs at most, for the table's size.
  HeadEntries(int64_t num_tokens, int64_t expected_pairs);

  // The entry with this target: its rank is wanted, so each distinct pair has one of its own. Targets before
  // options.
  Place target(int64_t row, int64_t id);

  // The target's place if it is one, else a column of the row's first entry with room, else an entry of its
  // own.
  Place option(int64_t row, int64_t id);

  int64_t num_columns() const { return num_columns_; }
  std::vector<int64_t> option_matrix() const;  // [entries, num_columns], −1 where there is none
  const std::vector<int64_t>& rows() const { return rows_; }
  const std::vector<int64_t>& targets() const { return targets_; }

 private:
  struct Pair {
    int64_t row, id;
    Place place;
  };

  size_t slot_of(int64_t row, int64_t id) const;
  Place add_entry(size_t slot, int64_t row, int64_t id);

  std::vector<int64_t> rows_, targets_;
  std::vector<int64_t> num_options_;  // of each entry
  std::vector<int64_t> next_;         // entry of the same row after this one, or −1
  std::vector<int64_t> open_, last_;  // [num_tokens] the row's first entry with room, and its last, or −1
  std::vector<Pair> pairs_;
  std::vector<int64_t> table_;  // [power of two] open addressing into pairs_, −1 where empty
  int64_t num_columns_ = 0;
};

}  // namespace psyfast
