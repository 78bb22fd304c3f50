#include "kernels/gemm/layout.h"

namespace groupwise {

void lay_out_gemm(const CorrelationShape& c, int64_t lanes, int64_t threads, GemmLayout* l) {
  // The pixels of a block meet a panel of weights while that is in L1. Groups share the cache lines of a pixel, which fewer pixels keep
  // there until the last group has read them.
  constexpr int64_t kPixels = 96, kGroupedPixels = 48;
  // A thread that shares an image computes so many pixels at least.
  constexpr int64_t kLeastPixels = 48;
  const int64_t panel = kPanelVectors * lanes, columns = c.w.front().out;
  l->lanes = lanes;
  l->channels = round_up(c.out_channels, lanes);
  l->weight_floats = l->channels * c.in_channels;
  l->ahead = beyond_cache(c);
  // Pixels whole pages apart share a set of the L1 cache, which holds 8 lines: a ninth would evict the first before its next input is
  // read (1024 channels in, 512 out, 8 samples 14x14, AVX-512: 15.9 ms instead of 15.1).
  constexpr int64_t kWays = 8;
  const int64_t page = floats_worth(1024, c), apart = c.w.front().stride * c.input_strides.w;
  l->pixels = apart % page == 0 ? kWays : gemm_pixels(lanes, kPanelVectors);
  Block& b = l->block;
  b.groups = 1;
  const int64_t most = c.groups == 1 ? kPixels : kGroupedPixels;
  b.columns = even_run(std::max<int64_t>(1, columns), most);
  b.rows = even_run(std::max<int64_t>(1, c.h.out), std::max<int64_t>(1, most / b.columns));
  // Threads share the pixels of an image evenly, by rows where there are enough. (17 blocks on two threads took 5 % more than 18.)
  const int64_t pixels = c.h.out * columns;
  if (pixels >= kLeastPixels * threads && l->tasks(c) % threads != 0) {
    if (c.h.out < threads) {
      b.columns = ceil_div(columns, round_up(ceil_div(columns, b.columns), threads));
    } else if (uneven(l->tasks(c), threads)) {
      b.rows = std::min(b.rows, ceil_div(c.h.out, round_up(ceil_div(c.h.out, b.rows), threads)));
    }
  }
  if (!uneven(l->tasks(c), threads)) return;
  // Each thread reads its own weights, and all pixels.
  if (c.out_channels >= panel * threads) l->channels = round_up(ceil_div(c.out_channels, threads), panel);
}

}  // namespace groupwise
