// Tables of one processor class and instruction set: trees that say how fast each kernel ran on layers like a request.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "plan/features.h"

namespace groupwise {

// What was measured on layers like a request: how many, and log2(PyTorch's time / the kernel's) at the 10 % quantile and at the
// median.
struct Estimate {
  double count, low, median;
};

struct Tree {
  struct Node {
    int64_t feature;
    double threshold;
    int64_t left, right;  // a negative child is leaf -1 - child
  };
  std::vector<Node> nodes;
  std::vector<Estimate> leaves;
};

// The trees of one kernel, whose mean estimates, and the range of what they were made from.
struct Forest {
  std::vector<double> least, most;
  std::vector<Tree> trees;
};

struct Tables {
  std::string record;  // what was measured, as a plan names it
  // A kernel runs only if even its low speedup exceeds 1 by the margin of the layer's family.
  std::array<double, kFamilies> margins;
  std::vector<std::string> features;
  std::vector<int64_t> bounded;  // the features that tell kinds of layers apart
  std::map<std::string, Forest> kernels;

  // Returns the estimate for a kernel, or nothing for a request unlike all that were measured. `values` are of `features`.
  std::optional<Estimate> estimate(const std::string& kernel, const std::vector<double>& values) const;
};

// Reads tables from numbers: the margins, the count of bounded features and each; for each of `kernels`: least and most of each
// feature, the count of trees, and for each tree the nodes, the count of leaves, and three numbers for each. For a node that are its
// feature and threshold, then all of its left side, then all of its right side; for a leaf -1. Returns nothing if they do not fit together.
std::optional<Tables> read_tables(std::string record, const std::vector<std::string>& features,
                                  const std::vector<std::string>& kernels, const double* numbers, int64_t count);

}  // namespace groupwise
