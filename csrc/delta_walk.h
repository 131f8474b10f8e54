// One key head's recurrence along the paths of a tree: which chunk is computed after which, from which state.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "buffer.h"
#include "delta_rule_kernels.h"

namespace psyfast {

// A batch's segments as trees. Throws std::invalid_argument for tables that are none.
struct DeltaSegments {
  DeltaSegments(int64_t num_segments, const int64_t* qo_indptr, const int64_t* start,
                const int64_t* parent_row, int64_t num_tokens);

  int64_t first_row(int64_t segment) const { return qo_indptr[segment]; }
  int64_t stop(int64_t segment) const {  // position after the last token
    return start[segment] + qo_indptr[segment + 1] - qo_indptr[segment];
  }
  // Fills `rows` with the `count` rows before a position of a segment on its path, the nearest first; -1:
  // none.
  void rows_before(int64_t segment, int64_t position, int64_t count, int64_t* rows) const;

  const int64_t* qo_indptr;
  const int64_t* start;
  const int64_t* parent_row;
  std::vector<int64_t> parent;  // segment, -1 for a root
  std::vector<int64_t> roots;
  std::vector<std::vector<int64_t>> forks;  // of each segment, by position
};

// Blocks of memory that several visits of a walk read until the last is done with them.
class CountedBlocks {
 public:
  explicit CountedBlocks(int64_t numbers) : numbers_(numbers) {}
  int take();  // of one holder
  void hold(int block) { ++holders_[static_cast<size_t>(block)]; }
  void drop(int block);
  double* data(int block) const { return blocks_[static_cast<size_t>(block)].data; }

 private:
  int64_t numbers_;
  std::vector<Buffer<double>> blocks_;
  std::vector<int64_t> holders_;
  std::vector<int> free_;
};

// Depth first, forks of a chunk from the last to the first: all of them share one block of what is known of
// the chunk's positions, each overwriting what stands behind its own first position. So no position is
// computed twice, and memory grows with the depth of a tree alone.
class DeltaWalk {
 public:
  DeltaWalk(const DeltaHead& sizes, const DeltaSegments& segments);
  void run(const DeltaHead& head, int64_t root, const DeltaKernels& kernels);

 private:
  struct Visit {
    int64_t segment;
    int64_t position;  // of its first row that is not yet computed
    int state;         // block of the state at the border before it; kNone: zeros
    int chunk;         // block of the chunk's positions before it; kNone: there are none
  };
  static constexpr int kNone = -1;

  void visit(const DeltaHead& head, const Visit& at, const DeltaKernels& kernels);
  void push_forks(const Visit& at, int64_t from, int64_t to, int state, int chunk);
  DeltaChunk chunk_at(int block) const;
  float* state_at(int block) const { return reinterpret_cast<float*>(states_.data(block)); }

  const DeltaSegments& segments_;
  int64_t key_numbers_;
  int64_t write_numbers_;
  CountedBlocks states_;
  CountedBlocks chunks_;
  std::vector<Visit> pending_;
  std::vector<int64_t> before_;
  Buffer<float> memory_;
  DeltaScratch scratch_;
};

}  // namespace psyfast
