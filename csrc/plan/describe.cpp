#include "plan/plan.h"
#include "plan/text.h"

namespace groupwise {
namespace {

std::string number(const char* key, int64_t value) { return std::string("\"") + key + "\": " + std::to_string(value); }
std::string quoted(const char* key, const std::string& value) { return std::string("\"") + key + "\": \"" + value + "\""; }
// One number of each axis of an image, or of a volume.
std::string each(const char* key, const Request& r, int64_t Axis::* number) {
  const std::string plane = std::to_string(r.problem.h.*number) + ", " + std::to_string(r.problem.w.*number) + "]";
  const std::string depth = r.dimensions == 3 ? std::to_string(r.depth.axis.*number) + ", " : "";
  return std::string("\"") + key + "\": [" + depth + plane;
}
std::string object(const char* key, const std::vector<std::pair<const char*, std::string>>& texts) {
  std::string json = std::string("\"") + key + "\": {";
  for (size_t i = 0; i < texts.size(); i++) json += (i > 0 ? ", " : "") + quoted(texts[i].first, texts[i].second);
  return json + "}";
}

const char* format_of(const Request& r) {
  return !r.channels_last ? "contiguous" : r.dimensions == 3 ? "channels_last_3d" : "channels_last";
}

}  // namespace

std::string describe(const Plan& plan) {
  const Request& r = plan.request;
  const Problem& p = r.problem;
  std::string json =
      "{" + quoted("kernel", plan.name()) + ", " + quoted("direction", kDirectionNames[static_cast<int>(r.direction)]) + ", " +
      quoted("isa", r.target->isa) + ", " + number("threads", plan.work ? plan.work->facts.threads : r.threads) + ", " +
      quoted("memory_format", format_of(r)) + ", " + number("batch", p.batch) + ", " + number("groups", p.groups) + ", " +
      number("in_channels", p.groups * p.in_channels) + ", " + number("out_channels", p.groups * p.out_channels) + ", " +
      each("input_size", r, &Axis::in) + ", " + each("output_size", r, &Axis::out) + ", " +
      each("kernel_size", r, &Axis::kernel) + ", " + each("stride", r, &Axis::stride) + ", " + each("padding", r, &Axis::pad) +
      ", " + each("dilation", r, &Axis::dilation) + ", " + quoted("source", kSourceNames[static_cast<int>(plan.source)]) +
      ", " + quoted("evidence", plan.evidence);
  if (plan.hazard) json += ", " + quoted("hazard", plan.hazard);
  if (plan.speedup > 0) json += ", \"speedup\": " + json_number(plan.speedup, 6);
  if (plan.work) {
    const Facts& f = plan.work->facts;
    json += ", " + quoted("tile", f.tile) + ", \"block\": {" + number("rows", f.block.rows) + ", " +
            number("columns", f.block.columns) + ", " + number("groups", f.block.groups) + "}, " + number("tasks", f.tasks) +
            ", " + number("products", f.products) + ", " +
            number("scratch_bytes", f.floats * (r.dtype == Dtype::float64 ? 8 : 4));
  }
  if (!plan.sharing.empty()) json += ", " + quoted("sharing", plan.sharing);
  return json + ", " + object("refused", plan.refused) + ", " + object("others", plan.others) + "}";
}

std::string profile_name(std::string_view kernel, Direction direction, const Kernels& target) {
  std::string name = "groupwise::";
  name += kernel;
  if (direction != Direction::forward) name.append(" ").append(kDirectionNames[static_cast<int>(direction)]);
  return name.append(" ").append(target.isa);
}

}  // namespace groupwise
