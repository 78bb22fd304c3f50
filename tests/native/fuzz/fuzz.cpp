// Reads bytes as a convolution, and runs one kernel on it against plain loops (agreement.h). `make fuzz-core` builds it with
// sanitizers: under Clang libFuzzer finds the bytes by what they cover, elsewhere driver.cpp draws them.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "agreement.h"
#include "kernels/brgemm/product.h"
#include "targets/isa.h"

using namespace groupwise;

namespace {

// The most products of a problem, and the most floats of a tensor, which plain loops and sanitizers take milliseconds for.
constexpr int64_t kMostProducts = 200'000, kMostFloats = 200'000;

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  // Returns a number from `least` to `most`, which are at most 255 apart. There are zeros after the last byte.
  int64_t next(int64_t least, int64_t most) {
    if (left_ == 0) return least;
    left_--;
    return least + *data_++ % (most - least + 1);
  }
  bool flag() { return next(0, 1) != 0; }

 private:
  const uint8_t* data_;
  size_t left_;
};

// Returns an axis of at least one position of input and output, or one with no output. A convolution implies its padding after the
// input by its size, a transposed one by that and the output padding.
Axis next_axis(Bytes* bytes, bool transposed, int64_t largest) {
  const int64_t kernel = bytes->flag() ? bytes->next(1, 5) : bytes->next(1, largest);
  Axis a{0, 0, kernel, bytes->next(1, 5), bytes->next(0, std::min<int64_t>(largest, 2 * kernel)), bytes->next(1, 4)};
  const int64_t size = bytes->next(1, largest), reach = a.dilation * (a.kernel - 1) + 1;
  if (transposed) {
    const int64_t output_padding = bytes->next(0, std::max(a.stride, a.dilation) - 1);
    a.out = size;
    a.in = (size - 1) * a.stride - 2 * a.pad + reach + output_padding;
    if (a.in < 1) a.out = 0;
  } else {
    const int64_t room = size + 2 * a.pad - reach;
    a.in = size;
    a.out = room < 0 ? 0 : room / a.stride + 1;
  }
  return a;
}

// How an image lies in memory: dense, or as a slice of a larger one, which leaves gaps.
struct Gaps {
  int64_t column, row, plane, image;
};
Gaps next_gaps(Bytes* bytes) {
  if (!bytes->flag()) return {0, 0, 0, 0};
  return {bytes->next(0, 3), bytes->next(0, 5), bytes->next(0, 2), bytes->next(0, 9)};
}

// Lays out an image, and returns the stride from plane to plane in `depth`. Gaps follow a pixel of channels, a row, a plane and an
// image.
Strides lay_out(const Gaps& gaps, bool channels_last, int64_t batch, int64_t channels, int64_t planes, int64_t h, int64_t w,
                int64_t* depth) {
  Strides s{};
  if (channels_last && channels > 1) {
    s.c = 1;
    s.w = channels + gaps.column;
    s.h = w * s.w + gaps.row;
    *depth = h * s.h + gaps.plane;
    s.n = planes * *depth + gaps.image;
  } else {
    s.w = 1;
    s.h = w + gaps.row;
    *depth = h * s.h + gaps.plane;
    s.c = planes * *depth + gaps.column;
    s.n = channels * s.c + gaps.image;
  }
  if (planes == 1) *depth = 0;
  return meaningful(s, batch, channels, h, w);
}

// Lays out a weight as contiguous or channels_last, or in either with gaps.
WeightStrides lay_out_weight(const Gaps& gaps, bool channels_last, const Problem& p, int64_t planes, int64_t* depth) {
  WeightStrides s{};
  const int64_t inner = channels_last ? p.in_channels + gaps.column : 1;
  s.w = inner;
  s.h = p.w.kernel * s.w + gaps.row;
  *depth = p.h.kernel * s.h + gaps.plane;
  s.c = channels_last ? 1 : planes * *depth + gaps.image;
  s.o = channels_last ? planes * *depth + gaps.image : p.in_channels * s.c;
  s.group = p.out_channels * s.o;
  return s;
}

int64_t floats_of(int64_t batch, const Strides& s, int64_t channels, int64_t planes, int64_t depth) {
  return std::max(batch * s.n, std::max(channels * s.c, planes * depth));
}

