// linear_nll: scores of rows under an LM head, never [rows, vocabulary]; see linear_nll.cu.
#pragma once

#include "operand.h"

namespace psy::cuda {

constexpr int kBlockTokens = 1024;  // tokens a partial result: part of what defines the bits

struct HeadProblem {
  const void* y;            // [num_rows, hidden], normalised
  const void* lm_head;      // [vocab, hidden], y's type
  const std::int64_t* ids;  // [num_rows, num_slots]: the target, then options; −1 for none
  int num_rows, hidden, vocab, num_slots;
  float scale, soft_cap;  // soft_cap 0: none
};

// Partial results: [num_rows, blocks] each, blocks = ceil(vocab / kBlockTokens).
struct HeadPartials {
  float *m, *s, *t, *largest;
  int *first, *ahead;
};

struct HeadResults {
  float* nll;  // [num_rows, num_slots]
  float* entropy;
  std::int64_t *argmax, *rank;  // [num_rows]
};

// logits [num_rows, num_slots] and the partials are scratch.
void linear_nll(const HeadProblem& problem, float* logits, const HeadPartials& partials,
                const HeadResults& results, Operand operand, cudaStream_t stream);

}  // namespace psy::cuda
