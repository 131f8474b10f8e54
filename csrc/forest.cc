#include "forest.h"

#include <algorithm>

namespace psyfast {
namespace {

constexpr int64_t kNone = -1;

uint64_t mixed(uint64_t x) {  // the finaliser of SplitMix64: every bit of x moves every bit of the result
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

void extend_path(Path* path, int64_t segment, int64_t stop) {
  if (!path->empty() && path->back().segment == segment) {
    path->back().stop = stop;
  } else {
    path->push_back({segment, stop});
  }
}

}  // namespace

void Forest::add(const int64_t* ids, int64_t count, Path* path) {
  path->clear();
  if (share_) {
    grow(kRoot, 0, ids, count, path);
  } else if (count > 0) {
    path->push_back({create(kRoot, 0, ids, count), count});
  }
}

void Forest::branch(const Path& trunk, int64_t start, const int64_t* ids, int64_t count, Path* path) {
  path->clear();
  int64_t done = 0;
  for (size_t i = 0; done < start; ++i) {
    done = std::min(start, trunk[i].stop);
    path->push_back({trunk[i].segment, done});
  }
  grow(path->empty() ? kRoot : path->back().segment, start, ids, count, path);
}

// Follows `ids` from a position of a segment as far as they are known, then lengthens the segment or forks.
void Forest::grow(int64_t segment, int64_t position, const int64_t* ids, int64_t count, Path* path) {
  while (count > 0) {
    if (segment != kRoot) {
      const Segment& known = segments_[static_cast<size_t>(segment)];
      const int64_t* begin = known.ids.data() + (position - known.start);
      const int64_t length = std::min(count, known.stop() - position);
      const int64_t shared = std::mismatch(begin, begin + length, ids).first - begin;
      position += shared;
      ids += shared;
      count -= shared;
      if (shared > 0) extend_path(path, segment, position);
      if (count == 0) return;
      if (position == known.stop()) {
        append(segment, ids, count);
        extend_path(path, segment, position + count);
        return;
      }
    }
    const int64_t child = find_fork(segment, position, ids[0]);
    if (child == kNone) {
      path->push_back({create(segment, position, ids, count), position + count});
      return;
    }
    segment = child;
  }
}

void Forest::append(int64_t segment, const int64_t* ids, int64_t count) {
  Segment& grown = segments_[static_cast<size_t>(segment)];
  extensions_.push_back({segment, grown.ids.size()});
  num_tokens_ += count;
  num_pages_ -= grown.num_pages();
  grown.ids.insert(grown.ids.end(), ids, ids + count);
  num_pages_ += grown.num_pages();
}

int64_t Forest::create(int64_t parent, int64_t start, const int64_t* ids, int64_t count) {
  segments_.push_back({parent, start, std::vector<int64_t>(ids, ids + count)});
  num_tokens_ += count;
  num_pages_ += segments_.back().num_pages();
  const int64_t segment = static_cast<int64_t>(segments_.size()) - 1;
  if (share_) insert_fork(segment);
  return segment;
}

void Forest::begin() {
  num_segments_before_ = segments_.size();
  extensions_.clear();
}

void Forest::undo() {
  for (; !extensions_.empty(); extensions_.pop_back()) {
    Segment& grown = segments_[static_cast<size_t>(extensions_.back().segment)];
    num_tokens_ -= static_cast<int64_t>(grown.ids.size() - extensions_.back().size_before);
    num_pages_ -= grown.num_pages();
    grown.ids.resize(extensions_.back().size_before);
    num_pages_ += grown.num_pages();
  }
  for (; segments_.size() > num_segments_before_; segments_.pop_back()) {
    num_tokens_ -= static_cast<int64_t>(segments_.back().ids.size());
    num_pages_ -= segments_.back().num_pages();
    if (share_) erase_last_fork(static_cast<int64_t>(segments_.size()) - 1);
  }
}

size_t Forest::home_of(int64_t parent, int64_t start, int64_t id) const {
  uint64_t hash = mixed(static_cast<uint64_t>(parent));
  hash = mixed(hash + static_cast<uint64_t>(start));
  hash = mixed(hash + static_cast<uint64_t>(id));
  return static_cast<size_t>(hash) & (forks_.size() - 1);
}

int64_t Forest::find_fork(int64_t parent, int64_t start, int64_t id) const {
  if (forks_.empty()) return kNone;
  for (size_t i = home_of(parent, start, id); forks_[i] != kNone; i = (i + 1) & (forks_.size() - 1)) {
    const Segment& found = segments_[static_cast<size_t>(forks_[i])];
    if (found.parent == parent && found.start == start && found.ids[0] == id) return forks_[i];
  }
  return kNone;
}

void Forest::insert_fork(int64_t segment) {
  int64_t first = segment;
  if (2 * segments_.size() > forks_.size()) {
    // In the order they were added, as if the table had always been this large: see erase_last_fork.
    forks_.assign(std::max<size_t>(64, 2 * forks_.size()), kNone);
    first = 0;
  }
  for (; first <= segment; ++first) {
    const Segment& fork = segments_[static_cast<size_t>(first)];
    size_t i = home_of(fork.parent, fork.start, fork.ids[0]);
    while (forks_[i] != kNone) i = (i + 1) & (forks_.size() - 1);
    forks_[i] = first;
  }
}

// Only the segment added last may go: no other was moved on because its place was taken.
void Forest::erase_last_fork(int64_t segment) {
  const Segment& fork = segments_[static_cast<size_t>(segment)];
  size_t i = home_of(fork.parent, fork.start, fork.ids[0]);
  while (forks_[i] != segment) i = (i + 1) & (forks_.size() - 1);
  forks_[i] = kNone;
}

std::vector<int64_t> Forest::batch_order() const {
  const int64_t num_segments = static_cast<int64_t>(segments_.size());
  // Siblings in one run each, by (parent, fork position); the sort is stable, so ties stay as they were
  // added.
  std::vector<int64_t> siblings(segments_.size());
  for (int64_t i = 0; i < num_segments; ++i) siblings[static_cast<size_t>(i)] = i;
  const auto segment_at = [this](int64_t i) -> const Segment& { return segments_[static_cast<size_t>(i)]; };
  std::stable_sort(siblings.begin(), siblings.end(), [&](int64_t a, int64_t b) {
    const Segment &one = segment_at(a), &other = segment_at(b);
    return one.parent != other.parent ? one.parent < other.parent : one.start < other.start;
  });
  std::vector<int64_t> first_child(segments_.size() + 2, 0);  // [parent + 1]: where the parent's run begins
  for (const Segment& segment : segments_) ++first_child[static_cast<size_t>(segment.parent + 2)];
  for (size_t i = 1; i < first_child.size(); ++i) first_child[i] += first_child[i - 1];
  std::vector<int64_t> order, pending;
  order.reserve(segments_.size());
  const auto push_children = [&](int64_t parent) {
    const int64_t begin = first_child[static_cast<size_t>(parent + 1)];
    for (int64_t i = first_child[static_cast<size_t>(parent + 2)]; i-- > begin;) {
      pending.push_back(siblings[static_cast<size_t>(i)]);
    }
  };
  push_children(kRoot);
  while (!pending.empty()) {
    const int64_t segment = pending.back();
    pending.pop_back();
    order.push_back(segment);
    push_children(segment);
  }
  return order;
}

}  // namespace psyfast
