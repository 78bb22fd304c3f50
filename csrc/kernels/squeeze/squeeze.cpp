#include "kernels/squeeze/squeeze.h"

#include <algorithm>
#include <memory>

#include "bfloat16.h"
#include "run.h"
#include "sharing.h"
#include "targets/isa.h"

namespace groupwise {
namespace {

// A piece has so many numbers, and a sample so many pieces at most.
constexpr int64_t kPiece = 16384, kMostPieces = 256;
// With weights of so many numbers a sample finds them in the L2 cache after the sample before it.
constexpr int64_t kStays = 131072;

void split(Squeeze* s) {
  const int64_t length = s->rows ? s->pixels : s->channels, width = s->rows ? s->channels : s->pixels;
  const int64_t fit = std::max<int64_t>(kPiece / width / 8 * 8, s->rows ? 8 : 1);
  s->piece = std::max(fit, ceil_div(length, kMostPieces));
  s->pieces = ceil_div(length, s->piece);
}

int64_t parts_of(const Squeeze& s) { return s.rows ? s.pieces : 1; }

// Each sweep reads the image, or reads and writes it: those that write count twice.
bool shared(const Squeeze& s, int64_t sweeps, const NormRun& run) {
  const double bytes = static_cast<double>(s.samples * s.channels * s.pixels) * (s.low ? 2 : 4);
  return worth_threads({0, static_cast<double>(sweeps) * bytes}, run.threads, run.parallel_for);
}

// Adds the sums of the parts of a sample, and multiplies them by `factor`.
void add_parts(const Squeeze& s, Range samples, double factor, float* to) {
  const int64_t parts = parts_of(s);
  for (int64_t sample = samples.first; sample < samples.last; sample++)
    for (int64_t c = 0; c < s.channels; c++) {
      double sum = 0;
      for (int64_t part = 0; part < parts; part++) sum += s.sums[(sample * parts + part) * s.channels + c];
      to[sample * s.channels + c] = static_cast<float>(sum * factor);
    }
}

template <class F>
void sweep(const Squeeze& s, bool threaded, const NormRun& run, F&& f) {
  run_tasks(s.samples * s.pieces, threaded, run.parallel_for, [&](int64_t begin, int64_t end) { f(s, begin, end); });
}

}  // namespace

void squeeze_dots(Squeeze s, float* dots, const NormRun& run) {
  split(&s);
  const std::unique_ptr<float[]> sums(new float[s.samples * parts_of(s) * s.channels]);
  s.sums = sums.get();
  sweep(s, shared(s, 2, run), run, kernels().squeeze_sums);
  add_parts(s, {0, s.samples}, 1, dots);
}

void squeeze_pass(Squeeze s, const NormRun& run) {
  split(&s);
  sweep(s, shared(s, 2, run), run, kernels().squeeze_scale);
}

void mean_pixels(Squeeze s, const NormRun& run) {
  split(&s);
  const int64_t sums = s.samples * parts_of(s) * s.channels, all = s.samples * s.channels;
  const std::unique_ptr<float[]> room(new float[sums + (s.low ? all : 0)]);
  float* const mean = s.low ? room.get() + sums : static_cast<float*>(s.y);
  s.sums = room.get();
  sweep(s, shared(s, 1, run), run, kernels().squeeze_sums);
  add_parts(s, {0, s.samples}, 1 / static_cast<double>(s.pixels), mean);
  if (s.low) std::transform(mean, mean + all, static_cast<Bfloat16*>(s.y), rounded);
}

void squeeze_excite(Squeeze s, Gate first, Gate second, const NormRun& run, float* kept) {
  const Kernels& target = kernels();
  split(&s);
  const int64_t parts = parts_of(s);
  const int64_t sums = s.samples * parts * s.channels, all = s.samples * s.channels, hidden = s.samples * first.outputs;
  const std::unique_ptr<float[]> room(new float[sums + 2 * all + hidden]);
  float *const mean = kept ? kept : room.get() + sums, *const gate = room.get() + sums + all;
  s.sums = room.get();
  s.gate = gate;
  first.in = mean;
  first.out = gate + all;
  second.in = first.outputs > 0 ? first.out : mean;
  second.out = gate;

  const auto means = [&](int64_t begin, int64_t end) { add_parts(s, {begin, end}, 1 / static_cast<double>(s.pixels), mean); };
  const int64_t weights = first.outputs * first.inputs + second.outputs * (second.weight ? second.inputs : 1);
  const bool threaded = shared(s, 3, run);
  const bool even = s.samples % run.threads == 0 || s.samples >= 4 * run.threads;
  if (weights <= kStays && (!threaded || even)) {
    run_tasks(s.samples, threaded, run.parallel_for, [&](int64_t begin, int64_t end) {
      for (int64_t sample = begin; sample < end; sample++) {
        target.squeeze_sums(s, sample * s.pieces, (sample + 1) * s.pieces);
        means(sample, sample + 1);
        if (first.outputs > 0) target.squeeze_gate(first, Range{sample, sample + 1}, Range{0, first.outputs});
        target.squeeze_gate(second, Range{sample, sample + 1}, Range{0, second.outputs});
        target.squeeze_scale(s, sample * s.pieces, (sample + 1) * s.pieces);
      }
    });
    return;
  }
  const auto product = [&](const Gate& g) {
    const double weights = g.weight ? static_cast<double>(g.inputs * g.outputs) : 0;
    const Share work{2 * static_cast<double>(g.samples) * weights, weights * (g.low ? 2 : 4)};
    const bool divided = threaded && worth_threads(work, run.threads, run.parallel_for);
    // A thread gets several rows at once, whose input it loads once.
    run_tasks(ceil_div(g.outputs, 8), divided, run.parallel_for, [&](int64_t begin, int64_t end) {
      target.squeeze_gate(g, Range{0, g.samples}, Range{begin * 8, std::min(end * 8, g.outputs)});
    });
  };
  sweep(s, threaded, run, target.squeeze_sums);
  means(0, s.samples);
  if (first.outputs > 0) product(first);
  product(second);
  sweep(s, threaded, run, target.squeeze_scale);
}

}  // namespace groupwise
