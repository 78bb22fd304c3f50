// Tests the core without torch: random convolutions in every kernel, direction and format, against plain loops in double
// (agreement.h), and what else threads share. `make core` builds it with sanitizers.
#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "agreement.h"
#include "converted_test.h"
#include "numbers_test.h"
#include "kernels/brgemm/product.h"
#include "plan/plan.h"
#include "sharing_test.h"
#include "targets/isa.h"
#include "threads_test.h"

// Of tests/native/simd/check.cpp.
namespace groupwise {
#define SIMD(isa)     \
  namespace isa {     \
  bool simd_agrees(); \
  }
#ifdef GROUPWISE_HAVE_BASELINE
SIMD(baseline)
#endif
#ifdef GROUPWISE_HAVE_NEON
SIMD(neon)
#endif
#ifdef GROUPWISE_HAVE_AVX2
SIMD(avx2)
#endif
#ifdef GROUPWISE_HAVE_AVX512
SIMD(avx512)
#endif
}  // namespace groupwise

using namespace groupwise;

namespace {

Random generator(20261122);

int64_t pick(std::initializer_list<int64_t> values) {
  return values.begin()[std::uniform_int_distribution<size_t>(0, values.size() - 1)(generator)];
}

Axis random_axis(std::initializer_list<int64_t> sizes) {
  if (pick({0, 0, 0, 1})) {
    // A kernel about as large as the image, or larger, most of whose taps meet padding.
    const int64_t in = pick({1, 2, 3, 5, 7, 8, 9, 14}), kernel = std::max<int64_t>(1, in + pick({-2, 0, 0, 1, 5, 16}));
    Axis a{in, 0, kernel, pick({1, 1, 2, 3}), pick({0, kernel / 2, kernel - 1, kernel + 1}), pick({1, 1, 2})};
    const int64_t room = a.in + 2 * a.pad - a.dilation * (a.kernel - 1) - 1;
    a.out = room < 0 ? 0 : room / a.stride + 1;
    return a;
  }
  Axis a{pick(sizes),          0, pick({1, 1, 2, 3, 3, 4, 5, 7, 11}), pick({1, 1, 1, 2, 2, 3, 5}), pick({0, 0, 1, 2, 3, 6}),
         pick({1, 1, 1, 2, 3})};
  const int64_t after = pick({0, a.pad, a.pad, 1});
  a.out = (a.in + a.pad + after - a.dilation * (a.kernel - 1) - 1) / a.stride + 1;
  if (a.in + a.pad + after < a.dilation * (a.kernel - 1) + 1) a.out = 0;
  return a;
}

Strides strides(int64_t batch, int64_t channels, const Axis& h, const Axis& w, bool in, bool channels_last) {
  const int64_t height = in ? h.in : h.out, width = in ? w.in : w.out;
  return dense_strides(batch, channels, height, width, channels_last);
}

const std::initializer_list<int64_t> kSizes = {1, 2, 3, 5, 7, 8, 9, 14, 17, 25, 33};

// Forward has four tiles of planar and grad_input six, and each direction one of rows in place; both have narrow, groups and dots.
// grad_weight has two tiles of planar, narrow, and two of pixels, one of them from panels and in place too. All have brgemm, forward and
// grad_input have gemm, and forward has stem, whose tiles are of any size. Where two vectors hold a block of channels, groups has a
// second tile, and with 16 lanes narrow has a second one of grad_weight.
size_t forms() { return 4 + 6 + 3 + 2 * 3 + 7 + 3 + 2 + 1 + (kernels().lanes >= 8 ? 2 : 0) + (kernels().lanes >= 16); }

bool of_any_size(const std::string& kernel) { return kernel == "brgemm" || kernel == "gemm" || kernel == "stem"; }

// Returns the instruction set, the direction and the tile of a plan, which name the form that computes.
std::string form(const Plan& plan) {
  return std::string(plan.request.target->isa) + " " + kDirectionNames[static_cast<int>(plan.request.direction)] + " " +
         plan.name() + (of_any_size(plan.name()) ? "" : ": " + plan.work->facts.tile);
}

// Returns the strides of a weight whose dimensions (output, input, row, column) follow each other in any order.
WeightStrides random_weight_strides(const Problem& p) {
  std::array<int, 4> order{0, 1, 2, 3};
  switch (pick({0, 1, 2, 3})) {
    case 0: return dense_weight_strides(p, false);
    case 1: return dense_weight_strides(p, true);
    case 2: std::shuffle(order.begin(), order.end(), generator);
  }
  const int64_t sizes[4] = {p.groups * p.out_channels, p.in_channels, p.h.kernel, p.w.kernel};
  int64_t strides[4], floats = 1;
  for (const int dimension : order) strides[dimension] = floats, floats *= sizes[dimension];
  return {p.out_channels * strides[0], strides[0], strides[1], strides[2], strides[3]};
}

// Tells whether kernels skip most products with padding where the kernel is larger than the image.
bool skips_padding() {
  struct Case {
    Axis axis;
    int64_t channels, groups, useful, most;  // of one pair of channels: the products with inputs, and those to execute
  };
  const Axis whole{14, 1, 14, 1, 0, 1}, over{7, 7, 31, 1, 15, 1};
  for (const Case& k : {Case{whole, 1, 16, 196, 64 * 196}, Case{over, 1, 16, 2401, 4 * 2401}, Case{over, 16, 2, 2401, 5 * 2401},
                        Case{whole, 16, 2, 196, 64 * 196}}) {
    const Problem p{1, k.groups, k.channels, k.channels, k.axis, k.axis};
    const int64_t pairs = k.groups * k.channels * k.channels;
    for (const bool channels_last : {false, true}) {
      const Strides xs = strides(p.batch, p.groups * p.in_channels, p.h, p.w, true, channels_last);
      const Strides ys = strides(p.batch, p.groups * p.out_channels, p.h, p.w, false, channels_last);
      for (const Direction direction : {Direction::forward, Direction::grad_input, Direction::grad_weight}) {
        const WeightStrides ws = dense_weight_strides(p, channels_last && k.channels > 1);
        const Request r{direction, p, channels_last, Dtype::float32, 1, 2, xs, ys, ws};
        for (const KernelRow* kernel : kernel_table()) {
          const std::shared_ptr<const Plan> plan = plan_of(r, kernel->name);
          if (!plan->work) continue;
          const int64_t products = plan->work->facts.products;
          if (products >= pairs * k.useful && products <= pairs * k.most * std::max(1, kernels().lanes / 8)) continue;
          std::printf("%ld products for %ld useful ones: %s\n", static_cast<long>(products),
                      static_cast<long>(pairs * k.useful), describe(*plan).c_str());
          return false;
        }
      }
    }
  }
  return true;
}

// How often each form ran.
using Ran = std::map<std::string, int64_t>;

bool test_one(Ran* ran) {
  Problem p{pick({1, 1, 2, 3}),  pick({1, 2, 3, 5, 16, 19}), pick({1, 1, 2, 3, 4, 8, 9}), pick({1, 1, 2, 3, 4, 5, 8, 9}),
            random_axis(kSizes), random_axis(kSizes)};
  // Wide groups come with images small enough for plain loops.
  if (pick({0, 0, 1})) {
    const std::initializer_list<int64_t> small = {1, 2, 4, 5, 7};
    p = {pick({1, 2}), pick({1, 2, 3}), pick({16, 20, 40}), pick({16, 24, 33}), random_axis(small), random_axis(small)};
  }
  if (pick({0, 0, 0, 1})) p.h = {1, 1, 1, 1, 0, 1};
  if (pick({0, 0, 0, 0, 0, 0, 0, 1})) {
    // Rows of taps that read rows in place.
    Axis w{pick({95, 96, 130, 257, 400}), 0, pick({2, 3, 4, 7, 9, 31}), pick({1, 1, 2, 3, 4}), 0, pick({1, 1, 1, 2})};
    w.pad = pick({0, 1, w.dilation * (w.kernel - 1)});
    w.out = (w.in + 2 * w.pad - w.dilation * (w.kernel - 1) - 1) / w.stride + 1;
    p.in_channels = 1;
    p.out_channels = pick({1, 1, 2, 3});
    p.h.kernel = p.h.stride = p.h.dilation = 1;
    p.h.pad = 0;
    p.h.out = p.h.in;
    p.w = w;
  }
  if (pick({0, 0, 0, 0, 0, 0, 0, 1}))
    for (Axis* a : {&p.h, &p.w}) *a = {a->in, 1, a->in, 1, 0, 1};
  if (pick({0, 0, 0, 1})) {
    // One tap, which some kernels read in place: over images of all remainders of a vector, and groups of more than a run.
    const auto one_tap = [](int64_t in, int64_t stride) { return Axis{in, (in - 1) / stride + 1, 1, stride, 0, 1}; };
    p.h = one_tap(pick({1, 2, 7, 8, 13}), pick({1, 1, 2}));
    p.w = one_tap(pick({1, 4, 7, 8, 12, 33}), pick({1, 1, 2}));
    p.in_channels = pick({1, 3, 8, 9, 16, 20, 200, 300});
    p.out_channels = pick({1, 3, 5, 8, 11, 16, 18, 30, 150});
  }
  if (pick({0, 1})) p.in_channels = p.out_channels = 1;
  if (p.h.out < 1 || p.w.out < 1) return true;
  // Plain loops over large kernels take few channels.
  const int64_t positions = p.h.out * p.w.out * p.h.kernel * p.w.kernel;
  while (positions * p.batch * p.groups * p.in_channels * p.out_channels > 3'000'000 && p.in_channels + p.out_channels > 2)
    p.in_channels = ceil_div(p.in_channels, 2), p.out_channels = ceil_div(p.out_channels, 2);
  while (positions * p.batch * p.groups > 3'000'000 && p.batch * p.groups > 1) p.batch = 1, p.groups /= 2;
  if (p.groups == 0) return true;
  const bool channels_last = pick({0, 1});
  const int64_t threads = pick({1, 1, 2, 3});
  // The binding makes depthwise weights contiguous, and their gradients as the weights are.
  const WeightStrides any = random_weight_strides(p);
  const Strides xs = strides(p.batch, p.groups * p.in_channels, p.h, p.w, true, channels_last);
  const Strides ys = strides(p.batch, p.groups * p.out_channels, p.h, p.w, false, channels_last);
  for (const Direction direction : {Direction::forward, Direction::grad_input, Direction::grad_weight}) {
    const WeightStrides ws = depthwise(p) && direction != Direction::grad_weight ? dense_weight_strides(p, false) : any;
    Request r{direction, p, channels_last, Dtype::float32, threads, 2, xs, ys, ws};
    for (const KernelRow* kernel : kernel_table()) {
      const std::shared_ptr<const Plan> plan = plan_of(r, kernel->name);
      if (!plan->work) continue;
      ++(*ran)[form(*plan)];
      const auto now_and_then = [] { return pick({0, 1}) != 0; };
      if (!agrees(*plan, {now_and_then(), now_and_then(), now_and_then(), now_and_then()}, generator)) return false;
    }
  }
  const Request r{Direction::forward, p, channels_last, Dtype::float32, threads, 2, xs, ys, any};
  const int64_t channels = p.groups * p.out_channels;
  std::vector<float> sums(channels);
  Guarded y(p.batch * channels * p.h.out * p.w.out);
  y.randomize(generator);
  sum_channels(p.batch, channels, p.h.out, p.w.out, y.data(), ys, sums.data(), threads > 1, on_threads(threads));
  return channels_close(r, y.data(), sums.data());
}

// Tests the vectors of the instruction set in use.
bool vectors_agree() {
  const std::string isa = kernels().isa;
#ifdef GROUPWISE_HAVE_AVX2
  if (isa == "avx2") return avx2::simd_agrees();
#endif
#ifdef GROUPWISE_HAVE_AVX512
  if (isa == "avx512") return avx512::simd_agrees();
#endif
#ifdef GROUPWISE_HAVE_NEON
  if (isa == "neon") return neon::simd_agrees();
#endif
#ifdef GROUPWISE_HAVE_BASELINE
  if (isa == "baseline") return baseline::simd_agrees();
#endif
  return false;
}

}  // namespace

