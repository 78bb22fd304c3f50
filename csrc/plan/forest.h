// Tables of one processor class and instruction set: trees that say how fast each kernel ran on layers like a request.
#pragma once

#include <array>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "plan/features.h"

namespace groupwise {

// What several trees say: the mean of their leaves, and their standard deviation.
struct Estimate {
  double mean, spread;
};

struct Tree {
  struct Node {
    int64_t feature;
    double threshold;
    int64_t left, right;  // a negative child is leaf -1 - child
  };
  std::vector<Node> nodes;
  std::vector<double> leaves;
};

// The trees of one kernel, and the range of what they were made from. A leaf is log2(the roofline's time / the kernel's).
struct Forest {
  std::vector<double> least, most;
  std::vector<Tree> trees;
};

// What a processor computes and moves at most: products of a thread and bytes, each a second, and the seconds of a call.
struct Roofline {
  double products, bytes, seconds;
};

struct Tables {
  std::string record;  // what was measured, as a plan names it
  // A kernel runs only if its speedup, less than foreseen by `caution` times its spread, exceeds 1 by the margin of the layer's
  // family.
  std::array<double, kFamilies> margins;
  double caution;
  Roofline roofline;
  std::vector<std::string> features;
  std::vector<int64_t> bounded;           // the features that tell kinds of layers apart
  std::map<std::string, Forest> kernels;  // PyTorch's among them

  // Foresees log2 of the seconds that a kernel takes with so many products of each thread and bytes in all, or nothing for a request
  // unlike all that were measured. `values` are of `features`.
  std::optional<Estimate> time(const std::string& kernel, const std::vector<double>& values, double products,
                               double bytes) const;
};

// Reads tables from finite numbers: the margins, the caution, the roofline, the count of bounded features and each; for each of
// `kernels`: least and most of each feature, the count of trees, and the trees. A tree is for a node its feature and threshold, then
// all of its left side, then all of its right side; for a leaf -1 and its number, times 100. Returns nothing if they do not fit together.
std::optional<Tables> read_tables(std::string record, const std::vector<std::string>& features,
                                  const std::vector<std::string>& kernels, const double* numbers, int64_t count);

}  // namespace groupwise
