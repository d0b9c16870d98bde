// Runs a libFuzzer target without libFuzzer, with any compiler: every file of a corpus, then so many random changes of
// them, the same ones each time.
//   PROGRAM CORPUS [CHANGES] [SEED]
// What was tried last is in the file `fuzz_input_PROGRAM` when the target crashes; an input that takes five seconds is
// a finding.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace {

constexpr std::size_t kLongestInput = 20000;
constexpr std::chrono::seconds kLongestTime{5};

std::vector<std::string> read_corpus(const char* folder) {
  std::vector<std::filesystem::path> paths;
  for (const auto& entry : std::filesystem::recursive_directory_iterator(folder))
    if (entry.is_regular_file()) paths.push_back(entry.path());
  std::sort(paths.begin(), paths.end());
  std::vector<std::string> inputs;
  for (const auto& path : paths) {
    std::ifstream file(path, std::ios::binary);
    inputs.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
  }
  return inputs;
}

class Mutator {
 public:
  Mutator(const std::vector<std::string>& corpus, unsigned seed) : corpus_(corpus), random_(seed) {}

  std::string next() {
    std::string text = corpus_[below(corpus_.size())];
    for (std::size_t i = 0, changes = 1 + below(6); i < changes; ++i) change(text);
    if (text.size() > kLongestInput) text.resize(kLongestInput);
    return text;
  }

 private:
  std::size_t below(std::size_t limit) { return limit == 0 ? 0 : random_() % limit; }

  // The first letter, which chooses the reader, stays.
  void change(std::string& text) {
    static const std::vector<std::string> words{
        "[",  "]", "{",     "}",   "\"", ",",    ":",   "-", "=", "\n", "\\u0000", "\xff\xfe", "99999999999999999999",
        "-1", "0", "1e999", "nan", "(x", "true", "null"};
    std::size_t at = text.empty() ? 0 : 1 + below(text.size()), length = 1 + below(16);
    at = std::min(at, text.size());
    switch (below(7)) {
      case 0:
        if (at < text.size()) text[at] = static_cast<char>(text[at] ^ (1 << below(8)));
        break;
      case 1:
        text.erase(at, length);
        break;
      case 2:
        text.insert(at, words[below(words.size())]);
        break;
      case 3:
        text.insert(at, text.substr(at, length));
        break;
      case 4:
        text.resize(at);
        break;
      case 5: {
        const auto& other = corpus_[below(corpus_.size())];
        text.insert(at, other.substr(std::min<std::size_t>(1, other.size())));
        break;
      }
      default:
        text.insert(at, std::string(below(400), static_cast<char>(below(256))));
    }
  }

  const std::vector<std::string>& corpus_;
  std::mt19937 random_;
};

// In a file, from where it can be taken after a crash, and yet quick.
class LastInput {
 public:
  // A name of its own, as several such programs run at a time in one folder.
  LastInput() : path_(std::string("fuzz_input_") + program_invocation_short_name) {
    int fd = open(path_.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0 || ftruncate(fd, kLongestInput) != 0) return;
    void* mapped = mmap(nullptr, kLongestInput, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    bytes_ = mapped == MAP_FAILED ? nullptr : static_cast<char*>(mapped);
    close(fd);
  }
  void note(const std::string& text) {
    if (!bytes_) return;
    std::memset(bytes_, 0, size_);
    size_ = std::min(text.size(), kLongestInput);
    std::memcpy(bytes_, text.data(), size_);
  }

  /// Nothing crashed: the file goes.
  void discard() { unlink(path_.c_str()); }

 private:
  std::string path_;
  char* bytes_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) return std::fputs("usage: PROGRAM CORPUS [CHANGES] [SEED]\n", stderr), 2;
  auto corpus = read_corpus(argv[1]);
  if (corpus.empty()) return std::fprintf(stderr, "no files in %s\n", argv[1]), 2;
  int changes = argc > 2 ? std::atoi(argv[2]) : 10000;
  Mutator mutator(corpus, argc > 3 ? static_cast<unsigned>(std::atoi(argv[3])) : 1);
  LastInput last;
  auto longest = std::chrono::steady_clock::duration::zero();
  auto run = [&](const std::string& text) {
    last.note(text);
    auto start = std::chrono::steady_clock::now();
    LLVMFuzzerTestOneInput(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
    longest = std::max(longest, std::chrono::steady_clock::now() - start);
    if (longest > kLongestTime) std::abort();
  };
  for (const auto& input : corpus) run(input);
  for (int i = 0; i < changes; ++i) run(mutator.next());
  last.discard();
  std::printf("%zu files and %d changes of them; the slowest took %.1f ms\n", corpus.size(), changes,
              std::chrono::duration<double, std::milli>(longest).count());
  return 0;
}
