#include "kernels/low/gradient.h"

namespace groupwise {
namespace {

bool shares_vectors(const Problem& p, int64_t lanes) {
  return p.in_channels == p.out_channels && p.out_channels < lanes && lanes % p.out_channels == 0;
}

}  // namespace

const char* refuses_low_gradient(const Problem& p, int64_t lanes) {
  return shares_vectors(p, lanes) || 2 * p.out_channels > lanes
             ? nullptr
             : "its vectors need a group whose output channels fill more than half of one, or whole groups of as many inputs";
}

bool lay_out(const Problem& p, int64_t lanes, int64_t threads, LowGradient* g) {
  g->problem = p;
  g->lanes = lanes;
  g->shared = shares_vectors(p, lanes);
  g->input_blocks = g->shared ? 1 : ceil_div(p.in_channels, kMostLowInputs);
  g->inputs = ceil_div(p.in_channels, g->input_blocks);
  g->input_blocks = g->shared ? 1 : ceil_div(p.in_channels, g->inputs);
  const int64_t vectors = ceil_div(g->shared ? p.groups * p.out_channels : p.out_channels, lanes);
  const auto divide = [&](int64_t most) {
    g->outputs = ceil_div(vectors, ceil_div(vectors, most)) * lanes;
    g->output_blocks = ceil_div(vectors * lanes, g->outputs);
  };
  // Threads share units before they share positions, which takes sums of their own.
  int64_t most_vectors = kMostLowVectors;
  divide(most_vectors);
  while (threads > 1 && g->units() < threads && most_vectors > 1) divide(most_vectors /= 2);
  g->rows = std::max<int64_t>(1, p.h.out);
  g->columns = std::max<int64_t>(1, p.w.out);
  const int64_t most = 2 * kScratchFloats;
  while (g->numbers() > most / 2 && g->rows > 1) g->rows = ceil_div(g->rows, 2);
  while (g->numbers() > most && g->columns > 1) g->columns = ceil_div(g->columns, 2);
  if (g->numbers() > most) return false;
  // Parts of rows, or of the columns of the only one; their sums take no more memory than what is read.
  const int64_t all = p.batch * p.h.out, halves = all > 1 ? all / 2 : p.w.out / 2;
  const int64_t read = p.batch * p.groups * (p.in_channels * p.h.in * p.w.in + p.out_channels * p.h.out * p.w.out);
  const int64_t fit = read / 2 / std::max<int64_t>(1, g->units() * g->sums_of_unit());
  g->parts = 1;
  if (threads > 1 && uneven(g->units(), threads, 2))
    g->parts = std::max<int64_t>(1, std::min({halves, fit, ceil_div(4 * threads, g->units())}));
  return true;
}

}  // namespace groupwise
