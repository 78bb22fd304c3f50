#include "plan/measured.h"

#include <mutex>
#include <unordered_map>

#include "forked.h"

namespace groupwise {
namespace {

struct Memory {
  std::mutex mutex;
  std::unordered_map<std::string, Measured> measured;  // by instruction set and key
};

Memory& memory() { return forked<Memory>(); }

}  // namespace

void remember(const std::string& isa, const std::string& key, const Measured& measured) {
  const std::lock_guard<std::mutex> lock(memory().mutex);
  memory().measured[isa + " " + key] = measured;
}

void remember(const Request& request, const Measured& measured) { remember(request.target->isa, key_of(request), measured); }

void forget_all() {
  const std::lock_guard<std::mutex> lock(memory().mutex);
  memory().measured.clear();
}

std::optional<Measured> remembered(const Request& request) {
  const std::lock_guard<std::mutex> lock(memory().mutex);
  const auto found = memory().measured.find(std::string(request.target->isa) + " " + key_of(request));
  if (found == memory().measured.end()) return std::nullopt;
  return found->second;
}

}  // namespace groupwise