// Returns a request, whose kernels may all refuse it.
Request next_request(Bytes* bytes) {
  Request r{};
  const bool transposed = bytes->flag();
  r.dimensions = bytes->next(1, 3);
  r.direction = transposed ? Direction::grad_input : static_cast<Direction>(bytes->next(0, 2));
  r.transposed = transposed;
  r.threads = bytes->next(1, 4);
  r.channels_last = r.dimensions > 1 && bytes->flag();
  Problem& p = r.problem;
  p.batch = bytes->next(1, 4);
  // The three kinds of layers: depthwise, narrow groups and wide ones.
  const int64_t kind = bytes->next(0, 2);
  constexpr int64_t kGroups[] = {40, 20, 4}, kChannels[] = {1, 9, 40};
  constexpr int64_t kSizes[3][3] = {{150, 60, 30}, {24, 14, 8}, {8, 6, 4}};
  p.groups = bytes->next(1, kGroups[kind]);
  p.in_channels = bytes->next(1, kChannels[kind]);
  p.out_channels = bytes->flag() ? p.in_channels : bytes->next(1, kChannels[kind]);
  // Some vectors need input channels that fill them.
  if (kind == 2 && bytes->flag()) p.in_channels = round_up(p.in_channels, 16);
  const int64_t largest = kSizes[r.dimensions - 1][kind];
  constexpr Axis kFlat{1, 1, 1, 1, 0, 1};
  p.w = next_axis(bytes, transposed, largest);
  p.h = r.dimensions > 1 ? next_axis(bytes, transposed, largest) : kFlat;
  r.depth.axis = r.dimensions > 2 ? next_axis(bytes, transposed, largest) : kFlat;
  for (int64_t* const count : {&p.batch, &p.groups, &p.in_channels, &p.out_channels})
    while (*count > 1 && products_of(r) > kMostProducts) *count /= 2;
  const Gaps x = next_gaps(bytes), y = next_gaps(bytes), w = next_gaps(bytes);
  const bool last = bytes->flag();
  // What is written has the format of the call, in which tensors that are read in place may have another.
  const bool x_last = bytes->flag() && r.direction != Direction::grad_input;
  const bool y_last = bytes->flag() && r.direction != Direction::forward;
  const Axis& d = r.depth.axis;
  r.x_strides = lay_out(x, r.channels_last || x_last, p.batch, p.groups * p.in_channels, d.in, p.h.in, p.w.in, &r.depth.x);
  r.y_strides = lay_out(y, r.channels_last || y_last, p.batch, p.groups * p.out_channels, d.out, p.h.out, p.w.out, &r.depth.y);
  // The binding makes depthwise weights contiguous.
  const bool plain = depthwise(p) && r.direction != Direction::grad_weight;
  r.w_strides = lay_out_weight(plain ? Gaps{} : w, last && !plain, p, d.kernel, &r.depth.w);
  if (r.dimensions < 3) r.depth = {};
  return r;
}

bool small(const Request& r) {
  const Problem& p = r.problem;
  const Depth& d = r.depth;
  if (p.h.out < 1 || p.w.out < 1 || d.axis.out < 1 || products_of(r) > kMostProducts) return false;
  const int64_t weights = p.groups * std::max(r.w_strides.group, p.in_channels * r.w_strides.c);
  return floats_of(p.batch, r.x_strides, p.groups * p.in_channels, d.axis.in, d.x) <= kMostFloats &&
         floats_of(p.batch, r.y_strides, p.groups * p.out_channels, d.axis.out, d.y) <= kMostFloats && weights <= kMostFloats;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::vector<std::string> isas = runnable_isas();
  Bytes bytes(data, size);
  const std::string& isa = isas[bytes.next(0, static_cast<int64_t>(isas.size()) - 1)];
  force_isa(isa);
  use_product({multiply, nullptr, isa.c_str()});
  const int64_t which = bytes.next(0, 255);
  Extras extras{bytes.flag(), bytes.flag(), bytes.flag(), bytes.flag()};
  Random random(static_cast<uint32_t>(bytes.next(0, 255)));
  Request r = next_request(&bytes);
  r.dtype = Dtype::float32;
  r.target = &kernels();
  if (!small(r)) return 0;
  // Layers with an epilogue are 1-D or 2-D.
  if (r.dimensions > 2) extras.epilogue = false;
  std::vector<std::pair<const char*, std::string>> refused;
  const std::vector<Candidate> candidates = candidates_of(r, &refused);
  if (candidates.empty()) return 0;
  const Candidate& chosen = candidates[which % candidates.size()];
  Plan plan;
  plan.request = r;
  plan.kernel = chosen.kernel;
  plan.work = chosen.work;
  if (agrees(plan, extras, random)) return 0;
  std::fflush(stdout);
  std::abort();
}
