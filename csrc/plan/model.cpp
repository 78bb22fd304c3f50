#include "plan/model.h"

#include <algorithm>
#include <cmath>

#include "plan/machine.h"
#include "sharing.h"

namespace groupwise {
namespace {

int kind_of(const Problem& p) {
  const int64_t widest = std::max(p.in_channels, p.out_channels);
  if (depthwise(p)) return 0;
  if (p.groups == 1) return 4;
  return widest < 8 ? 1 : widest < 32 ? 2 : 3;
}

}  // namespace

std::optional<double> expected_seconds(const Model& model, const Request& r, const std::string& kernel, double products) {
  const auto found = model.costs.find(kernel);
  if (found == model.costs.end()) return std::nullopt;
  const Cost& cost = found->second;
  const double reached = cost.reached[static_cast<int>(r.direction)][r.channels_last][kind_of(r.problem)];
  if (!(reached > 0)) return std::nullopt;
  const auto threads = static_cast<double>(threads_worth(r));
  const double roofline = std::max(2 * products / (threads * peak_of(*r.target)),
                                   4.0 * static_cast<double>(numbers_of(r.problem)) / copy_bandwidth());
  return cost.overhead + roofline / reached;
}

std::optional<Model> read_model(std::string record, const std::vector<std::string>& kernels, const double* numbers,
                                int64_t count) {
  constexpr int64_t kEach = 1 + 3 * 2 * kKinds;
  if (count != 1 + kEach * static_cast<int64_t>(kernels.size())) return std::nullopt;
  if (!std::all_of(numbers, numbers + count, [](double number) { return number >= 0 && std::isfinite(number); }))
    return std::nullopt;
  Model model{std::move(record), *numbers++, {}};
  for (const std::string& kernel : kernels) {
    Cost& cost = model.costs[kernel];
    cost.overhead = *numbers++;
    for (auto& direction : cost.reached)
      for (auto& format : direction)
        for (double& reached : format) reached = *numbers++;
  }
  return model;
}

}  // namespace groupwise
