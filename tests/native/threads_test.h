// Runs what threads share beside convolutions on one thread and on several, which gives the same bits, and makes plans on several
// threads at once. ThreadSanitizer watches both (`make core SANITIZE=thread`).
#pragma once

#include <cstdio>
#include <functional>
#include <thread>
#include <vector>

#include "agreement.h"
#include "kernels/interleave/interleave.h"
#include "kernels/low/low.h"
#include "kernels/low/product.h"
#include "kernels/maxpool/maxpool.h"
#include "kernels/norm/norm.h"
#include "kernels/squeeze/squeeze.h"
#include "plan/measured.h"
#include "plan/recording.h"
#include "run.h"
#include "sharing.h"

namespace groupwise {

inline std::vector<float> random_floats(int64_t count, Random& random) {
  std::uniform_real_distribution<float> values(-1, 1);
  std::vector<float> floats(count);
  for (float& one : floats) one = values(random);
  return floats;
}

inline std::vector<Bfloat16> random_halves(int64_t count, Random& random) {
  std::vector<Bfloat16> halves;
  for (const float one : random_floats(count, random)) halves.push_back(rounded(one));
  return halves;
}

// Tells whether run(threads, result) fills the result with the same bytes for any number of threads.
template <class T>
bool same_bits(const char* what, int64_t count, const std::function<void(const NormRun&, T*)>& run) {
  const auto on = [&](int64_t threads) {
    std::vector<T> result(count);
    run({threads, on_threads(threads)}, result.data());
    return result;
  };
  const std::vector<T> one = on(1);
  for (const int64_t threads : {2, 3, 4}) {
    if (std::memcmp(one.data(), on(threads).data(), count * sizeof(T)) == 0) continue;
    std::printf("%s has other bits on %ld threads\n", what, static_cast<long>(threads));
    return false;
  }
  return true;
}

inline bool norms_agree(bool rows, Random& random) {
  // The two shapes divide by chunks of channels, and by pieces of their values.
  bool good = true;
  for (const NormShape shape : {NormShape{2, 600, 9, rows}, NormShape{3, 5, 9000, rows}}) {
    const int64_t count = shape.values() * shape.channels, channels = shape.channels;
    const std::vector<float> x = random_floats(count, random), grad = random_floats(count, random);
    const std::vector<float> residual = random_floats(count, random), weight = random_floats(channels, random);
    Norm norm;
    norm.shape = shape;
    norm.split = split_of(shape);
    norm.activation = Activation::silu;
    norm.x = x.data();
    norm.residual = residual.data();
    std::vector<float> mean(channels), variance(channels);
    const NormChannels all{weight.data(), nullptr, mean.data(), variance.data(), 1e-5};
    good &= same_bits<float>("norm_forward", count, [&](const NormRun& run, float* y) {
      Norm forward = norm;
      forward.y = y;
      norm_forward(forward, all, true, run);
    });
    good &= same_bits<float>("norm_backward", 2 * count + 2 * channels, [&](const NormRun& run, float* all_grads) {
      Norm backward = norm;
      backward.residual = nullptr;
      backward.grad = grad.data();
      backward.kind = Kept::residual;
      backward.kept = residual.data();
      backward.passed = all_grads + count;
      const NormGrads grads{all_grads, all_grads + 2 * count, all_grads + 2 * count + channels};
      norm_backward(backward, all, true, grads, run);
    });
  }
  return good;
}

inline bool squeezes_agree(bool rows, Random& random) {
  bool good = true;
  // Small products follow their sample; large ones are shared by themselves.
  for (const int64_t hidden : {8, 700}) {
    Squeeze squeeze{4, 200, 90, rows};
    const int64_t count = squeeze.samples * squeeze.channels * squeeze.pixels;
    const std::vector<float> x = random_floats(count, random), other = random_floats(count, random);
    const std::vector<float> weight = random_floats(2 * hidden * squeeze.channels, random);
    squeeze.x = x.data();
    const Gate first{squeeze.samples, squeeze.channels, hidden, weight.data(), nullptr, false, Activation::relu};
    const Gate second{squeeze.samples, hidden, squeeze.channels,   weight.data() + hidden * squeeze.channels,
                      nullptr,         false,  Activation::sigmoid};
    good &= same_bits<float>("squeeze_excite", count, [&](const NormRun& run, float* y) {
      Squeeze s = squeeze;
      s.y = y;
      squeeze_excite(s, first, second, run);
    });
    good &= same_bits<float>("mean_pixels", squeeze.samples * squeeze.channels, [&](const NormRun& run, float* y) {
      Squeeze s = squeeze;
      s.y = y;
      mean_pixels(s, run);
    });
    good &= same_bits<float>("squeeze_dots", squeeze.samples * squeeze.channels, [&](const NormRun& run, float* dots) {
      Squeeze s = squeeze;
      s.other = other.data();
      squeeze_dots(s, dots, run);
    });
  }
  return good;
}

inline bool images_agree(Random& random) {
  const std::vector<float> x = random_floats(2 * 15 * 13 * 40, random);
  bool good = same_bits<float>("max_pool", 2 * 8 * 7 * 40, [&](const NormRun& run, float* y) {
    max_pool({2, 40, 15, 13, 8, 7, {3, 3}, {2, 2}, {1, 1}, false, x.data(), y}, run);
  });
  good &= same_bits<float>("interleave", 2 * 195 * 40, [&](const NormRun& run, float* y) {
    interleave({195, 40, false, x.data(), x.data() + 195 * 40, y, nullptr}, run);
  });
  return good;
}

inline bool low_kernels_agree(Random& random) {
  const int64_t lanes = kernels().lanes, channels = 4 * lanes + 2, pixels = 130;
  constexpr Axis kAxis{9, 9, 3, 1, 1, 1};
  const std::vector<float> weight = random_floats(channels * 9, random);
  const std::vector<Bfloat16> image = random_halves(2 * 81 * channels, random);
  LowGrouped grouped{};
  grouped.batch = 2;
  grouped.channels = channels;
  grouped.h = grouped.w = kAxis;
  std::vector<float> packed(packed_low_floats(lanes, grouped));
  pack_low(grouped, lanes, weight.data(), WeightStrides{9, 9, 9, 3, 1}, nullptr, packed.data());
  grouped.x_strides = grouped.y_strides = dense_strides(2, channels, 9, 9, true);
  grouped.packed = packed.data();
  grouped.x = image.data();
  bool good = same_bits<Bfloat16>("correlate_low", 2 * 81 * channels, [&](const NormRun& run, Bfloat16* y) {
    LowGrouped work = grouped;
    work.y = y;
    correlate_low(work, kernels(), run);
  });
  // Threads share the pixels, or the blocks of outputs where those are many.
  for (const int64_t outputs : {lanes + 3, 70 * lanes}) {
    const int64_t whole = round_up(outputs, low_block(lanes));
    const std::vector<Bfloat16> x = random_halves(pixels * 32, random), w = random_halves(outputs * 32, random);
    const std::vector<float> bias = random_floats(whole, random);
    std::vector<Bfloat16> blocks(whole * 32);
    pack_low_product(lanes, outputs, 32, w.data(), blocks.data());
    LowProduct product{pixels, 32, outputs, 32, outputs, {}, {}};
    product.packed = blocks.data();
    product.bias = bias.data();
    product.x = x.data();
    good &= same_bits<Bfloat16>("multiply_low", pixels * outputs, [&](const NormRun& run, Bfloat16* y) {
      LowProduct work = product;
      work.y = y;
      multiply_low(work, kernels(), run);
    });
  }
  return good;
}

// Makes and records plans on several threads, while another changes what plans depend on.
inline bool plans_on_threads() {
  const Kernels& target = kernels();
  const auto work = [&target](int64_t thread) {
    force_isa(target.isa);
    const int64_t number = start_recording();
    for (int64_t i = 0; i < 30; i++) {
      const int64_t size = 3 + (thread + i) % 7;
      const Axis a{size, size, 3, 1, 1, 1};
      const Problem p{1, 8, 1 + i % 2, 1, a, a};
      const bool last = i % 3 == 0;
      const Request r{Direction::forward,
                      p,
                      last,
                      Dtype::float32,
                      1 + thread,
                      2,
                      dense_strides(1, 8 * p.in_channels, size, size, last),
                      dense_strides(1, 8, size, size, last),
                      dense_weight_strides(p, false)};
      record(plan_of(r, ""));
      if (thread > 0) continue;
      remember(r, {{{kPyTorch, 2.0}, {"planar", 1.0}}, 1});
      share_from(target, static_cast<double>(i));
      policy_changed();
    }
    stop_recording(number);
    forget_recording(number);
  };
  std::vector<std::thread> threads;
  for (int64_t thread = 0; thread < 3; thread++) threads.emplace_back(work, thread);
  for (std::thread& one : threads) one.join();
  forget_all();
  share_from(target, 0);
  policy_changed();
  return true;
}

inline bool threads_agree(Random& random) {
  // All that threads can share they share.
  start_takes(0);
  bool good = plans_on_threads() & images_agree(random) & low_kernels_agree(random);
  for (const bool rows : {false, true}) good &= norms_agree(rows, random) & squeezes_agree(rows, random);
  start_takes(-1);
  return good;
}

}  // namespace groupwise
