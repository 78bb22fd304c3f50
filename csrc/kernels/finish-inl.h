// Activations and the sum with a residual, in place over outputs that were just computed.
#pragma once
#include "kernels/activation-inl.h"
#include "kernels/finish_block-inl.h"
#include "kernels/kernels.h"

namespace groupwise::GW_TARGET {

// What one pass adds before its activation: a bias along each run, and a residual. Each may be null.
struct Added {
  const float *bias, *residual;
};

template <bool Biased, bool Sums>
inline void pass(const Activate& a, const Added& added, float* y, int64_t runs, int64_t apart, int64_t count) {
  with_any(a.kind, [&](auto activation) {
    for (int64_t r = 0; r < runs; r++) {
      float* to = y + r * apart;
      const float* residual = Sums ? added.residual + r * apart : nullptr;
      const auto one = [&](int64_t i, auto width) GW_LAMBDA {
        Vec z = load_some(to + i, width);
        if constexpr (Biased) z += load_some(added.bias + i, width);
        if constexpr (Sums) z += load_some(residual + i, width);
        store_some(to + i, activate<activation()>(z, a.first, a.second), width);
      };
      int64_t i = 0;
      for (; i + kLanes <= count; i += kLanes) one(i, std::integral_constant<int64_t, kLanes>{});
      if (i < count) one(i, count - i);
    }
  });
}

void finish_runs(const Correlation& c, float* y, int64_t runs, int64_t apart, int64_t count, const Late& late) {
  if (!c.epilogue) return;
  const Epilogue& e = *c.epilogue;
  const float *bias = late.bias, *residual = late.residual && e.residual ? e.residual + (y - c.output) : nullptr;
  if (!bias && apart == count) count *= runs, runs = 1;
  if (e.before.kind != Activation::none) {
    if (bias) {
      pass<true, false>(e.before, {bias, nullptr}, y, runs, apart, count);
    } else {
      pass<false, false>(e.before, {}, y, runs, apart, count);
    }
    if (!e.residual && e.after.kind == Activation::none) return;
    bias = nullptr;
  }
  const Added added{bias, residual};
  if (bias && residual) {
    pass<true, true>(e.after, added, y, runs, apart, count);
  } else if (bias) {
    pass<true, false>(e.after, added, y, runs, apart, count);
  } else if (residual) {
    pass<false, true>(e.after, added, y, runs, apart, count);
  } else if (e.after.kind != Activation::none) {
    pass<false, false>(e.after, added, y, runs, apart, count);
  }
}

// Finishes samples [begin, end) of a correlation that was computed elsewhere.
void finish(const Correlation& c, int64_t begin, int64_t end) {
  int64_t columns = 0;
  for (const Phase& w : c.w) columns += w.out;
  for (int64_t n = begin; n < end; n++) finish_block(c, {n, 0, c.groups * c.out_channels, 0, c.h.out, 0, columns});
}

}  // namespace groupwise::GW_TARGET
