// A cost model for what was not measured: how long a kernel takes by the products that it executes and the bytes that it moves.
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/table.h"

namespace groupwise {

// Kinds of layers, whose kernels reach different fractions of the peak: depthwise, groups of fewer than 8, fewer than 32 and more
// channels, and dense layers.
constexpr int kKinds = 5;

// What is known of one kernel, PyTorch's among them.
struct Cost {
  double overhead;  // seconds of a call that computes nothing
  // Which fraction of the roofline's speed the kernel reaches, by direction, format (contiguous, channels_last) and kind; 0 where
  // it never ran.
  double reached[3][2][kKinds];
};

struct Model {
  std::string record;
  // How many times slower than expected one of ten layers ran.
  double spread;
  std::map<std::string, Cost> costs;
};

// Returns the seconds that a kernel is expected to take, or nothing where it was never measured. `products` are those that it
// executes, on padding and in empty lanes too.
std::optional<double> expected_seconds(const Model& model, const Request& request, const std::string& kernel, double products);

// Reads a model from numbers: the spread, and for each of `kernels` the overhead and the fractions. Returns nothing if the count
// does not fit, or a number is none.
std::optional<Model> read_model(std::string record, const std::vector<std::string>& kernels, const double* numbers,
                                int64_t count);

}  // namespace groupwise
