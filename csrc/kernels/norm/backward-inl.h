// Backward: the sums of a piece, and the sweep that makes the gradient of x. Both compute the activation's derivative.
#pragma once
#include "kernels/norm/walk-inl.h"

namespace groupwise::GW_TARGET {

// Returns the gradient behind the activation.
template <Activation A, Kept K, class Width>
GW_INLINE Vec passed(const Norm& n, int64_t at, Width width, Vec centered, const Scaled& s) {
  const Vec grad = load_some(n.grad + at, width);
  if constexpr (A == Activation::none) return grad;
  if constexpr (K == Kept::output) return pass_of_output<A>(grad, load_some(n.kept + at, width), n.slope);
  Vec z = normalised(centered, s);
  if constexpr (K == Kept::residual) z += load_some(n.kept + at, width);
  return pass<A>(grad, z, n.slope);
}

void norm_sums(const Norm& norm, int64_t index, int64_t piece) {
  with(norm.activation, [&](auto activation) {
    // The compiler must take it that a store changes `norm`, and keeps a copy in registers.
    const Norm n = norm;
    const int64_t next = ahead(n);
    const Chunk chunk(n, index);
    alignas(64) float a[kMostChunk], b[kMostChunk];
    Totals totals(chunk);
    const auto sum = [&](auto kind) GW_LAMBDA {
      in_blocks(n, chunk, piece, [&](Range block) {
        sum_vectors<2>(
            n, chunk, block, a, b, [&](const auto& place) GW_LAMBDA { return scaled(n, place); },
            [&](int64_t at, auto width, const Scaled& s, Vec& grads, Vec& products) GW_LAMBDA {
              prefetch(n.x + at + next);
              prefetch(n.grad + at + next);
              if constexpr (kind() != Kept::nothing) prefetch(n.kept + at + next);
              const Vec centered = load_some(n.x + at, width) - s.mean;
              const Vec grad = passed<activation(), kind()>(n, at, width, centered, s), fresh = keep(grad, width);
              if (n.passed) {
                prefetch(n.passed + at + next);
                store_some(n.passed + at, grad, width);
              }
              if constexpr (kind() == Kept::nothing) {
                if (n.y) {
                  prefetch(n.y + at + next);
                  store_some(n.y + at, activate<activation()>(normalised(centered, s), n.slope), width);
                }
              }
              grads += fresh;
              products += fresh * centered;
            });
        for (int64_t i = 0; i < chunk.sums; i += 4) {
          store_doubles(totals.first + i, load_doubles(totals.first + i) + doubles(a + i));
          store_doubles(totals.second + i, load_doubles(totals.second + i) + doubles(b + i));
        }
      });
    };
    switch (n.kind) {
      case Kept::nothing: sum(std::integral_constant<Kept, Kept::nothing>{}); break;
      case Kept::residual: sum(std::integral_constant<Kept, Kept::residual>{}); break;
      case Kept::output: sum(std::integral_constant<Kept, Kept::output>{}); break;
    }
    put_moments(n, chunk, piece, totals);
  });
}

struct Centering {
  Scaled scaled;
  Vec mean_grad, coefficient;
};

// grad_x = scale * (grad - mean(grad) - (x - mean) * coefficient), or scale * grad with running statistics.
void norm_grad(const Norm& norm, int64_t index, int64_t piece) {
  with(norm.activation, [&](auto activation) {
    const Norm n = norm;
    const int64_t next = ahead(n);
    const Chunk chunk(n, index);
    each_vector(
        n, chunk, piece_of(n, piece),
        [&](const auto& place)
            GW_LAMBDA { return Centering{scaled(n, place), place.of_channel(n.mean_grad), place.of_channel(n.coefficient)}; },
        [&](int64_t at, auto width, const Centering& c) GW_LAMBDA {
          prefetch(n.x + at + next);
          prefetch(n.grad + at + next);
          prefetch(n.grad_x + at + next);
          const Vec centered = load_some(n.x + at, width) - c.scaled.mean;
          const Vec grad = passed<activation(), Kept::nothing>(n, at, width, centered, c.scaled);
          // A product with 0 would be NaN where x is not finite.
          const Vec kept = n.centers ? grad - c.mean_grad - centered * c.coefficient : grad;
          store_some(n.grad_x + at, kept * c.scaled.scale, width);
        });
  });
}

}  // namespace groupwise::GW_TARGET
