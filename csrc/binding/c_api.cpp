#include "binding/c_api.h"

#include <cstring>
#include <sstream>

#include "arguments.h"
#include "binding/guard.h"
#include "binding/switches.h"
#include "binding/tuning.h"
#include "targets/isa.h"
#include "plan/features.h"
#include "plan/machine.h"
#include "plan/plan.h"
#include "plan/recording.h"
#include "plan/text.h"
#include "sharing.h"

#ifndef GROUPWISE_TORCH_VERSION
#define GROUPWISE_TORCH_VERSION ""
#endif
#ifndef GROUPWISE_COMPILER
#define GROUPWISE_COMPILER ""
#endif

namespace {

using groupwise::guarded;

int64_t give(const std::string& from, char* text, int64_t size) {
  const auto needed = static_cast<int64_t>(from.size()) + 1;
  if (size >= needed) std::memcpy(text, from.c_str(), needed);
  return needed;
}

std::string list(const std::vector<std::string>& names) {
  std::string json;
  for (const std::string& name : names) json += (json.empty() ? "\"" : ", \"") + name + "\"";
  return "[" + json + "]";
}

// Returns the names that commas join.
std::vector<std::string> names_of(const char* joined) {
  std::vector<std::string> names;
  std::istringstream from(joined);
  for (std::string name; std::getline(from, name, ',');) names.push_back(name);
  return names;
}

groupwise::Request request_of(const int64_t* n, const char* dtype) {
  groupwise::Request request;
  request.direction = static_cast<groupwise::Direction>(n[0]);
  const int64_t groups = n[4];
  const auto axis = [&](int at) { return groupwise::Axis{n[at], n[at + 1], n[at + 2], n[at + 3], n[at + 4], n[at + 5]}; };
  request.problem = {n[1], groups, n[2] / groups, n[3] / groups, axis(8), axis(14)};
  request.channels_last = n[5] != 0;
  request.threads = n[6];
  request.dimensions = n[7];
  const groupwise::Call call{request.problem, n[7], n[21] != 0, n[5] != 0, n[2], n[3], axis(22)};
  request.x_strides = groupwise::new_strides(call, true);
  request.y_strides = groupwise::new_strides(call, false);
  // The binding reads a depthwise weight as contiguous.
  const bool weight_last = n[20] != 0 && !groupwise::depthwise(request.problem);
  request.w_strides = groupwise::dense_weight_strides(call, weight_last);
  if (request.dimensions == 3) request.depth = groupwise::dense_depth(call, weight_last);
  request.transposed = n[21] != 0;
  request.biased = n[21] == 2;
  request.dtype = groupwise::dtype_named(dtype);
  return request;
}

}  // namespace

const char* groupwise_failure() { return groupwise::failure(); }

int32_t groupwise_api_version() { return GROUPWISE_API_VERSION; }

int64_t groupwise_build(char* text, int64_t size) {
  return guarded(int64_t{-1}, [&]() -> int64_t {
    std::string kernels;
    for (const groupwise::KernelRow* row : groupwise::kernel_table()) {
      std::vector<std::string> directions;
      for (int d = 0; d < 3; d++)
        if (row->directions[d]) directions.push_back(groupwise::kDirectionNames[d]);
      kernels += std::string(kernels.empty() ? "" : ", ") + "{\"name\": \"" + row->name +
                 "\", \"directions\": " + list(directions) + ", \"documentation\": \"" + row->documentation + "\"}";
    }
    return give("{\"torch\": \"" GROUPWISE_TORCH_VERSION "\", \"compiler\": \"" GROUPWISE_COMPILER "\", \"isas\": " +
                    list(groupwise::isa_names()) + ", \"runs\": " + list(groupwise::runnable_isas()) + ", \"kernels\": [" +
                    kernels + "]}",
                text, size);
  });
}

int64_t groupwise_isa(char* text, int64_t size) {
  return guarded(int64_t{-1}, [&]() -> int64_t {
    const std::string problem = groupwise::isa_problem();
    return give(problem.empty() ? groupwise::kernels().isa : "!" + problem, text, size);
  });
}

void groupwise_dispatch(int32_t on) { groupwise::dispatch(on != 0); }

int32_t groupwise_dispatch_thread(int32_t state) { return groupwise::dispatch_thread(state); }

const char* groupwise_force(const char* kernel) {
  return guarded(static_cast<const char*>(nullptr), [&]() -> const char* {
    thread_local std::string before;
    before = groupwise::force(kernel ? kernel : "");
    return before.c_str();
  });
}

int32_t groupwise_force_isa(const char* isa) {
  return guarded(-1, [&]() -> int32_t { return groupwise::force_isa(isa ? isa : "") ? 1 : 0; });
}

