// Activations and the sum with a residual, in place over outputs that were just computed.
#pragma once
#include "kernels/activation-inl.h"
#include "kernels/finish.h"
#include "kernels/kernels.h"

namespace groupwise::GW_TARGET {

template <bool Adds>
inline void finish_runs_with(const Activate& a, const float* residual, float* y, int64_t runs, int64_t apart, int64_t count) {
  with_any(a.kind, [&](auto activation) {
    const auto one = [&](int64_t at, auto width) GW_LAMBDA {
      Vec z = load_some(y + at, width);
      if constexpr (Adds) z += load_some(residual + at, width);
      store_some(y + at, activate<activation()>(z, a.first, a.second), width);
    };
    for (int64_t r = 0; r < runs; r++) {
      const int64_t end = r * apart + count;
      int64_t at = r * apart;
      for (; at + kLanes <= end; at += kLanes) one(at, std::integral_constant<int64_t, kLanes>{});
      if (at < end) one(at, end - at);
    }
  });
}

void finish_runs(const Correlation& c, float* y, int64_t runs, int64_t apart, int64_t count, bool begun_with_residual) {
  if (!c.epilogue) return;
  const Epilogue& e = *c.epilogue;
  if (runs == 1 || apart == count) count *= runs, runs = 1;
  if (e.before.kind != Activation::none) finish_runs_with<false>(e.before, nullptr, y, runs, apart, count);
  if (e.residual && !begun_with_residual) {
    finish_runs_with<true>(e.after, e.residual + (y - c.output), y, runs, apart, count);
  } else if (e.after.kind != Activation::none) {
    finish_runs_with<false>(e.after, nullptr, y, runs, apart, count);
  }
}

void finish_block(const Correlation& c, const Finished& b) {
  if (!c.epilogue) return;
  const Strides& s = c.output_strides;
  const int64_t row = c.h.step * s.h;
  float* y = c.output + b.n * s.n + b.channel * s.c + (c.h.first + b.row * c.h.step) * s.h + b.column * s.w;
  if (s.w == 1) {
    for (int64_t channel = 0; channel < b.channels; channel++) finish_runs(c, y + channel * s.c, b.rows, row, b.columns);
  } else {
    for (int64_t r = 0; r < b.rows; r++) finish_runs(c, y + r * row, b.columns, s.w, b.channels);
  }
}

// Finishes samples [begin, end) of a correlation that was computed elsewhere.
void finish(const Correlation& c, int64_t begin, int64_t end) {
  int64_t columns = 0;
  for (const Phase& w : c.w) columns += w.out;
  for (int64_t n = begin; n < end; n++) finish_block(c, {n, 0, c.groups * c.out_channels, 0, c.h.out, 0, columns});
}

}  // namespace groupwise::GW_TARGET
