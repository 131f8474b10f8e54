// The prefix forest: every token that several sequences share is held once (psyfast/plan/forest.py draws it).
//
// A segment is a run of tokens that forks off its parent's path at an absolute position; roots fork off
// nothing at position 0. A sequence that goes on after a segment's last token makes that segment longer; one
// that differs inside a segment forks there. So a segment is never split, and a path that was handed out
// stays true.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kv_pages.h"  // kPageSlots: page j of a path holds its positions 64·j to 64·j + 63

namespace psyfast {

constexpr int64_t kRoot = -1;  // the parent of a segment that starts at position 0

struct Segment {
  int64_t parent;
  int64_t start;  // absolute position of its first token
  std::vector<int64_t> ids;

  int64_t stop() const { return start + static_cast<int64_t>(ids.size()); }
  // Pages of its own: every page that one of its positions lies in, the one of its fork too.
  int64_t num_pages() const { return (stop() - 1) / kPageSlots - start / kPageSlots + 1; }
};

// Positions from the stop of the part before (or 0) up to `stop` are those of `segment`.
struct PathPart {
  int64_t segment;
  int64_t stop;
};
using Path = std::vector<PathPart>;

class Forest {
 public:
  // share = false: every sequence gets tokens of its own, for comparison.
  explicit Forest(bool share) : share_(share) {}

  // Adds a whole sequence; `path` becomes where its tokens lie.
  void add(const int64_t* ids, int64_t count, Path* path);

  // Adds the sequence of the first `start` tokens of `trunk` (which has as many) and then `ids`. Shared
  // forests only.
  void branch(const Path& trunk, int64_t start, const int64_t* ids, int64_t count, Path* path);

  // What is added after `begin` is taken back by `undo`, up to the next `begin`.
  void begin();
  void undo();

  const std::vector<Segment>& segments() const { return segments_; }
  int64_t num_tokens() const { return num_tokens_; }
  int64_t num_pages() const { return num_pages_; }

  // Segments as a batch holds them: each subtree in one piece, the parent first, then its forks by position,
  // those of one position in the order they were added. Roots stand in the order they were added.
  std::vector<int64_t> batch_order() const;

 private:
  struct Extension {
    int64_t segment;
    size_t size_before;
  };

  void grow(int64_t segment, int64_t position, const int64_t* ids, int64_t count, Path* path);
  void append(int64_t segment, const int64_t* ids, int64_t count);
  int64_t create(int64_t parent, int64_t start, const int64_t* ids, int64_t count);

  // Forks by (parent, start, first token): an open-addressing table of segments, compared by what they hold.
  int64_t find_fork(int64_t parent, int64_t start, int64_t id) const;
  void insert_fork(int64_t segment);
  void erase_last_fork(int64_t segment);
  size_t home_of(int64_t parent, int64_t start, int64_t id) const;

  bool share_;
  std::vector<Segment> segments_;
  std::vector<int64_t> forks_;  // [power of two], −1 where empty, at most half full
  int64_t num_tokens_ = 0;
  int64_t num_pages_ = 0;
  size_t num_segments_before_ = 0;  // at `begin`
  std::vector<Extension> extensions_;
};

}  // namespace psyfast