const char* groupwise_forced_isa() { return groupwise::forced_isa(); }

int64_t groupwise_plan(const int64_t* numbers, const char* dtype, char* text, int64_t size) {
  return guarded(int64_t{-1}, [&]() -> int64_t {
    return give(groupwise::describe(*groupwise::plan_of(request_of(numbers, dtype), groupwise::forced())), text, size);
  });
}

int64_t groupwise_features(const int64_t* numbers, const char* dtype, char* text, int64_t size) {
  return guarded(int64_t{-1}, [&]() -> int64_t {
    std::string json;
    for (const auto& [name, value] : groupwise::features_of(request_of(numbers, dtype))) {
      json += std::string(json.empty() ? "{\"" : ", \"") + name + "\": " + groupwise::json_number(value, 17);
    }
    return give(json + "}", text, size);
  });
}

int32_t groupwise_tables(const char* isa, const char* record, const char* features, const char* kernels, const double* numbers,
                         int64_t count) {
  return guarded(-1, [&]() -> int32_t {
    if (count == 0) {
      groupwise::use_tables(isa, nullptr);
      return 1;
    }
    std::optional<groupwise::Tables> read =
        groupwise::read_tables(record, names_of(features), names_of(kernels), numbers, count);
    if (read) groupwise::use_tables(isa, std::make_shared<const groupwise::Tables>(std::move(*read)));
    return read ? 1 : 0;
  });
}

int32_t groupwise_model(const char* record, const char* kernels, const double* numbers, int64_t count) {
  return guarded(-1, [&]() -> int32_t {
    if (count == 0) {
      groupwise::use_model(nullptr);
      return 1;
    }
    std::optional<groupwise::Model> read = groupwise::read_model(record, names_of(kernels), numbers, count);
    if (read) groupwise::use_model(std::make_shared<const groupwise::Model>(std::move(*read)));
    return read ? 1 : 0;
  });
}

int32_t groupwise_share(const char* isa, double products_a_lane) {
  return guarded(-1, [&]() -> int32_t {
    const groupwise::Kernels* target = groupwise::kernels_of(isa);
    if (!target || !(products_a_lane >= 0)) return 0;
    groupwise::share_from(*target, products_a_lane);
    groupwise::policy_changed();
    return 1;
  });
}

void groupwise_start_takes(double seconds) { groupwise::start_takes(seconds); }

int64_t groupwise_machine(char* text, int64_t size) {
  return guarded(int64_t{-1}, [&]() -> int64_t {
    const std::string json = "{\"peak\": " + groupwise::json_number(groupwise::peak_of(groupwise::kernels()), 6) +
                             ", \"bandwidth\": " + groupwise::json_number(groupwise::copy_bandwidth(), 6) + "}";
    return give(json, text, size);
  });
}

int32_t groupwise_remember(const char* isa, const char* request, const char* kernels, const double* seconds, int64_t count,
                           int64_t tries) {
  return guarded(-1, [&]() -> int32_t {
    groupwise::Timings timings;
    for (const std::string& name : names_of(kernels))
      if (static_cast<int64_t>(timings.size()) < count) timings.emplace_back(name, seconds[timings.size()]);
    groupwise::remember(isa, request, {timings, tries});
    return 1;
  });
}

int32_t groupwise_forget() {
  return guarded(-1, [&]() -> int32_t {
    groupwise::forget_all();
    groupwise::refill();
    return 1;
  });
}

void groupwise_policy_changed() { groupwise::policy_changed(); }

int32_t groupwise_tune(double calls, double seconds, int32_t unknown, const char* path) {
  return guarded(-1, [&]() -> int32_t {
    groupwise::tune(calls, seconds, unknown != 0, path ? path : "");
    return 1;
  });
}

int64_t groupwise_measured(char* text, int64_t size) {
  return guarded(int64_t{-1}, [&]() -> int64_t { return give(groupwise::measured_so_far(), text, size); });
}

void groupwise_when_spent(void (*told)()) { groupwise::when_spent(told); }
void groupwise_when_unknown(void (*told)()) { groupwise::when_unknown(told); }
void groupwise_fft(int32_t allowed) { groupwise::allow_by_norm(allowed != 0); }
void groupwise_clock(double (*clock)()) { groupwise::set_clock(clock); }

int64_t groupwise_record_start() {
  return guarded(int64_t{-1}, [&]() -> int64_t { return groupwise::start_recording(); });
}

int64_t groupwise_record_stop(int64_t recording, char* text, int64_t size) {
  return guarded(int64_t{-1}, [&]() -> int64_t {
    const int64_t needed = give(groupwise::stop_recording(recording), text, size);
    if (size >= needed) groupwise::forget_recording(recording);
    return needed;
  });
}
