#include "kernels/norm/norm.h"

#include <cmath>
#include <memory>
#include <vector>

#include "run.h"
#include "sharing.h"
#include "targets/isa.h"

namespace groupwise {
namespace {

// Pieces of so many numbers give the threads enough to do and few sums to merge, and there are at most kMostPieces.
constexpr int64_t kPiece = 65536, kMostPieces = 256;
// A chunk whose tensors hold so many numbers is in the L2 or L3 cache still when the second sweep reads it.
constexpr int64_t kStays = 262144;

// Runs sweep(chunk, piece) for all, then finish(channels), then second(chunk, piece): chunk by chunk where the second sweep finds
// the tensors in the cache, else one after the other. Both give the same bits.
template <class First, class Finish, class Second>
void two_sweeps(const Norm& n, int64_t tensors, const NormRun& run, First&& first, Finish&& finish, Second&& second) {
  const NormSplit& s = n.split;
  // The sweeps read the tensors, and the second writes one.
  const double bytes = 4 * static_cast<double>(n.shape.values() * n.shape.channels * (2 * tensors + 1));
  const bool threaded = worth_threads({0, bytes}, run.threads, run.parallel_for);
  const int64_t threads = threaded ? run.threads : 1;
  const bool enough = threads == 1 || s.chunks >= 4 * threads || (s.pieces == 1 && s.chunks >= threads);
  if (enough && n.shape.values() * s.chunk * tensors <= kStays) {
    run_tasks(s.chunks, threaded, run.parallel_for, [&](int64_t begin, int64_t end) {
      for (int64_t chunk = begin; chunk < end; chunk++) {
        for (int64_t piece = 0; piece < s.pieces; piece++) first(chunk, piece);
        finish(Range{chunk * s.chunk, std::min((chunk + 1) * s.chunk, n.shape.channels)});
        for (int64_t piece = 0; piece < s.pieces; piece++) second(chunk, piece);
      }
    });
    return;
  }
  // Planes of one channel follow each other, as do the chunks of a row.
  const auto all = [&](auto& sweep, bool backwards) {
    run_tasks(s.chunks * s.pieces, threaded, run.parallel_for, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; i++) {
        const int64_t task = backwards ? begin + end - 1 - i : i;
        if (n.shape.rows) {
          sweep(task % s.chunks, task / s.chunks);
        } else {
          sweep(task / s.pieces, task % s.pieces);
        }
      }
    });
  };
  // The second sweep begins with what the first read last, which is in the cache still.
  all(first, false);
  finish(Range{0, n.shape.channels});
  all(second, true);
}

void nothing(int64_t, int64_t) {}

int64_t size_of_piece(const Norm& n, int64_t piece) {
  return std::min(n.split.piece, n.shape.values() - piece * n.split.piece);
}

std::unique_ptr<Moments[]> moments_for(const Norm& n) {
  return std::unique_ptr<Moments[]>(new Moments[n.split.pieces * n.shape.channels]);
}

// Fills the mean and the biased variance of channels from the moments of their pieces, in the order of the pieces.
void merge(const Norm& n, Range channels, float* mean, float* variance) {
  const int64_t all = n.shape.channels;
  std::vector<double> shares(n.split.pieces);
  double count = 0;
  for (int64_t piece = 0; piece < n.split.pieces; piece++) {
    count += static_cast<double>(size_of_piece(n, piece));
    shares[piece] = static_cast<double>(size_of_piece(n, piece)) / count;
  }
  for (int64_t c = channels.first; c < channels.last; c++) {
    Moments sum = n.moments[c];
    for (int64_t piece = 1; piece < n.split.pieces; piece++) {
      const Moments& next = n.moments[piece * all + c];
      const double from = next.first - sum.first, share = shares[piece];
      sum.first += from * share;
      sum.second += next.second + from * from * static_cast<double>(size_of_piece(n, piece)) * (1 - share);
    }
    mean[c] = static_cast<float>(sum.first);
    variance[c] = static_cast<float>(sum.second / count);
  }
}

// The factor and the addend of each channel, by the mean and the variance as floats, so that a backward has those of its forward.
struct Factors {
  std::vector<float> scale, shift;

  explicit Factors(Norm* n) : scale(n->shape.channels), shift(n->shape.channels) {
    n->scale = scale.data();
    n->shift = shift.data();
  }
  void fill(const NormChannels& from, Range channels) {
    for (int64_t c = channels.first; c < channels.last; c++) {
      const double rstd = 1 / std::sqrt(static_cast<double>(from.variance[c]) + from.eps);
      scale[c] = static_cast<float>(from.weight ? rstd * from.weight[c] : rstd);
      shift[c] = from.bias ? from.bias[c] : 0.0f;
    }
  }
};

// What a gradient of x loses: its mean and its part along x. In eval mode mean and variance are constants, which have no part in
// the gradient.
struct Centres {
  std::vector<float> mean_grad, coefficient;

