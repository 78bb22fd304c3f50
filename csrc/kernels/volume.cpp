#include "kernels/volume.h"

#include <algorithm>
#include <optional>

#include "kernels/volume/correlations.h"
#include "kernels/volume/grad_weights.h"

namespace groupwise {
namespace {

// Groups of a contiguous tensor are computed in blocks whose planes stay in the cache while all taps of the depth are added. A
// block has a whole number of so many channels, which lanes may hold.
constexpr int64_t kLanesMost = 16;

// Returns the largest block that divides the groups and whose tensors, of `floats` a group, fit in the cache.
int64_t groups_together(const Problem& p, int64_t floats) {
  int64_t block = p.groups;
  for (int64_t count = p.groups; count > 0 && block * floats > kScratchFloats; count--)
    if (p.groups % count == 0 && count * std::min(p.in_channels, p.out_channels) % kLanesMost == 0) block = count;
  return block;
}

// Returns the 2-D request that is the same sum, if there is one: planes are samples where the depth has one tap, and rows where
// planes have one.
std::optional<Request> flat(const Request& r) {
  const Axis& a = r.depth.axis;
  Request two = r;
  two.dimensions = 2;
  two.depth = {};
  Problem& p = two.problem;
  if (one_to_one(a) || (one_tap(a) && r.direction != Direction::grad_input)) {
    const int64_t x = a.stride * r.depth.x, y = r.depth.y;
    if (p.batch > 1 && (r.x_strides.n != a.out * x || r.y_strides.n != a.out * y)) return std::nullopt;
    p.batch *= a.out;
    if (p.batch > 1 && a.out > 1) two.x_strides.n = x, two.y_strides.n = y;
    return two;
  }
  const auto joined = [&](const Strides& s) { return p.h.in == 1 || s.h == p.w.in * s.w; };
  if (!one_to_one(p.h) || !one_to_one(p.w) || !joined(r.x_strides) || !joined(r.y_strides)) return std::nullopt;
  p.w.in = p.w.out = p.h.in * p.w.in;
  p.h = a;
  two.x_strides.h = r.depth.x;
  two.y_strides.h = r.depth.y;
  two.w_strides.h = r.depth.w;
  return two;
}

template <class Planes>
std::unique_ptr<Work> laid_out(const Request& r, const KernelRow& kernel, int64_t floats) {
  auto work = std::make_unique<Planes>(r, r.channels_last ? r.problem.groups : groups_together(r.problem, floats));
  if (!work->lay_out(kernel)) return nullptr;
  return work;
}

template <class Real>
std::unique_ptr<Work> planes(const Request& r, const KernelRow& kernel, int64_t floats) {
  if (r.direction == Direction::grad_weight) return laid_out<PlaneGradWeights<Real>>(r, kernel, floats);
  return laid_out<PlaneCorrelations<Real>>(r, kernel, floats);
}

std::unique_ptr<Work> lay_out_volume(const KernelRow& kernel, const Request& r, const char** why) {
  const std::optional<Request> two = flat(r);
  // A volume is a sum of planes, which is rounded once.
  const bool flat_only = kernel.computes == Computes::bfloat16 && !two;
  *why = kernel.by_norm || flat_only ? "computes 1-D and 2-D convolutions only" : kernel.refuses(two ? *two : plane_of(r));
  if (*why) return nullptr;
  if (two) return kernel.lay_out(*two);
  const Problem& p = r.problem;
  const Axis& a = r.depth.axis;
  const int64_t x = p.in_channels * p.h.in * p.w.in, y = p.out_channels * p.h.out * p.w.out;
  const int64_t floats = r.direction == Direction::grad_weight ? a.in * x + a.out * y
                         : r.direction == Direction::forward   ? a.kernel * x + y
                                                               : a.kernel * y + x;
  return r.dtype == Dtype::float64 ? planes<double>(r, kernel, 2 * floats) : planes<float>(r, kernel, floats);
}

}  // namespace

std::unique_ptr<Work> lay_out(const KernelRow& kernel, const Request& r, const char** why) {
  if (kernel.computes == Computes::bfloat16) {
    *why = r.dtype == Dtype::bfloat16 ? nullptr : "computes bfloat16 only";
  } else {
    *why = r.dtype == Dtype::float64 && kernel.computes == Computes::float32 ? "computes no float64" : nullptr;
  }
  if (*why) return nullptr;
  if (r.dimensions == 3) return lay_out_volume(kernel, r, why);
  *why = kernel.refuses(r);
  return *why ? nullptr : kernel.lay_out(r);
}

}  // namespace groupwise
