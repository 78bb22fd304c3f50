// Computes long convolutions along one axis by PyTorch's FFT (csrc/kernels/fft/layout.h).
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_fft_c2r.h>
#include <ATen/ops/_fft_r2c.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/fft/layout.h"
#include "kernels/work.h"

namespace groupwise {
namespace {

using at::Tensor;

// Returns [groups, channels, batch, length] of a tensor along the axis.
Tensor rows_of(float* from, const Strides& s, const Problem& p, int64_t channels, bool high, int64_t length) {
  return at::from_blob(from, {p.groups, channels, p.batch, length}, {channels * s.c, s.c, s.n, high ? s.h : s.w}, at::kFloat);
}

// Returns zeros of the same sizes except for the last.
Tensor zeros_like(const Tensor& t, int64_t length) {
  std::vector<int64_t> sizes = t.sizes().vec();
  sizes.back() = length;
  return at::zeros(sizes, t.options());
}

Tensor spectra_of(const Tensor& t) { return at::_fft_r2c(t, {t.dim() - 1}, 0, true); }

// Returns blocks of `count` numbers, `step` apart, the first of which begins at `low`. Numbers outside are zero.
Tensor blocks_of(const Tensor& t, int64_t low, int64_t step, int64_t blocks, int64_t count) {
  const int64_t size = t.size(-1), all = (blocks - 1) * step + count;
  const Tensor padded = zeros_like(t, all);
  const int64_t first = std::max<int64_t>(0, low), last = std::min(size, low + all);
  if (last > first) padded.narrow(-1, first - low, last - first).copy_(t.narrow(-1, first, last - first));
  return padded.unfold(-1, count, step);
}

// Returns the numbers, `apart` from each other, and zeros behind them.
Tensor spread(const Tensor& t, int64_t apart, int64_t length) {
  const Tensor to = zeros_like(t, length);
  to.slice(-1, 0, (t.size(-1) - 1) * apart + 1, apart).copy_(t);
  return to;
}

// One request with its tensors. A circular convolution of `length` numbers is the product of spectra. To correlate, the weights,
// or the blocks of a gradient of the output, are reversed.
struct Transformed {
  const Request& request;
  const FftLayout& l;
  Tensor x, y, w;  // [groups, channels, batch, size], and [groups, out_channels, in_channels, taps]
  Tensor bias;     // [groups, channels] of the result, or undefined

  // Writes the results of groups [first, first + count). Returns false if one is not finite.
  bool groups(int64_t first, int64_t count) const {
    const auto chosen = [&](const Tensor& t) { return t.narrow(0, first, count); };
    if (request.direction == Direction::grad_weight) return weights(chosen(x), chosen(y), chosen(w));
    const bool forward = request.direction == Direction::forward;
    return outputs(chosen(forward ? x : y), chosen(w), chosen(forward ? y : x), bias.defined() ? chosen(bias) : bias);
  }

 private:
  bool single() const { return depthwise(request.problem); }

  // Returns [bins, channels or more] of spectra of one group, so that each bin has a matrix.
  static Tensor bins(const Tensor& spectra, at::IntArrayRef sizes) {
    return spectra.reshape({-1, spectra.size(-1)}).t().contiguous().view(sizes);
  }

  // Returns the numbers of [bins, ...] spectra, [rows, length].
  Tensor numbers_of_bins(const Tensor& products) const {
    return numbers(products.reshape({products.size(0), -1}).t().contiguous());
  }
  Tensor numbers(const Tensor& spectra) const { return at::_fft_c2r(spectra, {spectra.dim() - 1}, 2, l.length); }

  // The sum is not finite if one of the numbers is not; and if it overflows, which only costs time.
  static bool finite(const Tensor& t) { return std::isfinite(t.sum().item<float>()); }