  Centres(Norm* n, bool training) : mean_grad(n->shape.channels), coefficient(n->shape.channels) {
    n->mean_grad = mean_grad.data();
    n->coefficient = coefficient.data();
    n->centers = training;
  }
  void fill(const Norm& n, const NormChannels& from, int64_t c, double sum, double products, const NormGrads& grads) {
    const double variance = static_cast<double>(from.variance[c]) + from.eps;
    if (grads.weight) grads.weight[c] = static_cast<float>(products / std::sqrt(variance));
    if (grads.bias) grads.bias[c] = static_cast<float>(sum);
    if (!n.centers) return;
    const auto count = static_cast<double>(n.shape.values());
    mean_grad[c] = static_cast<float>(sum / count);
    coefficient[c] = static_cast<float>(products / count / variance);
  }
};

}  // namespace

NormSplit split_of(const NormShape& s) {
  NormSplit split{1, s.channels, 0, 0};
  if (s.rows) {
    const int64_t fit = s.values() > 0 ? kPiece / s.values() / 16 * 16 : kMostChunk;
    const int64_t most = std::clamp<int64_t>(s.values() >= 1024 ? kMostChunk : fit, 64, kMostChunk);
    split.chunk = round_up(ceil_div(s.channels, ceil_div(s.channels, most)), 16);
    split.chunks = ceil_div(s.channels, split.chunk);
  }
  const int64_t piece = kPiece / (s.rows ? std::min(split.chunk, s.channels) : 2) / 16 * 16;
  split.piece = std::max(piece, round_up(ceil_div(s.values(), kMostPieces), 16));
  split.pieces = ceil_div(s.values(), split.piece);
  return split;
}

bool rewritable(const NormShape& shape) {
  const int64_t lanes = kernels().lanes;
  return shape.rows && (shape.channels % lanes == 0 || shape.channels < lanes);
}

void norm_forward(Norm n, const NormChannels& channels, bool training, const NormRun& run) {
  const Kernels& target = kernels();
  Factors factors(&n);
  n.mean = channels.mean;
  const auto apply = [&](int64_t chunk, int64_t piece) { target.norm_apply(n, chunk, piece); };
  if (!training) {
    factors.fill(channels, {0, n.shape.channels});
    two_sweeps(n, 1, run, nothing, [](Range) {}, apply);
    return;
  }
  const auto moments = moments_for(n);
  n.moments = moments.get();
  two_sweeps(
      n, 1, run, [&](int64_t chunk, int64_t piece) { target.norm_moments(n, chunk, piece); },
      [&](Range range) {
        merge(n, range, channels.mean, channels.variance);
        factors.fill(channels, range);
      },
      apply);
}

void norm_backward(Norm n, const NormChannels& channels, bool training, const NormGrads& grads, const NormRun& run) {
  const Kernels& target = kernels();
  Factors factors(&n);
  factors.fill(channels, {0, n.shape.channels});
  n.mean = channels.mean;
  const auto moments = moments_for(n);
  n.moments = moments.get();
  Centres centres(&n, training);
  const auto finish = [&](Range range) {
    for (int64_t c = range.first; c < range.last; c++) {
      double sum = 0, products = 0;
      for (int64_t piece = 0; piece < n.split.pieces; piece++) {
        sum += n.moments[piece * n.shape.channels + c].first;
        products += n.moments[piece * n.shape.channels + c].second;
      }
      centres.fill(n, channels, c, sum, products, grads);
    }
  };
  const bool sums = grads.weight || grads.bias || n.passed || (training && grads.x);
  // What the first sweep writes is the gradient that the second begins with.
  Norm second = n;
  if (n.passed) {
    second.grad = n.passed;
    second.activation = Activation::none;
  }
  second.grad_x = grads.x;
  two_sweeps(
      n, 2, run,
      [&](int64_t chunk, int64_t piece) {
        if (sums) target.norm_sums(n, chunk, piece);
      },
      [&](Range range) {
        if (sums) finish(range);
      },
      [&](int64_t chunk, int64_t piece) {
        if (grads.x) target.norm_grad(second, chunk, piece);
      });
}

void norm_again(Norm n, const NormChannels& channels, double* sums, const NormRun& run) {
  const Kernels& target = kernels();
  Factors factors(&n);
  factors.fill(channels, {0, n.shape.channels});
  n.mean = channels.mean;
  const auto moments = moments_for(n);
  n.moments = moments.get();
  two_sweeps(
      n, 3, run, [&](int64_t chunk, int64_t piece) { target.norm_sums(n, chunk, piece); },
      [&](Range range) {
        for (int64_t piece = 0; piece < n.split.pieces; piece++) {
          for (int64_t c = range.first; c < range.last; c++) {
            sums[c] += n.moments[piece * n.shape.channels + c].first;
            sums[n.shape.channels + c] += n.moments[piece * n.shape.channels + c].second;
          }
        }
      },
      nothing);
}

void norm_from_sums(Norm n, const NormChannels& channels, bool training, const double* sums, const NormGrads& grads,
                    const NormRun& run) {
  const Kernels& target = kernels();
  Factors factors(&n);
  factors.fill(channels, {0, n.shape.channels});
  n.mean = channels.mean;
  Centres centres(&n, training);
  for (int64_t c = 0; c < n.shape.channels; c++) centres.fill(n, channels, c, sums[c], sums[n.shape.channels + c], grads);
  n.grad_x = grads.x;
  if (!grads.x) return;
  two_sweeps(n, 2, run, nothing, [](Range) {}, [&](int64_t chunk, int64_t piece) { target.norm_grad(n, chunk, piece); });
}

}  // namespace groupwise
