#include "plan/plan.h"

#include <algorithm>
#include <cstring>

#include "targets/isa.h"

namespace groupwise {
namespace {

std::vector<Phase> phases(const Request& r, const Axis& axis) {
  if (r.direction == Direction::grad_input) return grad_input_phases(axis);
  return {forward_phase(axis)};
}

// Lays out a kernel's work and, if it fits the scratch, calls f(layout, tasks, floats of scratch). Returns whether it fits.
template <class F>
bool with_layout(const Request& r, Kernel kernel, F&& f) {
  const Problem& p = r.problem;
  const int64_t lanes = kernels().lanes, threads = threads_worth(r);
  if (r.direction == Direction::grad_weight) {
    const GradWeight work = grad_weight_of(r);
    const auto lay = [&](auto l) {
      const bool fits = lay_out(work, lanes, threads, &l);
      if (fits) f(l, l.tasks(p), l.floats);
      return fits;
    };
    if (kernel == Kernel::planar) return lay(GradWeightLayout{});
    return narrow(work, lanes) ? lay(GradWeightNarrowLayout{}) : lay(GradWeightChannelsLayout{});
  }
  // A grad_input is described by the one of its correlations that needs the most scratch.
  const std::vector<Correlation> all = correlations_of(r);
  const Correlation* most = nullptr;
  if (kernel == Kernel::planar) {
    CorrelationLayout largest{};
    for (const Correlation& c : all) {
      CorrelationLayout l;
      if (!lay_out(c, lanes, threads, &l)) return false;
      if (!most || l.input_floats + l.output_floats > largest.input_floats + largest.output_floats) largest = l, most = &c;
    }
    f(largest, largest.tasks(*most), largest.input_floats + largest.output_floats);
    return true;
  }
  ChannelsLayout largest{};
  for (const Correlation& c : all) {
    ChannelsLayout l;
    if (!lay_out_channels_of(c, p.h.kernel, p.w.kernel, lanes, threads, &l)) return false;
    if (!most || l.floats > largest.floats) largest = l, most = &c;
  }
  f(largest, largest.tasks(*most), largest.floats);
  return true;
}

// Tells whether there are eight channels for vectors along them: fewer leave most lanes of a vector, or block of 16, empty.
bool has_lanes(const Request& r) {
  const Problem& p = r.problem;
  if (r.direction == Direction::grad_weight)
    return (depthwise(p) ? p.groups : p.in_channels) >= 8 || narrow(grad_weight_of(r), kernels().lanes);
  return channels_form(correlations_of(r).front(), kernels().lanes) != ChannelsForm::none;
}

// Returns why no kernel supports the request, if none does.
Refusal unfit(const Request& r) {
  const Problem& p = r.problem;
  if (r.dimensions > 2) return Refusal::dimensions;
  if (!r.float32) return Refusal::dtype;
  if (p.batch < 1 || p.h.out < 1 || p.w.out < 1 || p.h.in < 1 || p.w.in < 1 || p.in_channels < 1 || p.out_channels < 1)
    return Refusal::empty;
  for (const Axis& a : {p.h, p.w})
    if (std::max({a.stride, a.pad, a.dilation, a.kernel}) > kMostExtent || std::max(a.in, a.out) > kMostSize)
      return Refusal::extent;
  // Every phase of the strides is a correlation of its own.
  if (r.direction == Direction::grad_input && p.h.stride * p.w.stride > kMostPhases) return Refusal::extent;
  return Refusal::none;
}

Refusal refusal(const Request& r, Kernel kernel) {
  if (kernel == Kernel::channels && !has_lanes(r)) return Refusal::channels;
  return with_layout(r, kernel, [](const auto&, int64_t, int64_t) {}) ? Refusal::none : Refusal::scratch;
}

// Tells where PyTorch was faster on several samples, for which it packs the weights once and copies contiguous tensors to
// blocks of channels (8 samples, one thread, ms, PyTorch | groupwise).
bool batch_slower(const Request& r) {
  const Problem& p = r.problem;
  const bool weight = r.direction == Direction::grad_weight, input = r.direction == Direction::grad_input;
  const int64_t taps = p.h.kernel * p.w.kernel, widest = std::max(p.in_channels, p.out_channels);
  // PyTorch's preparations take longer than a small layer: 64 channels 4x4 0.073 | 0.009.
  if (p.batch * p.groups * widest * p.h.out * p.w.out < 65'536) return false;
  if (r.channels_last) {
    // Depthwise 14x14 0.52 | 0.55, 7x7 0.20 | 0.22, but 28x28 3.0 | 2.2, and of stride 2 0.39 | 0.30.
    // grad_input of stride 2, 56x56 2.7 | 3.3, 28x28 0.79 | 0.94.
    if (depthwise(p))
      return taps <= 9 && ((weight && p.w.stride == 1 && p.w.out <= 16) || (input && p.w.stride > 1 && !r.transposed));
    // 1x1, two threads, 30 channels a group 0.63 | 0.75, 68 3.4 | 4.4, but 8 0.49 | 0.41.
    if (!weight && taps == 1 && r.threads > 1) return widest >= 24;
    // Of stride 2, pixels a multiple of 1 KiB apart meet in the same sets of the L1 cache: groups of 16 of 512 channels 28x28
    // 6.8 | 9.4, of 768 12.2 | 13.9, of 1024 12.4 | 18.7, but of 520 6.8 | 6.2, and 14x14 of 1024 3.0 | 2.7.
    const int64_t pixel = p.groups * p.in_channels;
    if (!weight && !input && p.w.stride > 1 && widest >= 16 && p.w.out >= 10 && pixel >= 512 && pixel % 256 == 0) return true;
    // Dot products of 128 channels 13x13 9.2 | 11.4, 96 14x14 6.6 | 7.2.
    if (!weight && !input && widest >= 96) return true;
    // 32 channels 7x7 4.0 | 5.2, 72 channels 14x14 17.8 | 22.0, but 32 14x14 10.3 | 9.6, 24 28x28 27.5 | 21.1.
    return input && (widest >= 64 || (widest >= 32 && p.h.out * p.w.out <= 100));
  }
  // Groups of 16 channels 14x14 4.3 | 4.5, 24 28x28 20.7 | 25.6, 32 7x7 2.6 | 4.0, but 8 28x28 7.1 | 4.5; of stride 2, 16
  // channels 28x28 6.4 | 6.0. Of stride 2, outputs that do not fill vectors: 24 channels 13x13 5.9 | 6.8, 32 7x7 5.7 | 6.3, but
  // 32 8x8 8.0 | 6.2.
  const int64_t narrowest = std::min(p.in_channels, p.out_channels);
  if (!depthwise(p) && p.w.stride > 1)
    return !weight && !input && narrowest >= 24 && p.w.out <= 16 && p.w.out % kernels().lanes != 0;
  if (!depthwise(p)) return !weight && narrowest >= 16;
  // Depthwise of small images. grad_weight of 3x3 7x7 0.59 | 0.99, of stride 2 14x14 0.51 | 0.68, but 28x28 1.06 | 0.75, and
  // 5x5 7x7 6.7 | 1.5. grad_input of stride 2, 14x14 0.94 | 1.16, 5x5 1.59 | 2.37, but 28x28 1.36 | 1.09.
  return p.w.out <= 8 && ((weight && taps <= 9) || (input && p.w.stride > 1 && !r.transposed));
}

// Tells whether an output of this axis sees only padding: before the image, after it, or between two taps. There oneDNN in
// PyTorch 2.13 sometimes reads outside its tensors, which can end the process, so such a layer never falls back for speed.
bool sees_padding_alone(const Axis& a) {
  const int64_t reach = a.dilation * (a.kernel - 1);
  return a.pad > reach || (a.out - 1) * a.stride - a.pad >= a.in || (a.kernel > 1 && a.pad > 0 && a.dilation > a.in);
}

// Tells where PyTorch's kernels were measured as fast or faster (two threads, ms, PyTorch | groupwise).
bool slower(const Request& r) {
  const Problem& p = r.problem;
  const int64_t widest = std::max(p.in_channels, p.out_channels);
  if (p.groups == 1 && (r.channels_last || p.in_channels * p.out_channels >= 1024)) return true;
  // Half of the vector is empty: 4 channels 0.35 | 0.72.
  if (r.channels_last && depthwise(p) && p.groups < 8) return true;
  const bool pointwise = p.h.kernel * p.w.kernel == 1;
  if (p.batch > 1 && batch_slower(r)) return true;
  // channels_last 512 channels a group 34 | 45; contiguous 64 channels 14x14 1.56 | 1.52, and a training step of 192, whose
  // other gradient PyTorch makes, 6.8 | 7.3; 1x1 of 48 channels, one thread, 0.30 | 0.37.
  if (r.direction == Direction::grad_weight) return widest >= (r.channels_last ? 256 : pointwise ? 32 : 96);
  // Dot products: 128 channels a group 14x14 3.5 | 3.1, 7x7 1.03 | 0.85, 28x28 6.9 | 6.0, 256 channels 14x14 5.6 | 4.9, but
  // 512 channels 13.5 | 12.9, one thread 21.9 | 24.0, and 256 channels 32x32 34.3 | 35.9.
  if (channels_form(correlations_of(r).front(), kernels().lanes) == ChannelsForm::dots)
    return widest > 256 || p.h.out * p.w.out > 800;
  // 192 channels a group, 13x13, 1.38 | 1.42, 128 channels 28x28 7.6 | 8.5; 48 channels 2.52 | 2.45.
  // Of large images fewer: 32 channels 112x112 16.5 | 17.9, 48 channels 56x56 4.6 | 4.9.
  if (r.channels_last) return widest >= 96 || (widest >= 32 && p.h.out * p.w.out > 2000);
  // 48 channels 2.51 | 2.59; 32 channels 28x28 1.47 | 1.55, but 14x14 0.50 | 0.35. 1x1 of 80 channels, one thread, 0.66 | 0.88;
  // 48 channels 0.35 | 0.28.
  if (pointwise) return widest >= 64;
  return widest >= 48 || (widest >= 32 && p.h.out * p.w.out > 400);
}

// Tells where `channels` was measured faster than `planar`, if both can run (one core, ms, planar | channels).
bool channels_first(const Request& r) {
  const Problem& p = r.problem;
  const bool weight = r.direction == Direction::grad_weight;
  if (depthwise(p)) {
    const int64_t taps = p.h.kernel * p.w.kernel;
    // 31x31 8.9 | 13.9.
    if (r.channels_last) return taps <= 225;
    // 3x3 56x56 0.191 | 0.378, 7x7 0.110 | 0.193, of stride 2 28x28 0.086 | 0.202, 5x5 14x14 0.175 | 0.332, 9x9 28x28 0.286 |
    // 0.276, and their gradients alike. Of few rows, which do not share their inputs: 1x3 of 250 0.199 | 0.163, 1x31 of 400
    // 0.444 | 0.324; grad_weight 9x9 0.295 | 0.315.
    return (r.direction == Direction::grad_input ? p.h.in : p.h.out) < 4 && taps <= (weight ? 81 : 36);
  }
  // Contiguous, two threads, 8 channels a group 0.452 | 0.547, 16 28x28 0.347 | 0.311, 24 0.614 | 0.547, 32 0.397 | 0.354; of
  // stride 2, 8 channels 0.281 | 0.229. 1x1, one thread, 48 channels 14x14 0.28 | 0.31.
  if (!weight && !r.channels_last && p.h.kernel * p.w.kernel == 1) return false;
  // 8 samples, stride 2, one thread, 8 channels 14x14 2.17 | 2.94, 16 15x15 7.0 | 9.0, 20 7x7 4.2 | 6.9, but 24 28x28 16.1 |
  // 14.3; grad_input of 16 15x15 8.9 | 12.9, 16 7x7 8.0 | 8.5, 32 7x7 10.7 | 9.8.
  const int64_t widest = std::max(p.in_channels, p.out_channels);
  if (!weight && !r.channels_last && p.batch > 1 && p.w.stride > 1 && p.w.out <= 16 &&
      (r.direction == Direction::forward || widest < 32))
    return false;
  return weight || r.channels_last || std::min(p.in_channels, p.out_channels) >= (p.w.stride > 1 ? 8 : 16);
}

const char* text(Refusal refusal, Kernel kernel) {
  switch (refusal) {
    case Refusal::none: return "";
    case Refusal::dimensions: return "computes 1-D and 2-D convolutions only";
    case Refusal::dtype: return "computes in float32 only";
    case Refusal::empty: return "nothing to compute";
    case Refusal::extent: return "supports strides, paddings, dilations and kernels to 1024 and sizes to 2**24";
    case Refusal::channels:
      return "its vectors along the channels need 8 of them: of a depthwise convolution, of one group (for gradients its "
             "input channels), or, in channels_last, of groups of 1, 2 or 4 side by side";
    case Refusal::scratch: return "its smallest block exceeds 512 KiB of scratch";
    case Refusal::slower: return "measured slower here than PyTorch's own";
    case Refusal::not_first:
      return kernel == Kernel::planar ? "measured slower here than vectors along the channels"
                                      : "measured slower here than vectors along the width";
    case Refusal::forced: return "another kernel was asked for";
  }
  return "";
}

std::string number(const char* key, int64_t value) { return std::string("\"") + key + "\": " + std::to_string(value); }
std::string quoted(const char* key, const std::string& value) { return std::string("\"") + key + "\": \"" + value + "\""; }

std::string tile(const Request& r, Kernel kernel) {
  const std::string lanes = std::to_string(kernels().lanes);
  const Problem& p = r.problem;
  const bool weight = r.direction == Direction::grad_weight;
  if (kernel == Kernel::channels) {
    if (weight && narrow(grad_weight_of(r), kernels().lanes)) return "up to 12 sums x " + lanes + " output channels";
    if (weight)
      return depthwise(p) ? "3 x 4 taps x " + lanes + " channels"
                          : "4 output channels x 3 vectors of " + lanes + " input channels";
    const ChannelsForm form = channels_form(correlations_of(r).front(), kernels().lanes);
    if (form == ChannelsForm::narrow) return std::to_string(kPixelTile) + " pixels x " + lanes + " channels";
    if (form == ChannelsForm::dots) return "3 pixels x 4 output channels x " + lanes + " input channels";
    return std::to_string(12 * kernels().lanes / 16) + " pixels x 16 channels";
  }
  const int64_t outputs = r.direction == Direction::grad_input ? p.in_channels : p.out_channels;
  if (!weight && outputs < 4) {
    const Correlation c = correlations_of(r).front();
    CorrelationLayout l;
    if (c.in_channels == 1 && lay_out(c, kernels().lanes, threads_worth(r), &l) && takes_single(c.h, c.w.front(), l.block.rows))
      return std::to_string(kSingleRows) + " rows x " + lanes + " columns";
  }
  if (outputs >= 4)
    return (weight ? "4 output channels x 3 taps x " : "4 output channels x 3 vectors of ") + lanes + " columns";
  return (weight ? "3 x 4 taps x " : "4 rows x 3 vectors of ") + lanes + " columns";
}

std::string blocks(const Request& r, Kernel kernel) {
  std::string json;
  with_layout(r, kernel, [&](const auto& l, int64_t tasks, int64_t floats) {
    json = "\"block\": {" + number("rows", l.block.rows) + ", " + number("columns", l.block.columns) + ", " +
           number("groups", l.block.groups) + "}, " + number("tasks", tasks) + ", " + number("scratch_bytes", floats * 4);
  });
  return json;
}

}  // namespace

int64_t threads_worth(const Request& r) {
  const Problem& p = r.problem;
  const int64_t macs = p.batch * p.groups * p.in_channels * p.out_channels * p.h.kernel * p.w.kernel * p.h.out * p.w.out;
  return macs >= kWorthAThread ? r.threads : 1;
}

std::vector<Correlation> correlations_of(const Request& r) {
  const Problem& p = r.problem;
  const bool forward = r.direction == Direction::forward;
  Correlation c{};
  c.batch = p.batch;
  c.groups = p.groups;
  c.in_channels = forward ? p.in_channels : p.out_channels;
  c.out_channels = forward ? p.out_channels : p.in_channels;
  c.w = phases(r, p.w);
  c.input_strides = forward ? r.x_strides : r.y_strides;
  c.output_strides = forward ? r.y_strides : r.x_strides;
  c.weight_strides = r.w_strides;
  if (!forward) std::swap(c.weight_strides.o, c.weight_strides.c);
  const auto spread = [](const Axis& a) { return a.kernel > 1 && std::max(a.stride, a.dilation) > 1; };
  c.longest_run = !forward && (spread(p.h) || spread(p.w)) ? kGradInputRun : kRun;
  std::vector<Correlation> all;
  for (const Phase& h : phases(r, p.h)) {
    c.h = h;
    all.push_back(c);
  }
  return all;
}

GradWeight grad_weight_of(const Request& r) {
  GradWeight work{};
  work.problem = r.problem;
  work.input_strides = r.x_strides;
  work.grad_output_strides = r.y_strides;
  return work;
}

Choice choose(const Request& r, const char* forced) {
  Choice choice{Kernel::pytorch, {Refusal::none, Refusal::none}};
  Refusal& planar = choice.refusals[0];
  Refusal& channels = choice.refusals[1];
  const bool free = !forced || !*forced;
  planar = channels = unfit(r);
  // This comes before any layout, so that a call that falls back loses as little time as possible.
  const Problem& p = r.problem;
  const bool safe = !sees_padding_alone(p.h) && !sees_padding_alone(p.w);
  if (planar == Refusal::none && free && safe && slower(r)) planar = channels = Refusal::slower;
  if (planar != Refusal::none) return choice;
  planar = refusal(r, Kernel::planar);
  channels = refusal(r, Kernel::channels);
  if (!free) {
    if (planar == Refusal::none && std::strcmp(forced, "planar") != 0) planar = Refusal::forced;
    if (channels == Refusal::none && std::strcmp(forced, "channels") != 0) channels = Refusal::forced;
  } else if (channels == Refusal::none && planar == Refusal::none) {
    (channels_first(r) ? planar : channels) = Refusal::not_first;
  }
  if (channels == Refusal::none) {
    choice.kernel = Kernel::channels;
  } else if (planar == Refusal::none) {
    choice.kernel = Kernel::planar;
  }
  return choice;
}

std::string describe(const Plan& plan) {
  const auto& [r, choice] = plan;
  const Kernel kernel = choice.kernel;
  const Problem& p = r.problem;
  std::string json = "{" + quoted("kernel", kKernelNames[static_cast<int>(kernel)]) + ", " +
                     quoted("direction", kDirectionNames[static_cast<int>(r.direction)]) + ", " + quoted("isa", kernels().isa) +
                     ", " + number("threads", kernel == Kernel::pytorch ? r.threads : threads_worth(r)) + ", " +
                     quoted("memory_format", r.channels_last ? "channels_last" : "contiguous") + ", ";
  json += number("batch", p.batch) + ", " + number("groups", p.groups) + ", " +
          number("in_channels", p.groups * p.in_channels) + ", " + number("out_channels", p.groups * p.out_channels);
  const auto pair = [](const char* key, int64_t h, int64_t w) {
    return std::string(", \"") + key + "\": [" + std::to_string(h) + ", " + std::to_string(w) + "]";
  };
  json += pair("input_size", p.h.in, p.w.in) + pair("output_size", p.h.out, p.w.out) +
          pair("kernel_size", p.h.kernel, p.w.kernel) + pair("stride", p.h.stride, p.w.stride) +
          pair("padding", p.h.pad, p.w.pad) + pair("dilation", p.h.dilation, p.w.dilation);
  if (kernel != Kernel::pytorch) json += ", " + quoted("tile", tile(r, kernel)) + ", " + blocks(r, kernel);
  json += ", \"refused\": {";
  bool first = true;
  for (int k = 0; k < 2; k++) {
    if (choice.refusals[k] == Refusal::none) continue;
    json += (first ? "" : ", ") + quoted(kKernelNames[k], text(choice.refusals[k], static_cast<Kernel>(k)));
    first = false;
  }
  return json + "}}";
}

}  // namespace groupwise
