#include "plan/plan.h"
#include "plan/text.h"

namespace groupwise {
namespace {

std::string number(const char* key, int64_t value) { return std::string("\"") + key + "\": " + std::to_string(value); }
std::string quoted(const char* key, const std::string& value) { return std::string("\"") + key + "\": \"" + value + "\""; }
std::string pair(const char* key, int64_t h, int64_t w) {
  return std::string("\"") + key + "\": [" + std::to_string(h) + ", " + std::to_string(w) + "]";
}
std::string object(const char* key, const std::vector<std::pair<const char*, std::string>>& texts) {
  std::string json = std::string("\"") + key + "\": {";
  for (size_t i = 0; i < texts.size(); i++) json += (i > 0 ? ", " : "") + quoted(texts[i].first, texts[i].second);
  return json + "}";
}

}  // namespace

std::string describe(const Plan& plan) {
  const Request& r = plan.request;
  const Problem& p = r.problem;
  std::string json =
      "{" + quoted("kernel", plan.name()) + ", " + quoted("direction", kDirectionNames[static_cast<int>(r.direction)]) + ", " +
      quoted("isa", r.target->isa) + ", " + number("threads", plan.work ? plan.work->facts.threads : r.threads) + ", " +
      quoted("memory_format", r.channels_last ? "channels_last" : "contiguous") + ", " + number("batch", p.batch) + ", " +
      number("groups", p.groups) + ", " + number("in_channels", p.groups * p.in_channels) + ", " +
      number("out_channels", p.groups * p.out_channels) + ", " + pair("input_size", p.h.in, p.w.in) + ", " +
      pair("output_size", p.h.out, p.w.out) + ", " + pair("kernel_size", p.h.kernel, p.w.kernel) + ", " +
      pair("stride", p.h.stride, p.w.stride) + ", " + pair("padding", p.h.pad, p.w.pad) + ", " +
      pair("dilation", p.h.dilation, p.w.dilation) + ", " + quoted("source", kSourceNames[static_cast<int>(plan.source)]) +
      ", " + quoted("evidence", plan.evidence);
  if (plan.speedup > 0) json += ", \"speedup\": " + json_number(plan.speedup, 6);
  if (plan.work) {
    const Facts& f = plan.work->facts;
    json += ", " + quoted("tile", f.tile) + ", \"block\": {" + number("rows", f.block.rows) + ", " +
            number("columns", f.block.columns) + ", " + number("groups", f.block.groups) + "}, " + number("tasks", f.tasks) +
            ", " + number("products", f.products) + ", " + number("scratch_bytes", f.floats * 4);
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
