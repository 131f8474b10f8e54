#include "head_entries.h"

#include <algorithm>

namespace psyfast {
namespace {

constexpr int64_t kNone = -1;

}  // namespace

HeadEntries::HeadEntries(int64_t num_tokens, int64_t expected_pairs)
    : open_(static_cast<size_t>(num_tokens), kNone), last_(static_cast<size_t>(num_tokens), kNone) {
  size_t capacity = 64;
  while (capacity < 2 * static_cast<size_t>(expected_pairs)) capacity *= 2;
  table_.assign(capacity, kNone);
  pairs_.reserve(static_cast<size_t>(expected_pairs));
}

// The pair's slot of the table, or the empty one where it belongs.
size_t HeadEntries::slot_of(int64_t row, int64_t id) const {
  uint64_t hash = static_cast<uint64_t>(row) * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(id);
  hash = (hash ^ (hash >> 30)) * 0xbf58476d1ce4e5b9u;
  size_t slot = static_cast<size_t>(hash ^ (hash >> 31)) & (table_.size() - 1);
  while (table_[slot] != kNone) {
    const Pair& pair = pairs_[static_cast<size_t>(table_[slot])];
    if (pair.row == row && pair.id == id) break;
    slot = (slot + 1) & (table_.size() - 1);
  }
  return slot;
}

Place HeadEntries::target(int64_t row, int64_t id) {
  const size_t slot = slot_of(row, id);
  if (table_[slot] != kNone) return pairs_[static_cast<size_t>(table_[slot])].place;
  return add_entry(slot, row, id);
}

Place HeadEntries::option(int64_t row, int64_t id) {
  const size_t slot = slot_of(row, id);
  if (table_[slot] != kNone) return pairs_[static_cast<size_t>(table_[slot])].place;
  int64_t& open = open_[static_cast<size_t>(row)];
  if (open == kNone) return add_entry(slot, row, id);
  int64_t& used = num_options_[static_cast<size_t>(open)];
  const Place place = {open, used++};
  num_columns_ = std::max(num_columns_, used);
  if (used == kMaxOptionColumns) open = next_[static_cast<size_t>(open)];
  table_[slot] = static_cast<int64_t>(pairs_.size());
  pairs_.push_back({row, id, place});
  return place;
}

Place HeadEntries::add_entry(size_t slot, int64_t row, int64_t id) {
  const Place place = {static_cast<int64_t>(rows_.size()), kNone};
  rows_.push_back(row);
  targets_.push_back(id);
  num_options_.push_back(0);
  next_.push_back(kNone);
  int64_t &open = open_[static_cast<size_t>(row)], &last = last_[static_cast<size_t>(row)];
  if (last != kNone) next_[static_cast<size_t>(last)] = place.entry;
  last = place.entry;
  if (open == kNone) open = place.entry;
  table_[slot] = static_cast<int64_t>(pairs_.size());
  pairs_.push_back({row, id, place});
  return place;
}

std::vector<int64_t> HeadEntries::option_matrix() const {
  std::vector<int64_t> matrix(rows_.size() * static_cast<size_t>(num_columns_), kNone);
  for (const Pair& pair : pairs_) {
    if (pair.place.column != kNone) {
      matrix[static_cast<size_t>(pair.place.entry * num_columns_ + pair.place.column)] = pair.id;
    }
  }
  return matrix;
}

}  // namespace psyfast