// core_test [cases]: so many of each instruction set that this machine runs.
int main(int count, char** arguments) {
  const int64_t cases = count > 1 ? std::atoll(arguments[1]) : 1500;
  const std::vector<std::string> isas = runnable_isas();
  Ran ran;
  size_t expected = 0;
  for (const std::string& isa : isas) {
    force_isa(isa);
    use_product({multiply, nullptr, isa.c_str()});
    expected += forms();
    if (!vectors_agree() || !skips_padding() || !threads_agree(generator)) return 1;
    if (!low_dtypes_agree(on_threads(1), on_threads(2))) return 1;
    if (isa == isas.front() && !shares_where_it_pays()) {
      std::printf("threads share work where that does not pay, or do not where it does\n");
      return 1;
    }
    if (!NumbersTest<double>(on_threads(1), on_threads(2)).agrees(cases / 3)) return 1;
    if (!NumbersTest<Bfloat16>(on_threads(1), on_threads(2)).agrees(cases / 3)) return 1;
    for (int64_t i = 0; i < cases; i++)
      if (!test_one(&ran)) return 1;
  }
  int64_t runs = 0;
  for (const auto& [name, count] : ran) {
    std::printf("%6ld  %s\n", static_cast<long>(count), name.c_str());
    runs += count;
  }
  std::printf("%ld kernel runs agree with plain loops\n", static_cast<long>(runs));
  if (ran.size() == expected) return 0;
  std::printf("%zu forms ran, and there are %zu\n", ran.size(), expected);
  return cases < 400 ? 0 : 1;
}