  bool outputs(const Tensor& from, const Tensor& taps, const Tensor& to, const Tensor& sums) const {
    const bool forward = request.direction == Direction::forward;
    const int64_t groups = from.size(0), batch = from.size(2), size = to.size(-1), channels = to.size(1);
    const int64_t low = forward ? -l.axis.pad : l.axis.pad - l.reach + 1;
    const Tensor read = spectra_of(blocks_of(from, low, l.block, l.blocks, l.length).contiguous());
    const Tensor weight = spectra_of(spread(forward ? taps.flip(-1) : taps, l.axis.dilation, l.length));
    Tensor result;
    if (single()) {
      read.mul_(weight.unsqueeze(3));
      result = numbers(read);
    } else {
      const int64_t f = weight.size(-1), out = taps.size(1), in = taps.size(2);
      const Tensor matrix = bins(weight, {f, out, in}), columns = bins(read, {f, forward ? in : out, batch * l.blocks});
      result = numbers_of_bins(at::bmm(forward ? matrix : matrix.transpose(1, 2), columns));
    }
    if (!finite(result)) return false;
    result = result.view({groups, channels, batch, l.blocks, l.length}).narrow(-1, l.reach - 1, l.block);
    if (sums.defined()) result.add_(sums.view({groups, channels, 1, 1, 1}));
    const int64_t whole = size / l.block, rest = size % l.block;
    if (whole > 0) to.narrow(-1, 0, whole * l.block).unflatten(-1, {whole, l.block}).copy_(result.narrow(3, 0, whole));
    if (rest > 0) to.narrow(-1, whole * l.block, rest).copy_(result.select(3, whole).narrow(-1, 0, rest));
    return true;
  }

  bool weights(const Tensor& from, const Tensor& grad, const Tensor& to) const {
    const int64_t batch = from.size(2), rows = batch * l.blocks;
    const Tensor read = spectra_of(blocks_of(from, -l.axis.pad, l.block, l.blocks, l.length).contiguous());
    const Tensor seen = spectra_of(spread(blocks_of(grad, 0, l.block, l.blocks, l.block).flip(-1), 1, l.length));
    Tensor result;
    if (single()) {
      result = numbers(read.mul_(seen).sum(at::IntArrayRef{2, 3}).unsqueeze(2));
    } else {
      const int64_t f = read.size(-1), out = to.size(1), in = to.size(2);
      result = numbers_of_bins(at::bmm(bins(seen, {f, out, rows}), bins(read, {f, in, rows}).transpose(1, 2)));
    }
    if (!finite(result)) return false;
    to.copy_(result.view({to.size(0), to.size(1), to.size(2), l.length})
                 .narrow(-1, l.block - 1, l.reach)
                 .slice(-1, 0, l.reach, l.axis.dilation));
    return true;
  }
};

bool run_fft(const Request& r, const FftLayout& l, const Tensors& t) {
  // The tensors here are none that autograd knows of.
  const at::AutoDispatchBelowADInplaceOrView guard;
  const Problem& p = r.problem;
  const bool forward = r.direction == Direction::forward;
  const WeightStrides& s = r.w_strides;
  Transformed all{r,
                  l,
                  rows_of(t.x, r.x_strides, p, p.in_channels, l.high, l.axis.in),
                  rows_of(t.y, r.y_strides, p, p.out_channels, l.high, l.axis.out),
                  at::from_blob(t.w, {p.groups, p.out_channels, p.in_channels, l.axis.kernel},
                                {s.group, s.o, s.c, l.high ? s.h : s.w}, at::kFloat),
                  Tensor()};
  if (t.bias) {
    const int64_t channels = forward ? p.out_channels : p.in_channels;
    all.bias = at::from_blob(const_cast<float*>(t.bias), {p.groups, channels}, {channels, 1}, at::kFloat);
  }
  for (int64_t group = 0; group < p.groups; group += l.groups)
    if (!all.groups(group, std::min(l.groups, p.groups - group))) return false;
  return true;
}

const bool fft_is_used = (use_fft(run_fft), true);

}  // namespace
}  // namespace groupwise
