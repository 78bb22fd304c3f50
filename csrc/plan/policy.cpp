#include "plan/policy.h"

#include <atomic>
#include <cmath>
#include <map>
#include <mutex>

#include "forked.h"
#include "kernels/converted/cut.h"
#include "kernels/volume.h"
#include "plan/features.h"
#include "plan/measured.h"
#include "plan/text.h"

namespace groupwise {
namespace {

std::atomic<int64_t> epoch{0};
std::atomic<bool> by_norm{false};

struct Shelf {
  std::mutex mutex;
  std::map<std::string, std::shared_ptr<const Tables>> tables;  // by the name of `name_of_tables`
  std::shared_ptr<const Model> model;
};

Shelf& shelf() { return forked<Shelf>(); }

// The tables of an instruction set have its name, and those of its 3-D convolutions and of other dtypes say so after it.
std::string name_of_tables(const Request& request) {
  std::string name = request.target->isa;
  if (request.dimensions == 3) name += " 3-D";
  if (request.dtype != Dtype::float32) name += " " + std::string(kDtypeNames[static_cast<int>(request.dtype)]);
  return name;
}

std::shared_ptr<const Tables> tables_of(const Request& request) {
  const std::lock_guard<std::mutex> lock(shelf().mutex);
  const auto found = shelf().tables.find(name_of_tables(request));
  return found == shelf().tables.end() ? nullptr : found->second;
}

std::shared_ptr<const Model> model_in_use() {
  const std::lock_guard<std::mutex> lock(shelf().mutex);
  return shelf().model;
}

// Timings of a few calls vary by so much: a kernel of ours that was measured to be no faster than this leaves PyTorch's.
constexpr double kTie = 0.03;

// Judges by what was measured here. False if a candidate, or PyTorch's kernel, was not.
bool judge_measured(const Request& request, const std::vector<Candidate>& candidates, Judgement* judgement) {
  const std::optional<Measured> measured = remembered(request);
  if (!measured) return false;
  const auto seconds = [&](const std::string& name) {
    for (const auto& [kernel, time] : measured->timings)
      if (kernel == name) return time;
    return 0.0;
  };
  const double pytorch = seconds(kPyTorch);
  if (!(pytorch > 0)) return false;
  for (const Candidate& c : candidates) {
    const double own = seconds(c.kernel->name);
    if (own > 0) {
      judgement->speedups.push_back({pytorch / own, pytorch / own, times(pytorch / own) + " PyTorch's speed, measured here"});
    } else {
      judgement->speedups.push_back({0, 0, "not measured here within the budget"});
    }
  }
  judgement->source = Source::measured;
  judgement->least = 1 + kTie;
  return true;
}

// Judges by the tables of this processor class. False if they know nothing of a layer like this.
bool judge_by_tables(const Request& request, const std::vector<Candidate>& candidates, Judgement* judgement) {
  const std::shared_ptr<const Tables> tables = tables_of(request);
  if (!tables) return false;
  std::vector<double> values;
  const auto features = features_of(request);
  for (const std::string& name : tables->features)
    for (const auto& [known, value] : features)
      if (name == known) values.push_back(value);
  // Tables of a feature that this version lacks are another version's.
  if (values.size() != tables->features.size()) return false;
  const auto time = [&](const char* kernel, int64_t products) {
    const double each = static_cast<double>(products) / static_cast<double>(request.threads);
    return tables->time(kernel, values, each, bytes_of(request));
  };
  const std::optional<Estimate> pytorch = time(kPyTorch, products_of(request));
  if (!pytorch) return false;
  bool known = false;
  for (const Candidate& c : candidates) {
    const std::optional<Estimate> own = time(c.kernel->name, c.work->facts.products);
    known |= own.has_value();
    if (!own) {
      judgement->speedups.push_back({0, 0, "no measured layer is like this"});
      continue;
    }
    const double middle = std::exp2(pytorch->mean - own->mean), spread = std::hypot(pytorch->spread, own->spread);
    judgement->speedups.push_back({middle, middle / std::exp2(tables->caution * spread),
                                   times(middle) + " PyTorch's speed by the table, give or take " + times(std::exp2(spread)) +
                                       " (" + tables->record + ")"});
  }
  judgement->source = Source::table;
  judgement->least = 1 + tables->margins[family_of(request.problem)];
  if (!known) judgement->speedups.clear();
  return known;
}

// Judges by the cost model. False if there is none, or it knows of no kernel here.
bool judge_by_model(const Request& request, const std::vector<Candidate>& candidates, Judgement* judgement) {
  const std::shared_ptr<const Model> model = model_in_use();
  if (!model) return false;
  const auto products = static_cast<double>(products_of(request.problem));
  const std::optional<double> pytorch = expected_seconds(*model, request, kPyTorch, products);
  if (!pytorch) return false;
  bool known = false;
  for (const Candidate& c : candidates) {
    const auto executed = static_cast<double>(c.work->facts.products);
    const std::optional<double> own = expected_seconds(*model, request, c.kernel->name, executed);
    known |= own.has_value();
    if (!own) {
      judgement->speedups.push_back({0, 0, "nothing is known of it here"});
      continue;
    }
    const double middle = *pytorch / *own;
    judgement->speedups.push_back({middle, middle / model->spread,
                                   times(middle) + " PyTorch's speed by the cost model, " + times(middle / model->spread) +
                                       " or less for a tenth (" + model->record + ")"});
  }
  judgement->source = Source::model;
  judgement->least = 1;
  if (!known) judgement->speedups.clear();
  return known;
}

// Judges a 3-D request that no table knows by what is known of a 2-D one of as many planes, which orders the kernels. What
// PyTorch's 3-D kernels take is not known, so that none is sure to be faster.
Judgement judge_volume(const Request& request, const std::vector<Candidate>& candidates) {
  Request planes = plane_of(request);
  // Each output in depth reads as many planes as there are taps: so the products are those of the volume.
  planes.problem.batch = request.problem.batch * request.depth.axis.out * request.depth.axis.kernel;
  planes.threads = request.threads;
  Judgement judgement = judge(planes, candidates);
  judgement.source = Source::order;
  judgement.least = 1;
  for (Speedup& one : judgement.speedups) {
    one.low = 0;
    one.why = "as a 2-D convolution " + one.why + "; nothing was measured of it in 3-D";
  }
  return judgement;
}

// Judges a request of another dtype than float32 that no table knows: which kernel is the fastest in float32. Nothing is known
// of PyTorch's time, which is many times that of float32 for some layers, and less for others where the processor multiplies
// numbers of 16 bits: none is sure to be faster.
Judgement judge_by_float32(const Request& request, const std::vector<Candidate>& candidates) {
  Judgement judgement = judge(in_float32(request), candidates);
  judgement.source = Source::order;
  judgement.least = 1;
  for (Speedup& s : judgement.speedups) {
    s.low = 0;
    s.why = "PyTorch's time in " + std::string(kDtypeNames[static_cast<int>(request.dtype)]) +
            " is not known here; tuning measures it";
  }
  return judgement;
}

}  // namespace

Judgement judge(const Request& request, const std::vector<Candidate>& candidates) {
  Judgement judgement{};
  if (judge_measured(request, candidates, &judgement)) return judgement;
  if (judge_by_tables(request, candidates, &judgement)) return judgement;
  if (request.dtype != Dtype::float32) return judge_by_float32(request, candidates);
  if (request.dimensions == 3) return judge_volume(request, candidates);
  if (judge_by_model(request, candidates, &judgement)) return judgement;
  judgement = {Source::order, {}, 1};
  for (size_t i = 0; i < candidates.size(); i++)
    judgement.speedups.push_back(
        {1, 1, "nothing was measured for this processor; kernels are taken in the order of their table"});
  return judgement;
}

bool known_to_tables(const Request& request, const std::vector<Candidate>& candidates) {
  Judgement unused{};
  return judge_by_tables(request, candidates, &unused);
}

void use_tables(const std::string& isa, std::shared_ptr<const Tables> tables) {
  {
    const std::lock_guard<std::mutex> lock(shelf().mutex);
    shelf().tables[isa] = std::move(tables);
  }
  policy_changed();
}

void use_model(std::shared_ptr<const Model> model) {
  {
    const std::lock_guard<std::mutex> lock(shelf().mutex);
    shelf().model = std::move(model);
  }
  policy_changed();
}

void allow_by_norm(bool allowed) {
  if (by_norm.exchange(allowed) != allowed) policy_changed();
}
bool by_norm_allowed() { return by_norm.load(std::memory_order_relaxed); }

int64_t policy_epoch() { return epoch.load(std::memory_order_relaxed); }
void policy_changed() { epoch++; }

}  // namespace groupwise
