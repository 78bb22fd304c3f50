// Gradients of the weight of bfloat16 layers. A tile keeps the sums of some taps or inputs, by vectors of outputs, in registers, while
// it goes through the pairs of positions of a run.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels/low/common-inl.h"
#include "kernels/low/gradient.h"
#include "kernels/tiles.h"
#include "simd/prefetch.h"

namespace groupwise::GW_TARGET {

// The most sums of a tile, and the most taps, each of which needs an address.
constexpr int kGradientSums = kManyRegisters ? 24 : 8, kGradientTaps = 9;
constexpr int kGradientVectors = 2, kGradientInputs = kGradientSums / kGradientVectors;
// The most taps of a tile of groups of G channels. Groups of 8 need as many registers to spread their inputs.
constexpr int gradient_taps(int G) { return std::min(kGradientTaps, (kManyRegisters && G >= 8 ? 16 : kGradientSums) / G); }

// A run of pairs in scratch: x and y begin at the first, and rows and columns are so many numbers apart.
struct PairRun {
  const Bfloat16 *x, *y;
  int64_t rows, columns, x_row, x_column, y_row;
};

// A vector of pairs as numbers.
typedef uint16_t Numbers __attribute__((vector_size(kLanes * 4)));

// Returns 2 * kLanes numbers, of which those from `count` on are zeros.
GW_INLINE Numbers numbers_at(const Bfloat16* p, int64_t count) {
  Numbers numbers{};
  if (count >= kLowBlock) {
    std::memcpy(&numbers, p, sizeof numbers);
    return numbers;
  }
#if GW_LANES == 16
  const __m512i some = _mm512_maskz_loadu_epi16((1u << count) - 1, p);
  std::memcpy(&numbers, &some, sizeof numbers);
#else
  std::memcpy(&numbers, p, count * sizeof *p);
#endif
  return numbers;
}

// Returns kLanes numbers of each, from `First` on, in turn.
template <int First>
GW_INLINE Numbers in_turn(Numbers a, Numbers b) {
  return [&]<int... L>(std::integer_sequence<int, L...>) GW_LAMBDA {
    return __builtin_shufflevector(a, b, (First + L / 2 + L % 2 * 2 * kLanes)...);
  }(std::make_integer_sequence<int, 2 * kLanes>{});
}

GW_INLINE Words words_at(const Bfloat16* p) {
  Words words;
  std::memcpy(&words, p, sizeof words);
  return words;
}

// Adds the products of N inputs, whose sums are `outputs` floats apart, with V vectors of outputs, `y_plane` numbers apart.
template <bool Native, int V, int N>
GW_NOINLINE void inputs_tile(const PairRun& run, int64_t y_plane, float* sums, int64_t outputs) {
  Vec sum[N * V];
  unroll<N * V>([&](auto i) GW_LAMBDA { sum[i] = Vec{}; });
  const int64_t x_column = run.x_column;
  for (int64_t r = 0; r < run.rows; r++) {
    const Bfloat16 *x = run.x + r * run.x_row, *y = run.y + r * run.y_row;
    for (int64_t q = run.columns; q > 0; q--, x += x_column, y += kLowBlock) {
      Words out[V];
      unroll<V>([&](auto v) GW_LAMBDA { out[v] = words_at(y + v * y_plane); });
      unroll<N>([&](auto i) GW_LAMBDA {
        uint32_t pair;
        std::memcpy(&pair, x + 2 * i, sizeof pair);
        unroll<V>([&](auto v) GW_LAMBDA { add_pairs<Native>(sum[i * V + v], pair + Words{}, out[v]); });
      });
    }
  }
  unroll<N>([&](auto i) GW_LAMBDA {
    unroll<V>([&](auto v) GW_LAMBDA {
      float* to = sums + i * outputs + v * kLanes;
      store(to, load(to) + sum[i * V + v]);
    });
  });
}

// Adds the products of T taps, `tap[t]` numbers from the first, with one vector of groups of G channels. The sums of a tap's inputs are
// `outputs` floats apart, and those of taps G times as much.
template <bool Native, int G, int T>
GW_NOINLINE void taps_tile(const PairRun& run, const int64_t* tap, float* sums, int64_t outputs) {
  Vec sum[T * G];
  unroll<T * G>([&](auto i) GW_LAMBDA { sum[i] = Vec{}; });
  int64_t at[T];
  unroll<T>([&](auto t) GW_LAMBDA { at[t] = tap[t]; });
  const int64_t x_column = run.x_column;
  for (int64_t r = 0; r < run.rows; r++) {
    const Bfloat16 *x = run.x + r * run.x_row, *y = run.y + r * run.y_row;
    for (int64_t q = run.columns; q > 0; q--, x += x_column, y += kLowBlock) {
      const Words out = words_at(y);
      unroll<T>([&](auto t) GW_LAMBDA {
        const Words in = words_at(x + at[t]);
        unroll<G>([&](auto number) GW_LAMBDA {
          constexpr int i = number;
          const Words own = [&]<int... L>(std::integer_sequence<int, L...>) GW_LAMBDA {
            return __builtin_shufflevector(in, in, (L / G * G + i)...);
          }(std::make_integer_sequence<int, kLanes>{});
          add_pairs<Native>(sum[t * G + i], own, out);
        });
      });
    }
  }
  unroll<T * G>([&](auto i) GW_LAMBDA {
    float* to = sums + i * outputs;
    store(to, load(to) + sum[i]);
  });
}

// What a pixel outside of the image, or a half that is not there, has for channels.
alignas(64) inline constexpr Bfloat16 kNoPixel[round_up(kMostLowInputs, 2 * kLanes)] = {};

// Copies the pairs of `count` neighbouring channels of two pixels. Each vector of them goes `plane` numbers behind the one before.
GW_INLINE void pair_pixels(Bfloat16* to, int64_t plane, const Bfloat16* first, const Bfloat16* second, int64_t count) {
  for (int64_t c = 0; c < count; c += kLowBlock, to += 2 * plane) {
    const Numbers a = numbers_at(first + c, count - c), b = numbers_at(second + c, count - c);
    const Numbers low = in_turn<0>(a, b), high = in_turn<kLanes>(a, b);
    std::memcpy(to, &low, sizeof low);
    if (count - c > kLanes) std::memcpy(to + plane, &high, sizeof high);
  }
}

// The channels that a unit reads and writes, counted over all groups.
struct LowUnit {
  int64_t input, output, inputs, outputs;
};
inline LowUnit unit_of(const LowGradient& g, int64_t unit) {
  const Problem& p = g.problem;
  const int64_t o = unit % g.output_blocks * g.outputs;
  if (g.shared) {
    const int64_t count = std::min(g.outputs, p.groups * p.out_channels - o);
    return {o, o, count, count};
  }
  const int64_t i = unit / g.output_blocks % g.input_blocks * g.inputs, group = unit / (g.output_blocks * g.input_blocks);
  return {group * p.in_channels + i, group * p.out_channels + o, std::min(g.inputs, p.in_channels - i),
          std::min(g.outputs, p.out_channels - o)};
}

constexpr int64_t kNumbersALine = 64 / sizeof(Bfloat16);

// Where the rows of a half are, of which those outside of the image are null, and their columns, of which those outside are negative.
struct HalfRows {
  const Bfloat16* start;
  int64_t row, height;
  std::vector<int64_t> columns;
  void begin(const Bfloat16* first, int64_t apart, int64_t rows) {
    start = first;
    row = apart;
    height = rows;
    columns.clear();
  }
  const Bfloat16* at(int64_t y) const { return start && y >= 0 && y < height ? start + y * row : nullptr; }
};

// Those of a band's image and gradient, which a task keeps.
struct BandRows {
  HalfRows from[2], grad[2];
};

// Copies pairs of the pixels of two rows, either of which may be null; pixels `next` numbers further are prefetched, unless it is 0.
GW_INLINE void pair_row(const Bfloat16* const (&rows)[2], const HalfRows* halves, int64_t columns, int64_t channels,
                        int64_t next, Bfloat16* to, int64_t pixel, int64_t plane) {
  for (int64_t q = 0; q < columns; q++, to += pixel) {
    const Bfloat16* at[2];
    unroll<2>([&](auto i) GW_LAMBDA {
      const int64_t column = halves[i].columns[q];
      at[i] = rows[i] && column >= 0 ? rows[i] + column : kNoPixel;
      if (next == 0) return;
      for (int64_t c = 0; c < channels; c += kNumbersALine) prefetch(at[i] + next + c);
      prefetch(at[i] + next + channels - 1);
    });
    pair_pixels(to, plane, at[0], at[1], channels);
  }
}

// Copies what a band reads to scratch. Its rows lie as closely as its columns allow.
inline void pair_band(const LowGradient& g, const LowUnit& u, const LowHalf (&halves)[2], int64_t rows, int64_t columns,
                      BandRows* band, Bfloat16* x, Bfloat16* y) {
  HalfRows *const from = band->from, *const grad = band->grad;
  const Problem& p = g.problem;
  const int64_t numbers = p.in_channels * p.h.in * p.w.in + p.out_channels * p.h.out * p.w.out;
  constexpr int64_t kPixels = 8;
  const int64_t ahead = beyond_cache(p.batch * p.groups * numbers / 2, kScratchFloats) ? kPixels : 0;
  const int64_t x_rows = g.reads(p.h, rows), x_columns = g.reads(p.w, columns), pixel = g.x_pixel();
  for (int i = 0; i < 2; i++) {
    const LowHalf& h = halves[i];
    from[i].begin(h.there ? g.x + h.n * g.x_strides.n + u.input : nullptr, g.x_strides.h, p.h.in);
    grad[i].begin(h.there ? g.y + h.n * g.y_strides.n + u.output : nullptr, g.y_strides.h, p.h.out);
    for (int64_t q = 0; q < columns; q++) grad[i].columns.push_back((h.column + q) * g.y_strides.w);
    for (int64_t q = 0; q < x_columns; q++) {
      const int64_t column = g.read_at(p.w, h.column, q);
      from[i].columns.push_back(column >= 0 && column < p.w.in ? column * g.x_strides.w : -1);
    }
  }
  for (int64_t r = 0; r < rows; r++)
    pair_row({grad[0].at(halves[0].row + r), grad[1].at(halves[1].row + r)}, grad, columns, u.outputs, ahead * g.y_strides.w,
             y + r * columns * kLowBlock, kLowBlock, rows * columns * kLowBlock);
  const int64_t plane = g.shared ? x_rows * x_columns * pixel : kLowBlock;
  for (int64_t r = 0; r < x_rows; r++)
    pair_row({from[0].at(g.read_at(p.h, halves[0].row, r)), from[1].at(g.read_at(p.h, halves[1].row, r))}, from, x_columns,
             u.inputs, ahead * g.x_strides.w, x + r * x_columns * pixel, pixel, plane);
}

// Adds the products of a run of pairs whose x begins with that of the first tap.
template <bool Native>
inline void add_inputs_run(const LowGradient& g, const LowUnit& u, const PairRun& run, int64_t y_plane, int64_t x_tap_row,
                           int64_t x_tap_column, float* sums) {
  const Problem& p = g.problem;
  const int64_t vectors = ceil_div(u.outputs, kLanes), step = even_run(u.inputs, kGradientInputs);
  for (int64_t tap = 0; tap < g.taps(); tap++)
    for (int64_t i = 0; i < u.inputs; i += step) {
      const int64_t count = std::min(step, u.inputs - i);
      PairRun one = run;
      one.x += tap / p.w.kernel * x_tap_row + tap % p.w.kernel * x_tap_column + 2 * i;
      for (int64_t v = 0; v < vectors; v += kGradientVectors) {
        one.y = run.y + v * y_plane;
        float* const to = sums + (tap * g.inputs + i) * g.outputs + v * kLanes;
        unroll<kGradientInputs>([&](auto n) GW_LAMBDA {
          if (count != n + 1) return;
          if (vectors - v > 1) return inputs_tile<Native, 2, n + 1>(one, y_plane, to, g.outputs);
          inputs_tile<Native, 1, n + 1>(one, y_plane, to, g.outputs);
        });
      }
    }
}

// The same where groups of G channels share vectors.
template <bool Native, int G>
inline void add_taps_run(const LowGradient& g, const LowUnit& u, const PairRun& run, int64_t y_plane, int64_t x_plane,
                         const int64_t* taps, float* sums) {
  constexpr int kMost = gradient_taps(G);
  const int64_t vectors = ceil_div(u.outputs, kLanes), step = even_run(g.taps(), kMost);
  PairRun one = run;
  for (int64_t v = 0; v < vectors; v++, one.x += x_plane, one.y += y_plane)
    for (int64_t tap = 0; tap < g.taps(); tap += step) {
      const int64_t count = std::min(step, g.taps() - tap);
      unroll<kMost>([&](auto n) GW_LAMBDA {
        if (count == n + 1) taps_tile<Native, G, n + 1>(one, taps + tap, sums + tap * G * g.outputs + v * kLanes, g.outputs);
      });
    }
}

template <bool Native>
inline void add_run(const LowGradient& g, const LowUnit& u, const PairRun& run, int64_t y_plane, int64_t x_plane, int64_t x_row,
                    const int64_t* taps, float* sums) {
  const Problem& p = g.problem;
  if (!g.shared) return add_inputs_run<Native>(g, u, run, y_plane, p.h.dilation * x_row, p.w.dilation * g.x_pixel(), sums);
  if (p.out_channels == 1) return add_taps_run<Native, 1>(g, u, run, y_plane, x_plane, taps, sums);
  if (p.out_channels == 2) return add_taps_run<Native, 2>(g, u, run, y_plane, x_plane, taps, sums);
  if constexpr (kLanes > 4)
    if (p.out_channels == 4) return add_taps_run<Native, 4>(g, u, run, y_plane, x_plane, taps, sums);
  if constexpr (kLanes > 8)
    if (p.out_channels == 8) return add_taps_run<Native, 8>(g, u, run, y_plane, x_plane, taps, sums);
}

// Runs tasks [begin, end), each of which sums a unit over a part of the pairs.
void grad_weight_low(const LowGradient& given, int64_t begin, int64_t end, float* scratch) {
  const LowGradient g = given;
  const Problem& p = g.problem;
  Bfloat16* const x = reinterpret_cast<Bfloat16*>(scratch);
  Bfloat16* const y = x + g.y_begins();
  std::vector<int64_t> taps(g.taps());
  BandRows band;
  for (int64_t task = begin; task < end; task++) {
    const int64_t unit = task % g.units(), part = task / g.units();
    const LowUnit u = unit_of(g, unit);
    float* const sums = g.sums + (part * g.units() + unit) * g.sums_of_unit();
    std::fill(sums, sums + g.sums_of_unit(), 0.0f);
    each_band(g, part, [&](const LowHalf& first, const LowHalf& second, int64_t rows, int64_t columns) {
      pair_band(g, u, {first, second}, rows, columns, &band, x, y);
      const int64_t x_column = g.x_pixel(), x_row = g.reads(p.w, columns) * x_column, x_plane = g.reads(p.h, rows) * x_row;
      const int64_t y_row = columns * kLowBlock, y_plane = rows * y_row;
      for (int64_t tap = 0; tap < g.taps(); tap++)
        taps[tap] = tap / p.w.kernel * p.h.dilation * x_row + tap % p.w.kernel * p.w.dilation * x_column;
      // A pair is two products.
      const int64_t most = kRun / 2, run_columns = even_run(columns, most);
      const int64_t run_rows = even_run(rows, std::max<int64_t>(1, most / run_columns));
      for (int64_t r = 0; r < rows; r += run_rows)
        for (int64_t q = 0; q < columns; q += run_columns) {
          const PairRun run{x + r * g.step(p.h) * x_row + q * g.step(p.w) * x_column,
                            y + r * y_row + q * kLowBlock,
                            std::min(run_rows, rows - r),
                            std::min(run_columns, columns - q),
                            g.step(p.h) * x_row,
                            g.step(p.w) * x_column,
                            y_row};
          if (multiplies_pairs()) {
            add_run<GW_LANES == 16>(g, u, run, y_plane, x_plane, x_row, taps.data(), sums);
          } else {
            add_run<false>(g, u, run, y_plane, x_plane, x_row, taps.data(), sums);
          }
        }
    });
  }
}

// A weight of an output: where its sum lies in a unit, and it itself behind the first one of the output; and how many from it on are
// neighbours in memory.
struct LowWeight {
  int64_t sum, place, run;
};

// Writes units [begin, end) of the gradient: the sums of all parts, in their order. Weights of an output that are neighbours in memory
// are turned, so that vectors store them.
void write_low_gradient(const LowGradient& g, int64_t begin, int64_t end) {
  const Problem& p = g.problem;
  const WeightStrides& s = g.w_strides;
  const int64_t part = g.units() * g.sums_of_unit();
  std::vector<LowWeight> weights;
  for (int64_t unit = begin; unit < end; unit++) {
    const LowUnit u = unit_of(g, unit);
    const int64_t first = g.shared ? 0 : u.input % p.in_channels, inputs = g.shared ? p.in_channels : u.inputs;
    weights.clear();
    const auto append = [&](int64_t i, int64_t tap) {
      const int64_t place = (first + i) * s.c + tap / p.w.kernel * s.h + tap % p.w.kernel * s.w;
      weights.push_back({(tap * g.inputs + i) * g.outputs, place, 1});
    };
    // In the order of memory: taps are neighbours, or inputs.
    if (s.c < s.w) {
      for (int64_t tap = 0; tap < g.taps(); tap++)
        for (int64_t i = 0; i < inputs; i++) append(i, tap);
    } else {
      for (int64_t i = 0; i < inputs; i++)
        for (int64_t tap = 0; tap < g.taps(); tap++) append(i, tap);
    }
    const int64_t count = static_cast<int64_t>(weights.size());
    for (int64_t i = count - 2; i >= 0; i--)
      if (weights[i + 1].place == weights[i].place + 1) weights[i].run = weights[i + 1].run + 1;
    for (int64_t v = 0; v < u.outputs; v += kLanes) {
      const int64_t outputs = std::min<int64_t>(kLanes, u.outputs - v);
      const float* const from = g.sums + unit * g.sums_of_unit() + v;
      const auto total = [&](int64_t i) GW_LAMBDA {
        Vec sum = load(from + weights[i].sum);
        for (int64_t k = 1; k < g.parts; k++) sum += load(from + k * part + weights[i].sum);
        return sum;
      };
      Bfloat16* to[kLanes];
      for (int64_t lane = 0; lane < outputs; lane++) to[lane] = g.w + begin_of(s, p.out_channels, u.output + v + lane);
      for (int64_t i = 0; i < count;) {
        if (weights[i].run >= kLanes) {
          Vec block[kLanes];
          for (int64_t k = 0; k < kLanes; k++) block[k] = total(i + k);
          transpose(block);
          for (int64_t lane = 0; lane < outputs; lane++) store(to[lane] + weights[i].place, block[lane]);
          i += kLanes;
          continue;
        }
        Bfloat16 made[kLanes];
        store(made, total(i));
        for (int64_t lane = 0; lane < outputs; lane++) to[lane][weights[i].place] = made[lane];
        i++;
      }
    }
  }
}

}  // namespace groupwise::GW_TARGET
