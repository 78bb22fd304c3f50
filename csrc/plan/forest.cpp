#include "plan/forest.h"

#include <cmath>
#include <limits>
#include <utility>

namespace groupwise {
namespace {

// Reads finite numbers one after the other; `good` ends where there are too few, or one is none of its kind.
class Numbers {
 public:
  Numbers(const double* numbers, int64_t count) : at_(numbers), left_(count) {}
  double next() {
    if (left_ <= 0 || !std::isfinite(*at_)) good_ = false;
    if (!good_) return 0;
    left_--;
    return *at_++;
  }
  // Returns a whole number of [low, high).
  int64_t next_whole(int64_t low, int64_t high) {
    const double number = next();
    if (!(number >= static_cast<double>(low) && number < static_cast<double>(high)) || number != std::floor(number))
      good_ = false;
    return good_ ? static_cast<int64_t>(number) : low;
  }
  // Returns a number of `least` or more.
  double next_from(double least) {
    const double number = next();
    if (number < least) good_ = false;
    return number;
  }
  int64_t left() const { return left_; }
  bool good() const { return good_; }

 private:
  const double* at_;
  int64_t left_;
  bool good_ = true;
};

Tree read_tree(Numbers* numbers, int64_t features) {
  Tree tree;
  // The children that are still to come, the next one last: of which node, and whether the right one.
  std::vector<std::pair<size_t, bool>> coming;
  do {
    const int64_t feature = numbers->next_whole(-1, features);
    const double number = numbers->next();
    const bool is_leaf = feature < 0;
    if (!coming.empty()) {
      const auto [node, right] = coming.back();
      coming.pop_back();
      const auto leaf = -1 - static_cast<int64_t>(tree.leaves.size());
      (right ? tree.nodes[node].right : tree.nodes[node].left) = is_leaf ? leaf : static_cast<int64_t>(tree.nodes.size());
    }
    if (is_leaf) {
      tree.leaves.push_back(number / 100);
    } else {
      coming.insert(coming.end(), {{tree.nodes.size(), true}, {tree.nodes.size(), false}});
      tree.nodes.push_back({feature, number, 0, 0});
    }
  } while (!coming.empty() && numbers->good());
  return tree;
}

double leaf_of(const Tree& tree, const std::vector<double>& values) {
  int64_t at = tree.nodes.empty() ? -1 : 0;
  while (at >= 0) {
    const Tree::Node& node = tree.nodes[at];
    at = values[node.feature] <= node.threshold ? node.left : node.right;
  }
  return tree.leaves[-1 - at];
}

}  // namespace

std::optional<Estimate> Tables::time(const std::string& kernel, const std::vector<double>& values, double products,
                                     double bytes) const {
  const auto found = kernels.find(kernel);
  if (found == kernels.end()) return std::nullopt;
  const Forest& forest = found->second;
  // The tables round their range to three digits.
  for (const int64_t i : bounded)
    if (!(values[i] >= forest.least[i] - 1e-3 && values[i] <= forest.most[i] + 1e-3)) return std::nullopt;
  const auto trees = static_cast<double>(forest.trees.size());
  std::vector<double> leaves;
  double mean = 0, squares = 0;
  for (const Tree& tree : forest.trees) leaves.push_back(leaf_of(tree, values));
  for (const double leaf : leaves) mean += leaf / trees;
  for (const double leaf : leaves) squares += (leaf - mean) * (leaf - mean) / trees;
  const double shortest = products / roofline.products + bytes / roofline.bytes + roofline.seconds;
  return Estimate{std::log2(shortest) - mean, std::sqrt(squares)};
}

std::optional<Tables> read_tables(std::string record, const std::vector<std::string>& features,
                                  const std::vector<std::string>& kernels, const double* numbers, int64_t count) {
  Numbers from(numbers, count);
  Tables tables{std::move(record), {}, 0, {}, features, {}, {}};
  for (double& margin : tables.margins) margin = from.next();
  tables.caution = from.next_from(0);
  // What is no rate divides by 0.
  constexpr double kLeast = std::numeric_limits<double>::min();
  tables.roofline = {from.next_from(kLeast), from.next_from(kLeast), from.next_from(kLeast)};
  const auto size = static_cast<int64_t>(features.size());
  const int64_t bounded = from.next_whole(0, size + 1);
  for (int64_t i = 0; i < bounded; i++) tables.bounded.push_back(from.next_whole(0, size));
  for (const std::string& kernel : kernels) {
    Forest& forest = tables.kernels[kernel];
    for (std::vector<double>* range : {&forest.least, &forest.most})
      for (int64_t i = 0; i < size; i++) range->push_back(from.next());
    const int64_t trees = from.next_whole(1, count + 1);
    for (int64_t i = 0; i < trees && from.good(); i++) forest.trees.push_back(read_tree(&from, size));
  }
  if (!from.good() || from.left() != 0) return std::nullopt;
  return tables;
}

}  // namespace groupwise
