// Tests csrc/simd, and functions of vectors, against plain loops. The build compiles it once for each instruction set.
#include "kernels/activation-inl.h"
#include "simd/simd.h"
#include "simd/twice.h"

#include <cmath>
#include <cstdio>
#include <limits>
#include <vector>

namespace groupwise::GW_TARGET {
namespace {

constexpr float kMark = 1.2345678e30f;
constexpr int kAll = 2 * kLanes + 3;

// Floats 1, 2, ... of which no two are alike.
std::vector<float> counted(int64_t size) {
  std::vector<float> floats(size);
  for (int64_t i = 0; i < size; i++) floats[i] = static_cast<float>(i + 1);
  return floats;
}

std::vector<float> floats_of(Vec v) {
  std::vector<float> floats(kLanes);
  store(floats.data(), v);
  return floats;
}

bool same(const char* what, int64_t count, const std::vector<float>& got, const std::vector<float>& wanted) {
  if (got == wanted) return true;
  std::printf("wrong: %s of %ld\n", what, static_cast<long>(count));
  return false;
}

// `count` floats come last in memory of their own, so that AddressSanitizer sees a load beyond them.
bool partial(int64_t count) {
  const std::vector<float> from = counted(count);
  const int64_t lanes = count < kLanes ? count : kLanes;
  std::vector<float> wanted(kLanes, 0.0f), stored(kAll, kMark), kept(kAll, kMark), added(kAll, kMark);
  for (int64_t i = 0; i < lanes; i++) wanted[i] = from[i], added[i] = kMark + from[i], kept[i] = from[i];
  bool good = same("load_some", count, floats_of(load_some(from.data(), count)), wanted);
  const Vec v = load(counted(kAll).data());
  store_some(stored.data(), v, count);
  good &= same("store_some", count, stored, kept);
  put(stored.data(), v, count, false);
  good &= same("put", count, stored, kept);
  for (int64_t i = 0; i < lanes; i++) added[i] = 2 * from[i];
  put(stored.data(), v, count, true);
  good &= same("put with a sum", count, stored, added);
  if (count > kLanes) return good;
  std::vector<float> odd = counted(kLanes);
  for (int64_t i = count; i < kLanes; i++) odd[i] = std::numeric_limits<float>::quiet_NaN();
  return good & same("keep", count, floats_of(keep(load(odd.data()), count)), wanted);
}

bool copied(int64_t count) {
  const std::vector<float> from = counted(count);
  std::vector<float> got(kAll, kMark), wanted(kAll, kMark);
  for (int64_t i = 0; i < count; i++) wanted[i] = from[i];
  copy(got.data(), from.data(), count);
  return same("copy", count, got, wanted);
}

bool pairs(int64_t count) {
  const std::vector<float> from = counted(count);
  std::vector<float> even(kLanes, 0.0f), odd(kLanes, 0.0f);
  for (int64_t i = 0; i < count; i++) (i % 2 ? odd : even)[i / 2] = from[i];
  const Pairs some = load_pairs_some(from.data(), count);
  bool good = same("load_pairs_some", count, floats_of(some.even), even);
  good &= same("load_pairs_some", count, floats_of(some.odd), odd);
  if (count < 2 * kLanes) return good;
  const Pairs whole = load_pairs(from.data());
  good &= same("load_pairs", count, floats_of(whole.even), even) & same("load_pairs", count, floats_of(whole.odd), odd);
  const std::vector<float> shorter = counted(2 * kLanes - 1);
  good &= same("load_even", count, floats_of(load_even(shorter.data())), even);
  std::vector<float> joined = floats_of(interleave_low(whole.even, whole.odd));
  for (const float x : floats_of(interleave_high(whole.even, whole.odd))) joined.push_back(x);
  return good & same("interleave", count, joined, from);
}

bool repeated() {
  const std::vector<float> from = counted(kLanes), two = counted(2);
  std::vector<float> even, odd, pair;
  for (int i = 0; i < kLanes; i++) {
    even.push_back(from[i / 2 * 2]);
    odd.push_back(from[i / 2 * 2 + 1]);
    pair.push_back(from[i % 2]);
  }
  return same("load_even_twice", kLanes, floats_of(load_even_twice(from.data())), even) &
         same("load_odd_twice", kLanes, floats_of(load_odd_twice(from.data())), odd) &
         same("load_pair", 2, floats_of(load_pair(two.data())), pair);
}

template <int P>
bool woven() {
  Vec v[P];
  std::vector<float> got, wanted;
  for (int p = 0; p < P; p++) {
    std::vector<float> row(kLanes);
    for (int i = 0; i < kLanes; i++) row[i] = static_cast<float>(i * P + p);
    v[p] = load(row.data());
  }
  weave(v);
  for (int p = 0; p < P; p++)
    for (const float x : floats_of(v[p])) got.push_back(x), wanted.push_back(static_cast<float>(wanted.size()));
  return same("weave", P, got, wanted);
}

bool transposed() {
  const std::vector<float> from = counted(kLanes * kLanes);
  Vec rows[kLanes];
  for (int i = 0; i < kLanes; i++) rows[i] = load(from.data() + i * kLanes);
  transpose(rows);
  bool good = true;
  for (int i = 0; i < kLanes; i++) {
    std::vector<float> column(kLanes);
    for (int j = 0; j < kLanes; j++) column[j] = from[j * kLanes + i];
    good &= same("transpose, column", i, floats_of(rows[i]), column);
  }
  return good;
}

bool summed() {
  const std::vector<float> from = counted(4 * kLanes);
  Vec vectors[4];
  std::vector<float> got(4), wanted(4, 0.0f);
  for (int i = 0; i < 4 * kLanes; i++) wanted[i / kLanes] += from[i];
  for (int i = 0; i < 4; i++) vectors[i] = load(from.data() + i * kLanes);
  store_four(got.data(), sum_lanes(vectors));
  bool good = same("sum_lanes", 4, got, wanted);
  std::vector<float> products(kLanes);
  for (int i = 0; i < kLanes; i++) products[i] = from[i] + 3 * from[kLanes + i];
  Vec sum = vectors[0];
  add_product(sum, vectors[1], broadcast(3));
  return good & same("add_product", kLanes, floats_of(sum), products);
}

// Tells whether f differs from `exact` by at most `most` ulp of the result, for floats of all sizes up to `limit`.
template <class F, class Exact>
bool accurate(const char* what, double most, float limit, F&& f, Exact&& exact) {
  double worst = 0;
  float at = 0;
  for (uint32_t i = 0; i < 0x7f800000u; i += 4001) {
    float x;
    std::memcpy(&x, &i, sizeof x);
    if (x > limit) break;
    for (const float side : {x, -x}) {
      const double wanted = exact(static_cast<double>(side));
      const auto nearest = static_cast<float>(wanted);
      const float got = floats_of(f(broadcast(side)))[kLanes - 1];
      if (got == nearest) continue;
      const double ulp = std::max(std::ldexp(1.0, std::ilogb(wanted) - 23), std::ldexp(1.0, -149));
      const double error = std::abs(static_cast<double>(got) - wanted) / ulp;
      if (!(error <= worst)) worst = error, at = side;
    }
  }
  if (worst <= most) return true;
  std::printf("wrong: %s of %.9g is off by %.3g ulp\n", what, static_cast<double>(at), worst);
  return false;
}

bool functions() {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinite = std::numeric_limits<float>::infinity();
  bool good = accurate("exponential", 1.5, 1e4f, [](Vec x) { return exponential(x); }, [](double x) { return std::exp(x); });
  good &= accurate(
      "hyperbolic_tangent", 2.5, 1e4f, [](Vec x) { return hyperbolic_tangent(x); }, [](double x) { return std::tanh(x); });
  // Below -88 it is subnormal or 0, since the exponential beside it is infinite.
  good &= accurate("logistic", 2.5, 88.0f, [](Vec x) { return logistic(x); }, [](double x) { return 1 / (1 + std::exp(-x)); });
  const auto first = [](Vec v) { return floats_of(v)[0]; };
  good &= first(exponential(broadcast(kInfinite))) == kInfinite && first(exponential(broadcast(-kInfinite))) == 0;
  good &= std::isnan(first(exponential(broadcast(kNan)))) && std::isnan(first(hyperbolic_tangent(broadcast(kNan))));
  if (!good) std::printf("wrong: a function of vectors\n");
  return good;
}

}  // namespace

bool simd_agrees() {
  bool good = transposed() & summed() & woven<2>() & woven<3>() & woven<4>() & repeated() & functions();
  for (int64_t count = 0; count <= kAll; count++) good &= partial(count) & copied(count);
  for (int64_t count = 1; count <= 2 * kLanes; count++) good &= pairs(count);
  return good;
}

}  // namespace groupwise::GW_TARGET
