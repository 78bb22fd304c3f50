// How a request of 16-bit numbers is cut into chunks, each of which is a float32 request of its own.
#pragma once

#include <optional>

#include "request.h"

namespace groupwise {

// Rows of the image that a chunk writes, or those of y for a weight's gradient, and rows of the image that they read. `pad` is the
// padding before those.
struct Rows {
  int64_t first, count, read, reads, pad;
};

// A chunk has at most so many samples, groups and rows. A thread computes a task, whose chunks are neighbours. Those of a weight's
// gradient are of the same groups, and their sums are added; each part of the samples and rows has sums of its own.
struct Cut {
  int64_t samples, groups, rows, parts, threads;
  bool shared;  // threads share the tasks; else they share each chunk
};

Cut cut(const Request& request);

// Returns the rows of the image that are written, or those of y for a weight's gradient.
int64_t rows_written(const Request& request);
// Returns what rows [first, first + count) of those read. Nothing if they see padding alone. `first` is a multiple of the stride.
std::optional<Rows> rows_of(const Request& request, int64_t first, int64_t count);

// Returns the numbers of a channel of x, or y, of one sample; and the weights of one group.
int64_t pixels(const Request& request, bool x);
int64_t weights_of(const Request& request);

// Returns the float32 request of a chunk, whose tensors have the call's format and no gaps.
Request in_float32(const Request& request, int64_t samples, int64_t groups, const Rows& rows, int64_t threads);
// The same of the whole request.
Request in_float32(const Request& request);

}  // namespace groupwise
