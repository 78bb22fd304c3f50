// Who decides which kernel runs, from what was measured: on this machine, else on this class of processors, else by a model.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/table.h"
#include "plan/forest.h"
#include "plan/model.h"

namespace groupwise {

// `sole`: there is one kernel that can run, PyTorch's or one of ours. `forced`: it was asked for. The others are in the order
// in which they are asked: timings of this machine, tables of its processor class, a cost model, and, where there is not even a
// model, the order of the table of kernels. That is also the source where PyTorch's time is not known, in 3-D and other dtypes.
enum class Source { sole, forced, measured, table, model, order };
constexpr const char* kSourceNames[] = {"sole", "forced", "measured", "table", "model", "order"};

struct Candidate {
  const KernelRow* kernel;
  std::shared_ptr<const Work> work;
};

// How many times as fast as PyTorch's kernel a candidate is: as expected, and, as `low`, what is left of that with the caution of the
// source. Both are the same if it was measured. `why` is what a plan says of it.
struct Speedup {
  double middle, low;
  std::string why;
};

struct Judgement {
  Source source;
  std::vector<Speedup> speedups;  // of each candidate
  // A kernel of ours runs if its low speedup is at least this.
  double least;
};

// Judges the candidates by the first source that knows of the request.
Judgement judge(const Request& request, const std::vector<Candidate>& candidates);

// Tells whether a table knows of the request, whatever was measured.
bool known_to_tables(const Request& request, const std::vector<Candidate>& candidates);

// Sets the tables of an instruction set; null for none.
void use_tables(const std::string& isa, std::shared_ptr<const Tables> tables);

// Sets the cost model; null for none.
void use_model(std::shared_ptr<const Model> model);

// Whether kernels may be chosen whose error is relative to the norm of what they read (`by_norm`). At first they may not.
void allow_by_norm(bool allowed);
bool by_norm_allowed();

// Rises whenever a source learns something, which makes plans out of date.
int64_t policy_epoch();
void policy_changed();

}  // namespace groupwise
