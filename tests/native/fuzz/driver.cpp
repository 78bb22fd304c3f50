// Runs the entry of libFuzzer where there is none: on the files that are named, or on random bytes for a time.
// groupwise_core_fuzz [-max_total_time=SECONDS] [-seed=NUMBER] [-artifact_prefix=FOLDER/] [FILE ...]
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);
// Of the sanitizers, where there are any.
extern "C" __attribute__((weak)) void __sanitizer_set_death_callback(void (*callback)());

namespace {

constexpr size_t kMostBytes = 64;

std::string prefix;
std::vector<uint8_t> input;

void keep_input() {
  const std::string name = prefix + "crash";
  std::ofstream(name, std::ios::binary).write(reinterpret_cast<const char*>(input.data()), static_cast<long>(input.size()));
  std::fprintf(stderr, "the bytes that failed are in %s\n", name.c_str());
}

void keep_and_end(int) {
  keep_input();
  std::_Exit(1);
}

bool option(const std::string& argument, const std::string& name, std::string* value) {
  if (argument.rfind("-" + name + "=", 0) != 0) return false;
  *value = argument.substr(name.size() + 2);
  return true;
}

}  // namespace

int main(int count, char** arguments) {
  std::string seconds = "60", seed;
  std::vector<std::string> files;
  for (int i = 1; i < count; i++) {
    const std::string argument = arguments[i];
    if (option(argument, "max_total_time", &seconds) || option(argument, "seed", &seed) ||
        option(argument, "artifact_prefix", &prefix))
      continue;
    // A folder is a corpus of libFuzzer's.
    if (argument[0] != '-' && !std::filesystem::is_directory(argument)) files.push_back(argument);
  }
  for (const std::string& file : files) {
    std::ifstream from(file, std::ios::binary);
    if (!from) {
      std::fprintf(stderr, "%s cannot be read\n", file.c_str());
      return 1;
    }
    input.assign(std::istreambuf_iterator<char>(from), {});
    LLVMFuzzerTestOneInput(input.data(), input.size());
    std::printf("%s agrees with plain loops\n", file.c_str());
  }
  if (!files.empty()) return 0;
  std::signal(SIGABRT, keep_and_end);
  // Sanitizers look at the other signals themselves.
  if (__sanitizer_set_death_callback) {
    __sanitizer_set_death_callback(keep_input);
  } else {
    for (const int number : {SIGSEGV, SIGBUS, SIGFPE}) std::signal(number, keep_and_end);
  }
  std::mt19937 random(seed.empty() ? std::random_device()() : static_cast<uint32_t>(std::stoul(seed)));
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(std::stoll(seconds));
  int64_t runs = 0;
  for (; std::chrono::steady_clock::now() < end; runs++) {
    input.resize(kMostBytes);
    for (uint8_t& byte : input) byte = static_cast<uint8_t>(random());
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("%ld random inputs agree with plain loops\n", static_cast<long>(runs));
  return 0;
}
